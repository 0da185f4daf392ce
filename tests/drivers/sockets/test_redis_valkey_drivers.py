"""What is particular to the drivers on redis-py and valkey-py: credentials, shells, cancellation."""

import asyncio
import subprocess
import sys
import threading

import pytest
import redis
import redis.credentials
import trio
import valkey

import streamfleet.extras
import streamfleet.sync
from streamfleet.redis import RedisDriver
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.connection import AsyncDriver, Driver
from streamfleet_core.errors import InvalidURL, MissingExtra, NotSent, PermissionMissing, UsageError, WrongDriver
from streamfleet_core.keys import GROUP, queue_keys

BOTH = pytest.mark.parametrize("driver_class", [RedisDriver, ValkeyDriver])


class Rotating(redis.credentials.CredentialProvider):
    """A new user at each connection."""

    def __init__(self):
        self.asked = 0

    def get_credentials(self):
        self.asked += 1
        return (f"user-{self.asked}", "secret")

    async def get_credentials_async(self):
        return self.get_credentials()


@pytest.fixture
def users(server):
    connection = RedisDriver(server.url).connect(5)
    for name in ("user-1", "user-2"):
        connection.exchange([("ACL", "SETUSER", name, "on", ">secret", "+@all", "~*")], 5)
    yield
    connection.exchange([("ACL", "DELUSER", "user-1", "user-2")], 5)
    connection.close()


@BOTH
class TestCredentialProvider:
    def test_is_asked_at_each_connection(self, driver_class, server, users):
        driver = driver_class(server.url, credential_provider=Rotating())
        first, second = driver.connect(5), driver.connect(5)
        assert (first.identity.user, second.identity.user) == ("user-1", "user-2")
        assert second.exchange([("ACL", "WHOAMI")], 5) == [b"user-2"]
        first.close()
        second.close()

    def test_under_asyncio(self, driver_class, server, users):
        async def main():
            connection = await driver_class(server.url, credential_provider=Rotating()).connect_async(5)
            connection.close()
            return connection.identity.user

        assert asyncio.run(main()) == "user-1"

    def test_its_failure_is_an_outage(self, driver_class, server):
        class Down:
            def get_credentials(self):
                raise OSError("token service unreachable")

        driver = driver_class(server.url, credential_provider=Down())
        with pytest.raises(NotSent, match="token service unreachable"):
            driver.connect(5)
        with pytest.raises(NotSent, match="token service unreachable"):
            asyncio.run(driver.connect_async(5))

    def test_not_together_with_a_password(self, driver_class):
        with pytest.raises(UsageError, match="not both"):
            driver_class("redis://:secret@localhost", credential_provider=Rotating())


@pytest.fixture(params=["multi", "exec"])
def limited(server, request):
    """The URL of a user who may do all but this, what is missing, and a way to ask the server."""
    connection = RedisDriver(server.url).connect(5)

    def ask(*command):
        return connection.exchange([command], 5)[0]

    ask("FLUSHALL")
    ask("ACL", "SETUSER", "clerk", "on", ">pw", "~*", "+@all", f"-{request.param}")
    yield server.url.replace("://", "://clerk:pw@"), request.param, ask
    ask("ACL", "DELUSER", "clerk")
    connection.close()


class TestWithoutTransactions:
    def test_a_client_writes_no_task(self, limited):
        url, missing, ask = limited
        client = streamfleet.sync.Client(RedisDriver(url), ["mail"])
        client.enqueue("mail", "x")
        with pytest.raises(PermissionMissing, match=rf"clerk.*may not run {missing.upper()};.*\+{missing}"):
            client.flush(20)
        assert client.close() == 1
        assert ask("EXISTS", queue_keys("mail").stream) == 0

    def test_a_worker_settles_nothing(self, limited):
        url, missing, ask = limited
        ask("XGROUP", "CREATE", queue_keys("mail").stream, GROUP, "0", "MKSTREAM")
        worker = streamfleet.sync.Worker(RedisDriver(url))
        worker.handler("mail")(print)
        with pytest.raises(PermissionMissing, match=rf"clerk.*may not run {missing.upper()};.*\+{missing}"):
            worker.run()


@BOTH
class TestConstruction:
    def test_serves_threads_and_asyncio(self, driver_class):
        driver = driver_class()
        assert isinstance(driver, Driver)
        assert isinstance(driver, AsyncDriver)

    def test_tells_no_password(self, driver_class):
        driver = driver_class("redis://alice:pa%3Ass@host:1234/2")
        assert "alice@host:1234/2" in repr(driver)
        assert "pa:ss" not in repr(driver) + repr(vars(driver)["_server"])
        assert driver.url == "redis://alice@host:1234/2"

    def test_takes_no_url_of_another_kind(self, driver_class):
        with pytest.raises(InvalidURL, match="driver_from_url"):
            driver_class("memory://")

    def test_client_name_that_no_server_takes(self, driver_class):
        with pytest.raises(UsageError, match="client_name 'two words'"):
            driver_class(client_name="two words")

    @pytest.mark.parametrize(
        "option", ["ssl_ca_certs=/none", "ssl_certfile=/none", "ssl_cert_reqs=perhaps", "ssl_check_hostname=maybe"]
    )
    def test_tls_options_are_checked_at_once(self, driver_class, option):
        with pytest.raises(InvalidURL, match=option.partition("=")[0]):
            driver_class(f"rediss://localhost?{option}")

    def test_the_extra_is_missing(self, driver_class, monkeypatch):
        monkeypatch.setattr(streamfleet.extras, "find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=rf"pip install 'streamfleet\[{driver_class.name}\]'"):
            driver_class()

    def test_trio_is_another_drivers_business(self, driver_class):
        with pytest.raises(WrongDriver, match="TrioDriver"):
            trio.run(driver_class().connect_async, 1)


@BOTH
class TestTheLibraryIsOutOfTheWay:
    def test_its_connection_holds_no_socket_and_never_logs_in(self, driver_class, server, monkeypatch):
        made = []
        library = {RedisDriver: redis, ValkeyDriver: valkey}[driver_class]

        class Spy(library.Connection):
            def __init__(self, **settings):
                super().__init__(**settings)
                made.append(self)

            def send_packed_command(self, command, check_health=True):
                raise AssertionError("the library has sent something")

        monkeypatch.setattr(library, "Connection", Spy)
        connection = driver_class(server.url).connect(5)
        [inner] = made
        assert inner._sock is None
        assert inner.retry.get_retries() == 0 if hasattr(inner.retry, "get_retries") else inner.retry._retries == 0
        inner.disconnect()
        assert connection.exchange([("PING",)], 5) == [b"PONG"]
        connection.close()


@BOTH
class TestCancellation:
    def test_a_cancelled_exchange_closes_the_connection(self, driver_class, server, until):
        watcher = RedisDriver(server.url).connect(5)

        async def main():
            connection = await driver_class(server.url).connect_async(5)
            client = connection.identity.client_id
            task = asyncio.create_task(connection.exchange([("XREAD", "BLOCK", 10000, "STREAMS", "s", "$")], 20))
            listed = lambda: watcher.exchange([("CLIENT", "LIST", "ID", client)], 5)[0]  # noqa: E731
            await asyncio.to_thread(until, lambda: b" flags=b " in listed())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(NotSent, match="cancelled"):
                await connection.exchange([("PING",)], 5)
            await asyncio.to_thread(until, lambda: listed() == b"")
            connection.close()

        asyncio.run(main())
        watcher.close()

    @pytest.mark.parametrize("scheme", ["redis", "rediss"])
    def test_a_cancelled_connect_leaves_nothing_open(self, driver_class, stub, scheme):
        begun = threading.Event()

        def script(stub, peer):
            peer.recv(1)
            begun.set()
            stub.wait_for_hang_up(peer)

        silent = stub(script)

        async def main():
            driver = driver_class(silent.url.replace("redis", scheme))
            task = asyncio.create_task(driver.connect_async(20))
            assert await asyncio.to_thread(begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(silent.hung_up.wait, 10)

        asyncio.run(main())


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, streamfleet, streamfleet.drivers, streamfleet.redis, streamfleet.valkey, streamfleet.fake\n"
        "assert not {'redis', 'valkey', 'trio', 'fakeredis'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("module", "driver"), [("redis", "RedisDriver"), ("valkey", "ValkeyDriver")])
def test_the_library_is_imported_with_its_driver_and_not_on_an_event_loop(module, driver):
    code = (
        f"import sys, streamfleet.{module}\n"
        f"streamfleet.{module}.{driver}()\n"
        f"assert '{module}.asyncio.connection' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
