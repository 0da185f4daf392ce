"""What the server has applied: the commands in its append-only file.

Valkey and Redis 7 keep the file in parts: a base, which is empty when the server started empty and has never
rewritten the file, and increments. Both are true here (``REWRITE_NEVER``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REWRITE_NEVER = ("--auto-aof-rewrite-percentage", "0")
"""Options of a server whose history is to be read."""

_INCREMENT = re.compile(r"\.(\d+)\.incr\.aof$")
_AUTOMATIC_ID = re.compile(rb"\d+-\d+")


class HistoryUnreadable(Exception):
    """The file is not what it should be; nothing can be said about what was applied."""


def applied_commands(directory: Path) -> Iterator[list[bytes]]:
    """Every write that the server of this directory has applied, in order. Raises HistoryUnreadable.

    Transactions count from their EXEC on: the server ignores, and cuts off, one that a crash has left open.
    """
    parts = [(int(found[1]), path) for path in directory.rglob("*.aof") if (found := _INCREMENT.search(path.name))]
    if not parts or min(parts)[0] != 1:
        raise HistoryUnreadable(f"the append-only file in {directory} does not begin at the beginning")
    opened: list[list[bytes]] | None = None
    for _, path in sorted(parts):
        for command in _commands(path.read_bytes()):
            name = command[0].upper()
            if name == b"MULTI":
                opened = []
            elif name == b"EXEC":
                yield from opened or ()
                opened = None
            elif opened is not None:
                opened.append(command)
            else:
                yield command


def additions(commands: Iterator[list[bytes]], stream: bytes) -> Counter[tuple[str, str]]:
    """How often each attempt at each task was added to a stream: by task id and the number of failures so far.

    A retry has a number of its own, so an honest history has no attempt twice.
    """
    found: Counter[tuple[str, str]] = Counter()
    for command in commands:
        if command[0].upper() == b"XADD" and command[1] == stream:
            start = next(at for at, word in enumerate(command) if at > 1 and _AUTOMATIC_ID.fullmatch(word)) + 1
            fields = dict(zip(command[start::2], command[start + 1 :: 2], strict=True))
            found[fields[b"id"].decode(), fields[b"retries"].decode()] += 1
    return found


def _commands(data: bytes) -> Iterator[list[bytes]]:
    """The commands in one part: arrays of bulk strings, as on the wire, and comments."""
    at = 0
    while at < len(data):
        count, at = _number(data, at, b"*#")
        if count < 0:
            continue
        words: list[bytes] = []
        for _ in range(count):
            size, at = _number(data, at, b"$")
            words.append(data[at : at + size])
            at += size + 2
        if at > len(data):
            return  # the last write was cut short by a crash, and never answered
        yield words


def _number(data: bytes, at: int, kinds: bytes) -> tuple[int, int]:
    """The number in the line at ``at``, and where the next one starts; -1 for a comment."""
    end = data.find(b"\r\n", at)
    kind = data[at : at + 1]
    if end < 0:
        return -1, len(data)
    if kind == b"#":
        return -1, end + 2
    if kind not in (b"*", b"$") or kind not in kinds or not data[at + 1 : end].isdigit():
        raise HistoryUnreadable(f"byte {at} of the append-only file begins no command: {data[at : at + 20]!r}")
    return int(data[at + 1 : end]), end + 2
