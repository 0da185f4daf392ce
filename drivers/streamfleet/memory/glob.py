"""The glob patterns of KEYS and SCAN."""

from __future__ import annotations


def matches(pattern: bytes, subject: bytes) -> bool:
    """Whether a pattern with ``*``, ``?``, ``[a-z]``, ``[^a]`` and backslash covers the whole subject."""
    if pattern == b"*":
        return True
    return _matches(pattern, 0, subject, 0)


def _matches(pattern: bytes, at: int, subject: bytes, pos: int) -> bool:
    while at < len(pattern):
        symbol = pattern[at]
        if symbol == 0x2A:  # *
            return any(_matches(pattern, at + 1, subject, tail) for tail in range(pos, len(subject) + 1))
        if pos == len(subject):
            return False
        if symbol == 0x5B:  # [
            at, accepted = _class(pattern, at + 1, subject[pos])
            if not accepted:
                return False
        else:
            if symbol == 0x5C and at + 1 < len(pattern):  # backslash
                at += 1
                symbol = -1
            if symbol != 0x3F and pattern[at] != subject[pos]:  # ?
                return False
            at += 1
        pos += 1
    return pos == len(subject)


def _class(pattern: bytes, at: int, byte: int) -> tuple[int, bool]:
    """Where a ``[...]`` class ends, and whether it holds the byte."""
    negated = at < len(pattern) and pattern[at] == 0x5E  # ^
    at += negated
    found = False
    while at < len(pattern) and pattern[at] != 0x5D:  # ]
        if pattern[at] == 0x5C and at + 1 < len(pattern):
            at += 1
            found |= pattern[at] == byte
        elif at + 2 < len(pattern) and pattern[at + 1] == 0x2D:  # -
            low, high = sorted((pattern[at], pattern[at + 2]))
            found |= low <= byte <= high
            at += 2
        else:
            found |= pattern[at] == byte
        at += 1
    return at + 1, found != negated
