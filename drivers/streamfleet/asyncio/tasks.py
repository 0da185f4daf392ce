"""The tasks of a client or worker: none of them outlives the block that it stands for."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """A task group that raises a single error as it is, and leaves the errors of its block alone."""

    def __init__(self) -> None:
        self.context = copy_context()
        """What each task starts with, whoever spawns it."""
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self.alive = False
        """May tasks be spawned? Not before the block, nor when one of them has failed."""

    async def begin(self) -> None:
        """Bind the tasks to the current one: it is cancelled when one of them fails."""
        await self._group.__aenter__()
        self.alive = True

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Start a task; nothing happens when the tasks are not alive."""
        if self.alive:
            task = self._group.create_task(work(), name=name, context=self.context.copy())
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.alive = False

    def cancel(self) -> None:
        """Cancel what still runs."""
        for task in self._tasks:
            task.cancel()

    async def wait(self, timeout: float) -> None:
        """Wait until all have ended, or ``timeout`` seconds are over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    async def end(self, cancelled: CancelledError | None) -> None:
        """Cancel what still runs and wait for it.

        Raises what a task died of; otherwise ``cancelled``, the cancellation of the block, where there was one.
        """
        self.alive = False
        self.cancel()
        try:
            await self._group.__aexit__(type(cancelled) if cancelled else None, cancelled, None)
        except BaseExceptionGroup as defects:
            if len(defects.exceptions) > 1:
                raise
            raise defects.exceptions[0] from None


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Finish ``work``, which bounds its own time, whatever cancellations come meanwhile.

    They are dropped, so this is only for those who have been cancelled already, and raise that afterwards.
    """
    task = asyncio.create_task(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except CancelledError:
            continue
    return task.result()
