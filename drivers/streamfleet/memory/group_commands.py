"""Commands that administer, inspect and settle what consumer groups hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streamfleet.memory.arguments import (
    ID_MAX,
    ID_MIN,
    SYNTAX_ERROR,
    CommandError,
    format_id,
    integer,
    parse_id,
    parse_interval,
    parse_interval_start,
    parse_range_id,
    refuse,
    text,
)
from streamfleet.memory.database import Database, Handler
from streamfleet.memory.stream_commands import entry_reply
from streamfleet.memory.streams import UNKNOWN_COUNT, Consumer, Group, Pending, Stream
from streamfleet_core.connection import Reply


def find_group(db: Database, key: bytes, name: bytes) -> tuple[Stream, Group]:
    """A stream and its group; a NOGROUP error when either is missing."""
    stream = db.stream(key)
    group = None if stream is None else stream.groups.get(name)
    if stream is None or group is None:
        refuse(f"NOGROUP No such key '{text(key)}' or consumer group '{text(name)}'")
    return stream, group


def xack(db: Database, args: list[bytes]) -> Reply:
    stream = db.stream(args[1])
    group = None if stream is None else stream.groups.get(args[2])
    if group is None:
        return 0
    ids = [parse_id(argument) for argument in args[3:]]
    return sum(group.release(entry_id) for entry_id in ids)


def xpending(db: Database, args: list[bytes]) -> Reply:
    if len(args) == 3:
        return _pending_summary(find_group(db, args[1], args[2])[1])
    rest, min_idle = args[3:], 0
    if rest[0].upper() == b"IDLE":
        min_idle = integer(rest[1]) if len(rest) > 1 else refuse(SYNTAX_ERROR)
        rest = rest[2:]
    if len(rest) not in (3, 4):
        refuse(SYNTAX_ERROR)
    count = max(integer(rest[2]), 0)
    low, high = parse_interval(rest[0], rest[1])
    _, group = find_group(db, args[1], args[2])
    source = group.pending
    if len(rest) == 4:
        consumer = group.consumers.get(rest[3])
        if consumer is None:
            return []
        source = consumer.pending
    found: list[Reply] = []
    for entry_id in source.keys(low, high):
        if len(found) == count:
            break
        pending = source.by_id[entry_id]
        idle = max(db.now_ms - pending.delivered_ms, 0)
        if idle >= min_idle:
            found.append([format_id(entry_id), pending.consumer.name, idle, pending.deliveries])
    return found


def _pending_summary(group: Group) -> Reply:
    first, last = group.pending.first(), group.pending.last()
    if first is None or last is None:
        return [0, None, None, None]
    holders: list[Reply] = [
        [name, b"%d" % len(consumer.pending)]
        for name, consumer in sorted(group.consumers.items())
        if consumer.pending
    ]
    return [len(group.pending), format_id(first), format_id(last), holders]


@dataclass(slots=True)
class _ClaimOptions:
    """The options of XCLAIM."""

    delivered_ms: int
    deliveries: int | None = None
    force: bool = False
    just_id: bool = False
    last_id: int = 0


def _claim_options(options: list[bytes], now_ms: int) -> _ClaimOptions:
    parsed = _ClaimOptions(now_ms)
    rest = iter(options)
    for option in rest:
        name = option.upper()
        if name == b"FORCE":
            parsed.force = True
            continue
        if name == b"JUSTID":
            parsed.just_id = True
            continue
        value = next(rest, None)
        if value is None:
            refuse(f"ERR Unrecognized XCLAIM option '{text(option)}'")
        match name:
            case b"IDLE":
                parsed.delivered_ms = now_ms - integer(value, "ERR Invalid IDLE option argument for XCLAIM")
            case b"TIME":
                parsed.delivered_ms = integer(value, "ERR Invalid TIME option argument for XCLAIM")
            case b"RETRYCOUNT":
                count = integer(value, "ERR Invalid RETRYCOUNT option argument for XCLAIM")
                parsed.deliveries = None if count < 0 else count
            case b"LASTID":
                parsed.last_id = parse_id(value)
            case _:
                refuse(f"ERR Unrecognized XCLAIM option '{text(option)}'")
    if not 0 <= parsed.delivered_ms <= now_ms:
        parsed.delivered_ms = now_ms
    return parsed


def _min_idle(argument: bytes, command: str) -> int:
    return max(integer(argument, f"ERR Invalid min-idle-time argument for {command}"), 0)


def _leading_ids(arguments: list[bytes]) -> list[int]:
    """The ids before the first argument that is none."""
    ids: list[int] = []
    for argument in arguments:
        try:
            ids.append(parse_id(argument))
        except CommandError:
            break
    return ids


def xclaim(db: Database, args: list[bytes]) -> Reply:
    stream, group = find_group(db, args[1], args[2])
    min_idle = _min_idle(args[4], "XCLAIM")
    ids = _leading_ids(args[5:])
    options = _claim_options(args[5 + len(ids) :], db.now_ms)
    group.last_id = max(group.last_id, options.last_id)
    consumer = group.consumer(args[3], db.now_ms)
    claimed: list[Reply] = []
    for entry_id in ids:
        if _claim(db, stream, group, consumer, entry_id, min_idle, options):
            entry = stream.entries.by_id[entry_id]
            claimed.append(entry[0] if options.just_id else entry_reply(entry))
    return claimed


def _claim(
    db: Database,
    stream: Stream,
    group: Group,
    consumer: Consumer,
    entry_id: int,
    min_idle: int,
    options: _ClaimOptions,
) -> bool:
    """Make one entry the consumer's; whether it was to be had."""
    if entry_id not in stream.entries.by_id:
        group.release(entry_id)
        return False
    pending = group.pending.by_id.get(entry_id)
    if pending is None:
        if not options.force:
            return False
        pending = Pending(consumer, db.now_ms)
    elif min_idle and db.now_ms - pending.delivered_ms < min_idle:
        return False
    pending.delivered_ms = options.delivered_ms
    if options.deliveries is not None:
        pending.deliveries = options.deliveries
    elif not options.just_id:
        pending.deliveries += 1
    group.assign(entry_id, pending, consumer)
    consumer.active_ms = db.now_ms
    return True


def xautoclaim(db: Database, args: list[bytes]) -> Reply:
    min_idle = _min_idle(args[4], "XAUTOCLAIM")
    start = parse_interval_start(args[5])
    count, options = 100, _ClaimOptions(db.now_ms)
    rest = iter(args[6:])
    for option in rest:
        value = None
        if option.upper() == b"JUSTID":
            options.just_id = True
        elif option.upper() == b"COUNT" and (value := next(rest, None)) is not None:
            count = integer(value, "ERR COUNT must be > 0")
            if not 1 <= count <= 2**63 // 16:
                refuse("ERR COUNT must be > 0")
        else:
            refuse(SYNTAX_ERROR)
    stream, group = find_group(db, args[1], args[2])
    consumer = group.consumer(args[3], db.now_ms)
    # Like the server, look at no more than ten entries for each one asked for.
    candidates = group.pending.keys(start, ID_MAX, count * 10 + 1)
    claimed: list[Reply] = []
    deleted: list[Reply] = []
    looked_at = 0
    for entry_id in candidates[: count * 10]:
        if len(claimed) + len(deleted) == count:
            break
        looked_at += 1
        if entry_id not in stream.entries.by_id:
            group.release(entry_id)
            deleted.append(format_id(entry_id))
        elif _claim(db, stream, group, consumer, entry_id, min_idle, options):
            entry = stream.entries.by_id[entry_id]
            claimed.append(entry[0] if options.just_id else entry_reply(entry))
    cursor = candidates[looked_at] if looked_at < len(candidates) else 0
    return [format_id(cursor), claimed, deleted]


# XGROUP


def xgroup(db: Database, args: list[bytes]) -> Reply:
    _, run = _XGROUP[args[1].upper()]
    return run(db, args)


def _group_position(stream: Stream | None, argument: bytes) -> int:
    if argument == b"$":
        return 0 if stream is None else stream.last_id
    return parse_id(argument)


def _group_options(options: list[bytes], subcommand: str) -> tuple[bool, int]:
    """Whether MKSTREAM is set, and ENTRIESREAD, of CREATE or SETID."""
    make, count = False, UNKNOWN_COUNT
    rest = iter(options)
    for option in rest:
        if option.upper() == b"MKSTREAM" and subcommand == "CREATE":
            make = True
        elif option.upper() == b"ENTRIESREAD" and (value := next(rest, None)) is not None:
            count = integer(value)
            if count < -1:
                refuse("ERR value for ENTRIESREAD must be positive or -1")
        else:
            refuse(f"ERR unknown subcommand or wrong number of arguments for '{subcommand}'. Try XGROUP HELP.")
    return make, count


_NO_KEY = (
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use "
    "the MKSTREAM option to create an empty stream automatically."
)


def _existing_group(db: Database, args: list[bytes]) -> tuple[Stream, Group]:
    stream = db.stream(args[2])
    if stream is None:
        refuse(_NO_KEY)
    group = stream.groups.get(args[3])
    if group is None:
        refuse(f"NOGROUP No such consumer group '{text(args[3])}' for key name '{text(args[2])}'")
    return stream, group


def _xgroup_create(db: Database, args: list[bytes]) -> Reply:
    make, count = _group_options(args[5:], "CREATE")
    stream = db.stream(args[2])
    if stream is None and not make:
        refuse(_NO_KEY)
    position = _group_position(stream, args[4])
    if stream is None:
        stream = Stream()
        db.add(args[2], stream)
        db.touch(args[2])
    if args[3] in stream.groups:
        refuse("BUSYGROUP Consumer Group name already exists")
    stream.groups[args[3]] = Group(position, count)
    return b"OK"


def _xgroup_setid(db: Database, args: list[bytes]) -> Reply:
    _, count = _group_options(args[5:], "SETID")
    stream, group = _existing_group(db, args)
    extreme = args[4] in (b"-", b"+")  # which CREATE does not take
    group.last_id = parse_range_id(args[4], 0) if extreme else _group_position(stream, args[4])
    group.entries_read = count
    return b"OK"


def _xgroup_destroy(db: Database, args: list[bytes]) -> Reply:
    stream = db.stream(args[2])
    if stream is None:
        refuse(_NO_KEY)
    if stream.groups.pop(args[3], None) is None:
        return 0
    db.wake(args[2])
    return 1


def _xgroup_createconsumer(db: Database, args: list[bytes]) -> Reply:
    _, group = _existing_group(db, args)
    if args[4] in group.consumers:
        return 0
    group.consumer(args[4], db.now_ms)
    return 1


def _xgroup_delconsumer(db: Database, args: list[bytes]) -> Reply:
    _, group = _existing_group(db, args)
    consumer = group.consumers.pop(args[4], None)
    if consumer is None:
        return 0
    lost = consumer.pending.keys(ID_MIN, ID_MAX)
    for entry_id in lost:
        group.pending.pop(entry_id)
    return len(lost)


_XGROUP: dict[bytes, tuple[int, Callable[[Database, list[bytes]], Reply]]] = {
    b"CREATE": (-5, _xgroup_create),
    b"SETID": (-5, _xgroup_setid),
    b"DESTROY": (4, _xgroup_destroy),
    b"CREATECONSUMER": (5, _xgroup_createconsumer),
    b"DELCONSUMER": (5, _xgroup_delconsumer),
}

# XINFO


def xinfo(db: Database, args: list[bytes]) -> Reply:
    _, run = _XINFO[args[1].upper()]
    stream = db.stream(args[2])
    if stream is None:
        refuse("ERR no such key")
    return run(stream, args, db.now_ms)


def _xinfo_stream(stream: Stream, args: list[bytes], now_ms: int) -> Reply:
    if len(args) > 3:  # FULL is not modelled
        refuse("ERR unknown subcommand or wrong number of arguments for 'STREAM'. Try XINFO HELP.")
    first, last = stream.entries.first(), stream.entries.last()
    by_id = stream.entries.by_id
    nodes = -(-len(by_id) // 100)
    return [
        *(b"length", len(by_id)),
        *(b"radix-tree-keys", nodes),
        *(b"radix-tree-nodes", nodes + 1),
        *(b"last-generated-id", format_id(stream.last_id)),
        *(b"max-deleted-entry-id", format_id(stream.max_deleted_id)),
        *(b"entries-added", stream.entries_added),
        *(b"recorded-first-entry-id", format_id(first or 0)),
        *(b"groups", len(stream.groups)),
        *(b"first-entry", None if first is None else entry_reply(by_id[first])),
        *(b"last-entry", None if last is None else entry_reply(by_id[last])),
    ]


def _xinfo_groups(stream: Stream, args: list[bytes], now_ms: int) -> Reply:
    return [
        [
            *(b"name", name),
            *(b"consumers", len(group.consumers)),
            *(b"pending", len(group.pending)),
            *(b"last-delivered-id", format_id(group.last_id)),
            *(b"entries-read", None if group.entries_read == UNKNOWN_COUNT else group.entries_read),
            *(b"lag", stream.lag(group)),
        ]
        for name, group in sorted(stream.groups.items())
    ]


def _xinfo_consumers(stream: Stream, args: list[bytes], now_ms: int) -> Reply:
    group = stream.groups.get(args[3])
    if group is None:
        refuse(f"NOGROUP No such consumer group '{text(args[3])}' for key name '{text(args[2])}'")
    return [
        [
            *(b"name", name),
            *(b"pending", len(consumer.pending)),
            *(b"idle", max(now_ms - consumer.seen_ms, 0)),
            *(b"inactive", -1 if consumer.active_ms < 0 else max(now_ms - consumer.active_ms, 0)),
        ]
        for name, consumer in sorted(group.consumers.items())
    ]


_XINFO = {
    b"STREAM": (-3, _xinfo_stream),
    b"GROUPS": (3, _xinfo_groups),
    b"CONSUMERS": (4, _xinfo_consumers),
}

COMMANDS: dict[str, tuple[int, Handler]] = {
    "XACK": (-4, xack),
    "XPENDING": (-3, xpending),
    "XCLAIM": (-6, xclaim),
    "XAUTOCLAIM": (-6, xautoclaim),
    "XGROUP": (-2, xgroup),
    "XINFO": (-2, xinfo),
}

SUBCOMMANDS: dict[str, dict[bytes, int]] = {
    "XGROUP": {name: arity for name, (arity, _) in _XGROUP.items()},
    "XINFO": {name: arity for name, (arity, _) in _XINFO.items()},
}
"""The arity of each subcommand, which the server checks before it executes or queues a command."""
