"""The checker itself: each invariant's check fails on a history that breaks it.

The histories are written by hand, command by command, past all machines.
"""

import pytest

from streamfleet_core.keys import GROUP, receiver_key
from streamfleet_core.submission import Status
from streamfleet_core.wire import NoticeType, Task, encode_task

from .plan import Act
from .stage import KEYS, Stage
from .verdict import judge_end, undrained


@pytest.fixture
def stage():
    return Stage()


def test_a_good_history_violates_nothing(stage):
    entry = stage.enqueue()
    stage.ran(entry, Act.FAIL)
    retry = stage.transaction("w0.1 settle", stage.entry(1), ("XDEL", KEYS.stream, entry))[0]
    stage.ran(retry)
    stage.end(retry)
    assert stage.violated == set()
    assert stage.observer.records[stage.id].ended == ["completed"]


def test_i1_a_task_that_is_gone_without_a_trace(stage):
    stage.submission.status = Status.ACCEPTED
    judge_end(stage.world)
    assert "I1" in stage.violated


def test_i1_a_task_that_never_ends(stage):
    stage.enqueue()
    stage.client.machine.pending = 0
    assert "still alive" in undrained(stage.world)
    judge_end(stage.world)
    assert {"I1", "I13"} <= stage.violated


def test_i2_a_task_that_ends_twice(stage):
    for _ in range(2):
        entry = stage.enqueue()
        stage.ran(entry)
        stage.end(entry)
    assert "I2" in stage.violated


def test_i2_a_task_that_has_ended_and_is_back(stage):
    entry = stage.enqueue()
    stage.ran(entry)
    stage.end(entry)
    stage.enqueue()
    assert stage.violated == {"I2"}


def test_i2_a_dead_letter_of_a_task_that_has_completed(stage):
    entry = stage.enqueue()
    stage.ran(entry)
    stage.end(entry)
    stage.ran(entry, Act.FINAL, worker="w1.1")
    stage.transaction("w1.1 settle", stage.letter("not to be retried"))
    assert "I2" in stage.violated


def test_i2_a_dead_letter_of_a_task_that_lives_on(stage):
    entry = stage.enqueue()
    stage.do("w0.1 settle", "XADD", KEYS.dead, "*", *stage.entry()[3:])
    assert entry
    assert "I2" in stage.violated


def test_i3_an_attempt_that_was_left_out(stage):
    entry = stage.enqueue()
    stage.transaction("w0.1 settle", stage.entry(2), ("XDEL", KEYS.stream, entry))
    assert "I3" in stage.violated


def test_i3_a_move_out_of_the_schedule_that_skips_an_attempt(stage):
    stage.transaction("c0.1 publish", *stage.schedule())
    stage.transaction("w0.1 control", ("ZREM", KEYS.schedule, stage.id), stage.entry(2))
    assert "I3" in stage.violated


def test_i4_two_live_entries(stage):
    stage.enqueue()
    stage.enqueue()
    assert "I4" in stage.violated


def test_i4_a_live_entry_and_one_in_the_schedule(stage):
    stage.enqueue()
    stage.transaction("w0.1 settle", *stage.schedule())
    assert "I4" in stage.violated


def test_i5_a_cancelled_task_that_had_run(stage):
    stage.ran()
    stage.client.machine.resolve(stage.submission, Status.CANCELLED)
    assert "I5" in stage.violated


def test_i5_a_cancelled_task_that_runs(stage):
    stage.client.machine.resolve(stage.submission, Status.CANCELLED)
    stage.ran()
    assert "I5" in stage.violated


def test_i6_a_completed_task_that_never_ran(stage):
    stage.end(stage.enqueue())
    assert "I6" in stage.violated


def test_i7_a_handle_that_is_resolved_twice(stage):
    stage.observer.terminal_kinds[stage.id] = {"completed"}
    for _ in range(2):
        stage.client.machine.resolve(stage.submission, Status.COMPLETED)
    assert stage.violated == {"I7"}


def test_i7_a_handle_that_is_never_resolved(stage):
    entry = stage.enqueue()
    stage.ran(entry)
    stage.end(entry)
    stage.client.machine.pending = 0
    assert "still waits" in undrained(stage.world)


def test_a_handle_that_is_told_what_has_not_happened(stage):
    stage.client.machine.resolve(stage.submission, Status.COMPLETED)
    assert stage.violated == {"untrue"}


def reclaim(stage):
    """A worker's entry is taken over after a lease, though nothing has happened to it."""
    stage.world.start_worker(0)
    (worker,) = stage.world.workers
    stage.enqueue()
    read = ("XREADGROUP", "GROUP", GROUP, worker.name, "STREAMS", KEYS.stream, ">")
    [[_, [[entry, _]]]] = stage.do("w0.1 read", *read)
    stage.world.engine.now += 10.0
    for loop in worker.loops:
        loop.quiet_since = 0.0
    return worker, lambda: stage.do("w1.1 control", "XCLAIM", KEYS.stream, GROUP, "w1.1", 3000, entry)


def test_i8_a_healthy_workers_entry_that_is_taken_over(stage):
    _, claim = reclaim(stage)
    assert claim()
    assert stage.violated == {"I8"}


@pytest.mark.parametrize("trouble", ["crash", "suspend", "partition"])
def test_i8_says_nothing_of_workers_in_trouble(stage, trouble):
    worker, claim = reclaim(stage)
    getattr(worker, trouble)()
    assert claim()
    assert stage.violated == set()


def test_i8_an_entry_that_is_taken_over_right_after_an_outage(stage):
    worker, claim = reclaim(stage)
    stage.world.outage_began, stage.world.outage_ended = 7.0, 9.5
    worker.loops[0].quiet_since = 9.6
    assert claim()
    assert stage.violated == {"I8"}


def test_i11_more_retries_than_allowed(stage):
    entry = stage.enqueue()
    for retries in (1, 2):
        stage.ran(entry, Act.FAIL)
        replies = stage.transaction("w0.1 settle", stage.entry(retries), ("XDEL", KEYS.stream, entry))
        entry = replies[0]
    assert stage.violated == {"I11"}


def test_i11_more_runs_of_an_entry_than_it_may_be_delivered(stage):
    entry = stage.enqueue()
    for _ in range(stage.world.max_deliveries):
        stage.ran(entry, None)
    assert stage.violated == set()
    stage.ran(entry, None)
    assert stage.violated == {"I11"}


def test_i11_a_task_that_is_dead_lettered_for_deliveries_that_it_has_not_had(stage):
    entry = stage.enqueue()
    stage.end(entry, stage.letter("delivered 5 times"), stage.notice(NoticeType.ERROR))
    assert stage.violated == {"I11"}


def test_i12_a_notice_that_brings_a_receiver_back(stage):
    stage.do("w0.1 settle", "XADD", receiver_key("gone"), "*", "type", "completed")
    assert stage.violated == {"I12"}


def test_i12_a_client_that_is_collected_though_it_beats(stage):
    stage.do("c0.1 receive", "ZADD", KEYS.receivers, 5, "c0.1")
    stage.world.engine.now += 1.0
    stage.do("w0.1 control", "ZREM", KEYS.receivers, "c0.1")
    assert stage.violated == {"I12"}


def test_i12_a_key_that_is_left(stage):
    stage.do("somebody", "SET", "streamfleet:stray", "x")
    judge_end(stage.world)
    assert "I12" in stage.violated


def test_a_task_that_nobody_enqueued(stage):
    task = Task("00000000-0000-7000-8000-000000000000", "q0", "c", b"0")
    stage.do("c0.1 publish", "XADD", KEYS.stream, "*", *encode_task(task))
    judge_end(stage.world)
    assert "unexpected" in stage.violated


def test_expiry_that_is_ignored(stage):
    stage.observer.wishes[stage.id].expires_at = 1.0
    stage.world.engine.now = 3.0
    stage.ran()
    assert stage.violated == {"expiry"}


@pytest.mark.parametrize(("slept", "violated"), [(3.0, {"expiry"}), (4.0, set())])
def test_who_slept_while_it_asked_for_the_time_is_late_by_half_of_that(stage, slept, violated):
    stage.world.start_worker(0)
    (worker,) = stage.world.workers
    worker.suspend()
    stage.world.engine.now = slept
    worker.resume()
    stage.observer.wishes[stage.id].expires_at = 5.0
    stage.world.engine.now = 7.0
    stage.ran(worker=worker.name)
    assert stage.violated == violated


def test_a_beat_goes_with_the_tail_that_the_server_loses(stage):
    stage.do("c0.1 receive", "ZADD", KEYS.receivers, 5, "c0.1")
    snapshot, saved = stage.world.server.model.snapshot(), stage.observer.save()
    stage.world.engine.now += 14.0
    stage.do("c0.1 receive", "ZADD", KEYS.receivers, 6, "c0.1")
    stage.world.server.model.restore(snapshot)
    stage.observer.load(saved)
    stage.wires.clear()
    stage.world.engine.now += 2.0
    stage.do("w0.1 control", "ZREM", KEYS.receivers, "c0.1")
    assert stage.violated == set()


def test_a_loss_that_its_client_could_have_repaired(stage):
    stage.enqueue()
    stage.submission.status = Status.ACCEPTED
    stage.world.lost(dict(stage.observer.records))
    stage.observer.wiped()
    stage.world.engine.now += 1.0
    stage.greeted()
    judge_end(stage.world)
    assert "I1" in stage.violated


@pytest.mark.parametrize(
    ("closed_after", "slept", "kept_for", "violated"),
    [(30.0, 0.0, 1.0, True), (5.0, 0.0, 1.0, False), (30.0, 1.0, 1.0, False), (30.0, 0.0, 8.0, False)],
)
def test_a_client_that_keeps_tasks_and_lives_on_notices_a_loss(stage, closed_after, slept, kept_for, violated):
    stage.enqueue()
    stage.submission.status = Status.ACCEPTED
    stage.world.engine.now += kept_for
    stage.world.lost(dict(stage.observer.records))
    stage.observer.wiped()
    stage.client.longest_sleep = slept
    stage.client.closed_at = stage.world.engine.now + closed_after
    judge_end(stage.world)
    assert ("I1" in stage.violated) is violated


def test_a_greeting_that_its_client_does_not_hear_of_is_none(stage):
    """It repairs a loss when it notices it; by then it may not keep the task any more."""
    stage.enqueue()
    stage.submission.status = Status.ACCEPTED
    stage.world.lost(dict(stage.observer.records))
    stage.observer.wiped()
    stage.world.engine.now += 1.0
    stage.do("c0.1 publish", "HINCRBY", KEYS.producer("c0.1"), "e", 1)
    stage.world.engine.now += stage.world.keep_seconds
    stage.greeted()
    judge_end(stage.world)
    assert "I1" not in stage.violated


def test_a_loss_that_nobody_could_repair_is_counted_and_forgiven(stage):
    stage.enqueue()
    stage.submission.status = Status.ACCEPTED
    stage.world.lost(dict(stage.observer.records))
    stage.observer.wiped()
    stage.client.crash()
    judge_end(stage.world)
    assert "I1" not in stage.violated
    assert stage.world.counts["lost"] == 1


def test_a_history_goes_back_with_the_server(stage):
    snapshot, saved = stage.world.server.model.snapshot(), stage.observer.save()
    entry = stage.enqueue()
    stage.ran(entry)
    stage.end(entry)
    stage.world.server.model.restore(snapshot)
    stage.observer.load(saved)
    stage.wires.clear()
    entry = stage.enqueue()
    stage.ran(entry)
    stage.end(entry)
    assert stage.violated == set()
