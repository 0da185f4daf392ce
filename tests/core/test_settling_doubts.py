"""Outcomes in doubt: the fence has moved, or nobody knows whether a transaction was applied."""

import pytest

from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.safeguards import UNKNOWN
from streamfleet_core.settling import VERIFY_BATCH
from streamfleet_core.state import Phase

KEYS = queue_keys("q")


@pytest.fixture
def world(world):
    """With the group in place: creating it moves the fence, which is another file's subject."""
    for queue in ("q", "a", "b"):
        world.call("XGROUP", "CREATE", queue_keys(queue).stream, GROUP, "0", "MKSTREAM")
    return world


# ---- fence ------------------------------------------------------------------------------------------


def reclaimed_from(world, count=1, **attributes):
    """A suspended worker with running tasks, and another one that has taken them over."""
    zombie = world.worker(concurrency=count)
    tasks = zombie.start(count, **attributes)
    zombie.suspend()
    heir = world.worker(concurrency=count)
    world.advance(25)
    assert len(heir.deliveries) == count
    return zombie, tasks, heir


@pytest.mark.parametrize("outcome", ["completes", "retries", "dies"])
def test_a_worker_that_wakes_up_changes_nothing_that_others_own(world, outcome):
    zombie, (task,), heir = reclaimed_from(world, max_retries=0 if outcome == "dies" else 3)
    zombie.succeed(task) if outcome == "completes" else zombie.fail(task)
    zombie.resume()
    assert task.phase is Phase.LOST
    (entry,) = world.stream()
    assert entry[b"retries"] == b"0"
    assert world.dead() == []
    assert set(world.pending().values()) == {heir.machine.consumer}
    (event,) = zombie.events(EventKind.OWNERSHIP_LOST)
    assert heir.machine.consumer.decode() in event.text
    assert "was dropped" in event.text
    heir.succeed(heir.take())
    world.pump()
    assert world.stream() == []
    assert zombie.machine.counts["completed"] + heir.machine.counts["completed"] == 1


def test_a_suspended_workers_beat_does_not_take_entries_back(world):
    zombie, (task,), heir = reclaimed_from(world)
    zombie.resume()
    world.advance(5)
    assert set(world.pending().values()) == {heir.machine.consumer}
    assert task.phase is Phase.LOST
    assert task.cancelled == "others own the task now"


@pytest.mark.parametrize("number", [0, 3, 9])
def test_of_ten_outcomes_the_one_that_others_own_is_dropped(world, number):
    worker = world.worker(concurrency=10)
    tasks = worker.start(10)
    stolen = tasks[number]
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, stolen.entry_id)
    world.call("SET", KEYS.fence, "moved")
    for task in tasks:
        worker.succeed(task)
    world.pump()
    assert worker.machine.counts["completed"] == 9
    assert worker.machine.counts["lost"] == 1
    assert world.pending() == {stolen.entry_id: b"other"}
    assert worker.machine.idle


def test_after_a_reclaim_elsewhere_what_is_ours_is_asked_for_once_and_settled(world):
    worker = world.worker(concurrency=3)
    tasks = worker.start(3)
    world.call("SET", KEYS.fence, "somebody else was reclaimed")
    for task in tasks:
        worker.succeed(task)
    world.pump()
    assert worker.machine.counts["aborted"] == 1
    assert worker.machine.counts["verified"] == 3
    assert worker.machine.counts["completed"] == 3


def test_owners_of_many_entries_are_asked_for_in_bounded_exchanges(world):
    count = VERIFY_BATCH + 10
    worker = world.worker(concurrency=count)
    tasks = worker.start(count)
    world.call("SET", KEYS.fence, "moved")
    for task in tasks:
        worker.succeed(task)
    world.pump()
    asked = [len(exchange) for exchange in worker.settle.sent if exchange[0][0] == "XPENDING"]
    assert asked == [VERIFY_BATCH, 10]
    assert worker.machine.counts["completed"] == count


def test_an_entry_that_others_have_ended_is_dropped(world):
    worker = world.worker()
    (task,) = worker.start()
    world.call("XACK", KEYS.stream, GROUP, task.entry_id)
    world.call("XDEL", KEYS.stream, task.entry_id)
    world.call("SET", KEYS.fence, "moved")
    worker.succeed(task)
    world.pump()
    assert task.phase is Phase.LOST
    assert "gone" in worker.events(EventKind.OWNERSHIP_LOST)[0].text


def test_a_group_that_is_gone_when_owners_are_asked_for(world):
    worker = world.worker()
    (task,) = worker.start()
    worker.read.held = worker.control.held = True
    world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)
    world.call("SET", KEYS.fence, "moved")
    worker.succeed(task)
    worker.settle.turn()
    world.pump()
    assert task.phase is Phase.LOST
    assert worker.machine.refusal is None
    worker.control.held = False
    worker.read.release()
    assert worker.take().task.id == "t0", "delivered again"


def test_all_entries_of_a_group_that_is_gone_are_given_up_together(world):
    worker = world.worker(concurrency=3)
    tasks = worker.start(3)
    worker.read.held = worker.control.held = True
    world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)
    world.call("SET", KEYS.fence, "moved")
    for task in tasks:
        worker.succeed(task)
    world.pump()
    assert [task.phase for task in tasks] == [Phase.LOST] * 3
    assert len([exchange for exchange in worker.settle.sent if exchange[0][0] == "XPENDING"]) == 1


def test_asking_for_owners_is_repeated_when_the_server_cannot_answer(world):
    worker = world.worker()
    (task,) = worker.start()
    world.call("SET", KEYS.fence, "moved")
    worker.succeed(task)
    world.refuse("LOADING Redis is loading the dataset", "XPENDING", times=3)
    world.pump()
    assert task.phase is Phase.SETTLING
    world.advance(2)
    assert task.phase is Phase.SETTLED


# ---- unknown outcomes -------------------------------------------------------------------------------


def in_flight(world, *, outcome="retries"):
    worker = world.worker()
    (task,) = worker.start(max_retries=1)
    worker.succeed(task) if outcome == "completes" else worker.fail(task)
    worker.read.frozen = True  # the retry is not to be taken
    worker.settle.until("EXEC")
    assert task.phase is Phase.COMMITTING
    return worker, task


def attempts(world):
    return [entry[b"retries"] for entry in world.stream()]


def test_the_reply_was_lost_but_the_settlement_was_applied(world):
    worker, task = in_flight(world)
    worker.settle.execute()
    worker.settle.lose()
    assert task.phase is Phase.SETTLING
    assert task.fence is UNKNOWN
    worker.settle.held = False
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]
    assert worker.machine.counts["retry"] == 1


def test_the_request_was_lost(world):
    worker, task = in_flight(world)
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]


def test_the_request_arrives_after_the_new_connection(world):
    worker, _task = in_flight(world)
    worker.settle.lose(late=True)
    worker.settle.held = False
    world.advance(1)
    assert attempts(world) == [b"1"]
    assert worker.settle.arrive_late()[-3] is None, "the late transaction aborts"
    world.pump()
    assert attempts(world) == [b"1"]


def test_the_request_arrives_between_invalidation_and_verification(world):
    worker, _task = in_flight(world)
    worker.settle.lose(late=True)
    world.advance(0.2)
    worker.settle.until("XPENDING")
    assert worker.settle.arrive_late()[-3] is None
    worker.settle.release()
    assert attempts(world) == [b"1"]


def test_a_request_that_did_not_leave_is_sent_again_once_the_entry_is_still_ours(world):
    worker, task = in_flight(world)
    worker.settle.lose(unknown=False)
    assert not task.maybe_applied
    worker.settle.held = False
    fence = world.value(KEYS.fence)
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]
    assert worker.machine.counts["verified"] == 1, "the new connection may lead to a server that has gone back"
    assert world.value(KEYS.fence) == fence, "nothing to invalidate"


def test_invalidation_is_repeated_until_it_is_confirmed(world):
    worker, task = in_flight(world)
    worker.settle.execute()
    worker.settle.lose()
    world.advance(0.2)
    worker.settle.until("SET")
    worker.settle.lose()
    world.advance(0.2)
    worker.settle.until("SET")
    worker.settle.release()
    world.advance(0.2)
    assert task.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]


def test_the_fences_of_all_queues_are_moved_whose_outcomes_are_unknown(world):
    worker = world.worker("a", "b")
    fences = [queue_keys(name).fence for name in "ab"]
    world.enqueue("one", "a")
    world.enqueue("two", "b")
    world.pump()
    for task in [worker.take(), worker.take()]:
        worker.succeed(task)
    worker.settle.until("EXEC")
    worker.settle.lose(late=True)
    worker.settle.release()
    world.advance(1)
    assert None not in [world.value(fence) for fence in fences]
    assert worker.settle.arrive_late()[-4] is None
    assert worker.machine.counts["completed"] == 2


def test_an_invalidation_that_is_refused_for_good_is_named(world):
    worker, _task = in_flight(world)
    worker.settle.lose()
    worker.settle.held = False
    world.refuse("ERR not today", "SET")
    world.advance(1)
    assert str(worker.machine.refusal) == "the server refuses SET. The server said: ERR not today"


def test_a_refused_invalidation_is_tried_again(world):
    worker, task = in_flight(world)
    worker.settle.lose()
    worker.settle.held = False
    end = world.refuse("READONLY You can't write against a read only replica.", "SET")
    world.advance(3)
    assert task.phase is Phase.SETTLING
    end()
    world.advance(2)
    assert task.phase is Phase.SETTLED


def test_an_unknown_outcome_of_an_entry_that_was_reclaimed_meanwhile(world):
    worker, task = in_flight(world)
    worker.settle.lose()
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, task.entry_id)
    world.call("SET", KEYS.fence, "moved")
    worker.settle.held = False
    world.advance(1)
    assert task.phase is Phase.LOST
    assert attempts(world) == [b"0"]


def test_a_connection_lost_while_owners_are_asked_for(world):
    worker = world.worker()
    (task,) = worker.start()
    world.call("SET", KEYS.fence, "moved")
    worker.succeed(task)
    worker.settle.until("XPENDING")
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert not task.maybe_applied


def test_a_connection_that_breaks_at_rest_takes_nothing_back(world):
    worker = world.worker()
    (first,) = worker.start()
    worker.succeed(first)
    world.pump()
    worker.settle.lose()
    (second,) = worker.start()
    worker.succeed(second)
    world.advance(1)
    assert first.phase is second.phase is Phase.SETTLED
    assert worker.machine.counts["completed"] == 2


def test_a_refused_transaction_is_known_not_to_have_been_applied(world):
    worker = world.worker()
    (task,) = worker.start()
    fence = world.value(KEYS.fence)
    world.refuse("NOREPLICAS Not enough good replicas to write.", "XACK", times=1)
    worker.succeed(task)
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert worker.machine.counts["verified"] == 0
    assert world.value(KEYS.fence) == fence, "moving it would make others' settlements abort"
