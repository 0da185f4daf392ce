"""Plain handlers in threads, and the watchdog over those that should have been: in real time, in both shells."""

import asyncio
import functools
import logging
import re
import sys
import threading
import time

import pytest
import trio

import streamfleet.asyncio
import streamfleet.trio
from streamfleet import TaskFailed
from streamfleet.watchdog import Watchdog

WAIT = 20.0


class AsyncioWorld:
    Client = streamfleet.asyncio.Client
    Worker = streamfleet.asyncio.Worker
    Event = asyncio.Event
    sleep = staticmethod(asyncio.sleep)
    in_thread = staticmethod(asyncio.to_thread)

    @staticmethod
    async def together(*functions):
        async with asyncio.TaskGroup() as group:
            for function in functions:
                group.create_task(function())

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
    in_thread = staticmethod(trio.to_thread.run_sync)

    @staticmethod
    async def together(*functions):
        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function)


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
            await until(world, lambda: any("3 handlers hang" in r.getMessage() for r in caplog.records))
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


def test_ctrl_c_in_a_thread_ends_the_program_in_order_and_gives_the_entry_back(world, driver, caplog):
    """Python delivers it to the main thread only; a handler can raise it all the same."""
    worker = world.Worker(driver, name="w", concurrency=1)

    @worker.handler("q", threads=True)
    def handle(task):
        raise KeyboardInterrupt

    async def main():
        async with world.Client(driver) as client, worker.running():
            await client.enqueue("q", "x")
            await world.sleep(WAIT)

    with pytest.raises(KeyboardInterrupt):
        world.run(main)
    assert worker.counts["released"] == 1
    assert not [record for record in caplog.records if record.name == "asyncio"]


@in_world
async def test_threads_end_with_their_worker_and_none_that_hangs_holds_up_the_program(world, driver):
    release, started = threading.Event(), threading.Event()
    hanging, before = [], set(threading.enumerate())
    worker = world.Worker(driver, name="w", concurrency=2)

    @worker.handler("q", threads=True)
    def handle(task):
        if task.text == "hang":
            hanging.append(threading.current_thread())
            started.set()
            release.wait(WAIT)
        return str(threading.get_ident())

    try:
        async with worker.running(), world.Client(driver) as client:
            used = {await (await client.enqueue_tracked("q", "x")).wait(WAIT) for _ in range(5)}
            assert world is TrioWorld or len(used) == 1, "a free thread is used before another one is started"
            await client.enqueue("q", "hang")
            await until(world, started.is_set)
            await worker.stop(0)
        [thread] = hanging
        assert thread.is_alive()
        assert thread.daemon, "the interpreter would wait for it"
    finally:
        release.set()
    if world is AsyncioWorld:  # those of trio stay for a while, for whoever needs them next
        await until(world, lambda: set(threading.enumerate()) <= before)


# ---- the watchdog ---------------------------------------------------------------------------------------


@pytest.fixture
def warnings_of_the_watchdog():
    """A log handler with an event for the first warning, and all of them."""

    class Listener(logging.Handler):
        def __init__(self):
            super().__init__()
            self.first = threading.Event()
            self.texts = []

        def emit(self, record):
            if "blocked the event loop" in record.getMessage():
                self.texts.append(record.getMessage())
                self.first.set()

    listener = Listener()
    logging.getLogger("streamfleet").addHandler(listener)
    yield listener
    logging.getLogger("streamfleet").removeHandler(listener)


def looks(worker, number):
    """Set after so many more looks of the worker's watchdog."""
    watchdog, done = worker._run._watchdog, threading.Event()
    look, left = watchdog._look, [number]

    def counted(*times):
        look(*times)
        left[0] -= 1
        if not left[0]:
            done.set()

    watchdog._look = counted
    return done


@in_world
async def test_a_handler_that_blocks_the_loop_is_named_with_its_stack(world, driver, warnings_of_the_watchdog):
    warned = warnings_of_the_watchdog.first
    worker = world.Worker(driver, name="w", lease=0.6)

    def a_blocking_call():
        return warned.wait(WAIT)

    @worker.handler("q")
    async def the_culprit(task):
        await world.sleep(0)
        return str(a_blocking_call())

    threads = threading.active_count()
    async with worker.running(), world.Client(driver) as client:
        handle = await client.enqueue_tracked("q", "x", max_retries=0)
        await until(world, warned.is_set)
        await handle.wait(WAIT)
    [text] = warnings_of_the_watchdog.texts
    found = re.search(r"the_culprit of queue 'q' has blocked the event loop for (\d+\.\d) s; after 0\.6 s", text)
    assert found, text
    assert float(found[1]) >= 0.2, "a third of the lease"
    assert "a_blocking_call" in text
    assert threading.active_count() == threads


@pytest.mark.parametrize("error", [KeyError("odd"), SystemExit(3)])
@in_world
async def test_the_watch_goes_on_though_the_filter_of_a_log_raises(
    world, driver, warnings_of_the_watchdog, capfd, error
):
    """It ended the watchdog's thread: the second blockage was not told."""
    asked = [threading.Event(), threading.Event()]
    worker = world.Worker(driver, name="w", lease=0.6)

    def refuse(record):
        if "blocked the event loop" in record.getMessage():
            next(event for event in asked if not event.is_set()).set()
            raise error
        return True

    @worker.handler("q")
    async def handle(task):
        assert asked[int(task.text)].wait(WAIT)

    logger = logging.getLogger("streamfleet")
    logger.addFilter(refuse)
    try:
        async with worker.running(), world.Client(driver) as client:
            for number in "01":
                await (await client.enqueue_tracked("q", number)).wait(WAIT)
    finally:
        logger.removeFilter(refuse)
    assert not warnings_of_the_watchdog.texts
    assert isinstance(error, SystemExit) or "KeyError: 'odd'" in capfd.readouterr().err


@in_world
async def test_a_loop_blocked_by_others_is_not_blamed_on_a_handler(world, driver, warnings_of_the_watchdog):
    worker = world.Worker(driver, name="w", lease=0.6)

    @worker.handler("q")
    async def handle(task): ...

    def a_blocking_call():
        assert warnings_of_the_watchdog.first.wait(WAIT)
        assert looks(worker, 4).wait(WAIT)

    async with worker.running():
        a_blocking_call()
    [text] = warnings_of_the_watchdog.texts
    assert "something else than a handler" in text
    assert "a_blocking_call" in text
    assert "queue" not in text


@in_world
async def test_a_task_that_a_handler_has_started_and_that_blocks_the_loop_is_shown(
    world, driver, warnings_of_the_watchdog
):
    worker = world.Worker(driver, name="w", lease=0.6)

    async def a_blocking_child():
        warnings_of_the_watchdog.first.wait(WAIT)

    @worker.handler("q")
    async def handle(task):
        await world.together(a_blocking_child)

    async with worker.running(), world.Client(driver) as client:
        handle_ = await client.enqueue_tracked("q", "x", max_retries=9)
        await handle_.wait(WAIT)
    [text] = warnings_of_the_watchdog.texts
    assert "a task that one has started, has blocked the event loop" in text
    assert "a_blocking_child" in text


def watchdog_of_this_thread():
    """Not started, with a lease of 12 s: it looks each second, and warns after four."""
    return Watchdog("w", 12.0, (lambda: None).__code__, str)


def test_a_process_that_was_suspended_is_not_blamed(warnings_of_the_watchdog):
    watchdog = watchdog_of_this_thread()
    start, used = watchdog._last_beat, watchdog._used
    for second in (1, 2, 3, 60, 61, 62, 63, 64):  # stopped, or starved by others, for most of a minute
        watchdog._look(start + second, used + min(second, 4) / 10)
        assert not warnings_of_the_watchdog.texts
    watchdog._look(start + 64.1, used + 0.4)
    [text] = warnings_of_the_watchdog.texts
    assert "for 4.1 s" in text


def test_a_call_that_holds_the_interpreter_for_long_is_blamed_though_nobody_could_look(warnings_of_the_watchdog):
    watchdog = watchdog_of_this_thread()
    watchdog._look(watchdog._last_beat + 60, watchdog._used + 55)
    [text] = warnings_of_the_watchdog.texts
    assert "for 60.0 s" in text


@in_world
async def test_a_loop_that_waits_is_not_blamed_though_its_beat_is_late(world, driver, warnings_of_the_watchdog):
    watchdog = watchdog_of_this_thread()
    loop_thread = threading.get_ident()

    def look_while_it_waits():
        deadline = time.monotonic() + WAIT
        while sys._current_frames()[loop_thread].f_code.co_name not in ("select", "get_events"):
            assert time.monotonic() < deadline
        for second in range(1, 8):
            watchdog._look(watchdog._last_beat + second, watchdog._used)

    await world.in_thread(look_while_it_waits)
    assert not warnings_of_the_watchdog.texts
