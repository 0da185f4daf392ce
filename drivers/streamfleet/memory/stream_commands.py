"""Commands on streams, apart from those of consumer groups."""

from __future__ import annotations

from dataclasses import dataclass

from streamfleet.memory.arguments import (
    ID_MAX,
    ID_MIN,
    INVALID_STREAM_ID,
    SYNTAX_ERROR,
    UINT64_MAX,
    format_id,
    integer,
    parse_id,
    parse_interval,
    refuse,
)
from streamfleet.memory.database import Database, Handler
from streamfleet.memory.streams import Entry, Stream
from streamfleet_core.connection import Reply

APPROXIMATE_STEP = 100
"""``~`` trims whole nodes of the real stream, which hold at most this many entries."""


@dataclass(slots=True)
class _Trim:
    """MAXLEN or MINID, as XADD and XTRIM take it."""

    strategy: bytes
    threshold: int
    approximate: bool = False
    limit: int = 0
    """At most this many entries are looked at; 0 is no limit."""

    def apply(self, stream: Stream) -> int:
        """Trim; how many entries went."""
        if self.strategy == b"MAXLEN":
            surplus = stream.entries.keys(ID_MIN, ID_MAX, max(len(stream.entries) - self.threshold, 0))
        else:
            surplus = stream.entries.keys(ID_MIN, self.threshold - 1)
        if self.approximate:
            most = min(len(surplus), self.limit or len(surplus))
            surplus = surplus[: most - most % APPROXIMATE_STEP]
        return stream.trim(surplus)


def _parse_trim(args: list[bytes], index: int) -> tuple[_Trim, int]:
    """The trimming options that start at ``index``, and the index after them."""
    strategy = args[index].upper()
    index += 1
    operator = args[index] if index + 1 < len(args) and args[index] in (b"~", b"=") else b""
    index += bool(operator)
    if index >= len(args):
        refuse(SYNTAX_ERROR)
    if strategy == b"MAXLEN":
        threshold = integer(args[index])
        if threshold < 0:
            refuse("ERR The MAXLEN argument must be >= 0.")
    else:
        threshold = parse_id(args[index])
    trim = _Trim(strategy, threshold, operator == b"~")
    index += 1
    if index + 1 < len(args) and args[index].upper() == b"LIMIT":
        trim.limit = integer(args[index + 1])
        if trim.limit < 0:
            refuse("ERR The LIMIT argument must be >= 0.")
        if not trim.approximate:
            refuse("ERR syntax error, LIMIT cannot be used without the special ~ option")
        index += 2
    return trim, index


def xadd(db: Database, args: list[bytes]) -> Reply:
    key = args[1]
    index, create, trim = 2, True, None
    if args[2] != b"*":
        index, create, trim = _parse_xadd_options(args)
        if index >= len(args):
            refuse("ERR wrong number of arguments for 'xadd' command")
    fields = tuple(args[index + 1 :])
    wanted = None if args[index] == b"*" else _parse_new_id(args[index])
    if not fields or len(fields) % 2:
        refuse("ERR wrong number of arguments for 'xadd' command")
    if wanted == (0, 0):
        refuse("ERR The ID specified in XADD must be greater than 0-0")
    stream = db.stream(key)
    if stream is None:
        if not create:
            return None
        stream = Stream()
        entry_id = _next_id(stream, wanted, db.now_ms)
        db.add(key, stream)
    else:
        entry_id = _next_id(stream, wanted, db.now_ms)
    name = format_id(entry_id)
    stream.entries.add(entry_id, (name, fields))
    stream.last_id = entry_id
    stream.entries_added += 1
    if trim is not None:
        trim.apply(stream)
    db.touch(key)
    db.wake(key)
    return name


def _parse_xadd_options(args: list[bytes]) -> tuple[int, bool, _Trim | None]:
    index, create, trim = 2, True, None
    while index < len(args):
        match args[index].upper():
            case b"NOMKSTREAM":
                create = False
                index += 1
            case b"MAXLEN" | b"MINID" as option:
                if trim is not None and trim.strategy != option:
                    refuse("ERR syntax error, MAXLEN and MINID options at the same time are not compatible")
                trim, index = _parse_trim(args, index)
            case b"LIMIT" if index + 1 < len(args):
                refuse("ERR syntax error, LIMIT cannot be used without specifying a trimming strategy")
            case _:
                break
    return index, create, trim


def _parse_new_id(argument: bytes) -> tuple[int, int | None]:
    """An explicit id of XADD; the sequence is None for ``ms-*``."""
    if argument.endswith(b"-*"):
        if not argument[:-2].isdigit() or int(argument[:-2]) > UINT64_MAX:
            refuse(INVALID_STREAM_ID)
        return int(argument[:-2]), None
    entry_id = parse_id(argument)
    return entry_id >> 64, entry_id & UINT64_MAX


def _next_id(stream: Stream, wanted: tuple[int, int | None] | None, now_ms: int) -> int:
    last = stream.last_id
    if last == ID_MAX:
        refuse("ERR The stream has exhausted the last possible ID, unable to add more items")
    if wanted is None:
        return max(now_ms << 64, last + 1)
    ms, sequence = wanted
    if sequence is None:
        sequence = (last & UINT64_MAX) + 1 if ms == last >> 64 else 0
    entry_id = ms << 64 | sequence
    if entry_id <= last or sequence > UINT64_MAX:
        refuse("ERR The ID specified in XADD is equal or smaller than the target stream top item")
    return entry_id


def xlen(db: Database, args: list[bytes]) -> Reply:
    stream = db.stream(args[1])
    return 0 if stream is None else len(stream.entries)


def entry_reply(entry: Entry) -> Reply:
    """An entry as XRANGE, XREADGROUP and XCLAIM write it."""
    return [entry[0], list(entry[1])]


def xrange(db: Database, args: list[bytes]) -> Reply:
    low, high = parse_interval(args[2], args[3])
    return _range(db, args, low, high, newest_first=False)


def xrevrange(db: Database, args: list[bytes]) -> Reply:
    low, high = parse_interval(args[3], args[2])
    return _range(db, args, low, high, newest_first=True)


def _range(db: Database, args: list[bytes], low: int, high: int, *, newest_first: bool) -> Reply:
    count = -1
    if len(args) > 4:
        if len(args) != 6 or args[4].upper() != b"COUNT":
            refuse(SYNTAX_ERROR)
        count = max(integer(args[5]), 0)
    stream = db.stream(args[1])
    if stream is None:
        return []
    if count == 0:
        return None
    ids = (stream.entries.keys_reversed if newest_first else stream.entries.keys)(low, high, count)
    by_id = stream.entries.by_id
    return [entry_reply(by_id[entry_id]) for entry_id in ids]


def xdel(db: Database, args: list[bytes]) -> Reply:
    stream = db.stream(args[1])
    if stream is None:
        return 0
    ids = [parse_id(argument) for argument in args[2:]]
    deleted = sum(stream.delete(entry_id) for entry_id in ids)
    if deleted:
        db.touch(args[1])
    return deleted


def xtrim(db: Database, args: list[bytes]) -> Reply:
    if args[2].upper() not in (b"MAXLEN", b"MINID"):
        refuse(SYNTAX_ERROR)
    trim, index = _parse_trim(args, 2)
    if index != len(args):
        refuse(SYNTAX_ERROR)
    stream = db.stream(args[1])
    if stream is None:
        return 0
    trimmed = trim.apply(stream)
    if trimmed:
        db.touch(args[1])
    return trimmed


COMMANDS: dict[str, tuple[int, Handler]] = {
    "XADD": (-5, xadd),
    "XLEN": (2, xlen),
    "XRANGE": (-4, xrange),
    "XREVRANGE": (-4, xrevrange),
    "XDEL": (-3, xdel),
    "XTRIM": (-4, xtrim),
}
