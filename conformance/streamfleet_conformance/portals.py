"""The async shells as the cases see them: each on an event loop in a thread of its own.

A portal runs coroutines on its loop for callers in other threads. The facades hand each call through it; what a
client or worker needs to live in (its ``async with`` block) is a task that the portal hosts.

Handlers of cases are plain functions. `Running` says what the shell gets to see of them: ON_LOOP for those that
only write the journal, AWAITED for most others, so that timeouts, outages, takeovers and stops cancel an async
handler (whose thread, left behind, goes on until its case ends), and THREAD (``threads=True``) for the cases that
are marked ``in_threads``, which are about what a thread does after its attempt was given up, and for a quarter of
the others. Which quarter depends on the cell, so that over the cells most cases run in both ways.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from streamfleet.attempts import call_in_thread
from streamfleet.task import Task
from streamfleet_conformance.shells import STOP_SECONDS, ClientFacade, Handler, Running, WorkerFacade
from streamfleet_conformance.waiting import eventually
from streamfleet_core.connection import AsyncConnection, AsyncDriver, Command, Connection, Driver, Reply
from streamfleet_core.errors import ServerRefused
from streamfleet_core.submission import Status

START_SECONDS = 20.0
MOST_THREADS = 1000


class Portal(Protocol):
    """An event loop in a thread."""

    cancelled: type[BaseException]
    """What a cancelled handler is left by."""

    def call(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Run a coroutine function on the loop and return what it returns, or raise what it raises."""

    def call_sync(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run a plain function on the loop."""

    def host(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a task on the loop, which ends by itself."""

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """On the loop: wait for a function, which must not raise, in a thread of its own.

        A cancellation leaves the thread behind.
        """

    def close(self) -> None:
        """End the loop and its thread."""


class AsyncioPortal:
    """Implements `Portal` on asyncio."""

    cancelled: type[BaseException] = asyncio.CancelledError

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncio portal", daemon=True)
        self._thread.start()

    def call(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """See `Portal.call`."""

        async def run() -> Any:
            return await work(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def call_sync(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """See `Portal.call_sync`."""

        async def run() -> Any:
            return work(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def host(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """See `Portal.host`."""

        def begin() -> None:
            task = self._loop.create_task(work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self.call_sync(begin)

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """See `Portal.in_thread`."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled: nobody waits any more
                future.set_result(work())

        # Not by the loop's executor: that has few threads, and waits for them at the end.
        threading.Thread(target=run, name="handler of a case", daemon=True).start()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """See `Portal.close`."""

        async def rest() -> None:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
            await self._loop.shutdown_default_executor()

        self.call(rest)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class TrioPortal:
    """Implements `Portal` on trio."""

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self.cancelled: type[BaseException] = trio.Cancelled
        ready = threading.Event()

        async def main() -> None:
            self._end = trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            self._limiter = trio.CapacityLimiter(MOST_THREADS)
            async with trio.open_nursery() as self._nursery:
                ready.set()
                await self._end.wait()

        self._thread = threading.Thread(target=trio.run, args=(main,), name="trio portal", daemon=True)
        self._thread.start()
        ready.wait(START_SECONDS)

    def call(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """See `Portal.call`."""
        return self._trio.from_thread.run(work, *arguments, trio_token=self._token)

    def call_sync(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """See `Portal.call_sync`."""
        return self._trio.from_thread.run_sync(work, *arguments, trio_token=self._token)

    def host(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """See `Portal.host`."""
        self.call_sync(self._nursery.start_soon, work)

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """See `Portal.in_thread`."""
        return await self._trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)

    def close(self) -> None:
        """See `Portal.close`."""
        self.call_sync(self._end.set)
        self._thread.join(STOP_SECONDS)


class PortalConnection:
    """An async connection in blocking form."""

    def __init__(self, portal: Portal, connection: AsyncConnection) -> None:
        self._portal = portal
        self._connection = connection
        self.identity = connection.identity

    def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """See `Connection.exchange`."""
        return cast("list[Reply]", self._portal.call(self._connection.exchange, commands, timeout))

    def interrupt(self) -> None:
        """See `Connection.interrupt`."""
        self._portal.call_sync(self._connection.interrupt)

    def close(self) -> None:
        """See `Connection.close`."""
        self._portal.call_sync(self._connection.close)


class PortalHandle:
    """A handle of an async client."""

    def __init__(self, portal: Portal, handle: Any) -> None:
        self._portal = portal
        self._handle = handle

    @property
    def id(self) -> str:
        """See `streamfleet.sync.Handle.id`."""
        return cast("str", self._handle.id)

    @property
    def status(self) -> Status:
        """See `streamfleet.sync.Handle.status`."""
        return cast("Status", self._handle.status)

    def accepted(self, timeout: float | None = None) -> None:
        """See `streamfleet.sync.Handle.accepted`."""
        self._portal.call(self._handle.accepted, timeout)

    def wait(self, timeout: float | None = None) -> bytes | None:
        """See `streamfleet.sync.Handle.wait`."""
        return cast("bytes | None", self._portal.call(self._handle.wait, timeout))

    def cancel(self, timeout: float | None = 5.0) -> bool:
        """See `streamfleet.sync.Handle.cancel`."""
        return cast("bool", self._portal.call(self._handle.cancel, timeout))


class PortalClient:
    """An async client, open until it is closed."""

    def __init__(self, portal: Portal, client: Any) -> None:
        self._portal = portal
        self._client = client
        self._closed = False
        self._unsent = 0
        opened, self._left = threading.Event(), threading.Event()

        async def live() -> None:
            try:
                async with client:
                    opened.set()
                    await self._until_closed()
            finally:
                self._left.set()

        portal.host(live)
        opened.wait(START_SECONDS)

    async def _until_closed(self) -> None:
        """Wait in the loop's own way for `close`, which is called from a case's thread."""
        sleep = asyncio.sleep if isinstance(self._portal, AsyncioPortal) else _trio_sleep()
        while not self._closed:
            await sleep(0.01)

    @property
    def id(self) -> str:
        """See `streamfleet.sync.Client.id`."""
        return cast("str", self._client.id)

    @property
    def buffered(self) -> int:
        """See `streamfleet.sync.Client.buffered`."""
        return cast("int", self._client.buffered)

    @property
    def counts(self) -> dict[str, int]:
        """See `streamfleet.sync.Client.counts`."""
        return cast("dict[str, int]", self._portal.call_sync(lambda: self._client.counts))

    def enqueue(self, queue: str, data: bytes | str, **options: Any) -> PortalHandle:
        """See `streamfleet.sync.Client.enqueue`."""
        return PortalHandle(self._portal, self._portal.call(lambda: self._client.enqueue(queue, data, **options)))

    def enqueue_tracked(self, queue: str, data: bytes | str, **options: Any) -> PortalHandle:
        """See `streamfleet.sync.Client.enqueue_tracked`."""
        work = lambda: self._client.enqueue_tracked(queue, data, **options)  # noqa: E731
        return PortalHandle(self._portal, self._portal.call(work))

    def enqueue_many(self, queue: str, data: Iterable[bytes | str]) -> list[PortalHandle]:
        """See `streamfleet.sync.Client.enqueue_many`."""
        handles = self._portal.call(self._client.enqueue_many, queue, data)
        return [PortalHandle(self._portal, handle) for handle in handles]

    def flush(self, timeout: float | None = None) -> None:
        """See `streamfleet.sync.Client.flush`."""
        self._portal.call(self._client.flush, timeout)

    def close(self, timeout: float | None = 10.0) -> int:
        """See `streamfleet.sync.Client.close`."""
        if not self._closed:
            self._unsent = self._portal.call(self._client.close, timeout)
            self._closed = True
            self._left.wait(STOP_SECONDS)
        return self._unsent


class PortalWorker:
    """An async worker that runs from its construction on."""

    def __init__(self, portal: Portal, worker: Any, interrupted: list[Task]) -> None:
        self._portal = portal
        self._worker = worker
        self._interrupted = interrupted
        self._ended = threading.Event()
        self._refusal: ServerRefused | None = None

        async def live() -> None:
            try:
                await worker.run()
            except ServerRefused as refusal:
                self._refusal = refusal
            finally:
                self._ended.set()

        portal.host(live)
        eventually(lambda: self._ended.is_set() or self.consumer, "the worker runs", START_SECONDS)

    @property
    def counts(self) -> dict[str, int]:
        """See `streamfleet.sync.Worker.counts`."""
        return cast("dict[str, int]", self._portal.call_sync(lambda: self._worker.counts))

    @property
    def consumer(self) -> str:
        """See `streamfleet.sync.Worker.consumer`."""
        return cast("str", self._worker.consumer)

    @property
    def in_flight(self) -> int:
        """See `streamfleet.sync.Worker.in_flight`."""
        return cast("int", self._worker.in_flight)

    @property
    def interrupted(self) -> int:
        """See `WorkerFacade.interrupted`."""
        return len(self._interrupted)

    def stop(self, drain: float | None = None) -> None:
        """See `WorkerFacade.stop`."""
        if not self._ended.is_set():
            self._portal.call_sync(self._worker.request_stop, drain)
        if not self._ended.wait(STOP_SECONDS):
            raise TimeoutError(f"worker {self.consumer} did not stop within {STOP_SECONDS:g} s")

    def wait(self, timeout: float) -> bool:
        """See `WorkerFacade.wait`."""
        if not self._ended.wait(timeout):
            return False
        if self._refusal is not None:
            raise self._refusal
        return True


class PortalShell:
    """What the async shells have in common."""

    name = ""

    def __init__(self, portal: Portal, client: Callable[..., Any], worker: Callable[..., Any]) -> None:
        self._portal = portal
        self._client = client
        self._worker = worker

    def connect(self, driver: Driver | AsyncDriver, timeout: float) -> Connection:
        """See `Shell.connect`."""
        connection = self._portal.call(cast("AsyncDriver", driver).connect_async, timeout)
        return PortalConnection(self._portal, connection)

    def client(self, driver: Driver | AsyncDriver, queues: Sequence[str], **config: Any) -> ClientFacade:
        """See `Shell.client`."""
        return PortalClient(self._portal, self._portal.call_sync(lambda: self._client(driver, queues, **config)))

    def worker(
        self,
        driver: Driver | AsyncDriver,
        handlers: Mapping[str, tuple[Handler, float | None]],
        running: Running,
        **config: Any,
    ) -> WorkerFacade:
        """See `Shell.worker`."""
        interrupted: list[Task] = []

        def make() -> Any:
            worker = self._worker(driver, **config)
            for queue, (function, timeout) in handlers.items():
                threads = running is Running.THREAD
                handler = function if threads else self._async_handler(function, running, interrupted)
                worker.handler(queue, timeout=timeout, threads=threads)(handler)
            return worker

        return PortalWorker(self._portal, self._portal.call_sync(make), interrupted)

    def _async_handler(
        self, function: Handler, running: Running, interrupted: list[Task]
    ) -> Callable[[Task], Awaitable[object]]:
        async def on_loop(task: Task) -> object:
            return function(task)

        async def awaited(task: Task) -> object:
            try:
                value, error = await self._portal.in_thread(lambda: call_in_thread(function, task))
            except self._portal.cancelled:
                interrupted.append(task)
                raise
            if error is not None:
                raise error
            return value

        return on_loop if running is Running.ON_LOOP else awaited

    def close(self) -> None:
        """End the loop."""
        self._portal.close()


class AsyncioShell(PortalShell):
    """`streamfleet.asyncio`."""

    name = "asyncio"

    def __init__(self) -> None:
        from streamfleet.asyncio import Client, Worker

        super().__init__(AsyncioPortal(), Client, Worker)


class TrioShell(PortalShell):
    """`streamfleet.trio`."""

    name = "trio"

    def __init__(self) -> None:
        from streamfleet.trio import Client, Worker

        super().__init__(TrioPortal(), Client, Worker)


def _trio_sleep() -> Callable[[float], Awaitable[None]]:
    import trio

    return trio.sleep
