from __future__ import annotations

import gc
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from streamfleet.embedded import EmbeddedServer
from streamfleet_conformance import servers
from streamfleet_conformance.framing import Frames, FramingError, PythonReader
from streamfleet_conformance.link import HIGH_WATER, READ_SIZE
from streamfleet_conformance.proxy import Commands, Fault, FaultProxy

SECONDS = 5.0
ADD = (b"XADD", b"s", b"*", b"f", b"v")
TRANSACTION = ((b"MULTI",), ADD, ADD, (b"EXEC",))


class Client:
    """A bare connection. Lines and integers of RESP come as bytes."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self._frames = Frames(PythonReader())
        self._replies: list[Any] = []

    def send(self, *commands: tuple[bytes, ...]) -> None:
        self.sock.sendall(b"".join(map(pack, commands)))

    def read(self, count: int = 1) -> list[Any]:
        while len(self._replies) < count:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError
            self._replies += self._frames.feed(data)
        replies, self._replies = self._replies[:count], self._replies[count:]
        return replies

    def call(self, *command: bytes) -> Any:
        self.send(command)
        return self.read()[0]

    def until_cut(self) -> bytes:
        """Everything that arrives until the connection ends."""
        data = b""
        while True:
            try:
                piece = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return data
            if not piece:
                return data
            data += piece

    def until_reply(self) -> list[Any]:
        """The next reply, in a list; an empty one when the connection ends before."""
        try:
            return self.read()
        except (EOFError, ConnectionResetError):
            return []

    def got_nothing(self) -> bool:
        """Whether nothing has arrived, not even the connection's end."""
        self.sock.setblocking(False)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(SECONDS)
        return False

    def close(self) -> None:
        self.sock.close()


Connect = Callable[[], Client]


def pack(command: tuple[bytes, ...]) -> bytes:
    return b"".join((b"*%d\r\n" % len(command), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with servers.launch("valkey-9.1") as running:
        yield running


@pytest.fixture
def direct(server: EmbeddedServer) -> Iterator[Client]:
    """A connection past the proxy, to see what the server has done."""
    client = Client(server.port)
    client.call(b"FLUSHALL")
    yield client
    client.close()


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as running:
        yield running


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Connect]:
    clients: list[Client] = []

    def make() -> Client:
        clients.append(Client(proxy.port))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def block_reaches(direct: Client) -> None:
    """Wait until the server holds a blocking command."""
    eventually(lambda: b"blocked_clients:1" in direct.call(b"INFO", b"clients"))


def connections(direct: Client) -> int:
    return int(direct.call(b"CLIENT", b"LIST").count(b"\n"))


def entries(direct: Client) -> int:
    return int(direct.call(b"XLEN", b"s"))


class TestPassing:
    def test_replies_of_every_kind_pass(self, connect: Connect) -> None:
        client = connect()
        client.send((b"GET", b"no"), (b"RPUSH", b"l", b"a\r\n", b""), (b"LRANGE", b"l", b"0", b"-1"), (b"NO",))
        nothing, length, words, error = client.read(4)
        assert (nothing, length, words) == (None, b"2", [b"a\r\n", b""])
        assert error.startswith(b"ERR unknown command")

    def test_large_requests_and_replies_pass(self, connect: Connect) -> None:
        client, value = connect(), os.urandom(1 << 20) * 20
        assert client.call(b"SET", b"k", value) == b"OK"
        assert client.call(b"GET", b"k") == value

    def test_what_a_slow_reader_has_not_taken_is_bounded(self, connect: Connect, proxy: FaultProxy) -> None:
        client, value = connect(), bytes(1 << 20)
        client.call(b"SET", b"k", value)
        client.send(*[(b"GET", b"k")] * 40)
        (link,) = proxy._links
        eventually(lambda: len(link.client.out) >= HIGH_WATER)
        largest = max(len(link.client.out) for _ in range(50) if proxy.connections)
        assert largest < HIGH_WATER + READ_SIZE
        assert client.read(40) == [value] * 40

    def test_a_client_that_leaves_takes_its_server_connection_along(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        before = connections(direct)
        client = connect()
        client.call(b"PING")
        assert proxy.connections == 1
        client.send(ADD)
        client.close()
        eventually(lambda: connections(direct) == before)
        assert (proxy.connections, entries(direct)) == (0, 1)

    def test_what_a_client_sent_before_it_left_is_executed(
        self, connect: Connect, proxy: FaultProxy, server: EmbeddedServer, direct: Client
    ) -> None:
        client, sent = connect(), 0
        client.call(b"PING")
        (link,) = proxy._links
        server.suspend()
        try:
            while not link.server.out:
                client.send((b"APPEND", b"k", bytes(1 << 16)))
                sent += 1
                assert proxy.connections == 1
            client.sock.shutdown(socket.SHUT_WR)
            assert client.until_cut() == b""
        finally:
            server.resume()
        eventually(lambda: direct.call(b"STRLEN", b"k") == b"%d" % (sent << 16))

    def test_what_a_frozen_server_has_not_taken_is_bounded(
        self, connect: Connect, proxy: FaultProxy, server: EmbeddedServer
    ) -> None:
        client, sent, piece = connect(), 0, pack((b"SET", b"k", bytes(1 << 16)))
        client.call(b"PING")
        server.suspend()
        (link,) = proxy._links
        client.sock.setblocking(False)
        try:
            for _ in range(2_000):
                assert proxy.connections == 1
                with suppress(BlockingIOError):
                    sent += client.sock.send(piece)
            assert HIGH_WATER <= len(link.server.out) < HIGH_WATER + READ_SIZE
            assert sent < 2_000 * len(piece)
        finally:
            server.resume()


class TestRequestLost:
    def test_nothing_is_applied_and_the_client_is_cut(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        client = connect()
        lost = proxy.inject(Fault.REQUEST_LOST, b"xadd")
        assert client.call(b"PING") == b"PONG"
        client.send(*TRANSACTION)
        assert client.until_cut() == b""
        assert lost.wait_hit() == 1
        assert entries(direct) == 0
        assert list(proxy.log) == [(Fault.REQUEST_LOST, (b"MULTI", b"XADD", b"XADD", b"EXEC"))]
        assert proxy.counts == {Fault.REQUEST_LOST: 1}

    def test_the_next_connection_is_spared(self, connect: Connect, proxy: FaultProxy, direct: Client) -> None:
        proxy.inject(Fault.REQUEST_LOST)
        client = connect()
        client.send(ADD)
        client.until_cut()
        connect().call(*ADD)
        assert entries(direct) == 1

    def test_a_command_in_parts_is_recognised(self, connect: Connect, proxy: FaultProxy, direct: Client) -> None:
        lost, client, packed = proxy.inject(Fault.REQUEST_LOST, b"XADD"), connect(), pack(ADD)
        client.sock.sendall(packed[:9])
        assert (proxy.connections, lost.hits) == (1, 0)
        client.sock.sendall(packed[9:])
        assert client.until_cut() == b""
        assert (lost.hits, entries(direct)) == (1, 0)


class TestReplyLost:
    def test_the_request_is_applied_and_the_client_is_cut(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        lost, client = proxy.inject(Fault.REPLY_LOST, b"EXEC"), connect()
        client.send(*TRANSACTION)
        lost.wait_hit()
        assert entries(direct) == 2
        assert client.until_cut() == b""

    def test_it_waits_for_the_whole_of_a_blocking_read(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        lost, client = proxy.inject(Fault.REPLY_LOST, b"XREADGROUP"), connect()
        client.call(b"XGROUP", b"CREATE", b"s", b"g", b"0", b"MKSTREAM")
        client.send((b"XREADGROUP", b"GROUP", b"g", b"c", b"BLOCK", b"0", b"STREAMS", b"s", b">"))
        block_reaches(direct)
        assert client.got_nothing()
        direct.call(*ADD)
        lost.wait_hit()
        assert direct.call(b"XPENDING", b"s", b"g")[0] == b"1"
        assert client.until_cut() == b""

    def test_the_replies_to_earlier_requests_arrive_whole(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        lost, client = proxy.inject(Fault.REPLY_LOST, b"XADD"), connect()
        client.send((b"PING",), (b"BLPOP", b"l", b"0"))
        assert client.read() == [b"PONG"]
        block_reaches(direct)
        client.send(ADD)
        assert proxy.connections == 1  # and it has taken in what was sent before the question
        direct.call(b"RPUSH", b"l", b"x")
        lost.wait_hit()
        assert entries(direct) == 1
        assert client.until_cut() == b"*2\r\n$1\r\nl\r\n$1\r\nx\r\n"

    @pytest.mark.parametrize("struck", [b"BLPOP", b"XADD"])
    def test_what_is_sent_after_the_struck_request_is_lost_too(
        self, connect: Connect, proxy: FaultProxy, direct: Client, struck: bytes
    ) -> None:
        before = connections(direct)
        lost, client = proxy.inject(Fault.REPLY_LOST, struck), connect()
        client.send((b"BLPOP", b"l", b"0"))
        block_reaches(direct)
        for command in (ADD, (b"SET", b"after", b"1")):
            client.send(command)
            assert proxy.connections == 1
        direct.call(b"RPUSH", b"l", b"x")
        lost.wait_hit()
        client.until_cut()
        eventually(lambda: connections(direct) == before)
        assert (direct.call(b"GET", b"after"), entries(direct)) == (None, int(struck == b"XADD"))

    def test_a_request_that_is_cut_before_its_turn_leaves_the_fault_to_the_next(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        lost, client = proxy.inject(Fault.REPLY_LOST, b"XADD"), connect()
        client.send((b"BLPOP", b"l", b"0"))
        block_reaches(direct)
        client.send(ADD)
        assert proxy.connections == 1
        proxy.cut_all()
        client.until_cut()
        assert lost.hits == 0
        second = connect()
        second.send(ADD)
        assert second.until_cut() == b""
        assert (lost.hits, entries(direct)) == (1, 1)

    def test_a_client_that_leaves_before_the_reply_leaves_the_fault_to_the_next(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        lost, client = proxy.inject(Fault.REPLY_LOST, b"BLPOP"), connect()
        client.send((b"BLPOP", b"l", b"0"))
        block_reaches(direct)
        client.close()
        eventually(lambda: b"blocked_clients:0" in direct.call(b"INFO", b"clients"))
        assert lost.hits == 0
        direct.call(b"RPUSH", b"l", b"x")
        second = connect()
        second.send((b"BLPOP", b"l", b"0"))
        assert second.until_cut() == b""
        assert (lost.hits, direct.call(b"LLEN", b"l")) == (1, b"0")


class TestDeliveredLate:
    def test_the_request_is_applied_when_it_is_released(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        late, client = proxy.inject(Fault.DELIVERED_LATE, b"XADD"), connect()
        client.send(ADD)
        assert client.until_cut() == b""
        assert (late.wait_hit(), entries(direct), proxy.late, proxy.connections) == (1, 0, 1, 0)
        assert proxy.release_late() == 1
        assert (entries(direct), proxy.late) == (1, 0)

    @pytest.mark.parametrize(("touched", "applied"), [(True, 0), (False, 2)])
    def test_a_watch_stays_in_force_until_then(
        self, connect: Connect, proxy: FaultProxy, direct: Client, touched: bool, applied: int
    ) -> None:
        client = connect()
        client.call(b"WATCH", b"marker")
        proxy.inject(Fault.DELIVERED_LATE, b"EXEC")
        client.send(*TRANSACTION)
        client.until_cut()
        if touched:
            connect().call(b"HINCRBY", b"marker", b"e", b"1")
        assert proxy.release_late() == 1
        assert entries(direct) == applied

    def test_it_may_come_by_itself_after_a_delay(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        proxy.inject(Fault.DELIVERED_LATE, b"XADD", delay=0.02)
        connect().send(ADD)
        eventually(lambda: entries(direct) == 1)
        eventually(lambda: proxy.late == 0)

    def test_what_the_server_has_cut_off_is_not_delivered(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        proxy.inject(Fault.DELIVERED_LATE, b"XADD")
        client = connect()
        client.call(b"PING")  # the server, too, knows of the connection
        client.send(ADD)
        client.until_cut()
        direct.call(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
        eventually(lambda: proxy.late == 0)
        assert (proxy.release_late(), entries(direct)) == (0, 0)

    def test_an_answer_that_does_not_come_is_reported(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        proxy.inject(Fault.DELIVERED_LATE, b"BLPOP")
        client = connect()
        client.send((b"BLPOP", b"l", b"0"))
        client.until_cut()
        with pytest.raises(TimeoutError):
            proxy.release_late(timeout=0.01)
        direct.call(b"RPUSH", b"l", b"x")
        assert proxy.release_late() in (0, 1)
        assert direct.call(b"LLEN", b"l") == b"0"


class TestCut:
    @pytest.mark.parametrize(("sent", "applied"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
    def test_the_first_half_is_applied_up_to_a_broken_command(
        self, connect: Connect, proxy: FaultProxy, direct: Client, sent: int, applied: int
    ) -> None:
        cut, client = proxy.inject(Fault.CUT, b"XADD"), connect()
        client.send(*[ADD] * sent)
        assert client.until_cut() == b""
        cut.wait_hit()
        assert entries(direct) == applied

    def test_half_of_a_transaction_is_none(self, connect: Connect, proxy: FaultProxy, direct: Client) -> None:
        cut, client = proxy.inject(Fault.CUT), connect()
        client.send((b"SET", b"before", b"1"), *TRANSACTION)
        client.until_cut()
        cut.wait_hit()
        assert (direct.call(b"GET", b"before"), entries(direct)) == (b"1", 0)


class TestCutMidReply:
    @pytest.mark.parametrize("sent", [1, 2, 3, 4])
    def test_the_request_is_applied_and_the_reply_ends_within_a_frame(
        self, connect: Connect, proxy: FaultProxy, direct: Client, sent: int
    ) -> None:
        cut, client = proxy.inject(Fault.CUT_MID_REPLY, b"SET"), connect()
        client.send(*[(b"SET", b"k", b"v")] * sent)
        cut.wait_hit()
        assert direct.call(b"GET", b"k") == b"v"
        received, whole = client.until_cut(), b"+OK\r\n" * sent
        assert whole.startswith(received)
        assert len(whole) // 2 - 1 <= len(received) <= len(whole) // 2
        assert len(received) % len(b"+OK\r\n") != 0

    def test_a_large_reply_arrives_by_half(self, connect: Connect, proxy: FaultProxy) -> None:
        client, value = connect(), os.urandom(1 << 20) * 4
        client.call(b"SET", b"k", value)
        proxy.inject(Fault.CUT_MID_REPLY, b"GET")
        client.send((b"GET", b"k"))
        header = b"$%d\r\n" % len(value)
        assert client.until_cut() == (header + value + b"\r\n")[: (len(header) + len(value) + 2) // 2]


class TestSlow:
    def test_the_reply_and_what_follows_it_come_later_in_order(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        slow, client = proxy.inject(Fault.SLOW, b"XADD", delay=0.1), connect()
        started = time.monotonic()
        client.send(ADD)
        slow.wait_hit()
        client.send((b"PING",))
        assert entries(direct) == 1
        assert client.got_nothing() or time.monotonic() - started > 0.1
        replies = client.read(2)
        assert time.monotonic() - started >= 0.1
        assert replies[1] == b"PONG"
        assert client.call(b"PING") == b"PONG"

    def test_a_server_that_leaves_meanwhile_does_not_take_the_reply_along(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        slow, client = proxy.inject(Fault.SLOW, b"GET", delay=0.05), connect()
        client.send((b"GET", b"k"))
        slow.wait_hit()
        direct.call(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
        assert client.until_cut() == b"$-1\r\n"

    def test_it_needs_a_delay(self, proxy: FaultProxy) -> None:
        with pytest.raises(ValueError, match="SLOW needs delay"):
            proxy.inject(Fault.SLOW)


class TestChoice:
    def test_a_predicate_sees_the_commands_and_may_use_the_proxy(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        seen: list[Commands] = []

        def second_field(commands: Commands) -> bool:
            seen.append(commands)
            return proxy.connections == 1 and commands[0][-1] == b"2"

        lost, client = proxy.inject(Fault.REQUEST_LOST, second_field), connect()
        client.call(b"SET", b"k", b"1")
        client.send((b"SET", b"k", b"2"), (b"PING",))
        assert client.until_cut() == b""
        assert seen == [[[b"SET", b"k", b"1"]], [[b"SET", b"k", b"2"], [b"PING"]]]
        assert (lost.hits, direct.call(b"GET", b"k")) == (1, b"1")

    def test_the_first_injected_comes_first_and_each_so_many_times(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        applied = proxy.inject(Fault.REPLY_LOST, b"XADD", times=2)
        lost = proxy.inject(Fault.REQUEST_LOST, b"XADD")
        for _ in range(3):
            client = connect()
            client.send(ADD)
            client.until_cut()
        connect().call(*ADD)
        assert (applied.wait_hit(hits=2), lost.wait_hit(), entries(direct)) == (2, 1, 3)

    def test_a_hit_that_does_not_come_is_reported(self, proxy: FaultProxy) -> None:
        with pytest.raises(TimeoutError, match="CUT: 0 of 1 hits"):
            proxy.inject(Fault.CUT).wait_hit(timeout=0.01)

    def test_calm_ends_the_injected_and_the_random_ones(self, connect: Connect, proxy: FaultProxy) -> None:
        proxy.inject(Fault.REQUEST_LOST)
        proxy.random_faults(random.Random(1), {Fault.REPLY_LOST: 1.0})
        proxy.calm()
        assert connect().call(b"PING") == b"PONG"

    def test_random_faults_account_for_every_request(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        proxy.random_faults(random.Random(7), dict.fromkeys(Fault, 0.1), delay=0.002)
        acknowledged, client = 0, connect()
        for _ in range(400):
            client.send((b"INCR", b"n"))
            if client.until_reply():
                acknowledged += 1
            else:
                client.close()
                client = connect()
        proxy.calm()
        proxy.release_late()
        eventually(lambda: acknowledged == 400 - sum(proxy.counts.values()) + proxy.counts[Fault.SLOW])
        counts = proxy.counts
        assert all(counts[fault] > 10 for fault in Fault)
        assert int(direct.call(b"GET", b"n")) == 400 - counts[Fault.REQUEST_LOST] - counts[Fault.CUT]

    @pytest.mark.parametrize("rates", [{Fault.CUT: -0.1}, {Fault.CUT: 0.6, Fault.SLOW: 0.6}])
    def test_impossible_rates_are_refused(self, proxy: FaultProxy, rates: dict[Fault, float]) -> None:
        with pytest.raises(ValueError, match="rates must not be negative"):
            proxy.random_faults(random.Random(1), rates)


class TestReach:
    def test_refuse_cuts_everybody_off_until_accept(self, connect: Connect, proxy: FaultProxy) -> None:
        client = connect()
        client.call(b"PING")
        proxy.refuse()
        assert client.until_cut() == b""
        assert connect().until_cut() == b""
        proxy.accept()
        assert connect().call(b"PING") == b"PONG"

    def test_cut_all_spares_new_connections(self, connect: Connect, proxy: FaultProxy) -> None:
        clients = [connect() for _ in range(3)]
        for client in clients:
            client.call(b"PING")
        assert proxy.connections == 3
        proxy.cut_all()
        assert [client.until_cut() for client in clients] == [b""] * 3
        assert proxy.connections == 0
        assert connect().call(b"PING") == b"PONG"

    def test_a_cut_keeps_what_is_to_be_delivered_late(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        late = proxy.inject(Fault.DELIVERED_LATE)
        connect().send(ADD)
        late.wait_hit()
        proxy.cut_all()
        assert (proxy.release_late(), entries(direct)) == (1, 1)

    def test_a_black_hole_holds_everything_and_loses_nothing(
        self, connect: Connect, proxy: FaultProxy, direct: Client
    ) -> None:
        client, blocked = connect(), connect()
        client.call(b"PING")
        blocked.send((b"BLPOP", b"l", b"0"))
        block_reaches(direct)
        proxy.blackhole()
        client.send(ADD)
        direct.call(b"RPUSH", b"l", b"x")
        newcomer = connect()
        newcomer.send(ADD)
        for _ in range(50):
            assert proxy.connections == 2
            assert entries(direct) == 0
        assert client.got_nothing()
        assert blocked.got_nothing()
        proxy.heal()
        assert blocked.read() == [[b"l", b"x"]]
        client.read()
        newcomer.read()
        assert entries(direct) == 2

    def test_timers_stand_still_in_a_black_hole(self, connect: Connect, proxy: FaultProxy, direct: Client) -> None:
        late = proxy.inject(Fault.DELIVERED_LATE)
        connect().send(ADD)
        late.wait_hit()
        proxy.blackhole()
        with pytest.raises(TimeoutError):
            proxy.release_late(timeout=0.01)
        for _ in range(50):
            assert (proxy.late, entries(direct)) == (1, 0)
        proxy.heal()
        eventually(lambda: entries(direct) == 1)

    def test_a_server_that_dies_and_comes_back(self) -> None:
        with servers.launch("valkey-9.1") as server, FaultProxy(server.port) as proxy:
            first = Client(proxy.port)
            first.call(b"PING")
            server.kill()
            assert first.until_cut() == b""
            second = Client(proxy.port)
            assert second.until_cut() == b""
            server.restart()
            third = Client(proxy.port)
            assert third.call(b"PING") == b"PONG"
            for client in (first, second, third):
                client.close()


class TestLifetime:
    def test_close_leaves_no_thread_and_no_socket(self, server: EmbeddedServer) -> None:
        gc.collect()
        threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
        with FaultProxy(server.port) as proxy:
            proxy.inject(Fault.DELIVERED_LATE, b"XADD")
            late, open_one = Client(proxy.port), Client(proxy.port)
            late.send(ADD)
            assert late.until_cut() == b""
            open_one.call(b"PING")
        assert open_one.until_cut() == b""
        late.close()
        open_one.close()
        assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, descriptors)
        proxy.close()
        with pytest.raises(RuntimeError, match="is closed"):
            proxy.inject(Fault.CUT)
        assert proxy.counts == {Fault.DELIVERED_LATE: 1}

    def test_its_url_names_its_own_port(self, proxy: FaultProxy) -> None:
        assert proxy.url == f"redis://127.0.0.1:{proxy.port}"

    def test_a_match_that_raises_is_not_hidden(self, server: EmbeddedServer) -> None:
        proxy = FaultProxy(server.port)
        proxy.inject(Fault.CUT, lambda commands: commands[0][1] == b"k")
        client = Client(proxy.port)
        client.send((b"PING",))
        assert client.until_cut() == b""
        with pytest.raises(RuntimeError, match="had failed") as failure:
            proxy.close()
        assert isinstance(failure.value.__cause__, IndexError)
        client.close()

    def test_a_client_of_another_protocol_is_not_hidden(self, server: EmbeddedServer) -> None:
        proxy = FaultProxy(server.port)
        client = Client(proxy.port)
        client.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.until_cut() == b""
        with pytest.raises(RuntimeError) as failure:
            proxy.close()
        assert isinstance(failure.value.__cause__, FramingError)
        client.close()
