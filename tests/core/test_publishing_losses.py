"""A server that has lost what it had accepted."""

import pytest

from streamfleet_core.events import EventKind
from streamfleet_core.keys import queue_keys
from streamfleet_core.submission import Status

KEYS = queue_keys("q")


def accept(world, client, count):
    submissions = []
    for n in range(count):
        submissions.append(client.enqueue(b"%d" % n))
        world.pump()
    return submissions


def lose_tail(world, client, snapshot):
    """A failover to a replica that had not received everything."""
    world.restore(snapshot)
    for wire in client.wires:
        wire.lose()
    world.advance(2)


def test_batches_that_the_server_lost_are_sent_again(world):
    client = world.client()
    first = accept(world, client, 3)
    snapshot = world.server.snapshot()
    second = accept(world, client, 4)
    lose_tail(world, client, snapshot)
    assert world.task_ids() == [s.id for s in first + second]
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
    assert world.task_ids() == [s.id for s in submissions]


def test_a_regression_with_a_batch_in_flight(world):
    client = world.client()
    snapshot_client = accept(world, client, 1)
    snapshot = world.server.snapshot()
    lost = accept(world, client, 2)
    flying = client.enqueue(b"flying")
    client.publish.until("HSET")
    client.publish.held = False
    lose_tail(world, client, snapshot)
    assert world.task_ids() == [s.id for s in [*snapshot_client, *lost, flying]]


def test_two_regressions_one_further_back(world):
    client = world.client()
    first = accept(world, client, 1)
    early = world.server.snapshot()
    second = accept(world, client, 2)
    late = world.server.snapshot()
    third = accept(world, client, 2)
    lose_tail(world, client, late)
    lose_tail(world, client, early)
    assert world.task_ids() == [s.id for s in first + second + third]
    assert client.machine.counts["regressed"] == 2
    assert client.machine.counts["resent"] == 2 + 4


def test_a_lost_tail_that_comes_back_before_it_was_sent_again(world):
    client = world.client()
    first = accept(world, client, 1)
    early = world.server.snapshot()
    second = accept(world, client, 3)
    late = world.server.snapshot()
    world.restore(early)
    client.publish.lose()
    client.publish.held = True
    world.advance(0.2)
    client.publish.until("HSET")
    world.restore(late)
    client.publish.lose()
    client.publish.held = False
    world.advance(2)
    assert world.task_ids() == [s.id for s in first + second]
    assert client.machine.pending == 0


@pytest.mark.parametrize("applied", [True, False])
def test_a_connection_that_breaks_again_does_not_change_the_order_of_what_is_sent_again(world, applied):
    client = world.client()
    first = accept(world, client, 1)
    snapshot = world.server.snapshot()
    lost = accept(world, client, 3)
    world.restore(snapshot)
    client.publish.lose()
    client.publish.hold_at("HSET")
    if applied:
        client.publish.execute()
    client.publish.lose()
    client.publish.held = False
    world.advance(2)
    assert world.task_ids() == [s.id for s in first + lost]
    assert len(client.events(EventKind.MARKER_REGRESSED)) == 1


def test_what_has_ended_is_not_sent_again(world):
    client = world.client()
    snapshot = world.server.snapshot()
    submissions = [client.enqueue(b"x", tracked=True), client.enqueue(b"y", tracked=True)]
    world.pump()
    client.machine.resolve(submissions[0], Status.COMPLETED)
    client.receive.frozen = True
    lose_tail(world, client, snapshot)
    assert world.task_ids() == [submissions[1].id]


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
    assert world.task_ids() == [submission.id]
    assert client.machine.pending == 0


def test_only_so_much_is_kept_and_the_rest_is_told(world):
    client = world.client(keep_tasks=2)
    snapshot = world.server.snapshot()
    submissions = accept(world, client, 5)
    lose_tail(world, client, snapshot)
    assert world.task_ids() == [s.id for s in submissions[-2:]]
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
    assert world.task_ids() == [s.id for s in late]


def test_a_marker_that_was_evicted_is_no_loss_of_the_kept(world):
    client = world.client()
    submissions = accept(world, client, 2)
    world.call("DEL", client.marker())
    client.publish.lose()
    world.advance(2)
    assert client.events(EventKind.MARKER_REGRESSED)
    assert set(world.task_ids()) == {s.id for s in submissions}


def test_without_a_loss_nothing_is_said(world):
    client = world.client()
    accept(world, client, 3)
    client.publish.lose()
    world.advance(2)
    assert not client.events(EventKind.MARKER_REGRESSED)
    assert client.machine.counts["resent"] == 0


def test_a_batch_that_was_aborted_because_the_marker_has_gone_tells_of_a_loss(world):
    client = world.settled_client()
    client.enqueue(b"second")
    client.publish.until("HSET")
    world.call("DEL", client.marker(), KEYS.stream)
    client.publish.release()
    assert client.events(EventKind.MARKER_REGRESSED)
    assert [entry[b"data"] for entry in world.stream()] == [b"first", b"second"]


def test_an_idle_client_notices_a_loss_although_its_connection_stands(world):
    client = world.client(keep_seconds=30)
    (submission,) = accept(world, client, 1)
    world.call("DEL", client.marker(), KEYS.stream)
    world.advance(11)
    assert client.events(EventKind.MARKER_REGRESSED)
    assert world.task_ids() == [submission.id]


def test_an_idle_client_whose_question_is_refused_asks_again(world):
    client = world.client(keep_seconds=30)
    (submission,) = accept(world, client, 1)
    world.call("DEL", client.marker(), KEYS.stream)
    world.refuse("LOADING data", "HGET", times=1)
    world.advance(12)
    assert "LOADING" in client.events(EventKind.BACKING_OFF)[0].text
    assert world.task_ids() == [submission.id]


def test_refused_tasks_are_not_sent_again_after_a_loss(world):
    client = world.client()
    snapshot = world.server.snapshot()
    world.call("SET", queue_keys("bad").stream, "mine")
    good = client.enqueue(b"1")
    client.enqueue(b"2", "bad")
    world.pump()
    lose_tail(world, client, snapshot)
    assert world.task_ids() == [good.id]
    assert world.task_ids("bad") == []


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


def test_a_second_loss_does_not_give_up_what_is_about_to_be_sent_again(world):
    """Its handle was told that it could not be known, though the task was sent and ran."""
    client = world.client(batch_tasks=1)
    key = client.marker()
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
