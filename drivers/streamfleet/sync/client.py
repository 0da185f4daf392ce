"""The client for threads."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterable, Sequence
from random import random
from time import monotonic
from types import TracebackType
from typing import Any
from weakref import WeakSet

from streamfleet.identity import unique_id
from streamfleet.sync.handle import Handle
from streamfleet.sync.loops import LINGER, Loops, check_driver
from streamfleet.task import payload_bytes
from streamfleet_core.client import PLAIN, ClientMachine, Options
from streamfleet_core.config import ClientConfig
from streamfleet_core.connection import Driver
from streamfleet_core.errors import Closed, NotAccepted
from streamfleet_core.events import Event, EventKind
from streamfleet_core.options import task_options
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status, Submission

Payload = bytes | str

GRACE = 1.0
"""Seconds that a client takes to leave the server in order, at the least."""


class Client:
    """Enqueues tasks. Thread-safe; one per process is enough.

    It starts without a server and stays up without one: tasks wait in a bounded local buffer. Use it as a
    context manager, or call `close`. After a fork the child's client starts anew, with an empty buffer and a
    new identity. KeyboardInterrupt may come out of each call in the main thread: one that strikes within
    `enqueue` leaves open whether that task was taken, and may cut a count short; what was taken before stays.

    ``driver``: how to reach the server. ``queues``: those known beforehand; others are added at first use.
    ``buffer_timeout``: seconds that `enqueue` waits for room in a full buffer before it raises BufferFull
    (0: not at all, None: without end). ``config``: any field of `streamfleet_core.config.ClientConfig`.

    Raises WrongDriver, InvalidQueueName, UsageError.
    """

    def __init__(
        self,
        driver: Driver,
        queues: Sequence[str] = (),
        *,
        buffer_timeout: float | None = 5.0,
        **config: Any,
    ) -> None:
        self._driver = check_driver(driver)
        self._queues = list(queues)
        self._buffer_timeout = buffer_timeout
        self._config = ClientConfig(**config)
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        self._machine = ClientMachine(
            unique_id(),
            self._queues,
            self._config,
            now=monotonic(),
            wall_ms=time.time() * 1000,
            entropy=os.urandom,
            random=random,
        )
        self._loops = Loops("client", self._machine, self._driver, self._after)
        self._changed = threading.Condition(self._loops.lock)
        self._waiting = 0
        self._waiters: WeakSet[threading.Condition] = WeakSet()
        """On which handles wait; to be woken when the client ends."""
        self._closing = False
        self._ended = False
        self._unsent = 0

    # ---- enqueue ------------------------------------------------------------------------------------

    def enqueue(
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
        """Take a task and return at once; it is sent in the background.

        ``max_retries``: retries after the first attempt; 0 never, None without end. ``retry_delay``: seconds
        before the first retry (1 unless told; doubled each time). ``retry``: a whole policy instead of
        these two. ``delay`` (seconds) or ``at`` (Unix time): run later. ``expires_in`` or ``expires_at``: do not
        start after that; a time in the past settles the task as expired.

        Raises InvalidQueueName and InvalidTask for bad arguments, BufferFull when there is no room in the local
        buffer for too long, Closed, and a ServerRefused when the server will not work with this client.
        """
        options = task_options(max_retries, retry_delay, retry, delay, at, expires_in, expires_at)
        return self._enqueue(queue, data, options, tracked=False)

    def enqueue_tracked(
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
        return self._enqueue(queue, data, options, tracked=True)

    def enqueue_many(self, queue: str, data: Iterable[Payload]) -> list[Handle]:
        """Enqueue many tasks with the default options, in order.

        What it raises is as with `enqueue`; a note on the error tells how many tasks were taken before, all the
        first ones.
        """
        handles: list[Handle] = []
        try:
            for item in data:
                handles.append(self._enqueue(queue, item, PLAIN, tracked=False))  # noqa: PERF401
        except BaseException as error:
            error.add_note(f"enqueue_many({queue!r}): the first {len(handles):,} tasks were taken, no others")
            raise
        return handles

    def _enqueue(self, queue: str, data: Payload, options: Options, *, tracked: bool) -> Handle:
        payload = data if type(data) is bytes else payload_bytes(data)
        machine, loops = self._machine, self._loops
        with loops.lock:
            if machine.full:
                self._wait_for_room()
            self._check_alive()
            submission = machine.enqueue(queue, payload, monotonic(), options, tracked=tracked)
            if machine.kicked or machine.new_links or machine.events:
                loops.after_step()
        return Handle(self, submission)

    def _wait_for_room(self) -> None:
        """Wait while the buffer is full; `ClientMachine.enqueue` raises when it still is. The lock is held."""
        timeout = self._buffer_timeout
        deadline = None if timeout is None else monotonic() + timeout
        self._wait_until(lambda: not self._machine.full, deadline)

    # ---- waiting ------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the server has accepted all that was enqueued (``timeout`` in seconds; None: without end).

        Raises TimeoutError, NotAccepted when single tasks were refused, Closed when the client was closed before
        it could send them, and a ServerRefused when the server will not work with this client.
        """
        machine = self._machine
        with self._loops.lock:
            deadline = None if timeout is None else monotonic() + timeout
            if not self._wait_until(lambda: machine.pending == 0, deadline):
                self._check_alive()
                self._check_open()
                error = next((link.last_error for link in machine.links if link.last_error), "")
                raise TimeoutError(
                    f"{machine.pending:,} tasks were not accepted within {timeout:g} s"
                    + (f"; last trouble: {error}" if error else "")
                )
            if machine.abandoned:
                raise Closed(f"this client was closed with {machine.abandoned:,} tasks not sent")
            refused, machine.refused_since = machine.refused_since, []
        if refused:
            raise NotAccepted(
                f"the server refused {len(refused):,} tasks; the first, {refused[0].id}: {refused[0].error}"
            )

    def _wait_until(self, condition: Any, deadline: float | None) -> bool:
        """Wait for a condition of the machine. The lock is held. False: the deadline has passed, or refused."""
        self._waiting += 1
        try:
            while not condition():
                left = None if deadline is None else deadline - monotonic()
                if (left is not None and left <= 0) or self._machine.refusal or self._ended:
                    return False
                self._loops.wait(self._changed, left)
            return True
        finally:
            self._waiting -= 1

    def _cancel(self, submission: Submission, timeout: float | None) -> bool:
        with self._loops.lock:
            self._machine.cancel(submission)
            self._loops.after_step()
            deadline = None if timeout is None else monotonic() + timeout
            if not self._wait_until(lambda: not submission.cancelling, deadline):
                self._check_alive()
                self._check_open()
                raise TimeoutError(f"no answer within {timeout:g} s whether task {submission.id} was cancelled")
            return submission.status is Status.CANCELLED

    # ---- life ---------------------------------------------------------------------------------------

    def close(self, timeout: float | None = 10.0) -> int:
        """Send what is buffered, then disconnect. Returns how many tasks could not be sent; 0 is good.

        ``timeout``: seconds to spend on it; None: as long as it takes. Idempotent.
        """
        with self._loops.lock:
            machine = self._machine
            if self._ended:
                return self._unsent
            deadline = None if timeout is None else monotonic() + timeout
            if not self._closing:
                self._closing = True
                machine.close(monotonic())
            self._loops.after_step()
            self._wait_until(lambda: machine.pending == 0, deadline)
            if machine.pending:
                machine.close(monotonic(), abandon=True)
            self._loops.interrupt_finished()
            grace = monotonic() + GRACE if deadline is None else max(deadline, monotonic() + GRACE)
            while self._loops.running and not machine.refusal and monotonic() < grace:
                self._loops.interrupt_finished()
                self._loops.wait(self._loops.all_ended, min(0.1, max(0.0, grace - monotonic())))
            if not self._ended:
                self._end()
        self._loops.finish()
        return self._unsent

    def _end(self) -> None:
        """Stop what still runs, and tell those who wait. The lock is held, but for the waiting."""
        machine, loops = self._machine, self._loops
        self._ended = True
        self._unsent = machine.pending + machine.abandoned
        self._changed.notify_all()
        self._wake_waiters()
        loops.cut()
        deadline = monotonic() + LINGER
        while loops.running and monotonic() < deadline:
            loops.wait(loops.all_ended, max(0.0, deadline - monotonic()))
        unsent = self._unsent = machine.pending + machine.abandoned
        if unsent:
            text = f"closed with {unsent:,} tasks not sent"
            machine.events.append(Event(EventKind.NOT_ACCEPTED, text, {"tasks": unsent}))
        loops.after_step()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def id(self) -> str:
        """This client's unique part of its identity; a new one after a fork."""
        return self._machine.unique

    @property
    def buffered(self) -> int:
        """Tasks that the server has not accepted yet."""
        return self._machine.pending

    @property
    def counts(self) -> dict[str, int]:
        """What happened so far, by name."""
        with self._loops.lock:
            return dict(self._machine.counts)

    # ---- inside -------------------------------------------------------------------------------------

    def _after(self) -> None:
        """The machine has moved: start links that are wanted now, wake those who wait. The lock is held."""
        machine = self._machine
        if machine.new_links:
            for link in [link for link in machine.new_links if link.duty.wanted()]:
                self._loops.start(link)
                machine.new_links.remove(link)
        while machine.changed:
            waiter = machine.changed[-1].waiter
            if isinstance(waiter, threading.Condition):
                waiter.notify_all()
            machine.changed.pop()
        if self._waiting:
            self._changed.notify_all()
        if machine.refusal is not None:
            self._wake_waiters()

    def _waiter_of(self, submission: Submission) -> threading.Condition:
        """On which to wait for a change of the submission. The lock is held."""
        waiter = submission.waiter
        if not isinstance(waiter, threading.Condition):
            waiter = submission.waiter = threading.Condition(self._loops.lock)
            self._waiters.add(waiter)
        return waiter

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            waiter.notify_all()

    def _check_open(self) -> None:
        if self._ended:
            raise Closed("this client was closed meanwhile")

    def _check_alive(self) -> None:
        """Raises why the server refuses this client. The lock is held."""
        refusal = self._machine.refusal
        if refusal is not None:
            raise refusal

    def _forked(self) -> None:
        """In the child: none of the parent's threads, connections and tasks are ours."""
        _inherited.append(self._loops)
        self._begin()


_clients: WeakSet[Client] = WeakSet()
_inherited: list[Loops] = []
"""What belongs to the parent process: closing it here would shut its connections down."""


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()


def _close_at_exit() -> None:
    """A program that ends without closing its clients does not lose what they have buffered."""
    for client in list(_clients):
        client.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_at_exit)
