"""A connection over an asyncio transport, plain or TLS, whoever opened it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from streamfleet.resp import READ_BYTES, Codec, ProtocolFault, last_words, take_replies
from streamfleet_core.connection import Command, Reply, ServerIdentity
from streamfleet_core.errors import NotSent, OutcomeUnknown


class StreamConnection(asyncio.BufferedProtocol):
    """Implements `streamfleet_core.connection.AsyncConnection`. Owns the writer from its construction on.

    It puts itself in the place of the writer's protocol: replies are parsed where they arrive, with no
    stream reader, no task switch and no copy in between.
    """

    def __init__(self, writer: asyncio.StreamWriter, codec: Codec, url: str) -> None:
        self.identity = ServerIdentity(server="unknown", version="0")
        # The writer is kept because it closes its transport when it is collected.
        self._writer = writer
        self._transport: asyncio.WriteTransport = writer.transport
        self._loop = asyncio.get_running_loop()
        self._pack = codec.pack
        self._reader = codec.reader()
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._url = url
        self._broken = ""
        self._replies: list[Reply] = []
        self._expected = 0
        self._waiter: asyncio.Future[None] | None = None
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self._broken = "closed by the server"

    async def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """See `AsyncConnection.exchange`. Raises TypeError, with nothing sent, for an unusable argument."""
        payload = self._pack(commands)
        if self._broken or timeout <= 0:
            raise NotSent(f"nothing sent to {self._url}: {self._broken or 'no time left'}")
        self._expected = len(commands)
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout, self._break, f"no answer within {timeout:g} s")
        try:
            self._transport.write(payload)
            self._parse()
            await waiter
        except asyncio.CancelledError:
            self._break("cancelled")
            raise
        finally:
            timer.cancel()
            self._waiter = None
        replies, self._replies = self._replies, []
        return replies

    def interrupt(self) -> None:
        """See `AsyncConnection.interrupt`."""
        self._break("interrupted")

    def close(self) -> None:
        """See `AsyncConnection.close`."""
        self._break("closed")

    def get_buffer(self, sizehint: int) -> memoryview:
        """asyncio asks where to put what it receives."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio has received something."""
        self._reader.feed(self._buffer, 0, nbytes)
        self._parse()

    def eof_received(self) -> bool:
        """The server has hung up."""
        self._break("closed by the server")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._break(str(exc) if exc else "closed by the server")

    def _parse(self) -> None:
        waiter = self._waiter
        if waiter is None:
            return  # kept in the parser for the next exchange, as a socket would keep it
        try:
            if not take_replies(self._reader.gets, self._replies, self._expected):
                return
        except ProtocolFault as fault:
            self._break(str(fault))
            return
        if not waiter.done():
            waiter.set_result(None)

    def _break(self, why: str) -> None:
        """Make the connection unusable, for the first reason only, and fail the exchange in flight."""
        if not self._broken:
            self._broken = why + last_words(self._replies)
        self._transport.abort()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(OutcomeUnknown(f"lost {self._url}: {self._broken}"))
