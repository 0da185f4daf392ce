"""What the drivers on redis-py and on valkey-py share: both libraries come from one root.

The library opens the socket: TCP, socket options, TLS. Then the socket is taken from it, and nothing else of it
is used, because above the socket it re-sends commands, reconnects by itself, strips the codes from error
replies, and costs more time than the server does. Credentials may come from a credential provider of the
library. Names are looked up here, because the libraries wait for the resolver without end.

One deadline holds for all that a connect consists of: credentials, resolver, TCP, TLS, greeting.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

from streamfleet.addresses import addresses_of, is_address, shares
from streamfleet.blocking_calls import BlockingCalls
from streamfleet.credentials import CredentialProvider, Credentials
from streamfleet.deadline import Deadline
from streamfleet.extras import require
from streamfleet.handshake import greet, greet_async
from streamfleet.resp import Codec, installed_codec
from streamfleet.running_loop import in_trio
from streamfleet.settings import settings_for
from streamfleet.socket_connection import SocketConnection
from streamfleet.stream_connection import StreamConnection
from streamfleet_core.connection import Capability
from streamfleet_core.errors import NotSent, WrongDriver
from streamfleet_core.urls import ServerURL


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
        connect_timeout: float | None = None,
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
        self.url = settings.greeting.url
        self.missing: frozenset[Capability] = frozenset()
        self.connect_timeout = settings.connect_timeout
        self._server = settings.server
        self._tls = settings.tls
        self._tls_name = settings.tls_name
        self._credentials = Credentials(settings.greeting, credential_provider)
        self._lookups = BlockingCalls(f"the resolver for {self.url}")
        self._codec = codec or installed_codec(self.library.codec)

    def connect(self, timeout: float) -> SocketConnection:
        """See `streamfleet_core.connection.Driver.connect`."""
        deadline = Deadline(min(timeout, self.connect_timeout))
        greeting = self._credentials.greeting(deadline)
        opened = SocketConnection(self._open(deadline), self._codec, self.url)
        greet(opened, greeting, deadline)
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
        deadline = Deadline(min(timeout, self.connect_timeout))
        try:
            async with asyncio.timeout(deadline.left()):
                greeting = await self._credentials.greeting_asyncio()
                places = self._known_places() or await asyncio.wrap_future(self._lookups.start(self._look_up))
        except TimeoutError:
            raise self._unreachable() from None
        opened = await self._open_async(places, deadline)
        await greet_async(opened, greeting, deadline)
        return opened

    def close(self) -> None:
        """Nothing to release: connections are closed by those who opened them."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _known_places(self) -> list[str]:
        """Where to connect to, when nothing has to be looked up for it."""
        if self._server.scheme == "unix":
            return [self._server.path]
        return [self._server.host] if is_address(self._server.host) else []

    def _look_up(self) -> list[str]:
        try:
            return addresses_of(self._server.host)
        except (OSError, UnicodeError) as error:
            raise self._unreachable(error) from error

    def _open(self, deadline: Deadline) -> socket.socket:
        places = self._known_places()
        if not places:
            lookup = self._lookups.start_or_call(self._look_up)
            wait([lookup], deadline.left())
            places = lookup.result() if lookup.done() else []
        failures: list[Exception] = []
        for place, seconds in shares(places, deadline):
            try:
                return self._open_at(place, seconds)
            except (OSError, self._base_error()) as error:
                failures.append(error)
        raise self._unreachable(*failures)

    def _open_at(self, place: str, seconds: float) -> socket.socket:
        deadline = Deadline(seconds)
        connection = self._connection("", place, seconds)
        if self._tls is not None:
            # The libraries take files, not a context, and give each step of theirs the whole time.
            connection._wrap_socket_with_ssl = partial(self._wrap, deadline=deadline)
        connection.connect()
        # From here on the socket is ours: the library must neither close it nor speak on it.
        sock: socket.socket = connection._sock
        connection._sock = None
        return sock

    async def _open_async(self, places: list[str], deadline: Deadline) -> StreamConnection:
        failures: list[Exception] = []
        for place, seconds in shares(places, deadline):
            try:
                async with asyncio.timeout(seconds):
                    return await self._open_async_at(place, seconds)
            except (OSError, self._base_error()) as error:
                failures.append(error)
        raise self._unreachable(*failures)

    async def _open_async_at(self, place: str, seconds: float) -> StreamConnection:
        connection = self._connection(".asyncio", place, seconds)
        if self._tls is not None:
            # The certificate is for the name, not for the address.
            arguments = {"ssl": self._tls, "server_hostname": self._tls_name}
            arguments |= connection._connection_arguments()
            connection._connection_arguments = lambda: arguments
        try:
            await connection.connect()
            opened = StreamConnection(connection._writer, self._codec, self.url)
            connection._writer = None
        finally:
            # What is left behind by a failure or a cancellation would be closed with a warning, and late.
            if connection._writer is not None:
                connection._writer.transport.abort()
            connection._reader = connection._writer = None
        return opened

    def _unreachable(self, *failures: Exception) -> NotSent:
        texts = dict.fromkeys(str(failure) or "no answer in time" for failure in failures)
        return NotSent(f"cannot connect to {self.url}: {'; '.join(texts) or 'no answer in time'}")

    def _connection(self, flavour: str, place: str, seconds: float) -> Any:
        """A connection object of the library, not yet connected; ``flavour`` is empty or ``.asyncio``."""
        package = import_module(self.library.module + flavour)
        retry = import_module(f"{self.library.module}{flavour}.retry").Retry
        no_backoff = import_module(f"{self.library.module}.backoff").NoBackoff
        base = import_module(f"{self.library.module}{flavour}.connection").AbstractConnection
        settings: dict[str, Any] = {
            "protocol": 2,
            "retry": retry(no_backoff(), 0),
            "health_check_interval": 0,
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            self.library.connect_hook: _leave_login_to_us,
        }
        # Unix sockets ignore the hook under asyncio, and CLIENT SETINFO before AUTH would be refused.
        if "driver_info" in inspect.signature(base.__init__).parameters:
            settings["driver_info"] = None
        else:
            settings |= {"lib_name": None, "lib_version": None}
        if self._server.scheme == "unix":
            return package.UnixDomainSocketConnection(path=place, **settings)
        kind = package.Connection if self._tls is None or flavour else package.SSLConnection
        return kind(host=place, port=self._server.port, socket_keepalive=True, **settings)

    def _wrap(self, sock: socket.socket, deadline: Deadline) -> ssl.SSLSocket:
        assert self._tls is not None
        sock.settimeout(max(deadline.left(), 1e-6))  # bounds the handshake as a whole
        return self._tls.wrap_socket(sock, server_hostname=self._tls_name)

    def _base_error(self) -> type[Exception]:
        error: type[Exception] = getattr(
            import_module(f"{self.library.module}.exceptions"), self.library.base_error
        )
        return error


def _leave_login_to_us(connection: object) -> None:
    """Stands in for the library's own login, whose error replies come without their codes."""
