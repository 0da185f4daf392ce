"""The handlers' own log: one line for each begin and end of a task, appended by each process to one file.

It knows nothing of the library: a line is written by one `os.write` to a file opened with O_APPEND, so that a
process that is killed has written a line or has not.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

BEGIN = "begin"
END = "end"


class Journal:
    """The writing side."""

    def __init__(self, path: str | os.PathLike[str], who: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._who = who

    def begin(self, task: str) -> None:
        """A handler begins to work on a task."""
        self._write(BEGIN, task)

    def end(self, task: str) -> None:
        """It has done its work."""
        self._write(END, task)

    def _write(self, what: str, task: str) -> None:
        os.write(self._file, f"{what} {task} {self._who}\n".encode())


class JournalReader:
    """The reading side: knows what has been written up to its last `refresh`."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._rest = b""
        self.begun: dict[str, list[str]] = defaultdict(list)
        """By task: who began it, in order."""
        self.ended: dict[str, list[str]] = defaultdict(list)
        """By task: who ended it, in order."""

    def refresh(self) -> JournalReader:
        """Read what was written meanwhile; an unfinished line waits for the next time."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            what, task, who = line.decode().split(" ")
            (self.begun if what == BEGIN else self.ended)[task].append(who)
        return self

    def running(self, who: str) -> set[str]:
        """Tasks that ``who`` has begun and nobody has ended."""
        return {task for task, names in self.begun.items() if names[-1] == who and task not in self.ended}

    def close(self) -> None:
        """Close the file."""
        self._file.close()
