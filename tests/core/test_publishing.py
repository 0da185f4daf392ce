import pytest

from streamfleet_core.clock import ServerClock
from streamfleet_core.connection import ServerError
from streamfleet_core.errors import PermissionMissing, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import queue_keys, receiver_key
from streamfleet_core.publishing import MARKER_REFRESH
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status
from streamfleet_core.wire import decode_task, unpack_fields

KEYS = queue_keys("q")
FULL = "OOM command not allowed when used memory > 'maxmemory'."
NO_KEY = "NOPERM this user has no permissions to access one of the keys used as arguments"
FINAL = [
    ("ERR a module says no", "the server refuses EXEC."),
    ("EXECABORT Transaction discarded because of: NOPERM not now", "may not run EXEC;"),
]
"""Answers to EXEC after which nothing is tried again, and what is said of them."""


def ids(world, queue="q"):
    return [entry[b"id"].decode() for entry in world.stream(queue)]


def marker(client, queue="q"):
    return queue_keys(queue).producer(client_id(client))


def client_id(client):
    return next(iter(client.machine.lanes.values())).client_id


def batches(client):
    return [exchange for exchange in client.publish.sent if exchange[0] == ("MULTI",)]


def settled(world):
    """A client whose connection stands, and which has sent one task."""
    client = world.client()
    client.enqueue(b"first")
    world.pump()
    return client


def scheduled(world):
    """A client and a task of its that waits for a minute."""
    client = world.client()
    submission = client.enqueue(b"x", delay=60)
    world.pump()
    return client, submission


def in_flight(world):
    client = settled(world)
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
    assert (task.id, task.data, task.client_id) == (submission.id, b"hello", client_id(client))
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
    client = settled(world)
    (batch,) = batches(client)
    assert batch[0] == ("MULTI",)
    assert batch[2:] == [("HSET", marker(client), "s", 1), ("EXEC",), ("WATCH", marker(client))]
    assert world.call("HGET", marker(client), "s") == b"1"
    assert 0 < world.call("PTTL", marker(client)) <= 86_400_000


def test_what_gathers_while_one_batch_is_in_flight_leaves_in_the_next(world):
    client = settled(world)
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
    assert ids(world) == [s.id for s in kept]
    assert client.machine.pending == 0
    assert client.events(EventKind.EXPIRED_LOCALLY)


def test_a_task_does_not_expire_early_because_the_server_was_slow_to_tell_the_time(world):
    client = settled(world)
    client.machine.clock = ServerClock(0.0, 0.0)
    client.machine.clock.observed(world.server_ms() - 4000, world.now - 4.0, world.now)  # read at once, told late
    client.enqueue(b"x", expires_in=10)
    world.pump()
    assert int(world.stream()[-1][b"expires_ts"]) >= world.server_ms() + 10_000


def test_the_markers_life_is_prolonged_while_the_client_works(world):
    client = settled(world)
    world.advance(MARKER_REFRESH + 1)
    client.enqueue(b"x")
    world.pump()
    assert world.call("PTTL", marker(client)) == pytest.approx(86_400_000, abs=1500)


def test_an_idle_client_prolongs_the_life_of_its_marker(world):
    client = world.client(marker_ttl=60)
    client.enqueue(b"x")
    world.advance(300)
    assert world.call("EXISTS", marker(client)) == 1


def test_the_marker_counts_greetings_and_names_the_last_batch(world):
    client = settled(world)
    assert world.call("HGETALL", marker(client)) == [b"e", b"1", b"s", b"1"]
    client.publish.lose()
    world.advance(1)
    assert world.call("HGETALL", marker(client)) == [b"e", b"2", b"s", b"1"]


def test_batches_and_accepted_tasks_are_counted(world):
    client = settled(world)
    for _ in range(2):
        client.enqueue(b"x")
        client.enqueue(b"y")
        world.pump()
    assert client.machine.counts["batches"] == 3
    assert client.machine.counts["accepted"] == 5


def test_a_task_leaves_although_one_before_it_was_cancelled(world):
    client = settled(world)
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
    assert ids(world).count(submission.id) == 1
    assert submission.status is Status.ACCEPTED


def test_the_reply_was_lost(world):
    client, submission = in_flight(world)
    client.publish.execute()
    client.publish.lose()
    assert submission.status is Status.SENT
    client.publish.held = False
    world.advance(1)
    assert ids(world).count(submission.id) == 1
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
    assert ids(world).count(submission.id) == 1


def test_a_request_that_arrives_between_greeting_and_resending(world):
    client, submission = in_flight(world)
    client.publish.lose(late=True)
    world.advance(0.3)
    client.publish.until("HSET")
    client.publish.arrive_late()
    client.publish.release()
    assert ids(world).count(submission.id) == 1


def test_a_broken_greeting_is_repeated(world):
    client, submission = in_flight(world)
    client.publish.lose()
    world.advance(0.2)
    client.publish.until("HINCRBY")
    client.publish.execute()
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert ids(world).count(submission.id) == 1


def test_a_greeting_that_ends_half_way_leaves_no_marker_for_ever(world):
    """Of a client that then never came back one was left that does not expire."""
    client = world.client()
    client.enqueue(b"x")
    client.adopt_links()
    flight = client.publish.until("HINCRBY")
    commands = iter(flight.commands)
    while not world.call("EXISTS", marker(client)):
        flight.session.execute(next(commands))
    assert list(commands)
    client.crash()
    assert 0 < world.call("PTTL", marker(client)) <= client.machine.config.marker_ttl * 1000


def test_a_marker_that_is_watched_and_has_changed_is_greeted_all_the_same(world):
    client = settled(world)
    end = world.refuse(FULL, "XADD", times=1)
    client.enqueue(b"second")
    world.call("HINCRBY", marker(client), "e", 1)
    world.advance(5)
    end()
    assert client.machine.counts["aborted"] == 0
    assert len(world.stream()) == 2


def test_a_marker_of_another_type_is_told(world):
    client = settled(world)
    world.call("DEL", marker(client))
    world.call("SET", marker(client), "x")
    client.publish.lose()
    client.enqueue(b"second")
    world.advance(5)
    assert marker(client).decode() in str(client.machine.refusal)


def test_no_new_batch_leaves_before_the_old_one_is_resolved(world):
    client, submission = in_flight(world)
    later = client.enqueue(b"later")
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert ids(world)[1:] == [submission.id, later.id]


def test_a_batch_that_was_aborted_by_the_watch_is_sent_again(world):
    client, submission = in_flight(world)
    world.call("HINCRBY", marker(client), "e", 1)
    client.publish.deliver()
    client.publish.until("HSET")
    world.call("HINCRBY", marker(client), "e", 1)
    client.publish.release()
    assert client.machine.counts["aborted"] == 2
    assert ids(world).count(submission.id) == 1
    assert submission.status is Status.ACCEPTED


# ---- the server has lost data -----------------------------------------------------------------------


def accept(world, client, count):
    submissions = []
    for n in range(count):
        submissions.append(client.enqueue(b"%d" % n))
        world.pump()
    return submissions


def lose_tail(world, client, snapshot):
    """A failover to a replica that had not received everything."""
    world.server.restore(snapshot)
    world.admin = world.server.session()
    for wire in client.wires:
        wire.lose()
    world.advance(2)


def test_batches_that_the_server_lost_are_sent_again(world):
    client = world.client()
    first = accept(world, client, 3)
    snapshot = world.server.snapshot()
    second = accept(world, client, 4)
    lose_tail(world, client, snapshot)
    assert ids(world) == [s.id for s in first + second]
    (event,) = client.events(EventKind.MARKER_REGRESSED)
    assert event.data == {"tasks": 4, "batches_not_kept": 0}
    assert event.text == (
        "the server has lost accepted tasks (batch 3 is its last, 7 was confirmed): sending 4 tasks again"
    )
    assert client.machine.counts["resent"] == 4
    assert client.machine.pending == 0
    assert {s.status for s in first + second} == {Status.ACCEPTED}


def test_everything_is_lost(world):
    client = world.client()
    submissions = accept(world, client, 3)
    lose_tail(world, client, world.server.__class__(world.server_ms).snapshot())
    assert ids(world) == [s.id for s in submissions]


def test_a_regression_with_a_batch_in_flight(world):
    client = world.client()
    snapshot_client = accept(world, client, 1)
    snapshot = world.server.snapshot()
    lost = accept(world, client, 2)
    flying = client.enqueue(b"flying")
    client.publish.until("HSET")
    client.publish.held = False
    lose_tail(world, client, snapshot)
    assert ids(world) == [s.id for s in [*snapshot_client, *lost, flying]]


def test_two_regressions_one_further_back(world):
    client = world.client()
    first = accept(world, client, 1)
    early = world.server.snapshot()
    second = accept(world, client, 2)
    late = world.server.snapshot()
    third = accept(world, client, 2)
    lose_tail(world, client, late)
    lose_tail(world, client, early)
    assert ids(world) == [s.id for s in first + second + third]
    assert client.machine.counts["regressed"] == 2
    assert client.machine.counts["resent"] == 2 + 4


def test_a_lost_tail_that_comes_back_before_it_was_sent_again(world):
    client = world.client()
    first = accept(world, client, 1)
    early = world.server.snapshot()
    second = accept(world, client, 3)
    late = world.server.snapshot()
    world.server.restore(early)
    world.admin = world.server.session()
    client.publish.lose()
    client.publish.held = True
    world.advance(0.2)
    client.publish.until("HSET")
    world.server.restore(late)
    world.admin = world.server.session()
    client.publish.lose()
    client.publish.held = False
    world.advance(2)
    assert ids(world) == [s.id for s in first + second]
    assert client.machine.pending == 0


@pytest.mark.parametrize("applied", [True, False])
def test_a_connection_that_breaks_again_does_not_change_the_order_of_what_is_sent_again(world, applied):
    client = world.client()
    first = accept(world, client, 1)
    snapshot = world.server.snapshot()
    lost = accept(world, client, 3)
    world.server.restore(snapshot)
    world.admin = world.server.session()
    client.publish.lose()
    client.publish.hold_at("HSET")
    if applied:
        client.publish.execute()
    client.publish.lose()
    client.publish.held = False
    world.advance(2)
    assert ids(world) == [s.id for s in first + lost]
    assert len(client.events(EventKind.MARKER_REGRESSED)) == 1


def test_what_has_ended_is_not_sent_again(world):
    client = world.client()
    snapshot = world.server.snapshot()
    submissions = [client.enqueue(b"x", tracked=True), client.enqueue(b"y", tracked=True)]
    world.pump()
    client.machine.resolve(submissions[0], Status.COMPLETED)
    client.receive.frozen = True
    lose_tail(world, client, snapshot)
    assert ids(world) == [submissions[1].id]


def test_what_was_given_up_as_unknown_is_sent_again(world):
    """The receive link may be the first to see that the server has lost everything."""
    client = world.client()
    snapshot = world.server.snapshot()
    submission = client.enqueue(b"x", tracked=True)
    world.pump()
    client.publish.frozen = True
    lose_tail(world, client, snapshot)
    world.advance(5)
    assert submission.status is Status.UNKNOWN
    client.publish.frozen = False
    world.advance(2)
    assert ids(world) == [submission.id]
    assert client.machine.pending == 0


def test_only_so_much_is_kept_and_the_rest_is_told(world):
    client = world.client(keep_tasks=2)
    snapshot = world.server.snapshot()
    submissions = accept(world, client, 5)
    lose_tail(world, client, snapshot)
    assert ids(world) == [s.id for s in submissions[-2:]]
    (event,) = client.events(EventKind.MARKER_REGRESSED)
    assert event.data["batches_not_kept"] == 3
    assert "3 older batches were not kept" in event.text


def test_and_only_for_so_long(world):
    client = world.client(keep_seconds=30)
    snapshot = world.server.snapshot()
    accept(world, client, 2)
    world.advance(31)
    late = accept(world, client, 1)
    lose_tail(world, client, snapshot)
    assert ids(world) == [s.id for s in late]


def test_a_marker_that_was_evicted_is_no_loss_of_the_kept(world):
    client = world.client()
    submissions = accept(world, client, 2)
    world.call("DEL", marker(client))
    client.publish.lose()
    world.advance(2)
    assert client.events(EventKind.MARKER_REGRESSED)
    assert set(ids(world)) == {s.id for s in submissions}


def test_without_a_loss_nothing_is_said(world):
    client = world.client()
    accept(world, client, 3)
    client.publish.lose()
    world.advance(2)
    assert not client.events(EventKind.MARKER_REGRESSED)
    assert client.machine.counts["resent"] == 0


def test_a_batch_that_was_aborted_because_the_marker_has_gone_tells_of_a_loss(world):
    client, _ = in_flight(world)
    world.call("DEL", marker(client), KEYS.stream)
    client.publish.release()
    assert client.events(EventKind.MARKER_REGRESSED)
    assert [entry[b"data"] for entry in world.stream()] == [b"first", b"second"]


def test_an_idle_client_notices_a_loss_although_its_connection_stands(world):
    client = world.client(keep_seconds=30)
    (submission,) = accept(world, client, 1)
    world.call("DEL", marker(client), KEYS.stream)
    world.advance(11)
    assert client.events(EventKind.MARKER_REGRESSED)
    assert ids(world) == [submission.id]


def test_an_idle_client_whose_question_is_refused_asks_again(world):
    client = world.client(keep_seconds=30)
    (submission,) = accept(world, client, 1)
    world.call("DEL", marker(client), KEYS.stream)
    world.refuse("LOADING data", "HGET", times=1)
    world.advance(12)
    assert "LOADING" in client.events(EventKind.BACKING_OFF)[0].text
    assert ids(world) == [submission.id]


# ---- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [FULL, "READONLY a replica", "NOREPLICAS few", "MISCONF disk", "LOADING data"])
@pytest.mark.parametrize("name", ["XADD", "HINCRBY", "HSET", "WATCH"])
def test_what_may_pass_is_waited_for_and_nothing_is_lost(world, line, name):
    client = settled(world)
    end = world.refuse(line, name)
    if name in ("HINCRBY", "WATCH"):
        client.publish.lose()
    submission = client.enqueue(b"second")
    world.advance(5)
    assert submission.status in (Status.BUFFERED, Status.SENT)
    assert client.events(EventKind.BACKING_OFF)
    assert client.machine.refusal is None
    end()
    world.advance(5)
    assert submission.status is Status.ACCEPTED
    assert ids(world).count(submission.id) == 1


def test_a_refusal_once_is_no_reason_to_abort_for_ever(world):
    client = settled(world)
    world.refuse(FULL, "XADD", times=1)
    submission = client.enqueue(b"second")
    world.advance(5)
    assert submission.status is Status.ACCEPTED
    assert client.machine.counts["aborted"] == 0


def test_a_batch_that_could_not_be_watched_behind_is_followed_by_a_greeting(world):
    """Without the watch, a late EXEC of a broken connection would not abort."""
    client = settled(world)
    end = world.refuse("BUSY Redis is busy running a script", "WATCH", times=1)
    submission = client.enqueue(b"second")
    world.pump()
    end()
    assert submission.status is Status.ACCEPTED
    client.enqueue(b"third")
    world.advance(2)
    assert [exchange[0][0] for exchange in client.publish.sent][-2:] == ["UNWATCH", "MULTI"]
    assert len(world.stream()) == 3


def test_a_cause_that_only_the_exec_reply_tells(world):
    client = settled(world)
    end = world.refuse("EXECABORT Transaction discarded because of: NOREPLICAS few", "EXEC")
    submission = client.enqueue(b"second")
    world.advance(3)
    assert client.machine.refusal is None
    assert "NOREPLICAS" in client.events(EventKind.BACKING_OFF)[0].text
    end()
    world.advance(5)
    assert submission.status is Status.ACCEPTED


@pytest.mark.parametrize(("line", "told"), FINAL)
def test_a_batch_that_is_refused_for_good_is_told(world, line, told):
    client = settled(world)
    world.refuse(line, "EXEC")
    client.enqueue(b"second")
    world.pump()
    assert told in str(client.machine.refusal)
    assert len(world.stream()) == 1


@pytest.mark.parametrize(
    ("name", "code"), [("MULTI", "NOPERM"), ("EXEC", "EXECABORT Transaction discarded because of: NOPERM")]
)
def test_without_the_right_to_a_transaction_no_task_is_written(world, name, code):
    """Its commands would be done one by one, and again when the right is there."""
    world.refuse(f"{code} User app has no permissions to run the '{name.lower()}' command", name)
    client = world.client()
    submission = client.enqueue(b"x")
    world.advance(1)
    assert isinstance(client.machine.refusal, PermissionMissing)
    assert f"ACL SETUSER app +{name.lower()}" in str(client.machine.refusal)
    assert submission.status is not Status.ACCEPTED
    assert world.stream() == []
    assert batches(client) == []


@pytest.mark.parametrize("name", ["XADD", "HINCRBY", "XGROUP"])
def test_a_right_that_is_missing_is_told_with_its_command(world, name):
    client = world.client()
    world.refuse(f"NOPERM User app has no permissions to run the '{name.lower()}' command", name)
    client.enqueue(b"x", tracked=True)
    world.advance(3)
    assert isinstance(client.machine.refusal, PermissionMissing)
    assert name in str(client.machine.refusal)
    assert ids(world) == []


@pytest.mark.parametrize(
    ("name", "key"), [("HINCRBY", "marker"), ("ZADD", "receivers"), ("XADD", "stream"), ("WATCH", "marker")]
)
def test_a_key_that_may_not_be_used_is_told_with_its_command(world, name, key):
    client = settled(world)
    world.refuse(NO_KEY, name)
    if name == "HINCRBY":
        client.publish.lose()
    client.enqueue(b"x", tracked=name == "ZADD")
    world.advance(1)
    key = marker(client) if key == "marker" else getattr(KEYS, key)
    assert f"the key '{key.decode()}' that {name} uses" in str(client.machine.refusal)


def test_a_key_that_an_idle_client_may_not_read_any_more_is_told(world):
    client = settled(world)
    world.refuse(NO_KEY, "HGET")
    world.advance(11)
    assert f"the key '{marker(client).decode()}' that HGET uses" in str(client.machine.refusal)


def test_a_single_task_that_cannot_be_stored_does_not_hold_up_the_others(world):
    world.call("SET", queue_keys("bad").stream, "mine")
    client = world.client()
    good, bad, late = client.enqueue(b"1"), client.enqueue(b"2", "bad"), client.enqueue(b"3", "bad", delay=5)
    world.call("SET", queue_keys("bad").schedule, "mine")
    world.pump()
    assert good.status is Status.ACCEPTED
    assert bad.status is late.status is Status.REFUSED
    assert "the key 'streamfleet:bad' is not a stream, as XADD" in bad.error
    assert f"the key '{queue_keys('bad').schedule.decode()}' is not a zset, as ZADD" in late.error
    assert client.machine.refused_since == [bad, late]
    assert client.machine.counts["refused"] == 2
    assert client.machine.counts["accepted"] == 1
    assert client.machine.pending == 0
    assert len(client.events(EventKind.NOT_ACCEPTED)) == 2


def test_a_scheduled_task_whose_body_cannot_be_stored_is_refused(world):
    world.call("SET", KEYS.scheduled, "mine")
    client = world.client()
    late, next_one = client.enqueue(b"1", delay=5), client.enqueue(b"2")
    world.pump()
    assert late.status is Status.REFUSED
    assert f"the key '{KEYS.scheduled.decode()}' is not a hash, as HSET" in late.error
    assert next_one.status is Status.ACCEPTED


def test_a_scheduled_task_is_not_refused_for_the_one_behind_it(world):
    world.call("SET", queue_keys("bad").stream, "mine")
    client = world.client()
    late, bad = client.enqueue(b"1", delay=5), client.enqueue(b"2", "bad")
    world.pump()
    assert late.status is Status.ACCEPTED
    assert bad.status is Status.REFUSED


def test_refused_tasks_are_not_sent_again_after_a_loss(world):
    client = world.client()
    snapshot = world.server.snapshot()
    world.call("SET", queue_keys("bad").stream, "mine")
    good = client.enqueue(b"1")
    client.enqueue(b"2", "bad")
    world.pump()
    lose_tail(world, client, snapshot)
    assert ids(world) == [good.id]
    assert ids(world, "bad") == []


def test_a_receivers_set_of_another_type(world):
    world.call("SET", KEYS.receivers, "mine")
    client = world.client()
    client.enqueue(b"x", tracked=True)
    world.advance(1)
    assert isinstance(client.machine.refusal, WrongKeyType)
    assert f"the key '{KEYS.receivers.decode()}' is not a zset, as ZADD" in str(client.machine.refusal)


@pytest.mark.parametrize("name", ["ZADD", "XGROUP"])
def test_a_receiver_that_cannot_be_created_yet_is_waited_for(world, name):
    end = world.refuse(FULL, name)
    client = world.client()
    submission = client.enqueue(b"x", tracked=True)
    world.advance(3)
    assert submission.status in (Status.BUFFERED, Status.SENT)
    end()
    world.advance(3)
    assert submission.status is Status.ACCEPTED


# ---- tracking and cancelling ------------------------------------------------------------------------


def test_the_receiver_is_there_before_the_first_tracked_task(world):
    client = world.client()
    client.enqueue(b"x", tracked=True)
    world.pump()
    names = [exchange[0][0] for exchange in client.publish.sent]
    assert names == ["UNWATCH", "ZADD", "MULTI"]
    assert client.publish.sent[1][-1][:3] == ("XGROUP", "CREATE", receiver_key(client_id(client)))
    assert world.call("ZSCORE", KEYS.receivers, client_id(client)) == b"%d" % world.server_ms()


def test_a_queue_met_later_is_registered_too(world):
    client = world.client("q")
    client.enqueue(b"x", tracked=True)
    world.pump()
    submission = client.enqueue(b"y", "r", tracked=True)
    world.pump()
    assert submission.status is Status.ACCEPTED
    assert world.call("ZSCORE", queue_keys("r").receivers, client_id(client)) is not None


def test_a_scheduled_task_is_cancelled_by_the_server(world):
    client, submission = scheduled(world)
    moves = world.value(KEYS.moves)
    client.machine.cancel(submission)
    assert submission.cancelling
    world.pump()
    assert submission.status is Status.CANCELLED
    assert not submission.cancelling
    assert world.call("EXISTS", KEYS.schedule) == world.call("EXISTS", KEYS.scheduled) == 0
    assert world.value(KEYS.moves) != moves


def test_a_task_that_was_moved_meanwhile_takes_its_course(world):
    client = world.client()
    submission = client.enqueue(b"x", delay=1)
    submission.waiter = object()
    world.pump()
    client.machine.changed.clear()
    worker = world.worker()
    world.advance(1.1)
    client.machine.cancel(submission)
    world.pump()
    assert submission.status is Status.ACCEPTED
    assert not submission.cancelling
    assert client.machine.changed == [submission], "who waits is woken"
    assert worker.take().task.id == submission.id


def test_a_cancel_whose_reply_was_lost_has_an_unknown_outcome(world):
    client, submission = scheduled(world)
    client.machine.cancel(submission)
    client.publish.until("ZREM")
    client.publish.execute()
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert submission.status is Status.UNKNOWN
    assert "being cancelled" in submission.error


def test_a_task_whose_cancel_has_an_unknown_outcome_is_not_sent_again_after_a_loss(world):
    client = world.client()
    snapshot = world.server.snapshot()
    submission, other = client.enqueue(b"x", delay=60), client.enqueue(b"y", delay=60)
    world.pump()
    client.machine.cancel(submission)
    client.publish.until("ZREM")
    client.publish.execute()
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert submission.status is Status.UNKNOWN
    lose_tail(world, client, snapshot)
    assert client.events(EventKind.MARKER_REGRESSED)
    assert world.call("ZRANGE", KEYS.schedule, 0, -1) == [other.id.encode()]


def moved(world, client):
    """A scheduled task that its stream has by now."""
    submission = client.enqueue(b"x", delay=1)
    world.pump()
    worker = world.worker()
    world.advance(1.1)
    worker.take()
    return submission


def test_a_connection_that_broke_before_does_not_make_a_cancel_unknown(world):
    client, _ = in_flight(world)
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    submission = moved(world, client)
    client.machine.cancel(submission)
    world.pump()
    assert submission.status is Status.ACCEPTED


@pytest.mark.parametrize("reply", ["lost", "late"])
def test_how_one_cancel_ended_says_nothing_about_the_next(world, reply):
    client = settled(world)
    submission = moved(world, client)
    first = client.enqueue(b"x", delay=60)
    world.pump()
    client.machine.cancel(first)
    if reply == "lost":
        client.publish.until("ZREM")
        client.publish.execute()
        client.publish.lose()
        client.publish.held = False
    else:
        world.pump()
        client.publish.lose()
    world.advance(1)
    assert first.status is (Status.UNKNOWN if reply == "lost" else Status.CANCELLED)
    client.machine.cancel(submission)
    world.pump()
    assert submission.status is Status.ACCEPTED


def test_each_of_several_cancels_looks_whether_its_task_has_run(world):
    client, worker = world.client(), world.worker()
    failed = client.enqueue(b"x", delay=1, retry=RetryPolicy(delay=60))
    world.advance(1.5)
    worker.fail(worker.take())
    fresh = client.enqueue(b"y", delay=60)
    world.pump()
    client.machine.cancel(fresh)
    client.machine.cancel(failed)
    world.pump()
    assert fresh.status is Status.CANCELLED
    assert failed.status is Status.ACCEPTED
    assert world.call("ZRANGE", KEYS.schedule, 0, -1) == [failed.id.encode()]


def test_a_cancel_that_comes_too_late_does_not_abort_the_next_batch(world):
    client = settled(world)
    client.machine.cancel(moved(world, client))
    world.pump()
    world.call("SET", KEYS.moves, "another")
    submission = client.enqueue(b"y")
    world.pump()
    assert submission.status is Status.ACCEPTED
    assert client.machine.counts["aborted"] == 0


def test_a_cancel_that_was_aborted_because_the_marker_has_gone_tells_of_a_loss(world):
    client, submission = scheduled(world)
    client.machine.cancel(submission)
    client.publish.until("ZREM")
    world.call("DEL", marker(client), KEYS.schedule, KEYS.scheduled)
    client.publish.release()
    assert client.events(EventKind.MARKER_REGRESSED)
    assert submission.status is Status.CANCELLED


def test_a_cancel_that_could_not_be_watched_behind_is_followed_by_a_greeting(world):
    client, submission = scheduled(world)
    client.machine.cancel(submission)
    client.publish.until("ZREM")
    world.refuse("BUSY Redis is busy running a script", "WATCH", times=1)
    client.publish.release()
    assert submission.status is Status.CANCELLED
    client.enqueue(b"y")
    world.advance(2)
    assert [exchange[0][0] for exchange in client.publish.sent][-2:] == ["UNWATCH", "MULTI"]


@pytest.mark.parametrize("name", ["WATCH", "HGET"])
def test_a_cancel_that_cannot_be_looked_after_yet_waits(world, name):
    client, submission = scheduled(world)
    end = world.refuse("LOADING data", name)
    client.machine.cancel(submission)
    world.advance(2)
    assert submission.cancelling
    end()
    world.advance(2)
    assert submission.status is Status.CANCELLED


def test_a_schedule_that_may_not_be_read_is_told(world):
    client, submission = scheduled(world)
    world.refuse(NO_KEY, "HGET")
    client.machine.cancel(submission)
    world.pump()
    assert f"the key '{KEYS.scheduled.decode()}' that HGET uses" in str(client.machine.refusal)


@pytest.mark.parametrize(("line", "told"), FINAL)
def test_a_cancel_that_is_refused_for_good_is_told(world, line, told):
    client, submission = scheduled(world)
    world.refuse(line, "EXEC")
    client.machine.cancel(submission)
    world.pump()
    assert told in str(client.machine.refusal)
    assert submission.status is Status.ACCEPTED


def test_a_cancel_whose_request_was_lost_is_sent_again(world):
    client, submission = scheduled(world)
    client.machine.cancel(submission)
    client.publish.until("ZREM")
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert submission.status is Status.CANCELLED


def test_a_cancel_that_was_aborted_or_refused_is_sent_again(world):
    client, submission = scheduled(world)
    world.call("HINCRBY", marker(client), "e", 1)
    end = world.refuse("EXECABORT Transaction discarded because of: NOREPLICAS few", "EXEC")
    client.machine.cancel(submission)
    world.advance(2)
    assert submission.status is Status.ACCEPTED
    end()
    world.advance(2)
    assert submission.status is Status.CANCELLED


def test_cancelling_what_has_ended_meanwhile_changes_nothing(world):
    client, submission = scheduled(world)
    client.machine.cancel(submission)
    client.machine.resolve(submission, Status.COMPLETED)
    world.pump()
    assert submission.status is Status.COMPLETED


# ---- the end ----------------------------------------------------------------------------------------


def test_a_closed_client_leaves_only_its_tasks(world):
    client = world.client()
    submissions = [client.enqueue(b"x"), client.enqueue(b"y", tracked=True)]
    client.close()
    world.advance(6)
    assert client.ended
    assert ids(world) == [s.id for s in submissions]
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
    client = settled(world)
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
    assert len(ids(world)) == 1


def test_a_client_whose_only_tracked_task_was_never_sent_leaves_at_once(world):
    client = settled(world)
    submission = client.enqueue(b"x", tracked=True)
    client.machine.cancel(submission)
    world.pump()
    client.close()
    world.pump()
    assert client.ended
    assert world.call("KEYS", "*") == [KEYS.stream]


def test_a_second_loss_does_not_give_up_what_is_about_to_be_sent_again(world):
    """Its handle was told that it could not be known, though the task was sent and ran."""
    client = world.client(batch_tasks=1)
    key = marker(client)
    submissions = [client.enqueue(b"%d" % n, tracked=True) for n in range(5)]
    world.pump()
    ids = [entry for entry, _ in world.call("XRANGE", KEYS.stream, "-", "+")]

    def go_back_to(batch):
        world.call("XDEL", KEYS.stream, *ids[batch:])
        world.call("HSET", key, "s", batch)

    go_back_to(3)
    client.publish.lose()
    client.publish.hold_at("HSET")
    client.publish.lose(unknown=False)
    go_back_to(1)
    client.publish.held = False
    world.advance(3)
    assert [submission.status for submission in submissions] == [Status.ACCEPTED] * 5
    assert [fields[b"data"] for fields in world.stream()] == [b"0", b"1", b"2", b"3", b"4"]
