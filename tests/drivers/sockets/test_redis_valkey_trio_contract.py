"""What every driver over a socket owes the core, in every shell, with every parser."""

import socket
import ssl
import threading

import pytest

import streamfleet.library
import streamfleet.trio_driver
from streamfleet.embedded import EmbeddedServer
from streamfleet.redis import RedisDriver
from streamfleet.settings import settings_for
from streamfleet.trio_driver import TrioDriver
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.connection import Capability, ServerError
from streamfleet_core.errors import (
    AuthenticationFailed,
    NotSent,
    OutcomeUnknown,
    PermissionMissing,
    ServerRefused,
    UsageError,
)

SECRET = "pa:ss@w/ord"


@pytest.fixture
def connection(pair, server):
    connection = pair.connect(server.url)
    connection.exchange([("FLUSHALL",)], 5)
    return connection


@pytest.fixture
def admin(server):
    """Another connection, to look at the server with."""
    connection = RedisDriver(server.url).connect(5)
    yield lambda *command: connection.exchange([command], 5)[0]
    connection.close()


class TestReplies:
    def test_kinds(self, connection):
        commands = [
            ("SET", "text", "héllo"),
            ("GET", b"text"),
            ("GET", "missing"),
            ("INCRBY", "number", 41),
            ("INCRBYFLOAT", "float", 1.5),
            ("XADD", "stream", "1-1", "field", b"\x00\r\n\xff"),
            ("XRANGE", "stream", "-", "+"),
            ("LRANGE", "none", 0, -1),
            ("GET", "stream"),
        ]
        assert connection.exchange(commands, 5) == [
            b"OK",
            "héllo".encode(),
            None,
            41,
            b"1.5",
            b"1-1",
            [[b"1-1", [b"field", b"\x00\r\n\xff"]]],
            [],
            ServerError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ]

    @pytest.mark.parametrize(
        ("command", "code"),
        [
            (("LPUSH", "text", "x"), "WRONGTYPE"),
            (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "none", ">"), "NOGROUP"),
            (("XGROUP", "CREATE", "stream", "group", "0"), "BUSYGROUP"),
            (("NOSUCHCOMMAND",), "ERR"),
            (("EXEC",), "ERR"),
            (("EVALSHA", "0" * 40, 0), "NOSCRIPT"),
        ],
    )
    def test_errors_keep_their_code(self, connection, command, code):
        connection.exchange([("SET", "text", "x"), ("XGROUP", "CREATE", "stream", "group", "0", "MKSTREAM")], 5)
        [reply] = connection.exchange([command], 5)
        assert isinstance(reply, ServerError)
        assert reply.code == code

    def test_errors_inside_exec_are_values_too(self, connection):
        replies = connection.exchange(
            [("SET", "text", "x"), ("MULTI",), ("LPUSH", "text", "x"), ("INCR", "n"), ("EXEC",)], 5
        )
        assert replies[-1] == [
            ServerError("WRONGTYPE Operation against a key holding the wrong kind of value"),
            1,
        ]

    def test_an_aborted_transaction(self, connection):
        assert connection.exchange([("MULTI",), ("NOSUCHCOMMAND",), ("EXEC",)], 5)[-1].code == "EXECABORT"

    def test_a_dirty_watch_gives_nil(self, connection, admin):
        connection.exchange([("WATCH", "key")], 5)
        admin("SET", "key", "x")
        assert connection.exchange([("MULTI",), ("PING",), ("EXEC",)], 5)[-1] is None

    def test_many_commands_in_order(self, connection):
        assert connection.exchange([("ECHO", n) for n in range(5000)], 5) == [b"%d" % n for n in range(5000)]

    def test_large_values(self, connection):
        value = bytes(range(256)) * 20_000
        replies = connection.exchange([("SET", "large", value), ("GET", "large"), ("STRLEN", "large")], 10)
        assert replies == [b"OK", value, len(value)]

    def test_no_commands(self, connection):
        assert connection.exchange([], 5) == []

    def test_an_unusable_argument_sends_nothing_and_breaks_nothing(self, connection):
        with pytest.raises(TypeError):
            connection.exchange([("SET", "key", "x"), ("SET", "key", None)], 5)
        assert connection.exchange([("EXISTS", "key")], 5) == [0]


class TestConnecting:
    def test_identity(self, pair, server, connection):
        identity = connection.identity
        assert (identity.server, identity.version) == (server.engine, server.version)
        assert (identity.mode, identity.role, identity.user) == ("standalone", "master", "default")
        assert connection.exchange([("CLIENT", "ID")], 5) == [identity.client_id]
        trials = {
            Capability.XACKDEL: ("XACKDEL", "s", "g", "IDS", 1, "1-1"),
            Capability.CLUSTER_COMMANDS: ("CLUSTER", "KEYSLOT", "s"),
        }
        replies = connection.exchange(list(trials.values()), 5)
        lacking = {what for what, reply in zip(trials, replies, strict=True) if isinstance(reply, ServerError)}
        assert identity.missing == lacking

    def test_a_replica_of_redis_8(self, pair, stub):
        identity = pair.connect(stub(lambda stub, peer: stub.greet(peer)).url).identity
        assert (identity.role, identity.client_id) == ("replica", 7)
        assert identity.missing == {Capability.CLUSTER_COMMANDS}

    def test_database_and_name(self, pair, server):
        connection = pair.connect(server.url + "/3", client_name="worker-1")
        info = connection.exchange([("CLIENT", "INFO")], 5)[0].decode()
        assert " db=3 " in info
        assert " name=worker-1 " in info

    def test_arguments_take_precedence_over_the_url(self, pair, server):
        connection = pair.connect(server.url + "/3?client_name=url", db=4, client_name="argument")
        info = connection.exchange([("CLIENT", "INFO")], 5)[0].decode()
        assert " db=4 " in info
        assert " name=argument " in info

    def test_socket_options(self, pair, connection):
        sock = pair.socket_of(connection)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    def test_nobody_listens(self, pair):
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
            with pytest.raises(NotSent, match=f"redis://127.0.0.1:{port}"):
                pair.connect(f"redis://127.0.0.1:{port}")

    def test_hung_up_at_once(self, pair, stub):
        with pytest.raises(NotSent):
            pair.connect(stub(lambda stub, peer: stub.read_until(peer, b"PING")).url)

    def test_silence(self, pair, stub):
        silent = stub(lambda stub, peer: stub.wait_for_hang_up(peer))
        with pytest.raises(NotSent):
            pair.connect(silent.url, timeout=0.05)
        assert silent.hung_up.wait(10)

    def test_the_drivers_own_limit_holds(self, pair, stub):
        silent = stub(lambda stub, peer: stub.wait_for_hang_up(peer))
        with pytest.raises(NotSent):
            pair.connect(silent.url, timeout=60, connect_timeout=0.05)

    @pytest.mark.parametrize("line", ["LOADING Redis is loading the dataset in memory", "MASTERDOWN Link down"])
    def test_not_ready_yet(self, pair, stub, line):
        def script(stub, peer):
            stub.read_until(peer, b"PING\r\n")
            peer.sendall(b"-ERR unknown command 'HELLO'\r\n-" + line.encode() + b"\r\n")
            stub.wait_for_hang_up(peer)

        with pytest.raises(NotSent, match=line.split()[0]):
            pair.connect(stub(script).url)

    def test_too_many_clients(self, pair, stub):
        def script(stub, peer):
            stub.read_until(peer, b"PING\r\n")
            peer.sendall(b"-ERR max number of clients reached\r\n")

        with pytest.raises(NotSent, match="max number of clients"):
            pair.connect(stub(script).url)

    def test_protected_mode(self, pair, stub):
        def script(stub, peer):
            stub.read_until(peer, b"PING\r\n")
            peer.sendall(b"-DENIED Redis is running in protected mode\r\n" * 2)

        with pytest.raises(ServerRefused, match="protected mode"):
            pair.connect(stub(script).url)

    def test_unix_socket(self, pair, unix_server):
        connection = pair.connect(f"unix://{unix_server.directory}/socket?db=2&password=secret")
        assert b"db=2" in connection.exchange([("CLIENT", "INFO")], 5)[0]

    def test_no_unix_socket(self, pair, tmp_path):
        with pytest.raises(NotSent):
            pair.connect(f"unix://{tmp_path}/none")


@pytest.fixture(scope="module")
def unix_server():
    with EmbeddedServer(appendonly=False, extra=("--unixsocket", "socket", "--requirepass", "secret")) as running:
        yield running


@pytest.fixture
def users(admin):
    admin("ACL", "SETUSER", "full", "on", f">{SECRET}", "~*", "+@all")
    admin("ACL", "SETUSER", "narrow", "on", f">{SECRET}", "~*", "+auth", "+set")
    yield
    admin("ACL", "DELUSER", "full", "narrow")


@pytest.mark.usefixtures("users")
class TestUsers:
    def test_right_password(self, pair, server):
        connection = pair.connect(server.url, username="full", password=SECRET)
        assert connection.exchange([("ACL", "WHOAMI")], 5) == [b"full"]
        assert connection.identity.user == "full"

    @pytest.mark.parametrize(("username", "password"), [("full", "wrong"), ("nobody", SECRET)])
    def test_wrong_password_or_user(self, pair, server, username, password):
        with pytest.raises(AuthenticationFailed) as caught:
            pair.connect(server.url, username=username, password=password)
        assert f"'{username}'" in str(caught.value)
        assert f"127.0.0.1:{server.port}" in str(caught.value)
        assert password not in str(caught.value)

    def test_no_password_given(self, pair, unix_server):
        with pytest.raises(AuthenticationFailed, match="wants a password"):
            pair.connect(unix_server.url)

    def test_a_user_who_may_hardly_do_anything(self, pair, server):
        connection = pair.connect(server.url, username="narrow", password=SECRET, client_name="ignored")
        assert connection.identity.user == "narrow"
        allowed, refused = connection.exchange([("SET", "key", "x"), ("GET", "key")], 5)
        assert (allowed, refused.code) == (b"OK", "NOPERM")

    def test_database_not_allowed(self, pair, server):
        with pytest.raises(PermissionMissing, match=r"narrow.* SELECT.*ACL SETUSER narrow \+select"):
            pair.connect(server.url, username="narrow", password=SECRET, db=1)

    def test_no_such_database(self, pair, server):
        with pytest.raises(ServerRefused, match="out of range"):
            pair.connect(server.url + "/99")


@pytest.fixture(scope="module")
def mute():
    with EmbeddedServer(appendonly=False, extra=("--rename-command", "HELLO", "GONE")) as running:
        yield running


class TestWithoutHello:
    def test_info_tells_who_answers(self, pair, mute):
        connection = pair.connect(mute.url)
        identity = connection.identity
        assert (identity.server, identity.version) == (mute.engine, mute.version)
        assert (identity.mode, identity.role) == ("standalone", "master")
        assert connection.exchange([("CLIENT", "ID")], 5) == [identity.client_id]

    def test_nothing_tells_who_answers(self, pair, mute):
        admin = pair.connect(mute.url)
        admin.exchange([("ACL", "SETUSER", "narrow", "on", f">{SECRET}", "+ping")], 5)
        connection = pair.connect(mute.url, username="narrow", password=SECRET)
        identity = connection.identity
        assert (identity.server, identity.version, identity.client_id) == ("unknown", "0", 0)
        assert identity.user == "narrow"
        assert connection.exchange([("PING",)], 5) == [b"PONG"]


class TestFailures:
    def request(self, connection, timeout=5):
        return connection.exchange([("WATCH", "k"), ("MULTI",), ("XADD", "s", "*", "f", "v"), ("EXEC",)], timeout)

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"+OK\r\n+OK\r\n+QUEUED\r\n",
            b"+OK\r\n+OK\r\n+QUEUED\r\n*1\r\n$3\r\n1-",
            b"?not redis\r\n",
            b"$x\r\n",
        ],
        ids=["nothing", "all but the EXEC", "half of the EXEC", "another protocol", "no number"],
    )
    def test_an_answer_that_stays_incomplete_is_unknown(self, pair, stub, answer):
        def script(stub, peer):
            stub.greet(peer)
            stub.read_until(peer, b"EXEC\r\n")
            peer.sendall(answer)

        broken = stub(script, script)
        connection = pair.connect(broken.url)
        with pytest.raises(OutcomeUnknown, match=r"redis://127\.0\.0\.1"):
            self.request(connection)
        with pytest.raises(NotSent):
            self.request(connection)
        # One connection, one request: nothing was sent again.
        assert len(broken.received) == 2
        assert broken.received[1].count(b"XADD") == 1

    def test_silence_is_unknown(self, pair, stub):
        def script(stub, peer):
            stub.greet(peer)
            stub.wait_for_hang_up(peer)

        silent = stub(script)
        connection = pair.connect(silent.url)
        with pytest.raises(OutcomeUnknown, match=r"no answer within 0\.05 s"):
            self.request(connection, timeout=0.05)
        with pytest.raises(NotSent):
            self.request(connection)
        connection.close()
        assert silent.hung_up.wait(10)

    def test_a_trickle_does_not_stretch_the_deadline(self, pair, stub):
        def script(stub, peer):
            stub.greet(peer)
            stub.read_until(peer, b"EXEC\r\n")
            peer.sendall(b"$1000\r\n")
            while not stub.hung_up.wait(0.01):
                peer.sendall(b"x")

        trickling = stub(script)
        connection = pair.connect(trickling.url)
        with pytest.raises(OutcomeUnknown, match="no answer"):
            self.request(connection, timeout=0.1)
        trickling.hung_up.set()

    def test_a_server_that_is_killed_while_we_wait(self, pair, until):
        with EmbeddedServer(appendonly=False) as doomed:
            connection = pair.connect(doomed.url)
            watcher = RedisDriver(doomed.url).connect(5)
            outcome = in_background(connection, ("XREAD", "BLOCK", 10_000, "STREAMS", "s", "$"))
            until(lambda: b"blocked_clients:1" in watcher.exchange([("INFO", "clients")], 5)[0])
            watcher.close()
            doomed.kill()
            assert isinstance(outcome(), OutcomeUnknown)
            with pytest.raises(NotSent):
                pair.connect(doomed.url)

    def test_a_frozen_server(self, pair):
        with EmbeddedServer(appendonly=False) as frozen:
            connection = pair.connect(frozen.url)
            frozen.suspend()
            with pytest.raises(NotSent):
                pair.connect(frozen.url, timeout=0.05)
            with pytest.raises(OutcomeUnknown):
                connection.exchange([("PING",)], 0.05)

    @pytest.mark.parametrize("timeout", [0, -1])
    def test_no_time_left(self, connection, timeout):
        with pytest.raises(NotSent):
            connection.exchange([("PING",)], timeout)


class TestBlockingReads:
    READ = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 10, "BLOCK", 10_000, "STREAMS", "s", ">")

    @pytest.fixture(autouse=True)
    def group(self, connection):
        connection.exchange([("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")], 5)

    def blocked(self, connection, admin, until):
        outcome = in_background(connection, self.READ)
        until(lambda: b" flags=b " in admin("CLIENT", "LIST", "ID", connection.identity.client_id))
        return outcome

    def test_an_entry_ends_it(self, connection, admin, until):
        outcome = self.blocked(connection, admin, until)
        admin("XADD", "s", "1-1", "f", "v")
        assert outcome() == [[[b"s", [[b"1-1", [b"f", b"v"]]]]]]

    def test_the_block_time_ends_it(self, connection):
        assert connection.exchange([("XREAD", "BLOCK", 10, "STREAMS", "s", "$")], 5) == [None]

    def test_client_unblock_ends_it_and_keeps_the_connection(self, connection, admin, until):
        outcome = self.blocked(connection, admin, until)
        assert admin("CLIENT", "UNBLOCK", connection.identity.client_id) == 1
        assert outcome() == [None]
        assert connection.exchange([("PING",)], 5) == [b"PONG"]

    def test_interrupt_ends_it(self, connection, admin, until):
        outcome = self.blocked(connection, admin, until)
        connection.interrupt()
        connection.interrupt()
        error = outcome()
        assert isinstance(error, OutcomeUnknown)
        assert "interrupted" in str(error)
        with pytest.raises(NotSent):
            connection.exchange([("PING",)], 5)
        connection.close()
        until(lambda: admin("CLIENT", "LIST", "ID", connection.identity.client_id) == b"")

    def test_interrupt_while_idle(self, connection):
        connection.interrupt()
        with pytest.raises(NotSent):
            connection.exchange([("PING",)], 5)

    def test_a_deadline_before_the_block_time(self, connection):
        with pytest.raises(OutcomeUnknown, match="no answer"):
            connection.exchange([self.READ], 0.05)


class TestClosing:
    def test_close_is_final_and_idempotent(self, connection, admin, until):
        connection.close()
        connection.close()
        connection.interrupt()
        with pytest.raises(NotSent, match="closed"):
            connection.exchange([("PING",)], 5)
        until(lambda: admin("CLIENT", "LIST", "ID", connection.identity.client_id) == b"")


class TestTLS:
    @pytest.fixture
    def url(self, tls_front, authority, tmp_path):
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        return f"rediss://127.0.0.1:{tls_front.port}?ssl_ca_certs={tmp_path}/ca.pem"

    def test_exchange_and_interrupt(self, pair, url, admin, until):
        connection = pair.connect(url)
        value = bytes(range(256)) * 2000
        assert connection.exchange([("SET", "tls", value), ("GET", "tls")], 10) == [b"OK", value]
        outcome = in_background(connection, ("XREAD", "BLOCK", 10_000, "STREAMS", "s", "$"))
        until(lambda: b" flags=b " in admin("CLIENT", "LIST", "ID", connection.identity.client_id))
        connection.interrupt()
        assert isinstance(outcome(), OutcomeUnknown)

    def test_a_context_of_ones_own(self, pair, tls_front, authority):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        connection = pair.connect(f"redis://localhost:{tls_front.port}", ssl_context=context)
        assert connection.exchange([("PING",)], 5) == [b"PONG"]

    def test_the_certificate_of_a_name_that_ends_with_a_dot(self, pair, tls_front, url, monkeypatch):
        """Certificates name no host so: none could be verified."""
        for module in (streamfleet.library, streamfleet.trio_driver):
            monkeypatch.setattr(module, "addresses_of", lambda host: ["127.0.0.1"])
        connection = pair.connect(url.replace("127.0.0.1", "localhost."))
        assert connection.exchange([("PING",)], 5) == [b"PONG"]

    @pytest.mark.parametrize(
        ("host", "name"),
        [("h.example.", "h.example"), ("[fe80::1%25eth0]", "fe80::1"), ("[fe80::1%25e.]", "fe80::1"), ("h", "h")],
    )
    def test_what_a_certificate_is_issued_for(self, host, name):
        nothing = dict.fromkeys(
            ("username", "password", "db", "ssl_context", "client_name", "connect_timeout"), None
        )
        assert settings_for(f"rediss://{host}", "a driver", **nothing).tls_name == name

    @pytest.mark.parametrize("driver_class", [RedisDriver, ValkeyDriver, TrioDriver])
    def test_a_unix_socket_has_none(self, driver_class):
        """Threads went without it, and asyncio raised an AttributeError."""
        with pytest.raises(UsageError, match="ssl_context is for TCP: a Unix socket has no TLS"):
            driver_class("unix:///run/redis.sock", ssl_context=ssl.create_default_context())

    def test_unknown_authority(self, pair, tls_front):
        with pytest.raises(NotSent, match="certificate"):
            pair.connect(f"rediss://127.0.0.1:{tls_front.port}")

    def test_certificates_may_be_ignored(self, pair, tls_front):
        connection = pair.connect(f"rediss://127.0.0.1:{tls_front.port}?ssl_cert_reqs=none")
        assert connection.exchange([("PING",)], 5) == [b"PONG"]

    def test_a_server_without_tls(self, pair, server):
        with pytest.raises(NotSent):
            pair.connect(server.url.replace("redis:", "rediss:"), timeout=0.1)


def in_background(connection, command):
    """Start an exchange; the function returned waits for its replies or its error."""
    outcome = []

    def run():
        try:
            outcome.append(connection.exchange([command], 20))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(20)
        return outcome[0]

    return result
