"""The tasks of a client or worker: none of them outlives the block that it stands for."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

Finish = Callable[[bool], Coroutine[Any, Any, None]]


class Tasks:
    """A task group that survives the cancellation of its block for as long as a clean end takes.

    It raises a single error as it is, and leaves the errors of its block alone.

    At its end `asyncio.run` cancels all tasks at once, these as well as the one that entered the block. So whoever
    spawned a task is told of its end, and may spawn it again as long as the tasks are alive.
    """

    def __init__(self) -> None:
        self.context = copy_context()
        """What each task starts with, whoever spawns it."""
        self._group = asyncio.TaskGroup()
        self._tasks: dict[asyncio.Task[None], Callable[[], None]] = {}
        self._failure: BaseException | None = None
        self._block_cancelled = False
        self._owner: asyncio.Task[Any]
        self.alive = False
        """May tasks be spawned? Not before the block, nor at its end, nor when one of them has failed."""

    async def begin(self) -> None:
        """Bind the tasks to the current one: it is cancelled when one of them fails."""
        await self._group.__aenter__()
        owner = asyncio.current_task()
        assert owner is not None, "a coroutine runs in a task"
        self._owner = owner
        self.alive = True

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str, ended: Callable[[], None]) -> None:
        """Start a task, whose end ``ended`` is told; nothing happens when the tasks are not alive."""
        if self.alive:
            task = self._group.create_task(work(), name=name, context=self.context.copy())
            self._tasks[task] = ended
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        ended = self._tasks.pop(task)
        if task.cancelled():
            if self._owner.done():
                self.alive = False  # nobody would wait for a fresh one: the program ends without the block's end
        elif task.exception() is not None:
            self.alive = False
        ended()

    @property
    def interrupted(self) -> bool:
        """Is whoever entered the block being cancelled?"""
        return self._owner.cancelling() > 0

    def fail(self, error: BaseException) -> bool:
        """Cancel the block and raise ``error`` at its end, without a disturbance of the other tasks.

        False: nobody is left to raise it.
        """
        if self._failure is None:
            self._failure = error
            self._block_cancelled = self.alive and self._owner.cancel()
        return not self._owner.done()

    def cancel(self) -> None:
        """Cancel what still runs."""
        self.alive = False
        for task in self._tasks:
            task.cancel()

    async def wait(self, timeout: float) -> None:
        """Wait until all have ended, or ``timeout`` seconds are over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    async def end(self, finish: Finish, error: BaseException | None) -> None:
        """End the tasks; ``error`` is what the block raises.

        ``finish`` is called with False, to end them in order; or, shielded, with True when the block or that call
        was cancelled: it must bound its own time then. What still runs afterwards is cancelled, at once when there
        is a Ctrl-C meanwhile.

        Raises what a task died of; otherwise the cancellation.
        """
        interruption = error if isinstance(error, CancelledError | KeyboardInterrupt) else None
        try:
            if interruption is None:
                try:
                    await finish(False)
                except (CancelledError, KeyboardInterrupt) as now:
                    interruption = now
            if interruption is not None:
                await _shielded(finish(True))
        finally:
            self.cancel()
            await self._close(interruption)

    async def _close(self, interruption: BaseException | None) -> None:
        cancelled = interruption if isinstance(interruption, CancelledError) else None
        try:
            await self._group.__aexit__(type(cancelled) if cancelled else None, cancelled, None)
        except BaseExceptionGroup as defects:
            if len(defects.exceptions) > 1:
                raise
            raise defects.exceptions[0] from None
        except CancelledError:
            if self._failure is None:
                raise
        if self._failure is not None:
            if self._block_cancelled:
                self._owner.uncancel()
            raise self._failure
        if interruption is not None and cancelled is None:
            raise interruption


async def _shielded(work: Coroutine[Any, Any, None]) -> None:
    """Finish ``work``, which bounds its own time, whatever cancellations come meanwhile.

    They are dropped, so this is only for those who have been cancelled already, and raise that afterwards. Where
    everything is cancelled at once, ``work`` is too: whoever does that for the second time is in a hurry.
    """
    task = asyncio.create_task(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except CancelledError:
            continue
    return task.result()
