"""The checker of ends: each check of `outcomes` fails on a history that breaks it."""

from dataclasses import replace

import pytest

from streamfleet_core.keys import receiver_key
from streamfleet_core.submission import Status
from streamfleet_core.wire import NoticeType

from .plan import Act
from .stage import KEYS, TASK, Stage


@pytest.fixture
def stage():
    return Stage()


def expiring(**plan):
    return Stage(replace(TASK, expires_in=5.0), **plan)


# ---- what is written --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "end", "violated"),
    [
        (Act.OK, "completed", set()),
        (Act.HANG, "completed", set()),
        (Act.FAIL, "completed", {"I6"}),
        (None, "completed", {"I6"}),
        (Act.FAIL, "retried", set()),
        (Act.LATER, "retried", set()),
        (Act.OK, "retried", {"I3"}),
        (Act.FINAL, "retried", {"I3"}),
        (None, "retried", {"I3"}),
        (Act.FINAL, "dead", set()),
        (Act.FAIL, "dead", {"I11"}),
        (Act.OK, "dead", {"I11"}),
        (None, "dead", {"I11"}),
    ],
)
def test_an_end_is_what_the_handler_did(stage, act, end, violated):
    entry = stage.enqueue()
    stage.ran(entry, act)
    written = {
        "completed": (stage.notice(),),
        "retried": (stage.entry(1),),
        "dead": (stage.letter("not to be retried"), stage.notice(NoticeType.ERROR)),
    }
    stage.end(entry, *written[end])
    assert stage.violated == violated


def test_another_workers_run_is_no_reason_to_end_an_entry(stage):
    entry = stage.enqueue()
    stage.ran(entry, worker="w1.1")
    stage.end(entry)
    assert stage.violated == {"I6"}


def test_a_run_of_another_entry_is_no_reason_to_end_this_one(stage):
    entry = stage.enqueue()
    stage.ran(b"1-1")
    stage.end(entry)
    assert stage.violated == {"I6"}


def test_a_task_whose_retries_are_used_up_is_dead(stage):
    entry = stage.enqueue(retries=1)
    stage.ran(entry, Act.FAIL)
    stage.end(entry, stage.letter("failed 2 times", retries=1), stage.notice(NoticeType.ERROR))
    assert stage.violated == set()


@pytest.mark.parametrize(("seconds", "violated"), [(0.9, {"I3"}), (1.1, set())])
def test_an_attempt_that_takes_too_long_has_failed(seconds, violated):
    stage = Stage(timeout=1.0)
    entry = stage.enqueue()
    stage.ran(entry, None)
    stage.world.engine.now += seconds
    stage.end(entry, stage.entry(1))
    assert stage.violated == violated


def test_a_retry_that_does_not_count(stage):
    entry = stage.enqueue()
    stage.ran(entry, Act.FAIL)
    stage.end(entry, stage.entry(0))
    assert stage.violated == {"I3"}


@pytest.mark.parametrize("notices", [(), ("COMPLETED", "COMPLETED"), ("ERROR",)])
def test_i7_an_end_has_one_notice_that_says_the_same(stage, notices):
    entry = stage.enqueue()
    stage.ran(entry)
    commands = [stage.notice(NoticeType[name]) for name in notices]
    stage.end(entry, *(commands or [("PING",)]))
    assert "I7" in stage.violated


def test_i7_a_notice_of_a_task_that_lives_on(stage):
    stage.enqueue()
    stage.do("w0.1 settle", *stage.notice())
    assert stage.violated == {"I7"}


@pytest.mark.parametrize(("at", "violated"), [(4.9, {"expiry"}), (5.0, set())])
def test_a_task_does_not_expire_before_its_time(at, violated):
    """Whoever slept, and however long an answer took: who does not know the time waits."""
    stage = expiring()
    stage.client.suspend()
    stage.world.engine.now = 4.0
    stage.client.resume()
    entry = stage.enqueue()
    stage.world.engine.now = at
    stage.end(entry, stage.notice(NoticeType.EXPIRED))
    assert stage.violated == violated


def test_a_clock_that_was_set_is_no_measure():
    stage = expiring()
    stage.world.clock_set = True
    stage.end(stage.enqueue(), stage.notice(NoticeType.EXPIRED))
    assert stage.violated == set()


@pytest.mark.parametrize(("asked", "violated"), [(False, {"I5"}), (True, set())])
def test_i5_only_a_user_cancels(stage, asked, violated):
    stage.transaction("c0.1 publish", *stage.schedule())
    if asked:
        stage.observer.cancelling(stage.client, stage.submission)
    stage.do("c0.1 publish", "ZREM", KEYS.schedule, stage.id)
    assert stage.violated == violated


def test_i5_a_task_that_has_run_is_not_cancelled(stage):
    entry = stage.enqueue()
    stage.ran(entry, Act.FAIL)
    stage.end(entry, *stage.schedule(retries=1))
    stage.observer.cancelling(stage.client, stage.submission)
    stage.do("c0.1 publish", "ZREM", KEYS.schedule, stage.id)
    assert stage.violated == {"I5"}


def test_i5_a_cancelled_task_that_is_sent_all_the_same(stage):
    stage.observer.cancelling(stage.client, stage.submission)
    stage.client.machine.resolve(stage.submission, Status.CANCELLED)
    stage.enqueue()
    assert stage.violated == {"I5"}


@pytest.mark.parametrize(("early_ms", "violated"), [(1, {"due"}), (0, set())])
def test_a_task_does_not_leave_the_schedule_before_it_is_due(stage, early_ms, violated):
    stage.transaction("c0.1 publish", *stage.schedule(stage.world.server.now_ms() + early_ms))
    stage.transaction("w0.1 control", ("ZREM", KEYS.schedule, stage.id), stage.entry())
    assert stage.violated == violated


# ---- what is told -----------------------------------------------------------------------------------


def tell(stage, status):
    stage.client.machine.resolve(stage.submission, status)


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.UNKNOWN, Status.REFUSED])
def test_what_is_told_has_happened(stage, status):
    stage.enqueue()
    tell(stage, status)
    assert stage.violated == {"untrue"}


def test_a_task_that_was_sent_has_expired_at_the_server_or_not_at_all():
    stage = expiring()
    stage.enqueue()
    stage.world.engine.now = 6.0
    tell(stage, Status.EXPIRED)
    assert stage.violated == {"untrue"}


def test_a_task_that_was_not_sent_may_expire_at_its_client():
    stage = expiring()
    stage.world.engine.now = 6.0
    tell(stage, Status.EXPIRED)
    assert stage.violated == set()


def test_a_task_that_was_sent_is_cancelled_at_the_server_or_not_at_all(stage):
    stage.enqueue()
    stage.observer.cancelling(stage.client, stage.submission)
    tell(stage, Status.CANCELLED)
    assert stage.violated == {"untrue"}


@pytest.mark.parametrize(("closing", "violated"), [(False, {"untrue"}), (True, set())])
def test_only_a_client_that_closes_gives_up_what_nobody_cancelled(stage, closing, violated):
    stage.client.closing = closing
    tell(stage, Status.CANCELLED)
    assert stage.violated == violated


def make_receiver(stage):
    key = receiver_key(stage.client.machine.lanes[0].client_id)
    stage.do("c0.1 publish", "XGROUP", "CREATE", key, "g", "0", "MKSTREAM")
    return key


def test_the_outcome_may_be_unknown_when_the_receiver_is_missing(stage):
    key = make_receiver(stage)
    stage.enqueue()
    stage.do("somebody", "DEL", key)
    tell(stage, Status.UNKNOWN)
    assert stage.violated == set()


@pytest.mark.parametrize(("missing_until", "violated"), [(1.0, {"untrue"}), (3.0, set())])
def test_a_receiver_that_came_back_before_the_task_explains_nothing(stage, missing_until, violated):
    key = make_receiver(stage)
    stage.do("somebody", "DEL", key)
    for moment in sorted((2.0, missing_until)):
        stage.world.engine.now = moment
        _ = stage.enqueue() if moment == 2.0 else make_receiver(stage)
    tell(stage, Status.UNKNOWN)
    assert stage.violated == violated


@pytest.mark.parametrize(("broke_at", "violated"), [(1.0, {"untrue"}), (3.0, set())])
def test_a_connection_that_broke_may_have_lost_a_cancellation(stage, broke_at, violated):
    stage.enqueue()
    stage.world.engine.now = 2.0
    stage.observer.cancelling(stage.client, stage.submission)
    (loop,) = [loop for loop in stage.client.loops if loop.link.role.value == "publish"]
    loop.broke_at = broke_at
    tell(stage, Status.UNKNOWN)
    assert stage.violated == violated


def test_the_outcome_may_be_unknown_of_a_task_that_the_server_has_lost(stage):
    stage.enqueue()
    stage.observer.wiped()
    tell(stage, Status.UNKNOWN)
    assert stage.violated == set()


# ---- what is forgiven -------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True])
def test_i5_is_forgiven_to_tasks_that_the_server_has_lost_something_of(stage, lost):
    """A failover that loses a cancellation brings the task back. Others are not forgiven for that."""
    stage.transaction("c0.1 publish", *stage.schedule())
    before = (stage.world.server.model.snapshot(), stage.observer.save())
    stage.observer.cancelling(stage.client, stage.submission)
    stage.transaction("c0.1 publish", ("ZREM", KEYS.schedule, stage.id))
    after = (stage.world.server.model.snapshot(), stage.observer.save())
    tell(stage, Status.CANCELLED)
    snapshot, saved = before if lost else after
    stage.world.server.model.restore(snapshot)
    stage.observer.load(saved)
    stage.wires.clear()
    stage.ran()
    assert stage.violated == (set() if lost else {"I5"})


@pytest.mark.parametrize("lost", [False, True])
def test_i11_is_forgiven_to_tasks_whose_deliveries_the_server_has_lost(stage, lost):
    entry = stage.enqueue()
    saved = stage.observer.save()
    if lost:
        stage.read()
    stage.observer.load(saved)
    for _ in range(stage.world.max_deliveries + 1):
        stage.ran(entry, None)
    assert stage.violated == (set() if lost else {"I11"})


@pytest.mark.parametrize(("removed", "violated"), [("w0.1", set()), ("w1.1", {"I11"})])
def test_i11_deliveries_are_counted_anew_for_the_entries_of_a_removed_consumer(stage, removed, violated):
    entry = stage.enqueue()
    stage.world.start_worker(0)
    assert stage.read() == [entry]
    stage.observer.forgot_deliveries(KEYS.stream, removed.encode())
    for _ in range(stage.world.max_deliveries + 1):
        stage.ran(entry, None)
    assert stage.violated == violated
