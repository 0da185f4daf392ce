import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import PermissionMissing, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.moving import BATCH
from streamfleet_core.procedure import Answer
from streamfleet_core.wire import F_REASON, Task, encode_task, pack_fields

KEYS = queue_keys("q")


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


def schedule(world, task_id, in_seconds, queue="q"):
    keys = queue_keys(queue)
    due = world.server_ms() + int(in_seconds * 1000)
    body = pack_fields(encode_task(Task(task_id, queue, "c", b"data")))
    world.call("ZADD", keys.schedule, due, task_id)
    world.call("HSET", keys.scheduled, task_id, body)


def mover(world, *queues, **how):
    """A worker that moves, and takes nothing."""
    worker = world.worker(*queues, start=False, **how)
    worker.read.frozen = True
    world.pump()
    return worker


def ids(world, queue="q"):
    return [entry[b"id"].decode() for entry in world.stream(queue)]


def left(world):
    return world.call("ZCARD", KEYS.schedule), world.call("HLEN", KEYS.scheduled)


def test_a_due_task_is_moved_into_its_stream(world):
    schedule(world, "a", -1)
    worker = mover(world)
    assert ids(world) == ["a"]
    assert left(world) == (0, 0)
    assert worker.machine.counts["moved"] == 1


def test_not_before_it_is_due_and_then_at_once(world):
    schedule(world, "a", 5)
    mover(world)
    world.advance(4.9)
    assert ids(world) == []
    world.advance(0.2)
    assert ids(world) == ["a"]


def test_what_others_schedule_meanwhile_is_found_within_the_poll_interval(world):
    mover(world, poll_interval=1.5)
    world.advance(10.1)
    schedule(world, "a", 0.2)
    world.advance(1.6)
    assert ids(world) == ["a"]


def test_a_later_task_is_known_after_the_earlier_ones_have_been_moved(world):
    schedule(world, "a", -1)
    schedule(world, "b", 0.7)
    worker = mover(world, poll_interval=60, lease=300)
    world.advance(0.75)
    assert ids(world) == ["a", "b"]
    assert worker.machine.counts["moved"] == 2


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_due_is_what_the_server_calls_due(world, skew):
    ahead = world.server_ms
    world.server_ms = lambda: ahead() + skew * 1000  # what the worker's own clock says
    worker = world.worker(start=False)
    del world.server_ms
    worker.read.frozen = True
    schedule(world, "a", 2)
    world.advance(1.9)
    assert ids(world) == []
    world.advance(0.3)
    assert ids(world) == ["a"]


def test_many_due_at_once_are_moved_in_batches_without_a_pause(world):
    count = 2 * BATCH + 30
    for n in range(count):
        schedule(world, f"t{n:05}", -1)
    worker = mover(world)
    assert ids(world) == [f"t{n:05}" for n in range(count)]
    sizes = [len(c) - 2 for exchange in worker.control.sent for c in exchange if c[0] == "ZREM"]
    assert sizes == [BATCH, BATCH, 30]


def test_exactly_one_batch(world):
    for n in range(BATCH):
        schedule(world, f"t{n}", -1)
    schedule(world, "later", 50)
    mover(world)
    assert len(ids(world)) == BATCH
    assert left(world) == (1, 1)


def test_of_movers_that_read_the_same_tasks_one_commits(world):
    movers = [world.worker(start=False) for _ in range(3)]
    for worker in movers:
        worker.read.frozen = True
    world.pump()
    for n in range(5):
        schedule(world, f"t{n}", 0.5)
    for worker in movers:
        worker.control._hold_at = "ZREM"
    world.advance(5)
    assert all("ZREM" in worker.control.flight.names for worker in movers)
    for worker in movers:
        worker.control.release()
    assert sorted(ids(world)) == [f"t{n}" for n in range(5)]
    assert sum(worker.machine.counts["moved"] for worker in movers) == 5


def test_a_cancelled_task_is_not_moved(world):
    schedule(world, "a", 0.5)
    worker = mover(world)
    worker.control.hold_at("ZREM")
    client = [("ZREM", KEYS.schedule, "a"), ("HDEL", KEYS.scheduled, "a"), ("SET", KEYS.moves, "cancelled")]
    for command in client:
        world.call(*command)
    worker.control.release()
    world.advance(5)
    assert ids(world) == []
    assert worker.machine.counts["moved"] == 0


@pytest.mark.parametrize("applied", [True, False])
def test_an_unknown_outcome_needs_no_handling(world, applied):
    schedule(world, "a", 0.5)
    worker = mover(world)
    worker.control.hold_at("ZREM")
    if applied:
        worker.control.execute()
    worker.control.lose(late=True)
    worker.control.held = False
    world.advance(5)
    if worker.control.ghosts:
        worker.control.arrive_late()
    world.advance(5)
    assert ids(world) == ["a"]


def test_a_task_without_a_body_is_dropped_and_told(world):
    world.call("ZADD", KEYS.schedule, 1, b"ghost\xff")
    schedule(world, "a", -1)
    worker = mover(world)
    assert ids(world) == ["a"]
    assert left(world) == (0, 0)
    (event,) = worker.events(EventKind.SCHEDULE_BROKEN)
    assert "ghost\ufffd" in event.text
    assert event.data["queue"] == "q"


def test_a_body_that_cannot_be_read_becomes_a_dead_letter(world):
    world.call("ZADD", KEYS.schedule, 1, "odd")
    world.call("HSET", KEYS.scheduled, "odd", b"\xff?")
    mover(world)
    (letter,) = world.dead()
    assert letter[b"id"] == b"odd"
    assert letter[b"data"] == b"\xff?"
    assert letter[F_REASON].startswith(b"undecodable in the schedule")
    assert left(world) == (0, 0)


def test_each_queue_has_its_own_schedule(world):
    schedule(world, "a", -1, "q")
    schedule(world, "b", -1, "r")
    mover(world, "q", "r")
    assert ids(world, "q") == ["a"]
    assert ids(world, "r") == ["b"]


def test_nothing_is_due_any_more_when_it_is_looked_at_closely(world):
    schedule(world, "a", -1)
    worker = world.worker(start=False)
    worker.read.frozen = True
    worker.control.hold_at("WATCH")
    world.call("ZREM", KEYS.schedule, "a")
    worker.control.release()
    assert ("UNWATCH",) in [c for exchange in worker.control.sent for c in exchange]
    assert ids(world) == []


@pytest.mark.parametrize("name", ["ZRANGE", "ZRANGEBYSCORE", "HMGET", "ZREM", "HDEL"])
def test_a_server_that_cannot_serve_now_is_asked_again_later(world, name):
    worker = mover(world)
    end = world.refuse("LOADING the dataset", name)
    schedule(world, "a", 0)
    world.advance(4)
    assert ids(world) == []
    assert worker.machine.refusal is None
    end()
    world.advance(4)
    assert ids(world) == ["a"]


@pytest.mark.parametrize("name", ["ZRANGE", "ZRANGEBYSCORE", "HMGET", "ZREM"])
def test_a_right_that_is_missing_stops_the_worker(world, name):
    worker = mover(world)
    world.refuse(f"NOPERM User app has no permissions to run the '{name.lower()}' command", name)
    schedule(world, "a", 0)
    world.advance(4)
    assert isinstance(worker.machine.refusal, PermissionMissing)
    assert name in str(worker.machine.refusal)


def test_a_schedule_that_becomes_another_type_stops_the_worker(world):
    worker = mover(world)
    world.call("SET", KEYS.schedule, "mine")
    world.advance(4)
    assert isinstance(worker.machine.refusal, WrongKeyType)
    assert KEYS.schedule.decode() in str(worker.machine.refusal)


def test_a_body_hash_that_becomes_another_type_stops_the_worker(world):
    worker = mover(world)
    world.call("ZADD", KEYS.schedule, 1, "a")
    world.call("SET", KEYS.scheduled, "mine")
    world.advance(4)
    assert isinstance(worker.machine.refusal, WrongKeyType)
    assert KEYS.scheduled.decode() in str(worker.machine.refusal)
    assert "HMGET" in str(worker.machine.refusal)


def moving_exchanges(worker):
    """The names of each exchange that has to do with the schedule."""
    sent = [[command[0] for command in exchange] for exchange in worker.control.sent]
    return [names for names in sent if {"ZRANGE", "ZRANGEBYSCORE", "HMGET", "ZREM", "UNWATCH"}.intersection(names)]


MOVE = [["WATCH", "TIME", "ZRANGEBYSCORE"], ["HMGET"], ["MULTI", "ZREM", "HDEL", "XADD", "SET", "EXEC"]]


def test_a_move_costs_one_look_and_three_exchanges(world):
    schedule(world, "a", -1)
    worker = mover(world)
    assert moving_exchanges(worker) == [["ZRANGE"], *MOVE]


def test_a_later_task_costs_no_second_look(world):
    schedule(world, "a", -1)
    schedule(world, "b", 50)
    worker = mover(world, poll_interval=60, lease=300)
    assert moving_exchanges(worker) == [["ZRANGE"], *MOVE]


def test_a_task_that_is_not_due_is_only_looked_at(world):
    schedule(world, "a", 7)
    worker = mover(world, poll_interval=2)
    world.advance(6.5)
    assert moving_exchanges(worker) == [["ZRANGE"]] * 4


def test_what_is_put_back_is_kept_until_each_row_of_it_was_written(world):
    worker = world.worker()
    mover = worker.machine.lanes[0].controller.mover
    mover.rescues.append((KEYS, 5000, b"t", b"body"))
    steps = mover.put_back()
    rows = next(steps)
    assert rows[1:-1] == [("ZADD", KEYS.schedule, 5000, b"t"), ("HSET", KEYS.scheduled, b"t", b"body")]
    queued = [b"OK", b"QUEUED", b"QUEUED"]
    wrong = ServerError("WRONGTYPE no set")
    for result in ([wrong, 1], [1, wrong], wrong):
        assert steps.send(Answer([*queued, result], world.now, world.now)) == rows
        assert worker.events(EventKind.BACKING_OFF)[-1].text == "control: WRONGTYPE no set"
    with pytest.raises(StopIteration):
        steps.send(Answer([*queued, [1, 1]], world.now, world.now))
    assert mover.rescues == []
