"""``streamfleet bench``: run every scenario, print the table."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamfleet.bench.machine import description
from streamfleet.bench.scenarios import QUICK, Bench, Figures, Sizes, idle
from streamfleet.bench.table import FLOOR, Line, lines, render
from streamfleet.cli.arguments import add_verbose
from streamfleet.drivers import Shell, driver_from_url
from streamfleet.embedded import EmbeddedServer
from streamfleet_core.errors import MissingExtra

SHELLS: Mapping[str, Shell] = {"threads": "sync", "asyncio": "asyncio", "trio": "trio"}
"""The contenders that can be chosen, and the shells that they are of."""
IDLE = "threads"
"""The contender that the figures of idle processes are of."""


def add_to(commands: Any) -> None:
    """Add this command to a parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure speed and cost against the least that is possible",
        description="Run each scenario with each contender in turn on an embedded server without persistence, and "
        "compare with the floor: a bare socket and hiredis without safeguards.",
    )
    add_arguments(parser)
    add_verbose(parser)
    parser.set_defaults(command=command)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--quick", action="store_true", help="one round of small sizes; only a first impression")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often to repeat everything")
    parser.add_argument(
        "--shells",
        type=_shells,
        metavar="NAMES",
        default=tuple(SHELLS),
        help=f"some of {','.join(SHELLS)} (default: all that are installed)",
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="only scenarios with TEXT in their names")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object on stdout")
    parser.add_argument("--check", action="store_true", help="exit with 1 when what must be reached is missed")


def _shells(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in SHELLS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SHELLS)}")
    return names


def command(arguments: argparse.Namespace, sizes: Sizes | None = None) -> int:
    """Run it. Returns 0; with ``--check`` 1 when a minimum was missed.

    Shells whose extras are not installed are left out; the header says so.

    Raises MissingExtra when no shell is left, EmbeddedServerFailed, and AgentFailed when a contender fails.
    """
    chosen = sizes or (QUICK if arguments.quick else Sizes())
    if arguments.rounds:
        chosen = replace(chosen, rounds=arguments.rounds)
    started = time.monotonic()
    with EmbeddedServer(appendonly=False) as server:
        shells, missing = installed(arguments.shells, server.url)
        header = description(server, _command_line(sys.argv)) | missing
        if not arguments.json:
            print("\n".join(f"{name:<9} {text}" for name, text in header.items()) + "\n", flush=True)
        results = measure(server, chosen, arguments.only, shells)
    if IDLE in shells and (not arguments.only or "idle" in arguments.only):
        results[IDLE][0] |= idle(chosen.idle_seconds)
    table = lines(results)
    seconds = time.monotonic() - started
    if arguments.json:
        print(json.dumps({**header, "seconds": seconds, "rounds": chosen.rounds, "rows": _as_dicts(table)}))
    else:
        print("\n".join(render(table)))
        print(f"\n{seconds:.0f} s, {chosen.rounds} rounds, medians")
    return 1 if arguments.check and any(line.failed for line in table) else 0


def _command_line(argv: list[str]) -> str:
    """What to type to get the same table, however this process was started."""
    options = argv[2:] if argv[1:2] == ["bench"] else argv[1:]
    return shlex.join(["streamfleet", "bench", *options])


def installed(shells: Sequence[str], url: str) -> tuple[list[str], dict[str, str]]:
    """Those of ``shells`` whose extras are installed, and for each of the others a line that says what it lacks.

    Raises MissingExtra when none is.
    """
    found: list[str] = []
    missing: dict[str, str] = {}
    for name in shells:
        try:
            driver_from_url(url, shell=SHELLS[name])
        except MissingExtra as error:
            missing[name] = f"left out: {error}"
        else:
            found.append(name)
    if not found:
        raise MissingExtra("; ".join(f"{name} {text}" for name, text in missing.items()))
    return found, missing


def measure(
    server: EmbeddedServer, sizes: Sizes, only: str = "", shells: Sequence[str] = tuple(SHELLS)
) -> dict[str, list[Figures]]:
    """All rounds of the scenarios with ``only`` in their names: figures by contender, a dict for each round."""
    bench = Bench(server, sizes)
    results: dict[str, list[Figures]] = {contender: [] for contender in (FLOOR, *shells)}
    for number in range(1, sizes.rounds + 1):
        for rounds in results.values():
            rounds.append({})
        for name, scenario in bench.scenarios():
            if only not in name:
                continue
            _progress(f"round {number} of {sizes.rounds}: {name}")
            for contender, rounds in results.items():
                rounds[-1] |= scenario(contender)
    _progress("")
    bench.close()
    return results


def _as_dicts(table: list[Line]) -> list[dict[str, Any]]:
    return [line.as_dict() for line in table]


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<60}" if text else "\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
