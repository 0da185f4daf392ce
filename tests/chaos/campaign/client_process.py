"""One client process of a campaign: ``python -m campaign.client_process SHELL URL LOG SEED FIRST RATE``.

It enqueues numbered tasks until SIGTERM, then sends what is left, waits for what it tracks, and ends.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from campaign.logfile import LogFile
from campaign.workload import order
from streamfleet import BufferFull, Status, driver_from_url
from streamfleet.sync import Client

PAUSE = 0.05
SETTLE = 40.0
OPTIONS: dict[str, Any] = {"buffer_timeout": 0, "block": 1.0, "heartbeat": 1.0}


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


class Script:
    """What the client offers next; the same for each shell."""

    def __init__(self, log: LogFile, seed: int, first: int, rate: float) -> None:
        self._log = log
        self._rng = Random(seed)
        self.number = first
        self.burst = max(1, int(rate * PAUSE))

    def next(self) -> tuple[str, str, bool, dict[str, Any]]:
        """The next order, logged as offered."""
        self._log.write("offered", self.number)
        return order(self.number, self._rng)


def run_sync(url: str, script: Script, offers: Offers, stop: threading.Event) -> None:
    """A client for threads."""
    with Client(driver_from_url(url), **OPTIONS) as client:
        while not stop.wait(PAUSE):
            for _ in range(script.burst):
                queue, payload, tracked, options = script.next()
                try:
                    enqueue = client.enqueue_tracked if tracked else client.enqueue
                    offers.add(script.number, enqueue(queue, payload, **options), tracked)
                except BufferFull:
                    break
                script.number += 1
            offers.look()
        deadline = time.monotonic() + SETTLE
        pause = threading.Event()
        while offers.look() and time.monotonic() < deadline:
            pause.wait(PAUSE)


async def run_async(
    client: Any, sleep: Callable[[float], Awaitable[None]], script: Script, offers: Offers, stop: threading.Event
) -> None:
    """A client for asyncio or trio, already open."""
    while not stop.is_set():
        await sleep(PAUSE)
        for _ in range(script.burst):
            queue, payload, tracked, options = script.next()
            try:
                enqueue = client.enqueue_tracked if tracked else client.enqueue
                offers.add(script.number, await enqueue(queue, payload, **options), tracked)
            except BufferFull:
                break
            script.number += 1
        offers.look()
    deadline = time.monotonic() + SETTLE
    while offers.look() and time.monotonic() < deadline:
        await sleep(PAUSE)


def run_asyncio(url: str, script: Script, offers: Offers, stop: threading.Event) -> None:
    """A client on asyncio."""
    from streamfleet.asyncio import Client

    async def main() -> None:
        async with Client(driver_from_url(url, shell="asyncio"), **OPTIONS) as client:
            await run_async(client, asyncio.sleep, script, offers, stop)

    asyncio.run(main())


def run_trio(url: str, script: Script, offers: Offers, stop: threading.Event) -> None:
    """A client on trio."""
    import trio

    from streamfleet.trio import Client

    async def main() -> None:
        async with Client(driver_from_url(url, shell="trio"), **OPTIONS) as client:
            await run_async(client, trio.sleep, script, offers, stop)

    trio.run(main)


SHELLS = {"sync": run_sync, "asyncio": run_asyncio, "trio": run_trio}


def main() -> None:
    """Offer at the rate given, in small bursts, until SIGTERM."""
    shell, url, log_path, seed, first, rate = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    log = LogFile(Path(log_path))
    offers = Offers(log)
    SHELLS[shell](url, Script(log, int(seed), int(first), float(rate)), offers, stop)
    log.write("finished", offers.unaccepted)


if __name__ == "__main__":
    main()
