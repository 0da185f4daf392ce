"""A campaign's outcome, as values and as Markdown."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from campaign.roster import Part
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
    refusals: dict[str, int]
    """Processes that ended because the campaign had taken a right away, by role and reason."""
    crashed: list[str]
    """Processes that ended, or complained, without a reason of ours."""
    drained: bool
    late: list[str]
    leftovers: list[str]
    roster: dict[str, dict[str, Part]]
    """By role and kind."""

    @property
    def good(self) -> bool:
        """Nothing lost, doubled, invented or left; everybody ended in time and for a reason."""
        wrong = self.crashed or self.late or self.leftovers
        return self.verdict.violations == 0 and self.drained and not wrong

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
            "refused": sum(self.refusals.values()),
            "refusals": self.refusals,
            "crashes": len(self.crashed),
            "crashed": self.crashed,
            "drained": self.drained,
            "late": self.late,
            "leftovers": self.leftovers,
            "network_faults": self.network_faults,
            "meddling": self.meddling,
            "roster": {
                role: {kind: asdict(part) for kind, part in parts.items()} for role, parts in self.roster.items()
            },
            **self.verdict.as_dict(),
        }


ROWS = (
    ("seed", "seed"),
    ("seconds", "seconds of trouble"),
    ("faults", "faults injected"),
    ("kills", "processes killed"),
    ("refused", "processes that ended for want of a right"),
    ("offered", "tasks offered"),
    ("accepted", "accepted, as clients were told"),
    ("completed", "completed"),
    ("dead", "dead-lettered, as ordered"),
    ("expired", "expired, as ordered"),
    ("cancelled", "cancelled, as asked for"),
    ("recovered", "ended though their client was killed"),
    ("ran_twice", "ran more often than attempted (allowed)"),
    ("untold", "outcome unknown, because the receiver was removed (allowed)"),
    ("lost", "**lost**"),
    ("enqueued_twice", "**enqueued twice**"),
    ("ended_twice", "**ended twice**"),
    ("branched", "**branched**"),
    ("unexpected", "**unexpected**"),
    ("never_ran", "**completed without a run**"),
    ("told_wrongly", "**client told wrongly**"),
    ("not_told", "**client not told**"),
    ("unsent", "**not sent by a client that ended in order**"),
    ("against_orders", "**ended otherwise than ordered**"),
    ("ran_though_cancelled", "**ran though cancelled**"),
    ("crashes", "**crashed**"),
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
        for role, members in column["roster"].items():
            done = "handled" if role == "worker" else "accepted"
            parts = (f"{kind}: {part['processes']} ({part['tasks']:,})" for kind, part in sorted(members.items()))
            lines += ["", f"{role.capitalize()} processes (tasks {done}): {', '.join(parts)}."]
        lines += [""] + [f"- {count} times: {reason}" for reason, count in column["refusals"].items()]
        for name in ("crashed", "late", "leftovers"):
            lines += [f"- {name}: {item}" for item in column[name]]
        for name in Verdict.FAULTS:
            lines += [f"- {name}: {example}" for example in column[f"{name}_examples"]]
    return "\n".join(lines) + "\n"


def _cell(key: str, value: object) -> str:
    return f"{value:,}" if type(value) is int and key != "seed" else str(value)
