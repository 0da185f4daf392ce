"""The tasks of a client or worker: none of them outlives the block that it stands for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context

import trio


class Tasks:
    """A nursery that survives the cancellation of its block for as long as a clean end takes.

    It raises a single error as it is, and leaves the errors of its block alone.
    """

    def __init__(self) -> None:
        self.context = copy_context()
        """What each task starts with, whoever spawns it."""
        self._outer: trio.Nursery | None = None
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def open(self, finish: Callable[[bool], Awaitable[None]]) -> AsyncIterator[None]:
        """Host tasks while the block runs.

        At its end ``finish`` is called with False, to end them in order; or, shielded, with True when the block
        or that call was cancelled: it must bound its own time then. What still runs afterwards is cancelled, at
        once when there is a Ctrl-C meanwhile.

        Raises what the block raised, or what a task died of: then the block is cancelled.
        """
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as outer:
                self._outer = outer
                # Instantaneous. A cancellation in between would leave behind a host that nothing can reach.
                with trio.CancelScope(shield=True):
                    await outer.start(self._host)
                try:
                    yield
                except BaseException as error:
                    failure = error
                try:
                    failure = await _finish(finish, failure)
                finally:  # also after a Ctrl-C in the middle of it: nothing else reaches the host
                    self.cancel()
        except BaseExceptionGroup as defects:
            raise _innermost(defects) from failure
        finally:
            self._outer = None
        if failure is not None:
            raise failure

    async def _host(self, task_status: trio.TaskStatus[None]) -> None:
        """Keep a nursery out of reach of the cancellations from outside."""
        with trio.CancelScope(shield=True):
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(trio.sleep_forever)
                    task_status.started()
            finally:
                self._nursery = None

    @property
    def alive(self) -> bool:
        """May tasks be spawned? Not before the block, nor when one of them has failed."""
        return self._nursery is not None and not self._nursery.cancel_scope.cancel_called

    def spawn(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Start a task; nothing happens when the tasks are not alive."""
        nursery = self._nursery
        if nursery is not None and self.alive:
            self.context.copy().run(lambda: nursery.start_soon(work, name=name))

    def fail(self, error: BaseException) -> None:
        """Cancel the block and raise ``error`` at its end, without a disturbance of the other tasks."""

        async def raise_it() -> None:
            raise error

        if self._outer is not None:
            self._outer.start_soon(raise_it)

    def cancel(self) -> None:
        """Cancel what still runs."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()


async def _finish(
    finish: Callable[[bool], Awaitable[None]], failure: BaseException | None
) -> BaseException | None:
    """End in order, or in a hurry when cancelled. Returns what is to be raised then."""
    if not _interrupted(failure):
        try:
            await finish(False)
        except (trio.Cancelled, KeyboardInterrupt) as interruption:
            failure = interruption
        else:
            return failure
    with trio.CancelScope(shield=True):
        await finish(True)
    return failure


def _interrupted(error: BaseException | None) -> bool:
    """Is it a cancellation or Ctrl-C, alone or among other errors?"""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((trio.Cancelled, KeyboardInterrupt)) is not None
    return isinstance(error, trio.Cancelled | KeyboardInterrupt)


def _innermost(error: BaseException) -> BaseException:
    """A single error, out of the groups that nurseries put around it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
