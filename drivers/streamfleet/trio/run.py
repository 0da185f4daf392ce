"""One start of a trio worker: its machine, its loops and its handlers."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from math import inf
from random import random
from types import FrameType
from typing import Any

import trio

from streamfleet.async_contract import handler_name
from streamfleet.attempts import MAX_HANGING, Attempts, Canceller, Hanging, call_in_thread, same_context
from streamfleet.handlers import Handler, Handlers
from streamfleet.identity import consumer_name
from streamfleet.task import Task
from streamfleet.trio.loops import Loops
from streamfleet.watchdog import Watchdog
from streamfleet_core.config import WorkerConfig
from streamfleet_core.connection import AsyncDriver
from streamfleet_core.state import Delivery
from streamfleet_core.worker import WorkerMachine

CANCELLED_STOP = 5.0
"""Seconds that a cancelled worker still takes to give its entries back; after that others have to reclaim them."""
HANDLER_GRACE = 5.0
"""Seconds that handlers get to clean up after they were cancelled, before their places are cancelled too."""
TURN = 20
"""After so many tasks in a row a handler's place lets others have their turn."""


class Run:
    """One start of a worker; it works within `block`, which is entered once.

    A fixed number of *slots*, one task each, take deliveries from the machine and run handlers. A slot whose
    handler was cancelled, or has changed context variables, is replaced by a fresh one, so that nothing of one
    attempt is seen by the next.
    """

    def __init__(
        self, driver: AsyncDriver, name: str, config: WorkerConfig, handlers: Handlers[Callable[[Task], Any]]
    ) -> None:
        self.ended = False
        self.token = trio.lowlevel.current_trio_token()
        self._handlers = handlers
        self._time = trio.current_time
        self.machine = WorkerMachine(
            consumer_name(name),
            handlers.timeouts(),
            config,
            now=trio.current_time(),
            wall_ms=time.time() * 1000,
            entropy=os.urandom,
            random=random,
        )
        self.loops = Loops(name, self.machine, driver, self._after)
        self._attempts = Attempts(self.machine, trio.current_time)
        self._idle = trio.lowlevel.ParkingLot()
        self._slots = 0
        self._at_work = 0
        self._limiter = trio.CapacityLimiter(config.concurrency * (1 + MAX_HANGING))
        self._hanging = Hanging(self.machine)
        self._watchdog = Watchdog(name, config.lease, _call.__code__, _handler_in)

    @asynccontextmanager
    async def block(self) -> AsyncIterator[None]:
        """Work while the block runs. Its end stops the worker; when it is cancelled, in a hurry."""
        try:
            async with self.loops.tasks.open(self._finish):
                for link in self.machine.links:
                    self.loops.start(link)
                for _ in range(self.machine.config.concurrency):
                    self._add_slot()
                self._watchdog.start()
                self.loops.tasks.spawn(self._heartbeat, f"{self.loops.who}-heartbeat")
                yield
        finally:
            self.ended = True
            self._watchdog.stop()

    async def _finish(self, cancelled: bool) -> None:
        if cancelled:
            await self._stop_now()
            return
        await self.stop(None)
        await self.loops.wait_until(lambda: not self._at_work, self._time() + HANDLER_GRACE)

    # ---- handlers -----------------------------------------------------------------------------------

    def _add_slot(self) -> None:
        self._slots += 1
        self.loops.tasks.spawn(self._slot, f"{self.loops.who}-handler-{self._slots}")

    @trio.lowlevel.enable_ki_protection
    async def _slot(self) -> None:
        """The life of a slot. Cancelled by the machine, it makes room for a fresh one."""
        with trio.CancelScope() as scope:
            self._at_work += 1
            try:
                await self._serve(scope)
            finally:
                self._at_work -= 1
                if self.machine.stopping:
                    self.loops.wake_watchers()
        if not self.machine.stopping:
            self._add_slot()

    async def _serve(self, scope: trio.CancelScope) -> None:
        """Take, run, report, until the slot has to be replaced."""
        machine, loops, now, clean = self.machine, self.loops, self._time, self.loops.tasks.context
        turn = 0
        while not machine.stopping:
            delivery = machine.take(now())
            if delivery is None:
                loops.wake_kicked()
                await self._idle.park()
                continue
            threads = self._handlers[delivery.queue.keys.queue].threads
            canceller = delivery.on_cancel = Canceller(delivery, self._hanging if threads else None, scope.cancel)
            if machine.kicked:
                loops.wake_kicked()  # its timeout may be the next thing that the clock has to ring for
            await self._attempt(delivery, canceller)
            delivery.on_cancel = None
            if machine.kicked or machine.events:
                loops.wake_kicked()
            if delivery.cancelled or not same_context(clean, copy_context()):
                return
            turn += 1
            if turn >= TURN:
                turn = 0
                await trio.lowlevel.checkpoint()

    async def _attempt(self, delivery: Delivery, canceller: Canceller) -> None:
        """Run the handler and report how it ended."""
        handler = self._handlers[delivery.queue.keys.queue]
        task = Task(delivery)
        try:
            if handler.threads:
                value = await self._in_thread(handler, task, delivery, canceller)
            else:
                value = await _call(handler, task)
        except KeyboardInterrupt as interrupt:
            self._interrupted(delivery, interrupt)
        except trio.Cancelled:
            if delivery.cancelled:
                self._attempts.stopped(delivery)
            raise
        except BaseExceptionGroup as group:
            interruptions, errors = group.split((trio.Cancelled, KeyboardInterrupt))
            if interruptions is None:
                self._attempts.raised(delivery, group)
                return
            if interruptions.subgroup(KeyboardInterrupt) is not None:
                self._interrupted(delivery, interruptions)
                return
            if delivery.cancelled and errors is not None:
                self._attempts.raised(delivery, errors)
            elif delivery.cancelled:
                self._attempts.stopped(delivery)
            raise interruptions from None
        except BaseException as error:  # a handler's SystemExit ends its attempt, never the worker
            self._attempts.raised(delivery, error)
        else:
            self._attempts.returned(delivery, value)

    def _interrupted(self, delivery: Delivery, interrupt: BaseException) -> None:
        """Ctrl-C hit the handler: it ends the program, but in order."""
        self._attempts.stopped(delivery)
        self.loops.tasks.fail(interrupt)

    async def _in_thread(
        self, handler: Handler[Callable[[Task], Any]], task: Task, delivery: Delivery, canceller: Canceller
    ) -> object:
        """Run a plain function in a thread. Cancelled, it leaves the thread to itself."""
        token = trio.lowlevel.current_trio_token()
        at_work = False

        def run() -> tuple[object, BaseException | None]:
            nonlocal at_work
            at_work = True
            given_up = canceller.called
            outcome = (None, None) if given_up else call_in_thread(handler.function, task)
            at_work = False
            if canceller.called:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(self._hanging.returned if given_up else self._came_back, delivery)
            return outcome

        try:
            value, error = await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._limiter)
        except trio.Cancelled:
            if not at_work:  # it has not begun, or has just returned
                self._hanging.returned(delivery)
            raise
        self._hanging.returned(delivery)
        if error is not None:
            raise error
        return value

    def _came_back(self, delivery: Delivery) -> None:
        self._hanging.returned(delivery)
        self._attempts.late(delivery)
        self.loops.wake_kicked()

    # ---- life ---------------------------------------------------------------------------------------

    def _after(self) -> None:
        """The machine has moved: wake as many slots as there is work for."""
        machine, idle = self.machine, self._idle
        if idle and machine.ready:
            idle.unpark(count=len(machine.ready))
        if machine.refusal is not None and not machine.stopping:
            machine.stop(self._time())
            self.loops.wake_kicked()
        if machine.stopping:
            idle.unpark_all()
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

    async def _heartbeat(self) -> None:
        while True:
            self._watchdog.beat()
            await trio.sleep(self._watchdog.interval)


@trio.lowlevel.disable_ki_protection
async def _call(handler: Handler[Callable[[Task], Any]], task: Task) -> object:
    """Run an async handler; the watchdog knows this frame."""
    value: object = await handler.function(task)
    return value


def _handler_in(frame: FrameType) -> str:
    """Which handler a frame of `_call` runs."""
    handler, task = frame.f_locals["handler"], frame.f_locals["task"]
    return f"{handler_name(handler.function)} of queue {task.queue!r}"
