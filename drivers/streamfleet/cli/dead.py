"""``streamfleet dead``: look at the tasks that failed for good, put them back, or delete them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from streamfleet.cli.arguments import add_url, add_verbose, server_url
from streamfleet.cli.dead_letters import DeadLetter, letters, purge, replay
from streamfleet.cli.session import Session, session
from streamfleet_core.errors import UsageError
from streamfleet_core.keys import QueueKeys, queue_keys
from streamfleet_core.wire import F_LAST_ERROR, F_REASON, F_TRACEBACK

Act = Callable[[argparse.Namespace, Session, QueueKeys, list[DeadLetter]], int]


def add_to(commands: Any) -> None:
    """Add this command to the parser's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "dead",
        help="tasks that failed for good: list, show, replay, purge",
        description="Look at the dead letters of a queue, put them back into it, or delete them.",
    )
    acts = parser.add_subparsers(title="what to do", metavar="ACT", required=True)
    for name, act, help_text in (
        ("list", _list, "a line for each, oldest first"),
        ("show", _show, "all there is to know, with payload and traceback"),
        ("replay", _replay, "put them back into the queue, with all their attempts"),
        ("purge", _purge, "delete them"),
    ):
        one = acts.add_parser(name, help=help_text, description=f"Dead letters: {help_text}.")
        one.add_argument("queue", metavar="QUEUE")
        one.add_argument("--id", action="append", default=[], help="only this entry or task (may be repeated)")
        if name in ("list", "show"):
            one.add_argument("--json", action="store_true", help="as JSON")
        else:
            one.add_argument("--dry-run", action="store_true", help="only tell what would be done")
            one.add_argument("--yes", action="store_true", help="do not ask")
        add_url(one)
        add_verbose(one)
        one.set_defaults(command=command, act=act)


def command(arguments: argparse.Namespace) -> int:
    """Run it. Raises UsageError, ConnectionFailure, and a ServerRefused."""
    keys = queue_keys(arguments.queue)
    with session(server_url(arguments.url).url) as opened:
        chosen = list(letters(opened, keys, arguments.id))
        known = {name for letter in chosen for name in (letter.entry_id.decode(), letter.text(b"id"))}
        missing = [name for name in arguments.id if name not in known]
        if missing:
            raise UsageError(f"queue {keys.queue!r} has no dead letter {', '.join(missing)}")
        act: Act = arguments.act
        return act(arguments, opened, keys, chosen)


def _list(arguments: argparse.Namespace, session: Session, keys: QueueKeys, chosen: list[DeadLetter]) -> int:
    if arguments.json:
        print(json.dumps([_facts(letter) for letter in chosen], indent=2))
        return 0
    for letter in chosen:
        print("  ".join((letter.entry_id.decode(), _when(letter), letter.text(b"id"), _why(letter))))
    print(f"{_number(chosen)} in queue {keys.queue!r}", file=sys.stderr)
    return 0


def _show(arguments: argparse.Namespace, session: Session, keys: QueueKeys, chosen: list[DeadLetter]) -> int:
    if arguments.json:
        print(
            json.dumps([_facts(letter) | {"traceback": letter.text(F_TRACEBACK)} for letter in chosen], indent=2)
        )
        return 0
    for letter in chosen:
        print(f"entry       {letter.entry_id.decode()}")
        print(f"died        {_when(letter)}")
        for name in letter.values:
            if name != F_TRACEBACK:
                print(f"{name.decode(errors='backslashreplace'):<11} {letter.text(name)}")
        print(letter.text(F_TRACEBACK))
    return 0


def _replay(arguments: argparse.Namespace, session: Session, keys: QueueKeys, chosen: list[DeadLetter]) -> int:
    if not _agreed(arguments, f"put {_number(chosen)} back into queue {keys.queue!r}", chosen):
        return 0
    done = sum(replay(session, keys, letter) for letter in chosen)
    print(f"{_number(chosen[:done])} put back into queue {keys.queue!r}")
    return 0


def _purge(arguments: argparse.Namespace, session: Session, keys: QueueKeys, chosen: list[DeadLetter]) -> int:
    if not _agreed(arguments, f"delete {_number(chosen)} of queue {keys.queue!r} for good", chosen):
        return 0
    done = purge(session, keys, chosen)
    print(f"{_number(chosen[:done])} of queue {keys.queue!r} deleted")
    return 0


def _agreed(arguments: argparse.Namespace, what: str, chosen: list[DeadLetter]) -> bool:
    """Is it to be done? Raises UsageError when nobody can be asked."""
    if arguments.dry_run or not chosen:
        print(f"would {what}")
        return False
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"to {what}, add --yes")
    return input(f"{what}? [y/N] ").strip().lower() in ("y", "yes")


def _facts(letter: DeadLetter) -> dict[str, object]:
    return {
        "entry": letter.entry_id.decode(),
        "task": letter.text(b"id"),
        "died_ms": letter.died_ms,
        "reason": letter.text(F_REASON),
        "last_error": letter.text(F_LAST_ERROR),
        "retries": letter.text(b"retries"),
        "data": letter.text(b"data"),
    }


def _why(letter: DeadLetter) -> str:
    reason, error = letter.text(F_REASON), letter.text(F_LAST_ERROR).partition("\n")[0]
    return f"{reason}: {error}" if error else reason


def _when(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.died_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _number(chosen: list[DeadLetter]) -> str:
    return "1 dead letter" if len(chosen) == 1 else f"{len(chosen):,} dead letters"
