"""What handlers saw: the cases judge by this record, not by the library's own counters."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from streamfleet.task import Task
from streamfleet_conformance.waiting import PATIENCE


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of a handler."""

    id: str
    data: bytes
    attempt: int
    deliveries: int
    who: str
    at: float
    """Monotonic seconds at its start."""
    task: Task


class Journal:
    """Records attempts, and makes handlers that do so."""

    def __init__(self) -> None:
        self.starts: list[Attempt] = []
        self.ends: list[Attempt] = []
        """Attempts whose handler returned normally."""
        self._changed = threading.Condition()

    def handler(self, script: Callable[[Task], object] | None = None, who: str = "") -> Callable[[Task], object]:
        """A handler that is recorded and then does what ``script`` does."""

        def handle(task: Task) -> object:
            attempt = Attempt(task.id, task.data, task.attempt, task.deliveries, who, monotonic(), task)
            with self._changed:
                self.starts.append(attempt)
                self._changed.notify_all()
            result = script(task) if script is not None else None
            with self._changed:
                self.ends.append(attempt)
                self._changed.notify_all()
            return result

        return handle

    def wait_starts(self, number: int, within: float = PATIENCE) -> list[Attempt]:
        """Wait until so many attempts have begun. Raises AssertionError when they do not in time."""
        return self._wait(self.starts, number, within, "begun")

    def wait_ends(self, number: int, within: float = PATIENCE) -> list[Attempt]:
        """Wait until so many attempts have completed. Raises AssertionError when they do not in time."""
        return self._wait(self.ends, number, within, "completed")

    def _wait(self, record: list[Attempt], number: int, within: float, what: str) -> list[Attempt]:
        with self._changed:
            if not self._changed.wait_for(lambda: len(record) >= number, within):
                raise AssertionError(f"{len(record)} of {number} attempts have {what} within {within:g} s")
            return list(record)

    def times_run(self) -> Counter[bytes]:
        """How often a handler began on each payload."""
        with self._changed:
            return Counter(attempt.data for attempt in self.starts)
