"""The shell for threads: what a program sees of it."""

import logging
import os
import threading

import pytest

from streamfleet import (
    BufferFull,
    DoNotRetry,
    RetryLater,
    RetryPolicy,
    Status,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
)
from streamfleet.errors import Closed, InvalidHandler, NotTracked, UsageError, WrongDriver, WrongKeyType
from streamfleet.sync import Client, Worker

WAIT = 20


def worker_of(driver, handle, *, queue="q", **options):
    worker = Worker(driver, name="w", concurrency=options.pop("concurrency", 2), **options)
    worker.handler(queue)(handle)
    return worker


def keys_of(driver):
    connection = driver.connect(5)
    try:
        return {key.decode() for key in connection.exchange([("KEYS", "*")], 5)[0]}
    finally:
        connection.close()


def ask(driver, *command):
    connection = driver.connect(5)
    try:
        return connection.exchange([command], 5)[0]
    finally:
        connection.close()


# ---- life -----------------------------------------------------------------------------------------------


def test_a_tracked_task_brings_back_what_its_handler_returned(driver):
    seen = []

    def handle(task):
        seen.append((task.queue, task.data, task.attempt, task.tracked, task.deliveries))
        return task.text.upper()

    with worker_of(driver, handle).running(), Client(driver) as client:
        assert client.enqueue_tracked("q", "hello").wait(WAIT) == b"HELLO"
    assert seen == [("q", b"hello", 1, True, 1)]


def test_bytes_travel_as_they_are(driver):
    payload = bytes(range(256)) * 4
    with worker_of(driver, lambda task: task.data).running(), Client(driver) as client:
        assert client.enqueue_tracked("q", payload).wait(WAIT) == payload


def test_a_result_that_cannot_travel_is_dropped_with_a_warning(driver, caplog):
    with worker_of(driver, lambda task: {"a": 1}).running(), Client(driver) as client:
        assert client.enqueue_tracked("q", "x").wait(WAIT) is None
        assert client.enqueue_tracked("q", "x").wait(WAIT) is None
    warnings = [r.getMessage() for r in caplog.records if "returned dict" in r.getMessage()]
    assert len(warnings) == 1


def test_untracked_tasks_run_and_say_so_when_asked(driver):
    ran = threading.Event()
    with worker_of(driver, lambda task: ran.set()).running(), Client(driver) as client:
        handle = client.enqueue("q", "x")
        handle.accepted(WAIT)
        assert ran.wait(WAIT)
        with pytest.raises(NotTracked, match="enqueue_tracked"):
            handle.wait(0)


def test_a_client_enqueues_before_any_worker_exists_and_after_it_has_gone(driver):
    done = threading.Event()
    with Client(driver, queues=["q"]) as client:
        client.enqueue("q", "early")
    assert keys_of(driver) == {"streamfleet:q"}
    with worker_of(driver, lambda task: done.set()).running():
        assert done.wait(WAIT)


def test_after_all_have_closed_only_declared_keys_remain(driver):
    with worker_of(driver, lambda task: None).running(), Client(driver) as client:
        for _ in range(20):
            client.enqueue_tracked("q", "x", retry_delay=0).wait(WAIT)
    declared = {"streamfleet:q", "{streamfleet:q}:fence", "{streamfleet:q}:moves", "{streamfleet:q}:dead"}
    assert keys_of(driver) <= declared
    assert ask(driver, "XLEN", "streamfleet:q") == 0
    assert ask(driver, "XINFO", "CONSUMERS", "streamfleet:q", "streamfleet-server") == []


def test_one_driver_serves_clients_and_workers_of_many_queues(driver):
    worker = Worker(driver, concurrency=3)
    for queue in ("a", "b", "c{d}"):
        worker.handler(queue)(lambda task: task.queue)
    with worker.running(), Client(driver) as client:
        handles = [client.enqueue_tracked(queue, "x") for queue in ("a", "b", "c{d}") * 5]
        assert [handle.wait(WAIT) for handle in handles] == [b"a", b"b", b"c{d}"] * 5


# ---- failure --------------------------------------------------------------------------------------------


def test_a_failing_task_is_retried_and_then_dead_with_its_reason(driver):
    attempts = []

    def handle(task):
        attempts.append(task.attempt)
        raise ValueError("no luck")

    with worker_of(driver, handle).running(), Client(driver) as client:
        handle = client.enqueue_tracked("q", "x", max_retries=2, retry_delay=0)
        with pytest.raises(TaskFailed, match=r"ValueError: no luck \(failed 3 times, 2 retries allowed\)"):
            handle.wait(WAIT)
    assert attempts == [1, 2, 3]
    ((_, fields),) = ask(driver, "XRANGE", "{streamfleet:q}:dead", "-", "+")
    letter = dict(zip(fields[::2], fields[1::2], strict=True))
    assert letter[b"last_error"] == b"ValueError: no luck"
    assert b"Traceback" in letter[b"traceback"]
    assert letter[b"data"] == b"x"
    assert letter[b"id"].decode() == handle.id


def test_retry_later_waits_as_long_as_it_says_and_counts(driver):
    attempts = []

    def handle(task):
        attempts.append(task.attempt)
        if task.attempt == 1:
            raise RetryLater(0.05)

    with worker_of(driver, handle).running(), Client(driver) as client:
        client.enqueue_tracked("q", "x").wait(WAIT)
    assert attempts == [1, 2]


def test_do_not_retry_is_final(driver):
    def handle(task):
        raise DoNotRetry("wrong address")

    with worker_of(driver, handle).running(), Client(driver) as client:
        with pytest.raises(TaskFailed, match="wrong address.*not to be retried"):
            client.enqueue_tracked("q", "x", max_retries=None).wait(WAIT)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_handler_cannot_take_its_worker_down(driver, error):
    def handle(task):
        if task.text == "bad":
            raise error
        return "fine"

    with worker_of(driver, handle, concurrency=1).running(), Client(driver) as client:
        with pytest.raises(TaskFailed, match=type(error).__name__):
            client.enqueue_tracked("q", "bad", max_retries=0).wait(WAIT)
        assert client.enqueue_tracked("q", "good").wait(WAIT) == b"fine"


def test_a_handler_that_never_returns_is_timed_out_and_replaced(driver, eventually):
    release = threading.Event()
    reasons = []

    def handle(task):
        if task.text == "hang":
            assert release.wait(WAIT)
            reasons.append((task.cancelled, task.cancel_reason))
        return task.text

    worker = Worker(driver, name="w", concurrency=1)
    worker.handler("q", timeout=0.1)(handle)
    with worker.running(), Client(driver) as client:
        with pytest.raises(TaskFailed, match=r"timeout after 0.1 s"):
            client.enqueue_tracked("q", "hang", max_retries=0).wait(WAIT)
        assert client.enqueue_tracked("q", "next").wait(WAIT) == b"next"
        release.set()
        eventually(lambda: worker.counts.get("late") == 1)
        assert client.enqueue_tracked("q", "still").wait(WAIT) == b"still"
    assert reasons == [(True, "timeout")]


def test_a_handler_that_hangs_is_replaced_when_others_own_its_task_and_not_for_want_of_contact(
    driver, eventually, settle_elsewhere
):
    release, started = threading.Event(), threading.Event()
    held = []

    def handle(task):
        if task.text == "hang":
            held.append(task)
            started.set()
            release.wait(WAIT)
        return task.text

    worker = Worker(driver, name="w", concurrency=1, lease=0.4)
    worker.handler("q", timeout=1000)(handle)
    try:
        with worker.running(), Client(driver) as client:
            client.enqueue("q", "hang")
            assert started.wait(WAIT)
            threads = threading.active_count()
            driver.make_unavailable()
            eventually(lambda: held[0].cancelled)
            assert "no contact" in held[0].cancel_reason
            assert threading.active_count() == threads
            settle_elsewhere()
            driver.make_available()
            assert client.enqueue_tracked("q", "quick").wait(WAIT) == b"quick"
            assert held[0].cancel_reason == "others own the task now"
            release.set()
            eventually(lambda: worker.counts.get("late"))
    finally:
        release.set()
    assert (worker.counts["lost"], worker.counts["late"]) == (1, 1)


# ---- time -----------------------------------------------------------------------------------------------


def test_expiry_in_the_past_settles_the_task_as_expired(driver):
    ran = []
    with worker_of(driver, ran.append).running(), Client(driver) as client:
        for options in ({"expires_in": -1}, {"expires_in": 0}, {"expires_at": 1.0}):
            handle = client.enqueue_tracked("q", "x", **options)
            with pytest.raises(TaskExpired):
                handle.wait(WAIT)
            with pytest.raises(TaskExpired):
                handle.accepted(0)
        assert client.enqueue("q", "x", expires_in=-5).status is Status.EXPIRED
    assert ran == []


def test_a_delayed_task_waits_and_can_be_cancelled(driver):
    ran = threading.Event()
    with Client(driver) as client:
        late = client.enqueue_tracked("q", "x", delay=3600)
        late.accepted(WAIT)
        assert late.cancel() is True
        with pytest.raises(TaskCancelled):
            late.wait(0)
        assert ask(driver, "ZCARD", "{streamfleet:q}:schedule") == 0
        assert ask(driver, "HLEN", "{streamfleet:q}:scheduled") == 0
        soon = client.enqueue_tracked("q", "x", delay=0.05)
        with worker_of(driver, lambda task: ran.set()).running():
            soon.wait(WAIT)
            assert ran.is_set()
            assert soon.cancel() is False


# ---- outages --------------------------------------------------------------------------------------------


def test_client_and_worker_start_while_the_server_is_down(driver, caplog):
    driver.make_unavailable()
    with worker_of(driver, lambda task: "ok").running(), Client(driver) as client:
        handle = client.enqueue_tracked("q", "x")
        with pytest.raises(TimeoutError, match="not finished within 0.05 s; it is buffered"):
            handle.wait(0.05)
        with pytest.raises(TimeoutError, match="1 tasks were not accepted"):
            client.flush(0.05)
        driver.make_available()
        assert handle.wait(WAIT) == b"ok"
    lost = [r for r in caplog.records if "no connection" in r.getMessage()]
    assert len(lost) == 2  # one line for the client, one for the worker


def test_a_full_buffer_is_refused_and_what_was_taken_is_kept(driver, eventually):
    driver.make_unavailable()
    done = []
    with Client(driver, buffer_tasks=5, buffer_timeout=0) as client:
        for number in range(5):
            client.enqueue("q", str(number))
        with pytest.raises(BufferFull, match="5 tasks"):
            client.enqueue("q", "too many")
        driver.make_available()
        client.flush(WAIT)
    with worker_of(driver, lambda task: done.append(task.text), concurrency=1).running() as worker:
        eventually(lambda: worker.counts.get("completed") == 5)
    assert done == ["0", "1", "2", "3", "4"]


def test_enqueue_waits_for_room_in_a_full_buffer(driver):
    driver.make_unavailable()
    with Client(driver, buffer_tasks=1, buffer_timeout=WAIT) as client:
        client.enqueue("q", "first")
        threading.Timer(0.05, driver.make_available).start()
        client.enqueue("q", "second")
        client.flush(WAIT)
    assert ask(driver, "XLEN", "streamfleet:q") == 2


def test_close_says_what_it_could_not_send(driver, caplog):
    driver.make_unavailable()
    client = Client(driver)
    handle = client.enqueue("q", "x")
    assert client.close(0.05) == 1
    assert client.close() == 1
    assert any("closed with 1 tasks not sent" in r.getMessage() for r in caplog.records)
    with pytest.raises(Closed):
        client.enqueue("q", "y")
    with pytest.raises((Closed, TaskCancelled)):
        handle.accepted(1)


def test_waiting_for_a_closed_client_ends(driver):
    client = Client(driver)
    handle = client.enqueue_tracked("q", "nobody runs it")
    handle.accepted(WAIT)
    failed = []

    def wait():
        try:
            handle.wait(WAIT)
        except Closed as error:
            failed.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert client.close() == 0
    waiter.join(WAIT)
    assert failed


def test_stopping_gives_unstarted_entries_back_at_once(driver, eventually):
    started, release = threading.Event(), threading.Event()

    def slow(task):
        started.set()
        release.wait(WAIT)

    with Client(driver) as client:
        client.enqueue_many("q", ["x"] * 10)
        client.flush(WAIT)
    first = worker_of(driver, slow, concurrency=1)
    first.start()
    assert started.wait(WAIT)
    done = []
    with worker_of(driver, lambda task: done.append(task.id), concurrency=1).running():
        stopper = threading.Thread(target=first.stop)
        stopper.start()
        eventually(lambda: len(done) == 9)
        release.set()
        stopper.join(WAIT)
    assert first.counts["completed"] == 1
    assert ask(driver, "XLEN", "streamfleet:q") == 0


def test_a_worker_that_is_given_no_time_releases_what_it_runs(driver, eventually):
    started, release = threading.Event(), threading.Event()
    reasons = []

    def slow(task):
        started.set()
        release.wait(WAIT)
        reasons.append(task.cancel_reason)

    with Client(driver) as client:
        client.enqueue("q", "x")
    first = worker_of(driver, slow)
    first.start()
    assert started.wait(WAIT)
    first.stop(drain=0)
    assert first.in_flight == 0
    done = threading.Event()
    with worker_of(driver, lambda task: done.set()).running():
        assert done.wait(WAIT)
    release.set()
    eventually(lambda: reasons == ["the worker stops"])


# ---- processes ------------------------------------------------------------------------------------------


def test_a_forked_child_has_an_identity_of_its_own(driver):
    with Client(driver) as client:
        client.enqueue("q", "parent").accepted(WAIT)
        before = client.id
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(write, f"{client.id} {client.buffered}".encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        child, buffered = os.read(read, 200).decode().split()
        os.close(read)
        os.close(write)
        assert child != before == client.id
        assert buffered == "0"
        client.enqueue("q", "parent again").accepted(WAIT)


# ---- bad use --------------------------------------------------------------------------------------------


def test_drivers_of_other_shells_are_refused():
    class OnlyAsync:
        name, url, missing = "x", "x", frozenset()

        async def connect_async(self, timeout):
            raise AssertionError

        def close(self):
            pass

    with pytest.raises(WrongDriver, match="OnlyAsync does not serve threads: use RedisDriver"):
        Client(OnlyAsync())
    with pytest.raises(WrongDriver, match="expected a driver, got 'redis://x'"):
        Worker("redis://x")


def test_handlers_are_checked_when_they_are_registered(driver):
    worker = worker_of(driver, len)
    with pytest.raises(InvalidHandler, match="already has the handler"):
        worker.handler("q")(len)
    with pytest.raises(InvalidHandler, match="must be callable"):
        worker.handler("r")(3)
    with pytest.raises(InvalidHandler, match="timeout"):
        worker.handler("s", timeout=-1)(len)
    with pytest.raises(UsageError, match="no handlers"):
        Worker(driver).start()
    with worker.running():
        with pytest.raises(UsageError, match="too late"):
            worker.handler("t")(len)
        with pytest.raises(UsageError, match="already runs"):
            worker.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": True}, "max_retries"),
        ({"max_retries": 2**31}, "max_retries"),
        ({"max_retries": 1.5}, "max_retries"),
        ({"retry_delay": -1}, "retry_delay"),
        ({"retry_delay": float("nan")}, "retry_delay"),
        ({"retry_delay": "1"}, "retry_delay"),
        ({"delay": -0.1}, "delay"),
        ({"delay": 1e11}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": "1"}, "delay"),
        ({"at": -5}, "at"),
        ({"delay": 1, "at": 1}, "not both"),
        ({"expires_in": 1, "expires_at": 1}, "not both"),
        ({"expires_in": float("inf")}, "expires_in"),
        ({"retry": 3}, "RetryPolicy"),
        ({"retry": RetryPolicy(), "max_retries": 5}, "not both"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_sent(driver, options, message):
    with Client(driver) as client:
        with pytest.raises(UsageError, match=message):
            client.enqueue("q", "x", **options)
        assert client.buffered == 0
    assert keys_of(driver) == set()


@pytest.mark.parametrize("queue", ["", "receiver:x", "x:receivers", "x" * 513, 3, None])
def test_bad_queue_names_are_refused(driver, queue):
    with Client(driver) as client, pytest.raises(UsageError, match="queue"):
        client.enqueue(queue, "x")
    with pytest.raises(UsageError, match="queue"):
        Worker(driver).handler(queue)(len)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"a": 1}, "bytes or str, got dict.*json.dumps"),
        (None, "bytes or str, got NoneType"),
        (b"x" * (1024 * 1024 + 1), r"1,048,577 bytes exceeds the limit of 1,048,576"),
        ("\ud800", "not valid text"),
    ],
)
def test_bad_payloads_are_refused(driver, payload, message):
    with Client(driver) as client:
        with pytest.raises(UsageError, match=message):
            client.enqueue("q", payload)
        assert client.buffered == 0


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"concurrency": True}, {"lease": 0}, {"lease": float("nan")}, {"max_deliveries": 0}],
)
def test_bad_settings_are_refused_with_their_name(driver, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        Worker(driver, **options)
    with pytest.raises(UsageError, match="buffer_tasks"):
        Client(driver, buffer_tasks=0)
    with pytest.raises(UsageError, match="name"):
        Worker(driver, name="")


def test_a_wrong_typed_key_is_named_when_the_worker_starts(driver, caplog):
    ask(driver, "SET", "{streamfleet:q}:dead", "x")
    worker = worker_of(driver, len)
    quiet = caplog.at_level(logging.CRITICAL, "streamfleet")
    with quiet, pytest.raises(WrongKeyType, match="holds a string.*stream"):
        worker.run()


def test_the_log_tells_what_happened_without_tracebacks(driver, caplog):
    def handle(task):
        raise ValueError("broken")

    with caplog.at_level(logging.INFO, "streamfleet"), worker_of(driver, handle).running():
        with Client(driver) as client, pytest.raises(TaskFailed):
            client.enqueue_tracked("q", "x", max_retries=0).wait(WAIT)
    dead = [record for record in caplog.records if "dead-lettered" in record.getMessage()]
    assert [record.levelname for record in dead] == ["ERROR"]
    assert dead[0].exc_info is None
    assert dead[0].streamfleet.data["error"] == "ValueError: broken"
