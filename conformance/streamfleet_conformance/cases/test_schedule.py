"""Delayed tasks (protocol, section 6)."""

from __future__ import annotations

import threading
from collections import Counter
from time import monotonic

import pytest

from streamfleet_conformance.marks import row
from streamfleet_conformance.scene import GO_TASK, Scene
from streamfleet_conformance.waiting import eventually, throughout
from streamfleet_core.errors import TaskCancelled, TaskExpired
from streamfleet_core.submission import Status

SECONDS = 15.0


def server_seconds(scene: Scene) -> float:
    """The server's clock."""
    reply = scene.do("TIME")
    assert isinstance(reply, list)
    seconds, micros = reply
    return int(seconds) + int(micros) / 1e6  # type: ignore[arg-type]


def test_a_delayed_task_runs_when_it_is_due(scene: Scene) -> None:
    scene.worker()
    begun = monotonic()
    scene.client().enqueue_tracked(scene.queue, "x", delay=0.4).wait(SECONDS)
    assert 0.39 <= scene.journal.starts[0].at - begun < 3.0
    scene.drained()


def test_a_task_may_be_due_at_a_time_of_the_servers_clock(scene: Scene) -> None:
    scene.worker()
    due = server_seconds(scene) + 0.3
    scene.client().enqueue_tracked(scene.queue, "x", at=due).wait(SECONDS)
    assert server_seconds(scene) >= due


def test_a_due_time_in_the_past_means_now(scene: Scene) -> None:
    scene.worker()
    scene.client().enqueue_tracked(scene.queue, "x", at=1.0).wait(SECONDS)


def test_until_it_is_due_a_task_is_in_the_schedule_alone(scene: Scene) -> None:
    scene.worker()
    handle = scene.client().enqueue(scene.queue, "x", delay=600)
    handle.accepted(SECONDS)
    throughout(lambda: scene.number("XLEN", scene.keys.stream) == 0, 0.3, "it is not in the stream")
    [row_id, score] = scene.do("ZRANGE", scene.keys.schedule, 0, -1, "WITHSCORES")  # type: ignore[misc]
    assert row_id == handle.id.encode()
    assert isinstance(score, bytes)
    assert abs(float(score) / 1000 - server_seconds(scene) - 600) < 5
    assert scene.number("HEXISTS", scene.keys.scheduled, handle.id) == 1


def test_a_task_may_expire_before_it_is_due(scene: Scene) -> None:
    handle = scene.client().enqueue_tracked(scene.queue, "x", delay=0.2, expires_in=0.1)
    scene.worker()
    with pytest.raises(TaskExpired):
        handle.wait(SECONDS)
    assert scene.journal.starts == []
    scene.drained()


def test_a_worker_that_comes_later_finds_what_is_due(scene: Scene) -> None:
    client = scene.client()
    client.enqueue(scene.queue, "x", delay=0.01)
    client.flush(SECONDS)
    client.close()
    scene.worker()
    scene.journal.wait_ends(1)
    scene.drained()


def test_a_cancelled_task_never_runs(scene: Scene) -> None:
    scene.worker()
    client = scene.client()
    handle = client.enqueue_tracked(scene.queue, "never", delay=0.5)
    handle.accepted(SECONDS)
    assert handle.cancel(SECONDS)
    with pytest.raises(TaskCancelled):
        handle.wait(SECONDS)
    assert scene.do_all(("ZCARD", scene.keys.schedule), ("HLEN", scene.keys.scheduled)) == [0, 0]
    client.enqueue_tracked(scene.queue, "after", delay=0.6).wait(SECONDS)
    assert [attempt.data for attempt in scene.journal.starts] == [b"after"]


def test_a_task_that_has_run_cannot_be_cancelled(scene: Scene) -> None:
    scene.worker()
    handle = scene.client().enqueue_tracked(scene.queue, "x", delay=0.01)
    handle.wait(SECONDS)
    assert not handle.cancel(SECONDS)
    assert handle.status is Status.COMPLETED


@row(52)
def test_of_cancel_and_move_one_wins(scene: Scene) -> None:
    scene.worker(poll_interval=0.02)
    client = scene.client()
    handles = [client.enqueue_tracked(scene.queue, str(number), delay=0.2) for number in range(60)]
    client.flush(SECONDS)
    eventually(lambda: scene.journal.starts, "the first ones run")
    cancelled = {str(number).encode() for number, handle in enumerate(handles) if handle.cancel(SECONDS)}
    for handle in handles:
        eventually(lambda handle=handle: handle.status.terminal, "each has an end")  # type: ignore[misc]
    scene.drained()
    assert scene.journal.times_run() == Counter({b"%d" % n for n in range(60)} - cancelled)


@row(52)
def test_cancelling_while_movers_work(scene: Scene) -> None:
    for _ in range(2):
        scene.worker(poll_interval=0.02)
    client = scene.client()
    handles = [client.enqueue_tracked(scene.queue, str(number), delay=0.1 + number / 200) for number in range(60)]
    client.flush(SECONDS)
    outcomes: dict[bytes, bool] = {}

    def cancel(share: int) -> None:
        for number in range(59 - share, -1, -2):
            outcomes[b"%d" % number] = handles[number].cancel(SECONDS)

    threads = [threading.Thread(target=cancel, args=(share,)) for share in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    scene.drained()
    eventually(lambda: all(handle.status.terminal for handle in handles), "each has an end")
    assert len(outcomes) == 60
    assert scene.journal.times_run() == Counter(data for data, never in outcomes.items() if not never)


@row(51)
def test_movers_that_race_move_each_task_once(scene: Scene) -> None:
    client = scene.client()
    for number in range(500):
        client.enqueue(scene.queue, str(number), delay=0.3)
    client.flush(SECONDS)
    for _ in range(3):
        scene.worker(poll_interval=0.02)
    scene.journal.wait_ends(500)
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}
    assert scene.number("HLEN", scene.keys.scheduled) == 0


@row(54)
def test_many_due_at_once_do_not_hold_up_others(scene: Scene) -> None:
    client = scene.client()
    due = server_seconds(scene) + 0.2
    for _ in range(3000):
        client.enqueue(scene.queue, "due", at=due)
    client.flush(SECONDS)
    scene.worker(concurrency=10)
    begun = monotonic()
    scene.journal.wait_starts(1)
    client.enqueue(scene.queue, "now").accepted(SECONDS)
    assert monotonic() - begun < 5.0
    scene.journal.wait_ends(3001, 30.0)
    scene.drained()


def test_a_row_without_a_body_does_not_hold_up_others(scene: Scene) -> None:
    scene.do("ZADD", scene.keys.schedule, 1, "no-such-task")
    scene.worker()
    scene.client().enqueue_tracked(scene.queue, "x", delay=0.05).wait(SECONDS)
    scene.drained()


def test_a_broken_body_is_put_aside(scene: Scene) -> None:
    scene.do_all(
        ("ZADD", scene.keys.schedule, 1, GO_TASK["id"]),
        ("HSET", scene.keys.scheduled, GO_TASK["id"], b"not packed\x00"),
    )
    scene.worker()
    scene.client().enqueue_tracked(scene.queue, "x", delay=0.05).wait(SECONDS)
    scene.drained()
    assert len(scene.dead_letters()) == 1
