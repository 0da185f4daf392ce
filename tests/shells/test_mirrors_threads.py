"""Plain handlers in threads, and the watchdog over those that should have been: in real time, in both shells."""

import asyncio
import functools
import logging
import threading
import time

import pytest
import trio

import streamfleet.asyncio
import streamfleet.trio
from streamfleet import TaskFailed

WAIT = 20.0


class AsyncioWorld:
    Client = streamfleet.asyncio.Client
    Worker = streamfleet.asyncio.Worker
    Event = asyncio.Event
    sleep = staticmethod(asyncio.sleep)

    @staticmethod
    def run(main):
        async def alone():
            await main()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(alone())


class TrioWorld:
    Client = streamfleet.trio.Client
    Worker = streamfleet.trio.Worker
    Event = trio.Event
    sleep = staticmethod(trio.sleep)
    run = staticmethod(trio.run)


@pytest.fixture(params=[AsyncioWorld, TrioWorld], ids=["asyncio", "trio"])
def world(request):
    return request.param


def in_world(test):
    @functools.wraps(test)
    def run(world, **fixtures):
        world.run(functools.partial(test, world=world, **fixtures))

    return run


async def until(world, condition):
    """Poll a condition, and fail with it when it does not come."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"never: {condition}"
        await world.sleep(0.002)


@in_world
async def test_plain_handlers_run_in_threads_side_by_side(world, driver):
    """Each waits for the other, and for the event loop: had they not threads of their own, none would end."""
    loop_thread = threading.current_thread()
    barrier = threading.Barrier(3)
    worker = world.Worker(driver, concurrency=2)

    @worker.handler("q", threads=True)
    def handle(task):
        assert threading.current_thread() is not loop_thread
        barrier.wait(WAIT)
        return task.text.upper()

    async with worker.running(), world.Client(driver) as client:
        handles = [await client.enqueue_tracked("q", text) for text in "ab"]
        await until(world, lambda: barrier.n_waiting == 2)
        barrier.wait(WAIT)
        assert [await handle.wait(WAIT) for handle in handles] == [b"A", b"B"]


@in_world
async def test_whatever_a_threads_handler_raises_reaches_its_task(world, driver):
    worker = world.Worker(driver, concurrency=1)
    errors = {"stop": StopIteration("odd"), "exit": SystemExit(1), "value": ValueError("odd")}

    @worker.handler("q", threads=True)
    def handle(task):
        raise errors[task.text]

    async with worker.running(), world.Client(driver) as client:
        for name, error in errors.items():
            with pytest.raises(TaskFailed, match=type(error).__name__):
                await (await client.enqueue_tracked("q", name, max_retries=0)).wait(WAIT)


@in_world
async def test_threads_that_hang_after_their_timeout_do_not_take_the_places_of_others(world, driver, caplog):
    release = threading.Event()
    hanging = []
    worker = world.Worker(driver, name="w", concurrency=1, lease=5)

    @worker.handler("q", threads=True, timeout=0.02)
    def handle(task):
        if task.text == "hang":
            hanging.append(task)
            release.wait(WAIT)
            return "too late"
        return "quick"

    try:
        async with worker.running(), world.Client(driver) as client:
            for _ in range(2):
                with pytest.raises(TaskFailed, match=r"timeout after 0\.02 s"):
                    await (await client.enqueue_tracked("q", "hang", max_retries=0)).wait(WAIT)
            assert len(hanging) == 2
            assert all(task.cancelled for task in hanging)
            assert await (await client.enqueue_tracked("q", "x", max_retries=9)).wait(WAIT) == b"quick"
            third = await client.enqueue_tracked("q", "hang", max_retries=0)
            with pytest.raises(TaskFailed, match="timeout"):
                await third.wait(WAIT)
            await until(world, lambda: any("2 handlers hang" in r.getMessage() for r in caplog.records))
            release.set()
            assert await (await client.enqueue_tracked("q", "x", max_retries=9)).wait(WAIT) == b"quick"
    finally:
        release.set()


@in_world
async def test_a_thread_is_waited_for_without_contact_and_left_to_itself_once_others_own_its_task(
    world, driver, settle_elsewhere
):
    release, started = threading.Event(), threading.Event()
    held = []
    worker = world.Worker(driver, name="w", concurrency=1, lease=0.4)

    @worker.handler("q", threads=True)
    def handle(task):
        if task.text == "hang":
            held.append(task)
            started.set()
            release.wait(WAIT)
        return task.text

    try:
        async with worker.running(), world.Client(driver) as client:
            await client.enqueue("q", "hang")
            await until(world, started.is_set)
            driver.make_unavailable()
            await until(world, lambda: held[0].cancelled)
            assert "no contact" in held[0].cancel_reason
            settle_elsewhere()
            driver.make_available()
            quick = await client.enqueue_tracked("q", "quick")
            assert await quick.wait(WAIT) == b"quick", "its place was given to others"
            assert held[0].cancel_reason == "others own the task now"
            release.set()
            await until(world, lambda: worker.counts.get("late"))
    finally:
        release.set()
    assert worker.counts["lost"] == 1
    assert worker.counts["late"] == 1


@in_world
async def test_a_handler_that_blocks_the_loop_is_named_with_its_stack(world, driver, caplog):
    caplog.set_level(logging.WARNING, "streamfleet")
    warned = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record):
            if "blocked the event loop" in record.getMessage():
                warned.set()

    listener = Listener()
    logging.getLogger("streamfleet").addHandler(listener)
    worker = world.Worker(driver, name="w", lease=0.6)

    def a_blocking_call():
        return warned.wait(WAIT)

    @worker.handler("q")
    async def the_culprit(task):
        await world.sleep(0)
        return str(a_blocking_call())

    threads = threading.active_count()
    try:
        async with worker.running(), world.Client(driver) as client:
            handle = await client.enqueue_tracked("q", "x", max_retries=0)
            await until(world, lambda: warned.is_set())
            await handle.wait(WAIT)
    finally:
        logging.getLogger("streamfleet").removeHandler(listener)
    [record] = [r for r in caplog.records if "blocked the event loop" in r.getMessage()]
    text = record.getMessage()
    assert "the_culprit of queue 'q' has blocked the event loop for" in text
    assert "a_blocking_call" in text
    assert threading.active_count() == threads


@in_world
async def test_a_loop_blocked_by_others_is_not_blamed_on_a_handler(world, driver, caplog):
    worker = world.Worker(driver, name="w", lease=0.2)

    @worker.handler("q")
    async def handle(task): ...

    async with worker.running():
        looks = 0
        watchdog = worker._run._watchdog
        look = watchdog._look
        looked = threading.Event()

        def counted(now):
            nonlocal looks
            looks += 1
            look(now)
            if looks == 8:  # eight twelfths of a lease
                looked.set()

        watchdog._look = counted
        assert looked.wait(WAIT)
    assert not any("blocked the event loop" in r.getMessage() for r in caplog.records)
