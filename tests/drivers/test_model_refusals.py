"""Commands that the server refuses: the model must say the same, word for word."""

import os
import socket

import hiredis
import pytest

from streamfleet.memory import ModelServer
from streamfleet_core.connection import ServerError

PREPARE = (b"XGROUP", b"CREATE", b"s", b"g", b"0", b"MKSTREAM")

REFUSED = """
XADD s MAXLEN ~
XADD s MAXLEN 1
XADD s MAXLEN 1 MINID 1 * a b
XADD s MAXLEN = 1 LIMIT 1 * a b
XADD s MAXLEN ~ 1 LIMIT -1 * a b
XADD s LIMIT 1 * a b
XTRIM s MAXLEN
XTRIM s NONSENSE 1
XTRIM s MAXLEN 1 NONSENSE
XRANGE s - + COUNT
XREAD STREAMS s t 0
XREAD BLOCK -1 STREAMS s 0
XREAD BLOCK x STREAMS s 0
XREAD COUNT x STREAMS s 0
XREAD NONSENSE x STREAMS s 0
XREAD GROUP g c STREAMS s 0
XREAD NOACK COUNT 1 STREAMS s 0
XREAD BLOCK 1 COUNT 2
XREADGROUP COUNT 1 COUNT 2 STREAMS s 0
XREADGROUP GROUP g c STREAMS s t >
XREADGROUP GROUP g c STREAMS s $
XGROUP CREATE s h 0 NONSENSE
XGROUP CREATE s h 0 ENTRIESREAD -2
XGROUP CREATE s g 0
XGROUP CREATE missing g 0
XGROUP SETID s g 0 MKSTREAM
XGROUP SETID s missing 0
XGROUP DESTROY missing g
XGROUP DELCONSUMER missing g c
XGROUP NONSENSE
XGROUP CREATE s
XPENDING s missing
XPENDING s g IDLE
XPENDING s g IDLE 1
XPENDING s g IDLE x - + 1
XPENDING s g - +
XPENDING s g - + x
XCLAIM s g c x 1-1
XCLAIM s g c 0 1-1 IDLE x
XCLAIM s g c 0 1-1 RETRYCOUNT x
XCLAIM s g c 0 1-1 TIME
XAUTOCLAIM s g c 0 0 COUNT 0
XAUTOCLAIM s g c x 0
XAUTOCLAIM s g c 0 0 NONSENSE
XINFO STREAM missing
XINFO CONSUMERS s missing
XINFO STREAM s NONSENSE
XINFO NONSENSE s
CLIENT UNBLOCK x
CLIENT UNBLOCK 1 NONSENSE
CLIENT NONSENSE
CLIENT SETNAME a\tb
CLIENT SETINFO nonsense b
CLIENT ID x
HELLO x
HELLO 5
HELLO 2 NONSENSE
PING a b
SCAN x
SCAN 0 NONSENSE 1
SCAN 0 COUNT 0
SCAN 0 COUNT
SCAN 0 COUNT x
ZRANGE z 0 1 NONSENSE
ZRANGEBYSCORE z 0 1 LIMIT 0
ZADD z NX XX 1 a
ZADD z NX GT 1 a
ZADD z 1
FLUSHALL NONSENSE
PEXPIRE s 1 NONSENSE
SET k v EX
SET k v PX 0
SET k v NX XX
ACL NONSENSE
COMMAND NONSENSE
EXEC
DISCARD
NONSENSE
NONSENSE a b
GET
"""


def real_replies(port: int, *commands: tuple[bytes, ...]) -> list[object]:
    reader = hiredis.Reader(replyError=ServerError)
    replies: list[object] = []
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for command in commands:
            connection.sendall(hiredis.pack_command(command))
            while (reply := reader.gets()) is False:
                received = connection.recv(65536)
                assert received
                reader.feed(received)
            replies.append(reply)
    return replies


@pytest.mark.parametrize("line", REFUSED.strip().split("\n"))
def test_refusals(valkey_port: int, line: str) -> None:
    words = tuple(line.encode().split(b" "))
    session = ModelServer(lambda: 1).session()
    session.execute(PREPARE)
    ours = session.execute(words)
    *_, theirs = real_replies(valkey_port, (b"FLUSHALL",), PREPARE, words)
    assert isinstance(ours, ServerError)
    if "STREAMFLEET_ORACLE" in os.environ:  # another server, other words
        assert isinstance(theirs, ServerError)
        assert ours.code == theirs.code
    else:
        assert ours == theirs
