"""What a worker finds in its own pending entries list, and when it looks there."""

import pytest

from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.reading import HISTORY_PAGE, id_before
from streamfleet_core.wire import Task, encode_task

KEYS = queue_keys("q")


def test_own_pending_entries_come_before_new_ones(world):
    worker = world.worker(concurrency=4)
    worker.read.held = True
    entry = world.enqueue("a")
    worker.read.execute()
    assert worker.read.flight.executed, "the server has delivered the entry"
    worker.read.lose()
    before = len(worker.read.sent)
    world.enqueue("b")
    worker.read.release()
    world.advance(1)
    assert [worker.take().task.id, worker.take().task.id] == ["a", "b"]
    look, missing, rest, new = [exchange[0] for exchange in worker.read.sent[before:]][:4]
    assert look[:2] == ("XPENDING", KEYS.stream)
    assert missing[-1] == id_before(entry)
    assert rest[3] == b"(" + entry
    assert new[-1] == b">"
    assert worker.machine.counts["received"] == 2


@pytest.mark.parametrize(
    ("entry", "before"),
    [
        (b"5-3", b"5-2"),
        (b"5-1", b"5-0"),
        (b"50-10", b"50-9"),
        (b"5-0", b"4-18446744073709551615"),
        (b"100-0", b"99-18446744073709551615"),
    ],
)
def test_the_id_before_another(entry, before):
    assert id_before(entry) == before


def test_looking_at_history_delivers_only_what_is_not_known(world):
    """The server counts each entry that it reads to us."""
    worker = world.worker(concurrency=4)
    world.enqueue("a")
    world.pump()
    worker.read.held = True
    world.enqueue("b")
    worker.read.execute()
    worker.read.lose()
    worker.read.held = False
    later = world.enqueue("c")
    world.call("XREADGROUP", "GROUP", GROUP, worker.machine.consumer, "STREAMS", KEYS.stream, ">")
    queue = worker.machine.queues["q"]
    worker.machine.received(queue, [(later, encode_task(Task("c", "q", "c", b"")))], queue.fence, world.now)
    world.advance(1)
    assert [delivery.task.id for delivery in worker.deliveries] == ["a", "c", "b"]
    rows = world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)
    assert [count for _, _, _, count in rows] == [1, 2, 1]


def test_what_ends_while_history_is_looked_at_is_not_asked_for(world):
    worker = world.worker(concurrency=2)
    world.enqueue("a")
    world.pump()
    delivery = worker.take()
    worker.read.held = True
    worker.read.lose()
    worker.read.held = False
    worker.read.hold_at("XPENDING")
    worker.read.execute()
    worker.succeed(delivery)
    worker.settle.turn()
    worker.settle.turn()
    world.pump()
    before = len(worker.read.sent)
    worker.read.release()
    sent = [command for exchange in worker.read.sent[before:] for command in exchange]
    assert [command[-1] for command in sent if command[0] == "XREADGROUP"] == [b">"]


def test_what_the_history_brings_needs_no_verification(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    world.call("SET", KEYS.fence, "as it was")
    worker = world.worker()
    worker.read.held = True
    world.enqueue()
    worker.read.execute()
    worker.read.lose()
    worker.read.release()
    world.advance(1)
    worker.succeed(worker.take())
    world.pump()
    assert worker.machine.counts["completed"] == 1
    assert worker.machine.counts["verified"] == 0


def test_history_is_looked_at_page_by_page(world):
    first = world.worker(concurrency=300, consumer="w")
    ids = [world.enqueue(f"t{n}") for n in range(2 * HISTORY_PAGE + 7)]
    world.pump()
    first.crash()
    again = world.worker(concurrency=300, consumer="w", start=False)
    again.wire(again.control.link.role).held = True
    world.pump()
    assert [d.entry_id for d in again.machine.ready] == ids
    looks = [command[3] for exchange in again.read.sent for command in exchange if command[0] == "XPENDING"]
    assert looks == [b"-", *(b"(" + ids[last] for last in (HISTORY_PAGE - 1, 2 * HISTORY_PAGE - 1, -1))]
    assert max(len(exchange) for exchange in again.read.sent) == HISTORY_PAGE


def test_what_the_history_brings_is_known_with_its_number_of_deliveries(world):
    """As after a claim whose reply was lost: too many deliveries are too many there as well."""
    worker = world.worker(concurrency=3, max_deliveries=5)
    worker.read.held = True
    worker.read.lose()
    counts = {world.enqueue(f"t{count}"): count for count in (1, 5, 6)}
    us = worker.machine.consumer
    world.call("XREADGROUP", "GROUP", GROUP, us, "STREAMS", KEYS.stream, ">")
    for entry, count in counts.items():
        world.call("XCLAIM", KEYS.stream, GROUP, us, 0, entry, "RETRYCOUNT", count, "JUSTID")
    worker.read.release()
    world.advance(1)
    assert [(worker.take().deliveries) for _ in range(2)] == [1, 5]
    assert worker.machine.take(world.now) is None
    (letter,) = world.dead()
    assert letter[b"id"] == b"t6"
    assert letter[b"dead_reason"] == b"delivered 5 times without being settled (limit 5)"


def test_reads_of_the_history_whose_replies_are_lost_are_not_deliveries(world):
    """The server counts them, though: a bad connection would put tasks aside that no handler has seen."""
    worker = world.worker(concurrency=3, max_deliveries=2)
    worker.read.held = True
    worker.read.lose()
    world.enqueue("a")
    us = worker.machine.consumer
    world.call("XREADGROUP", "GROUP", GROUP, us, "STREAMS", KEYS.stream, ">")
    for _ in range(5):
        worker.read.held = False
        worker.read.hold_at("XREADGROUP")
        worker.read.execute()
        worker.read.lose()
    assert delivered(world) == 6
    worker.read.release()
    world.advance(1)
    assert worker.take().deliveries == 1
    assert world.dead() == []


def test_a_claim_of_our_own_is_a_delivery_though_its_reply_was_lost(world):
    worker = world.worker(concurrency=3)
    worker.read.held = True
    worker.read.lose()
    entry = world.enqueue("a")
    world.call("XREADGROUP", "GROUP", GROUP, worker.machine.consumer, "STREAMS", KEYS.stream, ">")
    worker.read.held = False
    worker.read.hold_at("XREADGROUP")
    worker.read.lose(unknown=False)
    worker.read.frozen = True
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, entry, "RETRYCOUNT", 3, "JUSTID")
    worker.control.hold_at("XCLAIM")
    worker.control.execute()
    worker.control.lose()
    worker.control.held = worker.read.frozen = worker.read.held = False
    world.advance(1)
    assert worker.take().deliveries == delivered(world) - 1 == 4


def delivered(world):
    """How often the server has delivered the one entry, by its own count."""
    ((_, _, _, count),) = world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)
    return count


def test_entries_of_the_history_that_are_known_are_not_taken_twice(world):
    worker = world.worker()
    world.enqueue("a")
    world.pump()
    running = worker.take()
    worker.read.held = True
    worker.read.lose()
    worker.read.release()
    world.advance(1)
    assert worker.deliveries == [running]
    assert worker.machine.counts["received"] == 1


def test_entries_deleted_while_pending_are_acknowledged(world):
    worker = world.worker(concurrency=2)
    worker.read.held = True
    entry = world.enqueue("a")
    worker.read.execute()
    worker.read.lose()
    world.call("XDEL", KEYS.stream, entry)
    assert world.pending() == {entry: worker.machine.consumer}
    worker.read.release()
    world.advance(1)
    assert world.pending() == {}
    assert worker.machine.counts["vanished"] == 1
    assert worker.machine.idle


def test_a_history_that_cannot_be_looked_at_now_is_looked_at_later(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    worker = world.worker(start=False)
    end = world.refuse("LOADING Redis is loading", "XPENDING")
    world.advance(2)
    assert worker.events(EventKind.BACKING_OFF)[0].data["role"] == "read"
    assert {command[0] for exchange in worker.read.sent for command in exchange} == {"XPENDING"}
    end()
    world.enqueue()
    world.advance(2)
    worker.take()


def test_a_read_of_the_history_that_is_refused_for_now_is_tried_again(world):
    """Its entries were lost sight of, and came back by a claim, a lease later, as delivered twice."""
    entry = world.enqueue("a")
    worker = world.worker(consumer="me", start=False)
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0")
    world.call("XREADGROUP", "GROUP", GROUP, "me", "COUNT", 1, "STREAMS", KEYS.stream, ">")
    world.refuse("MISCONF no snapshot", "XREADGROUP", times=1)
    world.advance(1.0)
    delivery = worker.take()
    assert (delivery.entry_id, delivery.deliveries) == (entry, 1)
