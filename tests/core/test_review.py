"""Defects that a review has found, each reduced to its essence."""

import pytest

from streamfleet_core.client import MAX_UNTOLD
from streamfleet_core.config import MAX_DELAY
from streamfleet_core.errors import WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.state import Phase
from streamfleet_core.submission import Status
from streamfleet_core.wire import Task, encode_task, pack_fields

KEYS = queue_keys("q")
FULL = "OOM command not allowed when used memory > 'maxmemory'."


def id_of(client):
    return next(iter(client.machine.lanes.values())).client_id


# ---- client -----------------------------------------------------------------------------------------


def test_a_queue_that_is_met_while_the_receiver_is_created_is_not_taken_for_registered(world):
    """Its first heartbeat was answered with 1, as if others had taken the client for dead."""
    client = world.client("a")
    client.enqueue(queue="a", tracked=True)
    client.turn()
    client.publish.until("XGROUP")
    later = client.enqueue(queue="b", tracked=True)
    client.publish.release()
    world.advance(30)
    assert later.status is Status.ACCEPTED
    assert client.machine.counts["collected"] == 0
    assert world.call("ZSCORE", queue_keys("b").receivers, id_of(client)) is not None


def test_a_marker_outlives_a_client_that_has_nothing_to_send(world):
    """After a day the server was said to have lost tasks, and all outcomes to be unknown."""
    client = world.client()
    tracked = client.enqueue(b"x", tracked=True)
    world.pump()
    world.advance(2 * 86_400)
    client.enqueue(b"y")
    world.pump()
    assert client.machine.counts["regressed"] == 0
    assert tracked.status is Status.ACCEPTED


def test_a_marker_with_a_short_life_is_renewed_in_time(world):
    client = world.client(marker_ttl=60)
    client.enqueue(b"x")
    for _ in range(10):
        world.advance(50)
        client.enqueue(b"y")
        world.pump()
    assert client.machine.counts["regressed"] == 0


# ---- worker -----------------------------------------------------------------------------------------


def test_room_that_one_slot_makes_is_room_for_the_others(world):
    """The reader of the other slot slept for ever."""
    slots = {"a": 1, "b": 2}
    worker = world.worker("a", "b", slot_of=lambda keys: slots[keys.queue], concurrency=2)
    for number in range(2):
        world.enqueue(f"a{number}", "a")
    world.pump()
    taken = [worker.take() for _ in range(2)]
    world.advance(20)  # b's read comes back empty, and there is no room for another
    for delivery in taken:
        worker.succeed(delivery)
    world.pump()
    world.enqueue("b", "b")
    world.pump()
    assert worker.take().task.id == "b"


@pytest.mark.parametrize("delay", [float("inf"), 1e300])
def test_a_retry_that_is_asked_for_at_the_end_of_time_is_scheduled(world, delay):
    """The handler's thread ended with an OverflowError, and its task was held and renewed for ever."""
    worker = world.worker()
    world.enqueue()
    world.pump()
    worker.fail(worker.take(), retry_in=delay)
    world.pump()
    _, due = world.call("ZRANGE", KEYS.schedule, 0, -1, "WITHSCORES")
    assert int(due) == world.server_ms() + int(MAX_DELAY * 1000)
    assert worker.machine.idle


def test_what_a_broken_claim_brought_is_found_although_history_was_just_being_read(world):
    """The answer on its way was older than the claim, and taken for all that there is."""
    dead = world.worker(consumer="dead")
    world.enqueue()
    world.pump()
    dead.crash()
    worker = world.worker(consumer="us")
    worker.control.hold_at("XCLAIM")
    worker.read.lose()
    while worker.read.flight is None:
        world.now += 0.01
        worker.read.turn()
    worker.read.held = True
    assert worker.read.flight.commands[0][:4] == ("XPENDING", KEYS.stream, GROUP, b"-")
    worker.read.execute()
    worker.control.execute()
    worker.control.lose()
    worker.control.held = False
    worker.read.release()
    world.pump()
    assert list(world.pending().values()) == [b"us"]
    assert worker.take().task.id == "t1"


def test_a_read_that_is_to_wait_for_less_than_a_millisecond_does_not_wait_without_end(world):
    (read,) = world.worker(block=0.0005).read.flight.commands
    assert read[read.index("BLOCK") + 1] == 1


def fill(world, *in_transactions):
    """Let the server be out of memory; returns what frees some."""

    def denial(command):
        adds = command[0] in ("SET", "XADD", "ZADD", "HSET")
        return FULL if adds or (world.in_multi and command[0] in in_transactions) else None

    world.denials.append(denial)
    return lambda: world.denials.remove(denial)


@pytest.mark.parametrize("how", [{"max_retries": 3}, {"max_retries": 0}, {"notify": True}])
def test_a_task_whose_outcome_needs_memory_is_renewed_and_not_ended_without_it(world, how):
    """When its beat was due, it was deleted as if it had completed: no retry, no dead letter, no notice."""
    worker = world.worker()
    world.enqueue(**how)
    world.pump()
    delivery = worker.take()
    free = fill(world, "XACK", "XDEL", "XCLAIM")
    worker.succeed(delivery) if "notify" in how else worker.fail(delivery)
    world.advance(30)
    assert delivery.phase is Phase.SETTLING
    assert world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 1)[0][2] <= 5000
    free()
    world.advance(5)
    assert delivery.phase is Phase.SETTLED
    assert len(world.stream()) + len(world.dead()) == ("notify" not in how)


@pytest.mark.parametrize("in_transactions", [(), ("XACK", "XDEL", "XCLAIM")], ids=["new", "old"])
def test_a_full_server_is_drained_although_a_settlement_is_in_doubt(world, in_transactions):
    """The fence could not be moved, so nothing was settled; and nothing was freed, so it could not be moved."""
    worker = world.worker(concurrency=3)
    for number in range(3):
        world.enqueue(f"t{number}")
    world.pump()
    in_doubt, fails, running = (worker.take() for _ in range(3))
    worker.succeed(in_doubt)
    worker.settle.until("EXEC")
    worker.fail(fails)
    free = fill(world, *in_transactions)
    worker.settle.lose(late=True)
    worker.settle.release()
    world.advance(5)
    assert in_doubt.phase is Phase.SETTLED
    assert fails.phase is Phase.SETTLING
    assert set(world.pending()) == {fails.entry_id, running.entry_id}
    world.advance(30)
    assert running.phase is Phase.RUNNING
    assert not running.cancelled, "beats go on"
    fence = world.value(KEYS.fence)
    free()
    world.advance(5)
    assert world.value(KEYS.fence) != fence, "moved at last, before anything is written that counts"
    assert fails.phase is Phase.SETTLED
    assert worker.settle.arrive_late()[-3] is None
    worker.succeed(running)
    world.pump()
    assert worker.machine.counts["completed"] == 2


# ---- schedule ---------------------------------------------------------------------------------------


def schedule(world, task_id, body):
    world.call("ZADD", KEYS.schedule, world.server_ms(), task_id)
    world.call("HSET", KEYS.scheduled, task_id, body)


def test_a_due_task_that_its_stream_does_not_take_stays_in_the_schedule(world):
    """It had left the schedule in the same transaction, and was gone without a word."""
    worker = world.worker()
    worker.read.frozen = True
    world.call("DEL", KEYS.stream)
    world.call("SET", KEYS.stream, "mine")
    body = pack_fields(encode_task(Task("t", "q", "c", b"")))
    schedule(world, "broken", "no task")
    schedule(world, "t", body)
    world.advance(3)
    assert world.call("HGETALL", KEYS.scheduled) == [b"t", body]
    assert world.call("ZRANGE", KEYS.schedule, 0, -1) == [b"t"]
    assert [letter[b"id"] for letter in world.dead()] == [b"broken"]
    assert isinstance(worker.machine.refusal, WrongKeyType)


def lose_a_due_task_in_its_transaction(world, worker):
    """Its stream does not take it, and what puts it back is on its way. Gives its body."""
    for wire in (worker.read, worker.settle):
        wire.frozen = True
    world.call("DEL", KEYS.stream)
    world.call("SET", KEYS.stream, "mine")
    body = pack_fields(encode_task(Task("t", "q", "c", b"")))
    schedule(world, "t", body)
    worker.control.hold_at("HDEL")
    worker.control.deliver()
    worker.control.turn()
    assert worker.control.flight.names == ["MULTI", "ZADD", "HSET", "EXEC"]
    assert world.call("HGETALL", KEYS.scheduled) == []
    return body


def test_a_due_task_is_put_back_although_the_connection_breaks(world):
    worker = world.worker()
    body = lose_a_due_task_in_its_transaction(world, worker)
    worker.control.lose()
    worker.control.release()
    world.advance(2)
    assert world.call("HGETALL", KEYS.scheduled) == [b"t", body]
    assert world.call("ZRANGE", KEYS.schedule, 0, -1) == [b"t"]
    assert isinstance(worker.machine.refusal, WrongKeyType)


def test_a_due_task_is_put_back_until_the_server_takes_it(world):
    worker = world.worker()
    body = lose_a_due_task_in_its_transaction(world, worker)
    end = world.refuse(FULL, "HSET")
    worker.control.release()
    world.advance(3)
    assert world.call("HGETALL", KEYS.scheduled) == []
    assert worker.events(EventKind.BACKING_OFF)
    end()
    world.advance(2)
    assert world.call("HGETALL", KEYS.scheduled) == [b"t", body]


def test_a_worker_that_is_refused_puts_due_tasks_back_before_it_ends(world):
    """All links were stopped at once, as soon as one had met the wrong key."""
    worker = world.worker()
    body = lose_a_due_task_in_its_transaction(world, worker)
    worker.read.link.refuse(WrongKeyType("not a stream"))
    worker.control.lose()
    worker.stop()
    worker.machine.abandon()
    for wire in (worker.read, worker.settle):
        wire.frozen = False
    assert not worker.control.link.stopped
    worker.control.release()
    world.advance(2)
    assert world.call("HGETALL", KEYS.scheduled) == [b"t", body]
    worker.machine.abandon()
    world.pump()
    assert worker.ended


def test_a_worker_that_cannot_put_a_task_back_ends_all_the_same(world):
    worker = world.worker()
    lose_a_due_task_in_its_transaction(world, worker)
    worker.read.link.refuse(WrongKeyType("not a stream"))
    worker.control.lose()
    world.available = False
    worker.control.held = False
    worker.stop(drain=1)
    for wire in (worker.read, worker.settle):
        wire.frozen = False
    worker.machine.abandon()
    world.advance(worker.machine.config.lease + 3)
    worker.machine.abandon()
    world.pump()
    assert worker.ended


@pytest.mark.parametrize("parts", [[], [b"id"]])
def test_a_row_of_the_schedule_that_makes_no_entry_stops_nobody(world, parts):
    """XADD refused it, and each worker that met it took that for a refusal to work with it."""
    worker = world.worker()
    schedule(world, "bad", pack_fields(parts))
    schedule(world, "good", pack_fields(encode_task(Task("good", "q", "c", b""))))
    world.advance(3)
    assert worker.machine.refusal is None
    assert worker.take().task.id == "good"
    assert [letter[b"id"] for letter in world.dead()] == [b"bad"]


# ---- leaving ----------------------------------------------------------------------------------------


def test_an_entry_that_a_cut_read_brings_at_the_last_moment_is_given_back(world):
    """It went with the consumer, and ran only after somebody had looked for entries without an owner."""
    worker = world.worker()
    worker.read.lose(late=True)  # half open: the server still waits for a task
    worker.stop()
    worker.settle.hold_at("XGROUP")
    world.enqueue()
    worker.settle.release()
    assert worker.ended
    other = world.worker()
    world.advance(5)
    assert other.take().task.id == "t1"


# ---- bounds -----------------------------------------------------------------------------------------


def test_refused_tasks_that_nobody_asks_for_are_not_kept_without_end(world):
    client = world.client()
    world.call("SET", KEYS.stream, "mine")
    for _ in range(6):
        for _ in range(500):
            client.enqueue(b"x")
        world.pump()
    assert client.machine.counts["refused"] == 3000
    assert len(client.machine.refused_since) == MAX_UNTOLD


def test_dead_consumers_take_no_turn_in_looking_for_entries_without_an_owner(world):
    """After a day of restarts nobody's turn came for hours."""
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    for number in range(1000):
        world.call("XGROUP", "CREATECONSUMER", KEYS.stream, GROUP, f"dead:{number}")
    world.now += 3600
    worker = world.worker()
    world.enqueue()
    world.pump()
    world.call("XGROUP", "DELCONSUMER", KEYS.stream, GROUP, worker.machine.consumer)
    world.advance(worker.machine.config.sweep_interval * 3)
    assert worker.machine.counts["adopted"] == 1


# ---- time -------------------------------------------------------------------------------------------


def hang(worker):
    """The server does not answer any more, and nobody has noticed yet."""
    for wire in worker.wires:
        wire.held = True


def test_handlers_are_told_to_stop_in_time_although_all_links_wait_for_a_silent_server(world):
    """Time passed only when a link was served: they were told up to two seconds after others could take over."""
    worker = world.worker()
    world.enqueue()
    world.pump()
    delivery = worker.take()
    world.advance(20)
    hang(worker)
    while not delivery.cancelled and world.now < delivery.leased_from + 20:
        world.advance(0.1)
    assert world.now < delivery.leased_from + worker.machine.config.lease


def test_a_stop_comes_to_its_end_although_all_links_wait_for_a_silent_server(world):
    worker = world.worker()
    world.enqueue()
    world.pump()
    worker.take()
    hang(worker)
    world.advance(3)
    worker.stop(drain=1)
    world.advance(1 + worker.machine.config.lease + 0.1)
    assert worker.machine.time.gave_up
