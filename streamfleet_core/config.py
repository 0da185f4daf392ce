"""Settings of clients and workers, validated once, in seconds and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamfleet_core.errors import UsageError

MAX_CONCURRENCY = 10_000
MAX_DELAY = 10 * 365 * 86_400.0


def _positive(owner: str, name: str, value: object, *, largest: float = math.inf, zero: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (value == 0 and not zero) or value > largest:  # type: ignore[operator]
        bound = f" and at most {largest:g}" if largest != math.inf else ""
        least = "zero or more" if zero else "more than zero"
        raise UsageError(f"{owner}: {name} must be {least}{bound}, got {value!r}")


def _whole(owner: str, name: str, value: object, *, least: int, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise UsageError(f"{owner}: {name} must be a whole number from {least} to {largest:,}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """How a worker behaves. All times in seconds.

    Raises UsageError when a value is out of range.
    """

    concurrency: int = 10
    """Handlers at work at the same time."""
    lease: float = 10.0
    """How long an entry may sit idle before others take it over; 60 or more when Go workers share the queue."""
    scan_interval: float = 2.0
    """How often to look for entries of silent workers, while there are pending entries."""
    poll_interval: float = 1.5
    """How often to look at the schedule for tasks that others have put there."""
    sweep_interval: float = 60.0
    """How often each kind of garbage is looked for."""
    max_deliveries: int = 5
    """An entry delivered this often without being settled is dead-lettered: it kills its workers."""
    max_prefetch: int = 2000
    """The largest number of entries held at a time."""
    prefetch_horizon: float = 0.05
    """Prefetch at most this many seconds of work for each handler."""
    block: float = 5.0
    """How long a read waits at the server."""
    client_timeout: float = 600.0
    """A client that has not beaten for this long is dead."""
    consumer_timeout: float = 86_400.0
    """A consumer without pending entries that has been idle for this long is removed."""
    drain: float = 30.0
    """How long a stopping worker waits for its running handlers."""

    def __post_init__(self) -> None:
        _whole("worker", "concurrency", self.concurrency, least=1, largest=MAX_CONCURRENCY)
        _whole("worker", "max_deliveries", self.max_deliveries, least=1, largest=1_000_000)
        _whole("worker", "max_prefetch", self.max_prefetch, least=1, largest=100_000)
        for name in ("lease", "scan_interval", "poll_interval", "sweep_interval", "block"):
            _positive("worker", name, getattr(self, name), largest=86_400.0)
        for name in ("client_timeout", "consumer_timeout"):
            _positive("worker", name, getattr(self, name))
        for name in ("drain", "prefetch_horizon"):
            _positive("worker", name, getattr(self, name), zero=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How a client behaves. Times in seconds, sizes in bytes.

    Raises UsageError when a value is out of range.
    """

    max_payload: int = 1024 * 1024
    """The largest payload of one task."""
    buffer_tasks: int = 10_000
    """How many tasks may wait locally for the server."""
    buffer_bytes: int = 64 * 1024 * 1024
    """How many bytes of payload may wait locally."""
    batch_tasks: int = 500
    """The largest number of tasks in one transaction."""
    batch_bytes: int = 4 * 1024 * 1024
    """A transaction is closed when its payloads pass this."""
    keep_tasks: int = 5_000
    """How many accepted tasks are kept to be sent again should the server lose them."""
    keep_seconds: float = 30.0
    """For how long accepted tasks are kept."""
    heartbeat: float = 10.0
    """How often a client with a receiver says that it lives."""
    block: float = 5.0
    """How long a read of the receiver waits at the server."""
    marker_ttl: float = 86_400.0
    """How long the server remembers a client that has gone without a word."""

    def __post_init__(self) -> None:
        for name in ("max_payload", "buffer_tasks", "buffer_bytes", "batch_tasks", "batch_bytes"):
            _whole("client", name, getattr(self, name), least=1, largest=512 * 1024 * 1024)
        _whole("client", "keep_tasks", self.keep_tasks, least=0, largest=10_000_000)
        _positive("client", "keep_seconds", self.keep_seconds, zero=True)
        for name in ("heartbeat", "block", "marker_ttl"):
            _positive("client", name, getattr(self, name))
