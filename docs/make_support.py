"""Writes the page on what works with what, from runs of the conformance suite.

python docs/make_support.py run         runs every cell that this machine can, then writes results and page
                                        (`make conformance`)
python docs/make_support.py             writes the page from the results that are kept (`make docs`)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parent / "reference"
RESULTS = REFERENCE / "support.json"
PAGE = REFERENCE / "support.md"
AT_ONCE = 6
"""A cell mostly waits."""

INTRODUCTION = """\
# What works with what

<!-- Made by `make docs` from support.json, which `make conformance` writes; do not edit. -->

Each cell is one run of the conformance suite: how many cases passed, and how many the driver declares as not
supported, with the reasons below. A cell with a failure would not have been written. `make test` runs some of the
cells and fails while this page is not of the cells, servers and cases that there are. The same runs anywhere the
package is installed:

    python -m streamfleet_conformance --shell sync --driver redis --server valkey-9.1

"""

Cell = dict[str, Any]


class CellFailed(Exception):
    """A cell has a case that failed, or its run ended before it had a result."""


def run_cell(cell: tuple[str, str, str], folder: Path) -> Cell:
    """The result of one cell, without its single cases. Raises CellFailed with what the run said."""
    shell, driver, server = cell
    path = folder / f"{shell}-{driver}-{server}.json"
    command = [sys.executable, "-m", "streamfleet_conformance", "--shell", shell, "--driver", driver]
    done = subprocess.run([*command, "--server", server, "--json", str(path)], capture_output=True, text=True)
    said = done.stdout.splitlines() or ["it said nothing"]
    print(f"{shell} {driver} {server}: {said[-1]}", flush=True)
    if done.returncode:
        raise CellFailed(f"{shell} {driver} {server} failed:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}")
    return summary(json.loads(path.read_text(encoding="utf-8")))


def run_cells(cells: Sequence[tuple[str, str, str]]) -> tuple[list[Cell], list[CellFailed]]:
    """All cells, whatever becomes of single ones: results and failures, in the order of the cells."""
    found: list[Cell] = []
    failed: list[CellFailed] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        for run in [pool.submit(run_cell, cell, Path(folder)) for cell in cells]:
            try:
                found.append(run.result())
            except CellFailed as failure:
                failed.append(failure)
    return found, failed


def summary(results: Cell) -> Cell:
    """What the page says of a cell."""
    names = ("shell", "driver", "server", "engine", "version", "missing", "suite", "passed", "not_supported")
    return {name: results[name] for name in names}


def page(cells: list[Cell]) -> str:
    """The page."""
    servers = list(dict.fromkeys(cell["server"] for cell in cells))
    by_place = {(cell["shell"], cell["driver"], cell["server"]): cell for cell in cells}
    lines = ["| shell | driver | " + " | ".join(servers) + " |", "| --- | --- |" + " --- |" * len(servers)]
    for shell, driver in dict.fromkeys((cell["shell"], cell["driver"]) for cell in cells):
        row = [_text(by_place.get((shell, driver, server))) for server in servers]
        lines.append(f"| {shell} | {driver} | " + " | ".join(row) + " |")
    lines += ["", "## Versions", ""]
    versions = dict.fromkeys((cell["server"], f"{cell['engine']} {cell['version']}") for cell in cells)
    lines += [f"- {server}: {version}" for server, version in versions]
    lines += ["", "## Declared as missing", ""]
    missing = {(cell["driver"], cell["server"]): cell["missing"] for cell in cells}
    lines += [
        f"- {driver} on {server}: {', '.join(names) or 'nothing'}" for (driver, server), names in missing.items()
    ]
    return INTRODUCTION + "\n".join(lines) + "\n"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    unsupported = cell["not_supported"]
    return f"{cell['passed']} passed" + (f", {unsupported} not supported" if unsupported else "")


def main() -> int:
    """Exit code 1 when a cell fails: all that failed are told of at the end, and the kept results stay."""
    if sys.argv[1:] == ["run"]:
        from streamfleet_conformance.cells import cells

        found, failed = run_cells(cells())
        if failed:
            print(
                "", *failed, f"{len(failed)} of {len(found) + len(failed)} cells failed", sep="\n", file=sys.stderr
            )
            return 1
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
