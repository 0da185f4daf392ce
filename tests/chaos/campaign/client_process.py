"""One client process of a campaign: ``python -m campaign.client_process SHELL URL LOG SEED FIRST RATE``.

It enqueues numbered tasks until SIGTERM, then sends what is left, waits for what it tracks, and ends.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from random import Random
from typing import Any

from campaign.logfile import LogFile
from campaign.workload import order
from streamfleet import BufferFull, Status, driver_from_url
from streamfleet.sync import Client

PAUSE = 0.05
SETTLE = 40.0


class Offers:
    """Tasks of this client, until their fate is logged."""

    def __init__(self, log: LogFile) -> None:
        self._log = log
        self._waiting: deque[tuple[int, Any, bool]] = deque()
        self._tracked: deque[tuple[int, Any]] = deque()

    def add(self, number: int, handle: Any, tracked: bool) -> None:
        """A task was taken into the buffer."""
        self._waiting.append((number, handle, tracked))

    def look(self) -> bool:
        """Log what has been accepted and what has ended. False: there is nothing left to wait for."""
        for _ in range(len(self._waiting)):
            number, handle, tracked = self._waiting.popleft()
            if handle.status in (Status.BUFFERED, Status.SENT):
                self._waiting.append((number, handle, tracked))
                continue
            if handle.status in (Status.EXPIRED, Status.REFUSED):
                continue
            self._log.write("accepted", number, handle.id)
            if tracked:
                self._tracked.append((number, handle))
        for _ in range(len(self._tracked)):
            number, handle = self._tracked.popleft()
            if handle.done:
                self._log.write("outcome", number, handle.id, handle.status.name)
            else:
                self._tracked.append((number, handle))
        return bool(self._waiting or self._tracked)

    @property
    def unaccepted(self) -> int:
        """Tasks that the server has not accepted yet."""
        return len(self._waiting)


def main() -> None:
    """Offer at the rate given, in small bursts."""
    _, url, log_path, seed, first, rate = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    log, rng, number = LogFile(Path(log_path)), Random(int(seed)), int(first)
    offers = Offers(log)
    with Client(driver_from_url(url), buffer_timeout=0, block=1.0, heartbeat=1.0) as client:
        while not stop.wait(PAUSE):
            for _ in range(max(1, int(float(rate) * PAUSE))):
                queue, payload, tracked, options = order(number, rng)
                log.write("offered", number)
                try:
                    enqueue = client.enqueue_tracked if tracked else client.enqueue
                    offers.add(number, enqueue(queue, payload, **options), tracked)
                except BufferFull:
                    break
                number += 1
            offers.look()
        deadline = time.monotonic() + SETTLE
        pause = threading.Event()
        while offers.look() and time.monotonic() < deadline:
            pause.wait(PAUSE)
        log.write("finished", offers.unaccepted)


if __name__ == "__main__":
    main()
