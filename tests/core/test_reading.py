import pytest

from streamfleet_core.errors import PermissionMissing, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.reading import PAGE, READ_MARGIN
from streamfleet_core.state import Phase

KEYS = queue_keys("q")


def reads(worker):
    """Every read sent so far: the ids asked for, and COUNT."""
    found = []
    for exchange in worker.read.sent:
        for command in exchange:
            if command[0] == "XREADGROUP":
                at = command.index("STREAMS")
                streams = (len(command) - at - 1) // 2
                found.append((command[-streams:], command[command.index("COUNT") + 1]))
    return found


def test_a_missing_group_is_created_at_the_beginning_of_the_stream(world):
    world.enqueue("early")
    worker = world.worker()
    assert worker.take().task.id == "early"
    assert worker.machine.counts["healed"] == 1
    (event,) = worker.events(EventKind.GROUP_HEALED)
    assert event.data == {"queue": "q"}


def test_creating_the_group_moves_the_fence(world):
    before = world.value(KEYS.fence)
    world.worker()
    assert world.value(KEYS.fence) != before


def test_a_group_that_is_there_is_left_alone(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    worker = world.worker()
    assert worker.machine.counts["healed"] == 0
    assert world.value(KEYS.fence) is None


def test_two_workers_that_create_the_group_at_once(world):
    one, two = world.worker(start=False), world.worker(start=False)
    flights = [one.read.until("XGROUP"), two.read.until("XGROUP")]
    assert all("MULTI" in flight.names for flight in flights)
    one.read.release()
    two.read.release()
    assert [one.machine.counts["healed"], two.machine.counts["healed"]] == [1, 0]
    assert two.machine.refusal is None
    world.enqueue()
    world.pump()
    assert len(one.deliveries) + len(two.deliveries) == 1


def test_the_server_has_some_seconds_more_than_a_read_waits(world):
    worker = world.worker(block=2.0)
    exchange = worker.read.flight.exchange
    assert exchange.blocking
    assert exchange.timeout == 2.0 + READ_MARGIN


def test_it_asks_for_no_more_than_there_is_room_for(world):
    worker = world.worker(concurrency=3)
    assert reads(worker)[-1] == ((b">",), 3)
    for n in range(5):
        world.enqueue(f"t{n}")
    world.pump()
    assert worker.machine.held == 3
    asked = len(worker.read.sent)
    world.advance(4)
    assert len(worker.read.sent) == asked, "no room, no read"
    slow = worker.take()
    world.advance(2)
    worker.succeed(slow)
    world.pump()
    assert reads(worker)[-1] == ((b">",), 1)
    assert worker.machine.held == 3


def test_a_large_window_is_filled_in_two_halves_at_least(world):
    worker = world.worker(concurrency=1, prefetch_horizon=0.05)
    worker.machine._mean = 0.001
    window = worker.machine.window()
    assert window == 51
    reader = worker.machine.lanes[0].reader
    worker.machine.held = 30
    assert reader.room() == 0
    worker.machine.held = 27
    assert reader.room() == 0
    worker.machine.held = 26
    assert reader.room() == 25
    worker.machine.held = 0
    assert reader.room() == 25, "the server reads the other half while handlers work on this one"


def test_a_page_has_a_bound(world):
    worker = world.worker(concurrency=1)
    worker.machine._mean = 1e-6
    assert worker.machine.window() > 2 * PAGE
    assert worker.machine.lanes[0].reader.room() == PAGE
    many = world.worker(concurrency=2 * PAGE)
    many.machine._mean = 1e-6
    assert many.machine.lanes[0].reader.room() == 2 * PAGE, "no handler waits for a second read"


@pytest.mark.parametrize("mean", [0.0, 1e-6, 0.001, 0.5, 30.0])
@pytest.mark.parametrize("concurrency", [1, 10, 200])
def test_the_window_has_bounds(world, mean, concurrency):
    machine = world.worker(concurrency=concurrency, max_prefetch=100).machine
    machine._mean = mean
    assert min(concurrency, 100) <= machine.window() <= max(concurrency, 100)


def test_slow_handlers_prefetch_nothing(world):
    machine = world.worker(concurrency=10).machine
    machine._mean = 5.0
    assert machine.window() == 10


def test_one_read_serves_all_queues_of_a_slot(world):
    worker = world.worker("a", "b", concurrency=5)
    assert reads(worker)[-1] == ((b">", b">"), 3)
    world.enqueue("one", "a")
    world.enqueue("two", "b")
    world.pump()
    assert {(d.queue.keys.queue, d.task.id) for d in worker.deliveries} == {("a", "one"), ("b", "two")}


def test_a_read_that_the_server_ended_is_sent_again(world):
    worker = world.worker()
    asked = len(worker.read.sent)
    world.server.unblock(worker.read.session.client_id, with_error=True)
    world.pump()
    assert len(worker.read.sent) == asked + 1
    assert worker.machine.refusal is None
    world.enqueue()
    world.pump()
    worker.take()


def test_a_group_destroyed_under_a_blocked_read_is_created_again(world):
    worker = world.worker()
    fence = world.value(KEYS.fence)
    world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)
    world.enqueue("after")
    world.pump()
    assert worker.take().task.id == "after"
    assert worker.machine.counts["healed"] == 2
    assert world.value(KEYS.fence) != fence


def test_a_stream_deleted_under_a_blocked_read_is_created_again(world):
    worker = world.worker()
    world.call("DEL", KEYS.stream)
    world.pump()
    world.enqueue("after")
    world.pump()
    assert worker.take().task.id == "after"


@pytest.mark.parametrize("line", ["LOADING Redis is loading", "MASTERDOWN link is down", "BUSY a script"])
def test_a_server_that_cannot_serve_now_is_asked_again_later(world, line):
    worker = world.worker(start=False)
    end = world.refuse(line, "XREADGROUP")
    world.advance(2)
    assert worker.machine.refusal is None
    assert worker.events(EventKind.BACKING_OFF)
    end()
    world.enqueue()
    world.advance(2)
    worker.take()


@pytest.mark.parametrize("history", [True, False])
def test_a_right_that_is_missing_stops_the_worker_with_the_command(world, history):
    worker = world.worker(start=not history)
    world.refuse("NOPERM User app has no permissions to run the 'xreadgroup' command", "XREADGROUP")
    world.enqueue()
    world.advance(6)
    refusal = worker.machine.refusal
    assert isinstance(refusal, PermissionMissing)
    assert "XREADGROUP" in str(refusal)
    assert "app" in str(refusal)


def test_a_right_that_is_missing_to_create_the_group(world):
    worker = world.worker(start=False)
    world.refuse("NOPERM User app has no permissions to run the 'xgroup|create' command", "XGROUP")
    world.advance(1)
    assert isinstance(worker.machine.refusal, PermissionMissing)
    assert "XGROUP CREATE" in str(worker.machine.refusal)


def test_creating_the_group_is_tried_again_when_the_server_is_full(world):
    worker = world.worker(start=False)
    end = world.refuse("OOM command not allowed when used memory > 'maxmemory'.", "XGROUP")
    world.advance(1)
    assert worker.machine.counts["healed"] == 0
    assert worker.machine.refusal is None
    end()
    world.advance(2)
    assert worker.machine.counts["healed"] == 1
    names = [exchange[0][0] for exchange in worker.read.sent]
    assert names.count("MULTI") > 2
    assert names == ["XPENDING", *["MULTI"] * names.count("MULTI"), "XPENDING", "XREADGROUP"]


def test_what_is_said_of_a_group_only_when_it_is_to_be_created(world):
    worker = world.worker(start=False)
    worker.settle.frozen = worker.control.frozen = True  # which try transactions too
    end = world.refuse("EXECABORT Transaction discarded because of: NOREPLICAS too few", "EXEC")
    world.advance(2)
    assert worker.machine.refusal is None
    assert worker.events(EventKind.BACKING_OFF)[0].data["role"] == "read"
    end()
    world.refuse("EXECABORT Transaction discarded because of: NOPERM not now", "EXEC")
    world.advance(6)
    assert isinstance(worker.machine.refusal, PermissionMissing)


def test_the_key_whose_group_may_not_be_created_is_named(world):
    worker = world.worker(start=False)
    world.refuse("NOPERM this user has no permissions to access one of the keys", "XGROUP")
    world.advance(1)
    assert "the key 'streamfleet:q' that XGROUP uses" in str(worker.machine.refusal)


def test_of_several_queues_the_one_whose_group_was_missing_is_told(world):
    world.call("XGROUP", "CREATE", queue_keys("a").stream, GROUP, "0", "MKSTREAM")
    worker = world.worker("a", "b")
    (event,) = worker.events(EventKind.GROUP_HEALED)
    assert event.data == {"queue": "b"}
    assert event.text == "b: consumer group created at the beginning of the stream"


def test_a_stream_key_of_another_type_is_refused(world):
    worker = world.worker(start=False)
    worker.control.held = True  # which would find it first
    world.call("SET", KEYS.stream, "mine")
    world.advance(1)
    assert isinstance(worker.machine.refusal, WrongKeyType)
    assert "streamfleet:q" in str(worker.machine.refusal)


def test_the_queue_whose_key_has_another_type_is_named(world):
    worker = world.worker("a", "b", start=False)
    worker.control.held = True
    world.call("SET", queue_keys("b").stream, "mine")
    world.advance(1)
    assert isinstance(worker.machine.refusal, WrongKeyType)
    assert "streamfleet:b" in str(worker.machine.refusal)


def test_a_key_is_not_blamed_when_it_may_be_another(world):
    worker = world.worker("a", "b")
    world.refuse("WRONGTYPE Operation against a key", "XREADGROUP")
    world.advance(6)
    assert isinstance(worker.machine.refusal, WrongKeyType)
    assert "streamfleet:" not in str(worker.machine.refusal)


def test_a_wrong_type_found_while_creating_the_group_is_refused(world):
    worker = world.worker(start=False)
    worker.control.held = True
    worker.read.until("XGROUP")
    world.call("SET", KEYS.stream, "mine")
    worker.read.release()
    assert isinstance(worker.machine.refusal, WrongKeyType)
    assert "streamfleet:q" in str(worker.machine.refusal)


def test_a_reclaim_between_read_and_reply_puts_the_entry_in_doubt(world):
    worker = world.worker()
    worker.read.held = True
    world.enqueue()
    worker.read.execute()
    world.call("SET", KEYS.fence, "somebody reclaimed")
    worker.settle.lose()
    world.advance(1)
    assert worker.machine.queues["q"].fence == b"somebody reclaimed"
    worker.read.release()
    delivery = worker.take()
    assert delivery.fence != b"somebody reclaimed"
    worker.succeed(delivery)
    world.pump()
    assert worker.machine.counts["verified"] == 1
    assert worker.machine.counts["completed"] == 1


def test_no_read_once_the_worker_stops(world):
    worker = world.worker()
    reader = worker.machine.lanes[0].reader
    assert reader.wanted()
    assert not reader.finished()
    worker.stop()
    world.pump()
    assert not reader.wanted()
    assert worker.read.ended
    assert worker.ended


def test_what_a_last_read_brought_is_given_back_at_once(world):
    worker = world.worker()
    worker.read.held = True
    entry = world.enqueue()
    worker.read.execute()
    worker.stop()
    worker.read.deliver()
    (delivery,) = worker.deliveries
    assert delivery.phase is Phase.RELEASING
    worker.read.release()
    assert worker.ended
    other = world.worker()
    world.advance(3)
    assert [d.entry_id for d in other.deliveries] == [entry]
    assert other.deliveries[0].deliveries == 1
