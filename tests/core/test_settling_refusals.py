"""What a server refuses of a settlement, and what becomes of the tasks in it."""

import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import PermissionMissing, WrongKeyType
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.state import Phase

KEYS = queue_keys("q")
FULL = "OOM command not allowed when used memory > 'maxmemory'."
NO_TRANSACTION = [("MULTI", "NOPERM"), ("EXEC", "EXECABORT Transaction discarded because of: NOPERM")]


@pytest.fixture
def world(world):
    """With the group in place: creating it moves the fence, which is another file's subject."""
    for queue in ("q", "a", "b"):
        world.call("XGROUP", "CREATE", queue_keys(queue).stream, GROUP, "0", "MKSTREAM")
    return world


def transactions(worker):
    return [exchange for exchange in worker.settle.sent if worker.world.transacts(exchange)]


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


def test_a_right_that_is_missing_applies_nothing_and_stops_with_the_command(world):
    worker = world.worker()
    (task,) = worker.start()
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
    (task,) = worker.start()
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
    (task,) = worker.start()
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
    (task,) = worker.start()
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
    (task,) = worker.start()
    if name == "XPENDING":
        world.call("SET", KEYS.fence, "moved")
    world.refuse(line, name)
    worker.succeed(task)
    world.pump()
    assert str(worker.machine.refusal) == f"the server refuses {name}. The server said: ERR not today"


def _error(line):

    return ServerError(line)


def test_a_watch_that_is_refused_is_tried_again(world):
    worker = world.worker(start=False)
    end = world.refuse("BUSY Redis is busy running a script", "WATCH")
    world.advance(2)
    assert not worker.machine.lanes[0].settler._armed
    end()
    world.advance(2)
    assert worker.machine.lanes[0].settler._armed


def test_a_watch_that_is_refused_after_a_settlement_is_tried_again(world):
    worker = world.worker(concurrency=2)
    first, second = worker.start(2)
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
    (task,) = worker.start(max_retries=0)
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
    tasks = worker.start(2, max_retries=0)
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
    (task,) = worker.start(max_retries=0)
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
    (task,) = worker.start(retry_delay_ms=1000)
    world.call("SET", KEYS.schedule, "mine")
    world.call("SET", KEYS.scheduled, "mine")
    worker.read.frozen = True
    worker.fail(task)
    world.pump()
    assert [entry[b"retries"] for entry in world.stream()] == [b"0"]


def test_a_notice_that_cannot_be_written_costs_nothing_but_itself(world):
    worker = world.worker()
    (task,) = worker.start(notify=True)
    world.call("SET", receiver_key("c"), "mine")
    worker.succeed(task)
    world.pump()
    assert task.phase is Phase.SETTLED
    assert world.stream() == []
    assert worker.machine.refusal is None
    assert "inside a transaction" in worker.events(EventKind.REFUSED)[0].text
