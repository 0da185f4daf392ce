"""What is left on the server once everybody has gone: nothing but what was declared.

Clients that were killed leave a receiver, which workers remove after the client's time-out, and a marker, which
has a time to live. For the former a last worker with a short patience is started at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from campaign.logfile import lines_of
from campaign.workload import QUEUES
from streamfleet_core.connection import Command, Reply
from streamfleet_core.keys import GROUP, queue_keys

CLOCK = "campaign:clock"
"""Our own stream: its entries tell the time in the append-only file."""
MARKER, RECEIVER = b":producer:", b"streamfleet:receiver:"
MARKER_TTL = 86_400_000
"""Milliseconds."""

Ask = Callable[..., list[Reply]]


def killed_clients(logs: Iterable[Path]) -> set[str]:
    """The ids of those that did not end in order."""
    killed: set[str] = set()
    for path in logs:
        words = {line[0]: line[1:] for line in lines_of(path) if line[0] in ("client", "finished")}
        if "client" in words and "finished" not in words:
            killed.add(words["client"][0])
    return killed


def left_behind(ask: Ask, killed: set[str]) -> list[str]:
    """Keys that nobody declared, and entries that are pending though the streams are empty."""
    keys = [queue_keys(queue) for queue in QUEUES]
    declared = {CLOCK.encode(), *(name for key in keys for name in (key.stream, key.fence, key.moves, key.dead))}
    found = _list(ask(("KEYS", "*")), 0)
    strays = sorted(name for name in found if isinstance(name, bytes) and name not in declared)
    lifetimes = ask(*(("PTTL", key) for key in strays)) if strays else []
    left = [
        f"{stray.decode()}, {ttl!r} ms to live"
        for stray, ttl in zip(strays, lifetimes, strict=True)
        if not _may_stay(stray, ttl, killed)
    ]
    for key, pending in zip(keys, ask(*(("XPENDING", key.stream, GROUP) for key in keys)), strict=True):
        if not isinstance(pending, list) or pending[0] != 0:
            left.append(f"{key.stream.decode()}: pending {pending!r}")
    return left


def _may_stay(key: bytes, ttl: Reply, killed: set[str]) -> bool:
    """A marker of a client that was killed, within its time to live."""
    _, marker, client = key.partition(MARKER)
    owned = any(client.decode().endswith(unique) for unique in killed)
    return bool(marker) and owned and isinstance(ttl, int) and 0 < ttl <= MARKER_TTL


def _list(replies: list[Reply], number: int) -> list[Reply]:
    reply: Reply = replies[number] if replies else None
    return reply if isinstance(reply, list) else []


def collected(ask: Ask) -> bool:
    """Has all gone that workers are to remove?"""
    receivers = _list(ask(("KEYS", RECEIVER + b"*")), 0)
    return not receivers and ask(*(("EXISTS", queue_keys(queue).receivers) for queue in QUEUES)) == [0] * len(
        QUEUES
    )


def clock() -> Command:
    """Leaves the server's time in its append-only file."""
    return ("XADD", CLOCK, "MAXLEN", 1, "*", "t", 1)
