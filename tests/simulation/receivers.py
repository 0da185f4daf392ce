"""Clients' receivers (I12): no notice brings one back, no client that beats is collected. When was one missing?"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from streamfleet.memory.database import Database
from streamfleet_core.connection import Reply
from streamfleet_core.keys import receiver_key

if TYPE_CHECKING:
    from .observer import Observer, Original, Watch
    from .processes import ClientProcess

RECEIVER = b"streamfleet:receiver:"
"""What the keys of receivers start with."""
Name: TypeAlias = tuple[bytes, bytes]
"""A client's row (set and member), or its stream (key and nothing)."""


class Receivers:
    """See the module's text."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._world = observer.world
        self.beats: dict[bytes, float] = {}
        """When each client has last beaten; part of the server's history."""
        self._there: set[Name] = set()
        self._gone: set[Name] = set()
        """What was there once, and is not now."""
        self._back: dict[Name, float] = {}
        """When something that had been missing was there again."""

    def watched(self) -> dict[bytes, Watch]:
        """The commands that it looks at."""
        return {
            b"XADD": self._xadd,
            b"ZADD": self._zadd,
            b"ZREM": self._zrem,
            b"ZREMRANGEBYSCORE": self._zremrangebyscore,
            b"XGROUP": self._xgroup,
            b"DEL": self._del,
        }

    # ---- commands -----------------------------------------------------------------------------------

    def _xadd(self, db: Database, args: list[bytes], original: Original) -> Reply:
        key = args[1]
        was_there = key in db.values
        reply = original(db, args)
        if key.startswith(RECEIVER) and not was_there and key in db.values:
            self._world.violated("I12", f"{self._observer.who}: a notice has brought back {key.decode()}")
        return reply

    def _zadd(self, db: Database, args: list[bytes], original: Original) -> Reply:
        reply = original(db, args)
        if args[1] in self._observer.receiver_sets:
            actor = self._observer.actor
            if actor is None or not actor.closed:
                self.beats[args[3]] = self._world.engine.now
            self._appears((args[1], args[3]))
        return reply

    def _zrem(self, db: Database, args: list[bytes], original: Original) -> Reply:
        watched = args[1] in self._observer.receiver_sets
        return self._removing(db, args, original) if watched else original(db, args)

    def _zremrangebyscore(self, db: Database, args: list[bytes], original: Original) -> Reply:
        return self._removing(db, args, original)

    def _removing(self, db: Database, args: list[bytes], original: Original) -> Reply:
        before = _members(db, args[1])
        reply = original(db, args)
        for client in before - _members(db, args[1]):
            self._disappears((args[1], client))
            self._collected(client)
        return reply

    def _collected(self, client: bytes) -> None:
        """A client has been taken for dead, unless it went by itself."""
        if self._observer.role != "control":
            return
        silent = self._world.engine.now - self.beats.get(client, 0.0)
        if silent < self._world.plan.client_timeout * 0.95:
            text = f"collected client {client.decode()}, which had beaten {silent:.3f} s before"
            self._world.violated("I12", f"{self._observer.who} {text}")

    def _xgroup(self, db: Database, args: list[bytes], original: Original) -> Reply:
        reply = original(db, args)
        if args[2].startswith(RECEIVER) and args[2] in db.values:
            self._appears((args[2], b""))
        return reply

    def _del(self, db: Database, args: list[bytes], original: Original) -> Reply:
        reply = original(db, args)
        for key in args[1:]:
            self._disappears((key, b""))
        return reply

    # ---- what is missing ----------------------------------------------------------------------------

    def _appears(self, name: Name) -> None:
        self._there.add(name)
        if name in self._gone:
            self._gone.discard(name)
            self._back[name] = self._world.engine.now

    def _disappears(self, name: Name) -> None:
        if name in self._there:
            self._there.discard(name)
            self._gone.add(name)

    def went_back(self, beats: dict[bytes, float]) -> None:
        """The server has gone back, and what it knows of clients with it."""
        self.beats = beats
        db = self._world.server.model.database
        for name in list(self._there):
            if name[0] not in db.values or (name[1] and name[1] not in _members(db, name[0])):
                self._disappears(name)

    def missing_since(self, client: ClientProcess, since: float) -> bool:
        """Has anything of the client's been missing, now or at any time from this moment on?"""
        ids = [lane.client_id for lane in client.machine.lanes.values()]
        streams = {receiver_key(one) for one in ids}
        members = {one.encode() for one in ids}
        mine = [name for name in (*self._gone, *self._back) if name[0] in streams or name[1] in members]
        return any(name in self._gone or self._back.get(name, -1.0) >= since for name in mine)


def _members(db: Database, key: bytes) -> set[bytes]:
    return set(getattr(db.values.get(key), "scores", ()))
