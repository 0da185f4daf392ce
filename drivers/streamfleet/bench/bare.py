"""A socket and hiredis: the least that Python can do to speak to the server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from streamfleet.bench.orders import WAIT_SECONDS
from streamfleet.extras import missing_extra
from streamfleet_core.connection import Command
from streamfleet_core.urls import parse_url


class BareConnection:
    """Sends commands and reads replies; nothing else. Raises MissingExtra without hiredis."""

    def __init__(self, url: str) -> None:
        if find_spec("hiredis") is None:
            raise missing_extra("the benchmark", "redis,embedded")
        import hiredis

        server = parse_url(url)
        self._socket = socket.create_connection((server.host, server.port), timeout=WAIT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader: Any = hiredis.Reader()
        self._buffer = bytearray(1 << 16)
        pack: Any = hiredis.pack_command
        self._pack: Callable[[Command], bytes] = pack

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return their replies. Raises RuntimeError for an error reply."""
        return self.exchange_packed(b"".join(map(self._pack, commands)), len(commands))

    def exchange_packed(self, packed: bytes, expected: int) -> list[Any]:
        """As `exchange`, for commands that have been packed before."""
        self._socket.sendall(packed)
        gets, feed, receive, buffer = self._reader.gets, self._reader.feed, self._socket.recv_into, self._buffer
        replies: list[Any] = []
        while len(replies) < expected:
            reply = gets()
            if reply is False:
                size = receive(buffer)
                if not size:
                    raise ConnectionResetError("closed by the server")
                feed(buffer, 0, size)
                continue
            if isinstance(reply, Exception):
                raise RuntimeError(str(reply))
            replies.append(reply)
        return replies

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
