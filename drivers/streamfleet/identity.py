"""Names that are never used twice."""

from __future__ import annotations

import os
import socket
import time

from streamfleet_core.errors import UsageError
from streamfleet_core.ids import uuid7


def unique_id() -> str:
    """A new id for a client."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def worker_name(name: str | None) -> str:
    """The name given, or one from host and process. Raises UsageError for an unusable one."""
    if name is None:
        return f"{socket.gethostname()}-{os.getpid()}"
    if not isinstance(name, str) or not name or len(name) > 200 or not name.isprintable():
        raise UsageError(f"worker name must be 1 to 200 printable characters, got {name!r:.80}")
    return name


def consumer_name(name: str) -> str:
    """A consumer for one start of one process: nobody else may share its pending entries list."""
    return f"{name}:{os.urandom(6).hex()}"
