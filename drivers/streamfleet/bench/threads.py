"""The shell for threads as a contender: what a user would write, with all safeguards on."""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import count

from streamfleet.bench.orders import (
    PAYLOAD,
    QUEUE,
    STAMP_BYTES,
    WAIT_SECONDS,
    WARM_QUEUE,
    Contender,
    Order,
    PlainAgent,
    Report,
    age_us,
    paced,
    stamp,
    until,
)
from streamfleet.drivers import driver_from_url
from streamfleet.sync import Client, Handle, Worker
from streamfleet.task import Task
from streamfleet_core.connection import Driver


def _driver(order: Order) -> Driver:
    """A driver that has connected once, which has imported the client library: a quarter of a second, once."""
    driver = driver_from_url(order.url)
    driver.connect(WAIT_SECONDS).close()
    return driver


class _Connected(PlainAgent):
    """An agent's beginning."""

    def prepare(self) -> None:
        """Connect, and send one task to another queue."""
        self.client = Client(_driver(self.order), [QUEUE], buffer_timeout=WAIT_SECONDS)
        self.client.enqueue(WARM_QUEUE, PAYLOAD).accepted(WAIT_SECONDS)


class Enqueue(_Connected):
    """Many tasks, one call for each."""

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        enqueue = self.client.enqueue
        start = time.perf_counter()
        for _ in range(self.order.tasks):
            enqueue(QUEUE, PAYLOAD)
        self.client.flush(WAIT_SECONDS)
        return {"seconds": [time.perf_counter() - start]}


class EnqueueMany(_Connected):
    """Many tasks in one call."""

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        start = time.perf_counter()
        self.client.enqueue_many(QUEUE, (PAYLOAD for _ in range(self.order.tasks)))
        self.client.flush(WAIT_SECONDS)
        return {"seconds": [time.perf_counter() - start]}


class EnqueueEach(_Connected):
    """One task at a time, each accepted by the server before the next."""

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        start = time.perf_counter()
        for _ in range(self.order.tasks):
            self.client.enqueue(QUEUE, PAYLOAD).accepted(WAIT_SECONDS)
        return {"seconds": [time.perf_counter() - start]}


class Drain(PlainAgent):
    """A backlog, from the worker's start until all is settled."""

    def prepare(self) -> None:
        """See `PlainAgent.prepare`."""
        self.worker = Worker(_driver(self.order), concurrency=self.order.concurrency)
        self._all_started = threading.Event()
        number, last, all_started = count(1), self.order.tasks, self._all_started

        @self.worker.handler(QUEUE)
        def handle(task: Task) -> None:
            if next(number) == last:
                all_started.set()

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        worker = self.worker
        start = time.perf_counter()
        worker.start()
        if not self._all_started.wait(WAIT_SECONDS):
            raise TimeoutError(f"not all tasks were started: {worker.counts}")
        until(lambda: worker.in_flight == 0, "all tasks settled")
        seconds = time.perf_counter() - start
        worker.stop()
        return {"seconds": [seconds]}


class Serve(PlainAgent):
    """A worker, until all has come."""

    def prepare(self) -> None:
        """See `PlainAgent.prepare`."""
        self.worker = Worker(_driver(self.order), concurrency=self.order.concurrency)
        self._ages: list[float] = []
        ages = self._ages

        @self.worker.handler(QUEUE)
        def handle(task: Task) -> None:
            if len(task.data) == STAMP_BYTES:
                ages.append(age_us(task.data))

        self.worker.start()

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        until(lambda: self.worker.counts.get("completed", 0) >= self.order.tasks, "all tasks served")
        self.worker.stop()
        return {"ages_us": self._ages}


class Wait(PlainAgent):
    """Tracked tasks, and their outcome."""

    def prepare(self) -> None:
        """Connect, and wait for one task."""
        self.client = Client(_driver(self.order), [QUEUE])
        self.client.enqueue_tracked(QUEUE, PAYLOAD).wait(WAIT_SECONDS)

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        flying: deque[Handle] = deque()
        latencies: list[float] = []
        start = before = time.perf_counter()
        for _ in range(self.order.tasks):
            if len(flying) >= self.order.outstanding:
                flying.popleft().wait(WAIT_SECONDS)
                now = time.perf_counter()
                latencies.append((now - before) * 1e6)
                before = now
            flying.append(self.client.enqueue_tracked(QUEUE, PAYLOAD))
        for handle in flying:
            handle.wait(WAIT_SECONDS)
        return {"seconds": [time.perf_counter() - start], "latencies_us": latencies}


class Pace(Wait):
    """Tasks at a given rate."""

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        for at in paced(self.order):
            time.sleep(max(0.0, at - time.monotonic()))
            self.client.enqueue(QUEUE, stamp())
        self.client.flush(WAIT_SECONDS)
        return {}


AGENTS: Contender = {
    "enqueue": Enqueue,
    "enqueue-many": EnqueueMany,
    "enqueue-each": EnqueueEach,
    "drain": Drain,
    "serve": Serve,
    "wait": Wait,
    "pace": Pace,
}
