"""Append-only logs that survive SIGKILL of their writer: one write per line."""

from __future__ import annotations

import os
from pathlib import Path


class LogFile:
    """Lines of words, each written at once."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words: object) -> None:
        """Append one line."""
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())
