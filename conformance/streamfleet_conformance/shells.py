"""The shells as the cases see them: synchronous, whatever they are inside.

The clients and workers of `streamfleet.sync` fit as they are. Those of an async shell run on an event loop in
a thread of their own, and their facades hand each call over to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from importlib import import_module
from typing import Any, Protocol, TypeAlias, cast

from streamfleet.sync import Client, Worker
from streamfleet.task import Task
from streamfleet_core.connection import AsyncDriver, Connection, Driver
from streamfleet_core.errors import UsageError
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status

Handler: TypeAlias = Callable[[Task], object]
"""A plain function. It may block; see `Running` for what an async shell makes of that."""


class Running(Enum):
    """How an async shell runs a case's handlers. Threads have one way only, which is THREAD."""

    ON_LOOP = "an async handler that never waits"
    AWAITED = "an async handler that waits for the function, which a thread of the portal runs"
    THREAD = "a plain function in a thread of the worker"


STOP_SECONDS = 20.0


class HandleFacade(Protocol):
    """See `streamfleet.sync.Handle`."""

    @property
    def id(self) -> str: ...
    @property
    def status(self) -> Status: ...
    def accepted(self, timeout: float | None = None) -> None: ...
    def wait(self, timeout: float | None = None) -> bytes | None: ...
    def cancel(self, timeout: float | None = 5.0) -> bool: ...


class ClientFacade(Protocol):
    """See `streamfleet.sync.Client`."""

    @property
    def id(self) -> str: ...
    @property
    def buffered(self) -> int: ...
    @property
    def counts(self) -> dict[str, int]: ...
    def enqueue(
        self,
        queue: str,
        data: bytes | str,
        *,
        max_retries: int | None = 3,
        retry_delay: float | None = None,
        retry: RetryPolicy | None = None,
        delay: float | None = None,
        at: float | None = None,
        expires_in: float | None = None,
        expires_at: float | None = None,
    ) -> HandleFacade: ...
    def enqueue_tracked(
        self,
        queue: str,
        data: bytes | str,
        *,
        max_retries: int | None = 3,
        retry_delay: float | None = None,
        retry: RetryPolicy | None = None,
        delay: float | None = None,
        at: float | None = None,
        expires_in: float | None = None,
        expires_at: float | None = None,
    ) -> HandleFacade: ...
    def enqueue_many(self, queue: str, data: Iterable[bytes | str]) -> Sequence[HandleFacade]: ...
    def flush(self, timeout: float | None = None) -> None: ...
    def close(self, timeout: float | None = 10.0) -> int: ...


class WorkerFacade(Protocol):
    """A worker that runs from its construction on."""

    @property
    def counts(self) -> dict[str, int]: ...
    @property
    def consumer(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def interrupted(self) -> int:
        """How many of its handlers were cancelled: only those that run AWAITED can be."""

    def stop(self, drain: float | None = None) -> None:
        """Stop in order. Raises TimeoutError when that does not end, never a ServerRefused."""

    def wait(self, timeout: float) -> bool:
        """Wait until it has ended by itself. Raises why the server refused it."""


class Shell(Protocol):
    """Makes the facades of one shell."""

    name: str

    def connect(self, driver: Driver | AsyncDriver, timeout: float) -> Connection:
        """A connection of the driver in its form for this shell. Raises what the driver raises."""

    def client(self, driver: Driver | AsyncDriver, queues: Sequence[str], **config: Any) -> ClientFacade:
        """A client."""

    def worker(
        self,
        driver: Driver | AsyncDriver,
        handlers: Mapping[str, tuple[Handler, float | None]],
        running: Running,
        **config: Any,
    ) -> WorkerFacade:
        """A worker, started. ``handlers``: for each queue a handler and its timeout in seconds."""

    def close(self) -> None:
        """End what the shell itself has started."""


class SyncWorker:
    """A worker for threads."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        worker.start()

    @property
    def counts(self) -> dict[str, int]:
        """See `streamfleet.sync.Worker.counts`."""
        return self._worker.counts

    @property
    def consumer(self) -> str:
        """See `streamfleet.sync.Worker.consumer`."""
        return self._worker.consumer

    @property
    def in_flight(self) -> int:
        """See `streamfleet.sync.Worker.in_flight`."""
        return self._worker.in_flight

    @property
    def interrupted(self) -> int:
        """See `WorkerFacade.interrupted`."""
        return 0

    def stop(self, drain: float | None = None) -> None:
        """See `WorkerFacade.stop`."""
        self._worker.request_stop(drain)
        run = self._worker._run
        if run is not None and not run.wait(STOP_SECONDS):
            raise TimeoutError(f"worker {self.consumer} did not stop within {STOP_SECONDS:g} s")

    def wait(self, timeout: float) -> bool:
        """See `WorkerFacade.wait`."""
        return self._worker.wait(timeout)


class SyncShell:
    """`streamfleet.sync`."""

    name = "sync"

    def connect(self, driver: Driver | AsyncDriver, timeout: float) -> Connection:
        """See `Shell.connect`."""
        return cast("Driver", driver).connect(timeout)

    def client(self, driver: Driver | AsyncDriver, queues: Sequence[str], **config: Any) -> ClientFacade:
        """See `Shell.client`."""
        return Client(cast("Driver", driver), queues, **config)

    def worker(
        self,
        driver: Driver | AsyncDriver,
        handlers: Mapping[str, tuple[Handler, float | None]],
        running: Running,
        **config: Any,
    ) -> WorkerFacade:
        """See `Shell.worker`."""
        worker = Worker(cast("Driver", driver), **config)
        for queue, (function, timeout) in handlers.items():
            worker.handler(queue, timeout=timeout)(function)
        return SyncWorker(worker)

    def close(self) -> None:
        """Nothing to end."""


SHELLS = {
    "sync": "streamfleet_conformance.shells:SyncShell",
    "asyncio": "streamfleet_conformance.portals:AsyncioShell",
    "trio": "streamfleet_conformance.portals:TrioShell",
}


def shell_for(name: str) -> Shell:
    """The shell of that name. Raises UsageError when the suite has none."""
    if name not in SHELLS:
        raise UsageError(f"no shell {name!r}: this edition of the suite has {', '.join(SHELLS)}")
    module, _, attribute = SHELLS[name].partition(":")
    return cast("Shell", getattr(import_module(module), attribute)())
