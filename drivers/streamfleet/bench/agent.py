"""An agent's process: ``python -m streamfleet.bench.agent CONTENDER ROLE ORDER``.

It says ``ready`` on stdout, begins when a line comes on stdin, and ends with its report as one line of JSON.
Without that line, because the benchmark was ended, it leaves.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from streamfleet.bench.orders import Contender, Order

CONTENDERS = ("floor", "threads", "asyncio", "trio")
"""Modules of this package, by name."""

_STATUS = Path("/proc/self/status")


class NotBegun(Exception):
    """The benchmark has gone before it said that the agent may begin."""


def contender(name: str) -> Contender:
    """The agents of a contender."""
    agents: Contender = import_module(f"streamfleet.bench.{name}").AGENTS
    return agents


def main(argv: Sequence[str]) -> None:
    """Be the agent that the arguments name. Raises what the agent raises."""
    name, role, order = argv
    cpu_seconds: list[float] = []

    @contextmanager
    def measured() -> Iterator[None]:
        print("ready", flush=True)
        if not sys.stdin.readline():
            raise NotBegun
        before = time.process_time()
        yield
        cpu_seconds.append(time.process_time() - before)

    try:
        report = contender(name)[role](Order(**json.loads(order))).perform(measured)
    except NotBegun:
        return
    print(json.dumps({**report, "cpu_seconds": cpu_seconds, "rss_mb": [_peak_rss_mb()]}), flush=True)


def _peak_rss_mb() -> float:
    # On Linux the figure of getrusage begins with what the parent had when it forked.
    if _STATUS.exists():
        (peak,) = (line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main(sys.argv[1:])
