"""Writes the page on faults: each scenario, what becomes of it, and the tests that show it.

python docs/make_faults.py docs/explanation/faults.md      (or `make docs`)

The tests are found by their mark ``fault_row`` (``row`` in the conformance suite), without running anything.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("tests", "conformance/streamfleet_conformance/cases")
MARKS = ("fault_row", "row")

sys.path.insert(0, str(Path(__file__).parent))
from fault_rows import INVARIANTS, NO_TICKS, SECTIONS, Row  # noqa: E402

INTRODUCTION = """\
# What happens when things go wrong

<!-- Made by `make docs` from docs/fault_rows.py and the marks of the tests; do not edit. -->

Each row is one way in which a server, a network, a process or a person can spoil a task, what becomes of the
task, and the tests that show it. The promise behind all rows: within the history of one primary server each
accepted task reaches exactly one end, and runs at least once on the way to a completion.

Tests under `conformance/` run for each driver and each server that is installed. The tests under
`tests/faults/` work with processes that are killed and frozen for real; where they count tasks, they read the
server's append-only file instead of asking the library. A row without a test says why.
"""

HEAD = """
| | scenario | what happens | shown by |
| --: | --- | --- | --- |
"""

CHECKED = """
## What must always hold

The chaos campaign judges these from the server's append-only file and from logs that clients and handlers
write themselves; its judge is tested with histories that break each rule. The simulator in
`tests/simulation/` watches a fleet on a virtual clock; [Proof](proof.md) says at which moments. The tests named
here are where to look first.

| | invariant | where to look |
| --- | --- | --- |
"""


def tests_in(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The test functions of a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def test_files() -> list[Path]:
    """All files with tests, in order."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("test_*.py"))


def existing() -> set[str]:
    """The id of every test, without its parameters."""
    return {_id(path, test.name) for path in test_files() for test in tests_in(path)}


def marked() -> dict[int, list[str]]:
    """Per row the ids of the tests that carry its mark."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in test_files():
        for test in tests_in(path):
            for number in _rows(test):
                found[number].append(_id(path, test.name))
    return found


def _id(path: Path, name: str) -> str:
    return f"{path.relative_to(ROOT).as_posix()}::{name}"


def _rows(test: ast.FunctionDef | ast.AsyncFunctionDef) -> list[int]:
    numbers: list[int] = []
    for decorator in test.decorator_list:
        function: Any = decorator.func if isinstance(decorator, ast.Call) else None
        if isinstance(decorator, ast.Call) and getattr(function, "attr", getattr(function, "id", "")) in MARKS:
            numbers += [ast.literal_eval(argument) for argument in decorator.args]
    return numbers


def shown_by(row: Row, marks: dict[int, list[str]]) -> list[str]:
    """The tests of a row: those that name it, and those that it names."""
    return list(dict.fromkeys([*marks.get(row.number, []), *row.tests]))


def page() -> str:
    """The whole page."""
    marks = marked()
    parts = [INTRODUCTION]
    for title, rows in SECTIONS.items():
        parts.append(f"\n## {title}\n{HEAD}")
        for row in rows:
            tests = [f"`{test}`" for test in shown_by(row, marks)]
            where = "<br>".join([*tests, *([row.reason] if row.reason else [])])
            parts.append(f"| {row.number} | {row.scenario} | {row.outcome} | {where} |\n")
    parts.append(CHECKED)
    for name, invariant, tests_of in INVARIANTS:
        where = "<br>".join(f"`{test}`" for test in tests_of) or NO_TICKS
        parts.append(f"| {name} | {invariant} | {where} |\n")
    return "".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
