"""The rows, what is to be reached, and how the result is told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from streamfleet.bench.scenarios import Figures

FLOOR = "floor"
THREADS = "threads"

Results: TypeAlias = Mapping[str, Sequence[Figures]]
"""Figures by contender; one element for each round."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to be."""

    bound: float
    of: str = FLOOR
    """The bound is of the figure's ratio to this contender's; of the figure itself when this is empty."""
    must: float | None = None
    """As ``bound``; what must be reached."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table for each contender."""

    key: str
    """The figure's name, as the scenarios have it."""
    title: str
    unit: str
    threads: Goal | None = None
    """The goal of the shell for threads, and of the others where they have none of their own in ``loops``."""
    loops: Mapping[str, Goal] | None = None
    """Goals of the shells for event loops, by contender."""
    more_is_better: bool = False

    def goal(self, contender: str) -> Goal | None:
        """The goal of a contender."""
        if contender == THREADS or self.loops is None:
            return self.threads
        return self.loops.get(contender)

    def good(self, value: float, bound: float) -> bool:
        """Does a ratio (or figure) satisfy a bound?"""
        return value >= bound if self.more_is_better else value <= bound


_SPEED = {"asyncio": Goal(0.4, must=0.4), "trio": Goal(0.3, must=0.3)}
_NEAR = dict.fromkeys(("asyncio", "trio"), Goal(1.5, THREADS))
_NEAR_RATE = dict.fromkeys(("asyncio", "trio"), Goal(0.67, THREADS))
_NONE: Mapping[str, Goal] = {}


def _rate(key: str, title: str, threads: Goal, loops: Mapping[str, Goal]) -> Row:
    return Row(key, title, "tasks/s", threads, loops, more_is_better=True)


ROWS = (
    _rate("enqueue", "bulk enqueue, a call for each", Goal(0.54, must=0.4), _SPEED),
    _rate("enqueue-many", "bulk enqueue, enqueue_many", Goal(0.54, must=0.4), _SPEED),
    _rate("enqueue-each", "one by one, each accepted", Goal(0.6), _NONE),
    _rate("drain-1", "drain, 1 handler", Goal(0.52, must=0.5), _SPEED),
    _rate("drain-10", "drain, 10 handlers", Goal(0.63, must=0.5), _SPEED),
    _rate("drain-100", "drain, 100 handlers", Goal(0.45), _NONE),
    Row("wait-p50", "enqueue and wait, 1 outstanding, p50", "µs", Goal(1.54), _NEAR),
    Row("wait-p99", "enqueue and wait, 1 outstanding, p99", "µs", Goal(1.87), _NEAR),
    _rate("wait-50", "enqueue and wait, 50 outstanding", Goal(0.63), _NEAR_RATE),
    Row("slow-p50", "enqueue to handler, 20/s, p50", "µs", Goal(1.3), _NEAR),
    Row("slow-p99", "enqueue to handler, 20/s, p99", "µs", None, _NEAR),
    Row("fast-p50", "enqueue to handler, 1,000/s, p50", "µs", Goal(1.5), _NEAR),
    Row("fast-p99", "enqueue to handler, 1,000/s, p99", "µs", Goal(3.0), _NEAR),
    Row("server-cpu", "server CPU per task, both ways", "µs", Goal(2.0)),
    Row("client-cpu", "client CPU per 1,000 tasks", "ms"),
    Row("worker-cpu-1", "worker CPU per 1,000 tasks, 1 handler", "ms", Goal(30.0, "")),
    Row("worker-cpu-10", "worker CPU per 1,000 tasks, 10 handlers", "ms", Goal(30.0, "")),
    Row("commands", "commands per task, both ways", ""),
    Row("memory", "memory per queued task", "bytes", Goal(130.0, "")),
    Row("worker-rss", "peak memory of a worker", "MB", Goal(45.0, "")),
    Row("idle-worker", "commands of an idle worker per 10 s", "", Goal(12.0, "", must=12.0)),
    Row("idle-client", "commands of an idle client per 10 s", "", Goal(4.0, "", must=4.0)),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One row's outcome for one contender."""

    row: Row
    contender: str
    value: float
    floor: float | None
    ratio: float | None
    """To the floor: the median of the rounds' ratios, which is not quite the ratio of the medians."""
    of_threads: float | None = None
    """As ``ratio``, to the shell for threads."""

    @property
    def goal(self) -> Goal | None:
        """What the figure is to be."""
        return self.row.goal(self.contender)

    @property
    def reached(self) -> bool | None:
        """Is the goal reached? None without a goal, or without the contender it refers to."""
        return None if self.goal is None else self._satisfies(self.goal, self.goal.bound)

    @property
    def failed(self) -> bool:
        """Is what must be reached missed?"""
        return self.goal is not None and self._satisfies(self.goal, self.goal.must) is False

    def _satisfies(self, goal: Goal, bound: float | None) -> bool | None:
        measured = {FLOOR: self.ratio, THREADS: self.of_threads}.get(goal.of, self.value)
        return None if bound is None or measured is None else self.row.good(measured, bound)

    def as_dict(self) -> dict[str, Any]:
        """The line for JSON."""
        row, goal = self.row, self.goal
        return {
            "scenario": row.key,
            "title": row.title,
            "unit": row.unit,
            "contender": self.contender,
            "value": self.value,
            "floor": self.floor,
            "ratio": self.ratio,
            "of_threads": self.of_threads,
            "goal": goal and goal.bound,
            "minimum": goal and goal.must,
            "goal_is": goal and (goal.of or "absolute"),
            "better": "more" if row.more_is_better else "less",
            "reached": self.reached,
        }


def lines(results: Results) -> list[Line]:
    """The table's lines: each row for each contender but the floor, where there are figures."""
    found: list[Line] = []
    for row in ROWS:
        by_contender = {
            contender: [figures[row.key] for figures in rounds if row.key in figures]
            for contender, rounds in results.items()
        }
        floors = by_contender.pop(FLOOR, [])
        threads = by_contender.get(THREADS, [])
        for contender, values in by_contender.items():
            if not values:
                continue
            floor = statistics.median(floors) if floors else None
            of_threads = None if contender == THREADS else _ratio(values, threads)
            found.append(
                Line(row, contender, statistics.median(values), floor, _ratio(values, floors), of_threads)
            )
    return found


def _ratio(values: Sequence[float], others: Sequence[float]) -> float | None:
    ratios = [value / other for value, other in zip(values, others, strict=False) if other > 0]
    return statistics.median(ratios) if ratios else None


_HEAD = ("scenario", "contender", "figure", "floor", "of floor", "of threads", "goal", "reached")


def render(table: Sequence[Line]) -> list[str]:
    """The table as text."""
    cells = [_HEAD, *(_cells(line) for line in table)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    texts = []
    for row in cells:
        left = [row[column].ljust(widths[column]) for column in (0, 1)]
        right = [row[column].rjust(widths[column]) for column in range(2, len(_HEAD))]
        texts.append("  ".join([*left, *right]).rstrip())
    return [texts[0], "-" * len(texts[0]), *texts[1:]]


def _cells(line: Line) -> tuple[str, ...]:
    row = line.row
    sign = "≥" if row.more_is_better else "≤"
    of = f" of {line.goal.of}" if line.goal is not None and line.goal.of else ""
    goal = "" if line.goal is None else f"{sign} {line.goal.bound:g}{of}"
    reached = "" if line.reached is None else "yes" if line.reached else "NO" if line.failed else "no"
    return (
        row.title,
        line.contender,
        f"{_number(line.value)} {row.unit}".rstrip(),
        "" if line.floor is None else _number(line.floor),
        "" if line.ratio is None else f"{line.ratio:.2f}",
        "" if line.of_threads is None else f"{line.of_threads:.2f}",
        goal,
        reached,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
