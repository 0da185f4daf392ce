"""What a worker asks the server once per connection, before it works (protocol, sections 4 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamfleet_core import features
from streamfleet_core.connection import Command, Reply, ServerError
from streamfleet_core.errors import UnsupportedServer, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import QueueKeys
from streamfleet_core.link import Link
from streamfleet_core.procedure import TRIAL, Steps, trouble
from streamfleet_core.replies import abort_cause, parse_time
from streamfleet_core.state import QueueState

if TYPE_CHECKING:
    from streamfleet_core.worker import WorkerMachine


def expected_types(keys: QueueKeys) -> list[tuple[bytes, str, str]]:
    """Each key of a queue, the type that it must have when it exists, and what it is for."""
    return [
        (keys.stream, "stream", "the queue"),
        (keys.dead, "stream", "dead letters"),
        (keys.schedule, "zset", "the schedule"),
        (keys.scheduled, "hash", "scheduled tasks"),
        (keys.receivers, "zset", "heartbeats of clients"),
        (keys.fence, "string", "the fence"),
        (keys.moves, "string", "the token of moves"),
    ]


def check_server(machine: WorkerMachine, link: Link, queues: list[QueueState]) -> Steps:
    """Read the server's clock and features, try a transaction, refuse wrong-typed keys, warn of eviction.

    MULTI does not roll back: a wrong-typed key found in the middle of a transaction would cost a task.
    """
    keys = [entry for queue in queues for entry in expected_types(queue.keys)]
    types: list[Command] = [("TYPE", key) for key, _, _ in keys]
    answer = yield [("TIME",), *types, ("INFO", "memory"), features.query(), *TRIAL]
    time, *found_types, info, commands, begun, done = answer.replies
    for command, reply in zip(TRIAL, (begun, done), strict=True):
        if isinstance(reply, ServerError):
            trouble(link, abort_cause(reply) or reply, command, answer.now)
            return
    if not isinstance(time, ServerError):
        machine.clock.observed(parse_time(time), answer.sent, answer.now)
    for (key, expected, purpose), reply in zip(keys, found_types, strict=True):
        found = reply.decode() if isinstance(reply, bytes) else "none"
        if found not in (expected, "none"):
            name = key.decode()
            link.refuse(
                WrongKeyType(
                    f"key {name!r} ({purpose}) holds a {found}, but must be a {expected}: "
                    f"rename or delete it (RENAME {name} …), then start again"
                )
            )
            return
    missing, machine.features = features.parse(commands)
    if missing:
        link.refuse(
            UnsupportedServer(
                f"the server lacks {', '.join(missing)}: streamfleet needs Redis 6.2 or later, or any Valkey"
            )
        )
        return
    policy = _maxmemory_policy(info)
    if policy not in ("", "noeviction"):
        text = (
            f"the server evicts keys when it is full (maxmemory-policy {policy}): tasks can be lost; "
            "set it to noeviction"
        )
        machine.emit(EventKind.UNSAFE_SERVER, text, policy=policy)


def _maxmemory_policy(info: Reply) -> str:
    text = info.decode(errors="replace") if isinstance(info, bytes) else ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "maxmemory_policy":
            return value.strip()
    return ""
