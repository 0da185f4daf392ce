"""Defects that the simulator has found, each reduced to its essence."""

import pytest

from streamfleet_core.config import WorkerConfig
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.link import Role
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.state import Phase
from streamfleet_core.submission import Status
from streamfleet_core.wire import Task, encode_task, pack_fields
from streamfleet_core.worker import WorkerMachine

KEYS = queue_keys("q")
HOUR_MS = 3_600_000


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


def test_the_reader_goes_on_after_a_settlement_whose_reply_was_lost(world):
    """It slept for ever: room had come, but not by a reply to the transaction."""
    worker = world.worker(concurrency=1)
    world.enqueue("a")
    world.enqueue("b")
    world.pump()
    worker.succeed(worker.take())
    worker.settle.until("EXEC")
    worker.settle.execute()
    worker.settle.lose()
    worker.settle.release()
    world.advance(1)
    assert worker.take().task.id == "b"


def test_a_mover_that_comes_second_does_not_complain_of_missing_bodies(world):
    """The first one had taken them along, and the second one's transaction was about to abort."""
    body = pack_fields(encode_task(Task("a", "q", "c", b"data")))
    world.call("ZADD", KEYS.schedule, world.server_ms() - 1, "a")
    world.call("HSET", KEYS.scheduled, "a", body)
    second = world.worker(start=False)
    second.read.frozen = True
    second.control.until("HMGET")
    first = world.worker()
    assert first.machine.counts["moved"] == 1
    second.control.release()
    assert second.events(EventKind.SCHEDULE_BROKEN) == []
    assert second.machine.counts["moved"] == 0


def worker_with_a_wrong_clock(world, wrong_by_ms):
    """It cannot reach the server by its control link yet, which asks for the time."""
    worker = world.worker(start=False)
    worker.machine = WorkerMachine(
        "wrong",
        {"q": 0.0},
        WorkerConfig(),
        now=world.now,
        wall_ms=world.server_ms() + wrong_by_ms,
        entropy=world.random.randbytes,
        random=world.random.random,
    )
    for wire, link in zip(worker.wires, worker.machine.links, strict=True):
        wire.machine, wire.link = worker.machine, link
    worker.control.frozen = True
    world.pump()
    return worker


@pytest.mark.parametrize("wrong_by_ms", [HOUR_MS, -HOUR_MS])
def test_a_retry_is_due_by_the_servers_clock_even_right_after_the_start(world, wrong_by_ms):
    worker = worker_with_a_wrong_clock(world, wrong_by_ms)
    world.enqueue("a", retry_delay_ms=500)
    world.pump()
    worker.fail(worker.take())
    world.pump()
    (row, score) = world.call("ZRANGE", KEYS.schedule, 0, -1, "WITHSCORES")
    assert row == b"a"
    assert int(score) == pytest.approx(world.server_ms() + 500, abs=50)


def test_a_task_does_not_expire_by_the_workers_own_clock(world):
    worker = worker_with_a_wrong_clock(world, HOUR_MS)
    world.enqueue("a", expires_ms=world.server_ms() + 1000)
    worker.settle.frozen = True
    world.pump()
    delivery = worker.machine.take(world.now)
    assert delivery is None or delivery.phase is Phase.RUNNING
    worker.settle.frozen = False
    world.pump()
    assert (delivery or worker.take()).task.id == "a"


@pytest.mark.parametrize("wrong_by_ms", [HOUR_MS, -HOUR_MS])
def test_a_relative_expiry_is_by_the_servers_clock_even_for_the_first_task(world, wrong_by_ms):
    """The client's own clock was taken, when it had not asked the server for the time yet."""
    client = world.client(wall_ms=world.server_ms() + wrong_by_ms)
    submission = client.enqueue(expires_in=3.0)
    world.pump()
    assert submission.status is Status.ACCEPTED
    (entry,) = world.stream()
    assert int(entry[b"expires_ts"]) == pytest.approx(world.server_ms() + 3000, abs=50)


def test_what_was_accepted_long_ago_is_not_sent_again_when_the_marker_is_gone(world):
    """A client that is idle for a day outlives its marker; its last tasks ran again."""
    client = world.client(keep_seconds=30.0)
    client.enqueue(b"old")
    world.pump()
    world.advance(60)
    (marker,) = [key for key in world.call("KEYS", "*") if b":producer:" in key]
    world.call("DEL", marker)
    client.enqueue(b"new")
    world.pump()
    assert [entry[b"data"] for entry in world.stream()] == [b"old", b"new"]


def receiver_of(client):
    return receiver_key(client.machine.lanes[0].client_id)


def test_a_receiver_that_somebody_deletes_comes_back_within_two_beats(world):
    """All tasks tracked from then on were waited for in vain."""
    client = world.client(heartbeat=2.0, block=1.0)
    before = client.enqueue(tracked=True)
    world.pump()
    world.call("DEL", receiver_of(client))
    world.advance(6.0)
    assert before.status is Status.UNKNOWN
    after = client.enqueue(tracked=True)
    worker = world.worker()
    worker.succeed(worker.take())
    worker.succeed(worker.take())
    world.advance(0.1)
    assert after.status is Status.COMPLETED


def test_a_lost_reply_does_not_hide_that_the_receiver_was_removed(world):
    """The beat entered the client again; the reply that said so was lost, and the stream never came back."""
    client = world.client(heartbeat=2.0, block=1.0)
    waiting = client.enqueue(tracked=True)
    world.pump()
    world.call("DEL", KEYS.receivers)
    world.call("DEL", receiver_of(client))
    client.receive.hold_at("ZADD")
    client.receive.execute()
    client.receive.lose()
    client.receive.release()
    world.advance(3.0)
    assert waiting.status is Status.UNKNOWN
    assert world.call("EXISTS", receiver_of(client)) == 1


def test_a_task_whose_retry_waits_in_the_schedule_is_not_cancelled(world):
    """Cancelled means that it never ran."""
    client, worker = world.client(), world.worker()
    submission = client.enqueue(delay=1.0, retry=RetryPolicy(delay=5.0))
    world.advance(1.5)
    worker.fail(worker.take())
    world.pump()
    assert world.call("ZCARD", KEYS.schedule) == 1
    client.machine.cancel(submission)
    world.pump()
    assert not submission.cancelling
    assert submission.status is Status.ACCEPTED
    assert world.call("ZCARD", KEYS.schedule) == 1
    world.advance(6.0)
    assert worker.take().task.retries == 1


def test_a_task_that_is_moved_while_it_is_being_cancelled_takes_its_course(world):
    client = world.client()
    submission = client.enqueue(delay=1.0)
    world.pump()
    client.machine.cancel(submission)
    client.publish.until("ZREM")
    worker = world.worker()
    world.advance(1.5)
    client.publish.release()
    assert not submission.cancelling
    assert submission.status is Status.ACCEPTED
    assert worker.take().task.id == submission.id


def test_a_client_with_nothing_to_send_notices_that_its_last_tasks_are_lost(world):
    """It slept on its dead connection, and the tail that a failover had lost stayed lost."""
    client = world.client(keep_seconds=30.0)
    snapshot = world.server.snapshot()
    client.enqueue(b"x")
    world.pump()
    assert len(world.stream()) == 1
    world.restore(snapshot)
    world.advance(15.0)
    assert [entry[b"data"] for entry in world.stream()] == [b"x"]
    assert client.machine.counts["resent"] == 1


def test_nobody_waits_for_a_lost_task_that_is_not_kept(world):
    """Its handle had no end."""
    client = world.client(keep_seconds=5.0)
    waiting = client.enqueue(tracked=True)
    world.pump()
    world.advance(60)
    world.server.reset()
    world.admin = world.server.session()
    kept = client.enqueue(tracked=True)
    world.advance(20)
    assert waiting.status is Status.UNKNOWN
    assert kept.status in (Status.ACCEPTED, Status.UNKNOWN)
    assert len(world.stream()) == 1


def test_a_client_that_leaves_does_not_take_its_own_cleaning_for_a_loss(world):
    """The reply to it was lost; the marker was gone, and the last tasks were sent again."""
    client = world.client()
    client.enqueue(b"x")
    world.pump()
    client.close()
    client.publish.until("DEL")
    client.publish.execute()
    client.publish.lose()
    client.publish.release()
    world.advance(2.0)
    assert client.ended
    assert len(world.stream()) == 1
    assert not client.events(EventKind.MARKER_REGRESSED)


def test_reconnecting_does_not_count_as_delivering(world):
    """With a bad connection a long task was soon dead-lettered for its deliveries, after one run."""
    worker = world.worker(concurrency=2)
    world.enqueue("a")
    world.pump()
    worker.take()
    for _ in range(6):
        worker.read.lose()
        world.advance(2.0)
    world.enqueue("b")
    world.pump()
    counts = {row[0]: row[3] for row in world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)}
    assert list(counts.values()) == [1, 1]


def test_an_entry_whose_reply_was_lost_is_found_among_those_that_are_known(world):
    worker = world.worker(concurrency=5)
    for name in "ab":
        world.enqueue(name)
    world.pump()
    assert [worker.take().task.id, worker.take().task.id] == ["a", "b"]
    worker.read.until("XREADGROUP")
    for name in "cd":
        world.enqueue(name)
    worker.read.execute()
    worker.read.lose()
    worker.read.release()
    world.advance(1.0)
    assert [worker.take().task.id, worker.take().task.id] in (["c", "d"], ["d", "c"])
    counts = [row[3] for row in world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)]
    assert counts == [1, 1, 2, 2] or counts == [1, 1, 2, 1]


@pytest.mark.parametrize("ends", ["succeed", "fail"])
def test_what_was_taken_before_a_failover_is_not_settled_after_it_without_asking(world, ends):
    """The fence had its old value again; the task lived twice, or was reported as completed and ran again."""
    worker = world.worker(concurrency=1)
    client = world.client()
    world.advance(1.0)
    lost_tail = world.server.snapshot()
    submission = client.enqueue(retry=RetryPolicy(delay=0.0, jitter=0.0), tracked=True)
    world.pump()
    delivery = worker.take()
    world.advance(0.5)
    world.restore(lost_tail)
    worker.settle.lose()
    getattr(worker, ends)(delivery)
    world.advance(12.0)
    assert delivery.phase is Phase.LOST
    again = worker.take()
    assert (again.task.id, again.task.retries) == (submission.id, 0)
    assert not submission.status.terminal or submission.status is Status.UNKNOWN
    assert len(world.stream()) + worker.machine.counts["lost"] == 2


def test_a_read_that_was_sent_before_the_settling_connection_broke_leaves_doubt(world):
    worker = world.worker(concurrency=2)
    worker.read.until("XREADGROUP")
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1.0)
    world.enqueue("a")
    worker.read.release()
    worker.succeed(worker.take())
    world.pump()
    assert worker.machine.counts["verified"] == 1


def test_those_who_still_wait_are_served_after_a_loss_of_other_tasks(world):
    """The client gave its receiver up until the next tracked task, and was collected."""
    client = world.client(heartbeat=2.0, block=1.0)
    waiting = client.enqueue(tracked=True)
    world.pump()
    snapshot = world.server.snapshot()
    world.advance(0.5)
    client.enqueue(b"tail")
    world.pump()
    world.restore(snapshot)
    world.advance(20.0)
    assert client.machine.counts["resent"] == 1
    worker = world.worker()
    worker.succeed(worker.take())
    worker.succeed(worker.take())
    world.advance(0.1)
    assert waiting.status is Status.COMPLETED


def test_entries_of_a_lost_claim_are_looked_for_though_there_is_no_room_for_more(world):
    """The read link slept, and a healthy worker's entries were taken over after a lease."""
    dead = world.worker(consumer="dead")
    world.enqueue("a")
    world.pump()
    dead.crash()
    worker = world.worker(concurrency=1)
    world.enqueue("b")
    world.pump()
    assert worker.take().task.id == "b"
    worker.control.hold_at("XCLAIM")
    worker.control.execute()
    worker.control.lose()
    worker.control.release()
    world.advance(1.0)
    assert len(worker.deliveries) == 2


def test_a_slow_server_does_not_let_live_entries_be_taken_over(world):
    """Between the look at the idle entries and the claim the server was silent; the beats came after both."""
    owner = world.worker(lease=4.0)
    world.enqueue("a")
    world.pump()
    running = owner.take()
    other = world.worker(lease=4.0)
    world.advance(6.0)
    other.control.hold_at("XPENDING")
    owner.settle.held = True
    world.advance(5.0)
    other.control.release()
    owner.settle.release()
    world.advance(1.0)
    assert world.pending() == {running.entry_id: owner.machine.consumer}
    assert other.machine.counts["reclaimed"] == 0


def test_a_receiver_that_is_created_again_for_another_queue_has_lost_its_notices(world):
    """Nobody noticed that it had been missing, and waited in vain."""
    client = world.client("a", "b", heartbeat=10.0)
    waiting = client.enqueue(queue="a", tracked=True)
    world.pump()
    world.call("DEL", receiver_of(client))
    other = client.enqueue(queue="c", tracked=True)
    world.advance(1.0)
    assert waiting.status is Status.UNKNOWN
    assert other.status is Status.ACCEPTED


def test_a_receiver_that_was_deleted_before_a_loss_of_other_tasks_has_lost_its_notices(world):
    """The loss was noticed first; that the receiver had to be made anew was taken for a part of it."""
    client = world.client(heartbeat=10.0)
    waiting = client.enqueue(tracked=True)
    world.pump()
    client.wire(Role.RECEIVE).frozen = True
    world.call("DEL", receiver_of(client))
    snapshot = world.server.snapshot()
    lost = client.enqueue(tracked=True)
    world.pump()
    world.restore(snapshot)
    for wire in client.wires:
        wire.lose()
    world.advance(2.0)
    assert client.events(EventKind.MARKER_REGRESSED)
    assert waiting.status is Status.UNKNOWN
    client.wire(Role.RECEIVE).frozen = False
    world.advance(2.0)
    assert lost.status is Status.ACCEPTED


def test_an_entry_that_its_owner_gave_back_and_finds_again_is_delivered_once_more(world):
    """After a pause of contact it was found in the own history, and its second run was not counted."""
    worker = world.worker(concurrency=1)
    entry = world.enqueue("a")
    world.pump()
    worker.machine.handler_stopped(worker.take())
    worker.read.lose()
    worker.read.frozen = True
    world.pump()
    assert world.pending() == {entry: worker.machine.consumer}
    worker.read.frozen = False
    world.advance(1.0)
    assert worker.take().deliveries == 2
    world.advance(worker.machine.config.lease)
    assert [row[3] for row in world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)] == [2]


def test_an_entry_that_was_read_during_a_refused_claim_of_it_is_read_again(world):
    """The reader left it to the claim, and it stayed where it was for a lease."""
    worker = world.worker(concurrency=1, block=1.0, lease=20.0)
    world.enqueue("a")
    world.pump()
    worker.machine.handler_stopped(worker.take())
    world.pump()
    worker.read.lose()
    worker.read.hold_at("XREADGROUP")
    worker.control.hold_at("XCLAIM")
    worker.read.release()
    world.advance(1.0)
    assert worker.machine.take(world.now) is None
    world.refuse("OOM command not allowed when used memory > 'maxmemory'.", "XCLAIM", times=1)
    worker.control.release()
    world.advance(2.0)
    assert worker.take().task.id == "a"


def test_between_the_look_at_a_task_and_its_cancellation_no_batch_is_sent(world):
    """Its EXEC ended the watch; the task was moved, ran, failed, and was then taken out of the schedule."""
    client = world.client()
    submission = client.enqueue(delay=1.0)
    world.pump()
    client.machine.cancel(submission)
    client.publish.until("HGET")
    client.enqueue(b"another")
    client.publish.release()
    sent = [command[0] for exchange in client.publish.sent for command in exchange]
    looked = len(sent) - sent[::-1].index("HGET")
    assert sent[looked:][:3] == ["MULTI", "ZREM", "HDEL"]
    assert submission.status is Status.CANCELLED


def test_nothing_tracked_is_sent_between_the_news_that_the_receiver_is_gone_and_its_return(world):
    """The receive link made it anew in its own time; its request was late, its next look older than a task."""
    client = world.client()
    client.enqueue(tracked=True)
    world.pump()
    world.call("DEL", receiver_of(client))
    client.publish.frozen = True
    world.advance(30.0)
    assert client.machine.counts["collected"] == 1
    later = client.enqueue(tracked=True)
    sent = len(client.publish.sent)
    client.publish.frozen = False
    world.pump()
    assert [exchange[0][0] for exchange in client.publish.sent[sent:]] == ["EXISTS", "ZADD", "MULTI"]
    world.advance(60.0)
    assert client.machine.counts["collected"] == 1
    assert later.status is Status.ACCEPTED
