"""The client for trio."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from math import inf
from random import random
from types import TracebackType
from typing import Any

import trio

from streamfleet.async_contract import check_async_driver
from streamfleet.identity import unique_id
from streamfleet.task import payload_bytes
from streamfleet.trio.handle import Handle
from streamfleet.trio.loops import Loops
from streamfleet_core.client import PLAIN, ClientMachine, Options
from streamfleet_core.config import ClientConfig
from streamfleet_core.connection import AsyncDriver
from streamfleet_core.errors import Closed, NotAccepted, UsageError
from streamfleet_core.events import Event, EventKind
from streamfleet_core.keys import check_queue_name
from streamfleet_core.options import task_options
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status, Submission

Payload = bytes | str

CANCELLED_CLOSE = 2.0
"""Seconds that a cancelled block still gives its client to send what is buffered and to leave in order."""
TURN = 100
"""After so many tasks in a row without a wait, others on the loop get their turn."""


class Client:
    """Enqueues tasks; one per run of trio is enough.

    It works within ``async with``, whose end sends what is buffered and disconnects; its tasks on the event loop
    live no longer than that. It starts without a server and stays up without one: what is enqueued waits in a
    bounded local buffer.

    ``driver``: how to reach the server. ``queues``: those known beforehand; others are added at first use.
    ``buffer_timeout``: seconds that `enqueue` waits for room in a full buffer before it raises BufferFull
    (0: not at all, None: without end). ``config``: any field of `streamfleet_core.config.ClientConfig`.

    A block that is cancelled ends after at most about two seconds; what was not sent by then is logged.

    Raises WrongDriver, InvalidQueueName, UsageError.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        queues: Sequence[str] = (),
        *,
        buffer_timeout: float | None = 5.0,
        **config: Any,
    ) -> None:
        self._driver = check_async_driver(driver, "trio")
        self._queues = list(queues)
        for queue in self._queues:
            check_queue_name(queue)
        self._buffer_timeout = buffer_timeout
        self._config = ClientConfig(**config)
        self._unique = unique_id()
        self._entered = False
        self._closing = False
        self._ended = False
        self._unsent = 0
        self._turn = 0
        self._wanting_room: deque[trio.Event] = deque()
        self._waiting: set[trio.Event] = set()
        """All who wait for a task, to be woken when the client ends."""
        self._time: Callable[[], float]
        self._machine: ClientMachine
        self._loops: Loops
        self._block: AbstractAsyncContextManager[None]

    async def __aenter__(self) -> Client:
        if self._entered:
            raise UsageError("a client can be entered once; create another one")
        self._entered = True
        self._time = trio.current_time
        self._machine = ClientMachine(
            self._unique,
            self._queues,
            self._config,
            now=self._time(),
            wall_ms=time.time() * 1000,
            entropy=os.urandom,
            random=random,
        )
        self._loops = Loops("client", self._machine, self._driver, self._after)
        self._block = self._loops.tasks.open(self._finish)
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._block.__aexit__(kind, error, trace)
        finally:
            if not self._ended:  # a second Ctrl-C, or a defect
                self._leave(self._machine.pending)

    async def _finish(self, cancelled: bool) -> None:
        await self.close(CANCELLED_CLOSE if cancelled else 10.0)

    # ---- enqueue ------------------------------------------------------------------------------------

    async def enqueue(
        self,
        queue: str,
        data: Payload,
        *,
        max_retries: int | None = 3,
        retry_delay: float | None = None,
        retry: RetryPolicy | None = None,
        delay: float | None = None,
        at: float | None = None,
        expires_in: float | None = None,
        expires_at: float | None = None,
    ) -> Handle:
        """Take a task; it is sent in the background. Waits only while the local buffer is full.

        When it returns, the task is in the buffer; when it is cancelled or raises, the task is not. Each call
        notices a cancellation, but while there is room in the buffer only one in a hundred lets other tasks run: a
        full checkpoint for each would make bulk enqueues several times slower.

        ``max_retries``: retries after the first attempt; 0 never, None without end. ``retry_delay``: seconds
        before the first retry (1 unless told; doubled each time). ``retry``: a whole policy instead of
        these two. ``delay`` (seconds) or ``at`` (Unix time): run later. ``expires_in`` or ``expires_at``: do not
        start after that; a time in the past settles the task as expired.

        Raises InvalidQueueName and InvalidTask for bad arguments, BufferFull when there is no room in the local
        buffer for too long, Closed, and a ServerRefused when the server will not work with this client.
        """
        options = task_options(max_retries, retry_delay, retry, delay, at, expires_in, expires_at)
        return await self._enqueue(queue, data, options, tracked=False)

    async def enqueue_tracked(
        self,
        queue: str,
        data: Payload,
        *,
        max_retries: int | None = 3,
        retry_delay: float | None = None,
        retry: RetryPolicy | None = None,
        delay: float | None = None,
        at: float | None = None,
        expires_in: float | None = None,
        expires_at: float | None = None,
    ) -> Handle:
        """As `enqueue`; the handle's `wait` tells the outcome."""
        options = task_options(max_retries, retry_delay, retry, delay, at, expires_in, expires_at)
        return await self._enqueue(queue, data, options, tracked=True)

    async def enqueue_many(self, queue: str, data: Iterable[Payload]) -> list[Handle]:
        """Enqueue many tasks with the default options, in order.

        When it is cancelled or raises, the first few may have been taken: a note on the exception says how many.
        """
        handles: list[Handle] = []
        try:
            for item in data:
                handles.append(await self._enqueue(queue, item, PLAIN, tracked=False))  # noqa: PERF401
        except BaseException as error:
            error.add_note(f"enqueue_many({queue!r}): the first {len(handles):,} tasks were taken, no others")
            raise
        return handles

    @trio.lowlevel.enable_ki_protection
    async def _enqueue(self, queue: str, data: Payload, options: Options, *, tracked: bool) -> Handle:
        payload = data if type(data) is bytes else payload_bytes(data)
        self._check_entered()
        machine = self._machine
        self._turn += 1
        if self._turn >= TURN:
            self._turn = 0
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        if machine.full:
            await self._wait_for_room()
        # From here on nothing waits, so that nothing can be cancelled after the task has been taken.
        self._check_alive()
        submission = machine.enqueue(queue, payload, self._time(), options, tracked=tracked)
        if machine.kicked or machine.new_links or machine.events:
            self._loops.after_step()
        return Handle(self, submission)

    async def _wait_for_room(self) -> None:
        """Wait while the buffer is full, in turn; `ClientMachine.enqueue` raises if it still is."""
        machine = self._machine
        timeout = self._buffer_timeout
        deadline = inf if timeout is None else self._time() + timeout
        while machine.full and not self._closing and machine.refusal is None and self._time() < deadline:
            place = trio.Event()
            self._wanting_room.append(place)
            try:
                with trio.CancelScope(deadline=deadline):
                    await place.wait()
            except trio.Cancelled:
                self._give_room()  # a place that was won and is not used is the next one's
                raise
            finally:
                if place in self._wanting_room:
                    self._wanting_room.remove(place)

    def _give_room(self) -> None:
        """Wake as many as there are places in the buffer, or all when there will be none."""
        machine, waiting = self._machine, self._wanting_room
        places = self._config.buffer_tasks - machine.buffered_tasks
        ending = self._closing or machine.refusal is not None
        while waiting and (ending or (places > 0 and not machine.full)):
            places -= 1
            waiting.popleft().set()

    # ---- waiting ------------------------------------------------------------------------------------

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the server has accepted all that was enqueued (``timeout`` in seconds; None: without end).

        Raises TimeoutError, NotAccepted when single tasks were refused, Closed when the client was closed before
        it could send them, and a ServerRefused when the server will not work with this client.
        """
        self._check_entered()
        machine = self._machine
        if not await self._wait_until(lambda: machine.pending == 0, timeout):
            self._check_alive()
            if self._ended:
                raise Closed("this client was closed meanwhile")
            error = next((link.last_error for link in machine.links if link.last_error), "")
            raise TimeoutError(
                f"{machine.pending:,} tasks were not accepted within {timeout or 0.0:g} s"
                + (f"; last trouble: {error}" if error else "")
            )
        if machine.abandoned:
            raise Closed(f"this client was closed with {machine.abandoned:,} tasks not sent")
        refused, machine.refused_since = machine.refused_since, []
        if refused:
            raise NotAccepted(
                f"the server refused {len(refused):,} tasks; the first, {refused[0].id}: {refused[0].error}"
            )

    async def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for a condition of the machine. False: the time (seconds) is over, or the client has ended."""
        machine = self._machine
        deadline = inf if timeout is None else self._time() + timeout
        await self._loops.wait_until(lambda: condition() or self._ended or machine.refusal is not None, deadline)
        return condition()

    async def _next_change(self, submission: Submission, deadline: float) -> None:
        """Wait until the submission's status has changed, the client has ended, or ``deadline`` has passed."""
        waiters = submission.waiter
        if not isinstance(waiters, set):
            waiters = submission.waiter = set()
        sleeper = trio.Event()
        waiters.add(sleeper)
        self._waiting.add(sleeper)
        try:
            with trio.CancelScope(deadline=deadline):
                await sleeper.wait()
        finally:
            self._waiting.discard(sleeper)
            waiters.discard(sleeper)
            if not waiters:
                submission.waiter = None

    async def _cancel(self, submission: Submission, timeout: float | None) -> bool:
        self._machine.cancel(submission)
        self._loops.after_step()
        if not await self._wait_until(lambda: not submission.cancelling, timeout):
            self._check_alive()
            if self._ended:
                raise Closed(f"the client was closed before the server said whether {submission.id} was cancelled")
            raise TimeoutError(f"no answer within {timeout:g} s whether task {submission.id} was cancelled")
        return submission.status is Status.CANCELLED

    # ---- life ---------------------------------------------------------------------------------------

    async def close(self, timeout: float | None = 10.0) -> int:
        """Send what is buffered, then disconnect. Returns how many tasks could not be sent; 0 is good.

        ``timeout``: seconds to spend on it; None: as long as it takes. Idempotent; when it is cancelled, the end
        of the block goes on with it. The end of the block closes too, with the default.
        """
        if not self._entered:
            self._entered = self._ended = True
        if self._ended:
            return self._unsent
        machine, loops = self._machine, self._loops
        deadline = inf if timeout is None else self._time() + timeout
        if not self._closing:
            self._closing = True
            machine.close(self._time())
        loops.after_step()
        await self._wait_until(lambda: machine.pending == 0, timeout)
        unsent = machine.pending
        if unsent:
            machine.close(self._time(), abandon=True)
        loops.interrupt_finished()
        grace = self._time() + 1.0 if deadline == inf else max(deadline, self._time() + 1.0)
        await loops.wait_until(lambda: self._ended or not loops.running or machine.refusal is not None, grace)
        if not self._ended:
            self._leave(unsent)
            await loops.wait_until(lambda: not loops.running)
        return self._unsent

    def _leave(self, unsent: int) -> None:
        """Stop what still runs, and tell those who wait."""
        machine, loops = self._machine, self._loops
        self._ended, self._unsent = True, unsent
        for link in machine.links:
            link.stop()
        loops.tasks.cancel()
        if unsent:
            text = f"closed with {unsent:,} tasks not sent"
            machine.events.append(Event(EventKind.NOT_ACCEPTED, text, {"tasks": unsent}))
        loops.after_step()
        for waiter in self._waiting:
            waiter.set()
        loops.wake_watchers()

    @property
    def id(self) -> str:
        """This client's unique part of its identity."""
        return self._unique

    @property
    def buffered(self) -> int:
        """Tasks that the server has not accepted yet."""
        return self._machine.pending if hasattr(self, "_machine") else 0

    @property
    def counts(self) -> dict[str, int]:
        """What happened so far, by name."""
        return dict(self._machine.counts) if hasattr(self, "_machine") else {}

    # ---- inside -------------------------------------------------------------------------------------

    def _after(self) -> None:
        """The machine has moved: start links that are wanted now, wake those who wait."""
        machine = self._machine
        if machine.new_links and self._loops.tasks.alive:
            for link in [link for link in machine.new_links if link.duty.wanted()]:
                machine.new_links.remove(link)
                self._loops.start(link)
        while machine.changed:
            waiters = machine.changed.pop().waiter
            if isinstance(waiters, set):
                for waiter in waiters:
                    waiter.set()
        if self._wanting_room:
            self._give_room()
        if self._waiting and machine.refusal is not None:
            for waiter in self._waiting:
                waiter.set()

    def _check_entered(self) -> None:
        """Raises UsageError outside of ``async with``."""
        if not hasattr(self, "_machine"):
            if self._ended:
                raise Closed("this client has been closed; create another one")
            raise UsageError("this client is not running: use it within 'async with Client(...) as client:'")

    def _check_alive(self) -> None:
        """Raises why the server refuses this client."""
        refusal = self._machine.refusal
        if refusal is not None:
            raise refusal
