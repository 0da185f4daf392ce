"""``streamfleet queues``: what is in them."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

from streamfleet.cli.arguments import add_url, add_verbose, server_url
from streamfleet.cli.found import chosen_queues
from streamfleet.cli.session import Session, session
from streamfleet.cli.table import age, lines
from streamfleet_core.connection import Command, Reply, ServerError
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.replies import ErrorKind, classify, parse_entries, parse_flat, parse_time, refusal

TITLES = ("queue", "waiting", "oldest", "in flight", "scheduled", "dead", "workers")


@dataclass(frozen=True, slots=True)
class QueueReport:
    """One queue at one moment."""

    queue: str
    waiting: int
    """Tasks that no worker has yet."""
    oldest_seconds: float | None
    """How long the oldest of these has been in the queue; None without any."""
    in_flight: int
    """Tasks that workers have."""
    scheduled: int
    dead: int
    workers: int
    """Consumers that have read from the queue and have not left."""


def add_to(commands: Any) -> None:
    """Add this command to the parser's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "queues",
        help="what is in the queues",
        description="Tell what is in the queues: all of the server's, or those named. Changes nothing.",
    )
    parser.add_argument("queues", nargs="*", metavar="QUEUE")
    add_url(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_verbose(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Run it. Raises InvalidURL, InvalidQueueName, ConnectionFailure, and a ServerRefused."""
    with session(server_url(arguments.url).url) as opened:
        reports = [report(opened, queue) for queue in chosen_queues(opened, arguments.queues)]
    if arguments.json:
        print(json.dumps([asdict(each) for each in reports], indent=2))
    elif not reports:
        print("no queues")
    else:
        print("\n".join(lines(TITLES, [_row(each) for each in reports])))
    return 0


def report(session: Session, queue: str) -> QueueReport:
    """Look at one queue. Raises ConnectionFailure, and a ServerRefused."""
    keys = queue_keys(queue)
    time, length, scheduled, dead = session.ask_all(
        [("TIME",), ("XLEN", keys.stream), ("ZCARD", keys.schedule), ("XLEN", keys.dead)]
    )
    group = _group(session, keys.stream)
    pending, consumers = _number(group.get(b"pending", 0)), _number(group.get(b"consumers", 0))
    delivered = group.get(b"last-delivered-id")
    after = b"(" + delivered if isinstance(delivered, bytes) else b"-"
    first = parse_entries(session.ask("XRANGE", keys.stream, after, "+", "COUNT", 1))
    oldest = (parse_time(time) - int(first[0][0].partition(b"-")[0])) / 1000 if first else None
    return QueueReport(
        queue=queue,
        # Entries that somebody has deleted by hand may still be pending, and nothing is fewer than none.
        waiting=max(0, _number(length) - pending) if first else 0,
        oldest_seconds=None if oldest is None else max(0.0, oldest),
        in_flight=pending,
        scheduled=_number(scheduled),
        dead=_number(dead),
        workers=consumers,
    )


def _group(session: Session, stream: bytes) -> dict[bytes, Reply]:
    """What the server says of the workers' consumer group; nothing where no worker has been yet."""
    question: Command = ("XINFO", "GROUPS", stream)
    reply = session.try_all([question])[0]
    if isinstance(reply, ServerError):
        if classify(reply) is ErrorKind.NO_GROUP:
            return {}
        raise refusal(reply, question, session.identity.user)
    groups = [parse_flat(row) for row in reply] if isinstance(reply, list) else []
    return next((group for group in groups if group.get(b"name") == GROUP), {})


def _number(reply: Reply) -> int:
    return reply if isinstance(reply, int) else 0


def _row(each: QueueReport) -> tuple[str, ...]:
    numbers = (each.in_flight, each.scheduled, each.dead, each.workers)
    return (each.queue, f"{each.waiting:,}", age(each.oldest_seconds), *(f"{number:,}" for number in numbers))
