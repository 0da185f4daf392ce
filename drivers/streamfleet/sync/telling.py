"""The thread that logs what a machine tells.

A log handler may be slow, it may enqueue and wait for room, it may ask for what the lock of the loops guards, it
may stop its worker. So it is called with no lock held, and by a thread that nothing waits for: beats, settlements
and batches go on meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

from streamfleet.logs import report
from streamfleet_core.events import Event


class Teller:
    """Logs the events of one machine, in their order. ``lock`` guards ``events``, and the teller."""

    def __init__(self, who: str, events: deque[Event], lock: threading.RLock) -> None:
        self._who = who
        self._events = events
        self._lock = lock
        self._news = threading.Condition(lock)
        self._thread: threading.Thread | None = None
        self._ending = False

    def begin(self) -> None:
        """Start the thread, unless it runs. The lock is held."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=f"{self._who}-log", daemon=True)
            with suppress(RuntimeError):  # the interpreter is about to exit, or cannot have more threads now
                thread.start()
                self._thread = thread

    def wake(self) -> None:
        """There are events. The lock is held."""
        if self._thread is None:
            self.begin()  # also for what comes after the end, from a handler that returns late
        else:
            self._news.notify()

    def end(self, timeout: float) -> None:
        """Let all be told, and the thread end. A log handler that takes longer is left to itself."""
        with self._lock:
            self._ending = True
            self._news.notify()
            thread = self._thread
            told = self._take() if thread is None else []
        if thread is None:
            report(self._who, told)
        elif thread is not threading.current_thread():  # it is when a log handler stops its worker
            thread.join(timeout)

    def _take(self) -> list[Event]:
        told = list(self._events)
        self._events.clear()
        return told

    def _next(self) -> list[Event]:
        """The next events to tell; none: the thread is to end, and does not count any more."""
        with self._lock:
            while not self._events and not self._ending:
                self._news.wait()
            told = self._take()
            if not told:
                self._thread = None
            return told

    def _run(self) -> None:
        while told := self._next():
            for event in told:
                with suppress(BaseException):  # not even a log handler's SystemExit ends the telling
                    report(self._who, [event])
