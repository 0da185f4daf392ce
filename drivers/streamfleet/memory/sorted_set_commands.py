"""Commands on sorted sets."""

from __future__ import annotations

from streamfleet.memory.arguments import SYNTAX_ERROR, format_real, integer, real, refuse
from streamfleet.memory.database import Database, Handler
from streamfleet.memory.sorted_sets import Bound, SortedSet
from streamfleet_core.connection import Reply

_NOT_A_BOUND = "ERR min or max is not a float"
_ZADD_FLAGS = frozenset({b"NX", b"XX", b"CH", b"GT", b"LT"})


def zadd(db: Database, args: list[bytes]) -> Reply:
    flags, pairs = _zadd_arguments(args)
    zset = db.sorted_set(args[1])
    if zset is None:
        if b"XX" in flags:
            return 0
        zset = SortedSet()
        db.add(args[1], zset)
    added = changed = 0
    for score, member in pairs:
        old = zset.scores.get(member)
        if old is None and b"XX" not in flags:
            added += 1
        elif _moves(flags, old, score):
            changed += 1
        else:
            continue
        zset.set(member, score)
    if added or changed:
        db.touch(args[1])
    return added + changed if b"CH" in flags else added


def _zadd_arguments(args: list[bytes]) -> tuple[set[bytes], list[tuple[float, bytes]]]:
    flags: set[bytes] = set()
    index = 2
    while index < len(args) and args[index].upper() in _ZADD_FLAGS:
        flags.add(args[index].upper())
        index += 1
    rest = args[index:]
    if not rest or len(rest) % 2:
        refuse(SYNTAX_ERROR)
    if {b"NX", b"XX"} <= flags:
        refuse("ERR XX and NX options at the same time are not compatible")
    if len(flags & {b"NX", b"GT", b"LT"}) > 1:
        refuse("ERR GT, LT, and/or NX options at the same time are not compatible")
    scores = [real(score) for score in rest[0::2]]
    return flags, list(zip(scores, rest[1::2], strict=True))


def _moves(flags: set[bytes], old: float | None, score: float) -> bool:
    """Whether ZADD gives a member that is there another score."""
    if old is None or b"NX" in flags or old == score:
        return False
    return not ((b"GT" in flags and score < old) or (b"LT" in flags and score > old))


def zrem(db: Database, args: list[bytes]) -> Reply:
    zset = db.sorted_set(args[1])
    if zset is None:
        return 0
    return _removed(db, args[1], zset, args[2:])


def _removed(db: Database, key: bytes, zset: SortedSet, members: list[bytes]) -> int:
    removed = sum(zset.remove(member) for member in members)
    if removed:
        db.touch(key)
        if not zset:
            db.delete(key)
    return removed


def _flatten(pairs: list[tuple[float, bytes]], *, with_scores: bool) -> Reply:
    if not with_scores:
        return [member for _, member in pairs]
    return [part for score, member in pairs for part in (member, format_real(score))]


def zrange(db: Database, args: list[bytes]) -> Reply:
    if any(option.upper() != b"WITHSCORES" for option in args[4:]):
        refuse(SYNTAX_ERROR)
    start, stop = integer(args[2]), integer(args[3])
    zset = db.sorted_set(args[1])
    if zset is None:
        return []
    size = len(zset)
    start = max(start + size, 0) if start < 0 else start
    stop = stop + size if stop < 0 else stop
    return _flatten(zset.order[start : max(stop + 1, 0)], with_scores=len(args) > 4)


def _bound(argument: bytes) -> Bound:
    exclusive = argument.startswith(b"(")
    return Bound(real(argument[1:] if exclusive else argument, _NOT_A_BOUND), exclusive)


def zrangebyscore(db: Database, args: list[bytes]) -> Reply:
    with_scores, offset, count = False, 0, -1
    options = iter(args[4:])
    for option in options:
        if option.upper() == b"WITHSCORES":
            with_scores = True
        elif option.upper() == b"LIMIT":
            first, second = next(options, None), next(options, None)
            if first is None or second is None:
                refuse(SYNTAX_ERROR)
            offset, count = integer(first), integer(second)
        else:
            refuse(SYNTAX_ERROR)
    low, high = _bound(args[2]), _bound(args[3])
    zset = db.sorted_set(args[1])
    if zset is None or offset < 0:
        return []
    found = zset.between(low, high)[offset:]
    return _flatten(found if count < 0 else found[:count], with_scores=with_scores)


def zremrangebyscore(db: Database, args: list[bytes]) -> Reply:
    low, high = _bound(args[2]), _bound(args[3])
    zset = db.sorted_set(args[1])
    if zset is None:
        return 0
    return _removed(db, args[1], zset, [member for _, member in zset.between(low, high)])


def zcount(db: Database, args: list[bytes]) -> Reply:
    low, high = _bound(args[2]), _bound(args[3])
    zset = db.sorted_set(args[1])
    return 0 if zset is None else len(zset.between(low, high))


def zscore(db: Database, args: list[bytes]) -> Reply:
    zset = db.sorted_set(args[1])
    score = None if zset is None else zset.scores.get(args[2])
    return None if score is None else format_real(score)


def zcard(db: Database, args: list[bytes]) -> Reply:
    return len(db.sorted_set(args[1]) or ())


COMMANDS: dict[str, tuple[int, Handler]] = {
    "ZADD": (-4, zadd),
    "ZREM": (-3, zrem),
    "ZRANGE": (-4, zrange),
    "ZRANGEBYSCORE": (-4, zrangebyscore),
    "ZREMRANGEBYSCORE": (4, zremrangebyscore),
    "ZCOUNT": (4, zcount),
    "ZSCORE": (3, zscore),
    "ZCARD": (2, zcard),
}
