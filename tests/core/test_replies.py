import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import (
    AuthenticationFailed,
    PermissionMissing,
    ServerRefused,
    UnsupportedServer,
    WrongKeyType,
)
from streamfleet_core.replies import (
    ErrorKind,
    PendingEntry,
    UnexpectedReply,
    abort_cause,
    classify,
    command_key,
    parse_entries,
    parse_flat,
    parse_pending,
    parse_read,
    parse_time,
    refusal,
)

# Lines as Redis 6.2, 7.0, 8.2 and Valkey 8.1, 9.1 send them.
LINES = {
    ErrorKind.TRY_AGAIN: [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "MOVED 3999 127.0.0.1:6381",
        "ASK 3999 127.0.0.1:6381",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "ERR max number of clients reached",
        "ERR max number of clients + cluster connections reached",
    ],
    ErrorKind.BACK_OFF: [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "NOREPLICAS Not enough good replicas to write.",
    ],
    ErrorKind.FATAL: [
        "NOAUTH Authentication required.",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "NOPERM No permissions to access a key",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "CROSSSLOT Keys in request don't hash to the same slot",
        "DENIED Redis is running in protected mode because protected mode is enabled",
        "ERR unknown command 'XACKDEL', with args beginning with: 'k' ",
        "ERR unknown command `XACKDEL`, with args beginning with: `k`, ",
        "ERR unknown subcommand 'BOGUS'. Try XGROUP HELP.",
        "ERR Unknown subcommand or wrong number of arguments for 'BOGUS'. Try XGROUP HELP.",
        "ERR AUTH <password> called without any password configured for the default user. "
        "Are you sure your configuration is correct?",
    ],
    ErrorKind.NO_GROUP: [
        "NOGROUP No such key 's' or consumer group 'g' in XREADGROUP with GROUP option",
        "NOGROUP No such consumer group 'nog' for key name 's'",
        "ERR no such key",
        "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the "
        "MKSTREAM option to create an empty stream automatically.",
    ],
    ErrorKind.GROUP_EXISTS: ["BUSYGROUP Consumer Group name already exists"],
    ErrorKind.UNBLOCKED: [
        "UNBLOCKED client unblocked via CLIENT UNBLOCK",
        "UNBLOCKED the stream key no longer exists",
    ],
    ErrorKind.ABORTED: [
        "EXECABORT Transaction discarded because of previous errors.",
        "EXECABORT Transaction discarded because of: NOREPLICAS Not enough good replicas to write.",
    ],
    ErrorKind.OTHER: [
        "ERR EXEC without MULTI",
        "ERR syntax error",
        "ERR value is not an integer or out of range",
        "BUSYKEY Target key name already exists.",
        "NOPROTO unsupported protocol version",
        "unknown command",
        "",
    ],
}


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in LINES.items() for line in lines])
def test_kinds_of_error_lines(kind, line):
    assert classify(ServerError(line)) is kind


def test_every_kind_has_a_line():
    assert set(LINES) == set(ErrorKind)


@given(st.text())
def test_any_line_has_a_kind_and_a_refusal(line):
    assert isinstance(classify(ServerError(line)), ErrorKind)
    assert isinstance(refusal(ServerError(line), ("XADD", "k"), "u"), ServerRefused)
    assert isinstance(refusal(ServerError(line), None, "u"), ServerRefused)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "EXECABORT Transaction discarded because of: NOREPLICAS Not enough good replicas to write.",
            "NOREPLICAS Not enough good replicas to write.",
        ),
        ("EXECABORT Transaction discarded because of previous errors.", None),
        ("EXECABORT Transaction discarded because of: ", None),
    ],
)
def test_the_cause_that_an_abort_quotes(line, cause):
    assert abort_cause(ServerError(line)) == (ServerError(cause) if cause else None)


XDEL = (b"XDEL", b"streamfleet:mail", b"1-1")


@pytest.mark.parametrize(
    ("line", "command", "kind", "told"),
    [
        (
            "NOPERM User alice has no permissions to run the 'xdel' command",
            XDEL,
            PermissionMissing,
            ["user 'alice'", "may not run XDEL", "ACL SETUSER alice +xdel"],
        ),
        (
            "NOPERM User alice has no permissions to run the 'xgroup|create' command",
            None,
            PermissionMissing,
            ["may not run XGROUP CREATE", "ACL SETUSER alice +xgroup|create"],
        ),
        (
            "NOPERM this user has no permissions to run the 'xdel' command or its subcommand",
            XDEL,
            PermissionMissing,
            ["user 'bob'", "may not run XDEL", "ACL SETUSER bob +xdel"],
        ),
        (
            "NOPERM this user has no permissions to access one of the keys used as arguments",
            XDEL,
            PermissionMissing,
            ["user 'bob'", "key 'streamfleet:mail'", "XDEL", "ACL SETUSER bob '~*streamfleet:*'"],
        ),
        (
            "NOPERM No permissions to access a key",
            None,
            PermissionMissing,
            ["user 'bob' may not access one of the keys that a command uses", "ACL SETUSER bob '~*streamfleet:*'"],
        ),
        (
            "NOPERM User alice has no permissions to run the 'keys' command",
            ("KEYS", "*"),
            PermissionMissing,
            ["may not run KEYS", "+keys"],
        ),
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            ("ZADD", b"{streamfleet:q}:schedule", 1, "m"),
            WrongKeyType,
            ["key '{streamfleet:q}:schedule'", "not a zset", "ZADD", "TYPE"],
        ),
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            None,
            WrongKeyType,
            ["^a key of the queue is of another type, as a command needs it", "TYPE"],
        ),
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            ("SET", b"k\xff", "v"),
            WrongKeyType,
            ["key 'k\\\\xff' is not a string, as SET needs it"],
        ),
        ("NOAUTH Authentication required.", ("PING",), AuthenticationFailed, ["wants a password", "URL"]),
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            ("AUTH", "bob", "secret"),
            AuthenticationFailed,
            ["'bob'", "check both"],
        ),
        (
            "ERR AUTH <password> called without any password configured for the default user. Are you sure?",
            ("AUTH", "secret"),
            AuthenticationFailed,
            ["no password set", "remove the password"],
        ),
        (
            "ERR unknown command `XAUTOCLAIM`, with args beginning with: `k`, ",
            ("XAUTOCLAIM", "k"),
            UnsupportedServer,
            ["the command XAUTOCLAIM.", "Redis 6.2", "rename-command"],
        ),
        ("ERR unknown subcommand 'CREATE'. Try HELP.", None, UnsupportedServer, ["the command CREATE."]),
        ("ERR unknown command", ("XAUTOCLAIM", "k"), UnsupportedServer, ["the command XAUTOCLAIM."]),
        (
            "ERR unknown subcommand 'CREATECONSUMER'. Try XGROUP HELP.",
            ("XGROUP", "CREATECONSUMER", "k", "g", "c"),
            UnsupportedServer,
            ["XGROUP CREATECONSUMER"],
        ),
        ("CROSSSLOT Keys in request don't hash to the same slot", XDEL, ServerRefused, ["XDEL", "Cluster"]),
        ("DENIED Redis is running in protected mode", None, ServerRefused, ["protected mode", "password"]),
        ("OOM command not allowed", XDEL, ServerRefused, ["refuses XDEL"]),
        (
            "EXECABORT Transaction discarded because of: NOPERM No permissions to access a key",
            ("EXEC",),
            PermissionMissing,
            ["one of the keys"],
        ),
    ],
)
def test_a_refusal_says_who_what_and_the_mend(line, command, kind, told):
    error = refusal(ServerError(line), command, "bob")
    assert type(error) is kind
    for words in [*told, "The server said: "]:
        assert words in "^" + str(error)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("WRONGPASS invalid username-password pair", ("AUTH", "bob", "secret")),
        (
            "ERR unknown command 'HELLO', with args beginning with: '2' 'AUTH' 'bob' 'secret' ",
            ("HELLO", 2, "AUTH", "bob", "secret"),
        ),
        ("WRONGTYPE Operation", ("XADD", "k", "*", "data", b"secret")),
        ("NOPERM No permissions to access a key", ("AUTH", "bob", "secret")),
    ],
)
def test_a_refusal_repeats_neither_password_nor_payload(line, command):
    assert "secret" not in str(refusal(ServerError(line), command, "bob"))


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ((b"XADD", b"k", b"*"), b"k"),
        (("xadd", "k", "*"), "k"),
        (("XGROUP", "CREATE", "k", "g", "0"), "k"),
        (("XINFO", "GROUPS", b"k"), b"k"),
        (("MEMORY", "USAGE", "k"), "k"),
        (("OBJECT", "FREQ", "k"), "k"),
        (("XREAD", "STREAMS", "k", "0"), "k"),
        (("GET", 5), None),
        (("XREADGROUP", "GROUP", "streams", "streams", "COUNT", 1, b"STREAMS", b"k", ">"), b"k"),
        (("XREAD", "BLOCK", 0, "streams", "k", "$"), "k"),
        (("XREAD", "BLOCK", 0), None),
        (("EXEC",), None),
        (("AUTH", "secret"), None),
        (("PING", "hello"), None),
        (("XLEN",), None),
        ((), None),
        (None, None),
    ],
)
def test_the_key_of_a_command(command, key):
    assert command_key(command) == key


# Shapes


def test_entries_with_a_deleted_body():
    # An own history read, after XDEL of a pending entry.
    reply = [[b"s", [[b"1-1", None], [b"1-2", [b"a", b"b"]]]]]
    assert parse_read(reply) == {b"s": [(b"1-1", None), (b"1-2", [b"a", b"b"])]}


def test_claimed_entries_that_redis_62_leaves_nil():
    assert parse_entries([None, [b"1-2", [b"a", b"b"]]]) == [(b"1-2", [b"a", b"b"])]


@pytest.mark.parametrize(("reply", "streams"), [(None, {}), ([], {}), ([[b"s", []]], {b"s": []})])
def test_a_read_without_entries(reply, streams):
    assert parse_read(reply) == streams


def test_a_read_of_two_streams():
    reply = [[b"s", [[b"1-1", [b"a", b""]]]], [b"t", [[b"2-1", []]]]]
    assert parse_read(reply) == {b"s": [(b"1-1", [b"a", b""])], b"t": [(b"2-1", [])]}


def test_pending_entries():
    assert parse_pending([]) == []
    assert parse_pending([[b"1-1", b"node:1", 12345, 2]]) == [PendingEntry(b"1-1", b"node:1", 12345, 2)]


def test_a_flat_reply_keeps_nested_values():
    reply = [b"name", b"g", b"pending", 3, b"last-delivered-id", b"1-3", b"lag", None]
    assert parse_flat(reply) == {b"name": b"g", b"pending": 3, b"last-delivered-id": b"1-3", b"lag": None}
    assert parse_flat([]) == {}


@given(st.integers(0, 2**40), st.integers(0, 999_999))
def test_time_in_milliseconds(seconds, micros):
    reply = [b"%d" % seconds, b"%d" % micros]
    assert parse_time(reply) == (seconds * 1_000_000 + micros) // 1000


ERROR = ServerError("NOGROUP gone")


@pytest.mark.parametrize(
    ("parse", "reply"),
    [
        (parse_entries, None),
        (parse_entries, ERROR),
        (parse_entries, [ERROR]),
        (parse_entries, [[b"1-1"]]),
        (parse_entries, [[b"1-1", b"x"]]),
        (parse_entries, [["1-1", []]]),
        (parse_read, ERROR),
        (parse_read, 7),
        (parse_read, [[b"s", None]]),
        (parse_read, [[b"s", [7]]]),
        (parse_read, {b"s": []}),
        (parse_pending, None),
        (parse_pending, ERROR),
        (parse_pending, [[b"1-1", b"c", b"1", 1]]),
        (parse_pending, [3, b"1-1", b"1-2", []]),
        (parse_flat, ERROR),
        (parse_flat, None),
        (parse_flat, [b"name"]),
        (parse_flat, [7, b"x"]),
        (parse_time, None),
        (parse_time, ERROR),
        (parse_time, [b"1"]),
        (parse_time, [b"1", b"x"]),
        (parse_time, [1, 2]),
    ],
)
def test_another_shape_is_not_taken_for_an_answer(parse, reply):
    with pytest.raises(UnexpectedReply, match="unexpected reply to"):
        parse(reply)


@pytest.mark.parametrize(
    ("parse", "reply", "said"),
    [
        (parse_entries, 7, "XRANGE or XCLAIM: 7"),
        (parse_entries, [8], "XRANGE or XCLAIM: 8"),
        (parse_entries, [[b"1-1", 9]], r"XRANGE or XCLAIM: \[b'1-1', 9\]"),
        (parse_read, 7, "XREADGROUP: 7"),
        (parse_read, [8], "XREADGROUP: 8"),
        (parse_pending, 7, "XPENDING: 7"),
        (parse_pending, [8], "XPENDING: 8"),
        (parse_flat, [b"name"], r"XINFO: \[b'name'\]"),
        (parse_flat, [7, b"x"], r"XINFO: \[7, b'x'\]"),
        (parse_time, 7, "TIME: 7"),
    ],
)
def test_what_was_answered_to_what_is_told(parse, reply, said):
    with pytest.raises(UnexpectedReply, match=f"^unexpected reply to {said}$"):
        parse(reply)
