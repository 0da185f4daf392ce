"""Arguments in, exit code out."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from importlib.metadata import version

from streamfleet.bench import command as bench
from streamfleet.cli import dead, demo, doctor, queues, run
from streamfleet.embedded import EmbeddedServerFailed
from streamfleet_core.errors import ConnectionFailure, MissingExtra, ServerRefused, UsageError


class ExitCode(IntEnum):
    """What the command tells its caller."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_SERVER = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (those of the process unless told). Returns its exit code.

    Raises SystemExit as argparse does: for ``--help``, ``--version`` and arguments it does not know.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except KeyboardInterrupt:
        return _failed("interrupted", ExitCode.FAILED, arguments)
    except (UsageError, MissingExtra) as error:
        return _failed(str(error), ExitCode.USAGE, arguments)
    except (ServerRefused, ConnectionFailure, EmbeddedServerFailed) as error:
        return _failed(str(error), ExitCode.NO_SERVER, arguments)
    except Exception as error:
        return _failed(f"{type(error).__name__}: {error}", ExitCode.FAILED, arguments)


def _failed(text: str, code: ExitCode, arguments: argparse.Namespace) -> int:
    if arguments.verbose:
        traceback.print_exc()
    print(f"streamfleet: {text}", file=sys.stderr)
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamfleet",
        description="A work queue on Redis Streams and Valkey Streams.",
        epilog="Exit codes: 0 well, 1 the job failed, 2 wrong usage, 3 server unreachable or refusing.",
    )
    parser.add_argument("--version", action="version", version=f"streamfleet {version('streamfleet')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (run, demo, doctor, queues, dead, bench):
        module.add_to(commands)
    return parser
