"""A thousand cancellations at random moments, on a real server: nothing hangs, leaks or stays unknown."""

import gc
import os
import random
import threading
from collections import Counter
from functools import partial

import pytest
import trio

from streamfleet.redis import RedisDriver
from streamfleet.trio import Client, Worker
from streamfleet.trio_driver import TrioDriver
from streamfleet_core.keys import GROUP, queue_keys

PATIENCE = 60.0


def sockets():
    """The sockets that this process holds open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue  # the directory's own descriptor
        if target.startswith("socket:"):
            found.add(target)
    return found


def ask(driver, *command):
    connection = RedisDriver(driver.url).connect(5)
    try:
        return connection.exchange([command], 5)[0]
    finally:
        connection.close()


CANCELLED = object()


async def cancel_at_random(rng, work, most_turns):
    """Start ``work``, let trio turn a random number of times, cancel it. Returns its result, or CANCELLED."""
    result = CANCELLED

    async def run(scope):
        nonlocal result
        with scope:
            result = await work()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(run, scope)
        for _ in range(rng.randrange(most_turns)):
            await trio.lowlevel.checkpoint()
        scope.cancel()
    return result


class Storm:
    """Tasks that were taken, and tasks that ran."""

    def __init__(self, driver, queue, seed):
        self.driver = driver
        self.queue = queue
        self.rng = random.Random(seed)
        self.taken = set()
        self.ran = set()
        self.all_ran = trio.Event()
        self.cancelled = Counter()

    def worker(self):
        worker = Worker(self.driver, concurrency=4, lease=5.0)

        @worker.handler(self.queue)
        async def handle(task):
            for _ in range(self.rng.randrange(4)):
                await trio.lowlevel.checkpoint()
            self.ran.add(task.id)
            if self.ran >= self.taken:
                self.all_ran.set()

        return worker

    async def enqueue_and_wait(self, client):
        """One enqueue, and one wait for what it has taken, each cancelled unless it is done before."""
        enqueue = self.rng.choice([client.enqueue, client.enqueue_tracked])
        if self.cancelled["enqueue"] < self.cancelled["wait"] + 8:
            handle = await cancel_at_random(self.rng, partial(enqueue, self.queue, b"x"), 30)
        else:  # waits are cancelled less often, because fewer come to it
            handle = await enqueue(self.queue, b"x")
        if handle is CANCELLED:
            self.cancelled["enqueue"] += 1
            return
        self.taken.add(handle.id)
        wait = handle.wait if handle._submission.tracked else handle.accepted
        if await cancel_at_random(self.rng, wait, 60) is CANCELLED:
            self.cancelled["wait"] += 1
        assert handle._submission.waiter is None

    async def clients(self, count):
        """Some tasks at a time on one client with a small buffer, so that they wait for room too."""
        async with Client(self.driver, buffer_tasks=3, buffer_timeout=None) as client:
            while self.cancelled["enqueue"] + self.cancelled["wait"] < count:
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(self.enqueue_and_wait, client)
            assert not client._waiting
            assert not client._wanting_room
            await client.flush(PATIENCE)

    async def workers(self, count):
        for _ in range(count):
            assert await cancel_at_random(self.rng, self.worker().run, 400) is CANCELLED
            self.cancelled["worker"] += 1

    async def drain(self):
        """Let a worker that is not cancelled do what is left."""
        self.all_ran = trio.Event()
        if self.ran >= self.taken:
            return
        worker = self.worker()
        async with worker.running():
            with trio.fail_after(PATIENCE):
                await self.all_ran.wait()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_cancellations(server, seed):
    driver = TrioDriver(server.url)
    storm = Storm(driver, f"storm-trio-{seed}", seed)

    async def main():
        with trio.fail_after(2 * PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storm.clients, 900)
                nursery.start_soon(storm.workers, 150)
            await storm.drain()
        assert trio.lowlevel.current_task().child_nurseries == []

    threads, before = set(threading.enumerate()), sockets()
    trio.run(main)
    gc.collect()
    assert storm.cancelled.total() >= 1000
    assert min(storm.cancelled.values()) >= 150, storm.cancelled
    assert storm.ran == storm.taken, "a cancelled enqueue was taken after all, or a taken task is lost"
    assert set(threading.enumerate()) <= threads
    assert sockets() <= before
    keys = queue_keys(storm.queue)
    assert ask(driver, "XLEN", keys.stream) == 0
    assert ask(driver, "XPENDING", keys.stream, GROUP)[0] == 0


def test_a_cancelled_block_of_everything_leaves_nothing_behind(server):
    """The whole program is cancelled at random moments, clients and workers together."""
    driver = TrioDriver(server.url)
    storm = Storm(driver, "storm-trio-blocks", 3)

    async def program():
        async with storm.worker().running(), Client(driver) as client:
            while True:
                handle = await client.enqueue_tracked(storm.queue, b"x")
                storm.taken.add(handle.id)
                await handle.wait()

    async def main():
        with trio.fail_after(2 * PATIENCE):
            for _ in range(50):
                await cancel_at_random(storm.rng, program, 400)
            await storm.drain()

    threads, before = set(threading.enumerate()), sockets()
    trio.run(main)
    gc.collect()
    assert storm.ran == storm.taken
    assert set(threading.enumerate()) <= threads
    assert sockets() <= before
    assert ask(driver, "XPENDING", queue_keys(storm.queue).stream, GROUP)[0] == 0
