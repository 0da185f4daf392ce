"""Calls that may block for long, each in a daemon thread of its own, so that its caller can stop waiting.

The threads that an event loop keeps for such calls will not do: what hangs in them holds up the end of the loop,
and takes the place of others' work.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from streamfleet_core.errors import NotSent

T = TypeVar("T")

AT_ONCE = 64
"""Calls in progress at most; those that nobody waits for any more count, too."""


class BlockingCalls:
    """Makes calls of one kind. ``what`` they are is told to people."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._free = threading.Semaphore(AT_ONCE)

    def start(self, function: Callable[[], T]) -> Future[T]:
        """Call the function; the future tells what it returns or raises, and cannot be cancelled.

        Raises NotSent when `AT_ONCE` calls are in progress, or no thread can be had.
        """
        return self._start(function, self._refuse)

    def start_or_call(self, function: Callable[[], T]) -> Future[T]:
        """As `start`, for who may block: when no thread can be had, the call is made in the caller's.

        So it is while the interpreter exits, when what has not been sent is sent. Then the caller waits for it
        beyond its deadline. Raises NotSent when `AT_ONCE` calls are in progress.
        """
        return self._start(function, self._run)

    def _start(
        self, function: Callable[[], T], without_thread: Callable[[Callable[[], T], Future[T]], None]
    ) -> Future[T]:
        if not self._free.acquire(blocking=False):
            raise NotSent(f"{AT_ONCE} calls of {self._what} have not come back: no more are made until one does")
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        thread = threading.Thread(target=self._run, args=(function, future), name=self._what, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system refuses it, or the interpreter exits
            without_thread(function, future)
        except BaseException:
            self._free.release()
            raise
        return future

    def _refuse(self, _function: Callable[[], T], _future: Future[T]) -> None:
        self._free.release()
        raise NotSent(f"no thread can be had for {self._what}")

    def _run(self, function: Callable[[], T], future: Future[T]) -> None:
        try:
            result = function()
        except BaseException as error:
            self._free.release()
            future.set_exception(error)
        else:
            self._free.release()
            future.set_result(result)


async def result_in_trio(future: Future[T]) -> T:
    """What the future tells; under trio. Under asyncio that is ``asyncio.wrap_future``."""
    import trio

    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def wake(_future: Future[T]) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # nobody is left to wake
            token.run_sync_soon(done.set)

    future.add_done_callback(wake)
    await done.wait()
    return future.result()
