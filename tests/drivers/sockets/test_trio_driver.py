"""What is particular to the TrioDriver: cancel scopes, and that it needs trio."""

import asyncio
import subprocess
import sys
import threading

import pytest
import trio

from streamfleet.redis import RedisDriver
from streamfleet.trio_driver import TrioDriver
from streamfleet_core.connection import AsyncDriver, Driver
from streamfleet_core.errors import NotSent, OutcomeUnknown, WrongDriver

READ = ("XREAD", "BLOCK", 10000, "STREAMS", "s", "$")


def test_serves_trio_only():
    assert isinstance(TrioDriver(), AsyncDriver)
    assert not isinstance(TrioDriver(), Driver)


@pytest.fixture
def listed(server):
    """What the server says about a client; empty when it is gone."""
    watcher = RedisDriver(server.url).connect(5)
    yield lambda client: watcher.exchange([("CLIENT", "LIST", "ID", client)], 5)[0]
    watcher.close()


def test_a_cancelled_exchange_closes_the_connection(server, until, listed):
    async def main():
        connection = await TrioDriver(server.url).connect_async(5)
        client = connection.identity.client_id
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.exchange, [READ], 20)
            await trio.to_thread.run_sync(until, lambda: b" flags=b " in listed(client))
            nursery.cancel_scope.cancel()
        await trio.to_thread.run_sync(until, lambda: listed(client) == b"")
        with pytest.raises(NotSent, match="cancelled"):
            await connection.exchange([("PING",)], 5)

    trio.run(main)


def test_an_outer_deadline_is_not_taken_for_ours(server):
    async def main():
        connection = await TrioDriver(server.url).connect_async(5)
        with trio.move_on_after(0.02) as outer:
            await connection.exchange([READ], 20)
        assert outer.cancelled_caught
        connection.close()

    trio.run(main)


def test_interrupt_from_another_task(server, until, listed):
    async def main():
        connection = await TrioDriver(server.url).connect_async(5)

        async def read():
            with pytest.raises(OutcomeUnknown, match="interrupted"):
                await connection.exchange([READ], 20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.to_thread.run_sync(until, lambda: b" flags=b " in listed(connection.identity.client_id))
            connection.interrupt()
        connection.close()

    trio.run(main)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_cancelled_connect_leaves_nothing_open(stub, scheme):
    begun = threading.Event()

    def script(stub, peer):
        peer.recv(1)
        begun.set()
        stub.wait_for_hang_up(peer)

    silent = stub(script)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(TrioDriver(silent.url.replace("redis", scheme)).connect_async, 20)
            assert await trio.to_thread.run_sync(begun.wait, 10)
            nursery.cancel_scope.cancel()
        assert await trio.to_thread.run_sync(silent.hung_up.wait, 10)

    trio.run(main)


@pytest.mark.parametrize(
    "module",
    ["streamfleet.trio", "streamfleet.trio.client", "streamfleet.trio_driver"],
)
def test_the_extra_is_missing(module):
    code = (
        "import sys; sys.modules['trio'] = None\n"
        "from streamfleet_core.errors import MissingExtra\n"
        f"try:\n    import {module}\n"
        "except MissingExtra as error:\n    assert \"pip install 'streamfleet[trio]'\" in str(error)\n"
        "else:\n    raise SystemExit('it was imported')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_asyncio_is_another_drivers_business(server):
    with pytest.raises(WrongDriver, match="serves trio only: under asyncio use RedisDriver or ValkeyDriver"):
        asyncio.run(TrioDriver(server.url).connect_async(5))
