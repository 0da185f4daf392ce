"""How much of everything."""

from __future__ import annotations

import sys
from dataclasses import dataclass

RUN = (sys.executable, "-m", "streamfleet", "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The demonstration's measures. Times in seconds."""

    tasks: int = 1000
    """Enqueued in two halves: one before each catastrophe. More are enqueued while the server is down."""
    workers: int = 3
    concurrency: int = 10
    task_seconds: float = 0.06
    """How long a task takes on average; single ones take from half of it to one and a half times as long."""
    lease: float = 5.0
    down: float = 3.0
    """How long the server is down."""
    trickle: float = 70.0
    """Tasks enqueued per second while the server is down, and shortly before."""
    patience: float = 30.0
    """How long to wait while nothing happens; what has not been done then counts as lost."""
    run: tuple[str, ...] = RUN
    """The command that runs a worker; ``module:object`` and options follow."""


QUICK = Plan(tasks=300, task_seconds=0.04, lease=2.0, down=1.0)
