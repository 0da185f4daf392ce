"""What the core asks of a driver.

A driver turns commands into replies over one connection at a time, and does nothing else: it never
retries, never reconnects, never interprets. A shell opens one connection per role, and has at most one
exchange in flight on each.

A reply is what RESP2 says: ``bytes`` for simple and bulk strings, ``int``, ``None`` for nil, ``list`` for
arrays (nested), and a `ServerError` value for an error reply, also inside the array of an EXEC.
Drivers speak RESP2 so that no reply is a map.

An exchange fails in exactly two ways: `NotSent` (no byte left) and `OutcomeUnknown` (some may have).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias, runtime_checkable

Argument: TypeAlias = bytes | str | int | float
Command: TypeAlias = tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class ServerError:
    """An error reply, as a value. ``message`` is the raw line without the leading ``-``."""

    message: str

    @property
    def code(self) -> str:
        """The first word of the line, for example ``NOGROUP``; ``ERR`` errors give ``ERR``."""
        return self.message.split(" ", 1)[0]


Reply: TypeAlias = "bytes | int | None | list[Reply] | ServerError"


class Capability(Enum):
    """What a backend can do beyond the baseline. A driver declares those that it lacks."""

    BLOCKING_READS = "XREADGROUP and XREAD honour BLOCK"
    WATCH_SEES_XDEL = "XDEL and key expiry dirty a WATCH"
    CLIENT_UNBLOCK = "CLIENT UNBLOCK ends a blocked read"
    SERVER_INFO = "INFO, CONFIG GET and MEMORY USAGE are answered"
    ACL = "users and command permissions"
    PERSISTENCE = "data survives a restart of the server"
    OUT_OF_PROCESS = "the server is another process; several processes share it"
    CLUSTER_COMMANDS = "CLUSTER KEYSLOT is answered"
    XACKDEL = "XACKDEL (Redis 8.2)"


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Who answers on a connection, from HELLO (or INFO and CLIENT ID where HELLO is refused)."""

    server: str
    """``redis``, ``valkey``, ``fakeredis`` or ``memory``."""
    version: str
    mode: str = "standalone"
    """``standalone``, ``sentinel`` or ``cluster``."""
    role: str = "master"
    client_id: int = 0
    """The server's number for this connection, for CLIENT UNBLOCK; 0 when unknown."""
    user: str = "default"
    missing: frozenset[Capability] = field(default_factory=frozenset)


@runtime_checkable
class Connection(Protocol):
    """One open connection, blocking form. Used by one thread at a time, except `interrupt`."""

    identity: ServerIdentity

    def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """Write all commands at once and read one reply for each.

        ``timeout`` (seconds) bounds the whole exchange and includes the BLOCK time of a blocking read.
        After a failure the connection is unusable and must be closed.

        Raises NotSent when no byte left, OutcomeUnknown when some may have.
        """

    def interrupt(self) -> None:
        """Make an exchange in flight fail at once with OutcomeUnknown. Callable from any thread, idempotent."""

    def close(self) -> None:
        """Close the connection. Idempotent, never raises, never blocks."""


@runtime_checkable
class Driver(Protocol):
    """Opens connections, blocking form. One driver object may be shared by clients, workers and threads."""

    name: str
    url: str
    """For people: where this driver connects to, without the password."""
    missing: frozenset[Capability]

    def connect(self, timeout: float) -> Connection:
        """Open a connection, authenticated, on the right database, speaking RESP2.

        Raises NotSent when the server cannot be reached or is not ready (LOADING, max clients) within
        ``timeout`` seconds, and a ServerRefused when it answers but refuses (wrong password, no permission).
        """

    def close(self) -> None:
        """Release what the driver itself holds. Connections are closed by those who opened them."""


@runtime_checkable
class AsyncConnection(Protocol):
    """One open connection, async form (asyncio or trio). Cancelling an exchange makes it unusable."""

    identity: ServerIdentity

    async def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """As `Connection.exchange`."""

    def interrupt(self) -> None:
        """As `Connection.interrupt`, from the same event loop."""

    def close(self) -> None:
        """As `Connection.close`."""


@runtime_checkable
class AsyncDriver(Protocol):
    """Opens connections, async form. Drivers that serve both worlds provide both forms."""

    name: str
    url: str
    missing: frozenset[Capability]

    async def connect_async(self, timeout: float) -> AsyncConnection:
        """As `Driver.connect`."""

    def close(self) -> None:
        """As `Driver.close`."""
