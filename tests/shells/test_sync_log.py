"""The log of the shell for threads: nothing else waits for a log handler, whatever it does, and all is told."""

import logging
import os
import subprocess
import sys
import threading
from collections import deque

import pytest

from streamfleet import DoNotRetry, TaskFailed
from streamfleet.errors import Closed
from streamfleet.sync import Client, Worker, loops
from streamfleet.sync.telling import Teller
from streamfleet_core.events import Event, EventKind

WAIT = 20


class Listener(logging.Handler):
    """Does what the test wants with each event, and keeps them."""

    def __init__(self, act=lambda event: None):
        super().__init__()
        self.act = act
        self.events = []

    def emit(self, record):
        event = record.streamfleet
        self.events.append(event)
        self.act(event)

    @property
    def kinds(self):
        return [event.kind for event in self.events]


class Held:
    """Holds the log up at one kind of event, until let go."""

    def __init__(self, kind):
        self.kind = kind
        self.reached, self.let_go = threading.Event(), threading.Event()

    def __call__(self, event):
        if event.kind is self.kind:
            self.reached.set()
            assert self.let_go.wait(WAIT)


@pytest.fixture
def listen():
    logger = logging.getLogger("streamfleet")
    before, added = logger.level, []

    def add(act=lambda event: None):
        listener = Listener(act)
        logger.addHandler(listener)
        added.append(listener)
        return listener

    logger.setLevel(logging.INFO)
    yield add
    logger.setLevel(before)
    for listener in added:
        logger.removeHandler(listener)


@pytest.fixture
def elsewhere():
    """Call something in another thread; the thread is to end."""
    threads = []

    def call(function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        threads.append(thread)
        return thread

    yield call
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def worker_of(driver, handle, *, timeout=None, **options):
    worker = Worker(driver, name="w", **{"concurrency": 1, **options})
    worker.handler("q", timeout=timeout)(handle)
    return worker


def obey(task):
    if task.text == "bad":
        raise DoNotRetry("told so")
    return task.text


# ---- nobody waits for a log handler -----------------------------------------------------------------------


def test_tasks_are_settled_and_renewed_while_a_log_handler_takes_its_time(driver, listen, eventually):
    """The thread that settles and beats wrote the log: a running task was taken over, and ran twice."""
    held = Held(EventKind.DEAD_LETTERED)
    listen(held)
    finish = threading.Event()

    def handle(task):
        if task.text == "long":
            assert finish.wait(WAIT)
        return obey(task)

    with worker_of(driver, handle, concurrency=2, lease=0.8).running() as worker, Client(driver) as client:
        try:
            long = client.enqueue_tracked("q", "long")
            client.enqueue("q", "bad")
            assert held.reached.wait(WAIT)
            assert client.enqueue_tracked("q", "good").wait(WAIT) == b"good"
            [running] = worker._run.machine.queues["q"].in_flight.values()
            for _ in range(3):
                before = running.leased_from
                eventually(lambda before=before: running.leased_from > before)
            finish.set()
            assert long.wait(WAIT) == b"long"
        finally:
            held.let_go.set()
            finish.set()


@pytest.mark.parametrize("patience", [None, WAIT])
def test_a_log_handler_may_wait_for_room_that_only_the_server_can_make(driver, listen, patience):
    """The thread that makes room called it: both waited for each other, for good where there was no timeout."""
    driver.make_unavailable()
    client = Client(driver, buffer_tasks=1, buffer_timeout=patience)
    asked, shipped = threading.Event(), threading.Event()

    def ship(event):
        asked.set()
        client.enqueue("logs", event.text)
        shipped.set()

    client.enqueue("q", "x")
    listen(ship)
    assert asked.wait(WAIT)
    driver.make_available()
    assert shipped.wait(WAIT)
    assert client.close() == 0


def test_a_log_handler_may_look_at_the_worker_when_handlers_hang(driver, listen, eventually):
    """It was called under the lock that it needs."""
    release = threading.Event()
    worker = worker_of(driver, lambda task: release.wait(WAIT), timeout=0.02)
    listener = listen(lambda event: worker.counts)
    try:
        with worker.running(), Client(driver) as client:
            for _ in range(3):
                with pytest.raises(TaskFailed):
                    client.enqueue_tracked("q", "x", max_retries=0).wait(WAIT)
            eventually(lambda: EventKind.HANDLERS_HANG in listener.kinds)
            release.set()
    finally:
        release.set()
    [event] = [event for event in listener.events if event.kind is EventKind.HANDLERS_HANG]
    assert event.text == "3 handlers hang after they were given up; no more threads are added for them"
    assert event.data == {"handlers": 3}


def test_a_handlers_thread_takes_the_next_task_while_its_late_return_is_logged(
    driver, listen, eventually, settle_elsewhere
):
    """It wrote the log itself, and then began tasks with the time from before: expired ones, and timeouts over."""
    held = Held(EventKind.LATE_RETURN)
    listen(held)
    started, release = threading.Event(), threading.Event()

    def handle(task):
        if task.text == "lost":
            started.set()
            assert release.wait(WAIT)
        return task.text

    with worker_of(driver, handle, lease=0.4).running() as worker, Client(driver) as client:
        try:
            client.enqueue("q", "lost")
            assert started.wait(WAIT)
            settle_elsewhere()
            eventually(lambda: worker.counts.get("lost"))
            release.set()
            assert held.reached.wait(WAIT)
            assert client.enqueue_tracked("q", "next").wait(WAIT) == b"next"
        finally:
            held.let_go.set()


# ---- whatever it raises -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError("odd"), SystemExit(3)])
def test_a_log_handler_that_raises_costs_its_record_and_nothing_else(driver, listen, capfd, error):
    """It ended the thread that settles, and the worker went on taking tasks that were never settled."""

    def fail(event):
        if event.kind is EventKind.DEAD_LETTERED:
            raise error

    listener = listen()
    listen(fail)
    with worker_of(driver, obey).running(), Client(driver) as client:
        for _ in range(2):
            with pytest.raises(TaskFailed):
                client.enqueue_tracked("q", "bad").wait(WAIT)
        assert client.enqueue_tracked("q", "good").wait(WAIT) == b"good"
    if isinstance(error, Exception):
        shown = capfd.readouterr().err
        assert "KeyError: 'odd'" in shown
        assert "dead-lettered: not to be retried" in shown
    assert listener.kinds.count(EventKind.DEAD_LETTERED) == 2


def test_a_filter_that_raises_is_kept_silent_where_logging_is_told_to_be(driver, listen, capfd, monkeypatch):
    def fail(event):
        raise KeyError("odd")

    listen(fail)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with worker_of(driver, obey).running(), Client(driver) as client:
        assert client.enqueue_tracked("q", "good").wait(WAIT) == b"good"
    assert capfd.readouterr().err == ""


# ---- order, and the end -----------------------------------------------------------------------------------


def test_all_is_told_in_its_order_before_close_returns(driver, listen, elsewhere):
    held = Held(EventKind.DISCONNECTED)
    listener = listen(held)
    driver.make_unavailable()
    client = Client(driver)
    for number in range(5):
        client.enqueue("q", "x", expires_in=-1 - number)
    client.enqueue("q", "x")
    assert held.reached.wait(WAIT)
    for number in range(5):
        client.enqueue("q", "x", expires_in=-1 - number)
    closing = elsewhere(client.close, 0)
    threading.Timer(0.05, held.let_go.set).start()
    closing.join(WAIT)
    early, late = [EventKind.EXPIRED_LOCALLY] * 5, [EventKind.EXPIRED_LOCALLY] * 5
    assert listener.kinds == [*early, EventKind.DISCONNECTED, *late, EventKind.NOT_ACCEPTED]
    assert listener.events[-1].text == "closed with 1 tasks not sent"
    assert not any(thread.name == "client-log" for thread in threading.enumerate())


def test_a_log_handler_that_hangs_does_not_hold_up_the_end_for_ever(driver, listen, monkeypatch, eventually):
    monkeypatch.setattr(loops, "TELLING", 0.01)
    held = Held(EventKind.GROUP_HEALED)
    listener = listen(held)
    worker = worker_of(driver, obey)
    worker.start()
    assert held.reached.wait(WAIT)
    worker.stop()
    held.let_go.set()
    eventually(lambda: not any(thread.name == "w-log" for thread in threading.enumerate()))
    assert listener.kinds[0] is EventKind.GROUP_HEALED


def test_a_log_handler_may_end_the_worker_and_the_client_that_it_hears_of(driver, listen, eventually):
    worker, client = worker_of(driver, obey), Client(driver)
    ended = []

    def end(event):
        if event.kind is EventKind.DEAD_LETTERED:
            client.close()
            worker.stop()
            ended.append(event)

    listen(end)
    worker.start()
    client.enqueue("q", "bad")
    assert worker.wait(WAIT)
    eventually(lambda: ended)
    with pytest.raises(Closed):
        client.enqueue("q", "x")


def test_what_comes_after_the_end_is_told_too(driver, listen, eventually):
    release, started = threading.Event(), threading.Event()

    def handle(task):
        started.set()
        assert release.wait(WAIT)

    listener = listen()
    worker = worker_of(driver, handle)
    worker.start()
    with Client(driver) as client:
        client.enqueue("q", "x")
        assert started.wait(WAIT)
    worker.stop(drain=0)
    release.set()
    eventually(lambda: EventKind.LATE_RETURN in listener.kinds)
    eventually(lambda: not any(thread.name == "w-log" for thread in threading.enumerate()))


def test_a_forked_child_tells_its_own(driver, listen):
    read, write = os.pipe()
    parent = os.getpid()
    listen(lambda event: os.getpid() != parent and os.write(write, event.text.encode()))
    with Client(driver) as client:
        client.enqueue("q", "x").accepted(WAIT)
        pid = os.fork()
        if pid == 0:
            try:
                client.enqueue("q", "child", expires_in=-1)
                client.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        assert os.read(read, 200).endswith(b"expired before it was sent")
        os.close(read)


def test_a_program_that_ends_is_told_what_its_client_has_not_sent():
    program = """
import logging, sys
from streamfleet.memory import MemoryDriver
from streamfleet.sync import Client
logging.basicConfig(level="INFO", format="%(threadName)s %(message)s")
driver = MemoryDriver()
driver.make_unavailable()
client = Client(driver)
client.enqueue("q", "x")
close, client.close = client.close, lambda: close(0)  # at exit it would try for ten seconds
"""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env={"PYTHONPATH": path}
    )
    assert done.stderr.splitlines()[-1] == "client-log client: closed with 1 tasks not sent"


def test_who_ends_tells_what_is_left_when_no_thread_can_be_had(listen, monkeypatch):
    """CPython 3.12 and later start no threads while the interpreter exits."""

    def refuse(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    listener = listen()
    events, lock = deque([Event(EventKind.NOT_ACCEPTED, "the last")]), threading.Lock()
    teller = Teller("client", events, lock)
    with lock:
        teller.wake()
    assert listener.events == []
    teller.end(WAIT)
    assert [event.text for event in listener.events] == ["the last"]
    assert not events
