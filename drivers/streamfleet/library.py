"""What the drivers on redis-py and on valkey-py share: both libraries come from one root.

The library opens the socket: name resolution, socket options, TLS. Then the socket is taken from it, and
nothing else of it is used, because above the socket it re-sends commands, reconnects by itself, strips the
codes from error replies, and costs more time than the server does. Credentials may come from a credential
provider of the library; they are asked for at each connection.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, Protocol

from streamfleet.extras import require
from streamfleet.handshake import Greeting
from streamfleet.resp import Codec, installed_codec
from streamfleet.running_loop import in_trio
from streamfleet.settings import settings_for
from streamfleet.socket_connection import SocketConnection
from streamfleet.stream_connection import StreamConnection
from streamfleet_core.connection import Capability
from streamfleet_core.errors import NotSent, UsageError, WrongDriver
from streamfleet_core.urls import ServerURL


class CredentialProvider(Protocol):
    """The libraries' credential providers."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """A password, or a user's name and password, that are valid now. May block."""
        ...


@dataclass(frozen=True, slots=True)
class Library:
    """Where redis-py and valkey-py differ."""

    module: str
    base_error: str
    connect_hook: str
    """The constructor's argument for what to do instead of logging in."""
    codec: str


class LibraryDriver:
    """Opens connections by a client library; the base of RedisDriver and ValkeyDriver."""

    name: str
    library: ClassVar[Library]

    def __init__(
        self,
        url: str | ServerURL,
        *,
        username: str | None = None,
        password: str | None = None,
        credential_provider: CredentialProvider | None = None,
        db: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        client_name: str | None = None,
        connect_timeout: float = 5.0,
        codec: Codec | None = None,
    ) -> None:
        require(self.library.module, f"the {self.name} driver", self.name)
        import_module(self.library.module)  # takes a while: here it does not hold up an event loop
        settings = settings_for(
            url,
            type(self).__name__,
            username=username,
            password=password,
            db=db,
            ssl_context=ssl_context,
            client_name=client_name,
            connect_timeout=connect_timeout,
        )
        if credential_provider is not None and settings.greeting.credentials:
            raise UsageError("give a credential provider, or a user name and password, not both")
        self.url = settings.greeting.url
        self.missing: frozenset[Capability] = frozenset()
        self.connect_timeout = settings.connect_timeout
        self._server = settings.server
        self._greeting = settings.greeting
        self._tls = settings.tls
        self._provider = credential_provider
        self._codec = codec or installed_codec(self.library.codec)

    def connect(self, timeout: float) -> SocketConnection:
        """See `streamfleet_core.connection.Driver.connect`. Name resolution is not bounded by ``timeout``."""
        timeout = min(timeout, self.connect_timeout)
        greeting = self._current_greeting()
        connection = self._connection("", timeout)
        if self._tls is not None:
            connection._wrap_socket_with_ssl = self._wrap  # the libraries take files, not a context
        try:
            connection.connect()
        except (OSError, self._base_error()) as error:
            raise NotSent(f"cannot connect to {self.url}: {error}") from error
        # From here on the socket is ours: the library must neither close it nor speak on it.
        sock, connection._sock = connection._sock, None
        opened = SocketConnection(sock, self._codec, self.url)
        opened.greet(greeting, timeout)
        return opened

    async def connect_async(self, timeout: float) -> StreamConnection:
        """See `streamfleet_core.connection.AsyncDriver.connect_async`. For asyncio.

        Raises WrongDriver under trio.
        """
        if in_trio():
            raise WrongDriver(
                f"{type(self).__name__} serves threads and asyncio; under trio use "
                f"TrioDriver({self.url!r}) of streamfleet.trio_driver"
            )
        timeout = min(timeout, self.connect_timeout)
        greeting = await self._current_greeting_async()
        connection = self._connection(".asyncio", timeout)
        if self._tls is not None:
            connection.ssl_context.context = self._tls
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()
                opened = StreamConnection(connection._writer, self._codec, self.url)
                connection._writer = None
        except (OSError, self._base_error()) as error:
            raise NotSent(f"cannot connect to {self.url}: {error or 'no answer in time'}") from error
        finally:
            # What is left behind by a failure or a cancellation would be closed with a warning, and late.
            if connection._writer is not None:
                connection._writer.transport.abort()
            connection._reader = connection._writer = None
        await opened.greet(greeting, timeout)
        return opened

    def close(self) -> None:
        """Nothing to release: connections are closed by those who opened them."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _connection(self, flavour: str, timeout: float) -> Any:
        """A connection object of the library, not yet connected; ``flavour`` is empty or ``.asyncio``."""
        package = import_module(self.library.module + flavour)
        retry = import_module(f"{self.library.module}{flavour}.retry").Retry
        no_backoff = import_module(f"{self.library.module}.backoff").NoBackoff
        base = import_module(f"{self.library.module}{flavour}.connection").AbstractConnection
        settings: dict[str, Any] = {
            "protocol": 2,
            "retry": retry(no_backoff(), 0),
            "health_check_interval": 0,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            self.library.connect_hook: _leave_login_to_us,
        }
        # Unix sockets ignore the hook under asyncio, and CLIENT SETINFO before AUTH would be refused.
        if "driver_info" in inspect.signature(base.__init__).parameters:
            settings["driver_info"] = None
        else:
            settings |= {"lib_name": None, "lib_version": None}
        if self._server.scheme == "unix":
            return package.UnixDomainSocketConnection(path=self._server.path, **settings)
        settings |= {"host": self._server.host, "port": self._server.port, "socket_keepalive": True}
        return package.Connection(**settings) if self._tls is None else package.SSLConnection(**settings)

    def _wrap(self, sock: Any) -> ssl.SSLSocket:
        assert self._tls is not None
        return self._tls.wrap_socket(sock, server_hostname=self._server.host)

    def _base_error(self) -> type[Exception]:
        error: type[Exception] = getattr(
            import_module(f"{self.library.module}.exceptions"), self.library.base_error
        )
        return error

    def _current_greeting(self) -> Greeting:
        if self._provider is None:
            return self._greeting
        try:
            return replace(self._greeting, credentials=tuple(self._provider.get_credentials()))
        except Exception as error:
            raise NotSent(f"{self.url}: the credential provider failed: {error!r}") from error

    async def _current_greeting_async(self) -> Greeting:
        ask = getattr(self._provider, "get_credentials_async", None)
        if ask is None:
            return self._current_greeting()
        try:
            return replace(self._greeting, credentials=tuple(await ask()))
        except Exception as error:
            raise NotSent(f"{self.url}: the credential provider failed: {error!r}") from error


def _leave_login_to_us(connection: object) -> None:
    """Stands in for the library's own login, whose error replies come without their codes."""
