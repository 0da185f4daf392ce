"""One start of an asyncio worker: its machine, its loops and its handlers."""

from __future__ import annotations

import asyncio
import os
import time
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from math import inf
from random import random
from types import FrameType, TracebackType
from typing import Any

from streamfleet.async_contract import handler_name
from streamfleet.asyncio.loops import Loops, Wakeup, wake
from streamfleet.asyncio.threads import Threads
from streamfleet.attempts import MAX_HANGING, Attempts, Canceller, Hanging, call_in_thread, same_context
from streamfleet.handlers import Handler, Handlers
from streamfleet.identity import consumer_name
from streamfleet.task import Task
from streamfleet.watchdog import Watchdog
from streamfleet_core.config import WorkerConfig
from streamfleet_core.connection import AsyncDriver
from streamfleet_core.state import Delivery
from streamfleet_core.worker import WorkerMachine

CANCELLED_STOP = 5.0
"""Seconds that a cancelled worker still takes to give its entries back; after that others have to reclaim them."""
HANDLER_GRACE = 5.0
"""Seconds that handlers get to clean up after they were cancelled, before they are cancelled again."""
TURN = 20
"""After so many tasks in a row a handler's place lets others on the loop have their turn."""


class Run:
    """An async context manager: within it the worker works. It is entered once.

    A fixed number of *slots*, one task each, take deliveries from the machine and run handlers. A slot whose
    handler was cancelled (by whomever), or has changed context variables, is replaced by a fresh one, so that
    nothing of one attempt is seen by the next.
    """

    def __init__(
        self, driver: AsyncDriver, name: str, config: WorkerConfig, handlers: Handlers[Callable[[Task], Any]]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ended = False
        self._handlers = handlers
        self._time = loop.time
        self.machine = WorkerMachine(
            consumer_name(name),
            handlers.timeouts(),
            config,
            now=loop.time(),
            wall_ms=time.time() * 1000,
            entropy=os.urandom,
            random=random,
        )
        self.loops = Loops(name, self.machine, driver, self._after)
        self._attempts = Attempts(self.machine, loop.time)
        self._idle: list[Wakeup] = []
        self._slots = 0
        self._threads: Threads | None = None
        self._hanging = Hanging(self.machine)
        self._watchdog = Watchdog(name, config.lease, _call.__code__, _handler_in)
        self._beat: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Run:
        await self.loops.tasks.begin()
        for link in self.machine.links:
            self.loops.start(link)
        for _ in range(self.machine.config.concurrency):
            self._add_slot()
        self._watchdog.start()
        self._heartbeat()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.loops.tasks.end(self._finish, error)
        finally:
            self.ended = True
            if self._beat is not None:
                self._beat.cancel()
            self._watchdog.stop()
            if self._threads is not None:
                self._threads.close()

    async def _finish(self, cancelled: bool) -> None:
        if cancelled:
            await self._stop_now()
            return
        await self.stop(None)
        await self.loops.tasks.wait(HANDLER_GRACE)

    # ---- handlers -----------------------------------------------------------------------------------

    def _add_slot(self) -> None:
        self._slots += 1
        self.loops.tasks.spawn(self._serve, f"{self.loops.who}-handler-{self._slots}", self._slot_ended)

    def _slot_ended(self) -> None:
        """It has to be replaced, or was cancelled by others."""
        if not self.machine.stopping:
            self._add_slot()

    async def _serve(self) -> None:
        """The life of a slot: take, run, report."""
        slot = asyncio.current_task()
        assert slot is not None, "a coroutine runs in a task"
        machine, loops, now, clean = self.machine, self.loops, self._time, self.loops.tasks.context
        turn = 0
        while not machine.stopping:
            delivery = machine.take(now())
            if delivery is None:
                loops.wake_kicked()
                await self._wait_for_work()
                continue
            threads = self._handlers[delivery.queue.keys.queue].threads
            delivery.on_cancel = Canceller(delivery, self._hanging if threads else None, slot.cancel)
            if machine.kicked:
                loops.wake_kicked()  # its timeout may be the next thing that the clock has to ring for
            await self._attempt(delivery)
            delivery.on_cancel = None
            if machine.kicked or machine.events:
                loops.wake_kicked()
            if slot.cancelling():
                with suppress(CancelledError):  # one that is still under way
                    await asyncio.sleep(0)
                return
            if delivery.cancelled or not same_context(clean, copy_context()):
                return
            turn += 1
            if turn >= TURN:
                turn = 0
                await asyncio.sleep(0)

    async def _attempt(self, delivery: Delivery) -> None:
        """Run the handler and report how it ended."""
        handler = self._handlers[delivery.queue.keys.queue]
        task = Task(delivery)
        try:
            if handler.threads:
                value = await self._in_thread(handler, task, delivery)
            else:
                value = await _call(handler, task)
        except CancelledError as error:
            if not self.loops.tasks.alive:
                raise
            if delivery.cancelled or self.loops.tasks.interrupted:
                self._attempts.stopped(delivery)
            else:  # the handler has cancelled itself, or something that it awaited was cancelled
                self._attempts.raised(delivery, error)
        except KeyboardInterrupt as interrupt:  # it ends the program, but in order
            self._attempts.stopped(delivery)
            if not self.loops.tasks.fail(interrupt):
                raise
        except BaseException as error:  # a handler's SystemExit ends its attempt, never the worker
            self._attempts.raised(delivery, error)
        else:
            self._attempts.returned(delivery, value)

    async def _wait_for_work(self) -> None:
        place: Wakeup = self.loops.loop.create_future()
        self._idle.append(place)
        await place

    async def _in_thread(self, handler: Handler[Callable[[Task], Any]], task: Task, delivery: Delivery) -> object:
        """Run a plain function in a thread. Cancelled, it leaves the thread to itself, unless too many hang."""
        if self._threads is None:
            name = f"{self.loops.who}-thread"
            self._threads = Threads(name, self.machine.config.concurrency * (1 + MAX_HANGING))
        work = self._threads.submit(partial(copy_context().run, call_in_thread, handler.function, task))
        result = asyncio.wrap_future(work)
        try:
            value, error = await asyncio.shield(result)
        except CancelledError:
            if work.cancel() or work.done():
                self._hanging.returned(delivery)
            else:
                if not self._hanging.leave(delivery):  # it was not the machine that has cancelled it
                    self.loops.wake_kicked()
                    await asyncio.wait([result])
                work.add_done_callback(lambda _: self._came_back(delivery))
            raise
        self._hanging.returned(delivery)
        if error is not None:
            raise error
        return value

    def _came_back(self, delivery: Delivery) -> None:
        """Called in the thread that was left to itself, when its function has returned after all."""
        loop = self.loops.loop
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._count_back, delivery)

    def _count_back(self, delivery: Delivery) -> None:
        self._hanging.returned(delivery)
        self._attempts.late(delivery)
        self.loops.wake_kicked()

    # ---- life ---------------------------------------------------------------------------------------

    def _after(self) -> None:
        """The machine has moved: wake as many slots as there is work for."""
        machine, idle = self.machine, self._idle
        if idle and machine.ready:
            for _ in range(min(len(idle), len(machine.ready))):
                wake(idle.pop())
        if machine.refusal is not None and not machine.stopping:
            machine.stop(self._time())
            self.loops.wake_kicked()
        if machine.stopping:
            while idle:
                wake(idle.pop())
            if machine.refusal is not None and not machine.failing_in_order:
                machine.abandon()
            self.loops.interrupt_finished()

    def begin_stop(self, drain: float | None) -> None:
        """Stop, without waiting for it; a second stop may shorten the time of the first."""
        self.machine.stop(self._time(), drain)
        self.loops.after_step()

    async def stop(self, drain: float | None) -> None:
        """See `Worker.stop`."""
        self.begin_stop(drain)
        await self.wait(None)

    async def wait(self, timeout: float | None) -> bool:
        """Wait until all loops have ended."""
        deadline = inf if timeout is None else self._time() + timeout
        return await self.loops.wait_until(lambda: not self.loops.running, deadline)

    async def _stop_now(self) -> None:
        """Cancel the handlers and give everything back, for as long as a cancelled worker may take."""
        self.begin_stop(0.0)
        await self.wait(CANCELLED_STOP)
        for link in self.machine.links:
            link.stop()

    def raise_refusal(self) -> None:
        """Raises why the server refused, if it did."""
        refusal = self.machine.refusal
        if refusal is not None:
            raise refusal

    def _heartbeat(self) -> None:
        self._watchdog.beat()
        self._beat = self.loops.loop.call_later(self._watchdog.interval, self._heartbeat)


async def _call(handler: Handler[Callable[[Task], Any]], task: Task) -> object:
    """Run an async handler; the watchdog knows this frame."""
    value: object = await handler.function(task)
    return value


def _handler_in(frame: FrameType) -> str:
    """Which handler a frame of `_call` runs."""
    handler, task = frame.f_locals["handler"], frame.f_locals["task"]
    return f"{handler_name(handler.function)} of queue {task.queue!r}"
