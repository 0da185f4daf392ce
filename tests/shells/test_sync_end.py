"""How the shell for threads ends: in time though the server is silent, and never unnoticed; timeouts in time."""

import linecache
import signal
import sys
import threading
import time
from contextlib import suppress

import pytest

from streamfleet import BufferFull, Status, TaskCancelled, TaskFailed
from streamfleet.errors import Closed, NotSent, OutcomeUnknown, ServerRefused
from streamfleet.sync import Client, Worker, client, loops
from streamfleet_core.link import Role
from streamfleet_core.worker import WorkerMachine

WAIT = 20
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Bent:
    """A driver whose connections do what the test wants before, after or instead of an exchange."""

    name = "bent"
    url = "bent://"
    missing = frozenset()

    def __init__(self, driver, exchange):
        self.driver = driver
        self.exchange = exchange
        self.connections = []

    def connect(self, timeout):
        connection = BentConnection(self.driver.connect(timeout), self.exchange)
        self.connections.append(connection)
        return connection

    def close(self):
        """Nothing is held."""


class BentConnection:
    def __init__(self, connection, exchange):
        self.connection = connection
        self.identity = connection.identity
        self.interrupted = threading.Event()
        self.bend = exchange

    def exchange(self, commands, timeout):
        return self.bend(self, commands, timeout)

    def interrupt(self):
        self.interrupted.set()
        self.connection.interrupt()

    def close(self):
        self.interrupt()


class Silence:
    """Once begun, the server takes batches in, or not, and does not answer."""

    def __init__(self, delivered):
        self.delivered = delivered
        self.begun, self.met, self.cut = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, connection, commands, timeout):
        if not self.begun.is_set() or not any(command[0] == "XADD" for command in commands):
            return connection.connection.exchange(commands, timeout)
        if self.delivered:
            connection.connection.exchange(commands, timeout)
        self.met.set()
        if connection.interrupted.wait(WAIT):
            self.cut.set()
        raise OutcomeUnknown("nothing heard")


def length(driver):
    connection = driver.connect(5)
    try:
        return connection.exchange([("XLEN", "streamfleet:q")], 5)[0]
    finally:
        connection.close()


def loop_threads(who):
    return [t.name for t in threading.enumerate() if t.name.startswith(who + "-") and "handler" not in t.name]


# ---- close ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivered", [False, True])
def test_close_ends_what_is_in_flight_to_a_silent_server_when_its_time_is_up(driver, monkeypatch, delivered):
    """It waited for the answer, ten seconds at most, whatever its timeout."""
    monkeypatch.setattr(client, "GRACE", 0.05)
    silence = Silence(delivered)
    ours = Client(Bent(driver, silence))
    ours.enqueue("q", "heard").accepted(WAIT)
    silence.begun.set()
    handle = ours.enqueue("q", "unheard")
    assert silence.met.wait(WAIT)
    assert ours.enqueue("q", "never sent").status is Status.BUFFERED
    assert ours.close(0.05) == 2
    assert silence.cut.is_set()
    assert loop_threads("client") == []
    assert length(driver) == 1 + delivered
    with pytest.raises(Closed):
        handle.accepted(WAIT)
    with pytest.raises(Closed):
        ours.flush(WAIT)
    assert ours.close() == 2


def test_close_does_not_count_as_unsent_what_was_answered_in_the_last_moment(driver):
    answered = threading.Event()

    def late(connection, commands, timeout):
        replies = connection.connection.exchange(commands, timeout)
        if any(command[0] == "XADD" for command in commands):
            assert answered.wait(WAIT)
        return replies

    ours = Client(Bent(driver, late))
    ours.enqueue("q", "x")
    abandon = ours._machine.close

    def close(now, *, abandon=False, close=abandon):
        close(now, abandon=abandon)
        if abandon:  # the time is up
            answered.set()

    ours._machine.close = close
    assert ours.close(0.05) == 0


def test_close_leaves_a_thread_that_connects_to_itself(driver, monkeypatch, eventually):
    monkeypatch.setattr(client, "GRACE", 0.01)
    monkeypatch.setattr(client, "LINGER", 0.01)
    connecting, refused = threading.Event(), threading.Event()

    class Nowhere(Bent):
        def connect(self, timeout):
            connecting.set()
            assert refused.wait(WAIT)
            raise NotSent("no route")

    ours = Client(Nowhere(driver, None))
    ours.enqueue("q", "x")
    assert connecting.wait(WAIT)
    assert ours.close(0) == 1
    assert loop_threads("client") == ["client-publish"]
    refused.set()
    eventually(lambda: loop_threads("client") == [])


def test_two_threads_may_close_at_once(driver):
    driver.make_unavailable()
    ours = Client(driver)
    ours.enqueue("q", "x")
    closed = []
    threads = [threading.Thread(target=lambda: closed.append(ours.close(0.05))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert closed == [1, 1, 1]


def test_enqueue_many_says_how_many_it_took_when_it_fails(driver):
    driver.make_unavailable()
    with Client(driver, buffer_tasks=5, buffer_timeout=0) as ours:
        with pytest.raises(BufferFull) as failure:
            ours.enqueue_many("q", ["x"] * 10)
        assert failure.value.__notes__ == ["enqueue_many('q'): the first 5 tasks were taken, no others"]
        assert ours.buffered == 5
        driver.make_available()


# ---- Ctrl-C -----------------------------------------------------------------------------------------------


def takes_a_lock_again(thread):
    """Is it at the end of a wait on a condition, whose lock another thread has?"""
    frame = sys._current_frames()[thread.ident]
    return "_acquire_restore" in frame.f_code.co_name + linecache.getline(frame.f_code.co_filename, frame.f_lineno)


def test_ctrl_c_while_a_wait_takes_its_lock_again_leaves_the_lock_to_who_has_it(driver):
    """It was released under the thread that had it, which died of that in the middle of its work."""
    main, pressed, failures = threading.main_thread(), threading.Event(), []

    def on_ctrl_c(number, frame):
        pressed.set()
        raise KeyboardInterrupt

    def press():
        deadline = time.monotonic() + WAIT
        try:
            with ours._loops.lock:
                ours._changed.notify_all()
                while not takes_a_lock_again(main):
                    assert time.monotonic() < deadline
                signal.pthread_kill(main.ident, signal.SIGINT)
                pressed.wait(0.1)  # in vain, unless the lock can be wrested from its owner
        except BaseException as error:
            failures.append(error)

    def done():
        if not thread.ident:
            thread.start()  # it gets the lock while this one waits
        return False

    driver.make_unavailable()
    ours = Client(driver)
    ours.enqueue("q", "x")
    thread = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, on_ctrl_c)
    try:
        with ours._loops.lock, pytest.raises(KeyboardInterrupt):
            ours._wait_until(done, time.monotonic() + WAIT)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join(WAIT)
    assert failures == []
    driver.make_available()
    assert ours.close() == 0


def test_ctrl_c_right_after_a_wait_has_given_its_lock_up_comes_out_as_it_is(driver):
    """The lock was not taken again: what came out was an error about that."""
    driver.make_unavailable()
    ours = Client(driver)
    handle = ours.enqueue_tracked("q", "x")
    with ours._loops.lock:
        conditions = ours._changed, ours._waiter_of(handle._submission)
    for condition, call in zip(conditions, (ours.flush, handle.wait), strict=True):

        def give_up(condition=condition, release=condition._release_save):
            release()
            raise KeyboardInterrupt

        condition._release_save = give_up
        with pytest.raises(KeyboardInterrupt):
            call(WAIT)
        condition._release_save = ours._loops.lock._release_save
    driver.make_available()
    assert ours.close() == 0


class CtrlCOnce:
    """Comes in place of the main thread's first call. Counts the calls after that."""

    def __init__(self, call):
        self.call, self.came, self.calls = call, False, 0

    def __call__(self, *arguments):
        if not self.came and threading.current_thread() is threading.main_thread():
            self.came = True
            raise KeyboardInterrupt
        self.calls += self.came
        return self.call(*arguments)


def test_ctrl_c_while_a_link_is_started_leaves_it_to_the_next_call(driver, monkeypatch):
    """It was never started: nothing was sent any more."""
    monkeypatch.setattr(loops, "Loop", CtrlCOnce(loops.Loop))
    ours = Client(driver)
    with pytest.raises(KeyboardInterrupt):
        ours.enqueue("q", "interrupted")
    ours.enqueue("q", "next")
    ours.flush(WAIT)
    assert ours.close() == 0


def test_ctrl_c_while_a_link_is_woken_leaves_it_to_the_next_call(driver, eventually):
    """It slept on until its time was up, whatever came."""
    ours = Client(driver)
    ours.enqueue("q", "first").accepted(WAIT)
    [loop] = [loop for link, loop in ours._loops._loops.items() if link.role is Role.PUBLISH]
    eventually(lambda: loop.woken._waiters)
    notify = loop.woken.notify = CtrlCOnce(loop.woken.notify)
    with pytest.raises(KeyboardInterrupt):
        ours.enqueue("q", "interrupted")
    ours.enqueue("q", "next")
    assert notify.calls
    assert ours.close() == 0


def test_ctrl_c_while_another_is_told_of_its_task_leaves_it_to_the_next_call(driver):
    """It waited for ever, though its outcome was known."""
    driver.make_unavailable()
    ours = Client(driver)
    handle, told = ours.enqueue_tracked("q", "x"), []

    def wait():
        with pytest.raises(TaskCancelled):
            handle.wait(WAIT)
        told.append(handle.status)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + WAIT
    while handle._submission.waiter is None or not handle._submission.waiter._waiters:
        assert time.monotonic() < deadline
    waiter = handle._submission.waiter
    waiter.notify_all = CtrlCOnce(waiter.notify_all)
    with pytest.raises(KeyboardInterrupt):
        handle.cancel()
    ours.enqueue("q", "next")
    thread.join(WAIT / 2)
    assert told == [Status.CANCELLED]
    driver.make_available()
    assert ours.close() == 0


# ---- workers that hardly begin ----------------------------------------------------------------------------


def test_a_stop_that_was_requested_before_the_start_ends_it_at_once(driver):
    """It was forgotten: a signal that came a moment too early left the worker at work."""
    ran = []
    worker = worker_of(driver, ran.append)
    worker.request_stop()
    with Client(driver) as ours:
        handle = ours.enqueue_tracked("q", "x")
        handle.accepted(WAIT)
        with worker.running():
            assert worker.wait(WAIT)
        worker.request_stop()
        worker.run()
        assert ran == []
        assert worker.counts == {}
        assert length(driver) == 1
        with worker.running():  # that request was for one start
            handle.wait(WAIT)
        worker.request_stop()
        driver.make_unavailable()
        with worker.running():
            assert worker.wait(WAIT)
        driver.make_available()
    assert len(ran) == 1
    assert loop_threads("w") == []


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_worker_whose_start_is_interrupted_leaves_no_threads(driver, monkeypatch, eventually, error, number):
    """Those that had begun went on, without the others that they wait for."""
    start, started = threading.Thread.start, []

    def interrupted(thread):
        if thread.name.startswith("w-") and thread.name != "w-log":
            started.append(thread.name)
            if len(started) == number:
                if error is KeyboardInterrupt:  # it comes while the thread begins to run
                    start(thread)
                raise error
        start(thread)

    worker = worker_of(driver, lambda task: None, concurrency=2)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(error):
        worker.run()
    monkeypatch.undo()
    eventually(lambda: not any(thread.name.startswith("w-") for thread in threading.enumerate()))
    with worker.running(), Client(driver) as ours:
        ours.enqueue_tracked("q", "x").wait(WAIT)


def test_a_start_for_which_there_were_no_threads_can_be_repeated(driver, monkeypatch):
    """It was told that the worker already runs."""
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "w-handler-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    worker = worker_of(driver, lambda task: None, concurrency=2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            worker.start()
    assert loop_threads("w") == []
    worker.start()
    with Client(driver) as ours:
        ours.enqueue_tracked("q", "x").wait(WAIT)
    worker.stop()


# ---- defects ----------------------------------------------------------------------------------------------


class Defect(Exception):
    """What nobody expects."""


def failing(*names):
    """An exchange that fails where one of these commands is in it."""

    def exchange(connection, commands, timeout):
        if any(command[0] in names for command in commands):
            raise Defect("of the driver")
        return connection.connection.exchange(commands, timeout)

    return exchange


def worker_of(driver, handle, **options):
    worker = Worker(driver, name="w", concurrency=options.pop("concurrency", 1), **options)
    worker.handler("q", timeout=options.pop("timeout", None))(handle)
    return worker


def end_by_run(worker):
    worker.run()


def end_by_wait(worker):
    worker.start()
    worker.wait(WAIT)


def end_by_stop(worker):
    worker.start()
    with pytest.raises(ServerRefused):
        worker.wait(WAIT)
    worker.stop()


def end_by_block(worker):
    with worker.running(), pytest.raises(ServerRefused):
        worker.wait(WAIT)


@pytest.mark.parametrize("end", [end_by_run, end_by_wait, end_by_stop, end_by_block])
@pytest.mark.parametrize("command", ["XREADGROUP", "XACK"])
def test_a_worker_whose_thread_dies_of_a_defect_ends_and_says_why(driver, caplog, command, end):
    """It went on taking tasks that nobody settled or renewed, and ended as if nothing had been."""
    with Client(driver) as ours:
        ours.enqueue("q", "x").accepted(WAIT)
    worker = worker_of(Bent(driver, failing(command)), lambda task: None)
    with pytest.raises(
        ServerRefused, match=r"the thread w-\w+ has died of a defect: Defect\('of the driver'\)"
    ) as why:
        end(worker)
    assert isinstance(why.value.__cause__, Defect)
    assert loop_threads("w") == []
    assert any("has died of a defect" in record.getMessage() for record in caplog.records)


def test_a_worker_whose_handlers_thread_dies_of_a_defect_ends_and_says_why(driver, monkeypatch):
    def take(machine, now):
        raise Defect("of the machine")

    monkeypatch.setattr(WorkerMachine, "take", take)
    with pytest.raises(ServerRefused, match="w-handler-1 has died"):
        worker_of(driver, lambda task: None).run()
    assert loop_threads("w") == []


def test_a_machine_that_cannot_even_stop_is_left(driver, monkeypatch):
    def fail(machine, *arguments):
        raise Defect("of the machine")

    monkeypatch.setattr(WorkerMachine, "stop", fail)
    monkeypatch.setattr(WorkerMachine, "take", fail)
    with pytest.raises(ServerRefused, match="w-handler-1 has died"):
        worker_of(driver, lambda task: None).run()
    assert loop_threads("w") == []


def test_a_client_whose_thread_dies_of_a_defect_tells_all_who_ask_and_wait(driver):
    ours = Client(Bent(driver, failing("XADD")))
    handle = ours.enqueue_tracked("q", "x")
    for call in (handle.wait, ours.flush, lambda wait: ours.enqueue("q", "y")):
        with pytest.raises(ServerRefused, match="client-publish has died") as why:
            call(WAIT)
        assert isinstance(why.value.__cause__, Defect)
    assert ours.close() == 1
    assert loop_threads("client") == []


def test_a_connection_that_cannot_be_closed_does_not_hold_up_the_end(driver, monkeypatch):
    def fail(connection):
        raise Defect("of the driver")

    monkeypatch.setattr(BentConnection, "close", fail)
    worker = worker_of(Bent(driver, failing()), lambda task: "done")
    worker.start()
    with Client(driver) as ours:
        assert ours.enqueue_tracked("q", "x").wait(WAIT) == b"done"
    with suppress(ServerRefused):  # raised when a read is under way that is cut, and its connection closed
        worker.stop()
    assert loop_threads("w") == []


# ---- time -------------------------------------------------------------------------------------------------


def test_a_timeout_shorter_than_all_else_that_a_worker_waits_for_comes_in_time(driver):
    """Nobody woke the thread that keeps the time before the handler had ended."""
    release = threading.Event()
    worker = Worker(driver, name="w", concurrency=1, lease=1000, poll_interval=1000, scan_interval=1000)
    worker.handler("q", timeout=0.05)(lambda task: release.wait(WAIT))
    try:
        with worker.running(), Client(driver) as ours:
            with pytest.raises(TaskFailed, match=r"timeout after 0\.05 s"):
                ours.enqueue_tracked("q", "x", max_retries=0).wait(WAIT / 2)
            release.set()
    finally:
        release.set()
