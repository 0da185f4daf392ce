"""One connection for commands that look at a server, or tidy it up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from streamfleet import driver_from_url
from streamfleet_core.connection import Command, Connection, Driver, Reply, ServerError, ServerIdentity
from streamfleet_core.replies import refusal

TIMEOUT = 10.0
"""Seconds for a connect, and for an exchange."""


class Session:
    """Asks, and raises what goes wrong."""

    def __init__(self, driver: Driver, connection: Connection) -> None:
        self._driver = driver
        self._connection = connection

    @property
    def identity(self) -> ServerIdentity:
        """Who answers."""
        return self._connection.identity

    @contextmanager
    def another(self) -> Iterator[Session]:
        """A second connection to the same server. Raises ConnectionFailure, and a ServerRefused."""
        with closing(self._driver.connect(TIMEOUT)) as connection:
            yield Session(self._driver, connection)

    def try_all(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies, errors included. Raises ConnectionFailure."""
        return self._connection.exchange(commands, TIMEOUT) if commands else []

    def ask_all(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies. Raises a ServerRefused for the first error among them, and ConnectionFailure."""
        replies = self.try_all(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, ServerError):
                raise refusal(reply, command, self.identity.user)
        return replies

    def ask(self, *command: str | bytes | int) -> Reply:
        """One reply. Raises as `ask_all`."""
        return self.ask_all([command])[0]


@contextmanager
def session(url: str) -> Iterator[Session]:
    """Connected to a server. Raises InvalidURL, MissingExtra, ConnectionFailure, and a ServerRefused."""
    with closing(driver_from_url(url)) as driver, closing(driver.connect(TIMEOUT)) as connection:
        yield Session(driver, connection)
