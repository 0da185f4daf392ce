"""The command: ``python -m streamfleet_conformance --shell sync --driver redis --server valkey-9.1``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from streamfleet_conformance.cells import cells
from streamfleet_conformance.results import RESULTS, Outcome, Results

CASES = Path(__file__).with_name("cases")
HANGING = 120
"""Seconds after which the stacks of a case that does not end are printed."""


class _Keeper:
    """Takes the results out of a pytest run."""

    results: Results | None = None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.results = session.config.stash.get(RESULTS, None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite. Returns 0 when nothing failed, 1 when something did, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    if options.list:
        for cell in cells():
            print("--shell {} --driver {} --server {}".format(*cell))
        return 0
    keeper = _Keeper()
    sys.path.insert(0, os.getcwd())
    code = pytest.main(_pytest_arguments(options), plugins=[keeper])
    results = keeper.results
    if results is None or (code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)):
        return 2
    if results.left_out:
        print(f"{results.left_out} left out: they would disturb a server that is not ours")
    print(results.line)
    return int(results.count(Outcome.FAILED) > 0 or code != pytest.ExitCode.OK)


def _pytest_arguments(options: argparse.Namespace) -> list[str]:
    """Nothing of the settings of the project around us must matter."""
    chosen = [
        f"--{name}={value}"
        for name in ("shell", "driver", "server", "harness")
        if (value := options.__dict__[name])
    ]
    if options.json:
        chosen.append(f"--results={Path(options.json).absolute()}")
    if options.keyword:
        chosen += ["-k", options.keyword]
    return [
        *("-p", "streamfleet_conformance.plugin", "-c", os.devnull, f"--rootdir={CASES.parent}"),
        *("-p", "no:cacheprovider", "--strict-markers", "--import-mode=importlib", "-W", "error"),
        *("-q", "--tb=short", "--no-header", f"-ofaulthandler_timeout={HANGING}"),
        *chosen,
        *options.pytest,
        str(CASES),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m streamfleet_conformance", description=__doc__)
    parser.add_argument("--shell", default="sync", help="sync (default), asyncio or trio")
    parser.add_argument("--driver", default="", help="a driver of streamfleet: memory (default), fake, redis, …")
    parser.add_argument("--server", default="", help="a server of the catalogue, for example valkey-9.1, or a URL")
    parser.add_argument("--harness", default="", help="somebody else's harness, as module:attribute")
    parser.add_argument("--json", default="", metavar="FILE", help="write the results to a file too")
    parser.add_argument("--list", action="store_true", help="list the cells that can be run here, and end")
    parser.add_argument("-k", dest="keyword", default="", help="run only cases that match, as in pytest")
    parser.add_argument("pytest", nargs="*", help="after --: more arguments for pytest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
