"""MemoryDriver: a server within the process, for tests, examples and single-process use."""

from __future__ import annotations

from streamfleet.memory.connection import AsyncMemoryConnection, MemoryConnection
from streamfleet.memory.hub import MISSING, hub_of
from streamfleet.memory.model import ModelServer
from streamfleet_core.connection import AsyncConnection, Capability, Connection


class MemoryDriver:
    """Connects to a model server in this process, from threads, asyncio and trio alike.

    Drivers of the same ``name`` share one server for the life of the process, as ``memory://name`` does; a
    driver that is given a ``server`` uses that one. Nothing is kept beyond the process.
    """

    name = "memory"
    missing: frozenset[Capability] = MISSING

    def __init__(self, name: str = "", *, server: ModelServer | None = None) -> None:
        self.url = f"memory://{name}"
        self._hub = hub_of(name, server)

    @property
    def server(self) -> ModelServer:
        """The model. Not to be called directly while connections of other threads are in use."""
        return self._hub.model

    def connect(self, timeout: float) -> Connection:
        """See `streamfleet_core.connection.Driver.connect`.

        Raises NotSent while the server is unavailable.
        """
        return MemoryConnection(self._hub)

    async def connect_async(self, timeout: float) -> AsyncConnection:
        """See `streamfleet_core.connection.AsyncDriver.connect_async`.

        Raises NotSent while the server is unavailable, RuntimeError outside of asyncio and trio.
        """
        return AsyncMemoryConnection(self._hub)

    def close(self) -> None:
        """Nothing to release: the server stays for others of its name."""

    # Faults, for tests of outages

    def make_unavailable(self, *, lose_data: bool = False) -> None:
        """Stop the server as its users see it: connections are cut and new ones refused."""
        with self._hub:
            self._hub.available = False
            if lose_data:
                self._hub.model.reset()
            else:
                self._hub.model.drop_connections()

    def make_available(self) -> None:
        """Let the server accept connections again."""
        with self._hub:
            self._hub.available = True

    def cut_connections(self) -> None:
        """Cut all connections; new ones are accepted."""
        with self._hub:
            self._hub.model.drop_connections()
