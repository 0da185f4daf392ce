import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import PermissionMissing, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.leaving import PAGE as FAREWELL_PAGE
from streamfleet_core.link import FOREVER
from streamfleet_core.pressure import LEAN_PAUSE, Memory
from streamfleet_core.safeguards import UNKNOWN
from streamfleet_core.settling import BATCH, VERIFY_BATCH
from streamfleet_core.state import RELEASED_IDLE_MS, Phase
from streamfleet_core.wire import decode_notification, unpack_fields

KEYS = queue_keys("q")
FULL = "OOM command not allowed when used memory > 'maxmemory'."


@pytest.fixture
def world(world):
    """With the group in place: creating it moves the fence, which is another file's subject."""
    for queue in ("q", "a", "b"):
        world.call("XGROUP", "CREATE", queue_keys(queue).stream, GROUP, "0", "MKSTREAM")
    return world


NO_TRANSACTION = [("MULTI", "NOPERM"), ("EXEC", "EXECABORT Transaction discarded because of: NOPERM")]


def transactions(worker):
    return [exchange for exchange in worker.settle.sent if worker.world.transacts(exchange)]


def commands(exchange, name):
    return [command for command in exchange if command[0] == name]


def start(world, worker, count=1, **attributes):
    """Entries that handlers work on."""
    for n in range(count):
        world.enqueue(f"t{n}", **attributes)
    world.pump()
    return [worker.take() for _ in range(count)]


def notices(world, client_id="c"):
    reply = world.call("XRANGE", receiver_key(client_id), "-", "+")
    return [decode_notification(fields) for _, fields in reply]


def settler(worker):
    return worker.machine.lanes[0].settler


# ---- outcomes ---------------------------------------------------------------------------------------


def test_a_completed_task_leaves_no_trace(world):
    worker = world.worker()
    (task,) = start(world, worker)
    worker.succeed(task)
    world.pump()
    assert world.stream() == []
    assert world.pending() == {}
    assert task.phase is Phase.SETTLED
    assert worker.machine.counts["completed"] == 1
    assert worker.machine.idle


def test_what_gathers_while_one_transaction_is_in_flight_leaves_in_the_next(world):
    worker = world.worker(concurrency=10)
    tasks = start(world, worker, 10)
    worker.succeed(tasks[0])
    worker.settle.until("EXEC")
    for task in tasks[1:]:
        worker.succeed(task)
    worker.settle.release()
    first, second = transactions(worker)[-2:]
    assert len(commands(first, "XACK")[0]) == 3 + 1
    assert len(commands(second, "XACK")[0]) == 3 + 9
    assert len(commands(second, "XDEL")) == 1
    assert worker.machine.counts["completed"] == 10


def test_each_transaction_watches_before_it_reads_in_the_same_write(world):
    worker = world.worker()
    (task,) = start(world, worker)
    worker.succeed(task)
    world.pump()
    tail = transactions(worker)[-1][-3:]
    assert tail == [("EXEC",), ("WATCH", KEYS.fence), ("GET", KEYS.fence)]


def test_a_failed_task_is_put_back_with_one_more_attempt_counted(world):
    worker = world.worker()
    (task,) = start(world, worker, max_retries=2)
    worker.read.frozen = True  # the copy is to stay where it can be seen
    worker.fail(task, "no paper")
    world.pump()
    (copy,) = world.stream()
    assert copy[b"retries"] == b"1"
    assert copy[b"last_error"] == b"no paper"
    assert copy[b"data"] == b"data"


def test_a_delayed_retry_is_in_the_schedule_before_its_entry_ends(world):
    worker = world.worker()
    (task,) = start(world, worker, max_retries=2, retry_delay_ms=5000)
    worker.fail(task)
    world.pump()
    assert world.stream() == []
    assert world.call("ZRANGE", KEYS.schedule, 0, -1, "WITHSCORES") == [b"t0", b"%d" % (world.server_ms() + 5000)]
    fields = unpack_fields(world.call("HGET", KEYS.scheduled, "t0"))
    assert dict(zip(fields[::2], fields[1::2], strict=True))[b"retries"] == b"1"
    (event,) = worker.events(EventKind.RETRIED)
    assert event.data["delay_ms"] == 5000
    world.advance(5.1)
    assert worker.take().task.attempt == 2


def test_a_task_out_of_retries_becomes_a_dead_letter_with_its_reasons(world):
    worker = world.worker()
    (task,) = start(world, worker, max_retries=0)
    worker.fail(task, "no paper")
    world.pump()
    (letter,) = world.dead()
    assert letter[b"id"] == b"t0"
    assert letter[b"data"] == b"data"
    assert letter[b"last_error"] == b"no paper"
    assert letter[b"traceback"] == "Traceback…".encode()
    assert b"no retries allowed" in letter[b"dead_reason"]
    assert letter[b"dead_ms"] == b"%d" % world.server_ms()
    assert world.stream() == []
    assert worker.events(EventKind.DEAD_LETTERED)


@pytest.mark.parametrize(("outcome", "kind"), [("ok", "COMPLETED"), ("dead", "ERROR"), ("late", "EXPIRED")])
def test_the_client_is_told_in_the_same_transaction(world, outcome, kind):
    world.call("XGROUP", "CREATE", receiver_key("c"), "streamfleet-client", "0", "MKSTREAM")
    worker = world.worker()
    expires = world.server_ms() + 1000 if outcome == "late" else 0
    world.enqueue("t0", max_retries=0, notify=True, expires_ms=expires)
    world.pump()
    if outcome == "late":
        world.advance(1)
        assert worker.machine.take(world.now) is None
    else:
        task = worker.take()
        worker.succeed(task, b"42") if outcome == "ok" else worker.fail(task, "no paper")
    world.pump()
    (notice,) = notices(world)
    assert notice.type.name == kind
    assert notice.task_id == "t0"
    assert notice.extra == ({b"result": b"42"} if outcome == "ok" else {})
    assert ("no paper" in notice.error) is (outcome == "dead")
    last = transactions(worker)[-1]
    assert commands(last, "XADD")[-1][1] == receiver_key("c")
    assert commands(last, "XACK")


def test_nobody_is_told_of_a_retry(world):
    world.call("XGROUP", "CREATE", receiver_key("c"), "streamfleet-client", "0", "MKSTREAM")
    worker = world.worker()
    (task,) = start(world, worker, notify=True)
    worker.fail(task)
    world.pump()
    assert notices(world) == []


def test_what_became_of_a_task_is_told(world):
    worker = world.worker(concurrency=2)
    fails, dies = start(world, worker, 2)
    worker.fail(fails, "no paper", retry_in=2)
    worker.fail(dies, "no ink", final=True)
    late = world.enqueue("late", expires_ms=world.server_ms())
    world.pump()
    assert worker.machine.take(world.now) is None
    world.pump()
    told = {event.kind: (event.text, event.data) for event in worker.machine.events}
    ids = [entry.decode() for entry in (fails.entry_id, dies.entry_id, late)]
    assert told[EventKind.RETRIED] == (
        "attempt failed, next in 2000 ms: no paper",
        {"queue": "q", "entry": ids[0], "task": "t0", "delay_ms": 2000},
    )
    assert told[EventKind.DEAD_LETTERED] == (
        "dead-lettered: not to be retried",
        {"queue": "q", "entry": ids[1], "task": "t1", "error": "no ink"},
    )
    assert told[EventKind.EXPIRED] == (
        "expired before it was started",
        {"queue": "q", "entry": ids[2], "task": "late"},
    )


def test_what_happens_again_is_counted_again(world):
    worker = world.worker(concurrency=3)
    for token in ("one", "two"):
        dies, stolen = start(world, worker, 2, max_retries=0)
        world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, stolen.entry_id)
        world.call("SET", KEYS.fence, token)
        worker.fail(dies)
        worker.fail(stolen)
        world.pump()
    start(world, worker)
    world.enqueue("unstarted")
    world.pump()
    worker.stop(drain=1)
    world.advance(2)
    counts = {name: worker.machine.counts[name] for name in ("aborted", "dead", "lost", "released")}
    assert counts == {"aborted": 2, "dead": 2, "lost": 2, "released": 2}


def test_a_workers_own_retry_is_looked_for_when_it_is_due_and_not_before(world):
    worker = world.worker(lease=400, poll_interval=100)
    (task,) = start(world, worker)

    def looks():
        return [c for exchange in worker.control.sent for c in exchange if c[:2] == ("ZRANGE", KEYS.schedule)]

    before = len(looks())
    worker.fail(task, retry_in=5)
    world.advance(4.999)
    assert len(looks()) == before
    world.advance(0.01)
    assert worker.take().task.attempt == 2


def test_more_outcomes_than_one_transaction_holds(world):
    worker = world.worker(concurrency=BATCH + 5, max_prefetch=BATCH + 5)
    for task in start(world, worker, BATCH + 5):
        worker.succeed(task)
    world.pump()
    assert [len(commands(t, "XDEL")[0]) - 2 for t in transactions(worker)[-2:]] == [BATCH, 5]
    assert worker.machine.idle


def test_queues_of_one_slot_settle_in_one_transaction(world):
    worker = world.worker("a", "b")
    world.enqueue("one", "a")
    world.enqueue("two", "b")
    world.pump()
    for task in [worker.take(), worker.take()]:
        worker.succeed(task)
    world.pump()
    last = transactions(worker)[-1]
    assert {command[1] for command in commands(last, "XACK")} == {queue_keys(n).stream for n in "ab"}
    assert last[-3] == ("WATCH", queue_keys("a").fence, queue_keys("b").fence)


# ---- fence ------------------------------------------------------------------------------------------


def reclaimed_from(world, count=1, **attributes):
    """A suspended worker with running tasks, and another one that has taken them over."""
    zombie = world.worker(concurrency=count)
    tasks = start(world, zombie, count, **attributes)
    zombie.suspend()
    heir = world.worker(concurrency=count)
    world.advance(25)
    assert len(heir.deliveries) == count
    return zombie, tasks, heir


@pytest.mark.parametrize("outcome", ["completes", "retries", "dies"])
def test_a_worker_that_wakes_up_changes_nothing_that_others_own(world, outcome):
    zombie, (task,), heir = reclaimed_from(world, max_retries=0 if outcome == "dies" else 3)
    zombie.succeed(task) if outcome == "completes" else zombie.fail(task)
    zombie.resume()
    assert task.phase is Phase.LOST
    (entry,) = world.stream()
    assert entry[b"retries"] == b"0"
    assert world.dead() == []
    assert set(world.pending().values()) == {heir.machine.consumer}
    (event,) = zombie.events(EventKind.OWNERSHIP_LOST)
    assert heir.machine.consumer.decode() in event.text
    assert "was dropped" in event.text
    heir.succeed(heir.take())
    world.pump()
    assert world.stream() == []
    assert zombie.machine.counts["completed"] + heir.machine.counts["completed"] == 1


def test_a_suspended_workers_beat_does_not_take_entries_back(world):
    zombie, (task,), heir = reclaimed_from(world)
    zombie.resume()
    world.advance(5)
    assert set(world.pending().values()) == {heir.machine.consumer}
    assert task.phase is Phase.LOST
    assert task.cancelled == "others own the task now"


@pytest.mark.parametrize("number", [0, 3, 9])
def test_of_ten_outcomes_the_one_that_others_own_is_dropped(world, number):
    worker = world.worker(concurrency=10)
    tasks = start(world, worker, 10)
    stolen = tasks[number]
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, stolen.entry_id)
    world.call("SET", KEYS.fence, "moved")
    for task in tasks:
        worker.succeed(task)
    world.pump()
    assert worker.machine.counts["completed"] == 9
    assert worker.machine.counts["lost"] == 1
    assert world.pending() == {stolen.entry_id: b"other"}
    assert worker.machine.idle


def test_after_a_reclaim_elsewhere_what_is_ours_is_asked_for_once_and_settled(world):
    worker = world.worker(concurrency=3)
    tasks = start(world, worker, 3)
    world.call("SET", KEYS.fence, "somebody else was reclaimed")
    for task in tasks:
        worker.succeed(task)
    world.pump()
    assert worker.machine.counts["aborted"] == 1
    assert worker.machine.counts["verified"] == 3
    assert worker.machine.counts["completed"] == 3


def test_owners_of_many_entries_are_asked_for_in_bounded_exchanges(world):
    count = VERIFY_BATCH + 10
    worker = world.worker(concurrency=count)
    tasks = start(world, worker, count)
    world.call("SET", KEYS.fence, "moved")
    for task in tasks:
        worker.succeed(task)
    world.pump()
    asked = [len(exchange) for exchange in worker.settle.sent if exchange[0][0] == "XPENDING"]
    assert asked == [VERIFY_BATCH, 10]
    assert worker.machine.counts["completed"] == count


def test_an_entry_that_others_have_ended_is_dropped(world):
    worker = world.worker()
    (task,) = start(world, worker)
    world.call("XACK", KEYS.stream, GROUP, task.entry_id)
    world.call("XDEL", KEYS.stream, task.entry_id)
    world.call("SET", KEYS.fence, "moved")
    worker.succeed(task)
    world.pump()
    assert task.phase is Phase.LOST
    assert "gone" in worker.events(EventKind.OWNERSHIP_LOST)[0].text


def test_a_group_that_is_gone_when_owners_are_asked_for(world):
    worker = world.worker()
    (task,) = start(world, worker)
    worker.read.held = worker.control.held = True
    world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)
    world.call("SET", KEYS.fence, "moved")
    worker.succeed(task)
    worker.settle.turn()
    world.pump()
    assert task.phase is Phase.LOST
    assert worker.machine.refusal is None
    worker.control.held = False
    worker.read.release()
    assert worker.take().task.id == "t0", "delivered again"


def test_all_entries_of_a_group_that_is_gone_are_given_up_together(world):
    worker = world.worker(concurrency=3)
    tasks = start(world, worker, 3)
    worker.read.held = worker.control.held = True
    world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)
    world.call("SET", KEYS.fence, "moved")
    for task in tasks:
        worker.succeed(task)
    world.pump()
    assert [task.phase for task in tasks] == [Phase.LOST] * 3
    assert len([exchange for exchange in worker.settle.sent if exchange[0][0] == "XPENDING"]) == 1


def test_asking_for_owners_is_repeated_when_the_server_cannot_answer(world):
    worker = world.worker()
    (task,) = start(world, worker)
    world.call("SET", KEYS.fence, "moved")
    worker.succeed(task)
    world.refuse("LOADING Redis is loading the dataset", "XPENDING", times=3)
    world.pump()
    assert task.phase is Phase.SETTLING
    world.advance(2)
    assert task.phase is Phase.SETTLED


# ---- unknown outcomes -------------------------------------------------------------------------------


def in_flight(world, *, outcome="retries"):
    worker = world.worker()
    (task,) = start(world, worker, max_retries=1)
    worker.succeed(task) if outcome == "completes" else worker.fail(task)
    worker.read.frozen = True  # the retry is not to be taken
    worker.settle.until("EXEC")
    assert task.phase is Phase.COMMITTING
    return worker, task


def attempts(world):
    return [entry[b"retries"] for entry in world.stream()]


def test_the_reply_was_lost_but_the_settlement_was_applied(world):
    worker, task = in_flight(world)
    worker.settle.execute()
    worker.settle.lose()
    assert task.phase is Phase.SETTLING
    assert task.fence is UNKNOWN
    worker.settle.held = False
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]
    assert worker.machine.counts["retry"] == 1


def test_the_request_was_lost(world):
    worker, task = in_flight(world)
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]


def test_the_request_arrives_after_the_new_connection(world):
    worker, _task = in_flight(world)
    worker.settle.lose(late=True)
    worker.settle.held = False
    world.advance(1)
    assert attempts(world) == [b"1"]
    assert worker.settle.arrive_late()[-3] is None, "the late transaction aborts"
    world.pump()
    assert attempts(world) == [b"1"]


def test_the_request_arrives_between_invalidation_and_verification(world):
    worker, _task = in_flight(world)
    worker.settle.lose(late=True)
    world.advance(0.2)
    worker.settle.until("XPENDING")
    assert worker.settle.arrive_late()[-3] is None
    worker.settle.release()
    assert attempts(world) == [b"1"]


def test_a_request_that_did_not_leave_is_sent_again_once_the_entry_is_still_ours(world):
    worker, task = in_flight(world)
    worker.settle.lose(unknown=False)
    assert not task.maybe_applied
    worker.settle.held = False
    fence = world.value(KEYS.fence)
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]
    assert worker.machine.counts["verified"] == 1, "the new connection may lead to a server that has gone back"
    assert world.value(KEYS.fence) == fence, "nothing to invalidate"


def test_invalidation_is_repeated_until_it_is_confirmed(world):
    worker, task = in_flight(world)
    worker.settle.execute()
    worker.settle.lose()
    world.advance(0.2)
    worker.settle.until("SET")
    worker.settle.lose()
    world.advance(0.2)
    worker.settle.until("SET")
    worker.settle.release()
    world.advance(0.2)
    assert task.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]


def test_the_fences_of_all_queues_are_moved_whose_outcomes_are_unknown(world):
    worker = world.worker("a", "b")
    fences = [queue_keys(name).fence for name in "ab"]
    world.enqueue("one", "a")
    world.enqueue("two", "b")
    world.pump()
    for task in [worker.take(), worker.take()]:
        worker.succeed(task)
    worker.settle.until("EXEC")
    worker.settle.lose(late=True)
    worker.settle.release()
    world.advance(1)
    assert None not in [world.value(fence) for fence in fences]
    assert worker.settle.arrive_late()[-4] is None
    assert worker.machine.counts["completed"] == 2


def test_an_invalidation_that_is_refused_for_good_is_named(world):
    worker, _task = in_flight(world)
    worker.settle.lose()
    worker.settle.held = False
    world.refuse("ERR not today", "SET")
    world.advance(1)
    assert str(worker.machine.refusal) == "the server refuses SET. The server said: ERR not today"


def test_a_refused_invalidation_is_tried_again(world):
    worker, task = in_flight(world)
    worker.settle.lose()
    worker.settle.held = False
    end = world.refuse("READONLY You can't write against a read only replica.", "SET")
    world.advance(3)
    assert task.phase is Phase.SETTLING
    end()
    world.advance(2)
    assert task.phase is Phase.SETTLED


def test_an_unknown_outcome_of_an_entry_that_was_reclaimed_meanwhile(world):
    worker, task = in_flight(world)
    worker.settle.lose()
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, task.entry_id)
    world.call("SET", KEYS.fence, "moved")
    worker.settle.held = False
    world.advance(1)
    assert task.phase is Phase.LOST
    assert attempts(world) == [b"0"]


def test_a_connection_lost_while_owners_are_asked_for(world):
    worker = world.worker()
    (task,) = start(world, worker)
    world.call("SET", KEYS.fence, "moved")
    worker.succeed(task)
    worker.settle.until("XPENDING")
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert not task.maybe_applied


def test_a_connection_that_breaks_at_rest_takes_nothing_back(world):
    worker = world.worker()
    (first,) = start(world, worker)
    worker.succeed(first)
    world.pump()
    worker.settle.lose()
    (second,) = start(world, worker)
    worker.succeed(second)
    world.advance(1)
    assert first.phase is second.phase is Phase.SETTLED
    assert worker.machine.counts["completed"] == 2


def test_a_refused_transaction_is_known_not_to_have_been_applied(world):
    worker = world.worker()
    (task,) = start(world, worker)
    fence = world.value(KEYS.fence)
    world.refuse("NOREPLICAS Not enough good replicas to write.", "XACK", times=1)
    worker.succeed(task)
    world.advance(1)
    assert task.phase is Phase.SETTLED
    assert worker.machine.counts["verified"] == 0
    assert world.value(KEYS.fence) == fence, "moving it would make others' settlements abort"


# ---- beats ------------------------------------------------------------------------------------------


def beats(worker):
    return [c for exchange in worker.settle.sent for c in exchange if c[0] == "XCLAIM"]


def test_running_entries_are_renewed_each_quarter_of_the_lease(world):
    worker = world.worker(lease=8)
    (task,) = start(world, worker)
    world.advance(8)
    assert 3 <= len(beats(worker)) <= 4
    assert all(c[-1] == "JUSTID" and c[4:6] == (0, task.entry_id) for c in beats(worker))
    rows = world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)
    assert rows[0][2] <= 2000, "idle"
    assert rows[0][3] == 1, "deliveries"


def test_a_long_task_is_never_taken_over(world):
    worker, other = world.worker(), world.worker()
    world.enqueue()
    world.pump()
    owner = next(w for w in (worker, other) if w.deliveries)
    owner.take()
    world.advance(100)
    assert set(world.pending().values()) == {owner.machine.consumer}
    assert owner.deliveries[0].phase is Phase.RUNNING
    assert owner.deliveries[0].deliveries == 1


def test_young_entries_are_not_renewed(world):
    worker = world.worker(lease=8, block=0.25)
    world.advance(1.9)
    start(world, worker)
    world.advance(0.2)
    assert beats(worker) == []
    world.advance(2)
    assert len(beats(worker)) == 1


def test_an_entry_counts_from_when_the_read_was_sent_that_brought_it(world):
    worker = world.worker(lease=8, block=5)
    began = world.now
    world.advance(1.9)
    (task,) = start(world, worker)
    assert task.leased_from == began


def test_the_link_sleeps_while_entries_are_too_young(world):
    worker = world.worker(lease=8, block=0.25)
    world.advance(60)
    start(world, worker)
    worker.settle.link.kick()
    world.pump()
    assert worker.settle.wake_at > world.now


def test_an_idle_worker_does_not_beat(world):
    worker = world.worker()
    before = len(worker.settle.sent)
    world.advance(60)
    assert len(worker.settle.sent) == before
    assert settler(worker).deadline() == FOREVER


def test_a_running_entry_that_somebody_deleted_is_noticed_by_its_beat(world):
    worker = world.worker(lease=8)
    (task,) = start(world, worker)
    world.call("XACK", KEYS.stream, GROUP, task.entry_id)
    world.call("XDEL", KEYS.stream, task.entry_id)
    world.advance(4.5)
    assert task.phase is Phase.LOST
    assert task.cancelled == "others own the task now"
    assert worker.machine.running == 0


def test_beats_travel_with_outcomes(world):
    worker = world.worker(lease=8, concurrency=2)
    one, two = start(world, worker, 2)
    world.advance(1.9)
    worker.settle.held = True
    world.advance(0.2)
    worker.settle.held = False
    worker.succeed(one)
    world.pump()
    assert two.leased_from > 1001


@pytest.mark.parametrize("full", [False, True])
def test_a_beat_that_took_long_is_not_repeated_at_once(world, full):
    worker = world.worker(lease=8)
    start(world, worker)
    if full:
        full_for_transactions(world)
    worker.settle.hold_at("PING" if full else "XCLAIM")
    world.advance(1.5)
    sent = len(beats(worker))
    worker.settle.release()
    world.advance(0.4)
    assert len(beats(worker)) == sent


def test_beats_lost_with_their_connection_are_repeated_at_once(world):
    worker = world.worker(lease=8)
    (task,) = start(world, worker)
    world.advance(1.9)
    worker.settle.held = True
    world.advance(0.2)
    assert worker.settle.flight is not None
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1)
    assert task.leased_from > 1002.0


# ---- refusals ---------------------------------------------------------------------------------------


def test_a_right_that_is_missing_applies_nothing_and_stops_with_the_command(world):
    worker = world.worker()
    (task,) = start(world, worker)
    world.refuse("NOPERM User app has no permissions to run the 'xdel' command", "XDEL")
    worker.succeed(task)
    world.pump()
    assert isinstance(worker.machine.refusal, PermissionMissing)
    assert "XDEL" in str(worker.machine.refusal)
    assert len(world.stream()) == 1
    assert len(world.pending()) == 1
    assert task.phase is Phase.SETTLING
    assert worker.settle.ended


@pytest.mark.parametrize("line", ["READONLY a replica", "NOREPLICAS too few", "MISCONF disk", "TRYAGAIN slot"])
def test_what_may_pass_is_waited_for(world, line):
    worker = world.worker()
    (task,) = start(world, worker)
    end = world.refuse(line, "XACK")
    worker.succeed(task)
    world.advance(3)
    assert task.phase is Phase.SETTLING
    assert worker.events(EventKind.BACKING_OFF)
    assert worker.machine.refusal is None
    end()
    world.advance(2)
    assert task.phase is Phase.SETTLED


def test_a_cause_that_only_the_exec_reply_tells(world):
    worker = world.worker()
    (task,) = start(world, worker)
    worker.succeed(task)
    line = "EXECABORT Transaction discarded because of: NOREPLICAS Not enough good replicas to write."
    end = world.refuse(line, "EXEC", times=1)
    world.pump()
    assert worker.events(EventKind.BACKING_OFF)[0].text == "settle: NOREPLICAS Not enough good replicas to write."
    assert task.phase is Phase.SETTLING
    end()
    world.advance(1)
    assert task.phase is Phase.SETTLED


def test_a_fatal_cause_that_only_the_exec_reply_tells(world):
    worker = world.worker()
    (task,) = start(world, worker)
    worker.succeed(task)
    worker.settle.until("EXEC")
    replies = [
        b"OK",
        b"QUEUED",
        b"QUEUED",
        _error("EXECABORT Transaction discarded because of: NOPERM no"),
        b"OK",
        None,
    ]
    worker.settle.deliver(replies)
    assert isinstance(worker.machine.refusal, PermissionMissing)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("XPENDING", "ERR not today"),
        ("XACK", "ERR not today"),
        ("EXEC", "EXECABORT Transaction discarded because of: ERR not today"),
    ],
)
def test_what_the_server_refuses_is_named(world, name, line):
    worker = world.worker()
    (task,) = start(world, worker)
    if name == "XPENDING":
        world.call("SET", KEYS.fence, "moved")
    world.refuse(line, name)
    worker.succeed(task)
    world.pump()
    assert str(worker.machine.refusal) == f"the server refuses {name}. The server said: ERR not today"


def test_what_the_server_refuses_outside_of_transactions_is_named(world):
    worker = world.worker()
    (task,) = start(world, worker)
    full_for_transactions(world)
    worker.succeed(task)
    worker.settle.until("PING")
    world.refuse("NOPERM this user has no permissions to access one of the keys used as arguments", "XDEL")
    worker.settle.release()
    assert f"the key '{KEYS.stream.decode()}' that XDEL uses" in str(worker.machine.refusal)


def _error(line):

    return ServerError(line)


def test_a_watch_that_is_refused_is_tried_again(world):
    worker = world.worker(start=False)
    end = world.refuse("BUSY Redis is busy running a script", "WATCH")
    world.advance(2)
    assert not settler(worker)._armed
    end()
    world.advance(2)
    assert settler(worker)._armed


def test_a_watch_that_is_refused_after_a_settlement_is_tried_again(world):
    worker = world.worker(concurrency=2)
    first, second = start(world, worker, 2)
    world.refuse("BUSY Redis is busy running a script", "WATCH", times=1)
    worker.succeed(first)
    world.pump()
    assert first.phase is Phase.SETTLED
    worker.succeed(second)
    world.advance(1)
    assert second.phase is Phase.SETTLED


def test_a_fence_key_of_another_type_is_refused(world):
    worker = world.worker(start=False)
    worker.control.frozen = worker.read.frozen = True
    world.call("ZADD", KEYS.fence, 1, "x")
    world.pump()
    assert isinstance(worker.machine.refusal, WrongKeyType)
    assert f"the key '{KEYS.fence.decode()}'" in str(worker.machine.refusal)


def test_a_task_whose_dead_letter_cannot_be_written_goes_back_to_its_queue(world):
    worker = world.worker()
    (task,) = start(world, worker, max_retries=0)
    world.call("SET", KEYS.dead, "mine")
    worker.fail(task)
    worker.read.frozen = True
    world.pump()
    (back,) = world.stream()
    assert back[b"id"] == b"t0"
    assert back[b"retries"] == b"0"
    assert worker.machine.counts["rescued"] == 1
    assert worker.machine.counts["dead"] == 0
    assert not worker.events(EventKind.DEAD_LETTERED)
    assert worker.events(EventKind.RESCUED)
    assert isinstance(worker.machine.refusal, WrongKeyType)
    assert "dead" in str(worker.machine.refusal)
    assert worker.machine.failing_in_order
    worker.read.frozen = False
    world.pump()
    assert worker.ended, "it stops, because the next task would fare no better"


def test_each_task_that_goes_back_is_told_and_counted(world):
    worker = world.worker(concurrency=2)
    tasks = start(world, worker, 2, max_retries=0)
    world.call("SET", KEYS.dead, "mine")
    for task in tasks:
        worker.fail(task)
    world.pump()
    assert worker.machine.counts["rescued"] == 2
    events = worker.events(EventKind.RESCUED)
    assert [event.data["task"] for event in events] == ["t0", "t1"]
    assert all(event.text == f"put back into its queue: {worker.machine.refusal}" for event in events)


def test_a_rescue_is_repeated_until_it_is_accepted(world):
    worker = world.worker()
    (task,) = start(world, worker, max_retries=0)
    world.call("SET", KEYS.dead, "mine")
    worker.fail(task)
    worker.settle.until("EXEC")
    worker.settle.deliver()
    end = world.refuse(FULL, "XADD")
    worker.settle.held = False
    world.advance(2)
    assert world.stream() == []
    assert worker.events(EventKind.BACKING_OFF)[0].text == f"settle: {FULL}"
    worker.settle.held = True
    world.advance(2)
    assert worker.settle.flight.names == ["XADD"]
    worker.settle.lose()
    end()
    worker.settle.held = False
    world.advance(2)
    assert [entry[b"id"] for entry in world.stream()] == [b"t0"]
    assert worker.ended


def test_a_retry_whose_schedule_cannot_be_written_is_rescued_once(world):
    worker = world.worker()
    (task,) = start(world, worker, retry_delay_ms=1000)
    world.call("SET", KEYS.schedule, "mine")
    world.call("SET", KEYS.scheduled, "mine")
    worker.read.frozen = True
    worker.fail(task)
    world.pump()
    assert attempts(world) == [b"0"]


def test_a_notice_that_cannot_be_written_costs_nothing_but_itself(world):
    worker = world.worker()
    (task,) = start(world, worker, notify=True)
    world.call("SET", receiver_key("c"), "mine")
    worker.succeed(task)
    world.pump()
    assert task.phase is Phase.SETTLED
    assert world.stream() == []
    assert worker.machine.refusal is None
    assert "inside a transaction" in worker.events(EventKind.REFUSED)[0].text


# ---- no memory --------------------------------------------------------------------------------------


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


def test_what_needs_no_memory_goes_first_while_there_is_none(world):
    worker = world.worker(concurrency=3)
    fails, works, tracked = start(world, worker, 3)
    tracked.task.notify = True
    end = full_for_new_data(world)
    worker.fail(fails)
    worker.succeed(tracked)
    worker.succeed(works)
    world.advance(0.5)
    assert settler(worker)._pressure.memory is Memory.LEAN
    assert works.phase is Phase.SETTLED
    assert fails.phase is tracked.phase is Phase.SETTLING
    (event,) = worker.events(EventKind.BACKING_OFF)
    assert event.text == f"settle: {FULL}"
    assert event.data == {"role": "settle"}
    world.advance(3)
    assert worker.machine.refusal is None
    assert settler(worker).deadline() <= world.now + LEAN_PAUSE
    end()
    world.advance(2 * LEAN_PAUSE)
    assert fails.phase is tracked.phase is Phase.SETTLED
    assert attempts(world) == [b"1"]


def test_a_full_server_of_old_can_be_drained(world):
    worker = world.worker(concurrency=4)
    fails, *work = start(world, worker, 4)
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
    assert attempts(world) == [b"1"]


def test_entries_are_deleted_before_they_are_acknowledged(world):
    worker = world.worker()
    (task,) = start(world, worker)
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
    mine, theirs = start(world, worker, 2)
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
    mine, theirs = start(world, worker, 2)
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
    (task,) = start(world, worker)
    full_for_transactions(world)
    world.advance(30)
    assert task.phase is Phase.RUNNING
    assert not task.cancelled
    assert world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 1)[0][2] <= 4000
    assert 14 <= len([exchange for exchange in worker.settle.sent if exchange[-1] == ("PING",)]) <= 15


def test_without_memory_a_beat_does_not_take_back_what_others_have_just_claimed(world):
    worker = world.worker(lease=8)
    (task,) = start(world, worker)
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
    done, running = start(world, worker, 2)
    world.advance(1.9)
    full_for_transactions(world)
    worker.succeed(done)
    world.pump()
    settled = done.phase
    assert settled is Phase.SETTLED
    (again,) = start(world, worker)
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
    (task,) = start(world, worker)
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
    (task,) = start(world, worker)
    full_for_transactions(world)
    end = world.refuse("READONLY a replica", "XDEL", "XACK")
    worker.succeed(task)
    world.advance(0.5)
    assert task.phase is Phase.SETTLING
    end()
    world.advance(3)
    assert task.phase is Phase.SETTLED


def test_a_server_that_takes_nothing_at_all_is_not_asked_without_a_pause(world):
    worker = world.worker()
    (task,) = start(world, worker)
    end = world.refuse(FULL, "XACK", "XDEL", "XCLAIM")
    worker.succeed(task)
    world.advance(3)
    assert task.phase is Phase.SETTLING
    assert worker.events(EventKind.BACKING_OFF)[-1].text == f"settle: {FULL}"
    assert len(worker.settle.sent) < 200
    end()
    world.advance(5)
    assert task.phase is Phase.SETTLED


def test_without_memory_an_acknowledgement_that_fails_is_repeated(world):
    worker = world.worker()
    (task,) = start(world, worker)
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


# ---- leaving ----------------------------------------------------------------------------------------


def test_unstarted_entries_are_given_back_and_not_counted_as_delivered(world):
    worker = world.worker(concurrency=3)
    for n in range(3):
        world.enqueue(f"t{n}")
    world.pump()
    running = worker.take()
    worker.stop()
    world.pump()
    rows = world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 10)
    assert [(row[0] == running.entry_id, row[2] >= RELEASED_IDLE_MS, row[3]) for row in rows] == [
        (True, False, 1),
        (False, True, 0),
        (False, True, 0),
    ]
    assert worker.machine.counts["released"] == 2
    (event,) = worker.events(EventKind.RELEASED)
    assert (event.text, event.data) == ("gave 2 entries back", {"entries": 2})
    worker.succeed(running)
    world.pump()
    assert worker.ended
    heir = world.worker(concurrency=3)
    world.advance(0.1)
    assert sorted(d.task.id for d in heir.deliveries) == ["t1", "t2"]
    assert {d.deliveries for d in heir.deliveries} == {1}


def test_handlers_that_do_not_end_in_time_are_given_up(world):
    worker = world.worker()
    (task,) = start(world, worker)
    worker.stop(drain=2)
    world.advance(1.9)
    assert task.phase is Phase.RUNNING
    world.advance(0.2)
    assert task.phase is Phase.RELEASED
    assert task.cancelled == "the worker stops"
    assert worker.ended
    heir = world.worker()
    world.advance(0.1)
    assert heir.take().deliveries == 2, "it did run"


def test_a_release_that_was_aborted_is_verified_and_repeated(world):
    worker = world.worker(concurrency=2)
    world.enqueue("a")
    world.enqueue("b")
    world.pump()
    world.call("SET", KEYS.fence, "moved")
    stolen = worker.deliveries[1]
    world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, stolen.entry_id)
    worker.stop()
    world.pump()
    assert stolen.phase is Phase.LOST
    assert worker.machine.counts["released"] == 1
    assert worker.ended


def test_a_release_with_an_unknown_outcome_is_verified_and_repeated(world):
    worker = world.worker()
    world.enqueue("a")
    world.pump()
    worker.stop()
    worker.settle.until("EXEC")
    worker.settle.execute()
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1)
    assert worker.ended
    assert worker.machine.idle
    heir = world.worker()
    world.advance(0.1)
    assert heir.take().task.id == "a"


def test_entries_that_a_cut_read_left_behind_are_given_back(world):
    worker = world.worker()
    worker.read.held = True
    world.enqueue("a")
    worker.read.execute()
    worker.stop()
    worker.read.lose()
    world.pump()
    assert worker.ended
    assert worker.machine.counts["received"] == 0
    heir = world.worker()
    world.advance(0.1)
    assert heir.take().task.id == "a"


@pytest.mark.parametrize(("role", "name"), [("read", "XREADGROUP"), ("control", "ZRANGE")])
def test_it_leaves_when_its_last_read_and_its_last_chore_are_answered(world, role, name):
    worker = world.worker()
    wire = getattr(worker, role)
    wire.hold_at(name)
    worker.stop()
    world.advance(1)
    assert not worker.settle.ended
    assert world.call("XINFO", "CONSUMERS", KEYS.stream, GROUP) != []
    wire.lose()
    wire.release()
    world.advance(1)
    assert worker.ended


def test_more_left_behind_than_one_page(world):
    worker = world.worker()
    worker.read.frozen = True
    count = FAREWELL_PAGE + 3
    for n in range(count):
        world.enqueue(f"t{n}")
    world.call("XREADGROUP", "GROUP", GROUP, worker.machine.consumer, "COUNT", count, "STREAMS", KEYS.stream, ">")
    worker.stop()
    worker.read.frozen = False
    world.pump()
    assert worker.ended
    idle = [row[2] for row in world.call("XPENDING", KEYS.stream, GROUP, "-", "+", 2 * count)]
    assert len(idle) == count
    assert min(idle) >= RELEASED_IDLE_MS
    last = commands(worker.settle.sent[-1], "XCLAIM") or commands(worker.settle.sent[-2], "XCLAIM")
    assert len([part for part in last[0] if isinstance(part, bytes)]) == 3 + 3, "each entry once"


def test_a_consumer_without_entries_is_removed(world):
    worker = world.worker()
    assert len(world.call("XINFO", "CONSUMERS", KEYS.stream, GROUP)) == 1
    worker.stop()
    world.pump()
    assert world.call("XINFO", "CONSUMERS", KEYS.stream, GROUP) == []


@pytest.mark.parametrize("name", ["XPENDING", "XGROUP", "EXEC"])
def test_a_farewell_that_fails_is_no_reason_to_stay(world, name):
    worker = world.worker()
    world.refuse("NOPERM no", name)
    worker.stop()
    world.pump()
    assert worker.ended


def consumers(world, queue):
    return [row[1] for row in world.call("XINFO", "CONSUMERS", queue_keys(queue).stream, GROUP)]


def test_a_consumer_stays_when_its_entries_could_not_be_asked_for(world):
    worker = world.worker("a", "b")
    world.refuse("LOADING the dataset", "XPENDING", times=1)
    worker.stop()
    world.pump()
    assert worker.ended
    assert consumers(world, "a") == [worker.machine.consumer]
    assert consumers(world, "b") == [], "its queue was asked for all the same"


def test_a_group_that_goes_while_its_worker_leaves(world):
    worker = world.worker()
    worker.settle._hold_at = "XGROUP"
    worker.stop()
    world.pump()
    assert worker.settle.held
    world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)
    worker.settle.release()
    assert worker.ended


@pytest.mark.parametrize("name", ["XPENDING", "XGROUP"])
def test_a_connection_lost_at_the_farewell(world, name):
    worker = world.worker()
    worker.stop()
    worker.read.turn()
    worker.control.turn()
    for _ in range(5):
        worker.read.turn()
        worker.control.turn()
    worker.settle.until(name)
    worker.settle.lose()
    worker.settle.held = False
    world.advance(2)
    assert worker.ended


def test_a_worker_without_a_server_leaves_when_it_has_nothing(world):
    world.available = False
    worker = world.worker()
    worker.stop()
    world.advance(2)
    assert worker.ended


def test_a_worker_without_a_server_gives_up_after_its_drain_and_a_lease(world):
    worker = world.worker(lease=4)
    start(world, worker)
    world.available = False
    world.server.drop_connections()
    worker.stop(drain=1)
    world.advance(4.5)
    assert not worker.ended
    world.advance(2)
    assert worker.ended
    assert worker.machine.time.gave_up
    assert "1 entries neither settled" in worker.events(EventKind.RELEASED)[-1].text


@pytest.mark.parametrize(("name", "code"), NO_TRANSACTION)
def test_without_the_right_to_a_transaction_nothing_is_settled(world, name, code):
    """Its commands would be done one by one, whoever has the entry meanwhile."""
    worker = world.worker(start=False)
    worker.control.frozen = True  # which would notice, too
    world.refuse(f"{code} User app has no permissions to run the '{name.lower()}' command", name)
    world.enqueue("t")
    world.pump()
    assert isinstance(worker.machine.refusal, PermissionMissing)
    assert f"ACL SETUSER app +{name.lower()}" in str(worker.machine.refusal)
    assert transactions(worker) == []
    assert len(world.stream()) == 1
