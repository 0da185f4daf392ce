"""Ctrl-C, once and twice, and defects while a block ends, in asyncio and trio alike."""

import signal
import threading

import pytest

from streamfleet_core.state import IllegalTransition


@pytest.fixture(autouse=True)
def ctrl_c():
    """As at a terminal: whoever starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def nothing_left_behind(caplog):
    """Threads, and what asyncio says about tasks that nobody has waited for."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]


def a_client(world, driver, worker_of):
    async def main():
        driver.make_unavailable()
        async with world.Client(driver) as client:
            await client.enqueue("q", "x")
            world.press_ctrl_c(*main.moments)
            await world.sleep(10_000)

    return main


def a_worker(world, driver, worker_of):
    async def handle(task):
        await world.sleep(10_000)

    async def main():
        worker = worker_of(world, driver, handle, lease=60)
        async with world.Client(driver) as client:
            await client.enqueue("q", "x")
        async with worker.running():
            while not worker.in_flight:
                await world.sleep(0.1)
            driver.make_unavailable()
            world.press_ctrl_c(*main.moments)
            await world.sleep(10_000)

    return main


@pytest.mark.parametrize(("kind", "hurry"), [(a_client, 2), (a_worker, 5)])
def test_ctrl_c_during_an_outage_ends_in_bounded_time(world, driver, worker_of, kind, hurry):
    main = kind(world, driver, worker_of)
    main.moments = [1]
    with pytest.raises(KeyboardInterrupt):
        world.run(main)
    assert 1 + hurry <= world.now() < 1 + hurry + 2


@pytest.mark.parametrize("kind", [a_client, a_worker])
def test_a_second_ctrl_c_during_an_outage_ends_at_once(world, driver, worker_of, kind, caplog):
    main = kind(world, driver, worker_of)
    main.moments = [1, 1.5]
    with pytest.raises(KeyboardInterrupt):
        world.run(main)
    assert 1.5 <= world.now() < 1.8
    not_sent = any("closed with 1 tasks not sent" in record.getMessage() for record in caplog.records)
    assert not_sent == (kind is a_client)


def test_ctrl_c_in_a_handler_ends_the_program_in_order_and_gives_the_entry_back(world, driver, worker_of, pending):
    async def handle(task):
        await world.sleep(1)
        raise KeyboardInterrupt

    async def main():
        async with world.Client(driver) as client, worker_of(world, driver, handle).running():
            await client.enqueue("q", "x")
            await world.sleep(10_000)

    with pytest.raises(KeyboardInterrupt):
        world.run(main)
    assert world.now() < 3
    [(_, idle)] = pending(driver)
    assert idle > 86_400_000


async def test_a_defect_while_a_client_ends_ends_it_with_itself(world, driver):
    def defect(*arguments, **options):
        raise IllegalTransition("defect")

    async def work():
        async with world.Client(driver, ["q"]) as client:
            await client.enqueue("q", "x")
            client._machine.close = defect

    with pytest.raises(IllegalTransition, match="defect"):
        await work()


async def test_a_defect_while_a_worker_ends_ends_it_with_itself(world, driver, worker_of, echo):
    def defect(*arguments, **options):
        raise IllegalTransition("defect")

    async def work():
        async with worker_of(world, driver, echo).running() as worker:
            worker._run.machine.stop = defect

    with pytest.raises(IllegalTransition, match="defect"):
        await work()
