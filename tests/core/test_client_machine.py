import gc

import pytest

from streamfleet_core.client import MAX_TEMPLATES, PLAIN, Options
from streamfleet_core.config import MAX_DELAY
from streamfleet_core.errors import BufferFull, Closed, InvalidQueueName, InvalidTask, PermissionMissing
from streamfleet_core.events import EventKind
from streamfleet_core.ids import is_uuid, timestamp_ms
from streamfleet_core.keys import queue_keys
from streamfleet_core.link import Role
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status
from streamfleet_core.wire import decode_task


def decoded(submission):
    return decode_task(list(submission.fields), submission.keys.queue)


def test_ids_are_of_the_servers_time_and_never_the_same(world):
    client = world.client()
    submissions = [client.enqueue() for _ in range(500)]
    ids = [s.id for s in submissions]
    assert len(set(ids)) == 500
    assert all(is_uuid(i) and timestamp_ms(i) == world.server_ms() for i in ids)


def test_a_plain_task(world):
    task = decoded(world.client().enqueue(b"hello"))
    assert (task.data, task.max_retries, task.expires_ms, task.notify) == (b"hello", 3, 0, False)


def test_options_are_written_into_the_task(world):
    client = world.client()
    submission = client.enqueue(
        b"x",
        tracked=True,
        retry=RetryPolicy(max_retries=None, delay=7, factor=1, jitter=0),
        expires_in=10,
        extra={"trace": "abc"},
    )
    task = decoded(submission)
    assert submission.tracked
    assert (task.max_retries, task.retry_delay_ms, task.notify) == (-1, 7000, True)
    assert task.expires_ms == world.server_ms() + 10_000
    assert task.extra[b"trace"] == b"abc"


def test_tasks_of_one_kind_do_not_share_what_differs(world):
    client = world.client()
    one = client.enqueue(b"1", expires_in=10)
    two = client.enqueue(b"2")
    three = client.enqueue(b"3", expires_in=20)
    assert [decoded(s).data for s in (one, two, three)] == [b"1", b"2", b"3"]
    assert decoded(two).expires_ms == 0
    assert decoded(three).expires_ms - decoded(one).expires_ms == 10_000


def test_any_number_of_retry_policies(world):
    client = world.client()
    for n in range(MAX_TEMPLATES + 20):
        assert decoded(client.enqueue(b"x", retry=RetryPolicy(max_retries=n))).max_retries == n


@pytest.mark.parametrize("data", [bytearray(b"ab"), memoryview(b"ab"), b"ab"])
def test_payloads_are_bytes_of_any_kind(world, data):
    assert decoded(world.client().enqueue(data)).data == b"ab"


@pytest.mark.parametrize("data", ["text", 5, None, ["x"]])
def test_payloads_of_other_types_are_refused(world, data):
    client = world.client()
    with pytest.raises(InvalidTask, match=type(data).__name__):
        client.enqueue(data)
    assert client.machine.pending == 0


def test_a_payload_has_a_bound_which_is_named(world):
    client = world.client(max_payload=1000)
    client.enqueue(b"x" * 1000)
    advice = "store it elsewhere and send a reference, or raise the client's max_payload"
    with pytest.raises(InvalidTask, match=f"1,001 bytes exceeds the limit of 1,000 bytes: {advice}"):
        client.enqueue(b"x" * 1001)


@pytest.mark.parametrize("queue", ["", "receiver:x", "x:receivers"])
def test_names_that_cannot_be_queues_are_refused(world, queue):
    with pytest.raises(InvalidQueueName):
        world.client().enqueue(b"x", queue)
    with pytest.raises(InvalidQueueName):
        world.client(queue)


def test_an_expiry_in_the_past_ends_a_task_at_once(world):
    client = world.client()
    submission = client.enqueue(b"x", expires_in=-1, tracked=True)
    assert submission.status is Status.EXPIRED
    assert client.machine.pending == 0
    assert client.events(EventKind.EXPIRED_LOCALLY)
    world.pump()
    assert world.stream() == []


@pytest.mark.parametrize(
    ("limits", "fits"), [({"buffer_tasks": 3}, 3), ({"buffer_bytes": 50}, 5), ({"buffer_bytes": 51}, 6)]
)
def test_the_buffer_is_bounded(world, limits, fits):
    world.available = False
    client = world.client(**limits)
    kept = [client.enqueue(b"x" * 10) for _ in range(fits)]
    assert client.machine.full
    for _ in range(3):
        with pytest.raises(BufferFull, match=f"{fits} tasks"):
            client.enqueue(b"y")
    assert client.machine.pending == client.machine.buffered_tasks == fits
    world.available = True
    world.advance(2)
    assert len(world.stream()) == fits
    assert {s.status for s in kept} == {Status.ACCEPTED}
    client.enqueue(b"z")


def test_a_buffered_task_is_cancelled_at_once(world):
    world.available = False
    client = world.client()
    submission = client.enqueue(b"x" * 10)
    submission.waiter = object()
    client.machine.cancel(submission)
    assert submission.status is Status.CANCELLED
    assert client.machine.changed == [submission]
    assert client.machine.buffered_tasks == client.machine.buffered_bytes == client.machine.pending == 0
    world.available = True
    world.advance(2)
    assert world.stream() == []


def test_a_task_that_is_on_its_way_cannot_be_cancelled(world):
    client = world.client()
    submission = client.enqueue()
    world.pump()
    client.machine.cancel(submission)
    world.pump()
    assert submission.status is Status.ACCEPTED
    assert not submission.cancelling


def test_nothing_is_taken_after_close(world):
    client = world.client()
    client.close()
    with pytest.raises(Closed, match="^this client has been closed; create another one$"):
        client.enqueue()


def test_a_handle_that_nobody_holds_is_forgotten(world):
    client = world.client()
    submission = client.enqueue(tracked=True)
    world.pump()
    assert submission.id in client.machine.tracked
    for batch in client.machine.lanes[0].publisher._kept:
        batch.submissions.clear()
    del submission
    gc.collect()
    assert len(client.machine.tracked) == 0


def test_who_waits_is_woken_when_the_server_has_the_task(world):
    client = world.client()
    submission = client.enqueue()
    submission.waiter = object()
    world.pump()
    assert client.machine.changed == [submission]


def test_queues_of_other_slots_have_links_and_identities_of_their_own(world):
    slots = {"a": 1, "b": 2}
    client = world.client("a", "b", slot_of=lambda keys: slots[keys.queue])
    one, two = client.enqueue(b"1", "a", tracked=True), client.enqueue(b"2", "b")
    world.pump()
    assert len(client.machine.links) == 4
    assert {wire.link.role for wire in client.wires} == {Role.PUBLISH, Role.RECEIVE}
    assert decoded(one).client_id.startswith(queue_keys("a").prefix.decode())
    assert decoded(two).client_id.startswith(queue_keys("b").prefix.decode())
    client.close()
    world.pump()
    assert client.ended


def test_why_the_server_refuses_is_told_for_either_link(world):
    for role in (Role.PUBLISH, Role.RECEIVE):
        client = world.client()
        assert client.machine.refusal is None
        next(link for link in client.machine.links if link.role is role).refuse(PermissionMissing("no"))
        assert isinstance(client.machine.refusal, PermissionMissing)


def test_an_outage_tells_how_much_is_buffered(world):
    client = world.client()
    client.enqueue()
    world.pump()
    world.available = False
    client.publish.lose()
    for _ in range(5):
        client.enqueue()
    world.advance(4)
    world.available = True
    world.advance(2)
    assert len(client.events(EventKind.DISCONNECTED)) == 1
    (event,) = client.events(EventKind.RECONNECTED)
    assert "5 buffered tasks are being sent" in event.text


def test_tokens_are_never_the_same(world):
    machine = world.client().machine
    assert len({machine.token() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "given",
    [
        {"delay": 1, "at": 1},
        {"expires_in": 1, "expires_at": 1},
        {"delay": "1"},
        {"delay": -1},
        {"delay": 1e11},
    ],
)
def test_options_that_cannot_be_meant_are_refused_and_nothing_is_taken(world, given):
    client = world.client()
    with pytest.raises(InvalidTask):
        client.enqueue(b"x", **given)
    assert client.machine.pending == 0


def test_a_refused_task_is_kept_for_whoever_asks(world):
    world.call("SET", queue_keys("q").stream, "mine")
    client = world.client()
    submission = client.enqueue()
    submission.waiter = object()
    world.pump()
    assert client.machine.refused_since == [submission]
    assert client.machine.changed == [submission]
    assert client.machine.pending == 0


def test_closing_with_abandon_gives_up_what_was_not_sent(world):
    world.available = False
    client = world.client()
    submission = client.enqueue()
    scheduled = client.enqueue(delay=5)
    world.pump()
    client.close(abandon=True)
    assert submission.status is scheduled.status is Status.CANCELLED
    assert client.machine.pending == 0


def test_a_scheduled_task_on_its_way_is_cancelled_by_asking(world):
    client = world.client()
    submission = client.enqueue(delay=60)
    world.pump()
    client.machine.cancel(submission)
    assert submission.cancelling
    world.pump()
    assert submission.status is Status.CANCELLED


@pytest.mark.parametrize("name", ["delay", "at", "expires_at"])
def test_a_time_may_be_zero(world, name):
    submission = world.client().enqueue(b"x", **{name: 0})
    assert submission.status is (Status.EXPIRED if name == "expires_at" else Status.BUFFERED)
    assert not submission.scheduled


def test_a_time_is_named_with_what_was_given_for_it():
    with pytest.raises(InvalidTask, match=r"^delay must be a number of seconds, got str: '1'$"):
        Options(delay="1")


@pytest.mark.parametrize("how", [{"delay": MAX_DELAY}, {"at": 1e12}, {"expires_in": -MAX_DELAY}])
def test_times_have_bounds_which_they_may_reach(how):
    ((name, value),) = how.items()
    assert getattr(Options(**how), name) == value
    with pytest.raises(InvalidTask, match=name):
        Options(**{name: value * 1.001})


def test_an_expiry_is_written_as_it_was_given(world):
    client = world.client()
    assert decoded(client.enqueue(b"x", expires_at=4_000_000_000.5)).expires_ms == 4_000_000_000_500
    assert Options(expires_in=-5).expires_ms(0) == Options(expires_at=0).expires_ms(0) == 1, "0 would be none"
    assert PLAIN.expires_ms(5) == 0


def test_a_task_that_expires_now_has_expired(world):
    assert world.client().enqueue(b"x", expires_at=world.server_ms() / 1000).status is Status.EXPIRED


def test_a_task_whose_time_passes_in_the_buffer_is_not_sent(world):
    world.available = False
    client = world.client()
    submission = client.enqueue(b"x", expires_at=world.server_ms() / 1000 + 1)
    world.advance(2)
    world.available = True
    world.advance(2)
    assert submission.status is Status.EXPIRED


def test_a_task_is_untracked_and_an_end_waits_for_what_is_buffered_unless_told_otherwise(world):
    client = world.client()
    submission = client.machine.enqueue("q", b"x", world.now)
    assert not submission.tracked
    client.machine.close(world.now)
    world.pump()
    assert submission.status is Status.ACCEPTED


def test_events_that_nobody_takes_do_not_pile_up(world):
    machine = world.client().machine
    for number in range(10_005):
        machine.emit(EventKind.NOT_ACCEPTED, str(number))
    assert len(machine.events) == 10_000
    assert machine.events[-1].text == "10004"


def test_expired_and_refused_tasks_are_told_and_counted(world):
    world.call("SET", queue_keys("q").stream, "mine")
    client = world.client()
    expired = [client.enqueue(b"x", expires_in=-1) for _ in range(2)]
    refused = [client.enqueue(b"x") for _ in range(2)]
    world.pump()
    machine = client.machine
    assert (machine.counts["expired"], machine.counts["refused"]) == (2, 2)
    events = client.events(EventKind.EXPIRED_LOCALLY) + client.events(EventKind.NOT_ACCEPTED)
    assert [event.data for event in events] == [{"task": s.id, "queue": "q"} for s in expired + refused]
    assert events[0].text == f"task {expired[0].id} expired before it was sent"
    assert events[2].text == f"task {refused[0].id} for queue 'q' was not accepted: {refused[0].error}"


def test_a_task_that_will_run_at_once_is_not_looked_for_in_the_schedule(world):
    client = world.client()
    submission = client.enqueue()
    world.pump()
    sent = len(client.publish.sent)
    client.machine.cancel(submission)
    world.pump()
    assert len(client.publish.sent) == sent


def test_who_waits_for_a_lost_task_that_is_too_old_to_be_sent_again_is_told(world):
    slots = {"q": 0, "r": 0, "elsewhere": 1}
    client = world.client(*slots, slot_of=lambda keys: slots[keys.queue], keep_seconds=5.0)
    safe = client.enqueue(tracked=True)
    world.pump()
    snapshot = world.server.snapshot()
    others = [client.enqueue(b"x", "elsewhere", tracked=True) for _ in range(2)]
    world.pump()
    done, old = (client.enqueue(tracked=True) for _ in range(2))
    world.pump()
    client.machine.resolve(done, Status.COMPLETED)
    world.advance(60)
    kept = client.enqueue(tracked=True)
    world.pump()
    for wire in client.wires:
        wire.frozen = wire.link.slot == 1
    world.restore(snapshot)
    for wire in client.wires:
        wire.lose()
    world.advance(2)
    assert old.status is Status.UNKNOWN
    assert old.error == "the server has lost it, and it was accepted too long ago to be sent again"
    assert done.status is Status.COMPLETED
    assert {s.status for s in (safe, kept, *others)} == {Status.ACCEPTED}


def test_what_is_buffered_is_told_only_where_something_is(world):
    client = world.client()
    client.enqueue()
    world.pump()
    client.publish.lose()
    world.available = False
    world.advance(1)
    world.available = True
    world.advance(5)
    (event,) = client.events(EventKind.RECONNECTED)
    assert event.text == f"connected again after {event.data['seconds']:.1f} s"
