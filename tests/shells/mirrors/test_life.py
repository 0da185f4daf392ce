"""Cancellation from outside, and the life of clients and workers, in asyncio and trio alike."""

import functools
import logging

import pytest

from streamfleet import BufferFull, TaskCancelled
from streamfleet.errors import Closed, InvalidHandler, UsageError, WrongDriver, WrongKeyType
from streamfleet.fake import FakeDriver
from streamfleet.memory import MemoryDriver
from streamfleet.redis import RedisDriver
from streamfleet.trio_driver import TrioDriver
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.keys import queue_keys
from streamfleet_core.state import IllegalTransition
from streamfleet_core.timekeeping import Timekeeper

WAIT = 60.0  # virtual seconds


# ---- cancellation from outside --------------------------------------------------------------------------


async def test_a_cancelled_worker_gives_everything_back_at_once(world, driver, worker_of, pending, echo):
    cancelled = []

    async def handle(task):
        try:
            await world.sleep(10_000)
        except world.Cancelled:
            cancelled.append(task.id)
            raise

    worker = worker_of(world, driver, handle, concurrency=3)
    async with world.Client(driver) as client:
        await client.enqueue_many("q", ["x"] * 10)
        assert not await world.within(5, worker.run)
        assert 5 <= world.now() < 6
    assert len(cancelled) == 3
    assert all(idle > 86_400_000 for _, idle in pending(driver))
    assert worker.counts["released"] >= 3
    async with worker_of(world, driver, echo).running() as other:
        while other.counts.get("completed", 0) < 10:
            await world.sleep(0.1)
    assert pending(driver) == []


async def test_a_cancelled_worker_ends_in_bounded_time_though_the_server_is_gone(world, driver, worker_of):
    async def handle(task):
        await world.sleep(10_000)

    worker = worker_of(world, driver, handle, lease=60)

    async def lose_the_server():
        async with world.Client(driver) as client:
            await client.enqueue("q", "x")
            await client.flush()
        while not worker.in_flight:
            await world.sleep(0.1)
        driver.make_unavailable()

    async def work():
        await world.together(worker.run, lose_the_server)

    assert not await world.within(10, work)
    assert 10 <= world.now() < 16


async def test_a_cancelled_client_sends_what_it_has_and_a_helpless_one_gives_up_soon(world, driver, caplog, ask):
    async def enqueue_and_hang():
        async with world.Client(driver) as client:
            await client.enqueue_many("q", ["x"] * 50)
            await world.sleep(10_000)

    assert not await world.within(5, enqueue_and_hang)
    assert ask(driver, "XLEN", queue_keys("q").stream) == 50
    assert not any("not sent" in record.getMessage() for record in caplog.records)

    async def enqueue_into_the_void():
        driver.make_unavailable()
        await enqueue_and_hang()

    before = world.now()
    assert not await world.within(5, enqueue_into_the_void)
    assert world.now() - before < 5 + 2 + 1.5
    assert any("closed with 50 tasks not sent" in record.getMessage() for record in caplog.records)


async def test_a_cancelled_wait_leaves_nothing_behind(world, driver, worker_of, echo):
    async with world.Client(driver) as client:
        handle = await client.enqueue_tracked("q", "x")
        assert not await world.within(1, handle.wait)
        assert handle._submission.waiter is None
        assert not client._waiting
        async with worker_of(world, driver, echo).running():
            assert await handle.wait(WAIT) == b"X"


async def test_a_cancelled_enqueue_has_taken_nothing_and_passes_its_place_on(world, driver, ask):
    driver.make_unavailable()
    async with world.Client(driver, buffer_tasks=1, buffer_timeout=None) as client:
        await client.enqueue("q", "first")
        order = []

        async def one(name):
            await client.enqueue("q", name)
            order.append(name)

        async def others():
            await world.together(*(functools.partial(one, name) for name in ("b", "c")))

        async def come_back():
            assert not await world.within(1, one, "a")
            assert client.buffered == 1
            driver.make_available()

        await world.together(others, come_back)
        await client.flush(WAIT)
        assert sorted(order) == ["b", "c"]
    assert ask(driver, "XLEN", queue_keys("q").stream) == 3


async def test_a_cancelled_enqueue_many_says_how_many_it_has_taken(world, driver):
    driver.make_unavailable()
    notes = []
    async with world.Client(driver, buffer_tasks=7, buffer_timeout=None) as client:

        async def many():
            try:
                await client.enqueue_many("q", ["x"] * 20)
            except world.Cancelled as error:
                notes.extend(error.__notes__)
                raise

        assert not await world.within(1, many)
        assert client.buffered == 7
        assert "the first 7 tasks were taken" in notes[0]
        driver.make_available()


# ---- the life of clients and workers --------------------------------------------------------------------


async def test_client_and_worker_start_without_a_server(world, driver, worker_of, echo):
    driver.make_unavailable()
    async with worker_of(world, driver, echo).running(), world.Client(driver) as client:
        handle = await client.enqueue_tracked("q", "x")
        with pytest.raises(TimeoutError, match="not finished within 5 s; it is buffered"):
            await handle.wait(5)
        with pytest.raises(TimeoutError, match="1 tasks were not accepted within 5 s; last trouble"):
            await client.flush(5)
        driver.make_available()
        assert await handle.wait(WAIT) == b"X"


async def test_a_full_buffer_refuses_after_its_time(world, driver):
    driver.make_unavailable()
    async with world.Client(driver, buffer_tasks=2, buffer_timeout=3) as client:
        await client.enqueue_many("q", ["x", "y"])
        before = world.now()
        with pytest.raises(BufferFull):
            await client.enqueue("q", "z")
        assert 3 <= world.now() - before < 4
        driver.make_available()


async def test_closing_tells_those_who_wait(world, driver):
    driver.make_unavailable()
    client = world.Client(driver, buffer_tasks=1, buffer_timeout=None)
    told = []

    async def wait_for_outcome(handle):
        with pytest.raises((Closed, TaskCancelled)):
            await handle.wait()
        told.append("wait")

    async def wait_for_room():
        with pytest.raises(Closed):
            await client.enqueue("q", "y")
        told.append("room")

    async with client:
        handle = await client.enqueue_tracked("q", "x")

        async def close():
            await world.sleep(1)
            assert await client.close(timeout=2) == 1
            assert await client.close() == 1

        await world.together(functools.partial(wait_for_outcome, handle), wait_for_room, close)
        with pytest.raises(Closed):
            await client.enqueue("q", "z")
    assert sorted(told) == ["room", "wait"]


async def test_a_client_works_only_within_its_block(world, driver):
    client = world.Client(driver)
    with pytest.raises(UsageError, match="async with"):
        await client.enqueue("q", "x")
    async with client:
        await client.enqueue("q", "x")
    with pytest.raises(Closed):
        await client.enqueue("q", "x")
    with pytest.raises(UsageError, match="once"):
        await client.__aenter__()


async def test_the_error_of_a_block_comes_out_as_it_is(world, driver, worker_of, pending, echo):
    async def work():
        async with worker_of(world, driver, echo).running(), world.Client(driver) as client:
            await client.enqueue("q", "x")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await work()
    assert pending(driver) == []


async def test_a_defect_ends_the_block_with_itself(world, driver, worker_of, echo, monkeypatch):
    worker = worker_of(world, driver, echo)

    async def work():
        async with worker.running():
            await world.sleep(1)

            def defect(keeper, now):
                raise IllegalTransition("defect")

            monkeypatch.setattr(Timekeeper, "tick", defect)
            await world.sleep(10_000)

    with pytest.raises(IllegalTransition, match="defect"):
        await work()
    assert world.now() < 20


async def test_a_defect_of_the_client_ends_its_block(world, driver):
    def defect(link, now):
        raise IllegalTransition("defect")

    async def work():
        async with world.Client(driver) as client:
            client._machine.step = defect
            await client.enqueue("q", "x")
            await world.sleep(10_000)

    with pytest.raises(IllegalTransition, match="defect"):
        await work()


async def test_a_server_that_refuses_ends_the_worker_and_its_clients_waits(world, driver, worker_of, ask, echo):
    ask(driver, "SET", queue_keys("q").stream, "a string")
    with pytest.raises(WrongKeyType):
        await worker_of(world, driver, echo).run()
    worker = worker_of(world, driver, echo)
    seen = []

    async def work():
        async with worker.running():
            try:
                await worker.wait(WAIT)
            except WrongKeyType as error:
                seen.append(error)

    with pytest.raises(WrongKeyType):
        await work()
    assert len(seen) == 1


async def test_a_worker_can_run_again_and_not_twice(world, driver, worker_of, echo):
    worker = worker_of(world, driver, echo)
    consumers = set()
    for _ in range(2):
        async with worker.running(), world.Client(driver) as client:
            with pytest.raises(UsageError, match="already runs"):
                await worker.run()
            with pytest.raises(UsageError, match="too late"):
                worker.handler("other")(echo)
            assert await (await client.enqueue_tracked("q", "x")).wait(WAIT) == b"X"
            consumers.add(worker.consumer)
    assert len(consumers) == 2
    with pytest.raises(UsageError, match="no handlers"):
        await world.Worker(driver).run()


async def test_a_stop_that_was_requested_before_the_start_ends_it_at_once(world, driver, worker_of, ask):
    """It was forgotten: a signal that came a moment too early left the worker at work."""
    ran = []

    async def handle(task):
        ran.append(task.text)

    async with world.Client(driver) as client:
        handle_ = await client.enqueue_tracked("q", "x")
        await handle_.accepted(WAIT)
        worker = worker_of(world, driver, handle)
        worker.request_stop()
        before = world.now()
        assert await world.within(5, worker.run)
        assert world.now() == before
        assert ran == []
        assert worker.counts == {}
        assert ask(driver, "XINFO", "STREAM", queue_keys("q").stream)[1] == 1
        async with worker.running():  # that request was for one start
            assert not await worker.wait(1)
            await handle_.wait(WAIT)
        worker.request_stop()
        driver.make_unavailable()
        async with worker.running():
            assert await worker.wait(1)
        driver.make_available()
    assert ran == ["x"]


async def test_an_outage_is_told_once_and_survived(world, driver, caplog, worker_of, echo):
    caplog.set_level(logging.INFO, "streamfleet")
    async with worker_of(world, driver, echo).running(), world.Client(driver) as client:
        await (await client.enqueue_tracked("q", "x")).wait(WAIT)
        driver.make_unavailable()
        handles = [await client.enqueue_tracked("q", str(n)) for n in range(20)]
        await world.sleep(30)
        lost = [record.getMessage() for record in caplog.records if "no connection" in record.getMessage()]
        assert sorted(text.partition(":")[0] for text in lost) == ["client", "w"]
        driver.make_available()
        assert [await handle.wait(WAIT) for handle in handles] == [b"%d" % n for n in range(20)]
        await world.sleep(5)  # the links that were not needed for that come back too
        back = [record.getMessage() for record in caplog.records if "again after 3" in record.getMessage()]
        assert sorted(text.partition(":")[0] for text in back) == ["client", "w"]


# ---- what is refused ------------------------------------------------------------------------------------


def test_a_driver_of_another_world_is_refused_with_the_mend(world):
    wrong = {"asyncio": [TrioDriver()], "trio": [RedisDriver("redis://h"), ValkeyDriver("redis://h")]}
    for driver in wrong[world.name]:
        for kind in (world.Client, world.Worker):
            with pytest.raises(WrongDriver, match=f"not {world.name}: use .*Driver"):
                kind(driver)
    for odd in ("redis://localhost", None):
        with pytest.raises(WrongDriver, match="expected a driver"):
            world.Client(odd)
    world.Client(MemoryDriver())
    world.Client(FakeDriver())


def test_a_driver_for_threads_only_is_refused(world):
    class Threads:
        name = "threads"
        url = ""
        missing = frozenset()

        def connect(self, timeout): ...

        def close(self): ...

    with pytest.raises(WrongDriver, match=f"serves threads, not {world.name}"):
        world.Worker(Threads())


def test_handlers_must_be_async_or_say_threads(world, driver, echo):
    worker = world.Worker(driver)

    def plain(task): ...

    class Callable_:
        async def __call__(self, task): ...

    with pytest.raises(InvalidHandler, match="plain function.*threads=True"):
        worker.handler("q")(plain)
    with pytest.raises(InvalidHandler, match="is async: it cannot run in a thread"):
        worker.handler("q", threads=True)(echo)
    with pytest.raises(InvalidHandler, match="must be callable"):
        worker.handler("q")(3)
    worker.handler("q")(echo)
    with pytest.raises(InvalidHandler, match="already has the handler"):
        worker.handler("q")(echo)
    worker.handler("object")(Callable_())
    worker.handler("partial")(functools.partial(echo))
    worker.handler("threads", threads=True)(plain)


def test_bad_settings_are_refused_before_anything_runs(world, driver):
    with pytest.raises(UsageError):
        world.Client(driver, queues=[""])
    with pytest.raises(UsageError):
        world.Client(driver, buffer_tasks=0)
    with pytest.raises(UsageError):
        world.Worker(driver, concurrency=0)
