"""Servers and drivers for the shells' own tests."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from streamfleet.embedded import EmbeddedServer
from streamfleet.memory import MemoryDriver
from streamfleet.memory.model import ModelServer
from streamfleet_core.keys import GROUP, queue_keys

PATIENCE = 20.0  # seconds that a condition may take on a loaded machine


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A real server for the whole run; tests use queues of their own."""
    with EmbeddedServer(appendonly=False) as running:
        yield running


@pytest.fixture(name="sockets")
def looks_at_sockets() -> Callable[[], set[str]]:
    """Tells which sockets this process holds open."""

    def look() -> set[str]:
        found = set()
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except FileNotFoundError:
                continue  # the directory's own descriptor
            if target.startswith("socket:"):
                found.add(target)
        return found

    return look


@pytest.fixture
def driver() -> MemoryDriver:
    """A server within the process, empty."""
    return MemoryDriver(server=ModelServer(lambda: time.time_ns() // 1_000_000))


@pytest.fixture
def settle_elsewhere(driver: MemoryDriver) -> Callable[[], None]:
    """What another worker does that has reclaimed the one pending entry and has completed it."""

    def settle() -> None:
        keys = queue_keys("q")
        session = driver.server.session()
        [[entry, *_]] = session.execute(("XPENDING", keys.stream, GROUP, "-", "+", 100))
        session.execute(("SET", keys.fence, "another has reclaimed"))
        assert session.execute(("XACK", keys.stream, GROUP, entry)) == 1
        session.execute(("XDEL", keys.stream, entry))

    return settle


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition, and fail with it when it does not come."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {condition}")
            time.sleep(0.002)  # between two looks at the condition

    return wait
