"""What the model server promises beyond the replies that the differential test compares."""

import pytest

from streamfleet.memory import Blocked, ModelServer, Session
from streamfleet_core.connection import Command, Reply, ServerError

READ_NEW = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "BLOCK", 1000, "STREAMS", "s", ">")


class Clock:
    """Server time in ms, set by the test."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> ModelServer:
    return ModelServer(clock)


@pytest.fixture
def session(server: ModelServer) -> Session:
    session = server.session()
    session.execute(("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"))
    return session


def block(session: Session, command: Command = READ_NEW) -> Blocked:
    outcome = session.execute(command)
    assert isinstance(outcome, Blocked)
    assert not outcome.done
    return outcome


def transaction_survives(session: Session, other: Session, key: str, *commands: Command) -> bool:
    """Whether an EXEC is applied although another session ran these commands after the WATCH of the key."""
    session.execute(("WATCH", key))
    for command in commands:
        assert not isinstance(other.execute(command), ServerError)
    session.execute(("MULTI",))
    session.execute(("PING",))
    return session.execute(("EXEC",)) == [b"PONG"]


# Watches


@pytest.mark.parametrize(
    ("command", "survives"),
    [
        (("XADD", "s", "*", "f", "v"), False),
        (("XDEL", "s", "1-1"), False),
        (("XDEL", "s", "9-9"), True),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), True),
        (("XCLAIM", "s", "g", "other", 0, "1-1", "FORCE", "JUSTID"), True),
        (("XACK", "s", "g", "1-1"), True),
        (("XTRIM", "s", "MAXLEN", 0), False),
        (("DEL", "missing"), True),
        (("DEL", "s"), False),
        (("FLUSHALL",), False),
    ],
)
def test_what_dirties_the_watch_of_a_stream(
    server: ModelServer, session: Session, command: Command, survives: bool
) -> None:
    session.execute(("XADD", "s", "1-1", "f", "v"))
    session.execute(("XADD", "s", "2-1", "f", "v"))
    assert transaction_survives(session, server.session(), "s", command) is survives


def test_setting_the_same_value_dirties_a_watch(server: ModelServer, session: Session) -> None:
    session.execute(("SET", "k", "v"))
    assert not transaction_survives(session, server.session(), "k", ("SET", "k", "v"))


def test_expiry_of_a_watched_key_dirties_the_watch(server: ModelServer, session: Session, clock: Clock) -> None:
    session.execute(("SET", "k", "v", "PX", 100))
    session.execute(("WATCH", "k"))
    clock.ms += 100
    session.execute(("MULTI",))
    assert session.execute(("EXEC",)) is None


def test_a_key_that_had_expired_before_the_watch_is_merely_missing(session: Session, clock: Clock) -> None:
    session.execute(("SET", "k", "v", "PX", 100))
    clock.ms += 100
    session.execute(("WATCH", "k"))
    session.execute(("MULTI",))
    assert session.execute(("EXEC",)) == []


def test_exec_and_unwatch_end_all_watches(server: ModelServer, session: Session) -> None:
    session.execute(("WATCH", "a"))
    session.execute(("UNWATCH",))
    assert transaction_survives(session, server.session(), "b", ("SET", "a", 1))
    assert transaction_survives(session, server.session(), "c", ("SET", "b", 1))
    assert server.database.watchers == {}


def test_a_closed_session_watches_nothing(server: ModelServer, session: Session) -> None:
    session.execute(("WATCH", "a"))
    session.close()
    assert server.database.watchers == {}
    assert session.client_id not in server.sessions
    with pytest.raises(RuntimeError, match="closed"):
        session.execute(("PING",))


# Expiry


def test_time_to_live(session: Session, clock: Clock) -> None:
    session.execute(("HSET", "h", "f", "v"))
    assert session.execute(("PEXPIRE", "h", 500)) == 1
    clock.ms += 499
    assert session.execute(("PTTL", "h")) == 1
    clock.ms += 1
    assert session.execute(("PTTL", "h")) == -2
    assert session.execute(("HGETALL", "h")) == []
    assert session.execute(("DEL", "h")) == 0


def test_time_is_the_clock(session: Session, clock: Clock) -> None:
    clock.ms = 1_234_567
    assert session.execute(("TIME",)) == [b"1234", b"567000"]
    assert session.execute(("XADD", "s", "*", "f", "v")) == b"1234567-0"
    assert session.execute(("XADD", "s", "*", "f", "v")) == b"1234567-1"
    clock.ms -= 1000
    assert session.execute(("XADD", "s", "*", "f", "v")) == b"1234567-2"


# Blocking reads


def test_a_blocked_read_gets_the_entry_that_is_added(server: ModelServer, session: Session) -> None:
    calls: list[str] = []
    blocked = block(session)
    blocked.on_done = lambda: calls.append("done")
    server.session().execute(("XADD", "s", "1-1", "f", "v"))
    assert blocked.done
    assert blocked.reply == [[b"s", [[b"1-1", [b"f", b"v"]]]]]
    assert calls == ["done"]
    assert session.execute(("PING",)) == b"PONG"


def test_a_blocked_session_cannot_run_commands(session: Session) -> None:
    block(session)
    with pytest.raises(RuntimeError, match="blocked"):
        session.execute(("PING",))


def test_first_come_first_served(server: ModelServer, session: Session) -> None:
    waiting = [block(server.session()) for _ in range(3)]
    for number in range(3):
        session.execute(("XADD", "s", f"{number + 1}-0", "f", "v"))
        assert [one.done for one in waiting] == [index <= number for index in range(3)]


def test_entries_of_one_transaction_are_served_after_all_of_it(server: ModelServer, session: Session) -> None:
    read_all = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", 0, "STREAMS", "s", ">")
    blocked = block(server.session(), read_all)
    session.execute(("MULTI",))
    session.execute(("XADD", "s", "1-0", "f", "v"))
    session.execute(("XADD", "s", "2-0", "f", "v"))
    session.execute(("EXEC",))
    assert blocked.reply == [[b"s", [[b"1-0", [b"f", b"v"]], [b"2-0", [b"f", b"v"]]]]]


def test_a_blocked_read_times_out_with_nil(server: ModelServer, session: Session, clock: Clock) -> None:
    blocked = block(session)
    assert blocked.deadline_ms == server.next_deadline() == clock.ms + 1000
    clock.ms += 999
    server.tick()
    assert not blocked.done
    clock.ms += 1
    server.tick()
    assert (blocked.done, blocked.reply, blocked.lost) == (True, None, False)
    assert server.next_deadline() is None


def test_being_retried_does_not_prolong_a_blocked_read(
    server: ModelServer, session: Session, clock: Clock
) -> None:
    first, second = block(server.session()), block(server.session())
    deadline = clock.ms + 1000
    clock.ms += 500
    session.execute(("XADD", "s", "1-0", "f", "v"))
    assert first.done
    assert not second.done
    assert server.next_deadline() == deadline


@pytest.mark.parametrize(
    ("reason", "reply"),
    [
        ((), None),
        (("TIMEOUT",), None),
        (("ERROR",), ServerError("UNBLOCKED client unblocked via CLIENT UNBLOCK")),
    ],
)
def test_client_unblock(server: ModelServer, session: Session, reason: Command, reply: Reply) -> None:
    blocked = block(session)
    other = server.session()
    assert other.execute(("CLIENT", "UNBLOCK", session.client_id, *reason)) == 1
    assert (blocked.done, blocked.reply) == (True, reply)
    assert other.execute(("CLIENT", "UNBLOCK", session.client_id)) == 0


@pytest.mark.parametrize("command", [("DEL", "s"), ("XGROUP", "DESTROY", "s", "g"), ("FLUSHALL",)])
def test_a_blocked_group_read_ends_with_its_group(server: ModelServer, session: Session, command: Command) -> None:
    blocked = block(session)
    server.session().execute(command)
    assert isinstance(blocked.reply, ServerError)
    assert blocked.reply.code == "NOGROUP"


def test_a_blocked_plain_read_outlives_the_key(server: ModelServer, session: Session) -> None:
    blocked = block(session, ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"))
    other = server.session()
    other.execute(("DEL", "s"))
    other.execute(("SET", "s", "text"))
    assert not blocked.done
    other.execute(("DEL", "s"))
    other.execute(("XADD", "s", "5-0", "f", "v"))
    assert blocked.reply == [[b"s", [[b"5-0", [b"f", b"v"]]]]]


def test_the_end_of_the_stream_is_that_at_the_time_of_the_read(server: ModelServer, session: Session) -> None:
    session.execute(("XADD", "s", "5-0", "f", "v"))
    blocked = block(server.session(), ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"))
    session.execute(("MULTI",))
    session.execute(("XADD", "s", "6-0", "f", "v"))
    session.execute(("XADD", "s", "7-0", "f", "v"))
    session.execute(("EXEC",))
    assert blocked.reply == [[b"s", [[b"6-0", [b"f", b"v"]], [b"7-0", [b"f", b"v"]]]]]


def test_a_lost_reader_gets_nothing_and_takes_nothing(server: ModelServer, session: Session) -> None:
    blocked = block(server.session())
    blocked.session.close()
    assert (blocked.done, blocked.lost) == (True, True)
    session.execute(("XADD", "s", "1-0", "f", "v"))
    assert session.execute(("XPENDING", "s", "g")) == [0, None, None, None]


def test_an_entry_is_pending_from_the_moment_it_is_added(server: ModelServer, session: Session) -> None:
    """The reply of a blocked read may be lost on its way; the entry then waits in the consumer's own list."""
    blocked = block(server.session())
    session.execute(("XADD", "s", "1-0", "f", "v"))
    blocked.session.close()
    assert session.execute(("XPENDING", "s", "g", "-", "+", 10)) == [[b"1-0", b"c", 0, 1]]


def test_a_read_within_a_transaction_does_not_block(session: Session) -> None:
    session.execute(("MULTI",))
    assert session.execute(READ_NEW) == b"QUEUED"
    assert session.execute(("EXEC",)) == [None]


# Transactions


def test_an_error_at_queue_time_aborts_the_transaction(session: Session) -> None:
    session.execute(("MULTI",))
    session.execute(("SET", "k", 1))
    error = session.execute(("NONSENSE",))
    assert isinstance(error, ServerError)
    assert error.message.startswith("ERR unknown command 'NONSENSE'")
    aborted = session.execute(("EXEC",))
    assert isinstance(aborted, ServerError)
    assert aborted.code == "EXECABORT"
    assert session.execute(("GET", "k")) is None


def test_an_error_at_run_time_rolls_nothing_back(session: Session) -> None:
    session.execute(("MULTI",))
    session.execute(("SET", "k", 1))
    session.execute(("INCR", "s"))
    session.execute(("INCR", "k"))
    replies = session.execute(("EXEC",))
    assert isinstance(replies, list)
    assert isinstance(replies[1], ServerError)
    assert (replies[1].code, replies[2]) == ("WRONGTYPE", 2)


def test_an_earlier_refusal_does_not_abort_a_later_transaction(session: Session) -> None:
    session.execute(("NONSENSE",))
    session.execute(("MULTI",))
    assert session.execute(("EXEC",)) == []


# Faults


def test_a_snapshot_is_independent_of_what_follows(server: ModelServer, session: Session) -> None:
    session.execute(("XADD", "s", "1-0", "f", "v"))
    session.execute(READ_NEW)
    session.execute(("ZADD", "z", 1, "m"))
    session.execute(("HSET", "h", "f", "v"))
    look: list[Command] = [
        ("XRANGE", "s", "-", "+"),
        ("XPENDING", "s", "g", "-", "+", 10, "c"),
        ("XINFO", "CONSUMERS", "s", "g"),
        ("XINFO", "STREAM", "s"),
        ("ZRANGE", "z", 0, -1, "WITHSCORES"),
        ("HGETALL", "h"),
        ("KEYS", "*"),
    ]
    before = [session.execute(command) for command in look]
    snapshot = server.snapshot()
    for _ in range(2):  # a snapshot may be restored more than once
        for change in (
            ("XACK", "s", "g", "1-0"),
            ("XDEL", "s", "1-0"),
            ("XADD", "s", "2-0", "f", "v"),
            ("ZREM", "z", "m"),
            ("HSET", "h", "f", "w"),
            ("SET", "k", "v"),
        ):
            session.execute(change)
        server.restore(snapshot)
        assert session.closed
        session = server.session()
        assert [session.execute(command) for command in look] == before


def test_a_restored_group_settles_as_before(server: ModelServer, session: Session) -> None:
    session.execute(("XADD", "s", "1-0", "f", "v"))
    session.execute(READ_NEW)
    server.restore(server.snapshot())
    session = server.session()
    assert session.execute(("XCLAIM", "s", "g", "d", 0, "1-0", "JUSTID")) == [b"1-0"]
    assert session.execute(("XPENDING", "s", "g", "-", "+", 10, "c")) == []
    assert session.execute(("XACK", "s", "g", "1-0")) == 1


def test_a_restart_without_data(server: ModelServer, session: Session) -> None:
    blocked = block(server.session())
    session.execute(("SET", "k", 1))
    server.reset()
    assert blocked.lost
    assert session.closed
    assert server.session().execute(("DBSIZE",)) == 0


# Odds and ends


def test_idle_time_passes_with_the_clock(session: Session, clock: Clock) -> None:
    session.execute(("XADD", "s", "1-0", "f", "v"))
    session.execute(READ_NEW)
    clock.ms += 700
    assert session.execute(("XPENDING", "s", "g", "-", "+", 10)) == [[b"1-0", b"c", 700, 1]]
    assert session.execute(("XCLAIM", "s", "g", "d", 701, "1-0", "JUSTID")) == []
    assert session.execute(("XAUTOCLAIM", "s", "g", "d", 700, "0", "JUSTID")) == [b"0-0", [b"1-0"], []]
    assert session.execute(("XPENDING", "s", "g", "-", "+", 10)) == [[b"1-0", b"d", 0, 1]]
    session.execute(("XCLAIM", "s", "g", "d", 0, "1-0", "IDLE", 90_000, "JUSTID"))
    assert session.execute(("XPENDING", "s", "g", "IDLE", 90_000, "-", "+", 10)) == [[b"1-0", b"d", 90_000, 1]]


def test_approximate_trimming_never_cuts_too_deep(session: Session) -> None:
    for number in range(250):
        session.execute(("XADD", "s", f"{number + 1}-0", "f", "v"))
    assert session.execute(("XTRIM", "s", "MAXLEN", "~", 120)) == 100
    assert session.execute(("XADD", "s", "MAXLEN", "~", 120, "*", "f", "v")) is not None
    assert session.execute(("XLEN", "s")) == 151


def test_identity(session: Session) -> None:
    hello = session.execute(("HELLO",))
    assert isinstance(hello, list)
    assert dict(zip(hello[0::2], hello[1::2], strict=True))[b"id"] == session.client_id
    assert session.execute(("CLIENT", "ID")) == session.client_id
    info = session.execute(("INFO",))
    assert isinstance(info, bytes)
    assert b"maxmemory_policy:noeviction" in info
    assert b"redis_version:" in info


def test_command_info_tells_what_there_is(session: Session) -> None:
    known, unknown = session.execute(("COMMAND", "INFO", "xadd", "xackdel"))  # type: ignore[misc]
    assert known[:2] == [b"xadd", -5]
    assert unknown is None


@pytest.mark.parametrize("argument", [None, True, ["a"]])
def test_an_argument_that_no_driver_can_write_is_refused(session: Session, argument: object) -> None:
    with pytest.raises(TypeError, match="a command holds"):
        session.execute(("SET", "k", argument))  # type: ignore[arg-type]


def test_arguments_are_written_as_drivers_write_them(session: Session) -> None:
    session.execute(("MULTI",))
    for value in ("ü", 7, 2.5, b"\xff"):
        session.execute(("SET", "k", value, "GET"))
    session.execute(("GET", "k"))
    assert session.execute(("EXEC",)) == [None, "ü".encode(), b"7", b"2.5", b"\xff"]
