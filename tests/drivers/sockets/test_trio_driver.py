"""What is particular to the TrioDriver: cancel scopes, and that it needs trio."""

import asyncio
import socket
import subprocess
import sys
import threading

import pytest
import trio

import streamfleet.blocking_calls
import streamfleet.trio_driver
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


class TestNames:
    """They are looked up in threads of ours, and each address is tried by itself."""

    @pytest.fixture
    def addresses(self, monkeypatch):
        def set_to(*places):
            monkeypatch.setattr(streamfleet.trio_driver, "addresses_of", lambda host: list(places))

        return set_to

    @pytest.fixture
    def closed_port(self):
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            yield reserved.getsockname()[1]

    def test_look_ups_that_hang_leave_the_program_its_threads(self, monkeypatch):
        release, returned = threading.Event(), threading.Semaphore(0)
        monkeypatch.setattr(streamfleet.blocking_calls, "AT_ONCE", 3)

        def hang(host):
            release.wait(20)
            returned.release()
            return []

        async def main():
            driver = TrioDriver("redis://slow.test")
            for _ in range(3):
                with pytest.raises(NotSent, match="no answer in time"):
                    await driver.connect_async(0.01)
            with pytest.raises(NotSent, match="3 calls of the resolver for redis://slow.test:6379 have not come"):
                await driver.connect_async(5)
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0

        monkeypatch.setattr(streamfleet.trio_driver, "addresses_of", hang)
        try:
            trio.run(main)
        finally:
            release.set()
        assert all(returned.acquire(timeout=20) for _ in range(3))

    @pytest.mark.parametrize("url", ["redis://127.0.0.1:{}", "redis://some.test:{}"])
    def test_a_refusal_is_told_with_its_reason(self, addresses, closed_port, url):
        addresses("127.0.0.1")
        with pytest.raises(NotSent, match=r"cannot connect to .*: 127\.0\.0\.1: .*refused$"):
            trio.run(TrioDriver(url.format(closed_port)).connect_async, 5)

    def test_all_addresses_are_told_of(self, addresses, closed_port):
        addresses("127.0.0.1", "127.0.0.2")
        with pytest.raises(NotSent, match=r": 127\.0\.0\.1: .*refused; 127\.0\.0\.2: .*refused$"):
            trio.run(TrioDriver(f"redis://some.test:{closed_port}").connect_async, 5)

    def test_an_unknown_name(self):
        with pytest.raises(NotSent, match="cannot connect to redis://none.invalid:6379: "):
            trio.run(TrioDriver("redis://none.invalid").connect_async, 20)

    def test_the_next_address_is_tried_when_one_has_failed(self, addresses, server, monkeypatch):
        monkeypatch.setattr(streamfleet.trio_driver, "NEXT_ADDRESS", 60.0)
        addresses("127.0.0.3", "127.0.0.1")

        async def main():
            (await TrioDriver(f"redis://some.test:{server.port}").connect_async(5)).close()

        trio.run(main)

    def test_the_next_address_is_tried_beside_a_silent_one(self, addresses, server, monkeypatch):
        addresses("silent", "127.0.0.1")
        connect, given_up = trio.open_tcp_stream, []

        async def open_tcp_stream(place, port):
            if place != "silent":
                return await connect(place, port)
            try:
                await trio.sleep_forever()
            finally:
                given_up.append(place)

        async def main():
            (await TrioDriver(f"redis://some.test:{server.port}").connect_async(20)).close()

        monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
        monkeypatch.setattr(streamfleet.trio_driver, "NEXT_ADDRESS", 0.01)
        trio.run(main)
        assert given_up == ["silent"]

    def test_of_two_that_answer_at_once_one_is_closed(self, addresses, monkeypatch, server):
        addresses("127.0.0.1", "127.0.0.1")
        connect, opened = trio.open_tcp_stream, []

        async def open_tcp_stream(place, port):
            with trio.CancelScope(shield=True):
                opened.append(await connect(place, port))
            return opened[-1]

        async def main():
            (await TrioDriver(f"redis://some.test:{server.port}").connect_async(20)).close()

        monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
        monkeypatch.setattr(streamfleet.trio_driver, "NEXT_ADDRESS", 0.0)
        trio.run(main)
        assert [stream.socket.fileno() for stream in opened] == [-1, -1]
