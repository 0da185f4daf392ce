"""What a run of the suite has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest


class Outcome(Enum):
    """How a case ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case. ``rows``: the fault scenarios that it shows; ``detail``: why it failed or is not supported."""

    name: str
    outcome: Outcome
    rows: list[int]
    detail: str = ""


@dataclass(slots=True)
class Results:
    """One cell of the matrix."""

    shell: str
    driver: str
    server: str
    """As asked for."""
    engine: str
    """As the server said."""
    version: str
    missing: list[str] = field(default_factory=list)
    """Capabilities that the driver declares as missing."""
    suite: str = ""
    """Changes with the set of the suite's cases: a digest of their names."""
    left_out: int = 0
    """Cases that would have disturbed somebody else's server."""
    cases: dict[str, CaseResult] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The cell, for people."""
        return f"conformance: {self.shell} x {self.driver} x {self.server} ({self.engine} {self.version})"

    def put(self, result: CaseResult) -> None:
        """Keep a result; a failure is never overwritten."""
        before = self.cases.get(result.name)
        if before is None or before.outcome is not Outcome.FAILED:
            self.cases[result.name] = result

    def count(self, outcome: Outcome) -> int:
        """How many cases ended so."""
        return Counter(case.outcome for case in self.cases.values())[outcome]

    @property
    def line(self) -> str:
        """``N passed, N failed, N not supported``."""
        return ", ".join(f"{self.count(outcome)} {outcome.value}" for outcome in Outcome)

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "shell": self.shell,
            "driver": self.driver,
            "server": self.server,
            "engine": self.engine,
            "version": self.version,
            "missing": self.missing,
            "suite": self.suite,
            "left_out": self.left_out,
            **{outcome.name.lower(): self.count(outcome) for outcome in Outcome},
            "cases": [
                {"name": c.name, "outcome": c.outcome.value, "rows": c.rows, "detail": c.detail}
                for c in self.cases.values()
            ],
        }


RESULTS = pytest.StashKey[Results]()
"""Where a pytest run of the suite keeps them."""
