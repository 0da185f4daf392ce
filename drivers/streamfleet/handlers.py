"""Which handler serves which queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Generic, TypeVar

from streamfleet_core.errors import InvalidHandler
from streamfleet_core.keys import check_queue_name

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Handler(Generic[F]):
    """A function and how it is to be run."""

    function: F
    timeout: float
    """Seconds after which an attempt counts as failed; 0 = never."""
    threads: bool = False
    """In the async shells: run the plain function in a worker thread."""


class Handlers(Generic[F]):
    """The handlers of one worker, by queue."""

    def __init__(self) -> None:
        self._by_queue: dict[str, Handler[F]] = {}

    def register(self, queue: str, function: F, timeout: float | None, *, threads: bool = False) -> None:
        """Raises InvalidQueueName, or InvalidHandler for duplicates and what cannot be called."""
        check_queue_name(queue)
        if not callable(function):
            raise InvalidHandler(f"handler of queue {queue!r} must be callable, got {type(function).__name__}")
        if queue in self._by_queue:
            other = getattr(self._by_queue[queue].function, "__qualname__", self._by_queue[queue].function)
            raise InvalidHandler(f"queue {queue!r} already has the handler {other}; a queue has one handler")
        if timeout is not None and not (isinstance(timeout, int | float) and isfinite(timeout) and timeout > 0):
            raise InvalidHandler(f"timeout of queue {queue!r} must be more than zero seconds, got {timeout!r}")
        self._by_queue[queue] = Handler(function, timeout or 0.0, threads)

    def __getitem__(self, queue: str) -> Handler[F]:
        return self._by_queue[queue]

    def timeouts(self) -> dict[str, float]:
        """Queue names with their handlers' timeouts, for the worker machine."""
        return {queue: handler.timeout for queue, handler in self._by_queue.items()}
