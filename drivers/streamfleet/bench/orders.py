"""What an agent is told to do, and the form in which contenders provide it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

QUEUE = "bench"
WARM_QUEUE = "bench-warm"
PAYLOAD = b"0123456789abcdef"
STAMP_BYTES = 8
"""The length of a payload that says when it was enqueued; `PAYLOAD` has another."""
WAIT_SECONDS = 60.0
"""So long an agent waits for anything before it gives up."""

Report: TypeAlias = dict[str, list[float]]
"""What an agent has measured, by name."""


@dataclass(frozen=True, slots=True)
class Order:
    """One agent's work. ``url`` is the server's."""

    url: str
    tasks: int
    concurrency: int = 1
    """Handlers at work at the same time."""
    outstanding: int = 1
    """Tasks whose outcome is waited for at the same time."""
    rate: float = 0.0
    """Tasks per second."""


Measured: TypeAlias = Callable[[], AbstractContextManager[None]]
"""What is to be measured happens within this: entering it waits until the benchmark says that it may begin."""


class Agent(Protocol):
    """One role of a contender, in a process of its own."""

    def perform(self, measured: Measured) -> Report:
        """Get ready, do the work within ``measured()``, and report. Raises TimeoutError when it takes too long."""


class PlainAgent:
    """An agent without an event loop."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def perform(self, measured: Measured) -> Report:
        """See `Agent.perform`."""
        self.prepare()
        with measured():
            return self.run()

    def prepare(self) -> None:
        """Whatever is not to be measured: connect, warm up, begin to serve."""

    def run(self) -> Report:
        """Do it, and report."""
        raise NotImplementedError


Contender: TypeAlias = Mapping[str, Callable[[Order], Agent]]
"""Agents by role: ``enqueue``, ``enqueue-many`` and ``enqueue-each`` (untracked tasks), ``drain`` (a backlog),
``serve`` (until all has come), ``wait`` (tracked tasks, and their outcome), ``pace`` (tasks that say when they
were enqueued)."""


def stamp() -> bytes:
    """The time as a payload; its clock is the same in all processes of the machine."""
    return time.monotonic_ns().to_bytes(STAMP_BYTES, "big")


def age_us(payload: bytes) -> float:
    """Microseconds since `stamp` made this payload."""
    return (time.monotonic_ns() - int.from_bytes(payload, "big")) / 1000


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, asking for it each millisecond. Raises TimeoutError."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {WAIT_SECONDS:g} s")
        time.sleep(0.001)


def paced(order: Order) -> list[float]:
    """When to enqueue each task of a paced order: seconds on the clock of `time.monotonic`."""
    start = time.monotonic() + 0.01
    return [start + number / order.rate for number in range(order.tasks)]
