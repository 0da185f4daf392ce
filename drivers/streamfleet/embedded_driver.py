"""The driver behind ``embedded://``: a server of one's own, and the connections to it."""

from __future__ import annotations

import os
from collections.abc import Callable

from streamfleet.embedded import EmbeddedServer
from streamfleet_core.connection import AsyncConnection, AsyncDriver, Capability, Connection, Driver
from streamfleet_core.errors import WrongDriver


class EmbeddedDriver:
    """Starts an `EmbeddedServer` and connects to it by another driver; `close` stops the server.

    ``directory`` keeps the data between runs; without it they go with the server. ``driver_for`` makes the
    other driver from the server's URL. Raises what these two raise.
    """

    name = "embedded"

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        driver_for: Callable[[str], Driver | AsyncDriver] | None = None,
    ) -> None:
        self.server = EmbeddedServer(directory=directory)
        try:
            self.driver = (driver_for or _default_driver)(self.server.url)
        except BaseException:
            self.server.stop()
            raise
        self.url = self.server.url
        self.missing: frozenset[Capability] = self.driver.missing

    def connect(self, timeout: float) -> Connection:
        """See `streamfleet_core.connection.Driver.connect`. Raises WrongDriver for an async driver."""
        if not isinstance(self.driver, Driver):
            raise WrongDriver(f"the {self.driver.name} driver behind this server is for async shells")
        return self.driver.connect(timeout)

    async def connect_async(self, timeout: float) -> AsyncConnection:
        """See `streamfleet_core.connection.AsyncDriver.connect_async`. Raises WrongDriver if that is sync."""
        if not isinstance(self.driver, AsyncDriver):
            raise WrongDriver(f"the {self.driver.name} driver behind this server is for threads")
        return await self.driver.connect_async(timeout)

    def close(self) -> None:
        """Stop the server, and with it every connection. Idempotent."""
        self.driver.close()
        self.server.stop()


def _default_driver(url: str) -> Driver:
    from streamfleet.drivers import driver_from_url

    return driver_from_url(url)
