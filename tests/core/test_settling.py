import pytest

from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.link import FOREVER
from streamfleet_core.settling import BATCH
from streamfleet_core.state import Phase
from streamfleet_core.wire import decode_notification, unpack_fields

KEYS = queue_keys("q")


@pytest.fixture
def world(world):
    """With the group in place: creating it moves the fence, which is another file's subject."""
    for queue in ("q", "a", "b"):
        world.call("XGROUP", "CREATE", queue_keys(queue).stream, GROUP, "0", "MKSTREAM")
    return world


def transactions(worker):
    return [exchange for exchange in worker.settle.sent if worker.world.transacts(exchange)]


def commands(exchange, name):
    return [command for command in exchange if command[0] == name]


def notices(world, client_id="c"):
    reply = world.call("XRANGE", receiver_key(client_id), "-", "+")
    return [decode_notification(fields) for _, fields in reply]


# ---- outcomes ---------------------------------------------------------------------------------------


def test_a_completed_task_leaves_no_trace(world):
    worker = world.worker()
    (task,) = worker.start()
    worker.succeed(task)
    world.pump()
    assert world.stream() == []
    assert world.pending() == {}
    assert task.phase is Phase.SETTLED
    assert worker.machine.counts["completed"] == 1
    assert worker.machine.idle


def test_what_gathers_while_one_transaction_is_in_flight_leaves_in_the_next(world):
    worker = world.worker(concurrency=10)
    tasks = worker.start(10)
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
    (task,) = worker.start()
    worker.succeed(task)
    world.pump()
    tail = transactions(worker)[-1][-3:]
    assert tail == [("EXEC",), ("WATCH", KEYS.fence), ("GET", KEYS.fence)]


def test_a_failed_task_is_put_back_with_one_more_attempt_counted(world):
    worker = world.worker()
    (task,) = worker.start(max_retries=2)
    worker.read.frozen = True  # the copy is to stay where it can be seen
    worker.fail(task, "no paper")
    world.pump()
    (copy,) = world.stream()
    assert copy[b"retries"] == b"1"
    assert copy[b"last_error"] == b"no paper"
    assert copy[b"data"] == b"data"


def test_a_delayed_retry_is_in_the_schedule_before_its_entry_ends(world):
    worker = world.worker()
    (task,) = worker.start(max_retries=2, retry_delay_ms=5000)
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
    (task,) = worker.start(max_retries=0)
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
    (task,) = worker.start(notify=True)
    worker.fail(task)
    world.pump()
    assert notices(world) == []


def test_what_became_of_a_task_is_told(world):
    worker = world.worker(concurrency=2)
    fails, dies = worker.start(2)
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
        dies, stolen = worker.start(2, max_retries=0)
        world.call("XCLAIM", KEYS.stream, GROUP, "other", 0, stolen.entry_id)
        world.call("SET", KEYS.fence, token)
        worker.fail(dies)
        worker.fail(stolen)
        world.pump()
    worker.start()
    world.enqueue("unstarted")
    world.pump()
    worker.stop(drain=1)
    world.advance(2)
    counts = {name: worker.machine.counts[name] for name in ("aborted", "dead", "lost", "released")}
    assert counts == {"aborted": 2, "dead": 2, "lost": 2, "released": 2}


def test_a_workers_own_retry_is_looked_for_when_it_is_due_and_not_before(world):
    worker = world.worker(lease=400, poll_interval=100)
    (task,) = worker.start()

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
    for task in worker.start(BATCH + 5):
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


# ---- beats ------------------------------------------------------------------------------------------


def beats(worker):
    return [c for exchange in worker.settle.sent for c in exchange if c[0] == "XCLAIM"]


def test_running_entries_are_renewed_each_quarter_of_the_lease(world):
    worker = world.worker(lease=8)
    (task,) = worker.start()
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
    worker.start()
    world.advance(0.2)
    assert beats(worker) == []
    world.advance(2)
    assert len(beats(worker)) == 1


def test_an_entry_counts_from_when_the_read_was_sent_that_brought_it(world):
    worker = world.worker(lease=8, block=5)
    began = world.now
    world.advance(1.9)
    (task,) = worker.start()
    assert task.leased_from == began


def test_the_link_sleeps_while_entries_are_too_young(world):
    worker = world.worker(lease=8, block=0.25)
    world.advance(60)
    worker.start()
    worker.settle.link.kick()
    world.pump()
    assert worker.settle.wake_at > world.now


def test_an_idle_worker_does_not_beat(world):
    worker = world.worker()
    before = len(worker.settle.sent)
    world.advance(60)
    assert len(worker.settle.sent) == before
    assert worker.machine.lanes[0].settler.deadline() == FOREVER


def test_a_running_entry_that_somebody_deleted_is_noticed_by_its_beat(world):
    worker = world.worker(lease=8)
    (task,) = worker.start()
    world.call("XACK", KEYS.stream, GROUP, task.entry_id)
    world.call("XDEL", KEYS.stream, task.entry_id)
    world.advance(4.5)
    assert task.phase is Phase.LOST
    assert task.cancelled == "others own the task now"
    assert worker.machine.running == 0


def test_beats_travel_with_outcomes(world):
    worker = world.worker(lease=8, concurrency=2)
    one, two = worker.start(2)
    world.advance(1.9)
    worker.settle.held = True
    world.advance(0.2)
    worker.settle.held = False
    worker.succeed(one)
    world.pump()
    assert two.leased_from > 1001


def test_beats_lost_with_their_connection_are_repeated_at_once(world):
    worker = world.worker(lease=8)
    (task,) = worker.start()
    world.advance(1.9)
    worker.settle.held = True
    world.advance(0.2)
    assert worker.settle.flight is not None
    worker.settle.lose()
    worker.settle.held = False
    world.advance(1)
    assert task.leased_from > 1002.0
