import pytest

from streamfleet_core.events import EventKind
from streamfleet_core.keys import queue_keys, receiver_key
from streamfleet_core.submission import Status
from streamfleet_core.wire import NoticeType, Notification, encode_notification

NEVER = 10_000.0
"""Seconds between heartbeats, so that the receive link finds nothing out by itself."""


@pytest.fixture
def client(world):
    client = world.client("a", heartbeat=NEVER)
    client.first = client.enqueue(queue="a", tracked=True)
    world.pump()
    client.receive.held = True
    return client


def receiver(client):
    return receiver_key(client.machine.lanes[0].client_id)


def registrations(client):
    return [exchange for exchange in client.publish.sent if exchange[0][0] in ("EXISTS", "ZADD")]


def test_the_first_time_it_is_made_without_a_question(world, client):
    (made,) = registrations(client)
    assert [command[0] for command in made] == ["ZADD", "XGROUP"]


def test_one_that_is_there_is_only_entered_for_the_other_queue(world, client):
    other = client.enqueue(queue="b", tracked=True)
    world.pump()
    asked, entered = registrations(client)[1:]
    assert asked == [("EXISTS", receiver(client))]
    assert [command[:2] for command in entered] == [("ZADD", queue_keys(q).receivers) for q in ("a", "b")]
    assert (client.first.status, other.status) == (Status.ACCEPTED, Status.ACCEPTED)


def test_a_lost_reply_does_not_hide_that_it_was_made_anew(world, client):
    """The second time it was there, so nobody noticed that it had been missing, and users waited in vain."""
    world.call("DEL", receiver(client))
    other = client.enqueue(queue="b", tracked=True)
    client.publish.until("XGROUP")
    client.publish.execute()
    client.publish.lose()
    client.publish.release()
    world.advance(1.0)
    assert client.first.status is Status.UNKNOWN
    assert other.status is Status.ACCEPTED
    assert world.call("EXISTS", receiver(client)) == 1
    assert len(client.events(EventKind.COLLECTED)) == 1


def test_a_question_whose_answer_was_lost_is_asked_again(world, client):
    world.call("DEL", receiver(client))
    client.enqueue(queue="b", tracked=True)
    client.publish.until("EXISTS")
    client.publish.execute()
    client.publish.lose()
    client.publish.release()
    world.advance(1.0)
    assert client.first.status is Status.UNKNOWN
    assert world.call("EXISTS", receiver(client)) == 1


def test_what_is_known_of_it_does_not_outlive_the_connection(world, client):
    """It was there; then the connection broke, and before the client came back somebody had deleted it."""
    client.enqueue(queue="b", tracked=True)
    client.publish.until("ZADD")
    client.publish.lose()
    world.call("DEL", receiver(client))
    client.publish.release()
    world.advance(1.0)
    assert client.first.status is Status.UNKNOWN
    assert world.call("EXISTS", receiver(client)) == 1


def test_what_is_known_of_it_does_not_outlive_the_registration(world, client):
    for queue in ("b", "c"):
        world.call("DEL", receiver(client))
        client.enqueue(queue=queue, tracked=True)
        world.pump()
        assert world.call("EXISTS", receiver(client)) == 1
    assert len(client.events(EventKind.COLLECTED)) == 2


def lose_a_tail(world, client, *, receiver_deleted):
    """Of two accepted tasks the server loses the second one; the publisher is the first to notice."""
    if receiver_deleted:
        world.call("DEL", receiver(client))
    snapshot = world.server.snapshot()
    second = client.enqueue(queue="a", tracked=True)
    world.pump()
    assert second.status is Status.ACCEPTED
    world.server.restore(snapshot)
    world.admin = world.server.session()
    world.advance(15.0)
    assert client.events(EventKind.MARKER_REGRESSED)
    return second


def test_after_a_loss_those_are_given_up_whose_notices_may_have_been_missed(world, client):
    """Not those that are sent again: their notices are yet to come."""
    second = lose_a_tail(world, client, receiver_deleted=True)
    assert client.first.status is Status.UNKNOWN
    assert second.status is Status.ACCEPTED
    fields = encode_notification(Notification(second.id, NoticeType.COMPLETED))
    assert world.call("XADD", receiver(client), "NOMKSTREAM", "*", *fields) is not None


def test_a_loss_that_spares_the_receiver_gives_nobody_up(world, client):
    second = lose_a_tail(world, client, receiver_deleted=False)
    assert (client.first.status, second.status) == (Status.ACCEPTED, Status.ACCEPTED)
    assert not client.events(EventKind.COLLECTED)


def test_a_loss_of_all_is_told_once(world, client):
    world.server.reset()
    world.admin = world.server.session()
    world.advance(15.0)
    assert client.first.status is Status.ACCEPTED
    assert client.events(EventKind.MARKER_REGRESSED)
    assert not client.events(EventKind.COLLECTED)
    assert world.call("EXISTS", receiver(client)) == 1
