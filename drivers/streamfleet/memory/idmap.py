"""A map kept in the order of its numeric keys: entries of a stream, pending entries of a group.

Keys arrive nearly always in rising order and leave nearly always from the front, so the order is a plain
list with deferred removal: a removed key stays in the list until half of the list is such leftovers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Generic, TypeVar

V = TypeVar("V")

_COMPACT_ABOVE = 64


class IdMap(Generic[V]):
    """Values by id, with ranges of ids. ``by_id`` may be read directly, but not written."""

    __slots__ = ("_head", "_order", "by_id")

    def __init__(self) -> None:
        self.by_id: dict[int, V] = {}
        self._order: list[int] = []
        self._head = 0  # everything before this index has been removed

    def __len__(self) -> int:
        return len(self.by_id)

    def copy(self) -> IdMap[V]:
        """A map of the same values; the values themselves are shared."""
        twin: IdMap[V] = IdMap()
        twin.by_id = self.by_id.copy()
        twin._order = self._order[self._head :]
        return twin

    def add(self, key: int, value: V) -> None:
        """Set the value of a key, new or old."""
        order = self._order
        if key not in self.by_id:
            if not order or key > order[-1]:
                order.append(key)
            else:
                position = bisect_left(order, key, self._head)
                if position == len(order) or order[position] != key:  # else a leftover, now alive again
                    order.insert(position, key)
        self.by_id[key] = value

    def pop(self, key: int) -> V | None:
        """Remove a key; the value, or None when there was none."""
        by_id = self.by_id
        value = by_id.pop(key, None)
        if value is None:
            return None
        order = self._order
        if not by_id:
            order.clear()
            self._head = 0
            return value
        if order[self._head] == key:
            head = self._head + 1
            while order[head] not in by_id:
                head += 1
            self._head = head
        if len(order) > _COMPACT_ABOVE and len(order) > 2 * len(by_id):
            self._order = [one for one in order[self._head :] if one in by_id]
            self._head = 0
        return value

    def first(self) -> int | None:
        """The smallest key."""
        return self._order[self._head] if self.by_id else None

    def last(self) -> int | None:
        """The largest key."""
        if not self.by_id:
            return None
        order = self._order
        while order[-1] not in self.by_id:
            order.pop()
        return order[-1]

    def keys(self, low: int, high: int, limit: int = -1) -> list[int]:
        """The keys in ``[low, high]``, rising, at most ``limit`` of them (negative: all)."""
        order = self._order
        start = bisect_left(order, low, self._head)
        stop = bisect_right(order, high, start)
        if len(order) - self._head == len(self.by_id):
            return order[start : stop if limit < 0 else min(stop, start + limit)]
        found: list[int] = []
        for index in range(start, stop):
            if len(found) == limit:
                break
            key = order[index]
            if key in self.by_id:
                found.append(key)
        return found

    def keys_reversed(self, low: int, high: int, limit: int = -1) -> list[int]:
        """The keys in ``[low, high]``, falling, at most ``limit`` of them (negative: all)."""
        order = self._order
        start = bisect_left(order, low, self._head)
        found: list[int] = []
        for index in range(bisect_right(order, high, start) - 1, start - 1, -1):
            if len(found) == limit:
                break
            key = order[index]
            if key in self.by_id:
                found.append(key)
        return found
