"""One client process of a campaign: ``python -m campaign.client_process SHELL URL LOG SEED FIRST RATE``.

It enqueues numbered tasks until SIGTERM, then sends what is left, waits for what it tracks, and ends. Its log:

    client ID                         under this id the server knows it
    offered NUMBER MS …               it is about to enqueue this (`workload.Order.words`), at this Unix time
    full NUMBER                       its buffer did not take it
    accepted NUMBER ID                it was told that the server has it
    cancelling NUMBER ID              it asks for the task back
    cancelled NUMBER ID STATUS        the answer; without one within half a second there is no such line
    outcome NUMBER ID STATUS MS       it was told of the end
    finished UNSENT                   it ends in order
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from campaign.logfile import LogFile, now_ms
from campaign.process import exit_code, ready
from campaign.workload import Order, order
from streamfleet import BufferFull, Status, driver_from_url
from streamfleet.sync import Client

PAUSE = 0.05
SETTLE = 40.0
PATIENCE = 0.5
"""Seconds for an answer whether a task was cancelled."""
OPTIONS: dict[str, Any] = {"buffer_timeout": 0, "block": 1.0, "heartbeat": 1.0}


class Offers:
    """Tasks of this client, until their fate is logged."""

    def __init__(self, log: LogFile) -> None:
        self._log = log
        self._waiting: deque[tuple[int, Any, bool]] = deque()
        self._tracked: deque[tuple[int, Any]] = deque()
        self._cancels: list[tuple[float, int, Any]] = []

    def add(self, number: int, handle: Any, order: Order) -> None:
        """A task was taken into the buffer."""
        self._waiting.append((number, handle, order.tracked))
        if order.cancel_after is not None:
            self._cancels.append((time.monotonic() + order.cancel_after, number, handle))

    def look(self) -> bool:
        """Log what has been accepted and what has ended. False: there is nothing left to wait for."""
        for _ in range(len(self._waiting)):
            number, handle, tracked = self._waiting.popleft()
            status = handle.status
            if status in (Status.BUFFERED, Status.SENT):
                self._waiting.append((number, handle, tracked))
                continue
            if status in (Status.ACCEPTED, Status.COMPLETED, Status.FAILED):
                self._log.write("accepted", number, handle.id)
            if tracked or status is not Status.ACCEPTED:
                self._tracked.append((number, handle))
        for _ in range(len(self._tracked)):
            number, handle = self._tracked.popleft()
            if handle.done:
                self._log.write("outcome", number, handle.id, handle.status.name, now_ms())
            else:
                self._tracked.append((number, handle))
        return bool(self._waiting or self._tracked or self._cancels)

    def to_cancel(self) -> Iterator[tuple[int, Any]]:
        """Tasks whose time has come to be taken back."""
        now = time.monotonic()
        due = [(number, handle) for at, number, handle in self._cancels if at <= now]
        self._cancels = [row for row in self._cancels if row[0] > now]
        for number, handle in due:
            self._log.write("cancelling", number, handle.id)
            yield number, handle

    def answered(self, number: int, handle: Any) -> None:
        """The client was told whether it has the task back."""
        self._log.write("cancelled", number, handle.id, handle.status.name)

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

    def next(self) -> Order:
        """The next order, logged as offered."""
        chosen = order(self.number, self._rng)
        self._log.write("offered", self.number, now_ms(), *chosen.words())
        return chosen

    def full(self) -> None:
        """The last order was not taken. The next has its number."""
        self._log.write("full", self.number)


def run_sync(url: str, log: LogFile, script: Script, offers: Offers, stop: threading.Event) -> None:
    """A client for threads."""
    driver = driver_from_url(url)
    pause = threading.Event()

    def look() -> bool:
        for number, handle in offers.to_cancel():
            try:
                handle.cancel(PATIENCE)
            except TimeoutError:
                continue
            offers.answered(number, handle)
        return offers.look()

    with Client(driver, **OPTIONS) as client:
        log.write("client", client.id)
        ready(log, "sync", url, driver)
        while not stop.wait(PAUSE):
            for _ in range(script.burst):
                order = script.next()
                enqueue = client.enqueue_tracked if order.tracked else client.enqueue
                try:
                    handle = enqueue(order.queue, order.payload, **order.options)
                except BufferFull:
                    script.full()
                    break
                offers.add(script.number, handle, order)
                script.number += 1
            look()
        deadline = time.monotonic() + SETTLE
        while look() and time.monotonic() < deadline:
            pause.wait(PAUSE)


async def run_async(
    client: Any, sleep: Callable[[float], Awaitable[None]], script: Script, offers: Offers, stop: threading.Event
) -> None:
    """A client for asyncio or trio, already open."""

    async def look() -> bool:
        for number, handle in offers.to_cancel():
            try:
                await handle.cancel(PATIENCE)
            except TimeoutError:
                continue
            offers.answered(number, handle)
        return offers.look()

    while not stop.is_set():
        await sleep(PAUSE)
        for _ in range(script.burst):
            order = script.next()
            enqueue = client.enqueue_tracked if order.tracked else client.enqueue
            try:
                handle = await enqueue(order.queue, order.payload, **order.options)
            except BufferFull:
                script.full()
                break
            offers.add(script.number, handle, order)
            script.number += 1
        await look()
    deadline = time.monotonic() + SETTLE
    while await look() and time.monotonic() < deadline:
        await sleep(PAUSE)


def run_asyncio(url: str, log: LogFile, script: Script, offers: Offers, stop: threading.Event) -> None:
    """A client on asyncio."""
    from streamfleet.asyncio import Client

    async def main() -> None:
        driver = driver_from_url(url, shell="asyncio")
        async with Client(driver, **OPTIONS) as client:
            log.write("client", client.id)
            ready(log, "asyncio", url, driver)
            await run_async(client, asyncio.sleep, script, offers, stop)

    asyncio.run(main())


def run_trio(url: str, log: LogFile, script: Script, offers: Offers, stop: threading.Event) -> None:
    """A client on trio."""
    import trio

    from streamfleet.trio import Client

    async def main() -> None:
        driver = driver_from_url(url, shell="trio")
        async with Client(driver, **OPTIONS) as client:
            log.write("client", client.id)
            ready(log, "trio", url, driver)
            await run_async(client, trio.sleep, script, offers, stop)

    trio.run(main)


SHELLS = {"sync": run_sync, "asyncio": run_asyncio, "trio": run_trio}


def main() -> int:
    """Offer at the rate given, in small bursts, until SIGTERM; the exit code says whether the server refused."""
    shell, url, path, seed, first, rate = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    log = LogFile(Path(path))
    offers = Offers(log)

    def offer() -> None:
        SHELLS[shell](url, log, Script(log, int(seed), int(first), float(rate)), offers, stop)
        log.write("finished", offers.unaccepted)

    return exit_code(offer, log)


if __name__ == "__main__":
    sys.exit(main())
