"""Which driver a URL and a shell give."""

import importlib.metadata
import subprocess
import sys

import pytest

import streamfleet.drivers
import streamfleet.sync
from streamfleet.drivers import driver_from_url
from streamfleet.embedded import EmbeddedServer
from streamfleet.memory import MemoryDriver
from streamfleet.redis import RedisDriver
from streamfleet.trio_driver import TrioDriver
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.errors import InvalidURL, MissingExtra, UsageError, WrongDriver


@pytest.mark.parametrize(
    ("url", "shell", "expected"),
    [
        ("redis://host", "sync", RedisDriver),
        ("rediss://host", "asyncio", RedisDriver),
        ("unix:///path", "sync", RedisDriver),
        ("valkey://host", "sync", ValkeyDriver),
        ("valkeys://host", "asyncio", ValkeyDriver),
        ("redis://host", "trio", TrioDriver),
        ("valkey://host", "trio", TrioDriver),
        ("memory://", "sync", MemoryDriver),
        ("memory://name", "trio", MemoryDriver),
    ],
)
def test_by_scheme_and_shell(url, shell, expected):
    assert type(driver_from_url(url, shell=shell)) is expected


@pytest.mark.parametrize(
    ("url", "installed", "expected"),
    [("redis://host", "valkey", ValkeyDriver), ("valkey://host", "redis", RedisDriver)],
)
def test_the_other_library_when_only_that_is_installed(url, installed, expected, monkeypatch):
    monkeypatch.setattr(streamfleet.drivers, "find_spec", lambda name: name == installed or None)
    assert type(driver_from_url(url)) is expected


@pytest.mark.parametrize(("scheme", "extra"), [("redis", "redis"), ("rediss", "redis"), ("valkeys", "valkey")])
def test_no_library_is_installed(scheme, extra, monkeypatch):
    monkeypatch.setattr(streamfleet.drivers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf"pip install 'streamfleet\[{extra}\]'"):
        driver_from_url(f"{scheme}://host")


@pytest.mark.parametrize("shell", ["threads", "Trio", "asyncio ", "", "sync,trio", None, ["trio"]])
@pytest.mark.parametrize("url", ["redis://host", "memory://", "foreign://place"])
def test_an_unknown_shell(url, shell):
    with pytest.raises(UsageError) as caught:
        driver_from_url(url, shell=shell)
    assert str(caught.value) == f"unknown shell {shell!r}: it is 'sync' (for threads), 'asyncio' or 'trio'"


def test_trio_is_not_installed():
    code = (
        "import sys; sys.modules['trio'] = None\n"
        "from streamfleet import driver_from_url\n"
        "from streamfleet.errors import MissingExtra\n"
        "try:\n    driver_from_url('redis://host', shell='trio')\n"
        "except MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "the trio driver needs: pip install 'streamfleet[trio]'\n"


def test_trio_s_driver_in_threads():
    with pytest.raises(WrongDriver, match="TrioDriver does not serve threads: use RedisDriver"):
        streamfleet.sync.Client(driver_from_url("redis://host", shell="trio"), ["q"])


@pytest.mark.parametrize("url", ["host:6379", "redsi://host", "redis://host/x", None])
def test_bad_urls(url):
    with pytest.raises(InvalidURL):
        driver_from_url(url)


def test_embedded_starts_a_server_and_close_stops_it():
    driver = driver_from_url("embedded://")
    connection = driver.connect(5)
    assert connection.exchange([("PING",)], 5) == [b"PONG"]
    connection.close()
    assert driver.url == driver.server.url
    driver.close()
    driver.close()
    assert not driver.server.running


def test_embedded_keeps_its_data_in_a_directory(tmp_path):
    for expected in (1, 2):
        driver = driver_from_url(f"embedded://{tmp_path}/data")
        connection = driver.connect(5)
        assert connection.exchange([("INCR", "runs")], 5) == [expected]
        connection.close()
        driver.close()


def test_embedded_serves_the_shell_it_was_made_for():
    driver = driver_from_url("embedded://", shell="trio")
    try:
        assert isinstance(driver.driver, TrioDriver)
        with pytest.raises(WrongDriver, match="async shells"):
            driver.connect(5)
    finally:
        driver.close()


def test_embedded_stops_its_server_when_no_library_is_installed(monkeypatch):
    started = []
    monkeypatch.setattr(streamfleet.drivers, "find_spec", lambda name: None)
    monkeypatch.setattr(
        "streamfleet.embedded_driver.EmbeddedServer",
        lambda **settings: started.append(EmbeddedServer(**settings)) or started[-1],
    )
    with pytest.raises(MissingExtra):
        driver_from_url("embedded://")
    assert [server.running for server in started] == [False]


class Foreign:
    """A driver of somebody else, for threads."""

    def __init__(self, url):
        self.url = url

    def connect(self, timeout):
        raise NotImplementedError


@pytest.fixture
def entry_point(monkeypatch):
    point = importlib.metadata.EntryPoint("foreign", "unused", "streamfleet.drivers")
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: Foreign)

    def entry_points(*, group, name):
        return [point] if (group, name) == ("streamfleet.drivers", "foreign") else []

    monkeypatch.setattr(streamfleet.drivers, "entry_points", entry_points)


@pytest.mark.usefixtures("entry_point")
class TestThirdParties:
    def test_by_entry_point(self):
        driver = driver_from_url("foreign://place?option=1")
        assert (type(driver), driver.url) == (Foreign, "foreign://place?option=1")

    def test_a_shell_that_it_does_not_serve(self):
        with pytest.raises(WrongDriver) as caught:
            driver_from_url("foreign://place", shell="trio")
        assert str(caught.value) == (
            "Foreign, the driver for foreign://, does not serve the trio shell: it has no connect_async(); "
            "use it with sync, or another URL, such as redis://localhost:6379"
        )

    def test_what_is_no_driver_at_all(self, monkeypatch):
        monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: str)
        with pytest.raises(WrongDriver, match=r"str, the driver for foreign://.*no connect\(\); use another URL"):
            driver_from_url("foreign://place")
