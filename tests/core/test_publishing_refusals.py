"""What a server refuses of what a client sends, for now or for good."""

import pytest

from streamfleet_core.errors import PermissionMissing, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import queue_keys
from streamfleet_core.submission import Status

KEYS = queue_keys("q")
FULL = "OOM command not allowed when used memory > 'maxmemory'."
NO_KEY = "NOPERM this user has no permissions to access one of the keys used as arguments"
FINAL = [
    ("ERR a module says no", "the server refuses EXEC."),
    ("EXECABORT Transaction discarded because of: NOPERM not now", "may not run EXEC;"),
]
"""Answers to EXEC after which nothing is tried again, and what is said of them."""


@pytest.mark.parametrize("line", [FULL, "READONLY a replica", "NOREPLICAS few", "MISCONF disk", "LOADING data"])
@pytest.mark.parametrize("name", ["XADD", "HINCRBY", "HSET", "WATCH"])
def test_what_may_pass_is_waited_for_and_nothing_is_lost(world, line, name):
    client = world.settled_client()
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
    assert world.task_ids().count(submission.id) == 1


def test_a_refusal_once_is_no_reason_to_abort_for_ever(world):
    client = world.settled_client()
    world.refuse(FULL, "XADD", times=1)
    submission = client.enqueue(b"second")
    world.advance(5)
    assert submission.status is Status.ACCEPTED
    assert client.machine.counts["aborted"] == 0


def test_a_batch_that_could_not_be_watched_behind_is_followed_by_a_greeting(world):
    """Without the watch, a late EXEC of a broken connection would not abort."""
    client = world.settled_client()
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
    client = world.settled_client()
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
    client = world.settled_client()
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
    assert not any(exchange[0] == ("MULTI",) for exchange in client.publish.sent)


@pytest.mark.parametrize("name", ["XADD", "HINCRBY", "XGROUP"])
def test_a_right_that_is_missing_is_told_with_its_command(world, name):
    client = world.client()
    world.refuse(f"NOPERM User app has no permissions to run the '{name.lower()}' command", name)
    client.enqueue(b"x", tracked=True)
    world.advance(3)
    assert isinstance(client.machine.refusal, PermissionMissing)
    assert name in str(client.machine.refusal)
    assert world.task_ids() == []


@pytest.mark.parametrize(
    ("name", "key"), [("HINCRBY", "marker"), ("ZADD", "receivers"), ("XADD", "stream"), ("WATCH", "marker")]
)
def test_a_key_that_may_not_be_used_is_told_with_its_command(world, name, key):
    client = world.settled_client()
    world.refuse(NO_KEY, name)
    if name == "HINCRBY":
        client.publish.lose()
    client.enqueue(b"x", tracked=name == "ZADD")
    world.advance(1)
    key = client.marker() if key == "marker" else getattr(KEYS, key)
    assert f"the key '{key.decode()}' that {name} uses" in str(client.machine.refusal)


def test_a_key_that_an_idle_client_may_not_read_any_more_is_told(world):
    client = world.settled_client()
    world.refuse(NO_KEY, "HGET")
    world.advance(11)
    assert f"the key '{client.marker().decode()}' that HGET uses" in str(client.machine.refusal)


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


@pytest.mark.parametrize(("line", "told"), FINAL)
def test_a_cancel_that_is_refused_for_good_is_told(world, line, told):
    client = world.client()
    submission = client.enqueue(b"x", delay=60)
    world.pump()
    world.refuse(line, "EXEC")
    client.machine.cancel(submission)
    world.pump()
    assert told in str(client.machine.refusal)
    assert submission.status is Status.ACCEPTED


def test_a_schedule_that_may_not_be_read_is_told(world):
    client = world.client()
    submission = client.enqueue(b"x", delay=60)
    world.pump()
    world.refuse(NO_KEY, "HGET")
    client.machine.cancel(submission)
    world.pump()
    assert f"the key '{KEYS.scheduled.decode()}' that HGET uses" in str(client.machine.refusal)
