"""What a server can do, asked once per connection (protocol, section 9).

The baseline is what Redis 6.2 has. Newer commands are noted, for those who look; none is required, and none is
used unless it is at least as safe as what it would replace (see the decision on XACKDEL).
"""

from __future__ import annotations

from enum import Enum

from streamfleet_core.connection import Command, Reply


class Feature(Enum):
    """A command that not every supported server has."""

    XACKDEL = "acknowledge and delete in one command (Redis 8.2)"
    XNACK = "give entries back in one command (Redis 8.8)"


REQUIRED = ("XADD", "XREADGROUP", "XCLAIM", "XAUTOCLAIM", "XPENDING", "XINFO", "ZADD", "HSET", "WATCH")
"""XAUTOCLAIM itself is not used: it came with Redis 6.2, as did the IDLE option of XPENDING."""


def query() -> Command:
    """The command whose reply `parse` reads. In lower case, for fakeredis, which knows its commands only so."""
    return ("COMMAND", "INFO", *(name.lower() for name in (*REQUIRED, *(feature.name for feature in Feature))))


def parse(reply: Reply) -> tuple[list[str], frozenset[Feature]]:
    """Return the required commands that are missing, and the features that are there.

    A server that does not answer the question is taken to have the baseline.
    """
    if not isinstance(reply, list) or len(reply) != len(REQUIRED) + len(Feature):
        return [], frozenset()
    there = [isinstance(row, list) and bool(row) for row in reply]
    missing = [name for name, found in zip(REQUIRED, there, strict=False) if not found]
    features = [feature for feature, found in zip(Feature, there[len(REQUIRED) :], strict=True) if found]
    return missing, frozenset(features)
