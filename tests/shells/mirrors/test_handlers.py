"""Tasks, their outcomes, and handlers that are cancelled, in asyncio and trio alike."""

import contextvars

import pytest

from streamfleet import DoNotRetry, RetryLater, Status, TaskCancelled, TaskExpired, TaskFailed
from streamfleet.errors import NotTracked
from streamfleet_core.keys import queue_keys

WAIT = 60.0  # virtual seconds


# ---- tasks and their outcomes ---------------------------------------------------------------------------


async def test_a_tracked_task_brings_back_what_its_handler_returned(world, driver, worker_of, keys_of, echo):
    async with worker_of(world, driver, echo).running() as worker, world.Client(driver) as client:
        handle = await client.enqueue_tracked("q", "hello")
        assert await handle.wait(WAIT) == b"HELLO"
        assert handle.done
        assert handle.status is Status.COMPLETED
        assert worker.counts["completed"] == 1
    assert keys_of(driver) <= {k.decode() for k in (queue_keys("q").stream, queue_keys("q").fence)}


async def test_untracked_tasks_run_and_say_so_when_asked(world, driver, worker_of):
    ran = world.Event()

    async def handle(task):
        ran.set()

    async with worker_of(world, driver, handle).running(), world.Client(driver) as client:
        task = await client.enqueue("q", "x")
        await task.accepted(WAIT)
        await ran.wait()
        with pytest.raises(NotTracked):
            await task.wait(WAIT)


async def test_errors_are_retried_and_then_final(world, driver, worker_of):
    attempts = []

    async def handle(task):
        attempts.append((task.attempt, round(world.now())))
        if task.text == "later":
            raise RetryLater(50)
        if task.text == "never":
            raise DoNotRetry("hopeless")
        raise ValueError("no good")

    async with worker_of(world, driver, handle).running(), world.Client(driver) as client:
        failing = await client.enqueue_tracked("q", "x", max_retries=2, retry_delay=10)
        with pytest.raises(TaskFailed, match="ValueError: no good"):
            await failing.wait(WAIT * 2)
        assert [attempt for attempt, _ in attempts] == [1, 2, 3]
        with pytest.raises(TaskFailed, match="hopeless"):
            await (await client.enqueue_tracked("q", "never")).wait(WAIT)
        del attempts[:]
        with pytest.raises(TaskFailed):
            await (await client.enqueue_tracked("q", "later", max_retries=1)).wait(WAIT * 2)
        (_, first), (_, second) = attempts
        assert 50 <= second - first <= 53


async def test_whatever_a_handler_raises_stays_within_its_attempt(world, driver, worker_of):
    group = BaseExceptionGroup("several", [ValueError("a"), SystemExit(3)])
    errors = {"exit": SystemExit(2), "group": group, "stop": StopIteration(), "plain": Exception()}

    async def handle(task):
        raise errors[task.text]

    async with worker_of(world, driver, handle, concurrency=1).running() as worker:
        async with world.Client(driver) as client:
            for name in errors:
                with pytest.raises(TaskFailed):
                    await (await client.enqueue_tracked("q", name, max_retries=0)).wait(WAIT)
        assert worker.counts["dead"] == len(errors)


async def test_a_result_that_cannot_travel_is_dropped_with_a_warning(world, driver, caplog, worker_of):
    async def handle(task):
        return {"a": 1}

    async with worker_of(world, driver, handle).running(), world.Client(driver) as client:
        for _ in range(2):
            assert await (await client.enqueue_tracked("q", "x")).wait(WAIT) is None
    assert len([r for r in caplog.records if "returned dict" in r.getMessage()]) == 1


async def test_a_scheduled_task_can_be_cancelled_and_a_late_one_expires(world, driver, worker_of, echo):
    async with worker_of(world, driver, echo).running(), world.Client(driver) as client:
        later = await client.enqueue_tracked("q", "x", delay=1000)
        await later.accepted(WAIT)
        assert await later.cancel()
        with pytest.raises(TaskCancelled):
            await later.wait(WAIT)
        with pytest.raises(TaskExpired):
            await (await client.enqueue_tracked("q", "x", expires_in=-1)).wait(WAIT)


async def test_one_handlers_context_variables_are_not_seen_by_the_next(world, driver, worker_of):
    variable = contextvars.ContextVar("variable", default="clean")
    seen = []

    async def handle(task):
        seen.append(variable.get())
        variable.set(task.text)

    async with worker_of(world, driver, handle, concurrency=1).running(), world.Client(driver) as client:
        for text in "abc":
            await (await client.enqueue_tracked("q", text)).wait(WAIT)
    assert seen == ["clean"] * 3


# ---- handlers that are cancelled ------------------------------------------------------------------------


async def test_a_handler_is_cancelled_at_its_timeout_and_its_place_goes_on(world, driver, worker_of):
    ended = []

    async def handle(task):
        if task.text == "slow":
            try:
                await world.sleep(10_000)
            except world.Cancelled:
                ended.append((task.cancel_reason, task.cancelled))
                raise
        return "done"

    worker = worker_of(world, driver, handle, timeout=7, concurrency=1)
    async with worker.running(), world.Client(driver) as client:
        with pytest.raises(TaskFailed, match="timeout after 7 s"):
            await (await client.enqueue_tracked("q", "slow", max_retries=0)).wait(WAIT)
        assert await (await client.enqueue_tracked("q", "quick")).wait(WAIT) == b"done"
    assert ended == [("timeout", True)]
    assert "late" not in worker.counts


async def test_a_timeout_shorter_than_all_other_times_is_kept(world, driver, worker_of):
    lasted = []

    async def handle(task):
        started = world.now()
        try:
            await world.sleep(100)
        finally:
            lasted.append(world.now() - started)

    worker = worker_of(
        world, driver, handle, timeout=0.2, lease=60, poll_interval=1.5, scan_interval=2, concurrency=1
    )
    async with worker.running(), world.Client(driver) as client:
        for _ in range(6):
            await client.enqueue("q", "x", max_retries=0)
            await world.sleep(2.7)
    assert lasted == [pytest.approx(0.2, abs=0.01)] * 6


async def test_a_handler_that_fails_while_it_is_cancelled_does_no_harm(world, driver, worker_of):
    async def handle(task):
        try:
            await world.sleep(10_000)
        finally:
            raise ValueError("while cleaning up")

    worker = worker_of(world, driver, handle, timeout=7, concurrency=1)
    async with worker.running(), world.Client(driver) as client:
        for _ in range(2):
            with pytest.raises(TaskFailed, match="timeout"):
                await (await client.enqueue_tracked("q", "x", max_retries=0)).wait(WAIT)
    assert worker.counts["late"] == 2


async def test_a_handler_without_contact_to_the_server_is_cancelled_and_its_task_runs_again(
    world, driver, worker_of, pending
):
    started = world.Event()
    reasons, finished = [], []

    async def handle(task):
        started.set()
        try:
            await world.sleep(30 if not reasons else 0)
        except world.Cancelled:
            reasons.append(task.cancel_reason)
            raise
        finished.append(task.deliveries)

    worker = worker_of(world, driver, handle, lease=10)
    async with worker.running(), world.Client(driver) as client:
        handle_ = await client.enqueue_tracked("q", "x", max_retries=0)
        await started.wait()
        driver.make_unavailable()
        await world.sleep(20)
        assert reasons == ["no contact to the server: others will take the task over"]
        driver.make_available()
        await handle_.wait(WAIT)
    assert len(finished) == 1
    assert pending(driver) == []


async def test_stopping_waits_for_handlers_and_then_gives_their_entries_back(world, driver, worker_of, pending):
    ends = []

    async def handle(task):
        try:
            await world.sleep(float(task.text))
            ends.append("returned")
        except world.Cancelled:
            ends.append(task.cancel_reason)
            raise

    worker = worker_of(world, driver, handle, concurrency=2)
    async with world.Client(driver) as client, worker.running():
        await client.enqueue("q", "5")
        await client.enqueue("q", "5000")
        while worker.in_flight < 2:
            await world.sleep(0.1)
        before = world.now()
        await worker.stop(drain=20)
        assert 20 <= world.now() - before < 21
    assert ends == ["returned", "the worker stops"]
    [(_, idle)] = pending(driver)
    assert idle > 86_400_000  # anybody may take it at once


async def test_a_second_stop_in_a_hurry_shortens_the_first(world, driver, worker_of):
    async def handle(task):
        await world.sleep(10_000)

    worker = worker_of(world, driver, handle)

    async def stop_twice():
        while not worker.in_flight:
            await world.sleep(0.1)
        worker.request_stop(1000)
        await world.sleep(3)
        worker.request_stop(0)

    async with world.Client(driver) as client:
        await client.enqueue("q", "x")
        await world.together(worker.run, stop_twice)
    assert world.now() < 10
