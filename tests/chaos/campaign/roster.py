"""Who took part: shells and drivers, as the processes themselves have logged it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from campaign.logfile import lines_of

LIBRARIES = {"RedisDriver": "redis-py", "ValkeyDriver": "valkey-py"}
"""Drivers that stand on a client library. The others speak the protocol themselves."""
DONE = {"worker": "end", "client": "accepted"}
"""The line that says that a process has done what it is there for."""


@dataclass(slots=True)
class Part:
    """What processes of one kind have done."""

    processes: int = 0
    tasks: int = 0
    """Tasks handled by workers; accepted from clients."""


def roster(role: str, logs: Iterable[Path]) -> dict[str, Part]:
    """By shell, what it ran on, and the scheme of the URL."""
    parts: dict[str, Part] = {}
    for path in logs:
        part = None
        for kind, *words in lines_of(path):
            if kind == "ready":
                part = parts.setdefault(title(*words), Part())
                part.processes += 1
            elif part is not None:
                part.tasks += kind == DONE[role]
    return parts


def title(shell: str, driver: str, scheme: str) -> str:
    """For example ``sync on redis-py``; under trio the scheme decides nothing, and is named as such."""
    library = LIBRARIES.get(driver)
    return f"{shell} on {library}" if library else f"{shell} on {driver} ({scheme}://)"
