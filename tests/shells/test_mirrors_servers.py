"""The asyncio and trio shells on every driver of theirs, and all three shells together on one queue."""

import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest
import trio

import streamfleet.asyncio
import streamfleet.sync
import streamfleet.trio
from streamfleet.embedded import EmbeddedServer
from streamfleet.fake import FakeDriver
from streamfleet.memory import MemoryDriver
from streamfleet.memory.model import ModelServer
from streamfleet.redis import RedisDriver
from streamfleet.trio_driver import TrioDriver
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.keys import GROUP, queue_keys

WAIT = 30.0


class AsyncioWorld:
    shell = streamfleet.asyncio
    Event = asyncio.Event
    sleep = staticmethod(asyncio.sleep)

    @staticmethod
    def run(main):
        async def alone():
            async with asyncio.timeout(WAIT):
                await main()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(alone())


class TrioWorld:
    shell = streamfleet.trio
    Event = trio.Event
    sleep = staticmethod(trio.sleep)

    @staticmethod
    def run(main):
        async def bounded():
            with trio.fail_after(WAIT):
                await main()

        trio.run(bounded)


WORLDS = {"asyncio": AsyncioWorld, "trio": TrioWorld}
DRIVERS = [
    ("asyncio", RedisDriver),
    ("asyncio", ValkeyDriver),
    ("asyncio", FakeDriver),
    ("asyncio", MemoryDriver),
    ("trio", TrioDriver),
    ("trio", FakeDriver),
    ("trio", MemoryDriver),
]
OVER_A_SOCKET = [(world, kind) for world, kind in DRIVERS if kind not in (FakeDriver, MemoryDriver)]


def make(kind, server):
    if kind is FakeDriver:
        return FakeDriver()
    if kind is MemoryDriver:
        return MemoryDriver(server=ModelServer(lambda: time.time_ns() // 1_000_000))
    return kind(server.url)


def ask(server, *command):
    connection = RedisDriver(server.url).connect(5)
    try:
        return connection.exchange([command], 5)[0]
    finally:
        connection.close()


@pytest.mark.parametrize(("name", "kind"), DRIVERS)
def test_tasks_travel_there_and_back(server, name, kind):
    world, driver = WORLDS[name], make(kind, server)
    queue = f"travel-{name}-{kind.name}"

    async def main():
        worker = world.shell.Worker(driver, concurrency=5)

        @worker.handler(queue)
        async def handle(task):
            await world.sleep(0)
            if task.text == "7" and task.attempt == 1:
                raise ValueError("once")
            return task.text * 2

        async with worker.running(), world.shell.Client(driver) as client:
            handles = [await client.enqueue_tracked(queue, str(n), retry_delay=0) for n in range(200)]
            results = [await handle.wait() for handle in handles]
            assert results == [str(n).encode() * 2 for n in range(200)]
            await client.enqueue_many(queue, ["x"] * 1000)
            await client.flush()
        assert worker.in_flight == 0

    world.run(main)


@pytest.mark.parametrize(("name", "kind"), OVER_A_SOCKET)
def test_a_server_that_is_killed_and_comes_back_loses_nothing(name, kind, caplog):
    world = WORLDS[name]
    caplog.set_level("WARNING", "streamfleet")
    with EmbeddedServer(appendonly=True) as own:
        driver = kind(own.url)
        ran = []

        async def main():
            worker = world.shell.Worker(driver, concurrency=5)

            @worker.handler("q")
            async def handle(task):
                ran.append(task.text)

            async with worker.running(), world.shell.Client(driver) as client:
                handles = [await client.enqueue_tracked("q", f"before-{n}") for n in range(100)]
                await handles[0].wait()
                own.kill()
                handles += [await client.enqueue_tracked("q", f"during-{n}") for n in range(100)]
                assert not handles[-1].done
                own.restart()
                for handle_ in handles:
                    await handle_.wait()
                assert client.buffered == 0

        world.run(main)
        assert {f"{when}-{n}" for when in ("before", "during") for n in range(100)} == set(ran)
        assert ask(own, "XLEN", queue_keys("q").stream) == 0


@pytest.mark.parametrize(("name", "kind"), OVER_A_SOCKET)
def test_a_program_may_start_before_its_server(name, kind, tmp_path):
    world = WORLDS[name]
    with EmbeddedServer(appendonly=False, directory=tmp_path) as own:
        driver = kind(own.url)
        own.kill()

        async def main():
            worker = world.shell.Worker(driver)

            @worker.handler("q")
            async def handle(task):
                return task.data

            async with worker.running(), world.shell.Client(driver) as client:
                early = await client.enqueue_tracked("q", "early")
                with pytest.raises(TimeoutError):
                    await early.wait(0.1)
                own.restart()
                assert await early.wait() == b"early"

        world.run(main)


@pytest.mark.parametrize(("name", "kind"), OVER_A_SOCKET)
def test_ctrl_c_gives_back_what_runs_and_comes_out(server, name, kind):
    """A real SIGINT, while a handler runs and the main task waits."""
    world, driver = WORLDS[name], kind(server.url)
    queue = f"ctrl-c-{name}-{kind.name}"
    stopped = []

    async def main():
        worker = world.shell.Worker(driver)

        @worker.handler(queue)
        async def handle(task):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await world.sleep(WAIT)
            except BaseException:
                stopped.append(task.cancel_reason)
                raise

        async with world.shell.Client(driver) as client:
            await client.enqueue(queue, "x")
            await client.flush()
        await worker.run()

    def interrupted(error):
        if isinstance(error, BaseExceptionGroup):
            return any(interrupted(inner) for inner in error.exceptions)
        return isinstance(error, KeyboardInterrupt)

    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as caught:
        world.run(main)
    assert interrupted(caught.value)
    keys = queue_keys(queue)
    assert stopped in (["the worker stops"], [""])
    [(_, _, idle, _)] = ask(server, "XPENDING", keys.stream, GROUP, "-", "+", 10)
    assert idle > 86_400_000, "it is free to be taken at once"


WORK = 0.01
"""Seconds for each task: with none at all, the first worker to wake would do everything."""


def test_all_three_shells_work_one_queue_together(server):
    """Clients and workers of each shell together, on all their drivers: each task runs once; all is told."""
    queue, each = "fleet", 60
    names = ["sync-redis", "sync-valkey", "asyncio", "trio"]
    ran, done = [], {name: {} for name in names}
    everyone_ready = threading.Barrier(len(names), timeout=WAIT)
    everyone_done = threading.Barrier(len(names), timeout=WAIT)

    def result(shell, task):
        ran.append((shell, task.text))
        return f"{task.text} by {shell}"

    def in_threads(name, worker_driver, client_driver):
        worker = streamfleet.sync.Worker(worker_driver, concurrency=2)

        @worker.handler(queue)
        def handle(task):
            work_time.wait(WORK)
            return result(name, task)

        with worker.running(), streamfleet.sync.Client(client_driver) as client:
            everyone_ready.wait()
            handles = [client.enqueue_tracked(queue, f"{name}-{n}") for n in range(each)]
            done[name].update({n: handle.wait(WAIT) for n, handle in enumerate(handles)})
            everyone_done.wait()

    async def work(world, shell, worker_driver, client_driver, wait):
        worker = world.shell.Worker(worker_driver, concurrency=2)

        @worker.handler(queue)
        async def handle(task):
            await world.sleep(WORK)
            return result(shell, task)

        async with worker.running(), world.shell.Client(client_driver) as client:
            await wait(everyone_ready.wait)
            handles = [await client.enqueue_tracked(queue, f"{shell}-{n}") for n in range(each)]
            done[shell].update({n: await handle.wait(WAIT) for n, handle in enumerate(handles)})
            await wait(everyone_done.wait)

    def with_redis():
        in_threads("sync-redis", RedisDriver(server.url), ValkeyDriver(server.url))

    def with_valkey():
        in_threads("sync-valkey", ValkeyDriver(server.url), RedisDriver(server.url))

    def in_asyncio():
        drivers = ValkeyDriver(server.url), RedisDriver(server.url)
        asyncio.run(work(AsyncioWorld, "asyncio", *drivers, asyncio.to_thread))

    def in_trio():
        trio.run(work, TrioWorld, "trio", TrioDriver(server.url), TrioDriver(server.url), trio.to_thread.run_sync)

    work_time = threading.Event()
    failures = []

    def guarded(run):
        try:
            run()
        except BaseException as error:
            failures.append(error)
            with contextlib.suppress(threading.BrokenBarrierError):
                everyone_ready.abort()
                everyone_done.abort()

    runs = with_redis, with_valkey, in_asyncio, in_trio
    threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * WAIT)
    assert failures == []
    tasks = [f"{name}-{n}" for name in names for n in range(each)]
    assert sorted(text for _, text in ran) == sorted(tasks)
    for shell, results in done.items():
        assert set(results) == set(range(each))
        assert all(value.decode().startswith(f"{shell}-{n} by ") for n, value in results.items())
    assert {shell for shell, _ in ran} == set(names)
    assert ask(server, "XLEN", queue_keys(queue).stream) == 0
