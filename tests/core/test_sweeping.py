import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_core import sweeping
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.wire import Task, encode_task

KEYS = queue_keys("q")
TIMEOUT = 600.0


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


def sweeper(world, *queues, **how):
    """A worker that sweeps often, and takes nothing."""
    settings = {
        "sweep_interval": 4,
        "client_timeout": TIMEOUT,
        "lease": 240,
        "poll_interval": 60,
        "scan_interval": 60,
    }
    worker = world.worker(*queues, start=False, **(settings | how))
    worker.read.frozen = True
    world.pump()
    return worker


# ---- clients ----------------------------------------------------------------------------------------


def leave_client(world, name="{streamfleet:q}gone", score=None, queue="q"):
    keys = queue_keys(queue)
    world.call("ZADD", keys.receivers, world.server_ms() if score is None else score, name)
    world.call("XGROUP", "CREATE", receiver_key(name), "streamfleet-client", "0", "MKSTREAM")
    world.call("HSET", keys.producer(name), "e", 1)
    world.call("PEXPIRE", keys.producer(name), 86_400_000)
    return name


def exists(world, name, queue="q"):
    keys = queue_keys(queue)
    return [world.call("EXISTS", key) for key in (keys.receivers, receiver_key(name))]


def test_what_a_dead_client_left_is_removed(world):
    name = leave_client(world)
    worker = sweeper(world)
    world.advance(TIMEOUT - 5)
    assert exists(world, name) == [1, 1]
    world.advance(10)
    assert exists(world, name) == [0, 0]
    marker = queue_keys("q").producer(name)
    assert world.call("EXISTS", marker) == 1, "without it a client that lives after all would send its tasks again"
    assert world.call("PTTL", marker) > 0
    (event,) = worker.events(EventKind.CLIENT_COLLECTED)
    assert event.text == f"q: removed what the dead client {name} left"
    assert event.data == {"queue": "q", "client": name}
    leave_client(world, "another")
    world.advance(TIMEOUT + 10)
    assert worker.machine.counts["collected"] == 2


@pytest.mark.parametrize("skew_ms", [-3_600_000, 0, 3_600_000])
def test_a_client_that_beats_is_kept_whatever_its_clock_says(world, skew_ms):
    name = leave_client(world, score=world.server_ms() + skew_ms)
    sweeper(world)
    for _ in range(12):
        world.advance(120)
        world.call("ZADD", KEYS.receivers, world.server_ms() + skew_ms, name)
    assert exists(world, name) == [1, 1]


def test_a_client_that_beats_at_the_last_moment_is_kept(world):
    name = leave_client(world)
    worker = sweeper(world)
    worker.control._hold_at = "ZREM"
    world.advance(TIMEOUT + 10)
    assert worker.control.held
    world.call("ZADD", KEYS.receivers, world.server_ms(), name)
    worker.control.release()
    world.advance(60)
    assert exists(world, name) == [1, 1]
    assert worker.machine.counts["collected"] == 0


def test_a_client_that_beats_while_it_is_looked_at_is_kept_and_no_watch_is_left(world):
    name = leave_client(world)
    worker = sweeper(world)
    worker.control._hold_at = "ZSCORE"
    world.advance(TIMEOUT + 10)
    world.call("ZADD", KEYS.receivers, world.server_ms(), name)
    worker.control.until("UNWATCH")
    assert worker.control.flight.commands == [("UNWATCH",)]
    worker.control.release()
    assert exists(world, name) == [1, 1]


def test_a_right_that_is_missing_to_look_at_a_client_is_told(world):
    leave_client(world)
    worker = sweeper(world)
    world.refuse("NOPERM User app has no permissions to run the 'zscore' command", "ZSCORE")
    world.advance(TIMEOUT + 10)
    assert "may not run ZSCORE" in str(worker.machine.refusal)


def test_of_a_dead_client_nothing_is_left_although_the_connection_breaks(world):
    """Nobody would look for the receiver of a client that is not in the set any more: they go together."""
    name = leave_client(world)
    worker = sweeper(world)
    worker.control._hold_at = "ZREM"
    world.advance(TIMEOUT + 10)
    assert worker.control.flight.names == ["MULTI", "ZREM", "DEL", "EXEC"]
    worker.control.lose(late=True)
    worker.control.frozen = True
    worker.control.ghosts.pop().execute()
    assert exists(world, name) == [0, 0]


def test_all_dead_clients_are_removed_and_remembered_no_longer(world):
    names = [leave_client(world, f"{{streamfleet:q}}gone{n}") for n in range(4)]
    worker = sweeper(world)
    world.advance(TIMEOUT + 10)
    assert [exists(world, name) for name in names] == [[0, 0]] * 4
    assert worker.machine.counts["collected"] == 4
    assert worker.machine.lanes[0].controller.sweeper._scores == {}


def refuse_clients_of(world, queue, line):
    receivers = queue_keys(queue).receivers
    world.denials.append(lambda command: line if command[:2] == ("ZRANGE", receivers) else None)


def test_clients_of_a_queue_that_cannot_be_asked_do_not_hide_those_of_the_next(world):
    refuse_clients_of(world, "a", "LOADING the dataset")
    name = leave_client(world, "{streamfleet:b}gone", queue="b")
    sweeper(world, "a", "b", sweep_interval=40)
    world.advance(TIMEOUT + 90)
    assert exists(world, name, "b") == [0, 0]


def test_a_set_of_clients_that_may_not_be_read_is_named(world):
    refuse_clients_of(world, "q", "NOPERM this user has no permissions to access one of the keys")
    worker = sweeper(world)
    world.advance(5)
    assert "streamfleet:q:receivers' that ZRANGE uses" in str(worker.machine.refusal)


def test_a_client_is_known_by_queue(world):
    first = leave_client(world, "{streamfleet:q}one")
    world.advance(1)
    second = leave_client(world, "{streamfleet:r}two", queue="r")
    sweeper(world, "q", "r")
    world.advance(TIMEOUT / 2)
    world.call("ZADD", queue_keys("r").receivers, world.server_ms(), second)
    world.advance(TIMEOUT / 2 + 10)
    assert exists(world, first) == [0, 0]
    assert exists(world, second, "r") == [1, 1]


def test_a_name_of_any_bytes(world):
    name = b"\xff\xfe"
    world.call("ZADD", KEYS.receivers, 1, name)
    worker = sweeper(world)
    world.advance(TIMEOUT + 10)
    assert world.call("EXISTS", KEYS.receivers) == 0
    assert worker.machine.counts["collected"] == 1, "also of one that has no receiver"
    assert worker.events(EventKind.CLIENT_COLLECTED)[0].data["client"] == "\ufffd\ufffd"


# ---- entries without an owner -----------------------------------------------------------------------


def test_entries_of_a_deleted_consumer_run_after_a_lease(world):
    ids = [world.enqueue(f"t{n}") for n in range(3)]
    world.call("XREADGROUP", "GROUP", GROUP, "victim", "COUNT", 2, "STREAMS", KEYS.stream, ">")
    world.call("XGROUP", "DELCONSUMER", KEYS.stream, GROUP, "victim")
    fence = world.value(KEYS.fence)
    worker = sweeper(world, lease=10, scan_interval=2)
    world.advance(5)
    assert set(world.pending()) == set(ids[:2]), "what was never delivered is left to be delivered"
    assert world.value(KEYS.fence) != fence
    assert worker.machine.counts["adopted"] == 2
    (event,) = worker.events(EventKind.ORPHANS_RESTORED)
    assert event.text == "q: 2 delivered entries had no owner; they will run after one lease"
    assert event.data == {"queue": "q", "entries": 2}
    world.advance(20)
    assert sorted(d.entry_id for d in worker.deliveries) == ids[:2]
    world.call("XREADGROUP", "GROUP", GROUP, "victim", "COUNT", 1, "STREAMS", KEYS.stream, ">")
    world.call("XGROUP", "DELCONSUMER", KEYS.stream, GROUP, "victim")
    world.advance(5)
    assert worker.machine.counts["adopted"] == 3


def test_entries_that_cannot_be_adopted_are_not_counted(world):
    world.enqueue()
    world.call("XREADGROUP", "GROUP", GROUP, "victim", "STREAMS", KEYS.stream, ">")
    world.call("XGROUP", "DELCONSUMER", KEYS.stream, GROUP, "victim")
    worker = sweeper(world)
    world.refuse("LOADING the dataset", "XCLAIM")
    world.advance(10)
    assert worker.machine.counts["adopted"] == 0
    assert not worker.events(EventKind.ORPHANS_RESTORED)


@pytest.mark.parametrize("other", ["a-group", "z-group"])
def test_what_another_group_has_read_says_nothing_of_ours(world, other):
    world.call("XGROUP", "CREATE", KEYS.stream, other, "0")
    world.enqueue()
    world.call("XREADGROUP", "GROUP", other, "reader", "STREAMS", KEYS.stream, ">")
    sweeper(world)
    world.advance(10)
    assert world.pending() == {}


def test_entries_are_compared_by_number_and_no_further_than_both_pages_reach(monkeypatch):
    monkeypatch.setattr(sweeping, "PAGE", 2)
    groups = [[b"name", GROUP, b"last-delivered-id", b"20-0"]]
    pending = [[entry, b"w", 0, 1] for entry in (b"7-0", b"9-0")]  # the first has been deleted
    page = [[entry, []] for entry in (b"9-0", b"10-0")]  # the owner of the second is on the next page
    assert sweeping._ownerless([groups, pending, page]) == ([], b"(9-0")


def test_no_page_is_asked_for_when_all_that_was_delivered_has_been_seen(world):
    for n in range(sweeping.PAGE + 5):
        world.enqueue(f"t{n}")
    world.call("XREADGROUP", "GROUP", GROUP, "owner", "COUNT", 3, "STREAMS", KEYS.stream, ">")
    worker = sweeper(world)
    world.advance(40)
    sent = [command for exchange in worker.control.sent for command in exchange]
    turns = [command for command in sent if command[0] == "XRANGE" and command[-1] == 1]
    looks = [command for command in sent if command[:2] == ("XINFO", "GROUPS")]
    assert 9 <= len(looks) <= len(turns)


def test_entries_that_somebody_took_meanwhile_stay_with_them(world):
    entry = world.enqueue()
    world.call("XREADGROUP", "GROUP", GROUP, "victim", "STREAMS", KEYS.stream, ">")
    world.call("XGROUP", "DELCONSUMER", KEYS.stream, GROUP, "victim")
    worker = sweeper(world)
    worker.control.hold_at("XCLAIM")
    world.call("XCLAIM", KEYS.stream, GROUP, "quicker", 0, entry, "FORCE")
    worker.control.release()
    assert world.pending() == {entry: b"quicker"}
    assert worker.machine.counts["adopted"] == 0


def test_of_several_workers_one_in_as_many_looks_each_time(world):
    world.enqueue()
    world.call("XREADGROUP", "GROUP", GROUP, "owner", "STREAMS", KEYS.stream, ">")
    for n in range(9):
        world.call("XGROUP", "CREATECONSUMER", KEYS.stream, GROUP, f"peer{n}")
    worker = sweeper(world)
    world.advance(400)
    looked = [c for exchange in worker.control.sent for c in exchange if c[:2] == ("XINFO", "GROUPS")]
    turns = [c for exchange in worker.control.sent for c in exchange if c[0] == "XRANGE" and c[-1] == 1]
    assert len(turns) >= 95
    assert 2 <= len(looked) <= 30


def test_of_ten_workers_one_looks_and_not_two(world):
    world.enqueue()
    world.call("XREADGROUP", "GROUP", GROUP, "owner", "STREAMS", KEYS.stream, ">")
    for n in range(9):
        world.call("XGROUP", "CREATECONSUMER", KEYS.stream, GROUP, f"peer{n}")
    worker = sweeper(world)
    world.advance(5)
    (controller,) = (lane.controller for lane in worker.machine.lanes.values())
    queue = worker.machine.queues["q"]
    assert len(controller.reclaimer.consumers["q"]) == 10
    worker.machine.random = lambda: 0.11
    assert not controller.sweeper._is_our_turn(queue)
    worker.machine.random = lambda: 0.09
    assert controller.sweeper._is_our_turn(queue)


def test_it_sweeps_although_it_could_not_ask_for_consumers_yet(world):
    world.enqueue()
    worker = sweeper(world)
    reclaimer = worker.machine.lanes[0].controller.reclaimer
    reclaimer.consumers.clear()  # as after a first look whose reply was lost
    reclaimer.next_at = world.now + 60
    world.advance(40)
    assert reclaimer.consumers == {}
    names = {command[0] for exchange in worker.control.sent for command in exchange}
    assert names >= {"ZRANGE", "XRANGE"}
    assert worker.machine.refusal is None


@given(data=st.data(), page=st.integers(1, 4))
def test_all_entries_without_an_owner_are_found_and_no_others(new_world, data, page):
    """Against the plain definition: delivered, still in the stream, and pending for nobody."""
    world = new_world()
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    ids = [world.call("XADD", KEYS.stream, "*", *encode_task(Task(f"t{n}", "q", "c", b""))) for n in range(9)]
    delivered = data.draw(st.integers(0, len(ids)))
    if delivered:
        world.call("XREADGROUP", "GROUP", GROUP, "one", "COUNT", delivered, "STREAMS", KEYS.stream, ">")
    indices = st.integers(0, len(ids) - 1)
    acknowledged = data.draw(st.sets(indices))
    deleted = data.draw(st.sets(indices))
    for n in acknowledged:
        world.call("XACK", KEYS.stream, GROUP, ids[n])
    for n in deleted:
        world.call("XDEL", KEYS.stream, ids[n])
    orphans = {ids[n] for n in range(delivered) if n in acknowledged and n not in deleted}
    owned = {entry for entry, owner in world.pending().items() if owner == b"one"}
    before, sweeping.PAGE = sweeping.PAGE, page
    try:
        worker = sweeper(world)
        world.advance(4.5)
    finally:
        sweeping.PAGE = before
    mine = {entry for entry, owner in world.pending().items() if owner == worker.machine.consumer}
    assert mine == orphans
    assert {entry for entry, owner in world.pending().items() if owner == b"one"} == owned


# ---- consumers --------------------------------------------------------------------------------------


def consumers(world):
    rows = world.call("XINFO", "CONSUMERS", KEYS.stream, GROUP)
    return {row[1] for row in rows}


def test_consumers_are_removed_after_a_day_without_anything_pending(world):
    world.call("XGROUP", "CREATECONSUMER", KEYS.stream, GROUP, "silent")
    world.enqueue()
    world.call("XREADGROUP", "GROUP", GROUP, "holds", "STREAMS", KEYS.stream, ">")
    worker = sweeper(world, consumer_timeout=3600, sweep_interval=600, lease=86_000, max_deliveries=9)
    world.advance(3000)
    assert consumers(world) >= {b"silent", b"holds"}
    world.advance(1500)
    assert b"silent" not in consumers(world)
    assert b"holds" in consumers(world)
    assert worker.machine.refusal is None


def test_a_worker_does_not_remove_itself(world):
    worker = world.worker(consumer_timeout=10, sweep_interval=4)
    world.enqueue()
    world.pump()
    worker.succeed(worker.take())
    worker.read.frozen = True
    world.advance(60)
    assert worker.machine.consumer in consumers(world)


# ---- the rest ---------------------------------------------------------------------------------------


def test_the_servers_clock_is_read_again(world):
    worker = sweeper(world)
    world.server.now_ms = lambda: 3_600_000 + int(world.now * 1000)
    world.advance(8)
    assert worker.machine.clock.ms(world.now) == pytest.approx(world.server.now_ms(), abs=2)


def test_an_idle_round_asks_little(world):
    worker = sweeper(world, sweep_interval=60)
    before = len(worker.control.sent)
    world.advance(600)
    sent = [command[0] for exchange in worker.control.sent[before:] for command in exchange]
    assert sent.count("XRANGE") == 10
    assert sent.count("TIME") == 10


@pytest.mark.parametrize("name", ["ZRANGE", "ZSCORE", "ZREM", "XRANGE", "XINFO", "XPENDING", "TIME", "XCLAIM"])
def test_errors_that_pass_delay_a_sweep_and_nothing_else(world, name):
    gone = leave_client(world)
    entry = world.enqueue()
    world.call("XREADGROUP", "GROUP", GROUP, "victim", "STREAMS", KEYS.stream, ">")
    world.call("XGROUP", "DELCONSUMER", KEYS.stream, GROUP, "victim")
    worker = sweeper(world, sweep_interval=40)
    end = world.refuse("LOADING the dataset", name)
    world.advance(TIMEOUT + 90)
    assert worker.machine.refusal is None
    end()
    world.advance(TIMEOUT + 90)
    assert exists(world, gone) == [0, 0]
    assert entry in world.pending()


def test_rows_that_are_no_clients_are_passed_over(world):
    worker = sweeper(world)
    sweeper_of = worker.machine.lanes[0].controller.sweeper
    queue = worker.machine.queues["q"]
    assert sweeper_of._silent(queue, [None, b"1", b"c", 2, b"d", b"3"], world.now) == []
    assert list(sweeper_of._scores) == [("q", b"d")]
    assert sweeper_of._silent(queue, None, world.now) == []
