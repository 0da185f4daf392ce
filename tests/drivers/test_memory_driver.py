"""The memory driver: what connections of threads, asyncio and trio promise, alone and together."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import trio

from streamfleet.memory import MemoryDriver, ModelServer
from streamfleet_core.connection import (
    AsyncConnection,
    AsyncDriver,
    Capability,
    Command,
    Connection,
    Driver,
    Reply,
    ServerError,
)
from streamfleet_core.errors import NotSent, OutcomeUnknown

PATIENCE = 10.0
"""Seconds after which a wait has failed; nothing here takes that long."""

ADD = ("XADD", "s", "1-0", "f", "v")
READ = ("XREAD", "BLOCK", 0, "STREAMS", "s", "0")
ENTRY: Reply = [[b"s", [[b"1-0", [b"f", b"v"]]]]]

AsyncMain = Callable[[], Awaitable[None]]
Runner = Callable[[AsyncMain], None]


@pytest.fixture
def driver() -> MemoryDriver:
    return MemoryDriver(server=ModelServer(lambda: int(time.time() * 1000)))


@pytest.fixture
def connection(driver: MemoryDriver) -> Iterator[Connection]:
    connection = driver.connect(PATIENCE)
    yield connection
    connection.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def run_asyncio(main: AsyncMain) -> None:
    async def with_patience() -> None:
        async with asyncio.timeout(PATIENCE):
            await main()

    asyncio.run(with_patience())


def run_trio(main: AsyncMain) -> None:
    async def with_patience() -> None:
        with trio.fail_after(PATIENCE):
            await main()

    trio.run(with_patience)


@pytest.fixture(params=[run_asyncio, run_trio], ids=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Runner:
    runner: Runner = request.param
    return runner


def is_blocked(driver: MemoryDriver, client_id: int) -> bool:
    session = driver.server.sessions.get(client_id)
    return session is not None and session.blocked is not None


def await_blocked(driver: MemoryDriver, client_id: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_blocked(driver, client_id):
        assert time.monotonic() < deadline
        time.sleep(0.001)  # between two looks at the condition


# What the driver is


def test_it_is_both_kinds_of_driver(driver: MemoryDriver, connection: Connection) -> None:
    assert isinstance(driver, Driver)
    assert isinstance(driver, AsyncDriver)
    assert isinstance(connection, Connection)


def test_identity(connection: Connection) -> None:
    identity = connection.identity
    assert (identity.server, identity.mode, identity.role) == ("memory", "standalone", "master")
    assert [identity.client_id] == connection.exchange([("CLIENT", "ID")], PATIENCE)
    assert identity.missing == MemoryDriver.missing


@pytest.mark.parametrize(
    ("capability", "command"),
    [
        (Capability.SERVER_INFO, ("CONFIG", "GET", "maxmemory")),
        (Capability.SERVER_INFO, ("MEMORY", "USAGE", "k")),
        (Capability.ACL, ("ACL", "SETUSER", "u")),
        (Capability.CLUSTER_COMMANDS, ("CLUSTER", "KEYSLOT", "k")),
        (Capability.XACKDEL, ("XACKDEL", "s", "g", "IDS", 1, "1-1")),
    ],
)
def test_what_is_declared_missing_is_missing(
    connection: Connection, capability: Capability, command: Command
) -> None:
    assert capability in MemoryDriver.missing
    (reply,) = connection.exchange([command], PATIENCE)
    assert isinstance(reply, ServerError)


def test_drivers_of_one_name_share_a_server() -> None:
    first, same, other = MemoryDriver("shared"), MemoryDriver("shared"), MemoryDriver("other")
    first.connect(PATIENCE).exchange([("SET", "k", "v")], PATIENCE)
    assert same.connect(PATIENCE).exchange([("GET", "k")], PATIENCE) == [b"v"]
    assert other.connect(PATIENCE).exchange([("GET", "k")], PATIENCE) == [None]
    assert same.url == "memory://shared"


def test_a_server_that_is_given_is_shared_by_the_drivers_that_have_it() -> None:
    server = ModelServer(lambda: 5000)
    MemoryDriver(server=server).connect(PATIENCE).exchange([("SET", "k", "v")], PATIENCE)
    replies = MemoryDriver(server=server).connect(PATIENCE).exchange([("GET", "k"), ("TIME",)], PATIENCE)
    assert replies == [b"v", [b"5", b"0"]]


# Exchanges of threads


def test_one_reply_for_each_command_errors_included(connection: Connection) -> None:
    replies = connection.exchange(
        [("SET", "k", "v"), ("INCR", "k"), ("MULTI",), ("XLEN", "k"), ("EXEC",)], PATIENCE
    )
    assert replies[0] == b"OK"
    assert isinstance(replies[1], ServerError)
    assert replies[2:4] == [b"OK", b"QUEUED"]
    assert replies[4] == [ServerError("WRONGTYPE Operation against a key holding the wrong kind of value")]


def test_exchanges_are_not_interleaved(driver: MemoryDriver, pool: ThreadPoolExecutor) -> None:
    """Read and write in one exchange is a transaction here: no increment is lost."""

    def add_fifty() -> None:
        connection = driver.connect(PATIENCE)
        for _ in range(50):
            (before, after) = connection.exchange([("INCR", "n"), ("INCR", "n")], PATIENCE)
            assert after == before + 1  # type: ignore[operator]
        connection.close()

    for future in [pool.submit(add_fifty) for _ in range(4)]:
        future.result(PATIENCE)
    assert driver.connect(PATIENCE).exchange([("GET", "n")], PATIENCE) == [b"400"]


def test_a_blocked_read_gets_what_another_thread_adds(
    driver: MemoryDriver, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    reader = driver.connect(PATIENCE)
    future = pool.submit(reader.exchange, [READ, ("PING",)], PATIENCE)
    await_blocked(driver, reader.identity.client_id)
    connection.exchange([ADD], PATIENCE)
    assert future.result(PATIENCE) == [ENTRY, b"PONG"]


def test_a_blocked_read_ends_with_its_block_time(connection: Connection) -> None:
    command = ("XREAD", "BLOCK", 20, "STREAMS", "s", "$")
    assert connection.exchange([command, ("PING",)], PATIENCE) == [None, b"PONG"]


def test_a_blocked_read_obeys_the_timeout_of_the_exchange(connection: Connection) -> None:
    with pytest.raises(OutcomeUnknown, match="timeout"):
        connection.exchange([READ], 0.02)
    with pytest.raises(NotSent):
        connection.exchange([("PING",)], PATIENCE)


@pytest.mark.parametrize("end", ["interrupt", "close"])
def test_a_blocked_read_is_interrupted(
    driver: MemoryDriver, pool: ThreadPoolExecutor, connection: Connection, end: str
) -> None:
    reader = driver.connect(PATIENCE)
    future = pool.submit(reader.exchange, [READ], PATIENCE)
    await_blocked(driver, reader.identity.client_id)
    getattr(reader, end)()
    with pytest.raises(OutcomeUnknown):
        future.result(PATIENCE)
    reader.interrupt()
    reader.close()
    with pytest.raises(NotSent):
        reader.exchange([ADD], PATIENCE)
    assert connection.exchange([("EXISTS", "s")], PATIENCE) == [0]


def test_client_unblock_leaves_the_connection_usable(
    driver: MemoryDriver, connection: Connection, pool: ThreadPoolExecutor
) -> None:
    reader = driver.connect(PATIENCE)
    future = pool.submit(reader.exchange, [READ], PATIENCE)
    await_blocked(driver, reader.identity.client_id)
    assert connection.exchange([("CLIENT", "UNBLOCK", reader.identity.client_id)], PATIENCE) == [1]
    assert future.result(PATIENCE) == [None]
    assert reader.exchange([("PING",)], PATIENCE) == [b"PONG"]


def test_closing_drops_the_session(driver: MemoryDriver, connection: Connection) -> None:
    connection.exchange([("WATCH", "k")], PATIENCE)
    connection.close()
    assert driver.server.sessions == {}


# Outages


def test_an_unavailable_server(driver: MemoryDriver, connection: Connection, pool: ThreadPoolExecutor) -> None:
    connection.exchange([("SET", "k", "v")], PATIENCE)
    reader = driver.connect(PATIENCE)
    future = pool.submit(reader.exchange, [READ], PATIENCE)
    await_blocked(driver, reader.identity.client_id)
    driver.make_unavailable()
    with pytest.raises(OutcomeUnknown):
        future.result(PATIENCE)
    with pytest.raises(OutcomeUnknown):
        connection.exchange([("PING",)], PATIENCE)
    with pytest.raises(NotSent):
        driver.connect(PATIENCE)
    driver.make_available()
    assert driver.connect(PATIENCE).exchange([("GET", "k")], PATIENCE) == [b"v"]
    driver.make_unavailable(lose_data=True)
    driver.make_available()
    assert driver.connect(PATIENCE).exchange([("GET", "k")], PATIENCE) == [None]


# Event loops


def test_asynchronous_exchange(driver: MemoryDriver, run: Runner) -> None:
    async def main() -> None:
        connection = await driver.connect_async(PATIENCE)
        assert isinstance(connection, AsyncConnection)
        assert await connection.exchange([ADD, ("XLEN", "s"), READ], PATIENCE) == [b"1-0", 1, ENTRY]
        assert await connection.exchange([("XREAD", "BLOCK", 10, "STREAMS", "s", "$")], PATIENCE) == [None]
        connection.close()
        with pytest.raises(NotSent):
            await connection.exchange([("PING",)], PATIENCE)

    run(main)


def test_a_blocked_task_gets_what_a_thread_adds(
    driver: MemoryDriver, connection: Connection, run: Runner, pool: ThreadPoolExecutor
) -> None:
    async def main() -> None:
        reader = await driver.connect_async(PATIENCE)

        def add_when_blocked() -> None:
            await_blocked(driver, reader.identity.client_id)
            connection.exchange([ADD], PATIENCE)

        future = pool.submit(add_when_blocked)
        assert await reader.exchange([READ], PATIENCE) == [ENTRY]
        future.result(PATIENCE)

    run(main)


def test_an_asynchronous_timeout(driver: MemoryDriver, run: Runner) -> None:
    async def main() -> None:
        connection = await driver.connect_async(PATIENCE)
        with pytest.raises(OutcomeUnknown, match="timeout"):
            await connection.exchange([READ], 0.02)
        with pytest.raises(NotSent):
            await connection.exchange([("PING",)], PATIENCE)

    run(main)


def test_an_asynchronous_read_is_interrupted(driver: MemoryDriver, run: Runner, pool: ThreadPoolExecutor) -> None:
    async def main() -> None:
        reader = await driver.connect_async(PATIENCE)

        def interrupt_when_blocked() -> None:
            await_blocked(driver, reader.identity.client_id)
            reader.interrupt()

        future = pool.submit(interrupt_when_blocked)
        with pytest.raises(OutcomeUnknown):
            await reader.exchange([READ], PATIENCE)
        future.result(PATIENCE)

    run(main)


async def _until_blocked(driver: MemoryDriver, reader: AsyncConnection) -> None:
    while not is_blocked(driver, reader.identity.client_id):  # noqa: ASYNC110 - the server has no event for it
        await asyncio.sleep(0)


async def _cancel_blocked_asyncio(driver: MemoryDriver, reader: AsyncConnection) -> None:
    task = asyncio.create_task(reader.exchange([READ], PATIENCE))
    await _until_blocked(driver, reader)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _cancel_blocked_trio(driver: MemoryDriver, reader: AsyncConnection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.exchange, [READ], PATIENCE)
        while not is_blocked(driver, reader.identity.client_id):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


def test_a_cancelled_exchange_leaves_the_connection_unusable(driver: MemoryDriver, run: Runner) -> None:
    async def main() -> None:
        reader = await driver.connect_async(PATIENCE)
        cancel = _cancel_blocked_asyncio if run is run_asyncio else _cancel_blocked_trio
        await cancel(driver, reader)
        assert driver.server.sessions == {}
        with pytest.raises(NotSent):
            await reader.exchange([("PING",)], PATIENCE)

    run(main)


def test_connecting_asynchronously_to_an_unavailable_server(driver: MemoryDriver, run: Runner) -> None:
    async def main() -> None:
        driver.make_unavailable()
        with pytest.raises(NotSent):
            await driver.connect_async(PATIENCE)

    run(main)


def test_a_reader_whose_event_loop_is_gone_disturbs_nobody(driver: MemoryDriver, connection: Connection) -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # it would log that a task is abandoned
    reader = loop.run_until_complete(driver.connect_async(PATIENCE))
    task = loop.create_task(reader.exchange([READ], PATIENCE))
    loop.run_until_complete(_until_blocked(driver, reader))
    loop.close()
    assert connection.exchange([ADD], PATIENCE) == [b"1-0"]
    del task
    gc.collect()
    assert connection.exchange([("DEL", "s")], PATIENCE) == [1]
    assert list(driver.server.sessions) == [connection.identity.client_id]


def test_a_reader_whose_trio_run_is_gone_disturbs_nobody(driver: MemoryDriver, connection: Connection) -> None:
    wakers: list[Callable[[], None]] = []

    async def main() -> None:
        reader = await driver.connect_async(PATIENCE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.exchange, [READ], PATIENCE)
            while not is_blocked(driver, reader.identity.client_id):
                await trio.lowlevel.checkpoint()
            blocked = driver.server.sessions[reader.identity.client_id].blocked
            assert blocked is not None
            assert blocked.on_done is not None
            wakers.append(blocked.on_done)
            nursery.cancel_scope.cancel()

    run_trio(main)
    wakers[0]()  # as a server does that had not yet heard of the end
    assert connection.exchange([ADD], PATIENCE) == [b"1-0"]


def test_closing_in_the_midst_of_a_command_waits_for_its_end(driver: MemoryDriver, connection: Connection) -> None:
    """The garbage collector closes abandoned connections at any moment, also while the server works."""
    other = driver.connect(PATIENCE)
    sessions_meanwhile: list[int] = []

    def now_ms() -> int:
        other.close()
        sessions_meanwhile.append(len(driver.server.sessions))
        return 1

    driver.server.now_ms = now_ms
    assert connection.exchange([("PING",)], PATIENCE) == [b"PONG"]
    assert sessions_meanwhile == [2]
    assert len(driver.server.sessions) == 1


def test_outside_of_an_event_loop(driver: MemoryDriver) -> None:
    coroutine = driver.connect_async(PATIENCE)
    with pytest.raises(RuntimeError):
        coroutine.send(None)


def test_threads_asyncio_and_trio_share_one_driver(driver: MemoryDriver, pool: ThreadPoolExecutor) -> None:
    """A ball goes round three times: thread, asyncio, trio; each waits for its own stream."""
    rounds = 3

    def threads() -> None:
        connection = driver.connect(PATIENCE)
        for turn in range(1, rounds + 1):
            replies = connection.exchange([add("to-asyncio", turn), read("to-thread", turn)], PATIENCE)
            assert replies[1] is not None

    def loop(runner: Runner, inbox: str, outbox: str) -> None:
        async def main() -> None:
            connection = await driver.connect_async(PATIENCE)
            for turn in range(1, rounds + 1):
                (got, _) = await connection.exchange([read(inbox, turn), add(outbox, turn)], PATIENCE)
                assert got is not None

        runner(main)

    def add(stream: str, turn: int) -> Command:
        return ("XADD", stream, f"{turn}-0", "f", "v")

    def read(stream: str, turn: int) -> Command:
        return ("XREAD", "BLOCK", 0, "STREAMS", stream, f"{turn - 1}-0")

    futures = [
        pool.submit(threads),
        pool.submit(loop, run_asyncio, "to-asyncio", "to-trio"),
        pool.submit(loop, run_trio, "to-trio", "to-thread"),
    ]
    for future in futures:
        future.result(PATIENCE)


def test_importing_the_driver_does_not_import_trio() -> None:
    import subprocess
    import sys

    program = "import sys, streamfleet.memory; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
