"""How the shell for threads ends: in time though the server is silent, and never unnoticed; timeouts in time."""

import threading
from contextlib import suppress

import pytest

from streamfleet import BufferFull, Status, TaskFailed
from streamfleet.errors import Closed, NotSent, OutcomeUnknown, ServerRefused
from streamfleet.sync import Client, Worker, client
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
