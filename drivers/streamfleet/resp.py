"""RESP2 without I/O: packing commands, parsing replies.

`installed_codec` chooses hiredis or libvalkey, whichever is there, and else the parser of this module, which
needs nothing and is about ten times slower at reading. All three answer alike: bytes, int, None, list and
`ServerError` values, whose undecodable bytes become U+FFFD.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

from streamfleet_core.connection import Argument, Command, Reply, ServerError


class ProtocolFault(ValueError):
    """What came from the server is not RESP2."""


class Reader(Protocol):
    """An incremental parser of replies; the interface of hiredis."""

    def feed(self, data: bytes | bytearray, offset: int, length: int, /) -> None:
        """Take in ``length`` bytes of ``data``, from ``offset`` on."""

    def gets(self) -> Any:
        """The next complete reply, or False when there is none yet. Raises ProtocolFault."""


READ_BYTES = 1 << 16
"""What a connection reads at once, at most."""


def take_replies(gets: Callable[[], Any], replies: list[Reply], expected: int) -> bool:
    """Move replies that are complete from a reader's ``gets`` to ``replies``; are all ``expected`` there?

    Replies beyond them stay in the reader. Raises ProtocolFault.
    """
    while len(replies) < expected:
        reply = gets()
        if reply is False:
            return False
        replies.append(reply)
    return True


def last_words(replies: Sequence[Reply]) -> str:
    """Why a server hung up, as far as it told: "-ERR max number of clients reached" is the last thing it says."""
    last = replies[-1] if replies else None
    return f", after saying {last.message!r}" if isinstance(last, ServerError) else ""


class Codec(NamedTuple):
    """A way to pack commands and to parse replies."""

    name: str
    pack: Callable[[Sequence[Command]], bytes]
    """All commands in one piece of bytes. Raises TypeError for an argument of a wrong type."""
    reader: Callable[[], Reader]


def installed_codec(preferred: str = "hiredis") -> Codec:
    """The fastest codec that is installed, ``preferred`` (``hiredis`` or ``libvalkey``) first."""
    for name in dict.fromkeys((preferred, "hiredis", "libvalkey")):
        if find_spec(name) is not None:
            return _extension_codec(name)
    return PYTHON_CODEC


def _extension_codec(name: str) -> Codec:
    module = import_module(name)
    pack_command: Callable[[Command], bytes] = module.pack_command
    reader: Callable[..., Reader] = module.Reader

    def pack(commands: Sequence[Command]) -> bytes:
        return b"".join(map(pack_command, commands))

    def new_reader() -> Reader:
        return reader(replyError=ServerError, protocolError=ProtocolFault)

    return Codec(name, pack, new_reader)


def pack_commands(commands: Sequence[Command]) -> bytes:
    """Pack commands in pure Python. Raises TypeError for an argument of a wrong type."""
    pieces: list[bytes] = []
    for command in commands:
        pieces.append(b"*%d\r\n" % len(command))
        for argument in command:
            data = argument if type(argument) is bytes else _encoded(argument)
            pieces.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(pieces)


def _encoded(argument: Argument) -> bytes:
    if isinstance(argument, str):
        return argument.encode()
    if isinstance(argument, (bytes, memoryview)):
        return bytes(argument)
    if isinstance(argument, bool) or not isinstance(argument, (int, float)):
        raise TypeError(f"a command's arguments are bytes, str, int or float, not {type(argument).__name__}")
    return repr(argument).encode()


class PythonReader:
    """An incremental parser of replies in pure Python."""

    __slots__ = ("_at", "_data", "_open")

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        # Arrays whose elements are still to come, outermost first: nothing is parsed twice.
        self._open: list[tuple[list[Reply], int]] = []

    def feed(self, data: bytes | bytearray, offset: int, length: int, /) -> None:
        """Take in ``length`` bytes of ``data``, from ``offset`` on."""
        self._data += memoryview(data)[offset : offset + length]

    def gets(self) -> Any:
        """The next complete reply, or False when there is none yet. Raises ProtocolFault."""
        while (element := self._element()) is not None:
            value, size = element
            if size > 0:
                self._open.append(([], size))
                continue
            while self._open:
                array, expected = self._open[-1]
                array.append(value)
                if len(array) < expected:
                    break
                self._open.pop()
                value = array
            else:
                return value
        # Everything before the incomplete element has been handed out.
        del self._data[: self._at]
        self._at = 0
        return False

    def _element(self) -> tuple[Reply, int] | None:
        """The next scalar, or the size of the array that begins here; None when it is incomplete."""
        line_end = self._data.find(b"\r\n", self._at)
        if line_end < 0:
            return None
        kind, line, after = self._data[self._at], bytes(self._data[self._at + 1 : line_end]), line_end + 2
        size = 0
        value: Reply
        match kind:
            case 0x2B:  # +
                value = line
            case 0x2D:  # -
                value = ServerError(line.decode("utf-8", "replace"))
            case 0x3A:  # :
                value = _number(line)
            case 0x24:  # $
                value = None
                if (length := _number(line)) >= 0:
                    start, after = after, after + length + 2
                    if after > len(self._data):
                        return None
                    value = bytes(self._data[start : start + length])
            case 0x2A:  # *
                size = _number(line)
                value = [] if size == 0 else None
            case _:
                raise ProtocolFault(f"the server sent what is not RESP2: {bytes((kind,)) + line[:60]!r}")
        self._at = after
        return value, size


def _number(line: bytes) -> int:
    try:
        return int(line)
    except ValueError:
        raise ProtocolFault(f"the server sent {line[:60]!r} where a number belongs") from None


PYTHON_CODEC = Codec("python", pack_commands, PythonReader)
