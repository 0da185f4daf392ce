"""Handlers that take too long, and those whose worker is cut off from the server."""

import pytest

from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.link import Role
from streamfleet_core.state import Phase
from streamfleet_core.timekeeping import CANCEL_AT

KEYS = queue_keys("q")


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


# ---- timeouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lease", [10, 60, 600])
def test_a_handler_that_takes_too_long_is_cancelled_and_its_task_retried(world, lease):
    worker = world.worker(timeout=3.2, lease=lease)
    world.advance(100)
    called = []
    delivery = worker.begin(max_retries=1)
    delivery.on_cancel = lambda: called.append(delivery.cancelled)
    world.advance(3.15)
    assert delivery.phase is Phase.RUNNING
    world.advance(0.1)
    assert called == ["timeout"]
    assert delivery.phase is Phase.SETTLED
    assert worker.machine.counts["retry"] == 1
    (event,) = worker.events(EventKind.TIMED_OUT)
    assert event.text == "q: handler took longer than its timeout of 3.2 s"
    assert worker.take().task.attempt == 2


def test_a_handler_that_comes_back_after_its_timeout_changes_nothing(world):
    worker = world.worker(timeout=3.0)
    delivery = worker.begin(max_retries=0)
    world.advance(4)
    assert len(world.dead()) == 1
    worker.succeed(delivery)
    worker.fail(delivery)
    world.pump()
    assert worker.machine.counts["late"] == 2
    assert len(world.dead()) == 1
    assert worker.machine.running == 0
    (first, _) = worker.events(EventKind.LATE_RETURN)
    assert first.text == "handler came back after 4.0 s, too late: timeout"
    assert first.data["task"] == "t1"


def test_a_handler_in_time_has_no_timeout_after_that(world):
    worker = world.worker(timeout=3.0)
    worker.succeed(worker.begin())
    world.advance(10)
    assert worker.machine.counts["completed"] == 1
    assert not worker.events(EventKind.TIMED_OUT)


def test_each_running_task_has_its_own_deadline(world):
    worker = world.worker(timeout=3.0, concurrency=2)
    first = worker.begin()
    world.advance(1)
    second = worker.begin(task_id="t2")
    world.advance(2.1)
    assert (first.cancelled, second.cancelled) == ("timeout", "")
    world.advance(1)
    assert second.cancelled == "timeout"


# ---- without contact --------------------------------------------------------------------------------


def test_handlers_are_told_to_stop_before_others_take_their_tasks_over(world):
    worker = world.worker(lease=10)
    delivery = worker.begin()
    called = []
    delivery.on_cancel = lambda: called.append(world.now)
    began = world.now
    worker.settle.lose()
    world.available = False
    world.advance(30)
    assert len(called) == 1
    assert 10 * CANCEL_AT <= called[0] - began < 10 + 1.25
    assert "no contact" in delivery.cancelled
    assert delivery.phase is Phase.RUNNING, "it may still end in time to be settled"
    world.available = True
    world.advance(2)
    worker.succeed(delivery)
    world.pump()
    assert worker.machine.counts["completed"] == 1


def test_the_link_that_keeps_the_time_needs_no_connection(world):
    worker = world.worker()
    world.advance(10)
    time = worker.wire(Role.TIME)
    assert time.session is None
    assert time.sent == []
    assert time.wake_at > world.now


def test_handlers_of_entries_that_have_waited_are_told_in_time_too(world):
    """A lease that is nearly over when the handler begins ends before all handlers are looked at again."""
    worker = world.worker(lease=10)
    world.enqueue()
    world.pump()
    renewed = world.now
    worker.settle.lose()
    world.available = False
    world.advance(8.9)
    delivery = worker.take()
    assert renewed + 9 <= worker.machine.time.next_tick <= delivery.leased_from + 9
    world.advance(delivery.leased_from + 9.01 - world.now)
    assert "no contact" in delivery.cancelled


def test_no_task_is_started_that_others_may_have_by_now(world):
    worker = world.worker(lease=10)
    world.enqueue()
    world.pump()
    worker.settle.lose()
    world.available = False
    world.advance(9.5)
    assert worker.machine.take(world.now) is None
    assert len(worker.machine.ready) == 1
    world.available = True
    world.advance(2)
    assert worker.take().task.id == "t1"


def test_a_lost_running_task_leaves_its_place_to_others(world):
    worker = world.worker(concurrency=1, timeout=60)
    delivery = worker.begin()
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, delivery.entry_id)
    world.call("SET", KEYS.fence, "moved")
    world.enqueue("next")
    world.advance(4)
    assert delivery.phase is Phase.LOST
    assert worker.machine.running == 0
    assert worker.take().task.id == "next"
    worker.succeed(delivery)
    assert worker.machine.counts["late"] == 1
    world.advance(70)
    assert not [e for e in worker.events(EventKind.TIMED_OUT) if e.data["task"] == "t1"]


@pytest.mark.parametrize(
    ("owner", "where"), [(b"other", "now with other"), (b"\xff", "now with \ufffd"), (None, "gone")]
)
def test_who_has_a_lost_entry_is_told(world, owner, where):
    worker = world.worker()
    delivery = worker.begin()
    if owner:
        world.call("XCLAIM", KEYS.stream, GROUP, owner, 0, delivery.entry_id)
    else:
        world.call("XACK", KEYS.stream, GROUP, delivery.entry_id)
    world.call("SET", KEYS.fence, "moved")
    world.advance(4)
    (event,) = worker.events(EventKind.OWNERSHIP_LOST)
    assert event.text == f"entry no longer ours: {where}"
    assert event.data == {"queue": "q", "entry": delivery.entry_id.decode(), "task": "t1"}


def test_a_ready_task_that_was_lost_is_not_taken(world):
    worker = world.worker(concurrency=2)
    entry = world.enqueue("gone")
    world.enqueue("here")
    world.pump()
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, entry)
    world.call("SET", KEYS.fence, "moved")
    world.advance(4)
    assert worker.take().task.id == "here"
    assert worker.machine.take(world.now) is None
