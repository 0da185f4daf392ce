import pytest

from streamfleet_core.clock import ServerClock
from streamfleet_core.connection import ServerError
from streamfleet_core.events import EventKind
from streamfleet_core.keys import queue_keys
from streamfleet_core.publishing import MARKER_REFRESH
from streamfleet_core.submission import Status
from streamfleet_core.wire import decode_task, unpack_fields

KEYS = queue_keys("q")
FULL = "OOM command not allowed when used memory > 'maxmemory'."


def batches(client):
    return [exchange for exchange in client.publish.sent if exchange[0] == ("MULTI",)]


def in_flight(world):
    client = world.settled_client()
    client.publish.hold_at("HSET") if client.publish.flight else None
    submission = client.enqueue(b"second")
    client.turn()
    client.publish.until("HSET")
    assert submission.status is Status.SENT
    return client, submission


# ---- the way of a task ------------------------------------------------------------------------------


def test_a_task_is_accepted_once(world):
    client = world.client()
    submission = client.enqueue(b"hello")
    assert submission.status is Status.BUFFERED
    world.pump()
    assert submission.status is Status.ACCEPTED
    (entry,) = world.stream()
    task = decode_task([part for pair in entry.items() for part in pair], "q")
    assert (task.id, task.data, task.client_id) == (submission.id, b"hello", client.client_id)
    assert client.machine.pending == client.machine.buffered_tasks == client.machine.buffered_bytes == 0
    assert client.machine.counts["accepted"] == 1


def test_a_client_that_sends_nothing_connects_to_nothing(world):
    client = world.client()
    world.advance(60)
    assert client.wires == []
    client.close()
    world.pump()
    assert world.call("KEYS", "*") == []


def test_the_marker_goes_with_the_batch_and_is_watched_again(world):
    client = world.settled_client()
    (batch,) = batches(client)
    assert batch[0] == ("MULTI",)
    assert batch[2:] == [("HSET", client.marker(), "s", 1), ("EXEC",), ("WATCH", client.marker())]
    assert world.call("HGET", client.marker(), "s") == b"1"
    assert 0 < world.call("PTTL", client.marker()) <= 86_400_000


def test_what_gathers_while_one_batch_is_in_flight_leaves_in_the_next(world):
    client = world.settled_client()
    client.enqueue(b"a")
    client.publish.until("HSET")
    for name in (b"b", b"c", b"d"):
        client.enqueue(name)
    client.publish.release()
    assert [len([c for c in batch if c[0] == "XADD"]) for batch in batches(client)] == [1, 1, 3]
    assert [entry[b"data"] for entry in world.stream()] == [b"first", b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({"batch_tasks": 4}, [4, 4, 2]),
        ({"batch_bytes": 80}, [2, 2, 2, 2, 2]),
        ({"batch_bytes": 81}, [3, 3, 3, 1]),
        ({"batch_bytes": 100}, [3, 3, 3, 1]),
        ({}, [10]),
    ],
)
def test_batches_are_bounded_in_number_and_bytes(world, limits, sizes):
    client = world.client(**limits)
    for _ in range(10):
        client.enqueue(b"x" * 40)
    world.pump()
    assert [len([c for c in batch if c[0] == "XADD"]) for batch in batches(client)] == sizes
    assert len(world.stream()) == 10


def test_a_delayed_task_goes_into_the_schedule(world):
    client = world.client()
    one = client.enqueue(b"one", delay=30)
    two = client.enqueue(b"two", at=(world.server_ms() + 60_000) / 1000)
    world.pump()
    scores = world.call("ZRANGE", KEYS.schedule, 0, -1, "WITHSCORES")
    assert scores == [
        one.id.encode(),
        b"%d" % (world.server_ms() + 30_000),
        two.id.encode(),
        b"%d" % (world.server_ms() + 60_000),
    ]
    assert b"one" in unpack_fields(world.call("HGET", KEYS.scheduled, one.id))
    assert world.stream() == []
    assert one.status is two.status is Status.ACCEPTED


def test_a_delay_is_counted_by_the_servers_clock(world):
    client = world.client(wall_ms=5)
    client.enqueue(b"one", delay=30)
    world.advance(1)
    assert world.call("ZRANGE", KEYS.schedule, 0, -1, "WITHSCORES")[1] == b"%d" % (world.server_ms() + 29_000)


def test_a_task_that_expires_in_the_buffer_ends_there(world):
    world.available = False
    client = world.client()
    gone = client.enqueue(b"gone", expires_in=1)
    kept = [client.enqueue(b"kept", expires_in=100) for _ in range(2)]
    world.advance(2)
    world.available = True
    world.advance(2)
    assert gone.status is Status.EXPIRED
    assert {s.status for s in kept} == {Status.ACCEPTED}
    assert world.task_ids() == [s.id for s in kept]
    assert client.machine.pending == 0
    assert client.events(EventKind.EXPIRED_LOCALLY)


def test_a_task_does_not_expire_early_because_the_server_was_slow_to_tell_the_time(world):
    client = world.settled_client()
    client.machine.clock = ServerClock(0.0, 0.0)
    client.machine.clock.observed(world.server_ms() - 4000, world.now - 4.0, world.now)  # read at once, told late
    client.enqueue(b"x", expires_in=10)
    world.pump()
    assert int(world.stream()[-1][b"expires_ts"]) >= world.server_ms() + 10_000


def test_the_markers_life_is_prolonged_while_the_client_works(world):
    client = world.settled_client()
    world.advance(MARKER_REFRESH + 1)
    client.enqueue(b"x")
    world.pump()
    assert world.call("PTTL", client.marker()) == pytest.approx(86_400_000, abs=1500)


def test_an_idle_client_prolongs_the_life_of_its_marker(world):
    client = world.client(marker_ttl=60)
    client.enqueue(b"x")
    world.advance(300)
    assert world.call("EXISTS", client.marker()) == 1


def test_the_marker_counts_greetings_and_names_the_last_batch(world):
    client = world.settled_client()
    assert world.call("HGETALL", client.marker()) == [b"e", b"1", b"s", b"1"]
    client.publish.lose()
    world.advance(1)
    assert world.call("HGETALL", client.marker()) == [b"e", b"2", b"s", b"1"]


def test_batches_and_accepted_tasks_are_counted(world):
    client = world.settled_client()
    for _ in range(2):
        client.enqueue(b"x")
        client.enqueue(b"y")
        world.pump()
    assert client.machine.counts["batches"] == 3
    assert client.machine.counts["accepted"] == 5


def test_a_task_leaves_although_one_before_it_was_cancelled(world):
    client = world.settled_client()
    cancelled, kept = client.enqueue(b"1"), client.enqueue(b"2")
    client.machine.cancel(cancelled)
    world.pump()
    assert cancelled.status is Status.CANCELLED
    assert kept.status is Status.ACCEPTED


def test_a_task_expires_at_the_very_millisecond(world):
    client, _ = in_flight(world)
    gone, kept = client.enqueue(b"x", expires_in=1), client.enqueue(b"y", expires_in=1.001)
    world.now += 1
    client.publish.release()
    assert gone.status is Status.EXPIRED
    assert kept.status is Status.ACCEPTED


# ---- unknown outcomes -------------------------------------------------------------------------------


def test_the_request_was_lost(world):
    client, submission = in_flight(world)
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert world.task_ids().count(submission.id) == 1
    assert submission.status is Status.ACCEPTED


def test_the_reply_was_lost(world):
    client, submission = in_flight(world)
    client.publish.execute()
    client.publish.lose()
    assert submission.status is Status.SENT
    client.publish.held = False
    world.advance(1)
    assert world.task_ids().count(submission.id) == 1
    assert submission.status is Status.ACCEPTED


@pytest.mark.parametrize("resent_first", [True, False])
def test_the_request_arrives_late(world, resent_first):
    client, submission = in_flight(world)
    client.publish.lose(late=True)
    if not resent_first:
        client.publish.arrive_late()
    client.publish.held = False
    world.advance(1)
    if resent_first:
        assert client.publish.arrive_late()[-2] is None
    world.advance(1)
    assert world.task_ids().count(submission.id) == 1


def test_a_request_that_arrives_between_greeting_and_resending(world):
    client, submission = in_flight(world)
    client.publish.lose(late=True)
    world.advance(0.3)
    client.publish.until("HSET")
    client.publish.arrive_late()
    client.publish.release()
    assert world.task_ids().count(submission.id) == 1


def test_a_broken_greeting_is_repeated(world):
    client, submission = in_flight(world)
    client.publish.lose()
    world.advance(0.2)
    client.publish.until("HINCRBY")
    client.publish.execute()
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert world.task_ids().count(submission.id) == 1


def test_a_greeting_that_ends_half_way_leaves_no_marker_for_ever(world):
    """Of a client that then never came back one was left that does not expire."""
    client = world.client()
    client.enqueue(b"x")
    client.adopt_links()
    flight = client.publish.until("HINCRBY")
    commands = iter(flight.commands)
    while not world.call("EXISTS", client.marker()):
        flight.session.execute(next(commands))
    assert list(commands)
    client.crash()
    assert 0 < world.call("PTTL", client.marker()) <= client.machine.config.marker_ttl * 1000


def test_a_marker_that_is_watched_and_has_changed_is_greeted_all_the_same(world):
    client = world.settled_client()
    end = world.refuse(FULL, "XADD", times=1)
    client.enqueue(b"second")
    world.call("HINCRBY", client.marker(), "e", 1)
    world.advance(5)
    end()
    assert client.machine.counts["aborted"] == 0
    assert len(world.stream()) == 2


def test_a_marker_of_another_type_is_told(world):
    client = world.settled_client()
    world.call("DEL", client.marker())
    world.call("SET", client.marker(), "x")
    client.publish.lose()
    client.enqueue(b"second")
    world.advance(5)
    assert client.marker().decode() in str(client.machine.refusal)


def test_no_new_batch_leaves_before_the_old_one_is_resolved(world):
    client, submission = in_flight(world)
    later = client.enqueue(b"later")
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert world.task_ids()[1:] == [submission.id, later.id]


def test_a_batch_that_was_aborted_by_the_watch_is_sent_again(world):
    client, submission = in_flight(world)
    world.call("HINCRBY", client.marker(), "e", 1)
    client.publish.deliver()
    client.publish.until("HSET")
    world.call("HINCRBY", client.marker(), "e", 1)
    client.publish.release()
    assert client.machine.counts["aborted"] == 2
    assert world.task_ids().count(submission.id) == 1
    assert submission.status is Status.ACCEPTED


# ---- the end ----------------------------------------------------------------------------------------


def test_a_closed_client_leaves_only_its_tasks(world):
    client = world.client()
    submissions = [client.enqueue(b"x"), client.enqueue(b"y", tracked=True)]
    client.close()
    world.advance(6)
    assert client.ended
    assert world.task_ids() == [s.id for s in submissions]
    assert world.call("KEYS", "*") == [KEYS.stream]


def test_closing_waits_for_what_is_buffered(world):
    world.available = False
    client = world.client()
    submission = client.enqueue(b"x")
    client.close()
    world.advance(5)
    assert not client.ended
    world.available = True
    world.advance(2)
    assert client.ended
    assert submission.status is Status.ACCEPTED


def test_what_is_abandoned_is_cancelled_for_good(world):
    world.available = False
    client = world.client()
    submission = client.enqueue(b"x")
    cancelled = client.enqueue(b"y")
    client.machine.cancel(cancelled)
    client.close(abandon=True)
    assert submission.status is Status.CANCELLED
    assert client.machine.pending == client.machine.buffered_tasks == client.machine.buffered_bytes == 0
    world.available = True
    world.advance(2)
    assert client.ended
    assert world.call("KEYS", "*") == []


def test_closing_with_abandon_counts_what_was_given_up(world):
    world.available = False
    client = world.client()
    for _ in range(3):
        client.enqueue(b"x")
    client.close(abandon=True)
    assert client.machine.abandoned == 3


def test_a_heartbeat_that_is_on_its_way_at_the_end_leaves_nothing_behind(world):
    client = world.client()
    client.enqueue(b"x", tracked=True)
    world.pump()
    client.receive.hold_at("ZADD")
    client.close()
    world.advance(1)
    client.receive.release()
    world.advance(1)
    assert client.ended
    assert world.call("KEYS", "*") == [KEYS.stream]


def test_leaving_is_repeated_until_it_has_been_heard(world):
    client = world.settled_client()
    client.close()
    client.publish.until("DEL")
    client.publish.lose()
    client.publish.held = False
    world.advance(2)
    assert client.ended
    assert world.call("KEYS", "*") == [KEYS.stream]


def test_a_greeting_without_sense_is_not_taken_for_one(world):
    client = world.client()
    client.enqueue(b"x")
    client.turn()
    client.publish.until("HINCRBY")
    replies = [b"1" if name != "TIME" else [b"1", b"0"] for name in client.publish.flight.names]
    replies[1] = ServerError("LOADING")
    client.publish.deliver(replies)
    assert client.events(EventKind.BACKING_OFF)
    client.publish.held = False
    world.advance(1)
    assert len(world.task_ids()) == 1


def test_a_client_whose_only_tracked_task_was_never_sent_leaves_at_once(world):
    client = world.settled_client()
    submission = client.enqueue(b"x", tracked=True)
    client.machine.cancel(submission)
    world.pump()
    client.close()
    world.pump()
    assert client.ended
    assert world.call("KEYS", "*") == [KEYS.stream]
