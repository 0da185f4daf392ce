"""The worker for threads."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import random
from time import monotonic
from typing import Any, TypeVar

from streamfleet.attempts import Hanging, OddResults
from streamfleet.handlers import Handlers
from streamfleet.identity import consumer_name, worker_name
from streamfleet.stop_requests import StopRequests
from streamfleet.sync.loops import LINGER, Loops, check_driver
from streamfleet.task import Task, result_bytes
from streamfleet_core.config import WorkerConfig
from streamfleet_core.connection import Driver
from streamfleet_core.errors import DoNotRetry, RetryLater, UsageError
from streamfleet_core.state import Delivery
from streamfleet_core.timekeeping import NO_CONTACT
from streamfleet_core.worker import WorkerMachine

F = TypeVar("F", bound=Callable[[Task], object])

SIGNAL_PAUSE = 0.5
"""Seconds after which a wait for the end of the worker lets signal handlers run."""


class Worker:
    """Runs the handlers of its queues in threads.

    Register handlers, then `run` (until `stop` is called), or `start` and `stop`, or ``with worker.running():``.
    It starts without a server and stays up without one.

    ``driver``: how to reach the server. ``name``: for people; unique per process unless given. ``concurrency``:
    handlers at work at the same time. ``config``: any field of `streamfleet_core.config.WorkerConfig`.

    Raises WrongDriver and UsageError.
    """

    def __init__(self, driver: Driver, *, name: str | None = None, concurrency: int = 10, **config: Any) -> None:
        self._driver = check_driver(driver)
        self.name = worker_name(name)
        self._config = WorkerConfig(concurrency=concurrency, **config)
        self._handlers: Handlers[Callable[[Task], object]] = Handlers()
        self._run: _Run | None = None
        self._stops = StopRequests(self._current)

    def handler(self, queue: str, *, timeout: float | None = None) -> Callable[[F], F]:
        """Register the decorated function as the handler of ``queue``.

        It is called with a `Task`; returning completes the task, raising fails it (`RetryLater` and `DoNotRetry`
        steer what happens then). Returned bytes or text travel to the client of a tracked task.
        ``timeout``: seconds after which the attempt counts as failed; the function itself cannot be stopped from
        outside, and should look at ``task.cancelled``.

        Raises InvalidQueueName, and InvalidHandler for duplicates or while the worker runs.
        """

        def register(function: F) -> F:
            if self._run is not None:
                raise UsageError(f"handler of queue {queue!r} comes too late: the worker already runs")
            self._handlers.register(queue, function, timeout)
            return function

        return register

    def start(self) -> None:
        """Begin to work, in threads of its own.

        Raises UsageError without handlers, or when it already runs; RuntimeError when the system gives no more
        threads: then those that had begun are ended, and it may be tried again.
        """
        if self._current() is not None:
            raise UsageError(f"worker {self.name!r} already runs")
        run = self._run = _Run(self._driver, self.name, self._config, self._handlers)
        if self._stops.take_early():
            run.stop(None)
        try:
            run.begin()
        except Exception:
            run.wait(LINGER)
            raise

    def _current(self) -> _Run | None:
        """The start that lasts, if any: not one that has ended, nor one of the parent process."""
        run = self._run
        return run if run is not None and run.pid == os.getpid() and not run.ended else None

    def stop(self, drain: float | None = None) -> None:
        """Take no new tasks, give back what has not started, wait for running handlers, disconnect.

        ``drain``: seconds to wait for running handlers (the configured ``drain`` unless told); what still runs
        then is given back too, and its outcome here is dropped. Returns when all that is done. Idempotent.

        Raises a ServerRefused when a thread of the worker has died of a defect.
        """
        run = self._run
        if run is not None and run.pid == os.getpid():
            run.stop(drain)
            run.wait(None)
            if run.loops.defect is not None:
                raise run.loops.defect

    def run(self) -> None:
        """Work until `stop` is called from elsewhere.

        Raises a ServerRefused when the server will not work with this worker. KeyboardInterrupt stops it in order.
        """
        with self.running() as worker:
            worker.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the worker has ended (``timeout`` in seconds). False: it still runs.

        Raises a ServerRefused when the server refused it.
        """
        run = self._run
        if run is None:
            return True
        if not run.wait(timeout):
            return False
        run.raise_refusal()
        return True

    @contextmanager
    def running(self) -> Iterator[Worker]:
        """Work while the block runs. Raises at its end what `run` would have raised."""
        before = self._run
        try:
            self.start()
            yield self
        finally:
            run = self._run
            if run is not None and run is not before and not run.ended:  # also when its start was interrupted
                run.stop(None)
                run.wait(None)
        assert run is not None, "started"
        run.raise_refusal()

    def request_stop(self, drain: float | None = None) -> None:
        """As `stop`, without waiting; safe in a signal handler.

        Of a worker that does not run, it ends the next start at once: that takes no tasks.
        """
        self._stops.request(lambda run: threading.Thread(target=run.stop, args=(drain,), daemon=True).start())

    @property
    def consumer(self) -> str:
        """The consumer of the current start, as the server's consumer group shows it; empty before."""
        return self._run.machine.consumer.decode() if self._run else ""

    @property
    def counts(self) -> dict[str, int]:
        """What happened since the start, by name: received, completed, retry, dead, reclaimed, lost, …"""
        if self._run is None:
            return {}
        with self._run.loops.lock:
            return dict(self._run.machine.counts)

    @property
    def in_flight(self) -> int:
        """Entries that this worker holds."""
        return self._run.machine.held if self._run else 0


class _Run:
    """One start of a worker: its machine, loops and handler threads."""

    def __init__(
        self, driver: Driver, name: str, config: WorkerConfig, handlers: Handlers[Callable[[Task], object]]
    ) -> None:
        self.pid = os.getpid()
        self.ended = False
        self.machine = WorkerMachine(
            consumer_name(name),
            handlers.timeouts(),
            config,
            now=monotonic(),
            wall_ms=time.time() * 1000,
            entropy=os.urandom,
            random=random,
        )
        self.loops = Loops(name, self.machine, driver, self._after)
        self._work = threading.Condition(self.loops.lock)
        self._functions = {queue: handlers[queue].function for queue in handlers.timeouts()}
        self._idle = 0
        self._waking = False
        """Has an idle handler been notified that has not come yet?"""
        self._threads = 0
        self._hanging = Hanging(self.machine)
        self._odd_results = OddResults(self.machine)

    def begin(self) -> None:
        """Start the threads. Interrupted, it leaves none at work."""
        with self.loops.lock:
            try:
                for link in self.machine.links:
                    self.loops.start(link)
                for _ in range(self.machine.config.concurrency):
                    self._add_thread()
            except BaseException:
                self.machine.stop(monotonic())
                self.loops.cut()
                raise

    # ---- handlers -----------------------------------------------------------------------------------

    def _add_thread(self) -> None:
        self._threads += 1
        name = f"{self.loops.who}-handler-{self._threads}"
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        """The life of a handler thread."""
        try:
            self._take_and_run()
        except BaseException as error:
            self.loops.broke(self.machine.links[0], error)
            raise

    def _take_and_run(self) -> None:
        """Take, run, report."""
        machine, lock, take = self.machine, self.loops.lock, self.machine.take
        with lock:
            while not machine.stopping:
                delivery = take(monotonic())
                if machine.kicked or machine.events:  # a deadline that comes before all others, for instance
                    self.loops.after_step()
                if delivery is None:
                    self._rest()
                    continue
                if self._idle and machine.ready:
                    self._wake()
                delivery.on_cancel = partial(self._given_up, delivery)
                lock.release()
                try:
                    report = self._attempt(delivery)
                finally:
                    lock.acquire()
                delivery.on_cancel = None
                if report is None:
                    machine.handler_returned(delivery, monotonic())
                else:
                    report(delivery)
                if machine.kicked or machine.events:
                    self.loops.after_step()
                if self._hanging.returned(delivery):
                    return  # another thread has its place

    def _rest(self) -> None:
        """Wait until there may be work. The lock is held, but for the waiting."""
        if self.machine.stopping:
            return  # it was `_after` that has stopped it, and those who rest were woken then
        self._idle += 1
        self._work.wait()
        self._idle -= 1
        self._waking = False

    def _wake(self) -> None:
        """Let an idle handler come, unless one is on its way: it calls the next when there is more to take.

        So of a hundred handlers only so many come as the work needs, not a hundred for each reply.
        """
        if self._idle and not self._waking and self.machine.ready:
            self._waking = True
            self._work.notify()

    def _attempt(self, delivery: Delivery) -> Callable[[Delivery], None] | None:
        """Run the handler, without the lock. Returns what is to be reported under it; None: it just returned."""
        queue = delivery.queue.keys.queue
        machine = self.machine
        try:
            value = self._functions[queue](Task(delivery))
        except RetryLater as signal:
            text, delay = str(signal), signal.delay
            return lambda d: machine.handler_failed(d, monotonic(), text, retry_in=delay)
        except DoNotRetry as error:
            text, trace = _describe(error), traceback.format_exc()
            return lambda d: machine.handler_failed(d, monotonic(), text, trace, final=True)
        except BaseException as error:  # a handler's SystemExit ends its attempt, never the worker
            text, trace = _describe(error), traceback.format_exc()
            return lambda d: machine.handler_failed(d, monotonic(), text, trace)
        if value is None:
            return None
        result = result_bytes(value)
        if result is None:
            return lambda d: self._odd_result(d, value)
        return lambda d: machine.handler_returned(d, monotonic(), result)

    def _odd_result(self, delivery: Delivery, value: object) -> None:
        self._odd_results.tell(delivery, value)
        self.machine.handler_returned(delivery, monotonic())

    def _given_up(self, delivery: Delivery) -> None:
        """A handler that hangs then would take a place for ever: another thread takes over.

        Want of contact alone may pass. The lock is held.
        """
        if delivery.cancelled != NO_CONTACT and not self.machine.stopping and self._hanging.leave(delivery):
            self._add_thread()

    # ---- life ---------------------------------------------------------------------------------------

    def _after(self) -> None:
        """The machine has moved: wake a handler when there is work. The lock is held."""
        machine = self.machine
        self._wake()
        if machine.refusal is not None and not machine.stopping:
            machine.stop(monotonic())
        if machine.stopping:
            self._work.notify_all()
            if machine.refusal is not None and not machine.failing_in_order:
                machine.abandon()
            self.loops.interrupt_finished()

    def stop(self, drain: float | None) -> None:
        """See `Worker.stop`."""
        with self.loops.lock:
            self.machine.stop(monotonic(), drain)
            self.loops.after_step()

    def wait(self, timeout: float | None) -> bool:
        """Wait until all loops have ended."""
        deadline = None if timeout is None else monotonic() + timeout
        with self.loops.lock:
            while self.loops.running:
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return False
                # Signal handlers run when the main thread wakes, and the kernel may give a signal to another.
                pause = SIGNAL_PAUSE if left is None else min(left, SIGNAL_PAUSE)
                self.loops.wait(self.loops.all_ended, pause)
            self.ended = True
            self._work.notify_all()
        self.loops.finish()
        return True

    def raise_refusal(self) -> None:
        """Raises why the server refused, if it did."""
        refusal = self.loops.defect or self.machine.refusal
        if refusal is not None:
            raise refusal


def _describe(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
