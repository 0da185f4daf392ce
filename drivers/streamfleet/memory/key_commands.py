"""Commands on keys of any type, and on strings."""

from __future__ import annotations

from streamfleet.memory.arguments import (
    INT64_MAX,
    INT64_MIN,
    SYNTAX_ERROR,
    integer,
    refuse,
)
from streamfleet.memory.database import Database, Handler, Value
from streamfleet.memory.glob import matches
from streamfleet.memory.streams import Stream
from streamfleet_core.connection import Reply


def type_name(value: Value | None) -> bytes:
    """What TYPE says."""
    if value is None:
        return b"none"
    if isinstance(value, bytes):
        return b"string"
    if isinstance(value, dict):
        return b"hash"
    return b"stream" if isinstance(value, Stream) else b"zset"


def type_(db: Database, args: list[bytes]) -> Reply:
    return type_name(db.lookup(args[1]))


def exists(db: Database, args: list[bytes]) -> Reply:
    return sum(db.lookup(key) is not None for key in args[1:])


def delete(db: Database, args: list[bytes]) -> Reply:
    return sum(not db.expire_if_due(key) and db.delete(key) for key in args[1:])


def live_keys(db: Database) -> list[bytes]:
    """All keys that are not expired."""
    if db.expires:
        for key in list(db.expires):
            db.expire_if_due(key)
    return list(db.values)


def keys(db: Database, args: list[bytes]) -> Reply:
    return [key for key in live_keys(db) if matches(args[1], key)]


def scan(db: Database, args: list[bytes]) -> Reply:
    """One call gives all keys: a model has no need of pages."""
    cursor = args[1]
    if not cursor.isdigit():
        refuse("ERR invalid cursor")
    pattern, wanted_type = b"*", None
    options = iter(args[2:])
    for option in options:
        value = next(options, None)
        match option.upper():
            case b"MATCH" if value is not None:
                pattern = value
            case b"TYPE" if value is not None:
                wanted_type = value.lower()
            case b"COUNT" if value is not None:
                if integer(value) < 1:
                    refuse(SYNTAX_ERROR)
            case _:
                refuse(SYNTAX_ERROR)
    found: list[Reply] = [
        key for key in live_keys(db) if matches(pattern, key) and wanted_type in (None, type_name(db.values[key]))
    ]
    return [b"0", found]


def dbsize(db: Database, args: list[bytes]) -> Reply:
    return len(live_keys(db))


def flush(db: Database, args: list[bytes]) -> Reply:
    if len(args) > 2 or (len(args) == 2 and args[1].upper() not in (b"SYNC", b"ASYNC")):
        refuse(SYNTAX_ERROR)
    live_keys(db)
    db.flush()
    return b"OK"


def time(db: Database, args: list[bytes]) -> Reply:
    return [b"%d" % (db.now_ms // 1000), b"%d" % (db.now_ms % 1000 * 1000)]


def pexpire(db: Database, args: list[bytes]) -> Reply:
    ms = integer(args[2])
    if len(args) > 3:
        refuse(f"ERR Unsupported option {args[3].decode(errors='replace')}")
    due = db.now_ms + ms
    if due > INT64_MAX:
        refuse("ERR invalid expire time in 'pexpire' command")
    if db.lookup(args[1]) is None:
        return 0
    if ms <= 0:
        db.delete(args[1])
        return 1
    db.expires[args[1]] = due
    db.touch(args[1])
    return 1


def pttl(db: Database, args: list[bytes]) -> Reply:
    if db.lookup(args[1]) is None:
        return -2
    due = db.expires.get(args[1])
    return -1 if due is None else due - db.now_ms


def persist(db: Database, args: list[bytes]) -> Reply:
    if db.lookup(args[1]) is None or db.expires.pop(args[1], None) is None:
        return 0
    db.touch(args[1])
    return 1


class _SetOptions:
    """The options of SET."""

    __slots__ = ("get", "if_exists", "if_missing", "keep_ttl", "ttl_ms")

    def __init__(self, options: list[bytes]) -> None:
        self.get = self.if_exists = self.if_missing = self.keep_ttl = False
        self.ttl_ms: int | None = None
        rest = iter(options)
        for option in rest:
            match option.upper():
                case b"NX" if not self.if_exists:
                    self.if_missing = True
                case b"XX" if not self.if_missing:
                    self.if_exists = True
                case b"GET":
                    self.get = True
                case b"KEEPTTL" if self.ttl_ms is None:
                    self.keep_ttl = True
                case (b"PX" | b"EX") as unit if self.ttl_ms is None and not self.keep_ttl:
                    self.ttl_ms = self._ttl(unit, next(rest, None))
                case _:
                    refuse(SYNTAX_ERROR)

    @staticmethod
    def _ttl(unit: bytes, value: bytes | None) -> int:
        if value is None:
            refuse(SYNTAX_ERROR)
        ttl = integer(value)
        if ttl <= 0 or ttl > INT64_MAX // 2000:
            refuse("ERR invalid expire time in 'set' command")
        return ttl * 1000 if unit == b"EX" else ttl


def set_(db: Database, args: list[bytes]) -> Reply:
    key, value = args[1], args[2]
    options = _SetOptions(args[3:]) if len(args) > 3 else None
    if options is None:
        _store(db, key, value)
        return b"OK"
    old = db.string(key) if options.get else None
    present = db.lookup(key) is not None
    if (options.if_missing and present) or (options.if_exists and not present):
        return old
    _store(db, key, value, keep_ttl=options.keep_ttl)
    if options.ttl_ms is not None:
        db.expires[key] = db.now_ms + options.ttl_ms
    return old if options.get else b"OK"


def _store(db: Database, key: bytes, value: bytes, *, keep_ttl: bool = False) -> None:
    if db.expires:
        db.expire_if_due(key)
        if not keep_ttl:
            db.expires.pop(key, None)
    db.add(key, value)
    db.touch(key)


def get(db: Database, args: list[bytes]) -> Reply:
    return db.string(args[1])


def mget(db: Database, args: list[bytes]) -> Reply:
    found: list[Reply] = []
    for key in args[1:]:
        value = db.lookup(key)
        found.append(value if isinstance(value, bytes) else None)
    return found


def incr(db: Database, args: list[bytes]) -> Reply:
    old = db.string(args[1])
    number = incremented(0 if old is None else integer(old), 1)
    db.values[args[1]] = b"%d" % number
    db.touch(args[1])
    return number


def incremented(number: int, by: int) -> int:
    """The sum of two 64-bit numbers, refused when it is none."""
    if not INT64_MIN <= number + by <= INT64_MAX:
        refuse("ERR increment or decrement would overflow")
    return number + by


COMMANDS: dict[str, tuple[int, Handler]] = {
    "TYPE": (2, type_),
    "EXISTS": (-2, exists),
    "DEL": (-2, delete),
    "UNLINK": (-2, delete),
    "KEYS": (2, keys),
    "SCAN": (-2, scan),
    "DBSIZE": (1, dbsize),
    "FLUSHALL": (-1, flush),
    "FLUSHDB": (-1, flush),
    "TIME": (1, time),
    "PEXPIRE": (-3, pexpire),
    "PTTL": (2, pttl),
    "PERSIST": (2, persist),
    "SET": (-3, set_),
    "GET": (2, get),
    "MGET": (-2, mget),
    "INCR": (2, incr),
}
