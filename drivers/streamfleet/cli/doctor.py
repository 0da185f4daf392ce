"""``streamfleet doctor``: will it work here, and what to mend."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from streamfleet.cli.arguments import add_url, add_verbose, server_url
from streamfleet.cli.checks import Finding, Level, examine
from streamfleet.cli.session import session
from streamfleet_core.errors import ConnectionFailure, ServerRefused
from streamfleet_core.urls import parse_url

NO_SERVER = 3


def add_to(commands: Any) -> None:
    """Add this command to the parser's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="check a server",
        description="Check a server: each line is ok, warn or fail, with what to do. Changes nothing. Exit code 1 "
        "when a line says fail, 3 when the server cannot be reached.",
    )
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help="queues whose keys and rights to check, too")
    add_url(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_verbose(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Run it. Returns 0, 1 when something fails, or 3 without a server. Raises InvalidURL, InvalidQueueName."""
    source = server_url(arguments.url)
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        if not arguments.json:
            _show(finding)

    found(Finding(Level.OK, "url", f"{parse_url(source.url).safe()} (from {source.origin})"))
    connected = True
    try:
        with session(source.url) as opened:
            for finding in examine(opened, arguments.queues):
                found(finding)
    except (ConnectionFailure, ServerRefused) as error:
        connected = False
        mend = "start it, or name another by --url or $STREAMFLEET_URL"
        found(Finding(Level.FAIL, "server", str(error), mend if isinstance(error, ConnectionFailure) else ""))
    if arguments.json:
        print(json.dumps([asdict(finding) | {"level": finding.level.value} for finding in findings], indent=2))
    if not connected:
        return NO_SERVER
    return int(any(finding.level is Level.FAIL for finding in findings))


def _show(finding: Finding) -> None:
    print(f"{finding.level.value:<5} {finding.subject:<12} {finding.text}")
    if finding.mend:
        print(f"{'':<5} {'':<12} → {finding.mend}")
