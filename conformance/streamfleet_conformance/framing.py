"""Requests and replies in a RESP2 byte stream: read by hiredis, or by a reader of ours without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

MORE = object()
"""What a reader gives while the next frame is incomplete; nil is a value, so None cannot say it."""


class FramingError(ValueError):
    """The bytes are not RESP2."""


class Reader(Protocol):
    """The part of ``hiredis.Reader`` that is used here."""

    def feed(self, data: bytes) -> None:
        """Add bytes to the end of the buffer."""

    def gets(self) -> Any:
        """Take the next frame from the buffer, or give `MORE`. Raises FramingError when it is none."""


class PythonReader:
    """Stands in for ``hiredis.Reader``. What is a line on the wire is bytes here: integers, errors."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def gets(self) -> Any:
        frame = parse_frame(self._buffer, 0)
        if frame is None:
            return MORE
        value, end = frame
        del self._buffer[:end]
        return value


def _reader_factory() -> Callable[[], Reader]:
    try:
        import hiredis
    except ImportError:
        return PythonReader
    return lambda: hiredis.Reader(protocolError=FramingError, notEnoughData=MORE)


new_reader = _reader_factory()


def parse_frame(buffer: bytes | bytearray, start: int) -> tuple[Any, int] | None:
    """The frame that begins at ``start`` and the index behind it, None while it is incomplete.

    Raises FramingError when no frame begins there.
    """
    line_end = buffer.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, line, end = buffer[start : start + 1], bytes(buffer[start + 1 : line_end]), line_end + 2
    if kind in (b"+", b"-", b":"):
        return line, end
    if kind not in (b"$", b"*") or not line.removeprefix(b"-").isdigit():
        raise FramingError(f"not a RESP2 frame: {bytes(buffer[start : start + 20])!r}")
    size = int(line)
    if size < 0:
        return None, end
    if kind == b"$":
        bulk_end = end + size
        return (bytes(buffer[end:bulk_end]), bulk_end + 2) if len(buffer) >= bulk_end + 2 else None
    items = []
    for _ in range(size):
        item = parse_frame(buffer, end)
        if item is None:
            return None
        items.append(item[0])
        end = item[1]
    return items, end


class Frames:
    """The frames of one direction of one connection."""

    def __init__(self, reader: Reader | None = None) -> None:
        self._reader = reader or new_reader()

    def feed(self, data: bytes) -> list[Any]:
        """The frames that ``data`` completes, a command as a list of bytes. Raises FramingError."""
        self._reader.feed(data)
        frames: list[Any] = []
        while (frame := self._reader.gets()) is not MORE:
            frames.append(frame)
        return frames
