"""What really happened to each task, read from the server's append-only file.

The file holds every write that the server applied, in order, with transactions intact. So the history of a task
is known without asking the library: each entry that it lived in, how each entry ended, and what was told to its
client.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hiredis

QUEUE, RECEIVER, DEAD, SCHEDULED, PRODUCER = (
    b"streamfleet:",
    b"streamfleet:receiver:",
    b"}:dead",
    b"}:scheduled",
    b"}:producer:",
)
Command = list[bytes]


def commands_of(directory: Path) -> Iterator[Command]:
    """Every command in the append-only files of a server's directory, oldest first."""
    files = sorted(directory.rglob("*.aof"), key=lambda path: (len(path.name), path.name))
    for path in files:
        reader = hiredis.Reader()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                reader.feed(chunk)
                while (command := reader.gets()) is not False:
                    yield command


def transactions_of(commands: Iterable[Command]) -> Iterator[list[Command]]:
    """Commands that were applied together. A MULTI without its EXEC was not applied."""
    queued: list[Command] | None = None
    for command in commands:
        name = command[0].upper()
        if name == b"MULTI":
            queued = []
        elif name == b"EXEC":
            if queued is not None:
                yield queued
            queued = None
        elif queued is not None:
            queued.append(command)
        else:
            yield [command]


@dataclass(slots=True)
class Life:
    """One task's history."""

    number: int = -1
    enqueued: int = 0
    """Transactions of a client that brought it in."""
    attempts: list[int] = field(default_factory=list)
    """The `retries` of each entry that it lived in, in order."""
    ends: list[str] = field(default_factory=list)
    """Terminal states that were written."""
    notices: list[str] = field(default_factory=list)
    expires: bool = False
    live: int = 0
    """Entries and schedule rows that hold it now."""
    most_live: int = 0

    def born(self) -> None:
        """One more entry or row holds it."""
        self.live += 1
        self.most_live = max(self.most_live, self.live)


class History:
    """The lives of all tasks."""

    def __init__(self) -> None:
        self.lives: dict[str, Life] = defaultdict(Life)
        self._entries: dict[tuple[bytes, bytes], tuple[str, int]] = {}
        self._rows: set[tuple[bytes, str]] = set()

    def read(self, directory: Path) -> History:
        """Read a server's append-only files."""
        for transaction in transactions_of(commands_of(directory)):
            self.apply(transaction)
        return self

    def apply(self, transaction: list[Command]) -> None:
        """Take in what was applied together: first what ended, then what began."""
        goes_on: set[str] = set()
        dead: set[str] = set()
        told: dict[str, str] = {}
        by_client = any(command[0].upper() == b"HSET" and PRODUCER in command[1] for command in transaction)
        added: list[tuple[bytes, bytes, str, int, bytes, bool]] = []
        rows: list[tuple[bytes, str]] = []
        for command in transaction:
            name, key = command[0].upper(), command[1] if len(command) > 1 else b""
            if name == b"XADD":
                entry_id, fields = _entry(command)
                if key.startswith(RECEIVER):
                    told[fields[b"task_id"].decode()] = fields[b"type"].decode()
                elif key.endswith(DEAD):
                    dead.add(fields[b"id"].decode())
                else:
                    task_id, retries = fields[b"id"].decode(), int(fields[b"retries"])
                    expires = fields[b"expires_ts"] != b"0"
                    added.append((key, entry_id, task_id, retries, fields[b"data"], expires))
                    goes_on.add(task_id)
            elif name == b"HSET" and key.endswith(SCHEDULED):
                for task_id in command[2::2]:
                    rows.append((key, task_id.decode()))
                    goes_on.add(task_id.decode())
                    if by_client:
                        self.lives[task_id.decode()].number = _number(command[3])
        for task_id, kind in told.items():
            self.lives[task_id].notices.append(kind)
        for command in transaction:
            self._end(command, goes_on, dead, told)
        for key, entry_id, task_id, retries, data, expires in added:
            self._entries[key, entry_id] = (task_id, retries)
            life = self.lives[task_id]
            life.born()
            life.enqueued += by_client
            life.attempts.append(retries)
            life.number = _number(data)
            life.expires = life.expires or expires
        for row in rows:
            if row not in self._rows:
                self._rows.add(row)
                self.lives[row[1]].born()
            self.lives[row[1]].enqueued += by_client

    def _end(self, command: Command, goes_on: set[str], dead: set[str], told: dict[str, str]) -> None:
        name = command[0].upper()
        if name == b"XDEL" and not command[1].startswith(RECEIVER) and not command[1].endswith(DEAD):
            for entry_id in command[2:]:
                task_id, _ = self._entries.pop((command[1], entry_id), ("", 0))
                if not task_id:
                    continue
                life = self.lives[task_id]
                life.live -= 1
                if task_id in dead:
                    life.ends.append("dead")
                elif task_id not in goes_on:
                    life.ends.append(told.get(task_id, "completed"))
        elif name == b"HDEL" and command[1].endswith(SCHEDULED):
            for raw in command[2:]:
                row = (command[1], raw.decode())
                if row in self._rows:
                    self._rows.discard(row)
                    life = self.lives[row[1]]
                    life.live -= 1
                    if row[1] not in goes_on:
                        life.ends.append("cancelled")


def _entry(command: Command) -> tuple[bytes, dict[bytes, bytes]]:
    """The id and fields of an XADD, whatever options stand before them."""
    at = 2
    while b"-" not in command[at] or not command[at].replace(b"-", b"").isdigit():
        at += 1
    return command[at], dict(zip(command[at + 1 :: 2], command[at + 2 :: 2], strict=True))


def _number(data: bytes) -> int:
    """The task's number in the campaign, from its payload (which may stand inside packed fields)."""
    start = data.find(b'{"n":')
    return -1 if start < 0 else int(json.JSONDecoder().raw_decode(data[start:].decode(errors="replace"))[0]["n"])
