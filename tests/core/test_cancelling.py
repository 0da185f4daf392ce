"""Receivers of tracked tasks, and tasks that are taken out of the schedule."""

import pytest

from streamfleet_core.events import EventKind
from streamfleet_core.keys import queue_keys, receiver_key
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status

KEYS = queue_keys("q")


def scheduled(world):
    """A client and a task of its that waits for a minute."""
    client = world.client()
    submission = client.enqueue(b"x", delay=60)
    world.pump()
    return client, submission


def test_the_receiver_is_there_before_the_first_tracked_task(world):
    client = world.client()
    client.enqueue(b"x", tracked=True)
    world.pump()
    names = [exchange[0][0] for exchange in client.publish.sent]
    assert names == ["UNWATCH", "ZADD", "MULTI"]
    assert client.publish.sent[1][-1][:3] == ("XGROUP", "CREATE", receiver_key(client.client_id))
    assert world.call("ZSCORE", KEYS.receivers, client.client_id) == b"%d" % world.server_ms()


def test_a_queue_met_later_is_registered_too(world):
    client = world.client("q")
    client.enqueue(b"x", tracked=True)
    world.pump()
    submission = client.enqueue(b"y", "r", tracked=True)
    world.pump()
    assert submission.status is Status.ACCEPTED
    assert world.call("ZSCORE", queue_keys("r").receivers, client.client_id) is not None


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
    assert submission.error == ("the connection broke while it was being cancelled; it has run, or never will")


def moved(world, client):
    """A scheduled task that its stream has by now."""
    submission = client.enqueue(b"x", delay=1)
    world.pump()
    worker = world.worker()
    world.advance(1.1)
    worker.take()
    return submission


def test_a_connection_that_broke_before_does_not_make_a_cancel_unknown(world):
    client = world.settled_client()
    client.enqueue(b"second")
    client.publish.until("HSET")
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    submission = moved(world, client)
    client.machine.cancel(submission)
    world.pump()
    assert submission.status is Status.ACCEPTED


@pytest.mark.parametrize("reply", ["lost", "late"])
def test_how_one_cancel_ended_says_nothing_about_the_next(world, reply):
    client = world.settled_client()
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
    client = world.settled_client()
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
    world.call("DEL", client.marker(), KEYS.schedule, KEYS.scheduled)
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
    world.call("HINCRBY", client.marker(), "e", 1)
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


def test_a_cancel_does_not_wait_for_those_who_go_on_enqueueing(world):
    client, submission = scheduled(world)
    client.machine.cancel(submission)
    for number in range(20):
        client.enqueue(b"%d" % number)
        client.publish.turn()
        client.enqueue(b"more")
        client.publish.turn()
    assert submission.status is Status.CANCELLED
    assert len(world.stream()) > 20


def test_those_who_enqueue_do_not_wait_for_all_cancels(world):
    client = world.client()
    waiting = [client.enqueue(b"x", delay=60) for _ in range(10)]
    world.pump()
    for submission in waiting:
        client.machine.cancel(submission)
    last = client.enqueue(b"last")
    while last.status is not Status.ACCEPTED:
        client.publish.turn()
    assert sum(submission.status is Status.CANCELLED for submission in waiting) <= 2
