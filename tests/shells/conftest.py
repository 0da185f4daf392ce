"""Servers and drivers for the shells' own tests."""

import time
from collections.abc import Callable, Iterator

import pytest

from streamfleet.embedded import EmbeddedServer
from streamfleet.memory import MemoryDriver
from streamfleet.memory.model import ModelServer

PATIENCE = 20.0  # seconds that a condition may take on a loaded machine


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A real server for the whole run; tests use queues of their own."""
    with EmbeddedServer(appendonly=False) as running:
        yield running


@pytest.fixture
def driver() -> MemoryDriver:
    """A server within the process, empty."""
    return MemoryDriver(server=ModelServer(lambda: time.time_ns() // 1_000_000))


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
