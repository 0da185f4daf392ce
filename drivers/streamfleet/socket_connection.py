"""A connection over a blocking socket, plain or TLS, whoever opened it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from time import monotonic

from streamfleet.resp import READ_BYTES, Codec, ProtocolFault, last_words, take_replies
from streamfleet_core.connection import Command, Reply, ServerIdentity
from streamfleet_core.errors import ConnectionFailure, NotSent, OutcomeUnknown


class SocketConnection:
    """Implements `streamfleet_core.connection.Connection`. Owns the socket from its construction on."""

    __slots__ = ("_broken", "_buffer", "_interrupted", "_pack", "_reader", "_socket", "_url", "identity")

    def __init__(self, sock: socket.socket, codec: Codec, url: str) -> None:
        self.identity = ServerIdentity(server="unknown", version="0")
        self._socket = sock
        self._pack = codec.pack
        self._reader = codec.reader()
        self._buffer = bytearray(READ_BYTES)
        self._url = url
        self._broken = ""
        self._interrupted = False

    def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """See `Connection.exchange`. Raises TypeError, with nothing sent, for an unusable argument."""
        payload = self._pack(commands)
        if self._broken or self._interrupted or timeout <= 0:
            raise NotSent(f"nothing sent to {self._url}: {self._broken or 'interrupted, or no time left'}")
        deadline = monotonic() + timeout
        replies: list[Reply] = []
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(payload)
            self._read(replies, len(commands), deadline)
        except (OSError, ProtocolFault) as error:
            raise self._lost(error, replies, timeout) from error
        except BaseException:
            # A KeyboardInterrupt leaves replies behind that would answer the next exchange.
            self._broken = "an exchange was cut short"
            raise
        return replies

    def _read(self, replies: list[Reply], expected: int, deadline: float) -> None:
        sock, buffer, feed, gets = self._socket, self._buffer, self._reader.feed, self._reader.gets
        while not take_replies(gets, replies, expected):
            sock.settimeout(max(deadline - monotonic(), 1e-6))
            size = sock.recv_into(buffer)
            if size == 0 or self._interrupted:
                raise ConnectionResetError("closed by the server")
            feed(buffer, 0, size)

    def _lost(self, error: Exception, replies: list[Reply], timeout: float) -> ConnectionFailure:
        if self._interrupted:
            self._broken = "interrupted"
        elif isinstance(error, TimeoutError):
            self._broken = f"no answer within {timeout:g} s"
        else:
            self._broken = str(error)
        self._broken += last_words(replies)
        return OutcomeUnknown(f"lost {self._url}: {self._broken}")

    def interrupt(self) -> None:
        """See `Connection.interrupt`."""
        self._interrupted = True
        # SSLSocket.shutdown would turn off decryption under the reading thread; the plain one only wakes it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Connection.close`."""
        self.interrupt()
        self._broken = self._broken or "closed"
        with contextlib.suppress(OSError):
            self._socket.close()
