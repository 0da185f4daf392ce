"""The rows, what is to be reached, and how the result is told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from streamfleet.bench.scenarios import Figures

FLOOR = "floor"

Results: TypeAlias = Mapping[str, Sequence[Figures]]
"""Figures by contender; one element for each round."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    key: str
    """The figure's name, as the scenarios have it."""
    title: str
    unit: str
    goal: float | None = None
    """A ratio to the floor, unless ``absolute``."""
    minimum: float | None = None
    """As ``goal``; what must be reached."""
    more_is_better: bool = False
    absolute: bool = False

    def good(self, value: float, bound: float) -> bool:
        """Does a ratio (or figure) satisfy a goal or minimum?"""
        return value >= bound if self.more_is_better else value <= bound


ROWS = (
    Row("enqueue", "bulk enqueue, a call for each", "tasks/s", 0.54, 0.4, more_is_better=True),
    Row("enqueue-many", "bulk enqueue, enqueue_many", "tasks/s", 0.54, 0.4, more_is_better=True),
    Row("enqueue-each", "one by one, each accepted", "tasks/s", 0.6, more_is_better=True),
    Row("drain-1", "drain, 1 handler", "tasks/s", 0.52, 0.5, more_is_better=True),
    Row("drain-10", "drain, 10 handlers", "tasks/s", 0.63, 0.5, more_is_better=True),
    Row("drain-100", "drain, 100 handlers", "tasks/s", 0.45, more_is_better=True),
    Row("wait-p50", "enqueue and wait, 1 outstanding, p50", "µs", 1.54),
    Row("wait-p99", "enqueue and wait, 1 outstanding, p99", "µs", 1.87),
    Row("wait-50", "enqueue and wait, 50 outstanding", "tasks/s", 0.63, more_is_better=True),
    Row("slow-p50", "enqueue to handler, 20/s, p50", "µs", 1.3),
    Row("slow-p99", "enqueue to handler, 20/s, p99", "µs"),
    Row("fast-p50", "enqueue to handler, 1,000/s, p50", "µs", 1.5),
    Row("fast-p99", "enqueue to handler, 1,000/s, p99", "µs", 3.0),
    Row("server-cpu", "server CPU per task, both ways", "µs", 2.0),
    Row("client-cpu", "client CPU per 1,000 tasks", "ms"),
    Row("worker-cpu-1", "worker CPU per 1,000 tasks, 1 handler", "ms", 30.0, absolute=True),
    Row("worker-cpu-10", "worker CPU per 1,000 tasks, 10 handlers", "ms", 30.0, absolute=True),
    Row("commands", "commands per task, both ways", ""),
    Row("memory", "memory per queued task", "bytes", 130.0, absolute=True),
    Row("worker-rss", "peak memory of a worker", "MB", 45.0, absolute=True),
    Row("idle-worker", "commands of an idle worker per 10 s", "", 12.0, 12.0, absolute=True),
    Row("idle-client", "commands of an idle client per 10 s", "", 4.0, 4.0, absolute=True),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One row's outcome for one contender."""

    row: Row
    contender: str
    value: float
    floor: float | None
    ratio: float | None
    """The median of the rounds' ratios, which is not quite the ratio of the medians."""

    @property
    def reached(self) -> bool | None:
        """Is the goal reached? None without a goal."""
        return self._satisfies(self.row.goal)

    @property
    def failed(self) -> bool:
        """Is what must be reached missed?"""
        return self._satisfies(self.row.minimum) is False

    def _satisfies(self, bound: float | None) -> bool | None:
        measured = self.value if self.row.absolute else self.ratio
        return None if bound is None or measured is None else self.row.good(measured, bound)

    def as_dict(self) -> dict[str, Any]:
        """The line for JSON."""
        row = self.row
        return {
            "scenario": row.key,
            "title": row.title,
            "unit": row.unit,
            "contender": self.contender,
            "value": self.value,
            "floor": self.floor,
            "ratio": self.ratio,
            "goal": row.goal,
            "minimum": row.minimum,
            "goal_is": "absolute" if row.absolute else "ratio",
            "better": "more" if row.more_is_better else "less",
            "reached": self.reached,
        }


def lines(results: Results) -> list[Line]:
    """The table's lines: each row for each contender but the floor, where there are figures."""
    found: list[Line] = []
    for row in ROWS:
        for contender, rounds in results.items():
            values = [figures[row.key] for figures in rounds if row.key in figures]
            if contender == FLOOR or not values:
                continue
            floors = [figures[row.key] for figures in results.get(FLOOR, ()) if row.key in figures]
            pairs = zip(values, floors, strict=False)
            ratios = [value / floor for value, floor in pairs if floor > 0]
            found.append(
                Line(
                    row,
                    contender,
                    statistics.median(values),
                    statistics.median(floors) if floors else None,
                    statistics.median(ratios) if ratios else None,
                )
            )
    return found


_HEAD = ("scenario", "contender", "figure", "floor", "ratio", "goal", "reached")


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
    of_floor = "" if row.absolute else " of floor"
    goal = "" if row.goal is None else f"{sign} {row.goal:g}{of_floor}"
    reached = "" if line.reached is None else "yes" if line.reached else "NO" if line.failed else "no"
    return (
        row.title,
        line.contender,
        f"{_number(line.value)} {row.unit}".rstrip(),
        "" if line.floor is None else _number(line.floor),
        "" if line.ratio is None else f"{line.ratio:.2f}",
        goal,
        reached,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
