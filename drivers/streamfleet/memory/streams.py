"""The data of a stream: entries, groups, consumers and their pending entries."""

from __future__ import annotations

from typing import TypeAlias

from streamfleet.memory.idmap import IdMap

UNKNOWN_COUNT = -1
"""What a group's count of read entries says when deletions have made it uncertain."""

Entry: TypeAlias = tuple[bytes, tuple[bytes, ...]]
"""The id as written on the wire, and the fields: never changed once added, so that copies may share it."""


class Pending:
    """An entry that was delivered and is not acknowledged."""

    __slots__ = ("consumer", "delivered_ms", "deliveries")

    def __init__(self, consumer: Consumer, delivered_ms: int, deliveries: int = 1) -> None:
        self.consumer = consumer
        self.delivered_ms = delivered_ms
        self.deliveries = deliveries


class Consumer:
    """A member of a group, with the pending entries that are its own."""

    __slots__ = ("active_ms", "name", "pending", "seen_ms")

    def __init__(self, name: bytes, seen_ms: int) -> None:
        self.name = name
        self.seen_ms = seen_ms
        self.active_ms = -1
        self.pending: IdMap[Pending] = IdMap()


class Group:
    """A consumer group. Every pending entry is in the group's map and in its consumer's."""

    __slots__ = ("consumers", "entries_read", "last_id", "pending")

    def __init__(self, last_id: int, entries_read: int = UNKNOWN_COUNT) -> None:
        self.last_id = last_id
        self.entries_read = entries_read
        self.consumers: dict[bytes, Consumer] = {}
        self.pending: IdMap[Pending] = IdMap()

    def consumer(self, name: bytes, now_ms: int) -> Consumer:
        """The consumer of that name, created when it is new, and seen now."""
        consumer = self.consumers.get(name)
        if consumer is None:
            consumer = self.consumers[name] = Consumer(name, now_ms)
        consumer.seen_ms = now_ms
        return consumer

    def assign(self, entry_id: int, pending: Pending, consumer: Consumer) -> None:
        """Make an entry pending for this consumer, taking it from the one that had it."""
        if pending.consumer is not consumer:
            pending.consumer.pending.pop(entry_id)
            pending.consumer = consumer
        consumer.pending.add(entry_id, pending)
        self.pending.add(entry_id, pending)

    def release(self, entry_id: int) -> bool:
        """Forget that an entry is pending; whether it was."""
        pending = self.pending.pop(entry_id)
        if pending is None:
            return False
        pending.consumer.pending.pop(entry_id)
        return True

    def copy(self) -> Group:
        """An independent twin."""
        twin = Group(self.last_id, self.entries_read)
        for consumer in self.consumers.values():
            other = twin.consumers[consumer.name] = Consumer(consumer.name, consumer.seen_ms)
            other.active_ms = consumer.active_ms
        for entry_id in self.pending.keys(0, 1 << 128):
            old = self.pending.by_id[entry_id]
            owner = twin.consumers[old.consumer.name]
            twin.assign(entry_id, Pending(owner, old.delivered_ms, old.deliveries), owner)
        return twin


class Stream:
    """A stream: entries in the order of their ids, and the groups that read it."""

    __slots__ = ("entries", "entries_added", "groups", "last_id", "max_deleted_id")

    def __init__(self) -> None:
        self.entries: IdMap[Entry] = IdMap()
        self.groups: dict[bytes, Group] = {}
        self.last_id = 0
        self.max_deleted_id = 0
        self.entries_added = 0

    def copy(self) -> Stream:
        """An independent twin; entries are immutable and shared."""
        twin = Stream()
        twin.entries = self.entries.copy()
        twin.groups = {name: group.copy() for name, group in self.groups.items()}
        twin.last_id = self.last_id
        twin.max_deleted_id = self.max_deleted_id
        twin.entries_added = self.entries_added
        return twin

    def delete(self, entry_id: int) -> bool:
        """Delete one entry by id, as XDEL does; whether it was there."""
        if self.entries.pop(entry_id) is None:
            return False
        self.max_deleted_id = max(self.max_deleted_id, entry_id)
        return True

    def trim(self, ids: list[int]) -> int:
        """Drop the oldest entries. Unlike XDEL this leaves no gap, hence no trace in ``max_deleted_id``."""
        for entry_id in ids:
            self.entries.pop(entry_id)
        return len(ids)

    def has_gap_after(self, entry_id: int) -> bool:
        """Whether an entry was deleted at or after this id, among those that are still there."""
        first = self.entries.first()
        if first is None or not self.max_deleted_id or first > self.max_deleted_id:
            return False
        return entry_id <= self.max_deleted_id

    def read_count_at(self, entry_id: int) -> int:
        """How many entries were ever added up to this id, or UNKNOWN_COUNT when it cannot be told."""
        if not self.entries_added:
            return 0
        first = self.entries.first()
        if (first is None and entry_id < self.last_id) or entry_id == self.last_id:
            return self.entries_added
        if entry_id > self.last_id:
            return UNKNOWN_COUNT
        if first is not None and (not self.max_deleted_id or self.max_deleted_id < first):
            if entry_id < first:
                return self.entries_added - len(self.entries)
            if entry_id == first:
                return self.entries_added - len(self.entries) + 1
        return UNKNOWN_COUNT

    def advance(self, group: Group, entry_id: int) -> None:
        """Note that the group has been delivered this entry for the first time."""
        if entry_id <= group.last_id:
            return
        if group.entries_read != UNKNOWN_COUNT and not self.has_gap_after(group.last_id):
            group.entries_read += 1
        elif self.entries_added:
            group.entries_read = self.read_count_at(entry_id)
        group.last_id = entry_id

    def lag(self, group: Group) -> int | None:
        """How many entries the group has yet to read, or None when it cannot be told."""
        if not self.entries_added:
            return 0
        if group.entries_read != UNKNOWN_COUNT and not self.has_gap_after(group.last_id):
            return self.entries_added - group.entries_read
        count = self.read_count_at(group.last_id)
        return None if count == UNKNOWN_COUNT else self.entries_added - count
