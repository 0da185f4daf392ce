"""The ordinary life of tasks: enqueue, run, tell."""

from __future__ import annotations

import pytest

from streamfleet.task import Task
from streamfleet_conformance.marks import in_threads, row
from streamfleet_conformance.scene import Scene
from streamfleet_conformance.waiting import counted, eventually
from streamfleet_core.errors import (
    BufferFull,
    InvalidQueueName,
    InvalidTask,
    NotTracked,
    TaskExpired,
    TaskFailed,
)
from streamfleet_core.submission import Status

SECONDS = 10.0


def test_a_task_runs_and_is_gone(scene: Scene) -> None:
    scene.worker()
    handle = scene.client().enqueue(scene.queue, "hello")
    [attempt] = scene.journal.wait_ends(1)
    assert (attempt.id, attempt.data, attempt.attempt, attempt.deliveries) == (handle.id, b"hello", 1, 1)
    scene.drained()
    assert scene.dead_letters() == []


def test_the_client_may_be_first(scene: Scene) -> None:
    client = scene.client()
    client.enqueue(scene.queue, "early")
    client.flush(SECONDS)
    scene.worker()
    assert scene.journal.wait_ends(1)[0].data == b"early"


def test_tasks_run_in_order_when_one_at_a_time(scene: Scene) -> None:
    scene.client().enqueue_many(scene.queue, [b"%d" % n for n in range(300)])
    scene.worker(concurrency=1)
    assert [attempt.data for attempt in scene.journal.wait_ends(300)] == [b"%d" % n for n in range(300)]
    scene.drained()


def test_several_workers_share_a_queue(scene: Scene) -> None:
    workers = [scene.worker() for _ in range(3)]
    scene.client().enqueue_many(scene.queue, [b"%d" % n for n in range(1000)])
    scene.journal.wait_ends(1000)
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}
    eventually(lambda: sum(worker.counts.get("completed", 0) for worker in workers) == 1000, "each ran once")


def test_a_worker_serves_several_queues(scene: Scene) -> None:
    other = scene.more_queue()
    scene.worker({scene.queue: scene.journal.handler(who="one"), other: scene.journal.handler(who="other")})
    client = scene.client(scene.queue, other)
    for _ in range(3):
        client.enqueue(scene.queue, "one")
        client.enqueue(other, "other")
    assert all(attempt.who.encode() == attempt.data for attempt in scene.journal.wait_ends(6))


def test_a_queue_may_be_new_to_the_client(scene: Scene) -> None:
    other = scene.more_queue()
    client = scene.client(scene.queue)
    client.enqueue(other, "x")
    client.flush(SECONDS)
    scene.worker({other: scene.journal.handler()})
    scene.journal.wait_ends(1)


@pytest.mark.parametrize("value", [None, b"\x00\xff", "text"])
def test_what_a_handler_returns_comes_back(scene: Scene, value: bytes | str | None) -> None:
    scene.worker(lambda task: value)
    handle = scene.client().enqueue_tracked(scene.queue, "x")
    assert handle.wait(SECONDS) == (value.encode() if isinstance(value, str) else value)
    assert handle.status is Status.COMPLETED


def test_a_failure_is_told_with_its_error(scene: Scene) -> None:
    def fail(task: Task) -> None:
        raise RuntimeError("the printer burns")

    scene.worker(fail)
    handle = scene.client().enqueue_tracked(scene.queue, "x", max_retries=0)
    with pytest.raises(TaskFailed, match="the printer burns"):
        handle.wait(SECONDS)


def test_an_expired_task_is_not_run(scene: Scene) -> None:
    client = scene.client()
    handle = client.enqueue_tracked(scene.queue, "late", expires_in=0.05)
    handle.accepted(SECONDS)
    server = scene.do("TIME")
    assert isinstance(server, list)
    eventually(lambda: scene.number("XLEN", scene.keys.stream) == 1, "the task is in its queue")
    expires = int(scene.entries()[0][b"expires_ts"])
    eventually(lambda: server_ms(scene) > expires, "the task has expired")
    scene.worker()
    with pytest.raises(TaskExpired):
        handle.wait(SECONDS)
    scene.drained()
    assert scene.journal.starts == []


def server_ms(scene: Scene) -> int:
    """The server's clock."""
    reply = scene.do("TIME")
    assert isinstance(reply, list)
    seconds, micros = reply
    return int(seconds) * 1000 + int(micros) // 1000  # type: ignore[arg-type]


def test_an_expiry_in_the_past_is_settled_at_once(scene: Scene) -> None:
    handle = scene.client().enqueue_tracked(scene.queue, "late", expires_in=-1)
    with pytest.raises(TaskExpired):
        handle.wait(SECONDS)
    assert scene.number("XLEN", scene.keys.stream) == 0


def test_an_untracked_outcome_cannot_be_waited_for(scene: Scene) -> None:
    handle = scene.client().enqueue(scene.queue, "x")
    handle.accepted(SECONDS)
    with pytest.raises(NotTracked):
        handle.wait(0.1)


def test_waiting_has_a_limit(scene: Scene) -> None:
    handle = scene.client().enqueue_tracked(scene.queue, "x")
    with pytest.raises(TimeoutError):
        handle.wait(0.05)


def test_close_sends_what_is_buffered(scene: Scene) -> None:
    client = scene.client()
    client.enqueue_many(scene.queue, [b"x"] * 700)
    assert client.close(SECONDS) == 0
    assert scene.number("XLEN", scene.keys.stream) == 700


@row(12)
def test_a_full_buffer_is_said_and_what_was_accepted_survives(scene: Scene) -> None:
    way = scene.way()
    way.block()
    client = scene.client(way=way, buffer_tasks=10, buffer_timeout=0.05)
    for number in range(10):
        client.enqueue(scene.queue, str(number))
    with pytest.raises(BufferFull):
        client.enqueue(scene.queue, "too many")
    assert client.buffered == 10
    way.open()
    client.flush(SECONDS)
    assert [entry[b"data"] for entry in scene.entries()] == [b"%d" % number for number in range(10)]


def test_client_and_worker_may_be_started_without_a_server(scene: Scene) -> None:
    way = scene.way()
    way.block()
    scene.worker(way=way)
    handle = scene.client(way=way).enqueue_tracked(scene.queue, "patient")
    way.open()
    handle.wait(SECONDS)
    assert [attempt.data for attempt in scene.journal.ends] == [b"patient"]


@pytest.mark.parametrize("name", ["", "receiver:x", "x:receivers", "x" * 600])
def test_impossible_queue_names_are_refused(scene: Scene, name: str) -> None:
    with pytest.raises(InvalidQueueName):
        scene.client().enqueue(name, "x")


def test_impossible_tasks_are_refused(scene: Scene) -> None:
    client = scene.client(max_payload=10)
    with pytest.raises(InvalidTask, match="10"):
        client.enqueue(scene.queue, "x" * 11)
    with pytest.raises(InvalidTask):
        client.enqueue(scene.queue, "x", delay=-1)
    with pytest.raises(InvalidTask):
        client.enqueue(scene.queue, "x", max_retries=-1)
    assert client.buffered == 0


def test_a_handler_that_raises_system_exit_ends_its_attempt_alone(scene: Scene) -> None:
    def leave(task: Task) -> None:
        if task.data == b"exit":
            raise SystemExit(3)

    scene.worker(scene.journal.handler(leave), concurrency=1)
    client = scene.client()
    handle = client.enqueue_tracked(scene.queue, "exit", max_retries=0)
    with pytest.raises(TaskFailed, match="SystemExit"):
        handle.wait(SECONDS)
    client.enqueue_tracked(scene.queue, "go on").wait(SECONDS)


def test_a_handler_that_takes_too_long_fails_its_attempt_and_gives_its_place_to_others(scene: Scene) -> None:
    gate = scene.gate()

    def slow_once(task: Task) -> None:
        if task.attempt == 1:
            gate.wait()

    worker = scene.worker(scene.journal.handler(slow_once), timeout=0.1, concurrency=1)
    handle = scene.client().enqueue_tracked(scene.queue, "x", retry_delay=0)
    handle.wait(SECONDS)
    [first, second] = scene.journal.starts
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.task.cancelled
    assert worker.interrupted == int(scene.interrupts)
    counted(worker, completed=1, retry=1)
    scene.drained()


@in_threads
def test_a_handler_that_takes_too_long_and_goes_on_fails_its_attempt(scene: Scene) -> None:
    gate = scene.gate()
    cancelled: list[bool] = []

    def slow_once(task: Task) -> None:
        if task.attempt == 1:
            eventually(lambda: task.cancelled, "the task is told to stop")
            cancelled.append(True)
            gate.wait()

    worker = scene.worker(scene.journal.handler(slow_once), timeout=0.1, concurrency=1)
    handle = scene.client().enqueue_tracked(scene.queue, "x", retry_delay=0)
    handle.wait(SECONDS)
    assert [attempt.attempt for attempt in scene.journal.starts] == [1, 2]
    eventually(lambda: cancelled, "the first attempt was told to stop")
    gate.set()
    eventually(lambda: worker.counts.get("late"), "the late handler was noticed")
    scene.drained()


@row(65)
def test_only_declared_keys_remain(scene: Scene) -> None:
    worker = scene.worker(scene.journal.handler(lambda task: 1 / (task.data == b"ok")))
    client = scene.client()
    handles = [client.enqueue_tracked(scene.queue, "ok", delay=0.01 * n) for n in range(5)]
    for handle in handles:
        handle.wait(SECONDS)
    with pytest.raises(TaskFailed):
        client.enqueue_tracked(scene.queue, "no", max_retries=0).wait(SECONDS)
    assert client.close(SECONDS) == 0
    worker.stop()
    keys = scene.keys
    assert scene.own_keys() <= {keys.stream, keys.dead, keys.fence, keys.moves}
    assert scene.do_all(("XLEN", keys.stream), ("XLEN", keys.dead)) == [0, 1]
    assert scene.consumers() == {}
