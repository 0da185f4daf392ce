"""Warns when a handler blocks the event loop: nothing else runs meanwhile, not even the worker's beats."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic
from types import CodeType, FrameType

from streamfleet.logs import logger

LOOKS_PER_LEASE = 12
WARN_AFTER = 1 / 3
"""The part of the lease for which a handler may keep the loop from running."""
STACK_LINES = 12


class Watchdog:
    """A daemon thread that looks at the event loop's thread from outside.

    The loop calls `beat` every `interval` seconds. When it has not for a third of ``lease`` (seconds, of the
    machine's own clock, whatever clock the loop goes by), and a handler is on the loop's stack, a warning with
    that stack is logged, once per blockage. ``marker`` is the code object of the function that calls handlers,
    and ``name_of`` tells from its frame which one. To be created on the loop's thread.
    """

    def __init__(self, who: str, lease: float, marker: CodeType, name_of: Callable[[FrameType], str]) -> None:
        self.interval = lease / LOOKS_PER_LEASE
        self._who = who
        self._patience = lease * WARN_AFTER
        self._lease = lease
        self._marker = marker
        self._name_of = name_of
        self._watched = threading.get_ident()
        self._last_beat = monotonic()
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
            self._look(monotonic())

    def _look(self, now: float) -> None:
        beat = self._last_beat
        blocked = now - beat
        if blocked <= self._patience or beat == self._warned_of:
            return
        innermost = sys._current_frames().get(self._watched)
        frame = innermost
        while frame is not None and frame.f_code is not self._marker:
            frame = frame.f_back
        if frame is None or innermost is None:
            return
        self._warned_of = beat
        logger.warning(
            "%s: handler %s has blocked the event loop for %.1f s; after %.1f s without a beat others take its "
            "task over. Await instead of waiting, or register it with threads=True. It is here:\n%s",
            self._who,
            self._name_of(frame),
            blocked,
            self._lease,
            "".join(traceback.format_list(traceback.extract_stack(innermost)[-STACK_LINES:])),
        )
