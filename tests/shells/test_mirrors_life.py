"""What an asyncio and a trio program see alike: each test runs in both, on virtual time and the memory server."""

import asyncio
import contextvars
import functools
import logging
import selectors
import time

import pytest
import trio
import trio.testing

import streamfleet.asyncio
import streamfleet.trio
from streamfleet import BufferFull, DoNotRetry, RetryLater, Status, TaskCancelled, TaskExpired, TaskFailed
from streamfleet.errors import Closed, InvalidHandler, NotTracked, UsageError, WrongDriver, WrongKeyType
from streamfleet.fake import FakeDriver
from streamfleet.memory import MemoryDriver
from streamfleet.memory.model import ModelServer
from streamfleet.redis import RedisDriver
from streamfleet.trio_driver import TrioDriver
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.state import IllegalTransition

WAIT = 60.0  # virtual seconds


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer whenever nothing else can happen."""

    def __init__(self):
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self):
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop):
        super().__init__()
        self.loop = loop

    def select(self, timeout=None):
        events = super().select(0 if timeout is not None else None)
        if not events and timeout:
            self.loop.now += timeout + 1e-6  # a timer may ring a moment early, and would then ring for ever
        return events


class AsyncioWorld:
    """asyncio by the names that the tests use."""

    name = "asyncio"
    Client = streamfleet.asyncio.Client
    Worker = streamfleet.asyncio.Worker
    Event = asyncio.Event
    Cancelled = asyncio.CancelledError
    sleep = staticmethod(asyncio.sleep)

    def __init__(self):
        self.loop = None

    def now(self):
        return self.loop.now if self.loop is not None else 0.0

    def run(self, main):
        def new_loop():
            self.loop = VirtualLoop()
            return self.loop

        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(self._checked(main))

    async def _checked(self, main):
        await main()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    @staticmethod
    async def within(seconds, function, *args):
        """Call and cancel it after so long. False: it was cancelled."""
        try:
            async with asyncio.timeout(seconds):
                await function(*args)
        except TimeoutError:
            return False
        return True

    @staticmethod
    async def together(*functions):
        async with asyncio.TaskGroup() as group:
            for function in functions:
                group.create_task(function())


class TrioWorld:
    """trio by the names that the tests use."""

    name = "trio"
    Client = streamfleet.trio.Client
    Worker = streamfleet.trio.Worker
    Event = trio.Event
    Cancelled = trio.Cancelled
    sleep = staticmethod(trio.sleep)

    def __init__(self):
        self.clock = trio.testing.MockClock(autojump_threshold=0)

    def now(self):
        return self.clock.current_time()

    def run(self, main):
        trio.run(main, clock=self.clock)

    @staticmethod
    async def within(seconds, function, *args):
        with trio.move_on_after(seconds) as scope:
            await function(*args)
        return not scope.cancelled_caught

    @staticmethod
    async def together(*functions):
        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function)


@pytest.fixture(params=[AsyncioWorld, TrioWorld], ids=["asyncio", "trio"])
def world(request):
    return request.param()


@pytest.fixture
def driver(world):
    """A memory server on the world's own clock."""
    start = time.time()
    return MemoryDriver(server=ModelServer(lambda: int((start + world.now()) * 1000)))


def in_world(test):
    """Run an async test function within its ``world``."""

    @functools.wraps(test)
    def run(world, **fixtures):
        world.run(functools.partial(test, world=world, **fixtures))

    return run


def worker_of(world, driver, handle, *, queue="q", timeout=None, threads=False, **options):
    worker = world.Worker(driver, name="w", concurrency=options.pop("concurrency", 2), **options)
    worker.handler(queue, timeout=timeout, threads=threads)(handle)
    return worker


def ask(driver, *command):
    connection = driver.connect(5)
    try:
        return connection.exchange([command], 5)[0]
    finally:
        connection.close()


def keys_of(driver):
    return {key.decode() for key in ask(driver, "KEYS", "*")}


def pending(driver, queue="q"):
    """Entries in anybody's hands: (consumer, idle ms) of each."""
    rows = ask(driver, "XPENDING", queue_keys(queue).stream, GROUP, "-", "+", 100)
    return [(row[1], row[2]) for row in rows]


async def echo(task):
    return task.text.upper()


# ---- tasks and their outcomes ---------------------------------------------------------------------------


@in_world
async def test_a_tracked_task_brings_back_what_its_handler_returned(world, driver):
    async with worker_of(world, driver, echo).running() as worker, world.Client(driver) as client:
        handle = await client.enqueue_tracked("q", "hello")
        assert await handle.wait(WAIT) == b"HELLO"
        assert handle.done
        assert handle.status is Status.COMPLETED
        assert worker.counts["completed"] == 1
    assert keys_of(driver) <= {k.decode() for k in (queue_keys("q").stream, queue_keys("q").fence)}


@in_world
async def test_untracked_tasks_run_and_say_so_when_asked(world, driver):
    ran = world.Event()

    async def handle(task):
        ran.set()

    async with worker_of(world, driver, handle).running(), world.Client(driver) as client:
        task = await client.enqueue("q", "x")
        await task.accepted(WAIT)
        await ran.wait()
        with pytest.raises(NotTracked):
            await task.wait(WAIT)


@in_world
async def test_errors_are_retried_and_then_final(world, driver):
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


@in_world
async def test_whatever_a_handler_raises_stays_within_its_attempt(world, driver):
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


@in_world
async def test_a_result_that_cannot_travel_is_dropped_with_a_warning(world, driver, caplog):
    async def handle(task):
        return {"a": 1}

    async with worker_of(world, driver, handle).running(), world.Client(driver) as client:
        for _ in range(2):
            assert await (await client.enqueue_tracked("q", "x")).wait(WAIT) is None
    assert len([r for r in caplog.records if "returned dict" in r.getMessage()]) == 1


@in_world
async def test_a_scheduled_task_can_be_cancelled_and_a_late_one_expires(world, driver):
    async with worker_of(world, driver, echo).running(), world.Client(driver) as client:
        later = await client.enqueue_tracked("q", "x", delay=1000)
        await later.accepted(WAIT)
        assert await later.cancel()
        with pytest.raises(TaskCancelled):
            await later.wait(WAIT)
        with pytest.raises(TaskExpired):
            await (await client.enqueue_tracked("q", "x", expires_in=-1)).wait(WAIT)


@in_world
async def test_one_handlers_context_variables_are_not_seen_by_the_next(world, driver):
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


@in_world
async def test_a_handler_is_cancelled_at_its_timeout_and_its_place_goes_on(world, driver):
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


@in_world
async def test_a_handler_that_fails_while_it_is_cancelled_does_no_harm(world, driver):
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


@in_world
async def test_a_handler_without_contact_to_the_server_is_cancelled_and_its_task_runs_again(world, driver):
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


@in_world
async def test_stopping_waits_for_handlers_and_then_gives_their_entries_back(world, driver):
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


@in_world
async def test_a_second_stop_in_a_hurry_shortens_the_first(world, driver):
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


# ---- cancellation from outside --------------------------------------------------------------------------


@in_world
async def test_a_cancelled_worker_gives_everything_back_at_once(world, driver):
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


@in_world
async def test_a_cancelled_worker_ends_in_bounded_time_though_the_server_is_gone(world, driver):
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


@in_world
async def test_a_cancelled_client_sends_what_it_has_and_a_helpless_one_gives_up_soon(world, driver, caplog):
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


@in_world
async def test_a_cancelled_wait_leaves_nothing_behind(world, driver):
    async with world.Client(driver) as client:
        handle = await client.enqueue_tracked("q", "x")
        assert not await world.within(1, handle.wait)
        assert handle._submission.waiter is None
        assert not client._waiting
        async with worker_of(world, driver, echo).running():
            assert await handle.wait(WAIT) == b"X"


@in_world
async def test_a_cancelled_enqueue_has_taken_nothing_and_passes_its_place_on(world, driver):
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


@in_world
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


@in_world
async def test_client_and_worker_start_without_a_server(world, driver):
    driver.make_unavailable()
    async with worker_of(world, driver, echo).running(), world.Client(driver) as client:
        handle = await client.enqueue_tracked("q", "x")
        with pytest.raises(TimeoutError, match="not finished within 5 s; it is buffered"):
            await handle.wait(5)
        with pytest.raises(TimeoutError, match="1 tasks were not accepted within 5 s; last trouble"):
            await client.flush(5)
        driver.make_available()
        assert await handle.wait(WAIT) == b"X"


@in_world
async def test_a_full_buffer_refuses_after_its_time(world, driver):
    driver.make_unavailable()
    async with world.Client(driver, buffer_tasks=2, buffer_timeout=3) as client:
        await client.enqueue_many("q", ["x", "y"])
        before = world.now()
        with pytest.raises(BufferFull):
            await client.enqueue("q", "z")
        assert 3 <= world.now() - before < 4
        driver.make_available()


@in_world
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


@in_world
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


@in_world
async def test_the_error_of_a_block_comes_out_as_it_is(world, driver):
    async def work():
        async with worker_of(world, driver, echo).running(), world.Client(driver) as client:
            await client.enqueue("q", "x")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await work()
    assert pending(driver) == []


@in_world
async def test_a_defect_ends_the_block_with_itself(world, driver):
    worker = worker_of(world, driver, echo)

    async def work():
        async with worker.running():
            await world.sleep(1)

            def defect(now):
                raise IllegalTransition("defect")

            worker._run.machine.tick = defect
            await world.sleep(10_000)

    with pytest.raises(IllegalTransition, match="defect"):
        await work()
    assert world.now() < 20


@in_world
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


@in_world
async def test_a_server_that_refuses_ends_the_worker_and_its_clients_waits(world, driver):
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


@in_world
async def test_a_worker_can_run_again_and_not_twice(world, driver):
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


@in_world
async def test_an_outage_is_told_once_and_survived(world, driver, caplog):
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


def test_handlers_must_be_async_or_say_threads(world, driver):
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
