"""asyncio: whoever holds a task can cancel it, a handler its own, and the end of the program all at once."""

import asyncio
import gc

import pytest

from streamfleet import TaskFailed
from streamfleet_core.keys import queue_keys

WAIT = 60.0  # virtual seconds

pytestmark = pytest.mark.parametrize("world", ["asyncio"], indirect=True)


# ---- handlers that cancel themselves --------------------------------------------------------------------


async def _home_made_timeout():
    asyncio.get_running_loop().call_later(5, asyncio.current_task().cancel)
    await asyncio.sleep(10_000)


async def _cancel_and_return():
    asyncio.current_task().cancel()


async def _cancel_and_swallow():
    asyncio.current_task().cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        return


@pytest.mark.parametrize(
    ("act", "fails"), [(_home_made_timeout, True), (_cancel_and_return, False), (_cancel_and_swallow, False)]
)
async def test_a_handler_that_cancels_its_own_task_ends_its_attempt_and_no_more(
    world, driver, worker_of, act, fails
):
    async def handle(task):
        before = asyncio.current_task().cancelling()
        if task.text == "bad":
            await act()
        return str(before)

    worker = worker_of(world, driver, handle, concurrency=1, lease=10)
    async with worker.running(), world.Client(driver) as client:
        for _ in range(3):
            bad = await client.enqueue_tracked("q", "bad", max_retries=0)
            good = await client.enqueue_tracked("q", "good", max_retries=0)
            if fails:
                with pytest.raises(TaskFailed, match="CancelledError"):
                    await bad.wait(WAIT)
            else:
                assert await bad.wait(WAIT) == b"0"
            assert await good.wait(WAIT) == b"0"
        assert worker.in_flight == 0


# ---- links and slots that are cancelled from outside ----------------------------------------------------


def _named(*names):
    return [task for task in asyncio.all_tasks() if task.get_name() in names]


@pytest.mark.parametrize(
    "name",
    ["w-read", "w-settle", "w-control", "w-time", "w-handler-1", "client-publish", "client-receive"],
)
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 50])
async def test_a_link_or_slot_that_is_cancelled_by_others_goes_on_in_a_fresh_task(
    world, driver, worker_of, echo, name, turns
):
    async with worker_of(world, driver, echo, concurrency=1, lease=10).running(), world.Client(driver) as client:
        first = await client.enqueue_tracked("q", "first")
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in _named(name):
            task.cancel()
        assert await first.wait(WAIT) == b"FIRST"
        for task in _named(name):
            task.cancel()
        await asyncio.sleep(1)
        assert await (await client.enqueue_tracked("q", "second")).wait(WAIT) == b"SECOND"


async def test_whoever_cancels_all_other_tasks_and_waits_for_them_does_not_wait_for_ever(
    world, driver, worker_of, echo
):
    async with worker_of(world, driver, echo).running(), world.Client(driver) as client:
        assert await (await client.enqueue_tracked("q", "first")).wait(WAIT) == b"FIRST"
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        assert await (await client.enqueue_tracked("q", "second")).wait(WAIT) == b"SECOND"


# ---- the end of the program, which cancels all ----------------------------------------------------------


def _run(world, main):
    with asyncio.Runner(loop_factory=world.new_loop) as runner:
        runner.run(main())


def test_a_client_in_a_forgotten_task_still_sends_what_it_has(world, driver, ask):
    driver.make_unavailable()

    async def produce():
        async with world.Client(driver) as client:
            await client.enqueue_many("q", ["x"] * 1000)
            await asyncio.sleep(10_000)

    async def main():
        main.task = asyncio.create_task(produce())
        await asyncio.sleep(5)
        asyncio.get_running_loop().call_later(1, driver.make_available)

    _run(world, main)
    assert main.task.cancelled()
    assert ask(driver, "XLEN", queue_keys("q").stream) == 1000
    assert world.now() < 8


def test_a_worker_in_a_forgotten_task_gives_back_what_it_has(world, driver, worker_of, pending):
    async def handle(task):
        await asyncio.sleep(10_000)

    worker = worker_of(world, driver, handle, concurrency=2)

    async def main():
        async with world.Client(driver) as client:
            await client.enqueue_many("q", ["x"] * 10)
        main.task = asyncio.create_task(worker.run())
        await asyncio.sleep(1)

    _run(world, main)
    assert main.task.cancelled()
    assert world.now() < 3
    entries = pending(driver)
    assert entries
    assert len(entries) == worker.counts["released"]
    assert all(idle > 86_400_000 for _, idle in entries)


@pytest.mark.parametrize("turns", range(8))
def test_a_worker_in_a_forgotten_task_that_has_hardly_begun_ends(world, driver, worker_of, echo, turns):
    async def main():
        main.task = asyncio.create_task(worker_of(world, driver, echo).run())
        for _ in range(turns):
            await asyncio.sleep(0)

    _run(world, main)
    assert main.task.cancelled()
    assert world.now() < 2


def test_a_program_ends_though_nobody_is_left_to_end_the_block(world, driver, caplog):
    async def main():
        client = world.Client(driver, ["q"])
        await asyncio.create_task(client.__aenter__())
        await client.enqueue("q", "x")
        await client.flush(WAIT)

    _run(world, main)
    assert world.now() < WAIT
    gc.collect()
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]
