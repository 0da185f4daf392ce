"""The keys of the model server: lookup by type, expiry, and who must hear of a change."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from streamfleet.memory.arguments import WRONG_TYPE, refuse
from streamfleet.memory.sorted_sets import SortedSet
from streamfleet.memory.streams import Stream
from streamfleet_core.connection import Reply

Hash: TypeAlias = dict[bytes, bytes]
Value: TypeAlias = bytes | Hash | SortedSet | Stream


class Watcher(Protocol):
    """Whoever holds a WATCH."""

    dirty: bool


@dataclass(slots=True)
class WouldBlock:
    """What a blocking read gives when there is nothing to read: on which keys it waits, and how long.

    ``command`` is what is executed again when one of the keys changes. ``timeout_ms`` 0 is for ever.
    """

    keys: list[bytes]
    timeout_ms: int
    command: list[bytes]
    handler: Handler
    needs_stream: bool
    """XREAD waits through a change of the key's type; XREADGROUP ends, for its group is gone."""


Handler: TypeAlias = "Callable[[Database, list[bytes]], Reply | WouldBlock]"


class Database:
    """The one database. ``now_ms`` is set before each command and stands still while it runs."""

    __slots__ = ("awaited", "expires", "now_ms", "ready", "values", "watchers")

    def __init__(self) -> None:
        self.now_ms = 0
        self.values: dict[bytes, Value] = {}
        self.expires: dict[bytes, int] = {}
        self.watchers: dict[bytes, dict[Watcher, None]] = {}
        self.awaited: Container[bytes] = ()  # the keys that blocked sessions wait for
        self.ready: dict[bytes, None] = {}  # awaited keys that changed, in the order of their change

    def lookup(self, key: bytes) -> Value | None:
        """The value of a key that is there and not expired."""
        if self.expires and self.expire_if_due(key):
            return None
        return self.values.get(key)

    def expire_if_due(self, key: bytes) -> bool:
        """Delete a key whose time has come; whether it had."""
        due = self.expires.get(key)
        if due is None or due > self.now_ms:
            return False
        self.delete(key)
        return True

    def stream(self, key: bytes) -> Stream | None:
        value = self.lookup(key)
        if value is not None and not isinstance(value, Stream):
            refuse(WRONG_TYPE)
        return value

    def hash(self, key: bytes) -> Hash | None:
        value = self.lookup(key)
        if value is not None and not isinstance(value, dict):
            refuse(WRONG_TYPE)
        return value

    def sorted_set(self, key: bytes) -> SortedSet | None:
        value = self.lookup(key)
        if value is not None and not isinstance(value, SortedSet):
            refuse(WRONG_TYPE)
        return value

    def string(self, key: bytes) -> bytes | None:
        value = self.lookup(key)
        if value is not None and not isinstance(value, bytes):
            refuse(WRONG_TYPE)
        return value

    def add(self, key: bytes, value: Value) -> None:
        """Put a value at a key that is new or overwritten."""
        self.values[key] = value
        self.wake(key)

    def delete(self, key: bytes) -> bool:
        """Delete a key; whether it was there."""
        if self.values.pop(key, None) is None:
            return False
        self.expires.pop(key, None)
        self.touch(key)
        self.wake(key)
        return True

    def flush(self) -> None:
        """Delete all keys."""
        for key in list(self.values):
            self.delete(key)

    def touch(self, key: bytes) -> None:
        """Tell those that WATCH the key that it changed."""
        if self.watchers:
            for watcher in self.watchers.get(key, ()):
                watcher.dirty = True

    def wake(self, key: bytes) -> None:
        """Let those that are blocked on the key try again, once the command at hand is done."""
        if key in self.awaited:
            self.ready[key] = None

    def copy_values(self) -> dict[bytes, Value]:
        """All values, independent of the originals."""
        return {key: value if isinstance(value, bytes) else value.copy() for key, value in self.values.items()}
