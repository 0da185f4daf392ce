"""Many seeds, on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from .ablations import without
from .plan import draw
from .world import run

CHUNK = 25
"""Seeds that one process takes at a time."""
FEW = 100
"""So many seeds are not worth a second process."""


@dataclass(slots=True)
class Report:
    """What came of many worlds."""

    seeds: int = 0
    hours: float = 0.0
    events: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    shares: list[tuple[float, int]] = field(default_factory=list)
    """Which part of the time in which it had to drain each world needed, and its seed."""
    violating: dict[int, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        """Take the figures of others in."""
        self.seeds += other.seeds
        self.hours += other.hours
        self.events += other.events
        self.counts.update(other.counts)
        self.shares += other.shares
        self.violating.update(other.violating)

    @property
    def violations(self) -> int:
        """How many invariants were violated, over all worlds."""
        return sum(map(len, self.violating.values()))

    @property
    def liveness(self) -> str:
        """One line: how long worlds took to drain once faults had stopped."""
        worst, seed = max(self.shares)
        middle = median(share for share, _ in self.shares)
        return f"drained within {worst:.3f} of the bound at worst (seed {seed}), {middle:.3f} in the median"

    @property
    def summary(self) -> str:
        """One line."""
        figures = f"{self.hours:.1f} virtual hours, {self.events} events"
        return f"{self.seeds} seeds, {self.violations} violations, {figures}"


def survey(seeds: Iterable[int], profile: str = "", *, ablation: str = "", first_only: bool = False) -> Report:
    """Live through the worlds of these seeds, in this process; ``first_only``: up to the first violation."""
    report = Report()
    with without(ablation):
        for seed in seeds:
            try:
                result = run(draw(seed, profile))
            except BaseException as error:
                error.add_note(f"in the world of seed {seed}")
                raise
            report.seeds += 1
            report.hours += result.hours
            report.events += result.events
            report.counts.update(result.counts)
            report.shares.append((result.share, seed))
            if result.violations:
                report.violating[seed] = result.violations
                if first_only:
                    break
    return report


def _part(work: tuple[range, str, str]) -> Report:
    seeds, profile, ablation = work
    return survey(seeds, profile, ablation=ablation)


def parts(seeds: range, profile: str = "", ablation: str = "") -> Iterator[Report]:
    """The same on all cores; gives the reports as they come, in the order of the seeds."""
    chunks = [(seeds[start : start + CHUNK], profile, ablation) for start in range(0, len(seeds), CHUNK)]
    with ExitStack() as stack:
        if len(seeds) <= FEW:
            yield from map(_part, chunks)
        else:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(os.cpu_count()))
            yield from pool.imap(_part, chunks)
