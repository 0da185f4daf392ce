"""Which commands a client and a worker send to a queue's keys, in forms that a server can be asked about.

A server judges a command when it is queued in a transaction: does it exist, may this user run it, on this key?
So all of them are queued in one that is never executed, which tells everything and does nothing.
"""

from __future__ import annotations

from streamfleet_core.connection import Command
from streamfleet_core.keys import GROUP, QueueKeys, receiver_key

WHO = "doctor"


def transactional(keys: QueueKeys) -> list[Command]:
    """Commands that can be queued."""
    stream, client = keys.stream, keys.client_id(WHO)
    receiver, marker = receiver_key(client), keys.producer(client)
    return [
        ("XADD", stream, "*", "id", WHO),
        ("XADD", keys.dead, "*", "id", WHO),
        ("XADD", receiver, "NOMKSTREAM", "*", "id", WHO),
        ("XGROUP", "CREATE", stream, GROUP, 0, "MKSTREAM"),
        ("XGROUP", "DELCONSUMER", stream, GROUP, WHO),
        ("XREADGROUP", "GROUP", GROUP, WHO, "STREAMS", stream, ">"),
        ("XREAD", "STREAMS", receiver, 0),
        ("XACK", stream, GROUP, 0),
        ("XDEL", stream, 0),
        ("XRANGE", stream, "-", "+", "COUNT", 1),
        ("XPENDING", stream, GROUP),
        ("XCLAIM", stream, GROUP, WHO, 0, 0),
        ("XINFO", "GROUPS", stream),
        ("XINFO", "CONSUMERS", stream, GROUP),
        ("GET", keys.fence),
        ("SET", keys.fence, WHO),
        ("SET", keys.moves, WHO),
        ("ZADD", keys.schedule, 0, WHO),
        ("ZREM", keys.schedule, WHO),
        ("ZRANGE", keys.schedule, 0, 0),
        ("ZRANGEBYSCORE", keys.schedule, 0, 0),
        ("ZSCORE", keys.receivers, WHO),
        ("ZREM", keys.receivers, WHO),
        ("EXISTS", stream),
        ("HSET", keys.scheduled, WHO, WHO),
        ("HDEL", keys.scheduled, WHO),
        ("HMGET", keys.scheduled, WHO),
        ("HINCRBY", marker, "e", 1),
        ("HGET", marker, "s"),
        ("PEXPIRE", marker, 1),
        ("DEL", marker),
        ("TYPE", stream),
        ("TIME",),
        ("INFO", "memory"),
    ]


def direct(keys: QueueKeys) -> list[Command]:
    """Commands that cannot be queued, and do nothing in this order."""
    return [("WATCH", keys.fence), ("UNWATCH",), ("MULTI",), ("EXEC",)]
