"""The driver on fakeredis: what it can do, in three shells, and what it says it cannot."""

import asyncio
import threading
import time

import fakeredis
import pytest
import trio

import streamfleet.extras
import streamfleet.trio
from streamfleet.fake import FakeDriver
from streamfleet.redis import RedisDriver
from streamfleet_core.connection import AsyncDriver, Capability, Driver, ServerError
from streamfleet_core.errors import MissingExtra, NotSent, OutcomeUnknown, WrongDriver

READ = ("XREADGROUP", "GROUP", "g", "c", "COUNT", 10, "BLOCK", 10_000, "STREAMS", "s", ">")
shells = pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])


@pytest.fixture
def driver():
    return FakeDriver()


@pytest.fixture
def connection(driver):
    connection = driver.connect(5)
    connection.exchange([("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")], 5)
    yield connection
    connection.close()


@pytest.fixture
def other(driver):
    connection = driver.connect(5)
    yield lambda *command: connection.exchange([command], 5)[0]
    connection.close()


def test_is_a_driver_of_both_kinds(driver):
    assert isinstance(driver, Driver)
    assert isinstance(driver, AsyncDriver)


def test_identity(driver, connection):
    identity = connection.identity
    assert identity.server == "fakeredis"
    assert connection.exchange([("CLIENT", "ID")], 5) == [identity.client_id]
    assert identity.missing == driver.missing


def test_what_is_missing_is_so(driver, connection, other):
    never = {Capability.CLIENT_UNBLOCK, Capability.PERSISTENCE, Capability.OUT_OF_PROCESS}
    assert never <= driver.missing
    assert Capability.BLOCKING_READS not in driver.missing
    info, slot = connection.exchange([("INFO",), ("CLUSTER", "KEYSLOT", "s")], 5)
    assert isinstance(info, ServerError) == (Capability.SERVER_INFO in driver.missing)
    assert isinstance(slot, ServerError) == (Capability.CLUSTER_COMMANDS in driver.missing)
    entry = other("XADD", "s", "*", "f", "v")
    connection.exchange([("WATCH", "s")], 5)
    other("XDEL", "s", entry)
    result = connection.exchange([("MULTI",), ("EXEC",)], 5)[-1]
    assert (result is not None) == (Capability.WATCH_SEES_XDEL in driver.missing)


def test_errors_keep_their_code_also_inside_exec(connection):
    wrong_type = ServerError("WRONGTYPE Operation against a key holding the wrong kind of value")
    replies = connection.exchange(
        [("LPUSH", "s", "x"), ("XREADGROUP", "GROUP", "none", "c", "STREAMS", "s", ">"), ("NOSUCH",)], 5
    )
    assert [reply.code for reply in replies] == ["WRONGTYPE", "NOGROUP", "ERR"]
    assert connection.exchange([("MULTI",), ("LPUSH", "s", "x"), ("EXEC",)], 5)[-1] == [wrong_type]
    assert connection.exchange([("MULTI",), ("NOSUCH",), ("EXEC",)], 5)[-1].code == "EXECABORT"


def test_watch(connection, other):
    connection.exchange([("WATCH", "k")], 5)
    assert connection.exchange([("MULTI",), ("SET", "k", 1), ("EXEC",)], 5)[-1] == [b"OK"]
    connection.exchange([("WATCH", "k")], 5)
    other("SET", "k", 2)
    assert connection.exchange([("MULTI",), ("SET", "k", 3), ("EXEC",), ("GET", "k")], 5)[-2:] == [None, b"2"]


class TestBlockingReads:
    def test_an_entry_ends_it(self, connection, other):
        adder = threading.Timer(0.02, other, ("XADD", "s", "1-1", "f", "v"))
        adder.start()
        assert connection.exchange([READ, ("PING",)], 5) == [[[b"s", [[b"1-1", [b"f", b"v"]]]]], b"PONG"]
        adder.join()

    def test_what_was_there_before_dollar_is_not_read(self, connection, other):
        other("XADD", "s", "1-1", "f", "old")
        adder = threading.Timer(0.02, other, ("XADD", "s", "1-2", "f", "new"))
        adder.start()
        assert connection.exchange([("XREAD", "BLOCK", 0, "STREAMS", "s", "$")], 5) == [
            [[b"s", [[b"1-2", [b"f", b"new"]]]]]
        ]
        adder.join()

    def test_the_block_time_ends_it(self, connection):
        begun = time.monotonic()
        assert connection.exchange([("XREAD", "BLOCK", 20, "STREAMS", "none", "$")], 5) == [None]
        assert time.monotonic() - begun >= 0.02

    def test_nothing_is_lost_to_a_read_that_timed_out(self, connection, other):
        with pytest.raises(OutcomeUnknown, match="no answer"):
            connection.exchange([READ], 0.02)
        other("XADD", "s", "1-1", "f", "v")
        assert other("XPENDING", "s", "g")[0] == 0

    def test_interrupt_ends_it(self, connection):
        interrupter = threading.Timer(0.02, connection.interrupt)
        interrupter.start()
        with pytest.raises(OutcomeUnknown, match="interrupted"):
            connection.exchange([READ], 20)
        interrupter.join()
        with pytest.raises(NotSent):
            connection.exchange([("PING",)], 5)

    def test_inside_multi_it_does_not_block(self, connection):
        commands = [("MULTI",), ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"), ("PING",), ("EXEC",)]
        assert connection.exchange(commands, 5)[-1][1] == b"PONG"

    def test_a_missing_group_ends_it(self, connection, other):
        destroyer = threading.Timer(0.02, other, ("XGROUP", "DESTROY", "s", "g"))
        destroyer.start()
        [reply] = connection.exchange([READ], 20)
        destroyer.join()
        assert reply.code == "NOGROUP"

    @pytest.mark.parametrize("block", [("BLOCK",), ("BLOCK", "soon")])
    def test_a_wrong_block_time_is_the_servers_business(self, connection, block):
        [reply] = connection.exchange([("XREAD", *block, "STREAMS", "s", "0")], 5)
        assert isinstance(reply, ServerError)


class TestFailures:
    def test_closed(self, connection):
        connection.close()
        connection.close()
        with pytest.raises(NotSent, match="closed"):
            connection.exchange([("PING",)], 5)

    def test_unreachable(self, driver, connection):
        driver.server.connected = False
        with pytest.raises(NotSent):
            connection.exchange([("PING",)], 5)
        with pytest.raises(NotSent):
            driver.connect(5)

    def test_unreachable_while_reading(self, driver, connection):
        cutter = threading.Timer(0.02, setattr, (driver.server, "connected", False))
        cutter.start()
        with pytest.raises(OutcomeUnknown):
            connection.exchange([READ], 20)
        cutter.join()

    def test_an_unusable_argument_does_nothing(self, connection):
        with pytest.raises(TypeError):
            connection.exchange([("SET", "k", 1), ("SET", "k", None)], 5)
        assert connection.exchange([("EXISTS", "k")], 5) == [0]

    def test_a_breakdown_of_fakeredis_is_unknown(self, connection, monkeypatch):
        def broken(command):
            raise KeyError("inside fakeredis")

        monkeypatch.setattr(connection._session, "execute", broken)
        with pytest.raises(OutcomeUnknown, match="inside fakeredis"):
            connection.exchange([("PING",)], 5)

    @pytest.fixture
    def closed_during_the_second_command(self, connection, monkeypatch):
        """By another thread. In a transaction this counts the commands of the EXEC, after the EXEC itself."""
        run, times = connection._session._socket._run_command, []

        def run_and_be_closed(*args):
            times.append(args)
            if len(times) == 2:
                closer = threading.Thread(target=connection.close)
                closer.start()
                closer.join(20)
            return run(*args)

        monkeypatch.setattr(connection._session._socket, "_run_command", run_and_be_closed)
        yield
        assert connection._session._connection._sock is None, "whoever ran the command has let go of it"
        with pytest.raises(NotSent, match="closed"):
            connection.exchange([("PING",)], 5)

    @pytest.mark.usefixtures("closed_during_the_second_command")
    def test_closed_while_a_transaction_runs(self, connection, other):
        commands = [("MULTI",), ("SET", "k", 1), ("SET", "l", 2), ("EXEC",)]
        assert connection.exchange(commands, 5)[-1] == [b"OK", b"OK"]
        assert other("MGET", "k", "l") == [b"1", b"2"]

    @pytest.mark.usefixtures("closed_during_the_second_command")
    @pytest.mark.parametrize("third", [("SET", "k", 3), ("XREAD", "BLOCK", 10_000, "STREAMS", "s", "$")])
    def test_closed_while_a_command_runs(self, connection, other, third):
        with pytest.raises(OutcomeUnknown, match="closed"):
            connection.exchange([("SET", "k", 1), ("SET", "l", 2), third], 5)
        assert other("MGET", "k", "l") == [b"1", b"2"]

    def test_closed_when_a_read_has_just_begun(self, connection, monkeypatch):
        step = connection._session.without_block

        def closed_before(command):
            connection.close()
            return step(command)

        monkeypatch.setattr(connection._session, "without_block", closed_before)
        with pytest.raises(OutcomeUnknown, match="closed"):
            connection.exchange([("XREAD", "BLOCK", 10_000, "STREAMS", "s", "$")], 5)

    def test_the_extra_is_missing(self, monkeypatch):
        monkeypatch.setattr(streamfleet.extras, "find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=r"pip install 'streamfleet\[fake\]'"):
            FakeDriver()


@shells
class TestAsyncShells:
    def test_exchange(self, run):
        async def main():
            connection = await FakeDriver().connect_async(5)
            replies = await connection.exchange(
                [("SET", "k", "v"), ("GET", "k"), ("XREAD", "BLOCK", 10, "STREAMS", "s", "$")], 5
            )
            connection.close()
            with pytest.raises(NotSent):
                await connection.exchange([("PING",)], 5)
            return replies

        assert run(main) == [b"OK", b"v", None] if run is trio.run else run(main()) == [b"OK", b"v", None]

    def test_shares_its_server_with_threads(self, run):
        driver = FakeDriver(fakeredis.FakeServer())
        connection = driver.connect(5)
        adder = threading.Timer(0.02, connection.exchange, ([("XADD", "s", "1-1", "f", "v")], 5))

        async def main():
            reader = await driver.connect_async(5)
            adder.start()
            return await reader.exchange([("XREAD", "BLOCK", 10_000, "STREAMS", "s", "$")], 20)

        found = run(main) if run is trio.run else run(main())
        adder.join()
        assert found == [[[b"s", [[b"1-1", [b"f", b"v"]]]]]]


def test_cancelled_under_asyncio():
    async def main():
        connection = await FakeDriver().connect_async(5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await connection.exchange([("XREAD", "BLOCK", 0, "STREAMS", "s", "$")], 20)
        with pytest.raises(NotSent, match="cancelled"):
            await connection.exchange([("PING",)], 5)

    asyncio.run(main())


def test_cancelled_and_interrupted_under_trio():
    async def main():
        driver = FakeDriver()
        connection = await driver.connect_async(5)
        with trio.move_on_after(0.02):
            await connection.exchange([("XREAD", "BLOCK", 0, "STREAMS", "s", "$")], 20)
        with pytest.raises(NotSent, match="cancelled"):
            await connection.exchange([("PING",)], 5)
        second = await driver.connect_async(5)
        second.interrupt()
        with pytest.raises(NotSent, match="interrupted"):
            await second.exchange([("PING",)], 5)

    trio.run(main)


def test_outside_of_an_event_loop():
    coroutine = FakeDriver().connect_async(5)
    with pytest.raises(WrongDriver, match=r"asyncio and trio.*trio\.run\(\), or use connect\(\)"):
        coroutine.send(None)


def test_the_trio_shell_takes_it_and_names_it():
    async def main():
        driver = FakeDriver()
        worker = streamfleet.trio.Worker(driver)

        @worker.handler("q")
        async def shout(task):
            return task.data.upper()

        async with worker.running(), streamfleet.trio.Client(driver, ["q"]) as client:
            handle = await client.enqueue_tracked("q", b"hello")
            return await handle.wait(20)

    assert trio.run(main) == b"HELLO"
    with pytest.raises(WrongDriver, match="not trio: use TrioDriver, FakeDriver or MemoryDriver"):
        streamfleet.trio.Worker(RedisDriver("redis://h"))
