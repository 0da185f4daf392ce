"""How the demonstration is told: lines, and on a terminal (where rich is installed) a progress bar below them."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Display:
    """Plain lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, subject: str, text: str) -> None:
        """Tell something."""
        print(f"{subject:<9} {text}", file=self._stream, flush=True)

    def progress(self, completed: int, total: int) -> None:
        """So many of so many tasks are completed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more will be told."""


class BarDisplay(Display):
    """Lines, and a bar below them. Raises ImportError without rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__(stream)
        columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar: Progress = Progress(*columns, console=Console(file=stream, highlight=False), transient=True)
        self._bar.start()
        self._tasks: TaskID = self._bar.add_task("completed", total=None)

    def line(self, subject: str, text: str) -> None:
        """See `Display.line`."""
        self._bar.console.print(f"{subject:<9} {text}", markup=False)

    def progress(self, completed: int, total: int) -> None:
        """See `Display.progress`."""
        self._bar.update(self._tasks, completed=completed, total=total)

    def close(self) -> None:
        """See `Display.close`."""
        self._bar.stop()


def display_for(stream: TextIO = sys.stdout) -> Display:
    """A bar for people at a terminal, if possible; lines for everybody else."""
    if stream.isatty():
        try:
            return BarDisplay(stream)
        except ImportError:  # rich is a comfort, not a need
            return Display(stream)
    return Display(stream)
