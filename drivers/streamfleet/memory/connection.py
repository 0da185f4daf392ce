"""Connections to a model server for threads, asyncio and trio."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from streamfleet.memory.hub import Conversation, Hub
from streamfleet.running_loop import in_trio
from streamfleet_core.connection import Command, Reply

if TYPE_CHECKING:
    import trio


class MemoryConnection(Conversation):
    """A connection used by one thread at a time."""

    def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """See `streamfleet_core.connection.Connection.exchange`."""
        steps = self.steps(commands, timeout, threading.Event)
        try:
            while True:
                wait = next(steps)
                wait.waker.wait(wait.seconds)
        except StopIteration as done:
            replies: list[Reply] = done.value
            return replies
        except BaseException:  # a KeyboardInterrupt leaves the connection unusable, too
            self.close()
            raise


class AsyncMemoryConnection(Conversation):
    """A connection used by one task at a time, on the event loop where it was opened."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._checkpoint, self._new_waker = _running_library()

    async def exchange(self, commands: Sequence[Command], timeout: float) -> list[Reply]:
        """See `streamfleet_core.connection.AsyncConnection.exchange`."""
        try:
            # A loop over exchanges that never wait must leave others their turn, and be cancellable.
            await self._checkpoint()
            steps = self.steps(commands, timeout, self._new_waker)
            while True:
                try:
                    wait = next(steps)
                except StopIteration as done:
                    replies: list[Reply] = done.value
                    return replies
                await wait.waker.wait(wait.seconds)
        except BaseException:  # cancellation included: the reply may be lost
            self.close()
            raise


class _AsyncWaker(Protocol):
    def set(self) -> None: ...

    async def wait(self, seconds: float) -> None: ...


class _AsyncioWaker:
    """An event of asyncio that any thread may set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # The loop was closed under its connection: nobody is left to wake.

    async def wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return


class _TrioWaker:
    """An event of trio that any thread may set."""

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token: trio.lowlevel.TrioToken = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def set(self) -> None:
        try:
            self._token.run_sync_soon(self._event.set)
        except self._trio.RunFinishedError:
            return  # the run has ended under its connection: nobody is left to wake

    async def wait(self, seconds: float) -> None:
        with self._trio.move_on_after(seconds):
            await self._event.wait()


class _Checkpoint(Protocol):
    async def __call__(self) -> None: ...


async def _asyncio_checkpoint() -> None:
    await asyncio.sleep(0)


def _running_library() -> tuple[_Checkpoint, Callable[[], _AsyncWaker]]:
    """How the caller's event loop yields, and how it is woken.

    Raises RuntimeError outside of asyncio and trio.
    """
    if in_trio():
        return sys.modules["trio"].lowlevel.checkpoint, _TrioWaker
    asyncio.get_running_loop()
    return _asyncio_checkpoint, _AsyncioWaker
