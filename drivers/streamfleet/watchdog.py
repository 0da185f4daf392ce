"""Warns when the event loop is blocked: nothing else runs meanwhile, not even the worker's beats."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, process_time
from types import CodeType, FrameType

from streamfleet.logs import log

LOOKS_PER_LEASE = 12
WARN_AFTER = 1 / 3
"""The part of the lease for which the loop may be kept from running."""
STACK_LINES = 12
LOOPS_OWN = ("asyncio", "selectors", "trio")
"""Packages in which the stack ends while a loop waits for something to happen: nobody blocks it then."""


class Watchdog:
    """A daemon thread that looks at the event loop's thread from outside.

    The loop calls `beat` every `interval` seconds. When it has not for a third of ``lease`` (seconds, of the
    machine's own clock, whatever clock the loop goes by), a warning with the loop's stack is logged, once per
    blockage. It names the handler that is on the stack. ``marker`` is the code object of the function that calls
    handlers, and ``name_of`` tells from its frame which one. To be created on the loop's thread.
    """

    def __init__(self, who: str, lease: float, marker: CodeType, name_of: Callable[[FrameType], str]) -> None:
        self.interval = lease / LOOKS_PER_LEASE
        self._who = who
        self._patience = lease * WARN_AFTER
        self._lease = lease
        self._marker = marker
        self._name_of = name_of
        self._watched = threading.get_ident()
        self._last_beat = self._last_look = self._awake_since = monotonic()
        self._used = process_time()
        self._warned_of = 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"{who}-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Takes no longer than one look."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self) -> None:
        """The loop runs."""
        self._last_beat = monotonic()

    def _watch(self) -> None:
        while not self._ending.wait(self.interval):
            with suppress(SystemExit):  # a log handler's, which would end the watch
                self._look(monotonic(), process_time())

    def _look(self, now: float, used: float) -> None:
        """``used``: seconds of processor time that the process has had so far."""
        pause, work = now - self._last_look, used - self._used
        self._last_look, self._used = now, used
        if pause > 2 * self.interval and work < pause / 2:
            self._awake_since = now  # suspended or starved as a whole: the loop cannot help that
        beat = self._last_beat
        blocked = now - max(beat, self._awake_since)
        if blocked <= self._patience or beat == self._warned_of:
            return
        innermost = sys._current_frames().get(self._watched)
        handler = innermost
        while handler is not None and handler.f_code is not self._marker:
            handler = handler.f_back
        if innermost is None or (handler is None and _waits(innermost)):
            return
        self._warned_of = beat
        if handler is not None:
            who = f"handler {self._name_of(handler)}"
            mend = "Await instead of waiting, or register it with threads=True. "
        else:
            who, mend = "something else than a handler, perhaps a task that one has started,", ""
        log(
            logging.WARNING,
            "%s: %s has blocked the event loop for %.1f s; after %.1f s without a beat others take this worker's "
            "tasks over. %sIt is here:\n%s",
            self._who,
            who,
            blocked,
            self._lease,
            mend,
            "".join(traceback.format_list(traceback.extract_stack(innermost)[-STACK_LINES:])),
        )


def _waits(innermost: FrameType) -> bool:
    """Does a loop with this stack wait for something to happen?"""
    package, _, _ = str(innermost.f_globals.get("__name__", "")).partition(".")
    return package in LOOPS_OWN
