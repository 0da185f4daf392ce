"""The faults of the proxy: what can happen, what is to happen, and what has happened."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from typing import TypeAlias

Commands: TypeAlias = list[list[bytes]]
Match: TypeAlias = Callable[[Commands], bool] | bytes | None

LOG_ENTRIES = 1000


class Fault(Enum):
    """What can happen to a request and its reply."""

    REQUEST_LOST = "nothing of the request reaches the server; both connections are cut"
    REPLY_LOST = "the server executes the request; the client is cut off instead of getting the reply"
    DELIVERED_LATE = "the client is cut off; the request comes to the server later on its still open connection"
    CUT = "half of the request reaches the server, up to the middle of a command; both connections are cut"
    CUT_MID_REPLY = "the server executes the request; the client is cut off after half of the reply"
    SLOW = "the reply is held back for a time, with all that follows it"


class Injection:
    """A fault that waits for its command. ``hits`` counts how often it has happened."""

    def __init__(self, fault: Fault, match: Match = None, times: int = 1, delay: float | None = None) -> None:
        self.fault = fault
        self.delay = delay
        self.hits = 0
        self._match = match
        self._left = times
        self._happened = threading.Condition()

    def wait_hit(self, timeout: float = 5.0, hits: int = 1) -> int:
        """Wait until the fault has happened ``hits`` times, and return how often it has.

        By then the server has executed what it was to execute of the request (REPLY_LOST, CUT_MID_REPLY, CUT)
        or the reply is there and held back (SLOW), and the client is being cut off (each but SLOW). Who
        sees the cut finds it counted, except for CUT: that is counted when the server has closed its side.

        Raises TimeoutError after ``timeout`` seconds.
        """
        with self._happened:
            if not self._happened.wait_for(lambda: self.hits >= hits, timeout):
                raise TimeoutError(f"{self.fault.name}: {self.hits} of {hits} hits after {timeout} s")
            return self.hits

    def take(self, commands: Commands) -> bool:
        """Whether the fault is to happen to these commands; then it counts as used."""
        if self._left <= 0 or not self._matches(commands):
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """The fault could not complete: the next match is to have it."""
        self._left += 1

    def happened(self) -> None:
        """Count a hit, and wake those who wait for it."""
        with self._happened:
            self.hits += 1
            self._happened.notify_all()

    def _matches(self, commands: Commands) -> bool:
        if self._match is None:
            return True
        if isinstance(self._match, bytes):
            return self._match.upper() in names_of(commands)
        return self._match(commands)


class FaultBook:
    """Which fault strikes which request, and a record of those that have.

    Used in the proxy's thread alone, except `counts` and `log`.
    """

    def __init__(self) -> None:
        self._injected: list[Injection] = []
        self._draw: Callable[[], Injection | None] | None = None
        self._lock = threading.Lock()
        self._counts: Counter[Fault] = Counter()
        self._log: deque[tuple[Fault, tuple[bytes, ...]]] = deque(maxlen=LOG_ENTRIES)

    def add(self, injection: Injection) -> None:
        self._injected.append(injection)

    def draw_from(self, rng: random.Random, rates: dict[Fault, float], delay: float) -> None:
        """From now on a request may meet a random fault, which takes up to ``delay`` seconds."""

        def draw() -> Injection | None:
            left = rng.random()
            for fault, rate in rates.items():
                left -= rate
                if left < 0:
                    return Injection(fault, delay=rng.uniform(0, delay))
            return None

        self._draw = draw

    def clear(self) -> None:
        self._injected.clear()
        self._draw = None

    def choose(self, commands: Commands) -> Injection | None:
        """The fault for these commands: the first injected one that wants them, else perhaps a random one."""
        for injection in self._injected:
            if injection.take(commands):
                return injection
        return self._draw() if self._draw is not None else None

    def record(self, injection: Injection, names: tuple[bytes, ...]) -> None:
        """The fault has happened to the commands of these names."""
        with self._lock:
            self._counts[injection.fault] += 1
            self._log.append((injection.fault, names))
        injection.happened()

    def counts(self) -> Counter[Fault]:
        with self._lock:
            return self._counts.copy()

    def log(self) -> deque[tuple[Fault, tuple[bytes, ...]]]:
        with self._lock:
            return self._log.copy()


def names_of(commands: Commands) -> tuple[bytes, ...]:
    """The commands' names in capitals."""
    return tuple(command[0].upper() for command in commands if command)
