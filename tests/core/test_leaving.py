"""How a worker leaves: what it gives back, and what is left of it at the server."""

import pytest

from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.leaving import PAGE as FAREWELL_PAGE
from streamfleet_core.leaving import farewell
from streamfleet_core.procedure import Answer
from streamfleet_core.state import RELEASED_IDLE_MS, Phase

KEYS = queue_keys("q")


@pytest.fixture
def world(world):
    """With the group in place: creating it moves the fence, which is another file's subject."""
    for queue in ("q", "a", "b"):
        world.call("XGROUP", "CREATE", queue_keys(queue).stream, GROUP, "0", "MKSTREAM")
    return world


def test_unstarted_entries_are_given_back_and_not_counted_as_delivered(world):
    worker = world.worker(concurrency=3)
    for n in range(3):
        world.enqueue(f"t{n}")
    world.pump()
    running = worker.take()
    worker.stop()
    world.pump()
    rows = world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)
    assert [(row[0] == running.entry_id, row[2] >= RELEASED_IDLE_MS, row[3]) for row in rows] == [
        (True, False, 1),
        (False, True, 0),
        (False, True, 0),
    ]
    assert worker.machine.counts["released"] == 2
    (event,) = worker.events(EventKind.RELEASED)
    assert (event.text, event.data) == ("gave 2 entries back", {"entries": 2})
    worker.succeed(running)
    world.pump()
    assert worker.ended
    heir = world.worker(concurrency=3)
    world.advance(0.1)
    assert sorted(d.task.id for d in heir.deliveries) == ["t1", "t2"]
    assert {d.deliveries for d in heir.deliveries} == {1}


def test_handlers_that_do_not_end_in_time_are_given_up(world):
    worker = world.worker()
    (task,) = worker.start()
    worker.stop(drain=2)
    world.advance(1.9)
    assert task.phase is Phase.RUNNING
    world.advance(0.2)
    assert task.phase is Phase.RELEASED
    assert task.cancelled == "the worker stops"
    assert worker.ended
    heir = world.worker()
    world.advance(0.1)
    assert heir.take().deliveries == 2, "it did run"


def test_a_release_that_was_aborted_is_verified_and_repeated(world):
    worker = world.worker(concurrency=2)
    world.enqueue("a")
    world.enqueue("b")
    world.pump()
    world.call("SET", KEYS.fence, "moved")
    stolen = worker.deliveries[1]
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, stolen.entry_id)
    worker.stop()
    world.pump()
    assert stolen.phase is Phase.LOST
    assert worker.machine.counts["released"] == 1
    assert worker.ended


def test_a_release_with_an_unknown_outcome_is_verified_and_repeated(world):
    worker = world.worker()
    world.enqueue("a")
    world.pump()
    worker.stop()
    worker.settle.until("EXEC")
    worker.settle.execute()
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1)
    assert worker.ended
    assert worker.machine.idle
    heir = world.worker()
    world.advance(0.1)
    assert heir.take().task.id == "a"


def test_entries_that_a_cut_read_left_behind_are_given_back(world):
    worker = world.worker()
    worker.read.held = True
    world.enqueue("a")
    worker.read.execute()
    worker.stop()
    worker.read.lose()
    world.pump()
    assert worker.ended
    assert worker.machine.counts["received"] == 0
    heir = world.worker()
    world.advance(0.1)
    assert heir.take().task.id == "a"


@pytest.mark.parametrize(("role", "name"), [("read", "XREADGROUP"), ("control", "ZRANGE")])
def test_it_leaves_when_its_last_read_and_its_last_chore_are_answered(world, role, name):
    worker = world.worker()
    wire = getattr(worker, role)
    wire.hold_at(name)
    worker.stop()
    world.advance(1)
    assert not worker.settle.ended
    assert world.call("XINFO", "CONSUMERS", KEYS.stream, GROUP) != []
    wire.lose()
    wire.release()
    world.advance(1)
    assert worker.ended


def test_more_left_behind_than_one_page(world):
    worker = world.worker()
    worker.read.frozen = True
    count = FAREWELL_PAGE + 3
    for n in range(count):
        world.enqueue(f"t{n}")
    world.call("XREADGROUP", "GROUP", GROUP, worker.machine.consumer, "COUNT", count, "STREAMS", KEYS.stream, ">")
    worker.stop()
    worker.read.frozen = False
    world.pump()
    assert worker.ended
    idle = [row[2] for row in world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 2 * count)]
    assert len(idle) == count
    assert min(idle) >= RELEASED_IDLE_MS
    claims = [command for exchange in worker.settle.sent for command in exchange if command[0] == "XCLAIM"]
    given_back = [len([part for part in claim if isinstance(part, bytes)]) - 3 for claim in claims]
    assert sum(given_back) == count, "each entry once"


def test_a_consumer_without_entries_is_removed(world):
    worker = world.worker()
    assert len(world.call("XINFO", "CONSUMERS", KEYS.stream, GROUP)) == 1
    worker.stop()
    world.pump()
    assert world.call("XINFO", "CONSUMERS", KEYS.stream, GROUP) == []


@pytest.mark.parametrize("name", ["XPENDING", "XGROUP", "EXEC"])
def test_a_farewell_that_fails_is_no_reason_to_stay(world, name):
    worker = world.worker()
    world.refuse("NOPERM no", name)
    worker.stop()
    world.pump()
    assert worker.ended


def consumers(world, queue):
    return [row[1] for row in world.call("XINFO", "CONSUMERS", queue_keys(queue).stream, GROUP)]


def test_a_consumer_stays_when_its_entries_could_not_be_asked_for(world):
    worker = world.worker("a", "b")
    world.refuse("LOADING the dataset", "XPENDING", times=1)
    worker.stop()
    world.pump()
    assert worker.ended
    assert consumers(world, "a") == [worker.machine.consumer]
    assert consumers(world, "b") == [], "its queue was asked for all the same"


def test_a_group_that_goes_while_its_worker_leaves(world):
    worker = world.worker()
    worker.settle._hold_at = "XGROUP"
    worker.stop()
    world.pump()
    assert worker.settle.held
    world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)
    worker.settle.release()
    assert worker.ended


@pytest.mark.parametrize("name", ["XPENDING", "XGROUP"])
def test_a_connection_lost_at_the_farewell(world, name):
    worker = world.worker()
    worker.stop()
    worker.read.turn()
    worker.control.turn()
    for _ in range(5):
        worker.read.turn()
        worker.control.turn()
    worker.settle.until(name)
    worker.settle.lose()
    worker.settle.held = False
    world.advance(2)
    assert worker.ended


def test_a_worker_without_a_server_leaves_when_it_has_nothing(world):
    world.available = False
    worker = world.worker()
    worker.stop()
    world.advance(2)
    assert worker.ended


def test_a_worker_without_a_server_gives_up_after_its_drain_and_a_lease(world):
    worker = world.worker(lease=4)
    worker.start()
    world.available = False
    world.server.drop_connections()
    worker.stop(drain=1)
    world.advance(4.5)
    assert not worker.ended
    world.advance(2)
    assert worker.ended
    assert worker.machine.time.gave_up
    assert "1 entries neither settled" in worker.events(EventKind.RELEASED)[-1].text


def test_what_others_did_not_take_is_given_back_after_a_second_look(world):
    steps = farewell([world.worker().machine.queues["q"]], b"me")
    look = next(steps)
    assert [command[0] for command in look] == ["UNWATCH", "WATCH", "XPENDING"]

    def answer(*replies):
        return steps.send(Answer([b"OK", b"OK", *replies], world.now, world.now))

    back = answer([[b"1-0", b"me", 0, 1], [b"2-0", b"me", 0, 1]])
    assert [command[0] for command in back] == ["MULTI", "XCLAIM", "EXEC"]
    assert answer(None) == look, "the fence has moved"
    assert answer([[b"2-0", b"me", 0, 1]])[1][5:7] == (b"2-0", "IDLE")
    with pytest.raises(StopIteration):
        answer([[b"2-0"]])


def test_what_went_with_the_consumer_is_not_taken_from_those_who_have_found_it(world):
    """A read was answered right before the consumer went; its entry was found without an owner, and ran."""
    leaving = world.worker(lease=2.0, block=60.0)
    leaving.stop()
    leaving.settle.hold_at("XGROUP")
    world.enqueue("a")
    world.call("XREADGROUP", "GROUP", GROUP, leaving.machine.consumer, "COUNT", 1, "STREAMS", KEYS.stream, ">")
    leaving.settle.execute()
    leaving.settle.deliver()
    leaving.settle.step()
    assert "XCLAIM" in leaving.settle.flight.names
    other = world.worker(lease=2.0)
    for _ in range(100):
        world.advance(10.0)
        if other.machine.take(world.now):
            break
    leaving.settle.execute()
    assert set(world.pending().values()) == {other.machine.consumer}
