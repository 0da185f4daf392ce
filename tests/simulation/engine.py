"""Virtual time: a heap of things to do, and a clock that jumps from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Engine:
    """What happens at the same moment happens in the order in which it was asked for."""

    __slots__ = ("_heap", "_number", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds of virtual time."""
        self.events = 0
        """How many things have happened."""
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, when: float, do: Callable[..., object], *args: Any) -> None:
        """Do it at that moment, or now if that has passed."""
        self._number += 1
        heappush(self._heap, (max(when, self.now), self._number, do, args))

    def after(self, delay: float, do: Callable[..., object], *args: Any) -> None:
        """Do it so many seconds from now."""
        self.at(self.now + delay, do, *args)

    def run(self, until: float, ended: Callable[[], bool]) -> bool:
        """Let time pass until ``until``, or ``ended()`` says so; whether it did."""
        heap = self._heap
        while not ended():
            if not heap or heap[0][0] > until:
                self.now = max(self.now, until)
                return ended()
            self.now, _, do, args = heappop(heap)
            self.events += 1
            do(*args)
        return True
