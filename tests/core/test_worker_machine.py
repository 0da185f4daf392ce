import pytest

from streamfleet_core.clock import ServerClock
from streamfleet_core.config import WorkerConfig
from streamfleet_core.connection import ServerError
from streamfleet_core.errors import PermissionMissing, ServerRefused, UsageError, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.link import Role
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.state import Phase, Verdict
from streamfleet_core.wire import F_REASON, Task, encode_task
from streamfleet_core.worker import MAX_ERROR, MAX_TRACEBACK, WorkerMachine

KEYS = queue_keys("q")


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


# ---- shape ------------------------------------------------------------------------------------------


def test_a_worker_without_handlers_is_refused():
    with pytest.raises(UsageError, match="^worker: no handlers; register at least one with @worker.handler"):
        WorkerMachine("w", {}, WorkerConfig(), now=0, wall_ms=0, entropy=bytes, random=lambda: 0.0)


def test_one_slot_has_three_links_and_the_worker_one_for_the_time(world):
    worker = world.worker("a", "b")
    assert [link.role for link in worker.machine.links] == [Role.READ, Role.SETTLE, Role.CONTROL, Role.TIME]


def test_each_slot_has_links_of_its_own(world):
    slots = {"a": 1, "b": 2, "c": 1}
    worker = world.worker("a", "b", "c", slot_of=lambda keys: slots[keys.queue])
    assert sorted(link.slot for link in worker.machine.links if link.role is not Role.TIME) == [1, 1, 1, 2, 2, 2]
    for name in "abc":
        world.enqueue(name, name)
    world.pump()
    for _ in range(3):
        worker.succeed(worker.take())
    world.pump()
    assert worker.machine.counts["completed"] == 3
    assert {worker.machine.lane_of(worker.machine.queues[name]).read.slot for name in "ab"} == {1, 2}
    worker.stop()
    world.pump()
    assert worker.ended


def test_tokens_are_never_the_same(world):
    machine = world.worker().machine
    assert len({machine.token() for _ in range(100)}) == 100


# ---- take and return --------------------------------------------------------------------------------


def test_tasks_are_taken_in_order(world):
    worker = world.worker(concurrency=3)
    for n in range(3):
        world.enqueue(f"t{n}")
    world.pump()
    assert [worker.take().task.id for _ in range(3)] == ["t0", "t1", "t2"]
    assert worker.machine.take(world.now) is None
    assert worker.machine.running == 3


def test_an_expired_task_is_not_started(world):
    worker = world.worker(concurrency=2)
    world.enqueue("old", expires_ms=world.server_ms() + 100)
    world.enqueue("new", expires_ms=world.server_ms() + 60_000)
    world.pump()
    world.advance(0.1)
    assert worker.take().task.id == "new"
    world.pump()
    assert worker.machine.counts["expired"] == 1
    assert len(world.stream()) == 1


def test_a_task_that_may_expire_waits_for_the_servers_clock(world):
    worker = world.worker(start=False)
    worker.settle.frozen = worker.control.frozen = True
    world.enqueue(expires_ms=world.server_ms() + 1000)
    world.pump()
    assert worker.machine.take(world.now) is None
    worker.settle.frozen = False
    world.pump()
    assert worker.take().task.id == "t1"


def test_a_task_does_not_expire_because_the_server_was_slow_to_tell_the_time(world):
    worker = world.worker()
    world.enqueue("soon", expires_ms=world.server_ms() + 1000)
    world.pump()
    worker.machine.clock = ServerClock(0.0, 0.0)
    worker.machine.clock.observed(world.server_ms(), world.now - 4.0, world.now)
    assert worker.take().task.id == "soon"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([b"a", b"b"], b"missing field"),
        (
            [*encode_task(Task("t", "q", "c", b""))[:1], b"2", *encode_task(Task("t", "q", "c", b""))[2:]],
            b"enc_version",
        ),
    ],
)
def test_an_entry_that_cannot_be_read_becomes_a_dead_letter_as_it_came(world, fields, said):
    worker = world.worker()
    world.call("XADD", KEYS.stream, "*", *fields)
    world.pump()
    (letter,) = world.dead()
    assert said in letter[F_REASON]
    assert letter[fields[0]] == fields[1]
    assert world.stream() == []
    assert worker.machine.take(world.now) is None
    assert worker.machine.counts["dead"] == 1


def test_handlers_durations_make_the_window(world):
    worker = world.worker(concurrency=2, prefetch_horizon=1.0)
    assert worker.machine.window() == 2
    task = worker.begin()
    world.now += 0.105
    worker.succeed(task)
    assert worker.machine.window() == 2 + 19
    task = worker.begin()
    world.now += 10
    worker.succeed(task)
    assert worker.machine._mean == pytest.approx(0.105 + (10 - 0.105) * 0.1)


def test_a_handler_without_any_duration(world):
    worker = world.worker(concurrency=1, max_prefetch=50)
    worker.succeed(worker.begin())
    assert worker.machine.window() == 50


# ---- failures ---------------------------------------------------------------------------------------


def test_a_failure_is_retried_after_the_tasks_own_delay(world):
    worker = world.worker()
    task = Task("t", "q", "c", b"")
    RetryPolicy(max_retries=5, delay=2, factor=3, jitter=0).apply_to(task)
    world.call("XADD", KEYS.stream, "*", *encode_task(task))
    for delay in (2000, 6000, 18_000):
        world.pump()
        delivery = worker.take()
        worker.fail(delivery)
        assert delivery.delay_ms == delay
        world.advance(delay / 1000 + 0.1)


@pytest.mark.parametrize(("retry_in", "delay_ms"), [(0, 0), (0.25, 250), (60, 60_000)])
def test_a_handler_may_choose_the_delay(world, retry_in, delay_ms):
    worker = world.worker()
    delivery = worker.begin(retry_delay_ms=5000)
    worker.fail(delivery, retry_in=retry_in)
    assert delivery.verdict is Verdict.RETRY
    assert delivery.delay_ms == delay_ms


def test_a_handler_may_forbid_retries(world):
    worker = world.worker()
    delivery = worker.begin(max_retries=-1)
    worker.fail(delivery, final=True)
    assert delivery.verdict is Verdict.DEAD
    assert delivery.reason == "not to be retried"


@pytest.mark.parametrize(("max_retries", "runs"), [(0, 1), (1, 2), (3, 4)])
def test_a_task_runs_once_and_then_for_each_retry(world, max_retries, runs):
    worker = world.worker()
    world.enqueue(max_retries=max_retries)
    count = 0
    world.pump()
    while (delivery := worker.machine.take(world.now)) is not None:
        count += 1
        assert delivery.task.attempt == count
        worker.fail(delivery)
        world.pump()
    assert count == runs
    (letter,) = world.dead()
    said = f"failed {runs} times, {max_retries} retries allowed" if max_retries else "failed, no retries allowed"
    assert letter[F_REASON].decode() == said


def test_a_task_may_be_retried_for_ever(world):
    worker = world.worker()
    world.enqueue(max_retries=-1)
    for _ in range(50):
        world.pump()
        worker.fail(worker.take())
    assert world.dead() == []


def test_errors_and_tracebacks_have_bounds(world):
    worker = world.worker()
    delivery = worker.begin(max_retries=0)
    worker.machine.handler_failed(delivery, world.now, "e" * 10_000, "first" + "t" * 20_000 + "last")
    assert len(delivery.error) == MAX_ERROR
    assert len(delivery.traceback) == MAX_TRACEBACK
    assert delivery.traceback.endswith("last")


def test_a_dead_letter_has_a_traceback_where_there_was_one(world):
    worker = world.worker(timeout=3)
    worker.machine.handler_failed(worker.begin(max_retries=0), world.now, "boom")
    worker.begin(task_id="t2", max_retries=0)
    world.advance(4)
    failed, slow = world.dead()
    assert failed[b"last_error"] == b"boom"
    assert slow[b"last_error"] == b"timeout after 3 s"
    assert b"traceback" not in failed.keys() | slow.keys()


def test_text_that_is_not_unicode_can_be_kept(world):
    worker = world.worker()
    delivery = worker.begin(max_retries=0)
    worker.fail(delivery, "\udcff")
    world.pump()
    assert world.dead()[0][b"last_error"] == b"\\udcff"


# ---- stop -------------------------------------------------------------------------------------------


def test_a_worker_with_nothing_to_do_stops_at_once(world):
    worker = world.worker()
    worker.stop()
    world.pump()
    assert worker.ended
    assert worker.machine.idle


def test_nothing_is_taken_once_it_stops(world):
    worker = world.worker()
    world.enqueue()
    world.pump()
    worker.stop()
    assert worker.machine.take(world.now) is None


def test_stopping_again_can_only_shorten_the_wait(world):
    worker = world.worker()
    delivery = worker.begin()
    worker.stop(drain=50)
    at = worker.machine.time.stop_at
    assert at == world.now + 50
    worker.stop(drain=70)
    assert worker.machine.time.stop_at == at
    world.advance(1)
    worker.stop(drain=2)
    assert worker.machine.time.stop_at == world.now + 2
    world.advance(1.9)
    assert delivery.phase is Phase.RUNNING
    world.advance(0.2)
    assert delivery.phase is Phase.RELEASED
    assert worker.ended


def test_a_handler_that_was_stopped_gives_its_entry_back(world):
    worker = world.worker(timeout=60, concurrency=1)
    delivery = worker.begin()
    worker.machine.handler_stopped(delivery)
    worker.machine.handler_stopped(delivery)
    assert worker.machine.running == 0
    world.pump()
    assert delivery.phase is Phase.RELEASED
    assert worker.machine.counts["released"] == 1
    world.advance(15)
    assert worker.take().task.id == "t1"


def test_a_handler_that_was_stopped_does_not_take_too_long_later(world):
    worker = world.worker(timeout=3)
    worker.machine.handler_stopped(worker.begin())
    world.advance(4)
    assert not worker.events(EventKind.TIMED_OUT)
    assert worker.machine.running == 0


def test_running_handlers_may_finish(world):
    worker = world.worker()
    delivery = worker.begin()
    worker.stop()
    world.advance(10)
    assert not worker.ended
    worker.succeed(delivery)
    world.pump()
    assert worker.ended
    assert worker.machine.counts["completed"] == 1


def test_a_handler_that_was_given_up_comes_back_late(world):
    worker = world.worker(timeout=60)
    delivery = worker.begin()
    worker.stop(drain=0)
    world.pump()
    assert worker.ended
    assert delivery.phase is Phase.RELEASED
    worker.succeed(delivery)
    assert worker.machine.counts["late"] == 1
    assert worker.machine.running == 0
    assert not worker.machine.time._timed


# ---- refusals ---------------------------------------------------------------------------------------


def test_why_the_server_refuses_is_told(world):
    worker = world.worker()
    assert worker.machine.refusal is None
    worker.control.link.refuse(PermissionMissing("no"))
    assert isinstance(worker.machine.refusal, PermissionMissing)
    assert not worker.machine.failing_in_order


def test_the_first_failure_stops_the_worker_in_order(world):
    worker = world.worker()
    worker.machine.fail(WrongKeyType("first"), world.now)
    worker.machine.fail(ServerRefused("second"), world.now)
    assert str(worker.machine.refusal) == "first"
    assert worker.machine.failing_in_order
    (event,) = worker.events(EventKind.REFUSED)
    assert event.text == "first"
    world.pump()
    assert worker.ended


def test_events_name_queue_entry_and_task(world):
    worker = world.worker()
    delivery = worker.begin(max_retries=0)
    worker.fail(delivery)
    world.pump()
    (event,) = worker.events(EventKind.DEAD_LETTERED)
    assert event.data == {"queue": "q", "entry": delivery.entry_id.decode(), "task": "t1", "error": "boom"}
    world.call("XADD", KEYS.stream, "*", "a", "b")
    world.pump()
    assert worker.events(EventKind.DEAD_LETTERED)[1].data.keys() == {"queue", "entry", "error"}


def test_events_that_nobody_takes_do_not_pile_up(world):
    machine = world.worker().machine
    for number in range(10_005):
        machine.emit(EventKind.REFUSED, str(number))
    assert len(machine.events) == 10_000
    assert machine.events[-1].text == "10004"


def test_an_outage_is_told_once_and_its_end_once(world):
    worker = world.worker()
    for wire in worker.wires:
        wire.lose()
    world.available = False
    world.advance(7)
    world.available = True
    world.advance(3)
    assert len(worker.events(EventKind.DISCONNECTED)) == 1
    (event,) = worker.events(EventKind.RECONNECTED)
    assert event.text == f"connected again after {event.data['seconds']:.1f} s"


def test_it_waits_for_a_server_that_is_not_there_yet(world):
    world.available = False
    worker = world.worker()
    world.advance(60)
    assert worker.machine.refusal is None
    world.enqueue()
    world.available = True
    world.advance(2)
    assert worker.take().task.id == "t1"


def test_a_group_deleted_under_its_workers_runs_nothing_twice_at_once(world):
    worker = world.worker()
    delivery = worker.begin()
    world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)
    world.advance(1)
    again = [d for d in worker.deliveries if d is not delivery]
    assert again == [], "the same entry is delivered again, and known"
    worker.succeed(delivery)
    world.pump()
    assert world.stream() == []
    assert worker.machine.counts["completed"] == 1


def test_errors_of_any_kind_end_or_delay_but_never_break(world):
    worker = world.worker()
    worker.control.hold_at("XINFO")
    worker.control.deliver([ServerError("ERR something new")])
    assert isinstance(worker.machine.refusal, ServerRefused)


# ---- entries received -------------------------------------------------------------------------------


def receive(world, worker, fields, deliveries=None):
    """An entry as the links hand it in, with the number of its delivery where the server was asked for that."""
    queue = worker.machine.queues["q"]
    counts = None if deliveries is None else {b"5-0": deliveries}
    assert worker.machine.received(queue, [(b"5-0", fields)], queue.fence, world.now, counts) == 1
    assert worker.machine.received(queue, [(b"5-0", fields)], queue.fence, world.now, counts) == 0
    return queue.in_flight[b"5-0"]


def test_an_entry_without_a_body_only_has_its_row_removed(world):
    worker = world.worker()
    delivery = receive(world, worker, None)
    assert delivery.verdict is Verdict.VANISHED
    world.pump()
    assert worker.machine.counts["vanished"] == 1
    assert world.dead() == []


@pytest.mark.parametrize(("number", "verdict"), [(5, None), (6, Verdict.DEAD), (900, Verdict.DEAD)])
def test_an_entry_is_delivered_so_often_and_not_once_more(world, number, verdict):
    worker = world.worker(max_deliveries=5)
    delivery = receive(world, worker, encode_task(Task("t", "q", "c", b"")), number)
    assert delivery.deliveries == number
    assert delivery.verdict is verdict


def test_an_entry_received_while_the_worker_stops_is_given_back(world):
    worker = world.worker()
    worker.read.held = True
    worker.stop()
    delivery = receive(world, worker, encode_task(Task("t", "q", "c", b"")))
    assert delivery.phase is Phase.RELEASING


def test_entries_that_a_claim_in_flight_will_bring_are_left_to_it(world):
    worker = world.worker()
    queue = worker.machine.queues["q"]
    queue.claiming.add(b"5-0")
    assert worker.machine.received(queue, [(b"5-0", None)], queue.fence, world.now) == 0
    assert not queue.in_flight


def test_entries_after_those_that_are_known_are_received(world):
    worker = world.worker()
    queue = worker.machine.queues["q"]
    receive(world, worker, encode_task(Task("t", "q", "c", b"")))
    queue.claiming.add(b"6-0")
    entries = [(b"5-0", None), (b"6-0", None), (b"7-0", encode_task(Task("t", "q", "c", b"")))]
    assert worker.machine.received(queue, entries, queue.fence, world.now) == 1
    assert list(queue.in_flight) == [b"5-0", b"7-0"]


@pytest.mark.parametrize("fields", [encode_task(Task("t", "q", "c", b"")), [b"a", b"b"], None])
def test_an_entry_is_ours_from_its_read_on_whatever_is_in_it(world, fields):
    world.call("SET", KEYS.fence, "as it was")
    worker = world.worker()
    delivery = receive(world, worker, fields)
    assert delivery.fence == b"as it was"
    assert delivery.leased_from == world.now
    assert delivery.task is None or delivery.task.queue == "q"


def test_the_number_of_a_delivery_is_known_where_the_server_has_told_it(world):
    worker = world.worker()
    queue = worker.machine.queues["q"]
    fields = encode_task(Task("t", "q", "c", b""))
    worker.machine.received(queue, [(b"5-0", fields), (b"6-0", fields)], queue.fence, world.now, {b"5-0": 3})
    worker.machine.received(queue, [(b"7-0", fields)], queue.fence, world.now)
    known = {entry: (delivery.deliveries, delivery.counted) for entry, delivery in queue.in_flight.items()}
    assert known == {b"5-0": (3, True), b"6-0": (1, False), b"7-0": (1, True)}


def test_without_a_server_a_stopping_worker_leaves_after_a_lease(world):
    worker = world.worker(lease=4)
    worker.begin()
    worker.settle.lose()
    world.available = False
    worker.stop(drain=1)
    world.advance(4.9)
    assert not worker.machine.time.gave_up
    world.advance(1)
    assert worker.machine.time.gave_up
    event = worker.events(EventKind.RELEASED)[-1]
    assert "1 entries" in event.text
    assert event.data == {"entries": 1}
