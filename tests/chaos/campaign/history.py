"""What really happened to each task, read from the server's append-only file.

The file holds every write that the server applied, in order, with transactions intact. So the history of a task
is known without asking the library: each entry that it lived in, how each entry ended, and what was told to its
client. Times come from the ids of stream entries, which are the server's Unix time in milliseconds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
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
Fields = dict[bytes, bytes]


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
class Moment:
    """When something happened (Unix ms of the server): not before ``start``, not after ``end``."""

    start: float
    end: float = inf


@dataclass(slots=True)
class Life:
    """One task's history."""

    number: int = -1
    queue: str = ""
    """Where its entries stood; empty while it has only been in a schedule."""
    payload: bytes = b""
    client: str = ""
    tracked: bool = False
    expires: int = 0
    """Unix ms; 0: never."""
    altered: bool = False
    """Is there an entry or row that says something else of these?"""
    enqueued: int = 0
    """Transactions of a client that brought it in."""
    attempts: list[int] = field(default_factory=list)
    """The `retries` of each entry that it lived in, in order."""
    ends: list[str] = field(default_factory=list)
    """Terminal states that were written."""
    ended: Moment | None = None
    """When the first of them was."""
    buried: int = 0
    """Dead letters of it."""
    notices: list[str] = field(default_factory=list)
    """What its client was told."""
    early: int = 0
    """Notices that did not come together with an end."""
    concealed: bool = False
    """Did it end without a notice, though its client tracked it and had a receiver?"""
    heard: float = inf
    """When its client removed the notice, having read it; not before this."""
    live: int = 0
    """Entries and schedule rows that hold it now."""
    most_live: int = 0

    def born(self) -> None:
        """One more entry or row holds it."""
        self.live += 1
        self.most_live = max(self.most_live, self.live)

    def told_of(self, fields: Fields) -> None:
        """What an entry or a row says of it."""
        seen = (
            fields.get(b"data", b""),
            fields.get(b"client_id", b"").decode(),
            fields.get(b"send_notif", b"0") == b"1",
            int(fields.get(b"expires_ts", b"0")),
        )
        if self.payload and seen != (self.payload, self.client, self.tracked, self.expires):
            self.altered = True
        if not self.payload:
            self.payload, self.client, self.tracked, self.expires = seen
            self.number = _number(self.payload)


class History:
    """The lives of all tasks, and the times in which clients could not be told."""

    def __init__(self) -> None:
        self.lives: dict[str, Life] = defaultdict(Life)
        self.deaf: dict[str, list[Moment]] = defaultdict(list)
        """By client: from the removal of its receiver to its being made again."""
        self.strays: list[str] = []
        """Receivers that were made by a notice."""
        self._now = 0.0
        self._open: list[Moment] = []
        """What has happened since the last time that is known."""
        self._entries: dict[tuple[bytes, bytes], tuple[str, int]] = {}
        self._rows: set[tuple[bytes, str]] = set()
        self._receivers: dict[bytes, dict[bytes, str]] = {}
        """The notices in each receiver that is there: tasks by the ids of entries."""
        self._lost_at: dict[bytes, float] = {}

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
        added: list[tuple[bytes, bytes, Fields]] = []
        rows: list[tuple[bytes, str, Fields]] = []
        clock = self._now
        for command in transaction:
            name, key = command[0].upper(), command[1] if len(command) > 1 else b""
            if name == b"XADD":
                entry_id, fields = _entry(command)
                clock = max(clock, float(entry_id.partition(b"-")[0]))
                if key.startswith(RECEIVER):
                    told[fields[b"task_id"].decode()] = fields[b"type"].decode()
                    self._notice(key, entry_id, fields[b"task_id"].decode())
                elif key.endswith(DEAD):
                    dead.add(fields[b"id"].decode())
                    self.lives[fields[b"id"].decode()].buried += 1
                elif key.startswith(QUEUE):
                    added.append((key, entry_id, fields))
                    goes_on.add(fields[b"id"].decode())
            elif name == b"HSET" and key.endswith(SCHEDULED):
                for raw, body in zip(command[2::2], command[3::2], strict=True):
                    rows.append((key, raw.decode(), _unpack(body)))
                    goes_on.add(raw.decode())
        self._advance(clock)
        for command in transaction:
            self._receiver(command)
        ends = {task_id: len(self.lives[task_id].ends) for task_id in told}
        for task_id, kind in told.items():
            self.lives[task_id].notices.append(kind)
        for command in transaction:
            self._end(command, goes_on, dead, told)
        for task_id, before in ends.items():
            self.lives[task_id].early += len(self.lives[task_id].ends) == before
        for key, entry_id, fields in added:
            task_id, retries = fields[b"id"].decode(), int(fields[b"retries"])
            self._entries[key, entry_id] = (task_id, retries)
            life = self.lives[task_id]
            life.born()
            life.enqueued += by_client
            life.attempts.append(retries)
            life.queue = key.removeprefix(QUEUE).decode()
            life.told_of(fields)
        for key, task_id, fields in rows:
            life = self.lives[task_id]
            life.told_of(fields)
            if (key, task_id) not in self._rows:
                self._rows.add((key, task_id))
                life.born()
            life.enqueued += by_client

    def _advance(self, clock: float) -> None:
        """A time is known: all that has happened so far was not later."""
        if clock > self._now:
            self._now = clock
            for moment in self._open:
                moment.end = clock
            self._open.clear()

    def _moment(self) -> Moment:
        moment = Moment(self._now)
        self._open.append(moment)
        return moment

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
                    self._ended(life, "dead")
                elif task_id not in goes_on:
                    self._ended(life, told.get(task_id, "completed"))
                if task_id not in goes_on and task_id not in told:
                    life.concealed = life.tracked and RECEIVER + life.client.encode() in self._receivers
        elif name == b"HDEL" and command[1].endswith(SCHEDULED):
            for raw in command[2:]:
                row = (command[1], raw.decode())
                if row in self._rows:
                    self._rows.discard(row)
                    life = self.lives[row[1]]
                    life.live -= 1
                    if row[1] in dead:
                        self._ended(life, "dead")
                    elif row[1] not in goes_on:
                        self._ended(life, "cancelled")

    def _ended(self, life: Life, how: str) -> None:
        life.ends.append(how)
        life.ended = life.ended or self._moment()

    # ---- receivers ----------------------------------------------------------------------------------

    def _notice(self, key: bytes, entry_id: bytes, task_id: str) -> None:
        if key not in self._receivers:
            self.strays.append(f"{key.decode()}: made by the notice of {task_id}")
        self._receivers.setdefault(key, {})[entry_id] = task_id

    def _receiver(self, command: Command) -> None:
        """Receivers that come, go and are read."""
        name = command[0].upper()
        if name == b"XGROUP" and command[1].upper() == b"CREATE" and command[2].startswith(RECEIVER):
            key = command[2]
            if key in self._lost_at:
                window = self._moment()
                window.start = self._lost_at.pop(key)
                self.deaf[key.removeprefix(RECEIVER).decode()].append(window)
            self._receivers.setdefault(key, {})
        elif name in (b"DEL", b"UNLINK"):
            for key in command[1:]:
                if key.startswith(RECEIVER) and self._receivers.pop(key, None) is not None:
                    self._lost_at[key] = self._now
        elif name == b"XDEL" and command[1].startswith(RECEIVER):
            for entry_id in command[2:]:
                task_id = self._receivers.get(command[1], {}).pop(entry_id, "")
                if task_id:
                    self.lives[task_id].heard = min(self.lives[task_id].heard, self._now)

    def could_not_be_told(self, unique: str) -> list[Moment]:
        """When the client with this unique part of its id had no receiver, though it once had one."""
        found = [window for client, windows in self.deaf.items() if client.endswith(unique) for window in windows]
        gone = [at for key, at in self._lost_at.items() if key.decode().endswith(unique)]
        return [*found, *(Moment(at) for at in gone)]


def _entry(command: Command) -> tuple[bytes, Fields]:
    """The id and fields of an XADD, whatever options stand before them."""
    at = 2
    while b"-" not in command[at] or not command[at].replace(b"-", b"").isdigit():
        at += 1
    return command[at], dict(zip(command[at + 1 :: 2], command[at + 2 :: 2], strict=True))


def _unpack(body: bytes) -> Fields:
    """The fields of a row of the schedule: name and value in turn, each as ``length:bytes,``."""
    parts: list[bytes] = []
    while body:
        length, _, rest = body.partition(b":")
        parts.append(rest[: int(length)])
        body = rest[int(length) + 1 :]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _number(data: bytes) -> int:
    """The task's number in the campaign, from its payload."""
    try:
        return int(json.loads(data)["n"])
    except (ValueError, KeyError, TypeError):
        return -1
