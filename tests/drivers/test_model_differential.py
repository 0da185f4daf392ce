"""The model server against a real one: the same commands must give the same replies.

What differs by nature is made comparable: ids made of the server's clock get names in the order of their
appearance, idle times become "some idle time", and the lists that have no order are sorted.

The model is a Valkey 9. STREAMFLEET_ORACLE=<path of another server> compares with that one; what is then seen:

- Valkey 8.1: nothing.
- Redis 8.2: MULTI and WATCH within MULTI are refused in other words, and do not abort the transaction.
- Redis 7.0: that, too; XREADGROUP creates the consumer only when it has entries for it; XREAD knows no ``+``;
  XINFO CONSUMERS has no ``inactive``; a blocked XREADGROUP ends with UNBLOCKED when its stream is deleted.
"""

import os
import select
import socket
import time
from dataclasses import dataclass

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet.memory import Blocked, ModelServer, Session
from streamfleet_core.connection import Reply, ServerError

EXACT_TEXTS = "STREAMFLEET_ORACLE" not in os.environ
"""Against the default server error texts must be the same, against another one their first words."""

SESSIONS = 3
LONG_MS = b"100000000"  # more idle time than any entry can have
REPLY_SECONDS = 5.0


@dataclass(frozen=True)
class Made:
    """An argument: the n-th id that the server made of its clock (modulo how many there are)."""

    number: int


@dataclass(frozen=True)
class Step:
    session: int
    command: tuple[bytes | Made, ...]

    @property
    def name(self) -> bytes:
        return bytes(self.command[0]).upper() if isinstance(self.command[0], bytes) else b""


# Strategies


def words(text: str) -> st.SearchStrategy[bytes]:
    return st.sampled_from(text.encode().split())


KEYS = words("s s s t h z k")
STREAMS = words("s s s s t k")
GROUPS = words("g g g f")
CONSUMERS = words("a b")
EXPLICIT_IDS = words("0-0 0-1 1 1-1 1-2 2-0 2-5 3-* 7-1 18446744073709551615-0 x 5-x - +")
IDS = st.one_of(st.builds(Made, st.integers(0, 9)), st.builds(Made, st.integers(0, 9)), EXPLICIT_IDS)
BOUNDS = st.one_of(words("- - + 0 1 1-1 (1-1 (- 2 (2-0 x"), st.builds(Made, st.integers(0, 9)))
SCORES = words("1 2 2.5 -1 inf -inf 1e3 x 1700000000000")
SCORE_BOUNDS = words("-inf +inf (1 1 2 (2 2.5 x 1700000000000")
FIELDS = words("f f2 n")
VALUES = words("1 2 abc -5 9223372036854775807 01")
COUNTS = words("1 2 3 10 0 -1")
MIN_IDLES = st.sampled_from([b"0", b"0", b"0", LONG_MS, b"-1", b"x"])


def command(*parts: bytes | str | st.SearchStrategy) -> st.SearchStrategy[tuple]:
    """A command of fixed words (split at spaces) and of drawn ones; a drawn tuple is spliced in."""
    strategies: list[st.SearchStrategy] = []
    for part in parts:
        if isinstance(part, str):
            strategies += [st.just(word) for word in part.encode().split()]
        else:
            strategies.append(part if isinstance(part, st.SearchStrategy) else st.just(part))
    return st.tuples(*strategies).map(_spliced)


def _spliced(parts: tuple) -> tuple:
    return tuple(item for part in parts for item in (part if isinstance(part, tuple) else (part,)))


def maybe(*parts: str | st.SearchStrategy) -> st.SearchStrategy[tuple]:
    return st.one_of(st.just(()), command(*parts))


def several(item: st.SearchStrategy, most: int = 3) -> st.SearchStrategy[tuple]:
    return st.lists(item, min_size=1, max_size=most).map(_spliced_list)


def _spliced_list(items: list) -> tuple:
    return _spliced(tuple(items))


PAIRS = several(st.tuples(FIELDS, VALUES))
TRIM = st.one_of(command("MAXLEN", words("0 1 2 5 -1 x")), command("MINID =", IDS))
ADD = command("XADD", STREAMS, "*", PAIRS)
READ_NEW = command("XREADGROUP GROUP", GROUPS, CONSUMERS, maybe("COUNT", COUNTS), "STREAMS", STREAMS, ">")
CREATE = command("XGROUP CREATE", STREAMS, GROUPS, st.one_of(words("$ 0 0"), IDS), "MKSTREAM")
BLOCKED = st.one_of(
    command("XREADGROUP GROUP", GROUPS, CONSUMERS, maybe("COUNT 1"), "BLOCK 0 STREAMS", STREAMS, ">"),
    command("XREADGROUP GROUP g", CONSUMERS, "BLOCK 0 STREAMS s t > >"),
    command("XREAD BLOCK 0 STREAMS", STREAMS, words("$ $ 0")),
)

STREAM_COMMANDS = st.one_of(
    ADD,
    ADD,
    CREATE,
    READ_NEW,
    READ_NEW,
    BLOCKED,
    command("XADD", STREAMS, maybe("NOMKSTREAM"), maybe(TRIM), st.one_of(IDS, st.just(b"*")), PAIRS),
    command("XADD", STREAMS, "*", several(FIELDS)),
    command("XLEN", KEYS),
    command("XDEL", STREAMS, several(IDS)),
    command("XTRIM", STREAMS, TRIM),
    command("XRANGE", KEYS, BOUNDS, BOUNDS, maybe("COUNT", COUNTS)),
    command("XREVRANGE", KEYS, BOUNDS, BOUNDS, maybe("COUNT", COUNTS)),
    command("XREAD", maybe("COUNT", COUNTS), "STREAMS", several(KEYS, 2), st.one_of(IDS, words("$ >"))),
    command("XREAD STREAMS s t", IDS, IDS),
    command("XINFO STREAM", KEYS),
    command("XINFO GROUPS", KEYS),
)
GROUP_COMMANDS = st.one_of(
    CREATE,
    READ_NEW,
    command("XGROUP CREATE", KEYS, GROUPS, st.one_of(words("$ 0"), IDS), maybe("MKSTREAM")),
    command("XGROUP DESTROY", KEYS, GROUPS),
    command("XGROUP SETID", KEYS, GROUPS, st.one_of(words("$ 0"), IDS)),
    command("XGROUP", words("CREATECONSUMER DELCONSUMER"), KEYS, GROUPS, CONSUMERS),
    command("XREADGROUP GROUP", GROUPS, CONSUMERS, "NOACK STREAMS", STREAMS, ">"),
    command("XREADGROUP GROUP", GROUPS, CONSUMERS, maybe("COUNT", COUNTS), "STREAMS", KEYS, IDS),
    command("XREADGROUP GROUP", GROUPS, CONSUMERS, "STREAMS s t", words("> 0"), several(words("> 0 $"), 2)),
    command("XACK", KEYS, GROUPS, several(IDS)),
    command("XPENDING", KEYS, GROUPS),
    command("XPENDING", KEYS, GROUPS, BOUNDS, BOUNDS, COUNTS, maybe(CONSUMERS)),
    command("XPENDING", KEYS, GROUPS, "IDLE", MIN_IDLES, "- + 10", maybe(CONSUMERS)),
    command(
        "XCLAIM",
        KEYS,
        GROUPS,
        CONSUMERS,
        MIN_IDLES,
        several(IDS),
        maybe("JUSTID"),
        maybe("FORCE"),
        maybe("RETRYCOUNT", COUNTS),
        maybe("IDLE", words("0 200000000")),
        maybe("LASTID", IDS),
    ),
    command("XCLAIM", KEYS, GROUPS, CONSUMERS, MIN_IDLES, IDS, maybe(words("IDLE NONSENSE"))),
    command("XAUTOCLAIM", KEYS, GROUPS, CONSUMERS, MIN_IDLES, BOUNDS, maybe("COUNT", COUNTS), maybe("JUSTID")),
    command("XINFO CONSUMERS", KEYS, GROUPS),
    command("XINFO GROUPS", STREAMS),
)
KEY_COMMANDS = st.one_of(
    command("SET", KEYS, VALUES, maybe(words("NX XX")), maybe("GET"), maybe("PX", words("100000 x 0"))),
    command("SET", KEYS, VALUES, words("NX KEEPTTL EX"), maybe(words("100 XX GET"))),
    command("GET", KEYS),
    command("MGET", several(KEYS)),
    command("INCR", KEYS),
    command("PEXPIRE", KEYS, words("100000 0 -5 x 9223372036854775807")),
    command("PTTL", KEYS),
    command("PERSIST", KEYS),
    command("TYPE", KEYS),
    command("EXISTS", several(KEYS)),
    command(words("DEL DEL UNLINK"), several(KEYS, 2)),
    command("KEYS", words("* s [s-u] [^s] ? \\s s*")),
    command("SCAN 0 COUNT 1000", maybe("MATCH", words("* s [h-k]")), maybe("TYPE", words("stream hash"))),
    command("DBSIZE"),
    command(words("FLUSHALL FLUSHDB")),
    command("ACL WHOAMI"),
    command("PING", maybe("hello")),
)
HASH_AND_ZSET_COMMANDS = st.one_of(
    command("HSET", KEYS, PAIRS),
    command("HSET", KEYS, several(FIELDS)),
    command("HGET", KEYS, FIELDS),
    command("HMGET", KEYS, several(FIELDS)),
    command("HDEL", KEYS, several(FIELDS)),
    command(words("HGETALL HLEN ZCARD"), KEYS),
    command("HEXISTS", KEYS, FIELDS),
    command("HINCRBY", KEYS, FIELDS, VALUES),
    command("ZADD", KEYS, maybe(words("NX XX")), maybe(words("GT LT CH")), several(st.tuples(SCORES, FIELDS))),
    command("ZREM", KEYS, several(FIELDS)),
    command("ZRANGE", KEYS, words("0 1 -2 5 x"), words("-1 0 1 -2"), maybe("WITHSCORES")),
    command(
        "ZRANGEBYSCORE",
        KEYS,
        SCORE_BOUNDS,
        SCORE_BOUNDS,
        maybe("WITHSCORES"),
        maybe("LIMIT", words("0 1 -1"), words("1 2 -1")),
    ),
    command(words("ZREMRANGEBYSCORE ZCOUNT"), KEYS, SCORE_BOUNDS, SCORE_BOUNDS),
    command("ZSCORE", KEYS, FIELDS),
)
TRANSACTION_COMMANDS = st.one_of(
    command("MULTI"),
    command("EXEC"),
    command("EXEC"),
    command("WATCH", several(KEYS, 2)),
    command(words("DISCARD UNWATCH MULTI")),
    command(words("NONSENSE GET XGROUP XINFO"), maybe(words("a b CREATE DESTROY STREAM"))),
    command("XGROUP DESTROY", maybe("s g x")),
)


def steps(*weighted: tuple[int, st.SearchStrategy[tuple]]) -> st.SearchStrategy[list[Step]]:
    commands = st.one_of([strategy for weight, strategy in weighted for _ in range(weight)])
    one = st.builds(Step, st.integers(0, SESSIONS - 1), commands)
    return st.lists(one, min_size=3, max_size=30)


# The two servers


class RealSession:
    """A connection to the real server, one command at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=REPLY_SECONDS)
        self.reader = hiredis.Reader(replyError=ServerError)
        self.waiting = False
        self.client_id = self.execute((b"CLIENT", b"ID"))

    def send(self, command: tuple[bytes, ...]) -> None:
        self.socket.sendall(hiredis.pack_command(command))

    def execute(self, command: tuple[bytes, ...]) -> Reply:
        self.send(command)
        return self.reply()

    def reply(self) -> Reply:
        while (reply := self.reader.gets()) is False:
            received = self.socket.recv(65536)
            assert received, "the server closed the connection"
            self.reader.feed(received)
        return reply

    def has_reply(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])


class Names:
    """The ids that one server made of its clock, in the order of their appearance."""

    def __init__(self) -> None:
        self.made: list[bytes] = []

    def note(self, entry_id: bytes) -> None:
        if entry_id not in self.made:
            self.made.append(entry_id)

    def argument(self, part: bytes | Made) -> bytes:
        if isinstance(part, bytes):
            return part
        return self.made[part.number % len(self.made)] if self.made else b"1-1"

    def named(self, reply: Reply) -> Reply:
        if isinstance(reply, list):
            return [self.named(item) for item in reply]
        if isinstance(reply, bytes) and reply in self.made:
            return b"made-%d" % self.made.index(reply)
        return reply


def comparable(name: bytes, subcommand: bytes, reply: Reply) -> Reply:
    """The reply without what differs by nature."""
    if isinstance(reply, ServerError) and not EXACT_TEXTS:
        return reply.code.encode()
    if not isinstance(reply, list):
        return min(reply, 1) if name == b"PTTL" and isinstance(reply, int) else reply
    if name == b"KEYS":
        return sorted(reply)
    if name == b"SCAN" and isinstance(reply[1], list):
        return [reply[0], sorted(reply[1])]
    if name == b"XPENDING":
        return [
            [row[0], row[1], "idle", row[3]] if isinstance(row, list) and len(row) == 4 else row for row in reply
        ]
    if name == b"XINFO" and subcommand == b"STREAM":
        return without(reply, b"radix-tree-keys", b"radix-tree-nodes")
    if name == b"XINFO" and subcommand == b"CONSUMERS":
        return [without_times(row) for row in reply if isinstance(row, list)]
    return reply


def without_times(row: list) -> list:
    """A consumer's row; that it was never active (-1) is kept."""
    never = dict(zip(row[0::2], row[1::2], strict=True)).get(b"inactive") == -1
    return [*without(row, b"idle", b"inactive"), never]


def without(reply: list, *names: bytes) -> list:
    pairs = list(zip(reply[0::2], reply[1::2], strict=True))
    return [part for pair in pairs if pair[0] not in names for part in pair]


def ms_of(time_reply: Reply) -> int:
    assert isinstance(time_reply, list)
    seconds, micros = time_reply
    assert isinstance(seconds, bytes)
    assert isinstance(micros, bytes)
    return int(seconds) * 1000 + int(micros) // 1000


class Twins:
    """The model and the real server, driven in step."""

    def __init__(self, port: int) -> None:
        self.clock = 1_000_000_000_000
        self.model = ModelServer(lambda: self.clock)
        self.control = RealSession(port)
        self.control.execute((b"FLUSHALL",))
        self.model_sessions = [self.model.session() for _ in range(SESSIONS)]
        self.real_sessions = [RealSession(port) for _ in range(SESSIONS)]
        self.blocked: dict[int, tuple[Step, Blocked]] = {}
        self.queued: list[list[Step]] = [[] for _ in range(SESSIONS)]
        self.names = (Names(), Names())

    def close(self) -> None:
        for session in (self.control, *self.real_sessions):
            session.socket.close()

    def run(self, step: Step) -> None:
        if step.session in self.blocked:
            return
        self.clock += 1
        model, real = self.model_sessions[step.session], self.real_sessions[step.session]
        ours = model.execute(tuple(self.names[0].argument(part) for part in step.command))
        real.send(tuple(self.names[1].argument(part) for part in step.command))
        if isinstance(ours, Blocked):
            self.await_blocked(real, step)
            self.blocked[step.session] = (step, ours)
            return
        self.compare(step, ours, real.reply())
        self.collect_served()
        if b"*" in step.command or step.name == b"EXEC":
            self.await_next_ms()

    def await_next_ms(self) -> None:
        """Let no two commands make ids of the same ms: the model's clock moves with each command, too."""
        now = start = self.control.execute((b"TIME",))
        deadline = time.monotonic() + REPLY_SECONDS
        while ms_of(now) == ms_of(start):
            assert time.monotonic() < deadline
            now = self.control.execute((b"TIME",))

    def await_blocked(self, real: RealSession, step: Step) -> None:
        """Wait until the real server has blocked the session, too."""
        deadline = time.monotonic() + REPLY_SECONDS
        while time.monotonic() < deadline:
            line = self.control.execute((b"CLIENT", b"LIST", b"ID", b"%d" % real.client_id))
            assert isinstance(line, bytes)
            if b"b" in line.partition(b" flags=")[2].split(b" ")[0]:
                return
            assert not real.has_reply(), f"{step}: the model blocks, the server says {real.reply()}"
        pytest.fail(f"{step} is not blocked")

    def collect_served(self) -> None:
        """Compare the replies of the blocked sessions that are served now."""
        for number, (step, blocked) in list(self.blocked.items()):
            if blocked.done:
                del self.blocked[number]
                self.compare(step, blocked.reply, self.real_sessions[number].reply())

    def compare(self, step: Step, ours: Reply, theirs: Reply) -> None:
        queue = self.queued[step.session]
        if ours == b"QUEUED":
            queue.append(step)
        elif step.name == b"EXEC" and isinstance(ours, list) and isinstance(theirs, list):
            inner = queue[:]
            queue.clear()
            assert len(ours) == len(theirs)
            for one, left, right in zip(inner, ours, theirs, strict=True):
                self.compare_reply(one, left, right)
            return
        elif step.name in (b"EXEC", b"DISCARD", b"MULTI"):
            queue.clear()
        self.compare_reply(step, ours, theirs)

    def compare_reply(self, step: Step, ours: Reply, theirs: Reply) -> None:
        if step.name == b"XADD" and b"*" in step.command:
            for names, reply in zip(self.names, (ours, theirs), strict=True):
                if isinstance(reply, bytes) and reply != b"QUEUED":
                    names.note(reply)
        subcommand = step.command[1] if len(step.command) > 1 else b""
        assert isinstance(subcommand, bytes)
        left, right = (
            comparable(step.name, subcommand, names.named(reply))
            for names, reply in zip(self.names, (ours, theirs), strict=True)
        )
        assert left == right, f"{step}: the model says {left}, the server {right}"

    def finish(self) -> None:
        """Whoever still waits in the model waits on the server as well; then compare what is left."""
        for number, (step, _) in self.blocked.items():
            self.await_blocked(self.real_sessions[number], step)
        for key in (b"s", b"t"):
            look = [(b"XINFO", b"STREAM", key), (b"XINFO", b"GROUPS", key), (b"XRANGE", key, b"-", b"+")]
            look += [(b"XINFO", b"CONSUMERS", key, group) for group in (b"g", b"f")]
            look += [(b"XPENDING", key, group, b"-", b"+", b"100") for group in (b"g", b"f")]
            observer: Session = self.model.session()
            for command in look:
                self.compare_reply(Step(0, command), observer.execute(command), self.control.execute(command))


def check(port: int, program: list[Step]) -> None:
    twins = Twins(port)
    try:
        for step in program:
            twins.run(step)
        twins.finish()
    finally:
        twins.close()


@given(steps((3, STREAM_COMMANDS), (3, GROUP_COMMANDS)))
def test_streams_and_groups(valkey_port: int, program: list[Step]) -> None:
    check(valkey_port, program)


@given(steps((2, KEY_COMMANDS), (2, HASH_AND_ZSET_COMMANDS)))
def test_keys_hashes_and_sorted_sets(valkey_port: int, program: list[Step]) -> None:
    check(valkey_port, program)


@given(
    steps(
        (6, TRANSACTION_COMMANDS),
        (3, STREAM_COMMANDS),
        (2, GROUP_COMMANDS),
        (2, KEY_COMMANDS),
        (1, HASH_AND_ZSET_COMMANDS),
    )
)
def test_transactions(valkey_port: int, program: list[Step]) -> None:
    check(valkey_port, program)
