"""The worker for trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from streamfleet.async_contract import check_async_driver, check_async_handler
from streamfleet.handlers import Handlers
from streamfleet.identity import worker_name
from streamfleet.stop_requests import StopRequests
from streamfleet.task import Task
from streamfleet.trio.run import Run
from streamfleet_core.config import WorkerConfig
from streamfleet_core.connection import AsyncDriver
from streamfleet_core.errors import UsageError

F = TypeVar("F", bound=Callable[[Task], object])


class Worker:
    """Runs the handlers of its queues in tasks, or in threads where told.

    Register handlers, then ``await worker.run()`` (until `stop` is called), or ``async with worker.running():``.
    It starts without a server and stays up without one. Its tasks live no longer than that.

    ``driver``: how to reach the server. ``name``: for people; unique per process unless given. ``concurrency``:
    handlers at work at the same time. ``config``: any field of `streamfleet_core.config.WorkerConfig`.

    A warning is logged when a handler, or something else, blocks the event loop for a third of the lease.

    Raises WrongDriver and UsageError.
    """

    def __init__(
        self, driver: AsyncDriver, *, name: str | None = None, concurrency: int = 10, **config: Any
    ) -> None:
        self._driver = check_async_driver(driver, "trio")
        self.name = worker_name(name)
        self._config = WorkerConfig(concurrency=concurrency, **config)
        self._handlers: Handlers[Callable[[Task], Any]] = Handlers()
        self._run: Run | None = None
        self._stops = StopRequests(self._current)

    def handler(self, queue: str, *, timeout: float | None = None, threads: bool = False) -> Callable[[F], F]:
        """Register the decorated function as the handler of ``queue``.

        It is called with a `Task`; returning completes the task, raising fails it (`RetryLater` and `DoNotRetry`
        steer what happens then). Returned bytes or text travel to the client of a tracked task.

        An async handler is cancelled when its outcome does not count any more: after ``timeout`` seconds, when
        others own the task, when the server has been out of reach for a lease, when the worker stops.
        ``threads``: the function is a plain one, to be run in a worker thread; it cannot be stopped from outside,
        and should look at ``task.cancelled``.

        Raises InvalidQueueName, InvalidHandler for duplicates, for a plain function without ``threads`` and for
        an async one with it, and UsageError while the worker runs.
        """

        def register(function: F) -> F:
            if self._run is not None:
                raise UsageError(f"handler of queue {queue!r} comes too late: the worker already runs")
            check_async_handler(queue, function, threads=threads)
            self._handlers.register(queue, function, timeout, threads=threads)
            return function

        return register

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        """Work while the block runs. Raises at its end what `run` would have raised.

        The end of the block stops the worker as `stop` does. When the block is cancelled, running handlers are
        cancelled too and their entries given back, which takes a few seconds at most.
        """
        if self._current() is not None:
            raise UsageError(f"worker {self.name!r} already runs")
        run = self._run = Run(self._driver, self.name, self._config, self._handlers)
        if self._stops.take_early():
            run.begin_stop(None)
        async with run.block():
            yield self
        run.raise_refusal()

    def _current(self) -> Run | None:
        """The start that lasts, if any."""
        run = self._run
        return run if run is not None and not run.ended else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until `stop` is called from elsewhere, or until cancelled.

        For ``await nursery.start(worker.run)``, which returns once the worker takes tasks, as well as for
        ``nursery.start_soon(worker.run)``.

        Raises a ServerRefused when the server will not work with this worker.
        """
        async with self.running():
            task_status.started()
            await self.wait()

    async def stop(self, drain: float | None = None) -> None:
        """Take no new tasks, give back what has not started, wait for running handlers, disconnect.

        ``drain``: seconds to wait for running handlers (the configured ``drain`` unless told); what still runs
        then is cancelled and given back too. Returns when all that is done. Idempotent.
        """
        if self._run is not None:
            await self._run.stop(drain)

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the worker has ended (``timeout`` in seconds). False: it still runs.

        Raises a ServerRefused when the server refused it.
        """
        run = self._run
        if run is None:
            return True
        if not await run.wait(timeout):
            return False
        run.raise_refusal()
        return True

    def request_stop(self, drain: float | None = None) -> None:
        """As `stop`, without waiting; safe in a signal handler, and from other threads.

        Of a worker that does not run, it ends the next start at once: that takes no tasks.
        """
        self._stops.request(lambda run: run.token.run_sync_soon(run.begin_stop, drain))

    @property
    def consumer(self) -> str:
        """The consumer of the current start, as the server's consumer group shows it; empty before."""
        return self._run.machine.consumer.decode() if self._run else ""

    @property
    def counts(self) -> dict[str, int]:
        """What happened since the start, by name: received, completed, retry, dead, reclaimed, lost, …"""
        return dict(self._run.machine.counts) if self._run else {}

    @property
    def in_flight(self) -> int:
        """Entries that this worker holds."""
        return self._run.machine.held if self._run else 0
