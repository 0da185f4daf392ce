"""Reading the arguments of a command as the server reads them: what is a number, an id, a score."""

from __future__ import annotations

import math
from typing import NoReturn

from streamfleet_core.connection import Argument, ServerError

INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
UINT64_MAX = 2**64 - 1

ID_MIN = 0
ID_MAX = 2**128 - 1

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
NOT_A_FLOAT = "ERR value is not a valid float"
SYNTAX_ERROR = "ERR syntax error"
INVALID_STREAM_ID = "ERR Invalid stream ID specified as stream command argument"
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


class CommandError(Exception):
    """Ends a command with an error reply; ``message`` is the raw line without the leading ``-``."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reply = ServerError(message)


def refuse(message: str) -> NoReturn:
    """End the command at hand with an error reply."""
    raise CommandError(message)


def to_bytes(argument: Argument) -> bytes:
    """What a driver would write for this argument."""
    if isinstance(argument, bytes):
        return argument
    if isinstance(argument, str):
        return argument.encode()
    if isinstance(argument, bool) or not isinstance(argument, int | float):
        raise TypeError(f"a command holds bytes, str, int or float, got {argument!r}")
    return repr(argument).encode()


def text(argument: bytes) -> str:
    """An argument for an error message."""
    return argument.decode(errors="replace")


def integer(argument: bytes, message: str = NOT_AN_INTEGER) -> int:
    """A signed 64-bit number in its one canonical spelling, as the server insists."""
    try:
        number = int(argument)
    except ValueError:
        refuse(message)
    if b"%d" % number != argument or not INT64_MIN <= number <= INT64_MAX:
        refuse(message)
    return number


def real(argument: bytes, message: str = NOT_A_FLOAT) -> float:
    """A floating-point number, infinities included, NaN and spaces excluded."""
    try:
        number = float(argument)
    except ValueError:
        refuse(message)
    if math.isnan(number) or argument.strip() != argument or b"_" in argument:
        refuse(message)
    return number


def format_real(number: float) -> bytes:
    """A score as the server writes it: whole numbers without a fraction."""
    if math.isinf(number):
        return b"inf" if number > 0 else b"-inf"
    if number == int(number) and abs(number) < 1e17:
        return b"%d" % number
    return repr(number).encode()


def format_id(entry_id: int) -> bytes:
    """The wire form of an entry id, which the model keeps as one 128-bit number: ms * 2**64 + sequence."""
    return b"%d-%d" % (entry_id >> 64, entry_id & UINT64_MAX)


def parse_id(argument: bytes, missing_sequence: int = 0) -> int:
    """An entry id ``ms-sequence``; an id without a sequence gets ``missing_sequence``."""
    ms_part, dash, sequence_part = argument.partition(b"-")
    if not ms_part.isdigit() or (dash and not sequence_part.isdigit()):
        refuse(INVALID_STREAM_ID)
    ms = int(ms_part)
    sequence = int(sequence_part) if dash else missing_sequence
    if ms > UINT64_MAX or sequence > UINT64_MAX:
        refuse(INVALID_STREAM_ID)
    return ms << 64 | sequence


def parse_range_id(argument: bytes, missing_sequence: int) -> int:
    """A bound of an interval of ids: an id, or ``-`` and ``+`` for the extremes."""
    if argument == b"-":
        return ID_MIN
    if argument == b"+":
        return ID_MAX
    return parse_id(argument, missing_sequence)


def parse_interval(start: bytes, end: bytes) -> tuple[int, int]:
    """Both bounds, inclusive; a leading ``(`` excludes the bound itself."""
    low = parse_interval_start(start)
    if end.startswith(b"(") and len(end) > 1:
        high = parse_exclusive_id(end, UINT64_MAX)
        if high == ID_MIN:
            refuse("ERR invalid end ID for the interval")
        return low, high - 1
    return low, parse_range_id(end, UINT64_MAX)


def parse_interval_start(start: bytes) -> int:
    """The lower bound, inclusive; a leading ``(`` excludes the bound itself."""
    if not start.startswith(b"(") or len(start) == 1:
        return parse_range_id(start, 0)
    low = parse_exclusive_id(start, 0)
    if low == ID_MAX:
        refuse("ERR invalid start ID for the interval")
    return low + 1


def parse_exclusive_id(argument: bytes, missing_sequence: int) -> int:
    """The id behind a leading ``(``; the extremes cannot be excluded."""
    return parse_id(argument[1:], missing_sequence)
