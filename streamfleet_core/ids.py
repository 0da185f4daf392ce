"""UUIDs of version 7 (RFC 9562): ids that sort by time. Time and entropy are arguments."""

from __future__ import annotations

import re
from functools import lru_cache

ENTROPY_BYTES = 10
"""Random bytes that one id takes; 74 of the 80 bits are used."""

_MAX_MS = 2**48 - 1
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
"""A digit that begins with the variant's two bits, by the digit whose last two bits it keeps."""
_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def uuid7(unix_ms: int, entropy: bytes) -> str:
    """Return a version 7 UUID in canonical text, from a Unix time in ms and ENTROPY_BYTES random bytes.

    Raises ValueError when the time does not fit 48 bits or the entropy has another length.
    """
    if not 0 <= unix_ms <= _MAX_MS:
        raise ValueError(f"a UUIDv7 holds 0 to {_MAX_MS} ms since 1970, got {unix_ms!r}")
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a UUIDv7 takes {ENTROPY_BYTES} bytes of entropy, got {len(entropy)}")
    random = entropy.hex()
    return f"{_time_and_version(unix_ms)}{random[1:4]}-{_VARIANT[random[4]]}{random[5:8]}-{random[8:]}"


@lru_cache(maxsize=4)
def _time_and_version(unix_ms: int) -> str:
    """How all ids of a millisecond begin; at full speed there are a hundred of them."""
    time = f"{unix_ms:012x}"
    return f"{time[:8]}-{time[8:]}-7"


def is_uuid(text: str) -> bool:
    """Tell whether ``text`` is a UUID of any version in the form 8-4-4-4-12, in either case."""
    return _CANONICAL.fullmatch(text) is not None


def timestamp_ms(text: str) -> int:
    """Return the Unix time in ms that a version 7 UUID was made at. Raises ValueError for anything else."""
    if not is_uuid(text) or text[14] != "7":
        raise ValueError(f"not a UUIDv7: {text!r:.80}")
    return int(text[:8] + text[9:13], 16)
