"""What a server without memory still takes, and what of it is known afterwards."""

import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.pressure import LEAN_PAUSE, Memory, Pressure, bare_commands, bare_replies, needs_memory
from streamfleet_core.state import RELEASED_IDLE_MS, Delivery, Phase, QueueState, Verdict
from streamfleet_core.wire import Task

FULL = "OOM command not allowed when used memory > 'maxmemory'."
KEYS = queue_keys("q")
QUEUE = QueueState(KEYS, 0.0)
ERROR = ServerError("READONLY a replica")


@pytest.fixture
def world(world):
    """With the group in place: creating it moves the fence, which is another file's subject."""
    for queue in ("q", "a", "b"):
        world.call("XGROUP", "CREATE", queue_keys(queue).stream, GROUP, "0", "MKSTREAM")
    return world


def full_for_new_data(world):
    """As Redis since 7.0: what adds nothing goes through."""
    return world.refuse(FULL, "XADD", "ZADD", "HSET")


def full_for_transactions(world):
    """As Redis before 7.0: everything that writes is refused within MULTI, and what adds, everywhere."""

    def denial(command):
        name = command[0]
        if name in ("XADD", "ZADD", "HSET") or (world.in_multi and name in ("XACK", "XDEL", "XCLAIM")):
            return FULL
        return None

    world.denials.append(denial)
    return lambda: world.denials.remove(denial)


def delivery(entry=b"5-0", *, notify=False, phase=Phase.SETTLING, verdict=Verdict.COMPLETED):
    made = Delivery(QUEUE, entry, Task("t", "q", "c", b"", notify=notify), [], b"fence", 0.0)
    made.phase, made.verdict = phase, verdict
    return made


def test_it_rises_twice_and_passes_with_time():
    pressure = Pressure()
    assert pressure.memory is Memory.ENOUGH
    assert pressure.rise(5.0)
    assert (pressure.memory, pressure.until) == (Memory.LEAN, 5.0 + LEAN_PAUSE)
    assert pressure.rise(5.5)
    assert (pressure.memory, pressure.until) == (Memory.BARE, 5.5 + LEAN_PAUSE)
    assert not pressure.rise(5.7), "nothing is left that could be left out"
    pressure.relax(5.4 + LEAN_PAUSE)
    assert pressure.memory is Memory.BARE
    pressure.relax(5.5 + LEAN_PAUSE)
    assert pressure.memory is Memory.ENOUGH


@pytest.mark.parametrize(
    ("how", "needs"),
    [
        ({}, False),
        ({"notify": True}, True),
        ({"verdict": Verdict.RETRY}, True),
        ({"verdict": Verdict.DEAD}, True),
        ({"verdict": Verdict.EXPIRED}, False),
        ({"verdict": Verdict.RETRY, "phase": Phase.RELEASING}, False),
        ({"notify": True, "phase": Phase.RUNNING}, False),
    ],
)
def test_what_needs_memory(how, needs):
    assert needs_memory(delivery(**how)) is needs


def test_what_is_sent_for_each_entry():
    done, unstarted, started, running = (delivery(b"%d-0" % number) for number in range(4))
    started.ran = True
    unstarted.deliveries = started.deliveries = 3
    phases = [Phase.SETTLING, Phase.RELEASING, Phase.RELEASING, Phase.RUNNING]
    rows = list(zip((done, unstarted, started, running), phases, strict=True))
    back = ("XCLAIM", KEYS.stream, GROUP, b"me", 0)
    assert bare_commands(rows, b"me", 1250) == [
        ("XDEL", KEYS.stream, b"0-0"),
        ("XACK", KEYS.stream, GROUP, b"0-0"),
        (*back, b"1-0", "IDLE", RELEASED_IDLE_MS, "RETRYCOUNT", 2, "JUSTID"),
        (*back, b"2-0", "IDLE", RELEASED_IDLE_MS, "RETRYCOUNT", 3, "JUSTID"),
        ("XCLAIM", KEYS.stream, GROUP, b"me", 1250, b"3-0", "JUSTID"),
    ]


@pytest.mark.parametrize(("deleted", "acknowledged"), [(ERROR, 1), (1, ERROR), (ERROR, ERROR)])
def test_an_entry_is_ended_only_when_it_was_deleted_and_acknowledged(deleted, acknowledged):
    rows = [(delivery(), Phase.SETTLING), (delivery(), Phase.RUNNING), (delivery(), Phase.SETTLING)]
    replies = [deleted, acknowledged, [b"6-0"], 1, 0, b"PONG"]
    assert bare_replies(rows, replies) == [ERROR, [b"6-0"], 0]


# ---- a settling link without memory -----------------------------------------------------------------


def test_what_needs_no_memory_goes_first_while_there_is_none(world):
    worker = world.worker(concurrency=3)
    fails, works, tracked = worker.start(3)
    tracked.task.notify = True
    end = full_for_new_data(world)
    worker.fail(fails)
    worker.succeed(tracked)
    worker.succeed(works)
    world.advance(0.5)
    assert worker.machine.lanes[0].settler._pressure.memory is Memory.LEAN
    assert works.phase is Phase.SETTLED
    assert fails.phase is tracked.phase is Phase.SETTLING
    (event,) = worker.events(EventKind.BACKING_OFF)
    assert event.text == f"settle: {FULL}"
    assert event.data == {"role": "settle"}
    world.advance(3)
    assert worker.machine.refusal is None
    assert worker.machine.lanes[0].settler.deadline() <= world.now + LEAN_PAUSE
    end()
    world.advance(2 * LEAN_PAUSE)
    assert fails.phase is tracked.phase is Phase.SETTLED
    assert [entry[b"retries"] for entry in world.stream()] == [b"1"]


def test_a_full_server_of_old_can_be_drained(world):
    worker = world.worker(concurrency=4)
    fails, *work = worker.start(4)
    end = full_for_transactions(world)
    worker.fail(fails)
    for task in work:
        worker.succeed(task)
    world.advance(0.5)
    assert [task.phase for task in work] == [Phase.SETTLED] * 3
    assert fails.phase is Phase.SETTLING
    assert len(world.stream()) == 1
    assert list(world.pending()) == [fails.entry_id]
    end()
    world.advance(3)
    assert fails.phase is Phase.SETTLED
    assert [entry[b"retries"] for entry in world.stream()] == [b"1"]


def test_entries_are_deleted_before_they_are_acknowledged(world):
    worker = world.worker()
    (task,) = worker.start()
    full_for_transactions(world)
    worker.succeed(task)
    world.pump()
    bare = next(exchange for exchange in worker.settle.sent if exchange[-1] == ("PING",))
    assert [command[0] for command in bare] == ["XDEL", "XACK", "PING"]
    position = worker.settle.sent.index(bare)
    assert worker.settle.sent[position - 1][0][0] == "XPENDING", "asked for right before"


@pytest.mark.parametrize("idle_ms", [0, 20_000])
def test_without_memory_too_nothing_is_ended_or_renewed_that_others_own(world, idle_ms):
    worker = world.worker(concurrency=2)
    mine, theirs = worker.start(2)
    full_for_transactions(world)
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, theirs.entry_id, "IDLE", idle_ms)
    worker.succeed(mine)
    worker.succeed(theirs)
    world.advance(1)
    assert mine.phase is Phase.SETTLED
    assert theirs.phase is Phase.LOST
    assert world.pending() == {theirs.entry_id: b"other"}
    assert len(world.stream()) == 1


def test_without_memory_nothing_is_ended_whose_owner_the_server_did_not_tell(world):
    worker = world.worker(concurrency=2)
    mine, theirs = worker.start(2)
    full_for_transactions(world)
    worker.succeed(mine)
    worker.succeed(theirs)
    flight = worker.settle.until("XPENDING")
    worker.settle.execute()
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, theirs.entry_id)
    worker.settle.deliver([flight.replies[0], ServerError("BUSY Redis is busy running a script")])
    worker.settle.release()
    world.advance(1)
    assert mine.phase is Phase.SETTLED
    assert theirs.phase is Phase.LOST
    assert world.pending() == {theirs.entry_id: b"other"}


def test_beats_go_on_without_memory(world):
    worker = world.worker(lease=8)
    (task,) = worker.start()
    full_for_transactions(world)
    world.advance(30)
    assert task.phase is Phase.RUNNING
    assert not task.cancelled
    assert world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 1)[0][2] <= 4000
    assert 14 <= len([exchange for exchange in worker.settle.sent if exchange[-1] == ("PING",)]) <= 15


def test_without_memory_a_beat_does_not_take_back_what_others_have_just_claimed(world):
    worker = world.worker(lease=8)
    (task,) = worker.start()
    full_for_transactions(world)
    flight = worker.settle.hold_at("PING")
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, task.entry_id)
    worker.settle.release()
    assert world.pending() == {task.entry_id: b"other"}
    assert flight.commands[0][4:6] == (1000, task.entry_id), "idle for an eighth of the lease at least"
    world.advance(3)
    assert task.phase is Phase.LOST


def test_a_connection_lost_while_ending_entries_one_by_one(world):
    worker = world.worker(concurrency=2, lease=8)
    done, running = worker.start(2)
    world.advance(1.9)
    full_for_transactions(world)
    worker.succeed(done)
    world.pump()
    settled = done.phase
    assert settled is Phase.SETTLED
    (again,) = worker.start()
    worker.succeed(again)
    worker.settle.until("PING")
    worker.settle.execute()
    worker.settle.lose()
    assert again.maybe_applied
    worker.settle.held = False
    world.advance(2)
    assert again.phase is Phase.SETTLED
    assert running.phase is Phase.RUNNING


def test_an_ending_that_did_not_leave_is_not_taken_for_applied(world):
    worker = world.worker()
    (task,) = worker.start()
    full_for_transactions(world)
    worker.succeed(task)
    worker.settle.until("PING")
    worker.settle.lose(unknown=False)
    world.call("XDEL", KEYS.stream, task.entry_id)
    world.call("XACK", KEYS.stream, GROUP, task.entry_id)
    worker.settle.held = False
    world.advance(2)
    assert task.phase is Phase.LOST, "others have ended it"


def test_an_error_while_ending_entries_one_by_one(world):
    worker = world.worker()
    (task,) = worker.start()
    full_for_transactions(world)
    end = world.refuse("READONLY a replica", "XDEL", "XACK")
    worker.succeed(task)
    world.advance(0.5)
    assert task.phase is Phase.SETTLING
    end()
    world.advance(3)
    assert task.phase is Phase.SETTLED


def test_a_server_that_takes_nothing_at_all_is_asked_ever_more_rarely(world):
    """Though it answers the question before each attempt."""
    worker = world.worker()
    (task,) = worker.start()
    end = world.refuse(FULL, "XACK", "XDEL", "XCLAIM")
    worker.succeed(task)
    world.advance(3)
    assert task.phase is Phase.SETTLING
    assert worker.events(EventKind.BACKING_OFF)[-1].text == f"settle: {FULL}"
    assert len(worker.settle.sent) < 25
    end()
    world.advance(5)
    assert task.phase is Phase.SETTLED


def test_without_memory_an_acknowledgement_that_fails_is_repeated(world):
    worker = world.worker()
    (task,) = worker.start()
    full_for_transactions(world)
    world.refuse("LOADING the dataset", "XACK", times=1)
    worker.succeed(task)
    world.advance(3)
    assert task.phase is Phase.SETTLED
    assert world.pending() == {}


def test_a_full_server_of_old_lets_a_worker_leave(world):
    worker = world.worker(concurrency=2)
    world.enqueue("a")
    world.enqueue("b")
    world.pump()
    full_for_transactions(world)
    worker.stop()
    world.advance(3)
    assert worker.ended
    assert worker.machine.counts["released"] == 2
    assert len(world.stream()) == 2
    rows = world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)
    assert [count for _, _, _, count in rows] == [0, 0], "neither was delivered to a handler"


def beats(worker):
    """How many exchanges renewed something."""
    return sum(any(command[0] == "XCLAIM" for command in exchange) for exchange in worker.settle.sent)


@pytest.mark.parametrize("full", [False, True])
def test_a_beat_that_took_long_is_not_repeated_at_once(world, full):
    worker = world.worker(lease=8)
    worker.start()
    if full:
        full_for_transactions(world)
    worker.settle.hold_at("PING" if full else "XCLAIM")
    world.advance(1.5)
    sent = beats(worker)
    worker.settle.release()
    world.advance(0.4)
    assert beats(worker) == sent


def test_what_the_server_refuses_outside_of_transactions_is_named(world):
    worker = world.worker()
    (task,) = worker.start()
    full_for_transactions(world)
    worker.succeed(task)
    worker.settle.until("PING")
    world.refuse("NOPERM this user has no permissions to access one of the keys used as arguments", "XDEL")
    worker.settle.release()
    assert f"the key '{KEYS.stream.decode()}' that XDEL uses" in str(worker.machine.refusal)
