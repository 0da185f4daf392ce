import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import PermissionMissing
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.reclaiming import PAGE
from streamfleet_core.state import Phase
from streamfleet_core.wire import F_REASON

KEYS = queue_keys("q")
LEASE = 10.0


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


def abandon(world, count=1, consumer="dead", **attributes):
    """Entries that a consumer took and never came back for."""
    ids = [world.enqueue(f"t{n}", **attributes) for n in range(count)]
    world.call("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "STREAMS", KEYS.stream, ">")
    return ids


def scans(worker, name="XINFO"):
    return [c for exchange in worker.control.sent for c in exchange if c[0] == name and c[1] != "GROUPS"]


def test_a_dead_workers_entries_run_elsewhere_within_lease_and_scan(world):
    dead = world.worker(concurrency=3)
    ids = [world.enqueue(f"t{n}") for n in range(3)]
    world.pump()
    worker = world.worker(concurrency=3)
    world.advance(LEASE + 5)
    dead.take()
    dead.crash()
    fence = world.value(KEYS.fence)
    killed = world.now
    while not worker.deliveries:
        world.advance(0.1)
    assert world.now - killed <= LEASE + 2.0 + 0.1
    world.advance(2)
    assert sorted(d.entry_id for d in worker.deliveries) == ids
    assert {d.deliveries for d in worker.deliveries} == {2}
    assert world.value(KEYS.fence) != fence
    assert worker.machine.counts["reclaimed"] == 3
    event = worker.events(EventKind.RECLAIMED)[0]
    assert event.data["owners"].keys() == {dead.machine.consumer.decode()}


def test_what_was_left_for_want_of_room_is_taken_as_soon_as_there_is_some(world):
    """A fleet had nothing to do between two looks, while a dead worker's entries lay there."""
    ids = abandon(world, 9)
    worker = world.worker(concurrency=1, prefetch_horizon=0.0)
    while not worker.deliveries:
        world.advance(0.1)
    began, taken = world.now, []
    while len(taken) < len(ids):
        delivery = worker.take()
        taken.append(delivery.entry_id)
        worker.succeed(delivery)
        world.pump()
    assert world.now == began
    assert sorted(taken) == ids
    assert world.pending() == {}
    looks = len(scans(worker))
    world.advance(1.0)
    assert len(scans(worker)) <= looks + 1


def test_reclaimed_entries_go_first(world):
    (old,) = abandon(world)
    worker = world.worker(concurrency=2)
    world.enqueue("x")
    world.enqueue("y")
    world.advance(2 * LEASE)
    assert worker.take().entry_id == old


def test_nothing_is_reclaimed_before_one_lease_of_own_contact(world):
    abandon(world)
    world.now += 10 * LEASE
    worker = world.worker()
    world.advance(LEASE - 0.5)
    assert worker.deliveries == []
    world.advance(3)
    assert len(worker.deliveries) == 1


def test_what_was_given_back_is_taken_at_once(world):
    abandon(world, 1, "merely idle")
    leaving = world.worker(concurrency=2)
    world.enqueue("b")
    world.pump()
    leaving.stop()
    world.pump()
    worker = world.worker(concurrency=5)
    world.advance(0.1)
    assert [d.task.id for d in worker.deliveries] == ["b"]
    assert worker.deliveries[0].deliveries == 1


def test_an_outage_interrupts_contact(world):
    worker = world.worker(lease=LEASE)
    world.advance(2 * LEASE)
    busy = world.worker()
    world.enqueue()
    world.pump()
    holder = next(w for w in (worker, busy) if w.deliveries)
    other = busy if holder is worker else worker
    holder.take()
    for actor in (worker, busy):
        for wire in actor.wires:
            if wire.flight is not None or wire.session is not None:
                wire.lose()
    world.available = False
    world.advance(3 * LEASE)
    world.available = True
    world.advance(LEASE)
    assert other.machine.counts["reclaimed"] == 0
    assert holder.machine.counts["lost"] == 0
    assert set(world.pending().values()) == {holder.machine.consumer}


def test_a_long_silence_on_a_standing_connection_interrupts_contact_too(world):
    worker = world.worker()
    world.advance(2 * LEASE)
    since = worker.machine.lanes[0].controller.contact_since
    worker.control.hold_at("XINFO")
    world.advance(LEASE)
    worker.control.release()
    assert worker.machine.lanes[0].controller.contact_since == world.now > since


def test_two_reclaimers_share_a_dead_workers_entries(world):
    ids = abandon(world, 10)
    one, two = world.worker(concurrency=20), world.worker(concurrency=20)
    world.advance(2 * LEASE)
    taken = [d.entry_id for d in one.deliveries + two.deliveries]
    assert sorted(taken) == ids
    assert one.machine.counts["reclaimed"] + two.machine.counts["reclaimed"] == 10


def test_two_claims_of_the_same_entries_at_once(world):
    abandon(world, 3)
    one, two = world.worker(concurrency=5), world.worker(concurrency=5)
    one.control._hold_at = "XCLAIM"
    two.control.hold_at("XCLAIM")
    assert [w.control.flight.names for w in (one, two)] == [["MULTI", "XCLAIM", "SET", "EXEC"]] * 2
    one.control.release()
    two.control.release()
    assert sorted(len(w.deliveries) for w in (one, two)) == [0, 3]
    assert sum(w.machine.counts["reclaimed"] for w in (one, two)) == 3


def test_own_running_entries_are_never_reclaimed(world):
    worker = world.worker()
    (entry,) = [world.enqueue()]
    world.pump()
    worker.take()
    worker.settle.frozen = True  # no beats
    world.advance(3 * LEASE)
    assert worker.machine.counts["reclaimed"] == 0
    assert [d.entry_id for d in worker.deliveries] == [entry]


def test_own_entries_that_are_unknown_here_are_reclaimed_like_those_of_others(world):
    worker = world.worker(consumer="w", concurrency=1)
    world.enqueue("own")
    world.pump()
    worker.take()
    (lost,) = abandon(world, consumer="w")
    world.advance(2 * LEASE)
    assert [d.entry_id for d in worker.deliveries if d.task.id != "own"] == [lost]
    assert worker.machine.counts["reclaimed"] == 1


def test_a_claim_whose_reply_was_lost_is_found_in_ones_own_history(world):
    ids = abandon(world, 2)
    worker = world.worker(concurrency=3)
    worker.control.hold_at("XCLAIM")
    worker.control.execute()
    worker.control.lose()
    worker.control.held = False
    world.advance(6)
    assert sorted(d.entry_id for d in worker.deliveries) == ids
    assert worker.machine.counts["reclaimed"] == 0


def test_an_entry_that_a_claim_will_bring_is_not_taken_from_the_history(world):
    (entry,) = abandon(world)
    worker = world.worker(concurrency=3)
    worker.control.hold_at("XCLAIM")
    worker.control.execute()
    worker.read.lose()
    before = len(worker.read.sent)
    world.advance(0.5)
    assert worker.read.sent[before][0][0] == "XPENDING", "the history was looked at meanwhile"
    assert worker.deliveries == []
    worker.control.release()
    (delivery,) = worker.deliveries
    assert delivery.entry_id == entry
    assert delivery.deliveries == 2, "counted as a reclaim"


def test_an_entry_deleted_before_the_claim_is_dropped(world):
    (entry,) = abandon(world)
    world.call("XDEL", KEYS.stream, entry)
    worker = world.worker()
    world.advance(3 * LEASE)
    assert worker.machine.idle
    assert world.pending() == {}


def test_a_poison_task_is_dead_lettered_after_so_many_deliveries(world):
    world.enqueue("poison")
    for _ in range(3):
        victim = world.worker(max_deliveries=3)
        world.advance(2 * LEASE)
        assert victim.take().task.id == "poison"
        victim.crash()
    worker = world.worker(max_deliveries=3)
    world.advance(2 * LEASE)
    (letter,) = world.dead()
    assert letter[b"id"] == b"poison"
    assert b"delivered 3 times" in letter[F_REASON]
    assert world.stream() == []
    assert worker.machine.counts["dead"] == 1


def test_the_queue_goes_on_after_a_poison_task(world):
    abandon(world)
    worker = world.worker(max_deliveries=1)
    world.enqueue("next")
    world.advance(2 * LEASE)
    assert worker.take().task.id == "next"
    assert len(world.dead()) == 1


def test_a_busy_worker_takes_some_and_never_a_heap(world):
    abandon(world, 30)
    worker = world.worker(concurrency=4)
    for n in range(4):
        world.enqueue(f"own{n}")
    world.advance(3 * LEASE)
    assert len(worker.deliveries) == 8
    world.advance(LEASE)
    assert len(worker.deliveries) == 8
    assert {d.phase for d in worker.deliveries} == {Phase.READY}


def test_a_long_list_is_taken_page_by_page_without_waiting(world):
    abandon(world, 3 * PAGE)
    worker = world.worker(concurrency=4 * PAGE)
    world.advance(LEASE + 2.5)
    assert len(worker.deliveries) == 3 * PAGE
    assert all(len(c) <= 5 + PAGE for c in scans(worker, "XCLAIM"))
    assert all(PAGE in c for c in scans(worker, "XPENDING"))


def test_it_looks_more_rarely_while_nobody_has_anything(world):
    worker = world.worker(scan_interval=2)
    world.advance(LEASE)
    before = len(scans(worker))
    world.advance(100)
    idle = len(scans(worker)) - before
    world.enqueue()
    world.pump()
    worker.take()
    before = len(scans(worker))
    world.advance(100)
    busy = len(scans(worker)) - before
    assert 18 <= idle <= 22
    assert 45 <= busy <= 52


def test_a_missing_group_is_left_to_the_reader(world):
    worker = world.worker()
    world.call("DEL", KEYS.stream)
    world.advance(30)
    assert worker.machine.refusal is None
    assert worker.machine.counts["healed"] == 1


@pytest.mark.parametrize("name", ["XINFO", "XPENDING", "XCLAIM"])
def test_a_server_that_cannot_serve_now_is_asked_again_later(world, name):
    ids = abandon(world, 2)
    worker = world.worker(concurrency=5)
    worker.settle.frozen = True
    end = world.refuse("LOADING the dataset", name)
    world.advance(3 * LEASE)
    assert worker.deliveries == []
    assert worker.machine.refusal is None
    end()
    world.advance(LEASE + 3)
    assert sorted(d.entry_id for d in worker.deliveries) == ids


@pytest.mark.parametrize("name", ["XINFO", "XPENDING", "XCLAIM"])
def test_a_right_that_is_missing_stops_the_worker(world, name):
    abandon(world)
    worker = world.worker()
    world.refuse(f"NOPERM User app has no permissions to run the '{name.lower()}' command", name)
    world.advance(3 * LEASE)
    assert isinstance(worker.machine.refusal, PermissionMissing)
    assert name in str(worker.machine.refusal)


def test_an_error_inside_the_claims_transaction(world):
    abandon(world)
    worker = world.worker()
    worker.control.hold_at("XCLAIM")
    worker.control.deliver([b"OK", b"QUEUED", b"QUEUED", [[], ServerError("WRONGTYPE not a string")]])
    assert "fence" in str(worker.machine.refusal)


def test_entries_of_several_queues(world):
    world.call("XGROUP", "CREATE", queue_keys("b").stream, GROUP, "0", "MKSTREAM")
    abandon(world)
    world.enqueue("other", "b")
    world.call("XREADGROUP", "GROUP", GROUP, "dead", "STREAMS", queue_keys("b").stream, ">")
    worker = world.worker("q", "b")
    world.advance(2 * LEASE)
    assert {d.queue.keys.queue for d in worker.deliveries} == {"q", "b"}


def test_of_several_reclaimed_entries_the_oldest_goes_first(world):
    ids = abandon(world, 3)
    worker = world.worker(concurrency=3)
    world.advance(2 * LEASE)
    assert [worker.take().entry_id for _ in ids] == ids


def test_what_was_claimed_is_known_to_be_ours(world):
    ids = abandon(world, 2, consumer=b"old\xff")
    worker = world.worker(concurrency=5)  # there is room, so it goes on reading
    history = [exchange for exchange in worker.read.sent if exchange[0][0] == "XPENDING"]
    assert len(history) == 1
    worker.settle.frozen = True  # or it would verify them meanwhile
    world.advance(2 * LEASE)
    assert [d.fence for d in worker.deliveries] == [world.value(KEYS.fence)] * len(ids)
    assert [exchange for exchange in worker.read.sent if exchange[0][0] == "XPENDING"] == history


def read_no_more(world, worker):
    """Let others take new entries; until then nothing more is remembered of the broken connection."""
    worker.read.lose()
    worker.read.frozen = True
    world.advance(2 * LEASE)


def test_each_takeover_is_told_with_its_owners_and_counted(world):
    abandon(world, 2, consumer=b"old\xff")
    abandon(world, 1, consumer="older")
    worker = world.worker(concurrency=5)
    world.advance(2 * LEASE)
    read_no_more(world, worker)
    abandon(world, 1, consumer="another")
    world.advance(2 * LEASE)
    assert worker.machine.counts["reclaimed"] == 4
    first, second = worker.events(EventKind.RECLAIMED)
    assert first.text == "q: took 3 entries over from older, old\ufffd"
    assert first.data == {"queue": "q", "entries": 3, "owners": {"old\ufffd": 2, "older": 1}}
    assert second.data == {"queue": "q", "entries": 1, "owners": {"another": 1}}


def test_an_entry_is_left_alone_until_it_has_been_idle_for_the_whole_lease(world):
    worker = world.worker(scan_interval=0.01)
    read_no_more(world, worker)
    abandon(world)
    world.advance(LEASE - 0.1)
    assert worker.machine.counts["reclaimed"] == 0
    asked = [c for c in scans(worker, "XPENDING") if "IDLE" in c]
    assert {c[c.index("IDLE") + 1] for c in asked} == {int(LEASE * 1000)}


@pytest.mark.parametrize("busy", [True, False])
def test_a_short_lease_is_looked_after_twice_in_its_time(world, busy):
    worker = world.worker(lease=1.0, scan_interval=60.0, concurrency=1)
    world.advance(5)
    if busy:
        world.enqueue()
        world.pump()
        worker.take()
    before = len(scans(worker))
    world.advance(10)
    assert 19 <= len(scans(worker)) - before <= 21


@pytest.mark.parametrize("name", ["XINFO", "XPENDING"])
def test_a_queue_that_cannot_be_looked_at_does_not_hide_the_next_one(world, name):
    other = queue_keys("b")
    world.call("XGROUP", "CREATE", other.stream, GROUP, "0", "MKSTREAM")
    abandon(world)
    world.enqueue("other", "b")
    world.call("XREADGROUP", "GROUP", GROUP, "dead", "STREAMS", other.stream, ">")
    worker = world.worker("q", "b", concurrency=2)
    world.advance(0.9 * LEASE)
    world.denials.append(
        lambda command: "LOADING the dataset" if command[0] == name and KEYS.stream in command else None
    )
    world.advance(LEASE)
    assert [d.task.id for d in worker.deliveries] == ["other"]


@pytest.mark.parametrize("name", ["XINFO", "XPENDING"])
def test_a_refused_look_names_its_key(world, name):
    abandon(world)
    worker = world.worker()
    world.refuse("NOPERM No permissions to access a key", name)
    world.advance(2 * LEASE)
    assert KEYS.stream.decode() in str(worker.machine.refusal)


def test_entries_that_are_all_in_hand_cost_no_look(world):
    worker = world.worker()
    world.enqueue()
    world.advance(2 * LEASE)
    assert worker.deliveries
    assert [c for c in scans(worker, "XPENDING") if "IDLE" in c] == []


def test_a_server_that_refuses_a_claim_is_asked_ever_more_rarely(world):
    """It answers the looks before each."""
    abandon(world, 5)
    worker = world.worker(concurrency=1)
    world.refuse("OOM command not allowed when used memory > 'maxmemory'.", "SET")
    world.advance(15)
    before = len(worker.control.sent)
    world.advance(10)
    assert 0 < len(worker.control.sent) - before < 60


def test_what_is_due_for_longer_goes_before_another_look_at_the_idle(world):
    """Tasks that became due waited until all of a dead worker's had been taken over."""
    abandon(world, 30)
    worker = world.worker(concurrency=1, max_prefetch=1)
    world.advance(LEASE + 1)
    controller = worker.machine.lanes[0].controller
    controller.mover.next_at = world.now - LEASE  # the control connection was busy
    sent = len(worker.control.sent)
    worker.succeed(worker.take())
    world.pump()
    assert [exchange[0][0] for exchange in worker.control.sent[sent:]][:2] == ["ZRANGE", "XINFO"]
