"""Servers, stubs, and every pair of driver and shell behind one blocking interface."""

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import trio
import trustme

from streamfleet.embedded import EmbeddedServer
from streamfleet.redis import RedisDriver
from streamfleet.resp import PYTHON_CODEC
from streamfleet.trio_driver import TrioDriver
from streamfleet.valkey import ValkeyDriver

PATIENCE = 20.0
HELLO = (
    b"*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n8.2.1\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:7\r\n"
    b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$7\r\nreplica\r\n$7\r\nmodules\r\n*0\r\n"
)


@pytest.fixture(scope="session")
def server():
    with EmbeddedServer(appendonly=False) as running:
        yield running


class Threads:
    """Runs a sync driver as it is."""

    def connect(self, driver, timeout):
        return driver.connect(timeout)

    def stop(self):
        pass


class AsyncioThread:
    """An event loop in a thread."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def call(self, function, *args):
        return asyncio.run_coroutine_threadsafe(function(*args), self.loop).result(PATIENCE)

    def call_sync(self, function):
        async def run():
            return function()

        return self.call(run)

    def connect(self, driver, timeout):
        return Facade(self, self.call(driver.connect_async, timeout))

    def stop(self):
        self.call(asyncio.sleep, 0)  # transports close in a callback
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


class TrioThread:
    """A trio run in a thread."""

    def __init__(self):
        started = threading.Event()

        async def main():
            self.token = trio.lowlevel.current_trio_token()
            self.finish = trio.Event()
            started.set()
            await self.finish.wait()

        self.thread = threading.Thread(target=trio.run, args=(main,))
        self.thread.start()
        started.wait(PATIENCE)

    def call(self, function, *args):
        return trio.from_thread.run(function, *args, trio_token=self.token)

    def call_sync(self, function):
        return trio.from_thread.run_sync(function, trio_token=self.token)

    def connect(self, driver, timeout):
        return Facade(self, self.call(driver.connect_async, timeout))

    def stop(self):
        self.call_sync(self.finish.set)
        self.thread.join(PATIENCE)


class Facade:
    """An async connection for blocking callers."""

    def __init__(self, runner, connection):
        self.runner, self.connection = runner, connection
        self.identity = connection.identity

    def exchange(self, commands, timeout):
        return self.runner.call(self.connection.exchange, commands, timeout)

    def interrupt(self):
        self.runner.call_sync(self.connection.interrupt)

    def close(self):
        self.runner.call_sync(self.connection.close)


class Pair:
    """A driver class in one of its shells; closes at the end what it has opened."""

    def __init__(self, driver_class, runner, codec):
        self.driver_class, self.runner, self.codec = driver_class, runner, codec
        self.opened = []

    def driver(self, url, **settings):
        return self.driver_class(url, codec=self.codec, **settings)

    def connect(self, url, timeout=5.0, **settings):
        connection = self.runner.connect(self.driver(url, **settings), timeout)
        self.opened.append(connection)
        return connection

    def socket_of(self, connection):
        inner = getattr(connection, "connection", connection)
        if hasattr(inner, "_transport"):
            return inner._transport.get_extra_info("socket")
        return inner._socket

    def finish(self):
        for connection in self.opened:
            connection.close()
        self.runner.stop()
        gc.collect()  # a leaked socket or transport speaks up here, in the test that leaked it


PAIRS = {
    "redis-threads": (RedisDriver, Threads, None),
    "redis-asyncio": (RedisDriver, AsyncioThread, None),
    "valkey-threads": (ValkeyDriver, Threads, None),
    "valkey-asyncio": (ValkeyDriver, AsyncioThread, None),
    "trio": (TrioDriver, TrioThread, None),
    "redis-threads-python": (RedisDriver, Threads, PYTHON_CODEC),
    "redis-asyncio-python": (RedisDriver, AsyncioThread, PYTHON_CODEC),
    "trio-python": (TrioDriver, TrioThread, PYTHON_CODEC),
}


@pytest.fixture(params=PAIRS)
def pair(request) -> Iterator[Pair]:
    driver_class, runner, codec = PAIRS[request.param]
    pair = Pair(driver_class, runner(), codec)
    yield pair
    pair.finish()


class Stub:
    """A TCP server that plays one script per connection, then hangs up, and keeps what it was sent."""

    def __init__(self, scripts):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        self.scripts = list(scripts)
        self.received = []
        self.hung_up = threading.Event()
        """Set when a client has hung up on a script that waits for it."""
        self.errors = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        for script in self.scripts:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(PATIENCE)
                try:
                    script(self, peer)
                except (OSError, AssertionError) as error:
                    self.errors.append(error)

    def greet(self, peer):
        """Answer the first exchange."""
        self.read_until(peer, b"PING\r\n")
        peer.sendall(HELLO + b"+PONG\r\n")

    def read_until(self, peer, end):
        data = b""
        while end not in data:
            chunk = peer.recv(65536)
            assert chunk, f"the client hung up before {end!r}"
            data += chunk
        self.received.append(data)

    def wait_for_hang_up(self, peer):
        with contextlib.suppress(ConnectionResetError):
            while peer.recv(65536):
                pass
        self.hung_up.set()

    def stop(self):
        # Wakes an accept that no client will come to.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(PATIENCE)
        self.listener.close()


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    started = []

    def start(*scripts):
        started.append(Stub(scripts))
        return started[-1]

    yield start
    for running in started:
        running.stop()
        assert running.errors == []


class TLSFront:
    """Terminates TLS in front of a server."""

    def __init__(self, context, upstream_port):
        self.context, self.upstream_port = context, upstream_port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()
        self.sockets = []

    def _accept(self):
        while True:
            try:
                peer, _ = self.listener.accept()
                client = self.context.wrap_socket(peer, server_side=True)
            except ssl.SSLError:
                peer.close()
                continue
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self.upstream_port))
            self.sockets += [client, upstream]
            # An SSL socket is not for two threads at once: one thread carries both ways.
            self.threads.append(threading.Thread(target=self._carry, args=(client, upstream)))
            self.threads[-1].start()

    def _carry(self, client, upstream):
        client.settimeout(0.005)
        upstream.settimeout(0.005)
        while True:
            for source, target in ((client, upstream), (upstream, client)):
                try:
                    data = source.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    client.close()
                    upstream.close()
                    return
                target.settimeout(PATIENCE)
                target.sendall(data)
                target.settimeout(0.005)

    def stop(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.threads[0].join(PATIENCE)
        self.listener.close()
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self.threads[1:]:
            thread.join(PATIENCE)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def tls_front(server, authority) -> Iterator[TLSFront]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    front = TLSFront(context, server.port)
    yield front
    front.stop()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    def wait(condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.002)  # between two looks at the condition

    return wait
