"""A thousand interruptions of threads at random moments: nothing hangs, leaks, or is told wrongly.

Threads cannot be cancelled. Their equals are timeouts, a client that is closed under those who enqueue and wait, a
worker that is stopped (twice, before its start, while it drains), and Ctrl-C in the main thread.
"""

import gc
import random
import signal
import sys
import threading
import time
from collections import Counter
from itertools import count

import pytest

from streamfleet import BufferFull, RetryLater, Status, TaskCancelled
from streamfleet.errors import Closed
from streamfleet.redis import RedisDriver
from streamfleet.sync import Client, Worker
from streamfleet.valkey import ValkeyDriver
from streamfleet_core.keys import GROUP, queue_keys

PATIENCE = 60.0
WAIT = 20.0
SHARES = {"full": 0.1, "timeout": 0.2, "closed": 0.05, "close": 0.05, "stop": 0.15, "ctrl-c": 0.1}
"""Of each kind of interruption, the part that there is at the least."""
REFUSED, UNKNOWN = "refused", "unknown"


def ask(driver, *command):
    connection = driver.connect(5)
    try:
        return connection.exchange([command], 5)[0]
    finally:
        connection.close()


class Moments:
    """Counts what happens, so that others may act after so much of it."""

    def __init__(self):
        self._happened = 0
        self._news = threading.Condition()

    def tick(self):
        with self._news:
            self._happened += 1
            self._news.notify_all()

    def after(self, number):
        """Wait for so many moments, or until nothing more happens."""
        with self._news:
            target = self._happened + number
            while self._happened < target and self._news.wait(0.005):
                pass


class Watched:
    """A driver whose exchanges are moments."""

    name, missing = "watched", frozenset()

    def __init__(self, driver, moments):
        self.driver, self.url, self.tick = driver, driver.url, moments.tick

    def connect(self, timeout):
        return WatchedConnection(self.driver.connect(timeout), self.tick)

    def close(self):
        self.driver.close()


class WatchedConnection:
    def __init__(self, connection, tick):
        self.identity, self.interrupt, self.close = connection.identity, connection.interrupt, connection.close
        self._exchange, self._tick = connection.exchange, tick

    def exchange(self, commands, timeout):
        self._tick()
        try:
            return self._exchange(commands, timeout)
        finally:
            self._tick()


class Storm:
    """What callers were told of their tasks, and which tasks ran."""

    def __init__(self, driver, queue, number, seed):
        self.number = number
        self.moments = Moments()
        self.driver = Watched(driver, self.moments)
        self.queue = queue
        self.seed = seed
        self.numbers = count()
        self.told = {}
        self.ran = Counter()
        self.met = Counter()
        self.failures = []
        self.client = None
        self.calling = False
        self.deadline = time.monotonic() + PATIENCE

    @property
    def enough(self):
        late = time.monotonic() > self.deadline
        return (
            bool(self.failures)
            or late
            or (
                self.met.total() >= self.number
                and all(self.met[what] >= self.number * part for what, part in SHARES.items())
            )
        )

    # ---- who works -------------------------------------------------------------------------------------

    def worker(self, rng):
        worker = Worker(self.driver, name="w", concurrency=3, lease=5.0, scan_interval=0.05)

        @worker.handler(self.queue)
        def handle(task):
            self.moments.tick()
            self.moments.after(rng.randrange(4))
            if rng.random() < 0.1:
                raise RetryLater(0)
            self.ran[task.text] += 1

        return worker

    def workers(self, rng):
        """Workers that are stopped at random moments, by several at once."""
        while not self.enough:
            worker = self.worker(rng)
            if rng.random() < 0.1:
                worker.request_stop()
                self.met["stop"] += 1
            worker.start()
            self.moments.after(rng.randrange(rng.choice([5, 50, 200])))
            if rng.random() < 0.5:
                worker.request_stop(rng.choice([None, 0.0, 0.01]))
                self.met["stop"] += 1
                self.moments.after(rng.randrange(4))
            stops = [threading.Thread(target=worker.stop, args=(rng.choice([0.0, 0.01, 5.0]),)) for _ in range(2)]
            for stop in stops:
                stop.start()
            self.met["stop"] += 1
            for stop in stops:
                stop.join(self.deadline - time.monotonic())
                assert not stop.is_alive(), "stop hangs"
            assert worker.wait(0)
            assert worker.in_flight == 0

    # ---- who enqueues and waits ------------------------------------------------------------------------

    def clients(self, rng):
        """Clients with a small buffer that are closed at random moments, by several at once."""
        while not self.enough:
            self.moments.after(rng.randrange(20))
            client, self.client = self.client, self.new_client(rng)
            timeout, unsent = rng.choice([0.0, 0.001, WAIT]), []
            closes = [
                threading.Thread(target=lambda c=client, t=timeout, u=unsent: u.append(c.close(t)), daemon=True)
                for _ in range(2)
            ]
            for close in closes:
                close.start()
            self.met["close"] += 1
            for close in closes:
                close.join(self.deadline - time.monotonic())
                assert not close.is_alive(), "close hangs"
            assert timeout < WAIT or unsent == [0, 0], "it had time, and a server"

    def new_client(self, rng):
        return Client(self.driver, buffer_tasks=3, buffer_timeout=rng.choice([0.0, 0.0005, 1.0]))

    def call(self, rng):
        """One enqueue, and one wait for what it has taken."""
        client, text = self.client, str(next(self.numbers))
        self.told[text] = UNKNOWN
        try:
            handle = rng.choice([client.enqueue, client.enqueue_tracked])(self.queue, text, max_retries=None)
        except (BufferFull, Closed) as error:
            self.told[text] = REFUSED
            self.met["full" if isinstance(error, BufferFull) else "closed"] += 1
            self.moments.after(1)
            return
        self.told[text] = handle
        wait = rng.choice(
            [handle.wait if handle._submission.tracked else handle.accepted, client.flush, handle.cancel]
        )
        try:
            wait(timeout := rng.choice([0.0, 0.0005, 0.002, WAIT]))
        except TimeoutError:
            assert timeout < WAIT, "nobody was told that what it waited for has come"
            self.met["timeout"] += 1
        except Closed:
            self.met["closed"] += 1
        except TaskCancelled:
            assert handle.status is Status.CANCELLED

    def callers(self, rng):
        while not self.enough:
            self.call(rng)

    # ---- Ctrl-C ----------------------------------------------------------------------------------------

    def interrupt(self, rng):
        """Press Ctrl-C at random moments."""
        main = threading.main_thread().ident
        while not self.enough:
            self.moments.after(rng.randrange(20))
            if self.calling:
                signal.pthread_kill(main, signal.SIGINT)

    def on_ctrl_c(self, number, frame):
        """Raise where a caller is in the shell: not in the midst of a step of the core, nor of a thread's start.

        A data structure that is half changed, or a thread half begun, is nothing that Python lets anybody mend;
        what is raised in the callback of a weak reference, Python drops.
        """
        names = []
        while frame is not None:
            names.append(frame.f_globals.get("__name__", ""))
            if names[-1].startswith("streamfleet_core") or frame.f_code is threading.Thread.start.__code__:
                return
            frame = frame.f_back
        ours = [name.startswith("streamfleet.sync") for name in names]
        if any(ours) and (ours[0] or names[0] == "threading"):
            raise KeyboardInterrupt

    def call_interrupted(self, rng):
        while not self.enough:
            self.calling = True
            try:
                self.call(rng)
            except KeyboardInterrupt:
                self.met["ctrl-c"] += 1
            finally:
                self.calling = False

    # ---- all together ----------------------------------------------------------------------------------

    def guarded(self, work, rng):
        try:
            work(rng)
        except BaseException as error:
            self.failures.append(error)

    def rage(self):
        roles = [self.clients, self.callers, self.callers, self.interrupt, self.workers, self.workers]
        rngs = [
            random.Random(f"{self.seed}-{number}") for number in range(len(roles) + 1)
        ]  # one for the main thread
        self.client = self.new_client(rngs[0])
        threads = [
            threading.Thread(target=self.guarded, args=pair, daemon=True)
            for pair in zip(roles, rngs[1:], strict=True)
        ]
        before = signal.signal(signal.SIGINT, self.on_ctrl_c)
        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with self.worker(rngs[0]).running():  # what the others give back is not to pile up
                for thread in threads:
                    thread.start()
                self.guarded(self.call_interrupted, rngs[0])
                for thread in threads:
                    thread.join(self.deadline - time.monotonic())
                    assert not thread.is_alive()
        finally:
            sys.setswitchinterval(switch)
            signal.signal(signal.SIGINT, before)
        assert self.client.close() == 0
        assert self.failures == []
        assert self.enough
        assert time.monotonic() < self.deadline

    def drain(self, eventually):
        """Let a worker that nobody stops do what is left."""
        keys = queue_keys(self.queue)
        with self.worker(random.Random(0)).running():
            eventually(
                lambda: (
                    ask(self.driver, "XLEN", keys.stream) == 0 and not ask(self.driver, "EXISTS", keys.schedule)
                )
            )
        assert ask(self.driver, "XPENDING", keys.stream, GROUP)[0] == 0

    def judge(self):
        """Each caller was told the truth, as far as it was told."""
        for text, told in self.told.items():
            if told is UNKNOWN:
                continue
            status = told if told is REFUSED else told.status
            if status in (Status.ACCEPTED, Status.COMPLETED):
                assert self.ran[text], f"task {text} is {status.name} and never ran"
            elif status is not Status.SENT:
                assert not self.ran[text], f"task {text} is {status} and ran"


def make(kind, server, memory):
    return memory if kind == "memory" else {"redis": RedisDriver, "valkey": ValkeyDriver}[kind](server.url)


@pytest.mark.parametrize(("kind", "number", "seed"), [("memory", 1000, 1), ("redis", 200, 2), ("valkey", 200, 3)])
def test_a_thousand_interruptions(server, driver, eventually, sockets, kind, number, seed):
    """On real servers there are fewer, for the sockets' sake. A seed settles who does what, not when."""
    threads, before = set(threading.enumerate()), sockets()
    storm = Storm(make(kind, server, driver), f"storm-sync-{kind}-{seed}", number, seed)
    storm.rage()
    storm.drain(eventually)
    storm.judge()
    gc.collect()
    eventually(lambda: set(threading.enumerate()) <= threads)
    assert sockets() <= before
