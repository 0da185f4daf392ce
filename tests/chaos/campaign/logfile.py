"""Append-only logs that survive SIGKILL of their writer: one write per line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path


def now_ms() -> int:
    """Unix time in milliseconds: that of the servers too, for they are on this machine."""
    return time.time_ns() // 1_000_000


class LogFile:
    """Lines of words, each written at once."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words: object) -> None:
        """Append one line."""
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


def lines_of(path: Path) -> Iterator[list[str]]:
    """A log's lines, by words. The last may be cut off, when its writer was killed."""
    if not path.exists():
        return
    text = path.read_text()
    for line in text[: text.rfind("\n") + 1].splitlines():
        if line:
            yield line.split()
