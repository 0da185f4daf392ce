"""asyncio and trio by the same names, on virtual time and the memory server."""

import asyncio
import functools
import inspect
import selectors
import signal
import time

import pytest
import trio
import trio.testing

import streamfleet.asyncio
import streamfleet.trio
from streamfleet.memory import MemoryDriver
from streamfleet.memory.model import ModelServer
from streamfleet_core.keys import GROUP, queue_keys


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

    def new_loop(self):
        self.loop = VirtualLoop()
        return self.loop

    def run(self, main):
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
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

    def press_ctrl_c(self, *moments):
        """So many seconds from now."""
        for seconds in moments:
            self.loop.call_later(seconds, signal.raise_signal, signal.SIGINT)


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

    @staticmethod
    def press_ctrl_c(*moments):
        async def press(seconds):
            await trio.sleep(seconds)
            signal.raise_signal(signal.SIGINT)

        for seconds in moments:
            trio.lowlevel.spawn_system_task(press, seconds)


WORLDS = {"asyncio": AsyncioWorld, "trio": TrioWorld}


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param]()


@pytest.fixture
def driver(world):
    """A memory server on the world's own clock."""
    start = time.time()
    return MemoryDriver(server=ModelServer(lambda: int((start + world.now()) * 1000)))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run an async test function within its ``world``."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    arguments["world"].run(functools.partial(test, **arguments))
    return True


def _worker_of(world, driver, handle, *, queue="q", timeout=None, threads=False, **options):
    worker = world.Worker(driver, name="w", concurrency=options.pop("concurrency", 2), **options)
    worker.handler(queue, timeout=timeout, threads=threads)(handle)
    return worker


def _ask(driver, *command):
    connection = driver.connect(5)
    try:
        return connection.exchange([command], 5)[0]
    finally:
        connection.close()


def _keys_of(driver):
    return {key.decode() for key in _ask(driver, "KEYS", "*")}


def _pending(driver, queue="q"):
    """Entries in anybody's hands: (consumer, idle ms) of each."""
    rows = _ask(driver, "XPENDING", queue_keys(queue).stream, GROUP, "-", "+", 100)
    return [(row[1], row[2]) for row in rows]


async def _echo(task):
    return task.text.upper()


@pytest.fixture
def worker_of():
    """A worker with one handler."""
    return _worker_of


@pytest.fixture
def ask():
    """One command, and its reply."""
    return _ask


@pytest.fixture
def keys_of():
    """All keys of a server."""
    return _keys_of


@pytest.fixture
def pending():
    """Entries in anybody's hands: (consumer, idle ms) of each."""
    return _pending


@pytest.fixture
def echo():
    """A handler whose result is its task in capitals."""
    return _echo
