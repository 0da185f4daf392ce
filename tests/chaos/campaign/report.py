"""A campaign's outcome, as values and as Markdown."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import date
from typing import Any

from campaign.verdict import Verdict


@dataclass
class Report:
    """What was done to the fleet, and what came of it."""

    server: str
    seed: int
    seconds: float
    verdict: Verdict
    network_faults: dict[str, int]
    meddling: dict[str, int]
    kills: int
    refusals: int
    drained: bool
    late: list[str]
    leftovers: list[str]

    @property
    def good(self) -> bool:
        """Nothing lost, doubled, invented or left; everybody ended in time."""
        return self.verdict.violations == 0 and self.drained and not self.late and not self.leftovers

    @property
    def faults(self) -> int:
        """All that was done to the fleet."""
        return sum(self.network_faults.values()) + sum(self.meddling.values())

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "server": self.server,
            "seed": self.seed,
            "seconds": self.seconds,
            "good": self.good,
            "faults": self.faults,
            "kills": self.kills,
            "refusals": self.refusals,
            "drained": self.drained,
            "late": self.late,
            "leftovers": self.leftovers,
            "network_faults": self.network_faults,
            "meddling": self.meddling,
            **self.verdict.as_dict(),
        }


ROWS = (
    ("seed", "seed"),
    ("seconds", "seconds of trouble"),
    ("faults", "faults injected"),
    ("kills", "processes killed"),
    ("offered", "tasks offered"),
    ("accepted", "accepted, as clients were told"),
    ("completed", "completed"),
    ("dead", "dead-lettered, as ordered"),
    ("expired", "expired, as ordered"),
    ("recovered", "ended though their client was killed"),
    ("ran_twice", "ran more often than attempted (allowed)"),
    ("lost", "**lost**"),
    ("enqueued_twice", "**enqueued twice**"),
    ("ended_twice", "**ended twice**"),
    ("branched", "**branched**"),
    ("unexpected", "**unexpected**"),
    ("never_ran", "**completed without a run**"),
    ("told_wrongly", "**client told wrongly**"),
    ("drained", "drained at the end"),
)


def markdown(figures: list[dict[str, Any]]) -> str:
    """A table with one column per campaign, and what was injected."""
    lines = [
        f"{date.today().isoformat()}, Python {platform.python_version()}, {platform.machine()}",
        "",
        "| | " + " | ".join(column["server"] for column in figures) + " |",
        "| --- |" + " ---: |" * len(figures),
    ]
    for key, title in ROWS:
        cells = [_cell(key, column[key]) for column in figures]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for column in figures:
        injected = sorted({**column["network_faults"], **column["meddling"]}.items())
        lines += ["", f"{column['server']}: " + ", ".join(f"{name} {count}" for name, count in injected) + "."]
        for name in ("late", "leftovers"):
            lines += [f"- {name}: {item}" for item in column[name]]
        for name in Verdict.FAULTS:
            lines += [f"- {name}: {example}" for example in column[f"{name}_examples"]]
    return "\n".join(lines) + "\n"


def _cell(key: str, value: object) -> str:
    return f"{value:,}" if type(value) is int and key != "seed" else str(value)
