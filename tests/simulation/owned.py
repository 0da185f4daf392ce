"""What was delivered is pending for somebody (I13), and only its owner ends or renews it.

I13 is judged at each command that could break it: an acknowledged entry must be gone when its transaction ends,
and a delivered one must be pending. `look` compares whole streams now and then. Forgiven: entries whose consumer
somebody has removed; a sweep restores them.

An entry is acknowledged, and renewed without regard to its idle time, by the worker that it is pending for.
Without transactions (a full server before 7.0 takes none) that can only be asked for before, so it is not judged.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from streamfleet.memory.database import Database
from streamfleet.memory.streams import Group, Stream
from streamfleet_core.connection import Reply
from streamfleet_core.keys import GROUP

if TYPE_CHECKING:
    from .observer import Observer, Original, Watch


def number(entry_id: bytes) -> int:
    """An entry's id as the model counts."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds) << 64 | int(sequence or b"0")


def written(entry: int) -> bytes:
    """The same as on the wire."""
    return b"%d-%d" % (entry >> 64, entry & (1 << 64) - 1)


class Owned:
    """See the module's text."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._acknowledged: list[tuple[bytes, int]] = []
        self._orphans: set[tuple[bytes, int]] = set()
        """Entries whose consumer was removed."""

    def watched(self) -> dict[bytes, Watch]:
        """The commands that it looks at."""
        return {b"XACK": self._xack, b"XCLAIM": self._xclaim, b"XGROUP": self._xgroup}

    def _group(self, stream: bytes) -> Group | None:
        value = self._observer.world.server.model.database.values.get(stream)
        return value.groups.get(GROUP) if isinstance(value, Stream) else None

    def _xack(self, db: Database, args: list[bytes], original: Original) -> Reply:
        key = args[1]
        if key in self._observer.streams:
            self._owned_by_actor(key, args[3:], "acknowledged")
            self._acknowledged += [(key, number(entry_id)) for entry_id in args[3:]]
        reply = original(db, args)
        self._observer.step()
        return reply

    def _xclaim(self, db: Database, args: list[bytes], original: Original) -> Reply:
        if args[4] == b"0":
            ids = list(takewhile(lambda part: not part.isalpha(), args[5:]))
            self._owned_by_actor(args[1], ids, "renewed or given back")
        return original(db, args)

    def _owned_by_actor(self, stream: bytes, ids: list[bytes], what: str) -> None:
        observer, group = self._observer, self._group(stream)
        if group is None or observer.actor is None or not observer.in_transaction:
            return
        for entry_id in ids:
            pending = group.pending.by_id.get(number(entry_id))
            if pending is not None and pending.consumer.name.decode() != observer.process:
                task_id = observer.entries.get((stream, entry_id), "")
                observer.violated("owned", task_id, f"is {what}, but belongs to {pending.consumer.name.decode()}")

    def _xgroup(self, db: Database, args: list[bytes], original: Original) -> Reply:
        if args[1] == b"DELCONSUMER":
            group = self._group(args[2])
            consumer = group.consumers.get(args[4]) if group is not None else None
            if consumer is not None:
                self._orphans.update((args[2], entry) for entry in consumer.pending.by_id)
        return original(db, args)

    def handed_out(self, place: tuple[bytes, bytes]) -> None:
        """An entry was delivered for the first time."""
        group = self._group(place[0])
        if group is None or number(place[1]) not in group.pending.by_id:
            self._unowned(place[0], number(place[1]), "was delivered")

    def judge(self) -> None:
        """A transaction, or a single command, has ended."""
        if self._acknowledged:
            acknowledged, self._acknowledged = self._acknowledged, []
            for stream, entry in acknowledged:
                value = self._observer.world.server.model.database.values.get(stream)
                if isinstance(value, Stream) and entry in value.entries.by_id:
                    self._unowned(stream, entry, "was acknowledged")

    def look(self) -> None:
        """Compare all that was delivered with all that is pending."""
        values = self._observer.world.server.model.database.values
        for stream in sorted(self._observer.streams):
            value, group = values.get(stream), self._group(stream)
            if not isinstance(value, Stream) or group is None:
                continue
            for entry in value.entries.by_id:
                owned = entry in group.pending.by_id or (stream, entry) in self._orphans
                if entry <= group.last_id and not owned:
                    self._unowned(stream, entry, "was delivered")

    def _unowned(self, stream: bytes, entry: int, what: str) -> None:
        task_id = self._observer.entries.get((stream, written(entry)), "")
        self._observer.violated("I13", task_id, f"{what}, is still there, and is pending for nobody")
