"""A thousand cancellations at random moments, on a real server: nothing hangs, leaks or stays unknown."""

import gc
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


def threads_of_ours():
    """All but those that trio keeps for a while, for whoever needs them next."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


def ask(driver, *command):
    connection = RedisDriver(driver.url).connect(5)
    try:
        return connection.exchange([command], 5)[0]
    finally:
        connection.close()


CANCELLED = object()

CALLS = 900
"""Calls of clients that are cancelled."""
CLIENTS = 8
"""They call at the same time."""

TURNS = {"start": 8, "work": 400, "drain": 60}
"""Of a worker's life, with about how many turns of the loop each part takes."""


async def cancel_at_random(rng, work, most_turns, first=None):
    """Start ``work``, let trio turn a random number of times, cancel it. Returns its result, or CANCELLED.

    ``first`` is awaited after the start.
    """
    result = CANCELLED

    async def run(scope):
        nonlocal result
        with scope:
            result = await work()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(run, scope)
        if first is not None:
            await first()
        for _ in range(rng.randrange(most_turns)):
            await trio.lowlevel.checkpoint()
        scope.cancel()
    return result


class Storm:
    """Tasks that were taken, and tasks that ran."""

    def __init__(self, driver, queue, seed):
        self.driver = driver
        self.queue = queue
        self.queues = [queue, queue + "-threads"]
        self.rng = random.Random(seed)
        self.taken = set()
        self.ran = set()
        self.calm = False
        self.cancelled = Counter()

    def worker(self):
        tick = threading.Event()
        worker = Worker(self.driver, concurrency=4, lease=5.0)

        @worker.handler(self.queue)
        async def handle(task):
            for _ in range(self.rng.randrange(12)):
                await trio.lowlevel.checkpoint()
            if self.rng.random() < 0.05 and not self.calm:
                await trio.sleep_forever()  # until it is cancelled
            self.ran.add(task.id)

        @worker.handler(self.queue + "-threads", threads=True)
        def handle_in_thread(task):
            if int(task.text) % 10 == 0:
                while not self.calm and not task.cancelled:
                    tick.wait(0.001)
            self.ran.add(task.id)

        return worker

    async def enqueue_and_wait(self, client):
        """One enqueue, and one wait for what it has taken, each cancelled unless it is done before.

        How long each takes, and so how often it is cancelled, depends on the machine: the one that is ahead is
        left out until the other has caught up.
        """
        enqueue = self.rng.choice([client.enqueue, client.enqueue_tracked])
        order = self.rng.choice(self.queues), str(self.rng.randrange(1000))
        ahead = self.cancelled["enqueue"] - self.cancelled["wait"]
        if ahead < CLIENTS:
            handle = await cancel_at_random(self.rng, partial(enqueue, *order), 30)
        else:
            handle = await enqueue(*order)
        if handle is CANCELLED:
            self.cancelled["enqueue"] += 1
            return
        self.taken.add(handle.id)
        if ahead <= -CLIENTS:
            return
        wait = handle.wait if handle._submission.tracked else handle.accepted
        if await cancel_at_random(self.rng, wait, 60) is CANCELLED:
            self.cancelled["wait"] += 1
        assert handle._submission.waiter is None

    async def clients(self, count):
        """Some tasks at a time on one client with a small buffer, so that they wait for room too."""
        async with Client(self.driver, buffer_tasks=3, buffer_timeout=None) as client:
            while self.cancelled["enqueue"] + self.cancelled["wait"] < count:
                async with trio.open_nursery() as nursery:
                    for _ in range(CLIENTS):
                        nursery.start_soon(self.enqueue_and_wait, client)
            assert not client._waiting
            assert not client._wanting_room
            await client.flush(PATIENCE)

    async def begin_drain(self, worker):
        """Let the worker have something to do, and stop it."""
        for _ in range(self.rng.randrange(200)):
            await trio.lowlevel.checkpoint()
        worker.request_stop(self.rng.choice([None, 0.0, 0.01]))

    async def workers(self, count):
        """Each is cancelled while it starts, works or drains."""
        while (part := min(TURNS, key=lambda part: self.cancelled[part])) and self.cancelled[part] < count:
            worker = self.worker()
            first = partial(self.begin_drain, worker) if part == "drain" else None
            ended = await cancel_at_random(self.rng, worker.run, TURNS[part], first)
            if ended is CANCELLED:
                self.cancelled[part] += 1
            else:
                assert part == "drain"
            assert worker.in_flight == 0

    def drained(self):
        """Threads that were left to themselves may have run what was given back, and is to be run again."""
        lengths = (ask(self.driver, "XLEN", queue_keys(queue).stream) for queue in self.queues)
        return self.ran >= self.taken and not any(lengths)

    async def drain(self):
        """Let a worker that is not cancelled do what is left."""
        self.calm = True
        async with self.worker().running():
            while not self.drained():  # noqa: ASYNC110  what it waits for is in the server
                await trio.sleep(0.005)  # between two looks at the condition


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_cancellations(server, eventually, sockets, seed):
    driver = TrioDriver(server.url)
    storm = Storm(driver, f"storm-trio-{seed}", seed)

    async def main():
        with trio.fail_after(2 * PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storm.clients, CALLS)
                nursery.start_soon(storm.workers, 60)
            await storm.drain()
        assert trio.lowlevel.current_task().child_nurseries == []

    threads, before = threads_of_ours(), sockets()
    trio.run(main)
    gc.collect()
    assert storm.cancelled.total() >= 1000
    assert min(storm.cancelled.values()) >= 60, storm.cancelled
    # Of two that are `CLIENTS` apart each client may cancel one more of the kind that is ahead.
    assert abs(storm.cancelled["enqueue"] - storm.cancelled["wait"]) < 2 * CLIENTS
    assert storm.ran == storm.taken, "a cancelled enqueue was taken after all, or a taken task is lost"
    eventually(lambda: threads_of_ours() <= threads)
    assert sockets() <= before
    for queue in storm.queues:
        keys = queue_keys(queue)
        assert ask(driver, "XLEN", keys.stream) == 0
        assert ask(driver, "XPENDING", keys.stream, GROUP)[0] == 0


def test_a_cancelled_block_of_everything_leaves_nothing_behind(server, eventually, sockets):
    """The whole program is cancelled at random moments, clients and workers together."""
    driver = TrioDriver(server.url)
    storm = Storm(driver, "storm-trio-blocks", 3)

    async def program():
        async with storm.worker().running(), Client(driver) as client:
            while True:
                handle = await client.enqueue_tracked(storm.rng.choice(storm.queues), b"1")
                storm.taken.add(handle.id)
                await handle.wait()

    async def main():
        with trio.fail_after(2 * PATIENCE):
            for _ in range(50):
                await cancel_at_random(storm.rng, program, 400)
            await storm.drain()

    threads, before = threads_of_ours(), sockets()
    trio.run(main)
    gc.collect()
    assert storm.ran == storm.taken
    eventually(lambda: threads_of_ours() <= threads)
    assert sockets() <= before
    for queue in storm.queues:
        assert ask(driver, "XPENDING", queue_keys(queue).stream, GROUP)[0] == 0
