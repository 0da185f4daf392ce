"""The threads in which an asyncio worker runs plain handlers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeAlias

Outcome: TypeAlias = tuple[object, BaseException | None]
Job: TypeAlias = tuple["Future[Outcome]", Callable[[], Outcome]]


class Threads:
    """A pool of at most ``most`` daemon threads, started as they are needed.

    A handler that hangs keeps its thread. That must not hold up the end of the program, as the threads of a
    ThreadPoolExecutor do: the interpreter waits for those. Used on the event loop's thread only.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()

    def submit(self, function: Callable[[], Outcome]) -> Future[Outcome]:
        """Call ``function``, which never raises, in a thread: at once, or when all are busy, once one is free."""
        future: Future[Outcome] = Future()
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            name = f"{self._name}-{self._started}"
            threading.Thread(target=_work, args=(self._jobs, self._idle), name=name, daemon=True).start()
            self._started += 1
        self._jobs.put((future, function))
        return future

    def close(self) -> None:
        """Let each thread end once it has nothing to do."""
        for _ in range(self._started):
            self._jobs.put(None)


def _work(jobs: SimpleQueue[Job | None], idle: threading.Semaphore) -> None:
    """The life of a thread."""
    while (job := jobs.get()) is not None:
        future, function = job
        outcome = function() if future.set_running_or_notify_cancel() else None
        idle.release()  # first: whoever learns of the outcome may have the next job
        if outcome is not None:
            future.set_result(outcome)
        del future, function, job, outcome  # an idle thread keeps nothing alive
