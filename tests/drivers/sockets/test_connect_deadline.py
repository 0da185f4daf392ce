"""A connect has one deadline for all its steps, and none of them holds up an event loop."""

import asyncio
import socket
import threading
import time

import pytest
import redis.credentials
import trio
import valkey.credentials

import streamfleet.blocking_calls
import streamfleet.deadline
import streamfleet.library
from streamfleet.addresses import addresses_of, is_address, shares
from streamfleet.blocking_calls import BlockingCalls
from streamfleet.deadline import Deadline
from streamfleet.redis import RedisDriver
from streamfleet.trio_driver import TrioDriver
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.errors import AuthenticationFailed, NotSent, UsageError

PATIENCE = 20.0
SOON = 0.05
"""Seconds for a connect that cannot succeed."""


class Hung:
    """A call that does not come back before the test lets it."""

    def __init__(self):
        self.begun = threading.Event()
        self.release = threading.Event()
        self.returned = threading.Event()

    def __call__(self, *args, **settings):
        self.begun.set()
        self.release.wait(PATIENCE)
        self.returned.set()
        raise OSError("too late")

    get_credentials = __call__


@pytest.fixture
def hung():
    hung = Hung()
    yield hung
    hung.release.set()
    assert not hung.begun.is_set() or hung.returned.wait(PATIENCE)


@pytest.fixture
def hung_resolver(hung, monkeypatch):
    """Looks up ``slow.test`` without end, and all else as usual."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *args, **settings):
        flags = settings.get("flags", args[4] if len(args) > 4 else 0)
        if host in ("slow.test", b"slow.test") and not flags & socket.AI_NUMERICHOST:
            return hung()
        return look_up(host, *args, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return hung


@pytest.fixture
def clock(monkeypatch):
    """What deadlines go by: runs ahead of the real clock by so many seconds."""
    ahead = [0.0]
    monkeypatch.setattr(streamfleet.deadline, "monotonic", lambda: time.monotonic() + ahead[0])
    return ahead


def wait_for_hang_up(stub, peer):
    stub.wait_for_hang_up(peer)


def in_asyncio(function, *args):
    return asyncio.run(function(*args))


class TestEachStepIsBounded:
    def test_credentials(self, pair, server, hung):
        with pytest.raises(NotSent, match="in time"):
            pair.connect(server.url, timeout=SOON, credential_provider=hung)
        assert not hung.returned.is_set()

    def test_resolver(self, pair, hung_resolver):
        with pytest.raises(NotSent, match="cannot connect to redis://slow.test:6379: no answer in time"):
            pair.connect("redis://slow.test", timeout=SOON)
        assert hung_resolver.begun.is_set()
        assert not hung_resolver.returned.is_set()

    def test_tls(self, pair, stub):
        silent = stub(wait_for_hang_up)
        with pytest.raises(NotSent):
            pair.connect(silent.url.replace("redis:", "rediss:"), timeout=SOON)
        assert silent.hung_up.wait(PATIENCE)

    def test_second_half_of_the_greeting(self, pair, stub):
        def script(stub, peer):
            stub.read_until(peer, b"PING\r\n")
            peer.sendall(b"-ERR unknown command 'HELLO'\r\n+PONG\r\n")
            stub.wait_for_hang_up(peer)

        silent = stub(script)
        with pytest.raises(NotSent):
            pair.connect(silent.url, timeout=SOON)
        assert silent.hung_up.wait(PATIENCE)

    @pytest.mark.parametrize("driver_class", [RedisDriver, TrioDriver])
    def test_what_hangs_does_not_hold_up_the_end_of_the_loop(self, driver_class, hung_resolver):
        driver = driver_class("redis://slow.test")
        with pytest.raises(NotSent):
            (trio.run if driver_class is TrioDriver else in_asyncio)(driver.connect_async, SOON)
        assert not hung_resolver.returned.is_set()


class Slow:
    """Takes so many seconds of the clock, and none of the test's."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def get_credentials(self):
        self.clock[0] += self.seconds
        return ("secret",)


def connect_in_asyncio(driver, timeout):
    async def main():
        connection = await driver.connect_async(timeout)
        connection.close()

    asyncio.run(main())


def connect_in_threads(driver, timeout):
    driver.connect(timeout).close()


@pytest.mark.parametrize("run", [connect_in_threads, connect_in_asyncio])
class TestOneDeadlineForAll:
    """Under trio it is one cancel scope."""

    def test_what_one_step_takes_the_next_lacks(self, run, stub, clock):
        silent = stub(wait_for_hang_up)
        driver = RedisDriver(
            silent.url, credential_provider=Slow(clock, PATIENCE - SOON), connect_timeout=PATIENCE
        )
        begun = time.monotonic()
        with pytest.raises(NotSent):
            run(driver, PATIENCE)
        assert time.monotonic() - begun < PATIENCE / 2
        assert silent.hung_up.wait(PATIENCE)

    def test_both_halves_of_the_greeting(self, run, stub, clock):
        def script(stub, peer):
            stub.read_until(peer, b"PING\r\n")
            clock[0] += PATIENCE - SOON
            peer.sendall(b"-ERR unknown command 'HELLO'\r\n+PONG\r\n")
            stub.wait_for_hang_up(peer)

        silent = stub(script)
        begun = time.monotonic()
        with pytest.raises(NotSent):
            run(RedisDriver(silent.url, connect_timeout=PATIENCE), PATIENCE)
        assert time.monotonic() - begun < PATIENCE / 2

    def test_nothing_is_opened_without_time(self, run, stub, clock):
        unused = stub()
        driver = RedisDriver(unused.url, credential_provider=Slow(clock, PATIENCE), connect_timeout=PATIENCE)
        with pytest.raises(NotSent, match="no answer in time"):
            run(driver, PATIENCE)

    def test_the_next_address_is_tried(self, run, server, monkeypatch):
        monkeypatch.setattr(streamfleet.library, "addresses_of", lambda host: ["127.0.0.3", "127.0.0.1"])
        run(RedisDriver(f"redis://some.test:{server.port}"), PATIENCE)

    def test_all_addresses_are_told_of(self, run, monkeypatch):
        monkeypatch.setattr(streamfleet.library, "addresses_of", lambda host: ["127.0.0.3", "127.0.0.4"])
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.3", 0))
            port = reserved.getsockname()[1]
            with pytest.raises(NotSent, match=r"127\.0\.0\.3.*; .*127\.0\.0\.4"):
                run(RedisDriver(f"redis://some.test:{port}"), PATIENCE)

    def test_an_unknown_name(self, run):
        with pytest.raises(NotSent, match="cannot connect to redis://none.invalid:6379: "):
            run(RedisDriver("redis://none.invalid"), PATIENCE)


def test_a_silent_address_leaves_time_for_the_others(clock):
    given = []
    for place, seconds in shares(["a", "b", "c"], Deadline(6)):
        given.append((place, round(seconds, 1)))
        clock[0] += seconds
    assert given == [("a", 2), ("b", 2), ("c", 2)]
    passed = Deadline(0)
    assert (list(shares(["a"], passed)), passed.left()) == ([], 0)


def test_addresses(monkeypatch):
    assert [host for host in ("127.0.0.1", "::1", "localhost", "bücher") if is_address(host)] == [
        "127.0.0.1",
        "::1",
    ]
    found = [(socket.AF_INET6, 1, 6, "", ("fe80::1", 0, 0, 7)), (socket.AF_INET, 1, 6, "", ("10.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **settings: found)
    assert addresses_of("some.test") == ["fe80::1%7", "10.0.0.1"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5"])
@pytest.mark.parametrize("driver_class", [RedisDriver, TrioDriver])
def test_a_limit_that_is_none(driver_class, seconds):
    with pytest.raises(UsageError, match="connect_timeout is in seconds, above 0 and up to a day; got"):
        driver_class("redis://h", connect_timeout=seconds)


@pytest.mark.parametrize(
    ("url", "given", "used"),
    [("redis://h", None, 5), ("redis://h?timeout=2.5", None, 2.5), ("redis://h?timeout=2.5", 5, 5)],
)
@pytest.mark.parametrize("driver_class", [RedisDriver, ValkeyDriver, TrioDriver])
def test_the_argument_takes_precedence_over_the_url(driver_class, url, given, used):
    """The URL's had won."""
    assert driver_class(url, connect_timeout=given).connect_timeout == used


class Provider:
    """Says what it was made with, after trying whether the loop is free."""

    def __init__(self, *answer, runner=None):
        self.answer, self.runner = answer, runner
        self.asked = 0

    def get_credentials(self):
        self.asked += 1
        if hasattr(self.runner, "call_sync"):
            self.runner.call_sync(bool)
        return self.answer


class RedisProvider(Provider, redis.credentials.CredentialProvider):
    """Inherits the library's coroutine, which blocks."""


class ValkeyProvider(Provider, valkey.credentials.CredentialProvider):
    pass


@pytest.fixture
def users(server):
    connection = RedisDriver(server.url).connect(PATIENCE)
    connection.exchange([("ACL", "SETUSER", "ann", "on", ">secret", "+@all", "~*")], PATIENCE)
    yield
    connection.exchange([("ACL", "DELUSER", "ann")], PATIENCE)
    connection.close()


class TestCredentialProviders:
    @pytest.mark.parametrize("kind", [Provider, RedisProvider, ValkeyProvider])
    @pytest.mark.usefixtures("users")
    def test_does_not_hold_up_the_loop_and_is_asked_each_time(self, pair, server, kind):
        provider = kind("ann", "secret", runner=pair.runner)
        driver = pair.driver(server.url, credential_provider=provider)
        for _ in range(2):
            connection = pair.runner.connect(driver, PATIENCE)
            assert connection.identity.user == "ann"
            connection.close()
        assert provider.asked == 2

    @pytest.mark.usefixtures("users")
    def test_its_texts_may_be_of_a_class_of_its_own(self, pair, server):
        class Masked(str):
            __slots__ = ()

            def __str__(self):
                return "***"

            __repr__ = encode = __str__

        provider = Provider(Masked("ann"), Masked("secret"))
        assert pair.connect(server.url, credential_provider=provider).identity.user == "ann"

    def test_a_coroutine_of_its_own_is_awaited_on_the_loop(self, server, users):
        class Own(RedisProvider):
            async def get_credentials_async(self):
                self.loop = asyncio.get_running_loop()
                return self.answer

        async def main():
            provider = Own("ann", "secret")
            connection = await RedisDriver(server.url, credential_provider=provider).connect_async(PATIENCE)
            connection.close()
            assert (provider.loop, provider.asked) == (asyncio.get_running_loop(), 0)

        asyncio.run(main())

    def test_a_coroutine_that_hangs_or_fails(self, server):
        class Own(Provider):
            async def get_credentials_async(self):
                await (self.answer or [asyncio.get_running_loop().create_future()])[0]

        with pytest.raises(NotSent, match="in time"):
            asyncio.run(RedisDriver(server.url, credential_provider=Own()).connect_async(SOON))
        with pytest.raises(NotSent, match="the credential provider failed: TypeError"):
            asyncio.run(RedisDriver(server.url, credential_provider=Own(7)).connect_async(PATIENCE))

    @pytest.mark.parametrize("error", [OSError("no token"), StopIteration("no token"), TimeoutError("no token")])
    def test_its_failure_is_an_outage(self, pair, server, error):
        class Down:
            def get_credentials(self):
                raise error

        with pytest.raises(NotSent, match=rf"failed: {type(error).__name__}\('no token'\)"):
            pair.connect(server.url, credential_provider=Down())

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            (None, "gave NoneType;"),
            ("Zq9wVx", "gave str;"),
            ((), "gave tuple;"),
            (("Zq9wVx", None), r"gave tuple \(str, NoneType\);"),
            ((b"Zq9wVx",), r"gave tuple \(bytes\);"),
            (["Zq9wVx"] * 3, r"gave list \(str, str, str\);"),
        ],
    )
    def test_an_answer_that_cannot_be_sent(self, pair, server, answer, told):
        class Odd:
            def get_credentials(self):
                return answer

        with pytest.raises(AuthenticationFailed, match=told + " it must be a tuple of one str") as caught:
            pair.connect(server.url, credential_provider=Odd())
        assert "Zq9wVx" not in str(caught.value)

    @pytest.mark.parametrize("driver_class", [RedisDriver, TrioDriver])
    def test_construction(self, driver_class):
        with pytest.raises(UsageError, match="not both"):
            driver_class("redis://:secret@localhost", credential_provider=Provider("x"))
        with pytest.raises(UsageError, match="get_credentials.*unlike str"):
            driver_class("redis://localhost", credential_provider="secret")


class Unstartable(threading.Thread):
    error: BaseException = RuntimeError("can't start new thread")

    def start(self):
        raise self.error


class TestBlockingCalls:
    def test_no_more_than_its_limit(self, monkeypatch, hung):
        monkeypatch.setattr(streamfleet.blocking_calls, "AT_ONCE", 1)
        calls = BlockingCalls("the oracle")
        waiting = calls.start(hung)
        with pytest.raises(NotSent, match="1 calls of the oracle have not come back"):
            calls.start(bool)
        hung.release.set()
        assert isinstance(waiting.exception(PATIENCE), OSError)
        assert calls.start(bool).result(PATIENCE) is False
        assert calls.start(bool).result(PATIENCE) is False

    def test_without_a_thread_it_is_an_outage_for_event_loops_and_made_in_place_for_threads(self, monkeypatch):
        """It was taken for a defect, and ended the worker; at the exit of CPython 3.12 nothing more was sent."""
        monkeypatch.setattr(streamfleet.blocking_calls, "AT_ONCE", 1)
        calls = BlockingCalls("the oracle")
        with monkeypatch.context() as patch:
            patch.setattr(streamfleet.blocking_calls.threading, "Thread", Unstartable)
            for _ in range(2):  # each gives its place back
                with pytest.raises(NotSent, match="no thread can be had for the oracle"):
                    calls.start(bool)
                assert calls.start_or_call(threading.get_ident).result(0) == threading.get_ident()
        assert calls.start(bool).result(PATIENCE) is False

    def test_an_interrupted_start_gives_its_place_back(self, monkeypatch):
        monkeypatch.setattr(streamfleet.blocking_calls, "AT_ONCE", 1)
        calls = BlockingCalls("the oracle")
        with monkeypatch.context() as patch:
            patch.setattr(Unstartable, "error", KeyboardInterrupt())
            patch.setattr(streamfleet.blocking_calls.threading, "Thread", Unstartable)
            with pytest.raises(KeyboardInterrupt):
                calls.start(bool)
        assert calls.start(bool).result(PATIENCE) is False

    def test_a_connect_by_name_without_a_thread(self, monkeypatch, server):
        driver = RedisDriver(f"redis://localhost:{server.port}", credential_provider=Provider("x"))
        none = RedisDriver(f"redis://localhost:{server.port}")
        monkeypatch.setattr(streamfleet.blocking_calls.threading, "Thread", Unstartable)
        none.connect(PATIENCE).close()
        with pytest.raises(AuthenticationFailed):  # the server knows no password: the provider was asked
            driver.connect(PATIENCE)
        for each in (driver, none):
            with pytest.raises(NotSent, match="no thread can be had for the"):
                asyncio.run(each.connect_async(PATIENCE))
