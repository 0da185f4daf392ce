"""Waiting for conditions, with a deadline and without fixed pauses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Protocol, TypeVar

PATIENCE = 15.0
"""Seconds after which a condition counts as never coming true, also on a busy machine."""
LOOK_AGAIN = 0.005

T = TypeVar("T")


class Counting(Protocol):
    """A client or a worker, of whatever shell."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened so far, by name."""


def eventually(condition: Callable[[], T], what: str, within: float = PATIENCE) -> T:
    """Wait until the condition gives something true, and return that.

    Raises AssertionError with ``what`` and the last value after ``within`` seconds.
    """
    deadline = monotonic() + within
    pause = threading.Event()
    while not (value := condition()):
        if monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what} (last: {value!r})")
        pause.wait(LOOK_AGAIN)
    return value


def throughout(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Look for a while that a condition stays true. Raises AssertionError when it does not."""
    deadline = monotonic() + seconds
    pause = threading.Event()
    while monotonic() < deadline:
        if not condition():
            raise AssertionError(f"did not stay so for {seconds:g} s: {what}")
        pause.wait(LOOK_AGAIN)


def counted(actor: Counting, **expected: int) -> None:
    """Wait until a client or worker has counted this. The server may know it before the actor does."""

    def seen() -> bool:
        counts = actor.counts
        return all(counts.get(name, 0) == number for name, number in expected.items())

    eventually(seen, f"{expected} are counted")
