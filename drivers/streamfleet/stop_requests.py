"""Stops that are requested of a worker from a signal handler or another thread, perhaps before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class StopRequests(Generic[R]):
    """Of one worker. ``current``: tells the start that lasts, if any."""

    __slots__ = ("_current", "_early")

    def __init__(self, current: Callable[[], R | None]) -> None:
        self._current = current
        self._early = False
        """Was a stop requested while it does not run?"""

    def request(self, stop: Callable[[R], object]) -> None:
        """Stop the start that lasts; if there is none, the next one is to end at once."""
        run = self._current()
        if run is None:
            self._early = True
            run = self._current()  # started meanwhile by another thread, which may not have seen this
        if run is not None:
            self._early = False
            stop(run)

    def take_early(self) -> bool:
        """Is a start that has just been made known to end at once? Tells so once."""
        early, self._early = self._early, False
        return early
