"""Which driver a URL and a shell give."""

import importlib.metadata

import pytest

import streamfleet.drivers
from streamfleet.drivers import driver_from_url
from streamfleet.embedded import EmbeddedServer
from streamfleet.memory import MemoryDriver
from streamfleet.redis import RedisDriver
from streamfleet.trio_driver import TrioDriver
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.errors import InvalidURL, MissingExtra, WrongDriver


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
    with pytest.raises(MissingExtra, match=rf"pip install streamfleet\[{extra}\]"):
        driver_from_url(f"{scheme}://host")


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
        with pytest.raises(WrongDriver, match="connect_async"):
            driver_from_url("foreign://place", shell="trio")
