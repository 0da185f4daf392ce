"""The first exchange on a connection, for any driver: log in, choose the database, learn who answers.

All of it leaves in one write. The PING is there because HELLO is answered even by a server that is still
loading its data, which no command of ours would be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from streamfleet.deadline import Deadline
from streamfleet_core.connection import (
    AsyncConnection,
    Capability,
    Command,
    Connection,
    Reply,
    ServerError,
    ServerIdentity,
)
from streamfleet_core.errors import NotSent, OutcomeUnknown
from streamfleet_core.replies import ErrorKind, classify, refusal

FALLBACK: tuple[Command, ...] = (("INFO", "server"), ("INFO", "replication"), ("CLIENT", "ID"))
"""Asked where HELLO is refused."""

# Without these we are not connected as asked; what else is refused here costs us knowledge, not function.
_ESSENTIAL = ("AUTH", "SELECT")
_LOCKED_OUT = ("NOAUTH", "DENIED")


@dataclass(frozen=True, slots=True)
class Greeting:
    """What to send first on a connection to ``url`` (which is for people and holds no password)."""

    url: str
    credentials: tuple[str, ...] = ()
    """Empty, a password, or a user's name and password."""
    db: int = 0
    client_name: str = ""

    @property
    def user(self) -> str:
        """The ACL user that the connection will act as."""
        return self.credentials[0] if len(self.credentials) == 2 else "default"

    def commands(self) -> list[Command]:
        """The commands to exchange first."""
        commands: list[Command] = []
        if self.credentials:
            commands.append(("AUTH", *self.credentials))
        if self.client_name:
            commands.append(("CLIENT", "SETNAME", self.client_name))
        if self.db:
            commands.append(("SELECT", self.db))
        return [*commands, ("HELLO",), ("PING",)]

    def identity(self, replies: Sequence[Reply]) -> ServerIdentity | None:
        """Who answers; None when HELLO is refused, and `FALLBACK` should be asked.

        Raises NotSent when the server is not ready, ServerRefused when it does not let us in.
        """
        identity = None
        for command, reply in zip(self.commands(), replies, strict=True):
            if isinstance(reply, ServerError):
                self._check(command, reply)
            elif command == ("HELLO",) and isinstance(reply, list):
                identity = self._from_hello(reply)
        return identity

    def fallback_identity(self, replies: Sequence[Reply]) -> ServerIdentity:
        """Who answers, from the replies to `FALLBACK`, any of which may be refused, too."""
        server, replication, client_id = replies
        info = _info(server) | _info(replication)
        engine = "valkey" if "valkey_version" in info else "redis"
        return self._identity(
            server=engine if info else "unknown",
            version=info.get(f"{engine}_version", "0"),
            mode=info.get("redis_mode", info.get("server_mode", "standalone")),
            role=info.get("role", "master"),
            client_id=client_id if isinstance(client_id, int) else 0,
        )

    def _check(self, command: Command, error: ServerError) -> None:
        if classify(error) is ErrorKind.TRY_AGAIN:
            raise NotSent(f"{self.url} is not ready: {error.message}")
        if command[0] in _ESSENTIAL or error.code in _LOCKED_OUT:
            reason = refusal(error, command, self.user)
            raise type(reason)(f"{self.url}: {reason}")

    def _from_hello(self, reply: list[Reply]) -> ServerIdentity:
        names = [str(name, "utf-8", "replace") for name in reply[::2] if isinstance(name, bytes)]
        said = dict(zip(names, reply[1::2], strict=True))
        text = {name: str(value, "utf-8", "replace") for name, value in said.items() if isinstance(value, bytes)}
        client_id = said.get("id")
        return self._identity(
            server=text.get("server", "unknown"),
            version=text.get("version", "0"),
            mode=text.get("mode", "standalone"),
            role=text.get("role", "master"),
            client_id=client_id if isinstance(client_id, int) else 0,
        )

    def _identity(self, server: str, version: str, mode: str, role: str, client_id: int) -> ServerIdentity:
        return ServerIdentity(
            server=server,
            version=version,
            mode=mode,
            role="replica" if role == "slave" else role,
            client_id=client_id,
            user=self.user,
            missing=_missing(server, version, mode),
        )


def greet(connection: Connection, greeting: Greeting, deadline: Deadline) -> None:
    """Hold the first exchange, and give the connection the identity that it tells.

    Raises NotSent when the server does not answer by the deadline or is not ready, a ServerRefused when it does
    not let us in; the connection is closed then.
    """
    with _closed_on_failure(connection):
        identity = greeting.identity(connection.exchange(greeting.commands(), deadline.left()))
        if identity is None:
            identity = greeting.fallback_identity(connection.exchange(FALLBACK, deadline.left()))
        connection.identity = identity


async def greet_async(connection: AsyncConnection, greeting: Greeting, deadline: Deadline) -> None:
    """As `greet`."""
    with _closed_on_failure(connection):
        identity = greeting.identity(await connection.exchange(greeting.commands(), deadline.left()))
        if identity is None:
            identity = greeting.fallback_identity(await connection.exchange(FALLBACK, deadline.left()))
        connection.identity = identity


@contextmanager
def _closed_on_failure(connection: Connection | AsyncConnection) -> Iterator[None]:
    try:
        yield
    except OutcomeUnknown as error:
        connection.close()
        raise NotSent(str(error)) from error  # nothing but the greeting can have been applied
    except BaseException:
        connection.close()
        raise


def _missing(server: str, version: str, mode: str) -> frozenset[Capability]:
    """What this server does not have, by what it says of itself."""
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    missing: set[Capability] = set()
    if server != "redis" or numbers < [8, 2]:
        missing.add(Capability.XACKDEL)
    # Outside of a Cluster most servers refuse all of CLUSTER.
    if mode != "cluster" and (server != "valkey" or numbers < [9, 1]):
        missing.add(Capability.CLUSTER_COMMANDS)
    return frozenset(missing)


def _info(reply: Reply) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    lines = reply.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
