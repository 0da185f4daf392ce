"""Commands on hashes."""

from __future__ import annotations

from streamfleet.memory.arguments import INT64_MAX, INT64_MIN, integer, refuse
from streamfleet.memory.database import Database, Handler
from streamfleet_core.connection import Reply


def hset(db: Database, args: list[bytes]) -> Reply:
    if len(args) % 2:
        refuse("ERR wrong number of arguments for 'hset' command")
    fields = db.hash(args[1])
    if fields is None:
        fields = {}
        db.add(args[1], fields)
    before = len(fields)
    fields.update(zip(args[2::2], args[3::2], strict=True))
    db.touch(args[1])
    return len(fields) - before


def hget(db: Database, args: list[bytes]) -> Reply:
    fields = db.hash(args[1])
    return fields.get(args[2]) if fields else None


def hmget(db: Database, args: list[bytes]) -> Reply:
    fields = db.hash(args[1]) or {}
    return [fields.get(field) for field in args[2:]]


def hdel(db: Database, args: list[bytes]) -> Reply:
    fields = db.hash(args[1])
    if fields is None:
        return 0
    removed = sum(fields.pop(field, None) is not None for field in args[2:])
    if not removed:
        return 0
    db.touch(args[1])
    if not fields:
        db.delete(args[1])
    return removed


def hgetall(db: Database, args: list[bytes]) -> Reply:
    fields = db.hash(args[1]) or {}
    return [part for pair in fields.items() for part in pair]


def hlen(db: Database, args: list[bytes]) -> Reply:
    return len(db.hash(args[1]) or ())


def hexists(db: Database, args: list[bytes]) -> Reply:
    return int(args[2] in (db.hash(args[1]) or ()))


def hincrby(db: Database, args: list[bytes]) -> Reply:
    by = integer(args[3])
    fields = db.hash(args[1])
    old = fields.get(args[2]) if fields else None
    number = by + (0 if old is None else integer(old, "ERR hash value is not an integer"))
    if not INT64_MIN <= number <= INT64_MAX:
        refuse("ERR increment or decrement would overflow")
    if fields is None:
        fields = {}
        db.add(args[1], fields)
    fields[args[2]] = b"%d" % number
    db.touch(args[1])
    return number


COMMANDS: dict[str, tuple[int, Handler]] = {
    "HSET": (-4, hset),
    "HGET": (3, hget),
    "HMGET": (-3, hmget),
    "HDEL": (-3, hdel),
    "HGETALL": (2, hgetall),
    "HLEN": (2, hlen),
    "HEXISTS": (3, hexists),
    "HINCRBY": (4, hincrby),
}
