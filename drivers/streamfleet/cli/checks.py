"""What `streamfleet doctor` looks at, one check each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from streamfleet.cli.needs import direct, transactional
from streamfleet.cli.session import Session
from streamfleet_core.connection import Capability, Command, Reply, ServerError
from streamfleet_core.keys import QueueKeys, queue_keys
from streamfleet_core.replies import parse_time, refusal
from streamfleet_core.startup import expected_types

OLDEST = {"redis": (6, 2), "valkey": (7, 2)}
SKEW = 1.0
"""Seconds between the clocks that are worth a word."""
NEARLY_FULL = 0.9
FRESH_QUEUE = "streamfleet-doctor"
"""Stands for any queue where none is named; nothing is written to it."""


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found."""

    level: Level
    subject: str
    text: str
    mend: str = ""
    """What to do about it; empty when all is well."""


Check = Callable[[Session, list[QueueKeys]], Iterator[Finding]]


def examine(session: Session, queues: list[str]) -> Iterator[Finding]:
    """Make all checks. Raises ConnectionFailure, InvalidQueueName."""
    keys = [queue_keys(queue) for queue in queues]
    for check in (_server, _commands, _memory, _persistence, _clients, _clock, _types):
        yield from check(session, keys)


def _server(session: Session, queues: list[QueueKeys]) -> Iterator[Finding]:
    who = session.identity
    text = f"{who.server} {who.version}, {who.mode}, {who.role}, as user {who.user!r}"
    numbers = tuple(int(part) for part in who.version.split(".")[:2] if part.isdigit())
    oldest = OLDEST.get(who.server)
    if who.role != "master":
        yield Finding(Level.FAIL, "server", text, "a replica takes no writes: use its master's address")
    elif oldest and numbers < oldest:
        least = ".".join(map(str, oldest))
        yield Finding(Level.FAIL, "server", text, f"too old: {who.server} {least} or newer is needed")
    elif who.mode == "cluster":
        yield Finding(Level.WARN, "server", text, "Cluster is not served yet: other nodes' keys are out of reach")
    else:
        yield Finding(Level.OK, "server", text)


def _commands(session: Session, queues: list[QueueKeys]) -> Iterator[Finding]:
    """Queue everything that is needed, and hang up: that discards it."""
    user = session.identity.user
    asked: set[str] = set()
    refused: dict[str, Finding] = {}

    def judge(commands: list[Command], replies: list[Reply]) -> None:
        asked.update(" ".join(_name(command)) for command in commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, ServerError) and "without MULTI" not in reply.message:
                why = str(refusal(reply, command, user))
                refused.setdefault(why, Finding(Level.FAIL, "commands", *_split(why)))

    for keys in queues or [queue_keys(FRESH_QUEUE)]:
        commands = direct(keys)
        judge(commands, session.try_all(commands))
        with session.another() as probe:
            # Without a transaction, what follows would be done, not judged.
            if probe.try_all([("MULTI",)]) == [b"OK"]:
                commands = transactional(keys)
                judge(commands, probe.try_all(commands))
    if refused:
        yield from refused.values()
    else:
        yield Finding(
            Level.OK, "commands", f"all {len(asked)} that are needed exist, and user {user!r} may run them"
        )


def _name(command: Command) -> list[str]:
    subcommand = command[0] in ("XGROUP", "XINFO")
    return [str(word) for word in command[: 2 if subcommand else 1]]


def _split(why: str) -> tuple[str, str]:
    """An error for people: what is wrong, and what to do."""
    for mark in ("; ", ": ", ". "):
        what, found, mend = why.partition(mark)
        if found:
            return what, mend
    return why, "see the server's documentation"


def _memory(session: Session, queues: list[QueueKeys]) -> Iterator[Finding]:
    if Capability.SERVER_INFO in session.identity.missing:
        return
    info = _info(session, "memory")
    if info is None:
        yield _untold("memory", session)
        return
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        mend = "a full server would delete tasks: CONFIG SET maxmemory-policy noeviction, and in its configuration"
        yield Finding(Level.WARN, "eviction", f"maxmemory-policy {policy}", mend)
    else:
        yield Finding(Level.OK, "eviction", "maxmemory-policy noeviction")
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    text = f"{_mib(used)} used" + (f" of {_mib(most)}" if most else ", no limit set")
    full = most and used > NEARLY_FULL * most
    mend = "a full server refuses tasks: raise maxmemory, or find what fills it" if full else ""
    yield Finding(Level.WARN if full else Level.OK, "memory", text, mend)


def _persistence(session: Session, queues: list[QueueKeys]) -> Iterator[Finding]:
    if Capability.PERSISTENCE in session.identity.missing:
        mend = "use a Redis or Valkey server for what must last"
        yield Finding(Level.WARN, "durability", "nothing is kept when the process ends", mend)
        return
    info = _info(session, "persistence")
    if info is None:
        yield _untold("durability", session)
        return
    failing = [name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if info.get(name) == "err"]
    if failing:
        text = f"the server cannot write its data ({', '.join(failing)})"
        yield Finding(Level.FAIL, "durability", text, "look at the server's log and disk; it may refuse tasks")
    elif info.get("aof_enabled") != "1":
        mend = "a restart loses tasks: CONFIG SET appendonly yes, and in its configuration"
        yield Finding(Level.WARN, "durability", "no append-only file", mend)
    else:
        yield _fsync(session.try_all([("CONFIG", "GET", "appendfsync")])[0])


def _fsync(reply: Reply) -> Finding:
    match reply:
        case [_, b"always"]:
            return Finding(Level.OK, "durability", "append-only file, fsync always: what is accepted is on disk")
        case [_, b"everysec"]:
            text = "append-only file, fsync every second: a power cut can take the last second"
            return Finding(Level.OK, "durability", text)
        case [_, bytes() as policy]:
            mend = "a power cut can take many tasks: CONFIG SET appendfsync everysec, or always"
            return Finding(Level.WARN, "durability", f"append-only file, fsync {policy.decode()}", mend)
        case _:
            return Finding(Level.OK, "durability", "append-only file (how often it is synced may not be asked)")


def _clients(session: Session, queues: list[QueueKeys]) -> Iterator[Finding]:
    info = _info(session, "clients")
    if info is None or "maxclients" not in info:
        return
    now, most = int(info["connected_clients"]), int(info["maxclients"])
    full = now > NEARLY_FULL * most
    mend = "the server will turn workers away: raise maxclients" if full else ""
    yield Finding(Level.WARN if full else Level.OK, "clients", f"{now:,} connected of {most:,} allowed", mend)


def _clock(session: Session, queues: list[QueueKeys]) -> Iterator[Finding]:
    before = time.time()
    reply = session.try_all([("TIME",)])[0]
    if isinstance(reply, ServerError):
        return  # the check of commands has told
    skew = parse_time(reply) / 1000 - (before + time.time()) / 2
    if abs(skew) > SKEW:
        text = f"the server's is {abs(skew):,.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
        yield Finding(Level.WARN, "clock", text, "due times go by the server's clock: set both by NTP")
    else:
        yield Finding(Level.OK, "clock", f"within {SKEW:g} s of this machine's")


def _types(session: Session, queues: list[QueueKeys]) -> Iterator[Finding]:
    for keys in queues:
        wrong = 0
        expected = expected_types(keys)
        replies = session.try_all([("TYPE", key) for key, _, _ in expected])
        for (key, kind, purpose), reply in zip(expected, replies, strict=True):
            found = reply.decode() if isinstance(reply, bytes) else "none"
            if found not in (kind, "none"):
                wrong += 1
                name = key.decode(errors="backslashreplace")
                text = f"{purpose}: key {name!r} holds a {found}, but must be a {kind}"
                yield Finding(Level.FAIL, f"queue {keys.queue}", text, f"rename or delete it: RENAME {name} …")
        if not wrong:
            yield Finding(Level.OK, f"queue {keys.queue}", "its keys hold what they should")


def _info(session: Session, section: str) -> dict[str, str] | None:
    """A section of INFO; None when the server does not tell."""
    reply = session.try_all([("INFO", section)])[0]
    if not isinstance(reply, bytes):
        return None
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _untold(subject: str, session: Session) -> Finding:
    return Finding(
        Level.WARN, subject, "the server does not tell", f"allow INFO to user {session.identity.user!r}"
    )


def _mib(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"
