"""Each safeguard, with it and without it: what it prevents does happen when it is taken away."""

from pathlib import Path

import pytest

from streamfleet_core import safeguards
from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.safeguards import UNKNOWN
from streamfleet_core.submission import Status
from streamfleet_core.wire import NoticeType, Notification, Task, encode_notification, encode_task, pack_fields

KEYS = queue_keys("q")
LEASE = 10.0


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


@pytest.fixture(params=["with", "without"])
def without(request, monkeypatch):
    """Takes a safeguard away, in the second of two runs; says whether it is gone."""

    def take(name, replacement):
        if request.param == "without":
            monkeypatch.setattr(safeguards, name, replacement)
        return request.param == "without"

    return take


def attempts(world, task_id=b"t1"):
    return [entry[b"retries"] for entry in world.stream() if entry[b"id"] == task_id]


def ids(world):
    return [entry[b"id"].decode() for entry in world.stream()]


# ---- fence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["watch_fences", "bump_fence"])
def test_fence_a_zombie_does_not_settle_what_others_own(world, without, part):
    replacement = {"watch_fences": lambda fences: ("PING",), "bump_fence": lambda fence, token: []}[part]
    broken = without(part, replacement)
    zombie = world.worker()
    world.enqueue(max_retries=0)
    world.pump()
    task = zombie.take()
    zombie.suspend()
    heir = world.worker()
    world.advance(2.5 * LEASE)
    heirs = heir.take()
    zombie.fail(task)
    zombie.resume()
    heir.succeed(heirs)
    world.pump()
    assert heir.machine.counts["completed"] == 1
    assert (len(world.dead()) == 1) is broken, "both dead and completed"


def test_fence_a_beat_that_was_not_asked_about_takes_entries_back(world, without):
    broken = without("fence_holds", lambda taken_under, current: True)
    zombie = world.worker()
    world.enqueue()
    world.pump()
    zombie.take()
    zombie.suspend()
    heir = world.worker()
    world.advance(2.5 * LEASE)
    heir.take()
    zombie.settle.frozen = False
    zombie.settle.lose()  # its connection broke meanwhile: it watches the new fence from the start
    world.advance(1)
    owner = set(world.pending().values())
    assert (owner == {zombie.machine.consumer}) is broken
    assert (owner == {heir.machine.consumer}) is not broken


def test_a_fence_holds_only_while_it_is_known_and_the_same():
    assert safeguards.fence_holds(b"a", b"a")
    assert safeguards.fence_holds(None, None)
    assert not safeguards.fence_holds(b"a", b"b")
    assert not safeguards.fence_holds(None, b"b")
    assert not safeguards.fence_holds(UNKNOWN, UNKNOWN)


# ---- self-invalidation ------------------------------------------------------------------------------


def test_self_invalidation_a_late_transaction_of_ones_own_aborts(world, without):
    broken = without("self_invalidate", lambda fence, token: [])
    worker = world.worker()
    world.enqueue(max_retries=3)
    world.pump()
    worker.fail(worker.take())
    worker.read.frozen = True
    worker.settle.until("EXEC")
    worker.settle.lose(late=True)
    worker.settle.held = True
    world.advance(0.2)
    worker.settle.until("XPENDING")
    worker.settle.deliver()  # it is still ours: so, surely, the transaction was not applied
    worker.settle.arrive_late()
    worker.settle.release()
    world.advance(1)
    assert attempts(world) == ([b"1", b"1"] if broken else [b"1"])


# ---- marker -----------------------------------------------------------------------------------------


def publishing(world):
    client = world.client()
    client.enqueue(b"first")
    world.pump()
    submission = client.enqueue(b"second")
    client.publish.until("XADD")
    return client, submission


@pytest.mark.parametrize("part", ["record_batch", "applied_batch"])
def test_marker_a_batch_whose_reply_was_lost_is_not_sent_again(world, without, part):
    replacement = {"record_batch": lambda marker, seq: [], "applied_batch": lambda stored: 0}[part]
    broken = without(part, replacement)
    client, submission = publishing(world)
    client.publish.execute()
    client.publish.lose()
    client.publish.held = False
    world.advance(1)
    assert ids(world).count(submission.id) == (2 if broken else 1)


def test_marker_watch_a_late_batch_of_a_broken_connection_aborts(world, without):
    broken = without("watch_marker", lambda marker: [("PING",)])
    client, submission = publishing(world)
    client.publish.lose(late=True)
    client.publish.held = False
    world.advance(1)
    client.publish.arrive_late()
    world.pump()
    assert ids(world).count(submission.id) == (2 if broken else 1)


@pytest.mark.parametrize(("stored", "number"), [(b"7", 7), (None, 0), (3, 0)])
def test_the_last_applied_batch(stored, number):
    assert safeguards.applied_batch(stored) == number


# ---- own-pel-first ----------------------------------------------------------------------------------


def test_own_pel_first_an_entry_whose_reply_was_lost_runs_at_once(world, without):
    broken = without("first_history_cursor", lambda: None)
    worker = world.worker()
    worker.read.held = True
    world.enqueue()
    worker.read.execute()
    worker.read.lose()
    worker.read.held = False
    world.advance(LEASE / 2)
    assert (worker.deliveries == []) is broken


# ---- grace ------------------------------------------------------------------------------------------


def test_grace_after_an_outage_live_tasks_stay_with_their_owners(world, without):
    broken = without("grace_is_over", lambda contact_since, now, lease: True)
    owner, other = world.worker(concurrency=1), world.worker(concurrency=1)
    world.enqueue()
    world.pump()
    if other.deliveries:
        owner, other = other, owner
    owner.take()
    for wire in (*owner.wires, *other.wires):
        wire.lose()
    world.available = False
    world.advance(3 * LEASE)
    world.available = True
    owner.suspend()  # it is the last to get its connection back
    world.advance(3)
    owner.resume()
    world.advance(1)
    assert (set(world.pending().values()) == {other.machine.consumer}) is broken
    assert owner.machine.counts["lost"] == (1 if broken else 0)


@pytest.mark.parametrize(("waited", "over"), [(0.0, False), (9.9, False), (10.0, True), (60.0, True)])
def test_grace_lasts_one_lease(waited, over):
    assert safeguards.grace_is_over(100.0, 100.0 + waited, 10.0) is over


# ---- moves-token ------------------------------------------------------------------------------------


def test_moves_token_of_two_movers_one_commits(world, without):
    broken = without("watch_moves", lambda moves: ("PING",))
    movers = [world.worker(start=False) for _ in range(2)]
    for worker in movers:
        worker.read.frozen = True
    world.pump()
    world.call("ZADD", KEYS.schedule, world.server_ms() + 500, "a")
    world.call("HSET", KEYS.scheduled, "a", pack_fields(encode_task(Task("a", "q", "c", b"data"))))
    for worker in movers:
        worker.control._hold_at = "ZREM"
    world.advance(4)
    for worker in movers:
        worker.control.release()
    assert len(world.stream()) == (2 if broken else 1)


# ---- sweep-compare ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("safeguard", "command", "replacement"),
    [
        ("watch_receivers", "ZREM", lambda receivers: ("PING",)),
        ("still_silent", "ZSCORE", lambda score, now: True),
    ],
)
def test_sweep_compare_a_client_that_beats_at_the_last_moment_is_kept(
    world, without, safeguard, command, replacement
):
    """After the set is watched, or before."""
    broken = without(safeguard, replacement)
    name = "{streamfleet:q}slow"
    world.call("ZADD", KEYS.receivers, 1, name)
    world.call("XGROUP", "CREATE", receiver_key(name), "streamfleet-client", "0", "MKSTREAM")
    worker = world.worker(sweep_interval=4, client_timeout=30)
    worker.control._hold_at = command
    world.advance(40)
    assert worker.control.held
    world.call("ZADD", KEYS.receivers, 2, name)
    worker.control.release()
    assert world.call("EXISTS", receiver_key(name)) == (0 if broken else 1)


# ---- notices ----------------------------------------------------------------------------------------


def test_first_notice_wins(world, without):
    broken = without("notice_counts", lambda already_terminal: True)
    client = world.client()
    submission = client.enqueue(tracked=True)
    world.pump()
    receiver = receiver_key(next(iter(client.machine.lanes.values())).client_id)
    for kind in (NoticeType.COMPLETED, NoticeType.ERROR):
        world.call("XADD", receiver, "*", *encode_notification(Notification(submission.id, kind)))
    world.pump()
    assert submission.status is (Status.FAILED if broken else Status.COMPLETED)


def test_nomkstream_a_notice_to_a_client_that_has_gone_leaves_nothing(world, without):
    broken = without("notice_options", lambda: ())
    worker = world.worker()
    world.enqueue(notify=True, client_id="gone")
    world.pump()
    worker.succeed(worker.take())
    world.pump()
    assert world.call("EXISTS", receiver_key("gone")) == (1 if broken else 0)


def test_every_safeguard_is_taken_away_here():
    """A safeguard without a name in the tests above is one that nobody would miss."""
    source = Path(__file__).read_text(encoding="utf-8")
    names = [
        name
        for name, value in vars(safeguards).items()
        if callable(value) and getattr(value, "__module__", "") == safeguards.__name__ and name[0] != "_"
    ]
    assert len(names) >= 12
    for name in names:
        assert f'"{name}"' in source, name
