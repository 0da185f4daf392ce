"""The agents of the shells for event loops, whichever it is: what a user would write, with all safeguards on.

What differs from loop to loop is a `Loop`. As nothing may run outside of an event loop, an agent says that it is
ready, and waits, from within it: for that moment the loop stands still.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Literal

from streamfleet.bench.orders import (
    PAYLOAD,
    QUEUE,
    STAMP_BYTES,
    WAIT_SECONDS,
    WARM_QUEUE,
    Contender,
    Measured,
    Order,
    Report,
    age_us,
    paced,
    stamp,
)
from streamfleet.drivers import driver_from_url
from streamfleet.task import Task
from streamfleet_core.connection import AsyncDriver


@dataclass(frozen=True, slots=True)
class Loop:
    """A kind of event loop, and its shell. The shells share names and signatures, but no base classes."""

    shell: Literal["asyncio", "trio"]
    client: Callable[..., Any]
    worker: Callable[..., Any]
    run: Callable[[Callable[[], Awaitable[Report]]], Report]
    sleep: Callable[[float], Awaitable[Any]]


class _OnLoop:
    """An agent whose work is one coroutine."""

    def __init__(self, loop: Loop, order: Order) -> None:
        self.loop = loop
        self.order = order

    def perform(self, measured: Measured) -> Report:
        """See `Agent.perform`."""
        return self.loop.run(partial(self.work, measured))

    async def work(self, measured: Measured) -> Report:
        """As `perform`."""
        raise NotImplementedError

    async def driver(self) -> AsyncDriver:
        """A driver that has connected once, which has imported the client library: a quarter of a second, once."""
        driver = driver_from_url(self.order.url, shell=self.loop.shell)
        (await driver.connect_async(WAIT_SECONDS)).close()
        return driver

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, asking for it each millisecond. Raises TimeoutError."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {WAIT_SECONDS:g} s")
            await self.loop.sleep(0.001)


class _Connected(_OnLoop):
    """A client that is connected, and has sent one task to another queue."""

    async def work(self, measured: Measured) -> Report:
        """See `Agent.perform`."""
        async with self.loop.client(await self.driver(), [QUEUE], buffer_timeout=WAIT_SECONDS) as client:
            await (await client.enqueue(WARM_QUEUE, PAYLOAD)).accepted(WAIT_SECONDS)
            with measured():
                start = time.perf_counter()
                await self.enqueue(client)
                return {"seconds": [time.perf_counter() - start]}

    async def enqueue(self, client: Any) -> None:
        """What is measured."""
        raise NotImplementedError


class Enqueue(_Connected):
    """Many tasks, one call for each."""

    async def enqueue(self, client: Any) -> None:
        """See `_Connected.enqueue`."""
        for _ in range(self.order.tasks):
            await client.enqueue(QUEUE, PAYLOAD)
        await client.flush(WAIT_SECONDS)


class EnqueueMany(_Connected):
    """Many tasks in one call."""

    async def enqueue(self, client: Any) -> None:
        """See `_Connected.enqueue`."""
        await client.enqueue_many(QUEUE, (PAYLOAD for _ in range(self.order.tasks)))
        await client.flush(WAIT_SECONDS)


class EnqueueEach(_Connected):
    """One task at a time, each accepted by the server before the next."""

    async def enqueue(self, client: Any) -> None:
        """See `_Connected.enqueue`."""
        for _ in range(self.order.tasks):
            await (await client.enqueue(QUEUE, PAYLOAD)).accepted(WAIT_SECONDS)


class Drain(_OnLoop):
    """A backlog, from the worker's start until all is settled."""

    async def work(self, measured: Measured) -> Report:
        """See `Agent.perform`."""
        worker = self.loop.worker(await self.driver(), concurrency=self.order.concurrency)
        number, last, started = count(1), self.order.tasks, False

        @worker.handler(QUEUE)  # type: ignore[untyped-decorator]
        async def handle(task: Task) -> None:
            nonlocal started
            if next(number) == last:
                started = True

        with measured():
            start = time.perf_counter()
            async with worker.running():
                await self.until(lambda: started and worker.in_flight == 0, "all tasks settled")
                seconds = time.perf_counter() - start
        return {"seconds": [seconds]}


class Serve(_OnLoop):
    """A worker, until all has come."""

    async def work(self, measured: Measured) -> Report:
        """See `Agent.perform`."""
        worker = self.loop.worker(await self.driver(), concurrency=self.order.concurrency)
        ages: list[float] = []

        @worker.handler(QUEUE)  # type: ignore[untyped-decorator]
        async def handle(task: Task) -> None:
            if len(task.data) == STAMP_BYTES:
                ages.append(age_us(task.data))

        async with worker.running():
            with measured():
                await self.until(lambda: worker.counts.get("completed", 0) >= self.order.tasks, "all tasks served")
        return {"ages_us": ages}


class _Waiting(_OnLoop):
    """A client that has waited for one task."""

    @asynccontextmanager
    async def waited(self) -> AsyncIterator[Any]:
        """Within it the client works."""
        async with self.loop.client(await self.driver(), [QUEUE]) as client:
            await (await client.enqueue_tracked(QUEUE, PAYLOAD)).wait(WAIT_SECONDS)
            yield client


class Wait(_Waiting):
    """Tracked tasks, and their outcome."""

    async def work(self, measured: Measured) -> Report:
        """See `Agent.perform`."""
        flying: deque[Any] = deque()
        latencies: list[float] = []
        async with self.waited() as client:
            with measured():
                start = before = time.perf_counter()
                for _ in range(self.order.tasks):
                    if len(flying) >= self.order.outstanding:
                        await flying.popleft().wait(WAIT_SECONDS)
                        now = time.perf_counter()
                        latencies.append((now - before) * 1e6)
                        before = now
                    flying.append(await client.enqueue_tracked(QUEUE, PAYLOAD))
                for handle in flying:
                    await handle.wait(WAIT_SECONDS)
                return {"seconds": [time.perf_counter() - start], "latencies_us": latencies}


class Pace(_Waiting):
    """Tasks at a given rate."""

    async def work(self, measured: Measured) -> Report:
        """See `Agent.perform`."""
        async with self.waited() as client:
            with measured():
                for at in paced(self.order):
                    await self.loop.sleep(max(0.0, at - time.monotonic()))
                    await client.enqueue(QUEUE, stamp())
                await client.flush(WAIT_SECONDS)
        return {}


def agents(loop: Loop) -> Contender:
    """The agents for a kind of event loop."""
    return {
        "enqueue": partial(Enqueue, loop),
        "enqueue-many": partial(EnqueueMany, loop),
        "enqueue-each": partial(EnqueueEach, loop),
        "drain": partial(Drain, loop),
        "serve": partial(Serve, loop),
        "wait": partial(Wait, loop),
        "pace": partial(Pace, loop),
    }
