"""XREAD and XREADGROUP, blocking included."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamfleet.memory.arguments import ID_MAX, SYNTAX_ERROR, format_id, integer, parse_id, refuse, text
from streamfleet.memory.database import Database, Handler, WouldBlock
from streamfleet.memory.stream_commands import entry_reply
from streamfleet.memory.streams import Consumer, Group, Pending, Stream
from streamfleet_core.connection import Reply


@dataclass(slots=True)
class _Read:
    """The arguments of XREAD and XREADGROUP."""

    count: int = -1
    """At most this many entries of each stream; negative is all."""
    block_ms: int | None = None
    no_ack: bool = False
    group: bytes | None = None
    consumer: bytes = b""
    keys: list[bytes] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)


def _parse(args: list[bytes], command: str) -> _Read:
    read = _Read()
    index = 1
    grouped = command == "xreadgroup"
    while index < len(args):
        left = len(args) - index - 1
        match args[index].upper():
            case b"BLOCK" if left:
                read.block_ms = integer(args[index + 1], "ERR timeout is not an integer or out of range")
                if read.block_ms < 0:
                    refuse("ERR timeout is negative")
                index += 2
            case b"COUNT" if left:
                count = integer(args[index + 1])
                read.count = count if count > 0 else -1
                index += 2
            case b"NOACK":
                if not grouped:
                    refuse("ERR The NOACK option is only supported by XREADGROUP. You called XREAD instead.")
                read.no_ack = True
                index += 1
            case b"GROUP" if left >= 2:
                if not grouped:
                    refuse("ERR The GROUP option is only supported by XREADGROUP. You called XREAD instead.")
                read.group, read.consumer = args[index + 1], args[index + 2]
                index += 3
            case b"STREAMS" if left:
                _split_streams(read, args[index + 1 :], command)
                break
            case _:
                refuse(SYNTAX_ERROR)
    if not read.keys:
        refuse(SYNTAX_ERROR)
    if grouped and read.group is None:
        refuse("ERR Missing GROUP option for XREADGROUP")
    return read


def _split_streams(read: _Read, rest: list[bytes], command: str) -> None:
    half, odd = divmod(len(rest), 2)
    if odd:
        special = ">" if command == "xreadgroup" else "$"
        refuse(
            f"ERR Unbalanced '{command}' list of streams: for each stream key an ID or '{special}' "
            "must be specified."
        )
    read.keys, read.ids = rest[:half], rest[half:]


def xreadgroup(db: Database, args: list[bytes]) -> Reply | WouldBlock:
    read = _parse(args, "xreadgroup")
    assert read.group is not None
    members: list[tuple[Stream, Group, int | None]] = []
    for key, argument in zip(read.keys, read.ids, strict=True):
        stream = db.stream(key)
        group = None if stream is None else stream.groups.get(read.group)
        if stream is None or group is None:
            refuse(
                f"NOGROUP No such key '{text(key)}' or consumer group '{text(read.group)}' "
                "in XREADGROUP with GROUP option"
            )
        members.append((stream, group, _group_start(argument)))
    answers: list[Reply] = []
    for key, (stream, group, after) in zip(read.keys, members, strict=True):
        consumer = group.consumer(read.consumer, db.now_ms)
        if after is not None:
            answers.append([key, _history(db, stream, consumer, after, read.count)])
        elif stream.last_id > group.last_id and stream.entries:
            entries = _deliver(db, stream, group, consumer, read)
            if entries:
                answers.append([key, entries])
    return _answer(read, args, answers, xreadgroup, needs_stream=False)


def _answer(
    read: _Read, args: list[bytes], answers: list[Reply], handler: Handler, *, needs_stream: bool
) -> Reply | WouldBlock:
    if answers:
        return answers
    if read.block_ms is None:
        return None
    return WouldBlock(read.keys, read.block_ms, args, handler, needs_stream)


def _group_start(argument: bytes) -> int | None:
    """After which id one's own pending entries are read again; None for new entries."""
    if argument == b">":
        return None
    if argument in (b"$", b"+"):
        refuse(
            f"ERR The {text(argument)} ID is meaningless in the context of XREADGROUP: you want to read the "
            "history of this consumer by specifying a proper ID, or use the > ID to get new messages. "
            f"The {text(argument)} ID would just return an empty result set."
        )
    return parse_id(argument)


def _history(db: Database, stream: Stream, consumer: Consumer, after: int, count: int) -> Reply:
    entries: list[Reply] = []
    if after == ID_MAX:
        return entries
    for entry_id in consumer.pending.keys(after + 1, ID_MAX, count):
        entry = stream.entries.by_id.get(entry_id)
        if entry is None:
            entries.append([format_id(entry_id), None])
            continue
        pending = consumer.pending.by_id[entry_id]
        pending.delivered_ms = db.now_ms
        pending.deliveries += 1
        entries.append(entry_reply(entry))
    return entries


def _deliver(db: Database, stream: Stream, group: Group, consumer: Consumer, read: _Read) -> list[Reply]:
    now_ms, by_id = db.now_ms, stream.entries.by_id
    ids = stream.entries.keys(group.last_id + 1, ID_MAX, read.count)
    for entry_id in ids:
        stream.advance(group, entry_id)
        if read.no_ack:
            continue
        pending = group.pending.by_id.get(entry_id)
        if pending is None:
            pending = Pending(consumer, now_ms)
        pending.delivered_ms, pending.deliveries = now_ms, 1
        group.assign(entry_id, pending, consumer)
    if ids and not read.no_ack:
        consumer.active_ms = now_ms
    return [entry_reply(by_id[entry_id]) for entry_id in ids]


def xread(db: Database, args: list[bytes]) -> Reply | WouldBlock:
    read = _parse(args, "xread")
    positions: list[int] = []
    for key, argument in zip(read.keys, read.ids, strict=True):
        positions.append(_position(db.stream(key), argument))
    answers: list[Reply] = []
    for key, after in zip(read.keys, positions, strict=True):
        stream = db.stream(key)
        if stream is None or after >= stream.last_id:
            continue
        ids = stream.entries.keys(after + 1, ID_MAX, read.count)
        if ids:
            by_id = stream.entries.by_id
            answers.append([key, [entry_reply(by_id[entry_id]) for entry_id in ids]])
    # A second try must not take ``$`` for the end of the stream at that time.
    fixed = args[: len(args) - len(positions)] + [format_id(position) for position in positions]
    return _answer(read, fixed, answers, xread, needs_stream=True)


def _position(stream: Stream | None, argument: bytes) -> int:
    """After which id XREAD begins: ``$`` is the end of the stream, ``+`` just before its last entry."""
    if argument == b">":
        refuse(
            "ERR The > ID can be specified only when calling XREADGROUP using the GROUP <group> <consumer> option."
        )
    if argument == b"$":
        return 0 if stream is None else stream.last_id
    if argument == b"+":
        last = None if stream is None else stream.entries.last()
        return 0 if last is None else last - 1
    return parse_id(argument)


COMMANDS: dict[str, tuple[int, Handler]] = {
    "XREAD": (-4, xread),
    "XREADGROUP": (-7, xreadgroup),
}
