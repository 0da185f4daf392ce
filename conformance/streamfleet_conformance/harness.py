"""What the suite must be told of a driver.

The author of a driver writes:

    from streamfleet_conformance import Harness

    class MyHarness(Harness):
        def driver(self, url):
            return MyDriver(url)

and runs ``python -m streamfleet_conformance --harness my_module:MyHarness --server valkey-9.1`` (or
``--server redis://…``). A driver whose server lives in the same process overrides `backend` too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from itertools import count
from typing import Any, ClassVar

from streamfleet_conformance.backends import Backend, ForeignBackend, LaunchedBackend, LocalBackend
from streamfleet_core.connection import AsyncDriver, Driver
from streamfleet_core.errors import UsageError


class Harness(ABC):
    """Makes drivers and servers for the cases.

    ``server``: what ``--server`` says: the name of a server of the catalogue, or a URL.
    """

    default_server: ClassVar[str] = "valkey-9.1"
    shells: ClassVar[frozenset[str]] = frozenset({"sync"})
    """The shells that the driver serves."""
    in_process: ClassVar[bool] = False
    """The server lives inside this process: each case gets a fresh one."""

    def __init__(self, server: str = "") -> None:
        self.server = server or self.default_server

    @abstractmethod
    def driver(self, url: str) -> Driver | AsyncDriver:
        """A driver for the server at ``url``, with its usual settings."""

    def backend(self, *, durable: bool = False, maxmemory: int | None = None) -> Backend:
        """A server. ``durable``: it keeps what it has confirmed; ``maxmemory`` in bytes.

        Raises ServerNotInstalled, EmbeddedServerFailed, InvalidURL.
        """
        if "://" in self.server:
            return ForeignBackend(self.server)
        return LaunchedBackend(self.server, durable=durable, maxmemory=maxmemory)

    @property
    def owned(self) -> bool:
        """May cases kill and restart the server?"""
        return "://" not in self.server or self.in_process


class RedisHarness(Harness):
    """`RedisDriver`."""

    shells = frozenset({"sync", "asyncio"})

    def driver(self, url: str) -> Driver | AsyncDriver:
        """See `Harness.driver`."""
        from streamfleet.redis import RedisDriver

        return RedisDriver(url)


class ValkeyHarness(Harness):
    """`ValkeyDriver`."""

    shells = frozenset({"sync", "asyncio"})

    def driver(self, url: str) -> Driver | AsyncDriver:
        """See `Harness.driver`."""
        from streamfleet.valkey import ValkeyDriver

        return ValkeyDriver(url)


class TrioHarness(Harness):
    """`TrioDriver`."""

    shells = frozenset({"trio"})

    def driver(self, url: str) -> Driver | AsyncDriver:
        """See `Harness.driver`."""
        from streamfleet.trio_driver import TrioDriver

        return TrioDriver(url)


_numbers = count(1)


class MemoryHarness(Harness):
    """`MemoryDriver`, with a model server for each case."""

    default_server = "memory"
    shells = frozenset({"sync", "asyncio", "trio"})
    in_process = True

    def driver(self, url: str) -> Driver | AsyncDriver:
        """See `Harness.driver`."""
        from streamfleet.memory import MemoryDriver

        return MemoryDriver(url.removeprefix("memory://"))

    def backend(self, *, durable: bool = False, maxmemory: int | None = None) -> Backend:
        """See `Harness.backend`."""
        from streamfleet.memory import MemoryDriver

        url = f"memory://conformance-{next(_numbers)}"
        driver = MemoryDriver(url.removeprefix("memory://"))
        return LocalBackend(
            url,
            on_kill=lambda: driver.make_unavailable(lose_data=True),
            on_restart=driver.make_available,
            on_block=driver.make_unavailable,
        )


class FakeHarness(Harness):
    """`FakeDriver`, with a fakeredis server for each case."""

    default_server = "fakeredis"
    shells = frozenset({"sync", "asyncio", "trio"})
    in_process = True

    def __init__(self, server: str = "") -> None:
        super().__init__(server)
        self._servers: dict[str, Any] = {}

    def driver(self, url: str) -> Driver | AsyncDriver:
        """See `Harness.driver`."""
        from streamfleet.fake import FakeDriver

        driver = FakeDriver(self._servers.get(url))
        return driver if self._servers.setdefault(url, driver.server) is driver.server else self.driver(url)

    def backend(self, *, durable: bool = False, maxmemory: int | None = None) -> Backend:
        """See `Harness.backend`."""
        url = f"fakeredis-{next(_numbers)}"
        self.driver(url)

        def reachable(yes: bool) -> None:
            self._servers[url].connected = yes

        def kill() -> None:
            driver = self.driver(url)
            assert isinstance(driver, Driver)
            connection = driver.connect(1.0)
            connection.exchange([("FLUSHALL",)], 1.0)
            connection.close()
            reachable(False)

        return LocalBackend(
            url,
            on_kill=kill,
            on_restart=lambda: reachable(True),
            on_block=lambda: reachable(False),
        )


HARNESSES: dict[str, type[Harness]] = {
    "memory": MemoryHarness,
    "fake": FakeHarness,
    "redis": RedisHarness,
    "valkey": ValkeyHarness,
    "trio": TrioHarness,
}


def harness_for(driver: str = "", server: str = "", reference: str = "") -> Harness:
    """The harness of one of our drivers, or that of a third party (``module:attribute``).

    Raises UsageError when there is no such thing.
    """
    if not reference:
        if driver not in HARNESSES:
            raise UsageError(f"no driver {driver!r}: there are {', '.join(HARNESSES)}; or give --harness")
        return HARNESSES[driver](server)
    module, _, attribute = reference.partition(":")
    try:
        made = getattr(import_module(module), attribute)(server)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--harness {reference!r}: {error}; expected module:attribute") from error
    if not isinstance(made, Harness):
        raise UsageError(f"--harness {reference!r} makes {made!r:.80}, not a streamfleet_conformance.Harness")
    return made
