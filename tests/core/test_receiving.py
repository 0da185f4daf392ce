import pytest

from streamfleet_core.errors import PermissionMissing
from streamfleet_core.events import EventKind
from streamfleet_core.keys import queue_keys, receiver_key
from streamfleet_core.receiving import READ_MARGIN
from streamfleet_core.submission import Status
from streamfleet_core.wire import NoticeType, Notification, encode_notification

KEYS = queue_keys("q")


@pytest.fixture(name="client")
def tracking_client(world):
    client = world.client()
    client.first = client.enqueue(b"first", tracked=True)
    world.pump()
    assert client.first.status is Status.ACCEPTED
    return client


def receiver(client):
    return receiver_key(client_id(client))


def client_id(client):
    return next(iter(client.machine.lanes.values())).client_id


def notify(world, client, submission, kind=NoticeType.COMPLETED, error="", **extra):
    fields = encode_notification(
        Notification(submission.id, kind, error, {name.encode(): value for name, value in extra.items()})
    )
    return world.call("XADD", receiver(client), "NOMKSTREAM", "*", *fields)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (NoticeType.COMPLETED, Status.COMPLETED),
        (NoticeType.ERROR, Status.FAILED),
        (NoticeType.EXPIRED, Status.EXPIRED),
        (NoticeType.CANCELLED, Status.CANCELLED),
    ],
)
def test_a_notice_ends_its_submission(world, client, kind, status):
    client.first.waiter = object()
    notify(world, client, client.first, kind, "because", result=b"42")
    world.pump()
    assert client.first.status is status
    assert client.first.error == "because"
    assert client.first.result == b"42"
    assert client.machine.changed[-1] is client.first


def test_a_notice_that_was_handled_is_deleted(world, client):
    notify(world, client, client.first)
    world.advance(6)
    assert world.call("XLEN", receiver(client)) == 0


def test_a_notice_whose_reply_was_lost_is_read_again(world, client):
    client.receive.held = True
    notify(world, client, client.first)
    client.receive.execute()
    client.receive.lose()
    assert client.first.status is Status.ACCEPTED
    client.receive.held = False
    world.advance(1)
    assert client.first.status is Status.COMPLETED


def test_the_first_terminal_notice_counts(world, client):
    notify(world, client, client.first, NoticeType.ERROR, "no paper")
    notify(world, client, client.first, NoticeType.COMPLETED)
    world.pump()
    assert client.first.status is Status.FAILED
    notify(world, client, client.first, NoticeType.COMPLETED)
    world.pump()
    assert client.machine.counts["repeated_notices"] == 2
    assert client.machine.counts["notices"] == 1


def test_each_notice_is_counted(world, client):
    for submission in (client.first, client.enqueue(b"second", tracked=True)):
        world.pump()
        notify(world, client, submission)
        world.pump()
    assert client.machine.counts["notices"] == 2


def test_a_notice_for_a_task_that_nobody_holds_is_removed(world, client):
    world.call("XADD", receiver(client), "*", *encode_notification(Notification("other", NoticeType.COMPLETED)))
    world.advance(6)
    assert world.call("XLEN", receiver(client)) == 0
    assert client.machine.counts["notices"] == 0


def test_a_notice_that_cannot_be_read_is_told_and_removed(world, client):
    world.call("XADD", receiver(client), "*", "a", "b")
    world.advance(6)
    (event,) = client.events(EventKind.NOT_ACCEPTED)
    assert event.text.startswith(f"notice {event.data['entry']} cannot be read (")
    assert event.data.keys() == {"entry"}
    assert world.call("XLEN", receiver(client)) == 0


def test_a_notice_is_deleted_together_with_a_beat_that_is_due(world, client):
    client.receive.held = True
    notify(world, client, client.first)
    client.receive.execute()
    world.now += 11
    client.receive.deliver()
    client.receive.step()
    assert client.receive.flight.names == ["XDEL", "ZADD", "XREAD"]
    client.receive.release()
    assert world.call("XLEN", receiver(client)) == 0


def test_the_server_has_some_seconds_more_than_a_read_waits(world):
    client = world.client(block=2.0)
    client.enqueue(tracked=True)
    world.pump()
    exchange = client.receive.flight.exchange
    assert exchange.blocking
    assert exchange.timeout == 2.0 + READ_MARGIN
    read = exchange.commands[-1]
    assert read[read.index("BLOCK") + 1] == 2000


@pytest.mark.parametrize("heartbeat", [0.5, 3.0, 7.0])
def test_a_read_ends_in_time_for_the_next_beat(world, heartbeat):
    client = world.client(heartbeat=heartbeat, block=5.0)
    client.enqueue(tracked=True)
    world.advance(60 * heartbeat)
    beats = [names for exchange in client.receive.sent if "ZADD" in (names := [c[0] for c in exchange])]
    assert 58 <= len(beats) <= 62
    assert not any("XGROUP" in names for names in beats), "it is created again only where it is missing"


def test_a_notice_may_come_before_the_answer_to_its_task(world, client):
    submission = client.enqueue(b"quick", tracked=True)
    client.publish.until("HSET")
    client.publish.execute()
    notify(world, client, submission)
    world.pump()
    assert submission.status is Status.COMPLETED
    client.publish.release()
    assert submission.status is Status.COMPLETED
    assert client.machine.pending == 0


def test_it_beats_with_the_servers_time(world, client):
    for _ in range(5):
        world.advance(11)
        score = int(world.call("ZSCORE", KEYS.receivers, client_id(client)))
        assert world.server_ms() - 11_000 <= score <= world.server_ms()


def test_an_idle_client_is_quiet(world, client):
    """At most 4 commands in 10 seconds."""
    world.advance(10)
    before = sum(len(exchange) for wire in client.wires for exchange in wire.sent)
    world.advance(300)
    assert sum(len(exchange) for wire in client.wires for exchange in wire.sent) - before <= 4 * 30


def test_a_client_that_was_collected_says_so_and_comes_back(world, client):
    client.first.waiter = object()
    world.call("ZREM", KEYS.receivers, client_id(client))
    world.call("DEL", receiver(client))
    world.advance(16)
    assert client.first.status is Status.UNKNOWN
    assert client.first.error == ("this client was out of contact for so long that its receiver was removed")
    assert client.machine.counts["collected"] == 1
    (event,) = client.events(EventKind.COLLECTED)
    assert event.data == {"tasks": 1}
    assert event.text == "this client was taken for dead and its receiver removed; 1 outcomes may be lost"
    assert world.call("EXISTS", receiver(client)) == 1
    world.advance(60)
    assert [c[0] for exchange in client.publish.sent for c in exchange].count("XGROUP") == 2
    world.call("DEL", receiver(client))
    world.advance(30)
    assert client.machine.counts["collected"] == 2
    later = client.enqueue(b"later", tracked=True)
    world.pump()
    notify(world, client, later)
    world.pump()
    assert later.status is Status.COMPLETED


def test_a_notice_that_came_before_the_collection_counts(world, client):
    """The last notices and the news of the collection may arrive in one answer."""
    world.call("ZREM", KEYS.receivers, client_id(client))
    notify(world, client, client.first)
    world.advance(16)
    assert client.first.status is Status.COMPLETED
    assert client.events(EventKind.COLLECTED)[0].data == {"tasks": 0}


def test_a_task_on_its_way_may_have_lost_its_notice_too(world, client):
    submission = client.enqueue(b"quick", tracked=True)
    client.publish.until("EXEC")
    client.publish.execute()
    world.call("DEL", KEYS.receivers, receiver(client))
    world.advance(21)
    assert submission.status is client.first.status is Status.UNKNOWN
    client.publish.release()
    assert submission.status is Status.UNKNOWN
    assert client.machine.pending == 0


def test_a_collection_is_noticed_although_the_read_behind_the_beat_failed(world, client):
    world.call("ZREM", KEYS.receivers, client_id(client))
    client.receive.hold_at("ZADD")
    end = world.refuse("LOADING the dataset", "XREAD")
    client.receive.release()
    assert client.first.status is Status.UNKNOWN
    end()


def test_a_receiver_that_is_missing_when_a_queue_is_met_is_told_though_nobody_waits(world, client):
    notify(world, client, client.first)
    world.pump()
    client.receive.frozen = True
    world.call("DEL", receiver(client))
    client.enqueue(b"other", "r", tracked=True)
    world.pump()
    assert client.events(EventKind.COLLECTED)[0].data == {"tasks": 0}


def test_after_a_loss_nothing_is_said_of_a_receiver_whose_tasks_are_sent_again(world):
    client = world.client()
    snapshot = world.server.snapshot()
    submission = client.enqueue(tracked=True)
    world.pump()
    client.receive.frozen = True
    world.restore(snapshot)
    client.publish.lose()
    world.advance(2)
    assert submission.status is Status.ACCEPTED
    assert client.events(EventKind.MARKER_REGRESSED)
    assert not client.events(EventKind.COLLECTED)


def test_a_receiver_that_may_not_be_read_is_named(world, client):
    world.refuse("NOPERM this user has no permissions to access one of the keys", "XREAD")
    world.advance(6)
    assert f"the key '{receiver(client).decode()}' that XREAD uses" in str(client.machine.refusal)


def test_a_read_that_the_server_ended_is_sent_again(world, client):
    world.server.unblock(client.receive.session.client_id, with_error=True)
    world.pump()
    assert client.machine.refusal is None
    notify(world, client, client.first)
    world.pump()
    assert client.first.status is Status.COMPLETED


@pytest.mark.parametrize("name", ["XREAD", "ZADD", "XDEL"])
def test_what_may_pass_is_waited_for(world, client, name):
    end = world.refuse("LOADING the dataset", name)
    client.receive.lose()
    notify(world, client, client.first)
    world.advance(20)
    assert client.machine.refusal is None
    end()
    world.advance(20)
    assert client.first.status is Status.COMPLETED


def test_a_right_that_is_missing_is_told(world, client):
    world.refuse("NOPERM User app has no permissions to run the 'xread' command", "XREAD")
    world.advance(6)
    assert isinstance(client.machine.refusal, PermissionMissing)
    assert "XREAD" in str(client.machine.refusal)


def test_without_tracked_tasks_there_is_no_receiver(world):
    client = world.client()
    client.enqueue(b"x")
    world.advance(20)
    assert len(client.wires) == 1
    assert world.call("EXISTS", receiver(client)) == 0
    client.close()
    world.pump()
    assert client.publish.sent[-1] == [("DEL", KEYS.producer(client_id(client)))], "nothing else is there"


def test_it_ends_at_close_and_takes_its_stream_along(world, client):
    client.close()
    world.pump()
    assert client.ended
    assert world.call("EXISTS", receiver(client)) == world.call("EXISTS", KEYS.receivers) == 0


def test_a_last_pull_after_the_end_sends_nothing(world, client):
    client.close()
    assert client.machine.lanes[0].receiver.pull(world.now) is None


def old_news(world, client):
    """While a read waits, its news that the receiver is missing grows old: the publisher makes a new one."""
    world.call("DEL", receiver(client))
    client.receive.hold_at("EXISTS")
    client.receive.execute()
    later = client.enqueue(b"later", "r", tracked=True)
    world.pump()
    assert (client.first.status, later.status) == (Status.UNKNOWN, Status.ACCEPTED)
    return later


def test_tasks_sent_after_the_receiver_was_made_anew_are_not_given_up_for_old_news(world, client):
    later = old_news(world, client)
    client.receive.held = False
    world.advance(10)
    assert later.status is Status.ACCEPTED
    assert client.machine.counts["collected"] == 1
    notify(world, client, later)
    world.pump()
    assert later.status is Status.COMPLETED


def test_old_news_makes_it_look_again_with_the_next_read(world, client):
    later = old_news(world, client)
    world.call("DEL", receiver(client))
    client.receive.held = False
    world.advance(2 * client.machine.config.block + 0.5)
    assert later.status is Status.UNKNOWN


def test_a_receiver_that_is_missing_is_told_once_though_it_is_hard_to_make(world):
    client = world.client(heartbeat=1000.0, block=500.0)
    client.enqueue(tracked=True)
    world.pump()
    world.call("DEL", receiver(client))
    client.receive.held = True
    client.enqueue(queue="r", tracked=True)
    for _ in range(3):
        client.publish.until("XGROUP")
        client.publish.lose()
        client.publish.held = False
        world.now += 2.0
    assert [event.data for event in client.events(EventKind.COLLECTED)] == [{"tasks": 1}]
