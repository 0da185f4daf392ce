"""The driver for trio, on trio's own streams: ``pip install 'streamfleet[trio]'``."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Sequence
from functools import partial

from streamfleet.addresses import addresses_of, is_address
from streamfleet.blocking_calls import BlockingCalls, result_in_trio
from streamfleet.credentials import CredentialProvider, Credentials
from streamfleet.deadline import Deadline
from streamfleet.extras import missing_extra
from streamfleet.handshake import greet_async
from streamfleet.resp import READ_BYTES, Codec, ProtocolFault, installed_codec, last_words, take_replies
from streamfleet.running_loop import in_trio
from streamfleet.settings import settings_for
from streamfleet_core.connection import Capability, Command, Reply, ServerIdentity
from streamfleet_core.errors import NotSent, OutcomeUnknown, WrongDriver
from streamfleet_core.urls import ServerURL

try:
    import trio
except ModuleNotFoundError as error:
    raise missing_extra("the trio driver", "trio") from error

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

NEXT_ADDRESS = 0.25
"""Seconds that an address has for itself, before the next of the same name is tried beside it."""


class TrioConnection:
    """Implements `streamfleet_core.connection.AsyncConnection` under trio. Owns the stream from the start."""

    def __init__(self, stream: Stream, codec: Codec, url: str) -> None:
        self.identity = ServerIdentity(server="unknown", version="0")
        self._stream = stream
        transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._socket = transport.socket
        self._direct = os.name == "posix" and stream is transport
        """May the socket's descriptor be written to? Not under TLS."""
        self._pack = codec.pack
        self._reader = codec.reader()
        self._url = url
        self._broken = ""
        self._scope: trio.CancelScope | None = None

    async def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """See `AsyncConnection.exchange`. Raises TypeError, with nothing sent, for an unusable argument."""
        payload = self._pack(commands)
        if self._broken or timeout <= 0:
            raise NotSent(f"nothing sent to {self._url}: {self._broken or 'no time left'}")
        replies: list[Reply] = []
        with trio.CancelScope(deadline=trio.current_time() + timeout) as self._scope:
            try:
                await self._send(payload)
                await self._read(replies, len(commands))
                return replies
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, ProtocolFault) as error:
                raise self._lost(_reason(error), replies) from error
            except BaseException:
                # Cancelled: replies that are still to come would answer the next exchange.
                self._socket.close()
                self._broken = self._broken or "cancelled"
                raise
            finally:
                self._scope = None
        if self._broken == "cancelled":
            self._broken = f"no answer within {timeout:g} s"
        raise self._lost(self._broken, replies)

    async def _send(self, payload: bytes) -> None:
        """Write what the socket takes at once; only the rest waits. Reading the replies is checkpoint enough."""
        sent = 0
        if self._direct:
            with contextlib.suppress(BlockingIOError):
                sent = os.write(self._socket.fileno(), payload)
            if sent == len(payload):
                return
        await self._stream.send_all(payload[sent:])

    async def _read(self, replies: list[Reply], expected: int) -> None:
        receive, feed, gets = self._stream.receive_some, self._reader.feed, self._reader.gets
        while not take_replies(gets, replies, expected):
            data = await receive(READ_BYTES)
            if not data:
                raise ConnectionResetError("closed by the server")
            feed(data, 0, len(data))

    def _lost(self, why: str, replies: list[Reply]) -> OutcomeUnknown:
        self._broken = (self._broken or why) + last_words(replies)
        return OutcomeUnknown(f"lost {self._url}: {self._broken}")

    def interrupt(self) -> None:
        """See `AsyncConnection.interrupt`."""
        self._broken = self._broken or "interrupted"
        if self._scope is not None:
            self._scope.cancel()

    def close(self) -> None:
        """See `AsyncConnection.close`."""
        self._broken = self._broken or "closed"
        self.interrupt()
        # Closing the socket is what a stream's aclose does without a farewell, and it does not wait.
        self._socket.close()


class TrioDriver:
    """Connects under trio to a Redis or Valkey server.

    ``url``: ``redis://``, ``rediss://`` (TLS), ``valkey(s)://`` and ``unix://``. Arguments take precedence
    over the URL. ``credential_provider``: one of redis-py's or valkey-py's, asked at each connection, in a
    thread; its ``get_credentials_async`` is for asyncio, and not used. ``ssl_context``: asks for TLS, and
    stands instead of the URL's ``ssl_`` options; not for ``unix://``. ``connect_timeout``: the most seconds
    that a connect may take, whatever its caller allows, above 0 and up to a day; 5 unless told, here or as the
    URL's ``timeout``. ``codec``: a parser other than the fastest installed.

    Raises InvalidURL, and UsageError for arguments that are impossible or exclude each other.
    """

    name = "trio"
    missing: frozenset[Capability] = frozenset()

    def __init__(
        self,
        url: str | ServerURL = "redis://localhost:6379",
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
        settings = settings_for(
            url,
            "TrioDriver",
            username=username,
            password=password,
            db=db,
            ssl_context=ssl_context,
            client_name=client_name,
            connect_timeout=connect_timeout,
        )
        self.url = settings.greeting.url
        self.connect_timeout = settings.connect_timeout
        self._server = settings.server
        self._credentials = Credentials(settings.greeting, credential_provider)
        self._tls = settings.tls
        self._tls_name = settings.tls_name
        self._lookups = BlockingCalls(f"the resolver for {self.url}")
        self._codec = codec or installed_codec()

    async def connect_async(self, timeout: float) -> TrioConnection:
        """See `streamfleet_core.connection.AsyncDriver.connect_async`. Raises WrongDriver outside of trio."""
        if not in_trio():
            raise WrongDriver(
                "TrioDriver serves trio only: under asyncio use RedisDriver or ValkeyDriver, as in threads"
            )
        with trio.move_on_after(min(timeout, self.connect_timeout)):
            greeting = await self._credentials.greeting_trio()
            try:
                stream = await self._open()
            except (OSError, UnicodeError, trio.BrokenResourceError) as error:
                raise NotSent(f"cannot connect to {self.url}: {_reason(error)}") from error
            connection = TrioConnection(stream, self._codec, self.url)
            await greet_async(connection, greeting, Deadline(float("inf")))  # the scope ends it
            return connection
        raise NotSent(f"cannot connect to {self.url}: no answer in time")

    def close(self) -> None:
        """Nothing to release: connections are closed by those who opened them."""

    def __repr__(self) -> str:
        return f"TrioDriver({self.url!r})"

    async def _open(self) -> Stream:
        server = self._server
        if server.scheme == "unix":
            return await trio.open_unix_socket(server.path)
        plain = await self._open_tcp()
        # trio itself has set TCP_NODELAY.
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._tls is None:
            return plain
        stream = trio.SSLStream(plain, self._tls, server_hostname=self._tls_name, https_compatible=True)
        try:
            await stream.do_handshake()
        except BaseException:
            plain.socket.close()
            raise
        return stream

    async def _places(self) -> list[str]:
        """The host's addresses. Look-ups that hang must not take trio's threads: the program's work needs them."""
        host = self._server.host
        if is_address(host):
            return [host]
        return await result_in_trio(self._lookups.start(partial(addresses_of, host)))

    async def _open_tcp(self) -> trio.SocketStream:
        """Connect to the first address that answers. Raises OSError, with a reason for each."""
        opened: list[trio.SocketStream] = []
        reasons: list[str] = []

        async def attempt(place: str, failed: trio.Event) -> None:
            try:
                opened.append(await trio.open_tcp_stream(place, self._server.port))
            except OSError as error:
                reasons.append(f"{place}: {_reason(error)}")
                failed.set()
            else:
                nursery.cancel_scope.cancel()

        places = await self._places()
        try:
            async with trio.open_nursery() as nursery:
                for place in places:
                    failed = trio.Event()
                    nursery.start_soon(attempt, place, failed)
                    with trio.move_on_after(NEXT_ADDRESS):
                        await failed.wait()
        except BaseException:
            _close(opened)
            raise
        if not opened:
            raise OSError("; ".join(reasons))
        _close(opened[1:])
        return opened[0]


def _close(streams: Sequence[trio.SocketStream]) -> None:
    for stream in streams:
        stream.socket.close()


def _reason(error: BaseException) -> str:
    """What happened; trio's own errors hold the text in their cause, or in that one's parts."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(map(_reason, cause.exceptions))
    return str(cause or error) or type(error).__name__
