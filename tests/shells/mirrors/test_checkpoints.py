"""trio: what calls promise about cancellation and about the turns of others."""

import pytest
import trio
import trio.testing

WAIT = 60.0  # virtual seconds

pytestmark = pytest.mark.parametrize("world", ["trio"], indirect=True)


async def test_calls_that_wait_are_checkpoints_though_there_is_nothing_to_wait_for(world, driver, worker_of, echo):
    async with worker_of(world, driver, echo).running() as worker, world.Client(driver) as client:
        handle = await client.enqueue_tracked("q", "x")
        await handle.wait(WAIT)
        for call in (handle.wait, handle.accepted, client.flush, worker.wait):
            with trio.testing.assert_checkpoints():
                await call(0)


async def test_each_enqueue_notices_a_cancellation_and_then_takes_nothing(world, driver):
    driver.make_unavailable()
    async with world.Client(driver) as client:
        for taken in range(150):
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.enqueue("q", "x")
            assert scope.cancelled_caught
            assert client.buffered == taken
            await client.enqueue("q", "x")
        driver.make_available()


async def test_many_enqueues_in_a_row_leave_others_their_turn(world, driver):
    turns = 0

    async def other():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with world.Client(driver) as client, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(1000):
            await client.enqueue("q", "x")
        assert turns >= 5
        nursery.cancel_scope.cancel()
