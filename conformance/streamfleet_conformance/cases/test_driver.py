"""What every driver owes the core (`streamfleet_core.connection`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from uuid import uuid4

import pytest

from streamfleet_conformance.marks import needs, owned, row
from streamfleet_conformance.proxy import Fault
from streamfleet_conformance.scene import Scene
from streamfleet_conformance.waiting import eventually
from streamfleet_core.connection import Capability, Connection, Reply, ServerError
from streamfleet_core.errors import AuthenticationFailed, ConnectionFailure, NotSent, OutcomeUnknown, ServerRefused

OUT = Capability.OUT_OF_PROCESS
SECONDS = 5.0
PROMPT = 2.0
"""Seconds: what takes longer has waited for a timeout instead of being woken."""


@pytest.fixture
def key(scene: Scene) -> str:
    """A key of this case alone."""
    return f"{scene.queue}-key"


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run a call in a thread; its value or ConnectionFailure is appended to the list."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except ConnectionFailure as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def code(reply: Reply) -> str:
    """The code of an error reply."""
    assert isinstance(reply, ServerError), f"not an error reply: {reply!r}"
    return reply.code


# ---- replies --------------------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_the_commands(scene: Scene, key: str) -> None:
    replies = scene.connect().exchange([("HINCRBY", key, "n", 1)] * 1000, SECONDS)
    assert replies == list(range(1, 1001))


def test_replies_to_unlike_commands_come_in_order(scene: Scene, key: str) -> None:
    commands = [("SET", key, "0"), ("GET", key), ("GET", key + "-none"), ("INCR", key), ("HLEN", key + "-none")]
    assert scene.connect().exchange(commands, SECONDS) == [b"OK", b"0", None, 1, 0]


def test_no_commands_give_no_replies(scene: Scene) -> None:
    connection = scene.connect()
    assert connection.exchange([], SECONDS) == []
    assert connection.exchange([("PING",)], SECONDS) == [b"PONG"]


def test_arrays_nest(scene: Scene, key: str) -> None:
    replies = scene.connect().exchange([("XADD", key, "1-1", "f", "v"), ("XRANGE", key, "-", "+")], SECONDS)
    assert replies == [b"1-1", [[b"1-1", [b"f", b"v"]]]]


def test_an_empty_range_is_an_empty_list(scene: Scene, key: str) -> None:
    assert scene.connect().exchange([("XRANGE", key, "-", "+")], SECONDS) == [[]]


def test_arguments_may_be_bytes_text_and_numbers(scene: Scene, key: str) -> None:
    commands = [("HSET", key, b"b", b"\xff", "text", "héllo", "int", -7, "float", 1.5), ("HGETALL", key)]
    reply = scene.connect().exchange(commands, SECONDS)[1]
    assert isinstance(reply, list)
    pairs = dict(zip(reply[::2], reply[1::2], strict=True))
    assert pairs == {b"b": b"\xff", b"text": "héllo".encode(), b"int": b"-7", b"float": b"1.5"}


def test_every_byte_passes(scene: Scene, key: str) -> None:
    value = bytes(range(256)) + b"\r\n$-1\r\n*2\r\n" + bytes(reversed(range(256)))
    name = b"field\r\n\x00" + bytes(range(128, 256))
    replies = scene.connect().exchange([("XADD", key, "1-1", name, value), ("XRANGE", key, "-", "+")], SECONDS)
    assert replies[1] == [[b"1-1", [name, value]]]


def test_empty_values_pass(scene: Scene, key: str) -> None:
    assert scene.connect().exchange([("SET", key, b""), ("GET", key)], SECONDS) == [b"OK", b""]


@pytest.mark.parametrize("size", [65_535, 65_536, 5_000_000])
def test_large_values_pass(scene: Scene, key: str, size: int) -> None:
    value = bytes(range(251)) * (size // 251 + 1)
    assert scene.connect().exchange([("SET", key, value), ("GET", key)], 20) == [b"OK", value]


def test_many_large_replies_pass(scene: Scene, key: str) -> None:
    value = b"x" * 10_000
    replies = scene.connect().exchange([("SET", key, value), *[("GET", key)] * 500], 20)
    assert replies == [b"OK", *[value] * 500]


# ---- errors as values -----------------------------------------------------------------------------------


def test_an_error_is_a_value_in_its_place(scene: Scene, key: str) -> None:
    replies = scene.connect().exchange([("SET", key, "x"), ("HGET", key, "f"), ("GET", key)], SECONDS)
    assert (replies[0], replies[2]) == (b"OK", b"x")
    assert code(replies[1]) == "WRONGTYPE"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "{key}-none", ">"), "NOGROUP"),
        (("XGROUP", "CREATE", "{key}", "g", "0"), "BUSYGROUP"),
        (("NOSUCHCOMMAND",), "ERR"),
        (("EXEC",), "ERR"),
        (("SET", "{key}"), "ERR"),
    ],
)
def test_errors_keep_their_code(scene: Scene, key: str, command: tuple[str, ...], expected: str) -> None:
    connection = scene.connect()
    connection.exchange([("XGROUP", "CREATE", key, "g", "0", "MKSTREAM")], SECONDS)
    filled = tuple(word.format(key=key) for word in command)
    reply = connection.exchange([filled], SECONDS)[0]
    assert code(reply) == expected
    assert isinstance(reply, ServerError)
    assert not reply.message.startswith("-")
    assert connection.exchange([("PING",)], SECONDS) == [b"PONG"]


def test_an_error_inside_exec_is_a_value_inside_its_array(scene: Scene, key: str) -> None:
    commands = [("SET", key, "1"), ("MULTI",), ("HGET", key, "f"), ("INCR", key), ("EXEC",)]
    replies = scene.connect().exchange(commands, SECONDS)
    result = replies[-1]
    assert replies[1:4] == [b"OK", b"QUEUED", b"QUEUED"]
    assert isinstance(result, list)
    assert (code(result[0]), result[1]) == ("WRONGTYPE", 2)


def test_a_transaction_with_an_error_while_queueing_is_refused(scene: Scene, key: str) -> None:
    commands = [("MULTI",), ("SET", key, "x"), ("NOSUCHCOMMAND",), ("EXEC",), ("GET", key)]
    replies = scene.connect().exchange(commands, SECONDS)
    assert (code(replies[2]), code(replies[3]), replies[4]) == ("ERR", "EXECABORT", None)


# ---- transactions ---------------------------------------------------------------------------------------


def test_exec_is_nil_when_what_was_watched_has_changed(scene: Scene, key: str) -> None:
    connection = scene.connect()
    assert connection.exchange([("WATCH", key)], SECONDS) == [b"OK"]
    scene.do("SET", key, "theirs")
    replies = connection.exchange([("MULTI",), ("SET", key, "ours"), ("EXEC",), ("GET", key)], SECONDS)
    assert replies == [b"OK", b"QUEUED", None, b"theirs"]


@pytest.mark.parametrize("end", [("UNWATCH",), ("MULTI",)])
def test_a_watch_ends(scene: Scene, key: str, end: tuple[str]) -> None:
    connection = scene.connect()
    connection.exchange([("WATCH", key), end, *([("EXEC",)] if end == ("MULTI",) else [])], SECONDS)
    scene.do("SET", key, "theirs")
    assert connection.exchange([("MULTI",), ("GET", key), ("EXEC",)], SECONDS)[-1] == [b"theirs"]


def test_connections_are_sessions_of_their_own(scene: Scene, key: str) -> None:
    one, other = scene.connect(), scene.connect()
    one.exchange([("MULTI",), ("SET", key, "x")], SECONDS)
    assert other.exchange([("GET", key)], SECONDS) == [None]
    assert one.exchange([("EXEC",)], SECONDS) == [[b"OK"]]


def test_a_transaction_dies_with_its_connection(scene: Scene, key: str) -> None:
    connection = scene.connect()
    connection.exchange([("MULTI",), ("SET", key, "x")], SECONDS)
    connection.close()
    assert scene.do("GET", key) is None


# ---- connecting -----------------------------------------------------------------------------------------


def test_identity(scene: Scene) -> None:
    connection = scene.connect()
    identity = connection.identity
    assert identity.server
    assert identity.version[:1].isdigit()
    assert identity.role == "master"
    assert identity.mode in ("standalone", "sentinel", "cluster")
    if identity.client_id:
        assert connection.exchange([("CLIENT", "ID")], SECONDS) == [identity.client_id]
        assert scene.connect().identity.client_id != identity.client_id


def test_connections_satisfy_the_protocol(scene: Scene) -> None:
    assert isinstance(scene.connect(), Connection)


def test_a_driver_serves_several_threads(scene: Scene, key: str) -> None:
    driver = scene.harness.driver(scene.backend.url)

    def use() -> object:
        connection = scene.shell.connect(driver, SECONDS)
        try:
            return connection.exchange([("INCR", key)] * 50, SECONDS)[-1]
        finally:
            connection.close()

    running = [in_thread(use) for _ in range(8)]
    for thread, _ in running:
        thread.join(SECONDS)
    driver.close()
    assert len([outcome for _, outcome in running if isinstance(outcome[0], int)]) == 8
    assert scene.do("GET", key) == b"400"


def test_an_unreachable_server_is_not_sent(scene: Scene) -> None:
    way = scene.way()
    with way.outage(), pytest.raises(NotSent):
        scene.connect(way)
    assert scene.connect(way).exchange([("PING",)], SECONDS) == [b"PONG"]


def test_a_connection_breaks_when_the_server_goes_out_of_reach(scene: Scene) -> None:
    way = scene.way()
    connection = scene.connect(way)
    with way.outage(), pytest.raises(ConnectionFailure):
        connection.exchange([("PING",)], SECONDS)
    with pytest.raises(NotSent):
        connection.exchange([("PING",)], SECONDS)


@needs(OUT)
def test_a_silent_server_cannot_be_connected_to(scene: Scene) -> None:
    way = scene.way()
    way.proxy.blackhole()
    begun = monotonic()
    with pytest.raises(NotSent):
        scene.connect(way, timeout=0.2)
    assert monotonic() - begun < PROMPT


@needs(Capability.ACL, OUT)
def test_users_and_permissions(scene: Scene, key: str) -> None:
    if scene.backend.address is None or "@" in scene.backend.url:
        raise AssertionError("this case puts credentials into the URL: give one over TCP, without any")
    user, password = f"u-{uuid4().hex}", "s:e/c@ret"
    url = scene.backend.url.replace("://", f"://{user}:s%3Ae%2Fc%40ret@")
    scene.do("ACL", "SETUSER", user, "on", f">{password}", "~*", "+@all", "-xdel")
    try:
        connection = scene.connect_to(url)
        assert connection.identity.user == user
        assert code(connection.exchange([("XDEL", key, "1-1")], SECONDS)[0]) == "NOPERM"
        with pytest.raises(AuthenticationFailed) as refused:
            scene.connect_to(url.replace("ret@", "rets@"))
        assert "rets" not in str(refused.value)
    finally:
        scene.do("ACL", "DELUSER", user)


@needs(Capability.ACL, OUT)
def test_a_server_that_wants_a_password_refuses(scene: Scene) -> None:
    user = f"u-{uuid4().hex}"
    url = scene.backend.url.replace("://", f"://{user}:wrong@")
    with pytest.raises(ServerRefused):
        scene.connect_to(url)


# ---- failures of an exchange ----------------------------------------------------------------------------


def test_a_closed_connection_sends_nothing(scene: Scene, key: str) -> None:
    connection = scene.connect()
    connection.close()
    with pytest.raises(NotSent):
        connection.exchange([("SET", key, "x")], SECONDS)
    assert scene.do("GET", key) is None


def test_close_may_be_called_again(scene: Scene) -> None:
    connection = scene.connect()
    connection.close()
    connection.close()
    connection.interrupt()


@row(4)
@needs(OUT)
@pytest.mark.parametrize(
    "commands",
    [
        [("XADD", "{key}", "*", "f", "v")],
        [("XADD", "{key}", "*", "f", "v"), ("PING",), ("PING",)],
        [("MULTI",), ("XADD", "{key}", "*", "f", "v"), ("EXEC",)],
        [("WATCH", "{key}"), ("MULTI",), ("XADD", "{key}", "*", "f", "v"), ("EXEC",)],
    ],
    ids=["single", "pipeline", "transaction", "watched"],
)
@pytest.mark.parametrize(
    ("fault", "applied"),
    [(Fault.REPLY_LOST, 1), (Fault.REQUEST_LOST, 0), (Fault.CUT_MID_REPLY, 1)],
    ids=["reply-lost", "request-lost", "cut-mid-reply"],
)
def test_an_exchange_whose_outcome_is_unknown_is_not_sent_again(
    scene: Scene, key: str, commands: list[tuple[str, ...]], fault: Fault, applied: int
) -> None:
    way = scene.way()
    connection = scene.connect(way)
    way.proxy.inject(fault, b"XADD")
    with pytest.raises(OutcomeUnknown):
        connection.exchange([tuple(word.format(key=key) for word in command) for command in commands], SECONDS)
    with pytest.raises(NotSent):
        connection.exchange([("PING",)], SECONDS)
    assert scene.do("XLEN", key) == applied


@needs(OUT)
def test_a_request_cut_in_the_middle_is_unknown(scene: Scene, key: str) -> None:
    way = scene.way()
    connection = scene.connect(way)
    way.proxy.inject(Fault.CUT, b"XADD")
    with pytest.raises(OutcomeUnknown):
        connection.exchange([("XADD", key, "*", "f", "v")] * 10, SECONDS)
    assert scene.number("XLEN", key) < 10


@needs(OUT)
def test_silence_for_longer_than_the_timeout_is_unknown(scene: Scene, key: str) -> None:
    way = scene.way()
    connection = scene.connect(way)
    way.proxy.blackhole()
    begun = monotonic()
    with pytest.raises(OutcomeUnknown):
        connection.exchange([("SET", key, "x")], 0.2)
    assert 0.19 <= monotonic() - begun < PROMPT


@needs(OUT)
def test_a_late_reply_never_answers_another_exchange(scene: Scene, key: str) -> None:
    way = scene.way()
    connection = scene.connect(way)
    way.proxy.inject(Fault.SLOW, b"SET", delay=0.3)
    with pytest.raises(OutcomeUnknown):
        connection.exchange([("SET", key, "x")], 0.1)
    with pytest.raises(NotSent):
        connection.exchange([("GET", key)], SECONDS)


@needs(OUT)
@owned
def test_a_killed_server_breaks_connections(scene: Scene, key: str) -> None:
    connection = scene.connect()
    scene.backend.kill()
    with pytest.raises(ConnectionFailure):
        connection.exchange([("SET", key, "x")], SECONDS)
    with pytest.raises(NotSent):
        scene.connect()
    scene.backend.restart()
    assert scene.connect().exchange([("PING",)], SECONDS) == [b"PONG"]


# ---- blocking reads -------------------------------------------------------------------------------------


def blocked_read(key: str, milliseconds: int) -> tuple[str | int, ...]:
    """A read of new entries, of a group ``g``."""
    return ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", key, ">")


@pytest.fixture
def grouped(scene: Scene, key: str) -> str:
    """A stream with a group ``g``."""
    scene.do("XGROUP", "CREATE", key, "g", "0", "MKSTREAM")
    return key


def test_a_blocked_read_is_woken_by_an_entry(scene: Scene, grouped: str) -> None:
    connection = scene.connect()
    commands = [("SET", grouped + "-first", "x"), blocked_read(grouped, 10_000)]
    thread, outcome = in_thread(lambda: connection.exchange(commands, 12))
    eventually(lambda: scene.do("GET", grouped + "-first") == b"x", "the command before it was applied at once")
    begun = monotonic()
    scene.do("XADD", grouped, "1-1", "f", "v")
    thread.join(SECONDS)
    assert outcome == [[b"OK", [[grouped.encode(), [[b"1-1", [b"f", b"v"]]]]]]]
    assert monotonic() - begun < PROMPT


def test_a_blocked_read_ends_with_nil_after_its_block_time(scene: Scene, grouped: str) -> None:
    begun = monotonic()
    assert scene.connect().exchange([blocked_read(grouped, 100)], SECONDS) == [None]
    assert 0.095 <= monotonic() - begun < PROMPT


def test_the_timeout_bounds_a_blocked_read(scene: Scene, grouped: str) -> None:
    begun = monotonic()
    with pytest.raises(OutcomeUnknown):
        scene.connect().exchange([blocked_read(grouped, 10_000)], 0.2)
    assert monotonic() - begun < PROMPT


@pytest.mark.parametrize("times", [1, 2])
def test_a_blocked_read_can_be_interrupted(scene: Scene, grouped: str, times: int) -> None:
    connection = scene.connect()
    commands = [("SET", grouped + "-first", "x"), blocked_read(grouped, 10_000)]
    thread, outcome = in_thread(lambda: connection.exchange(commands, 12))
    eventually(lambda: scene.do("GET", grouped + "-first") == b"x", "the read has begun")
    begun = monotonic()
    for _ in range(times):
        connection.interrupt()
    thread.join(SECONDS)
    assert monotonic() - begun < PROMPT
    assert isinstance(outcome[0], OutcomeUnknown)
    with pytest.raises(NotSent):
        connection.exchange([("PING",)], SECONDS)
    connection.close()


def test_an_interrupted_read_takes_no_later_entries(scene: Scene, grouped: str) -> None:
    connection = scene.connect()
    commands = [("SET", grouped + "-first", "x"), blocked_read(grouped, 10_000)]
    thread, _ = in_thread(lambda: connection.exchange(commands, 12))
    eventually(lambda: scene.do("GET", grouped + "-first") == b"x", "the read has begun")
    connection.interrupt()
    thread.join(SECONDS)
    connection.close()

    def next_entry_is_ours() -> bool:
        scene.do("XADD", grouped, "*", "f", "v")
        return isinstance(scene.do("XREADGROUP", "GROUP", "g", "other", "STREAMS", grouped, ">"), list)

    eventually(next_entry_is_ours, "the server has noticed that the reader has gone")


def test_an_interrupt_before_an_exchange_makes_it_fail(scene: Scene) -> None:
    connection = scene.connect()
    connection.interrupt()
    with pytest.raises(ConnectionFailure):
        connection.exchange([("PING",)], SECONDS)


def test_a_read_of_a_plain_stream_blocks_too(scene: Scene, key: str) -> None:
    connection = scene.connect()
    commands = [("SET", key + "-first", "x"), ("XREAD", "COUNT", 1, "BLOCK", 10_000, "STREAMS", key, "0")]
    thread, outcome = in_thread(lambda: connection.exchange(commands, 12))
    eventually(lambda: scene.do("GET", key + "-first") == b"x", "the read has begun")
    scene.do("XADD", key, "1-1", "f", "v")
    thread.join(SECONDS)
    assert outcome == [[b"OK", [[key.encode(), [[b"1-1", [b"f", b"v"]]]]]]]
