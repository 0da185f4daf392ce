"""Defects that the simulator has found, each reduced to its essence."""

import pytest

from streamfleet_core.config import WorkerConfig
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.state import Phase
from streamfleet_core.wire import Task, encode_task, pack_fields
from streamfleet_core.worker import WorkerMachine

KEYS = queue_keys("q")
HOUR_MS = 3_600_000


@pytest.fixture
def world(world):
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    return world


def test_the_reader_goes_on_after_a_settlement_whose_reply_was_lost(world):
    """It slept for ever: room had come, but not by a reply to the transaction."""
    worker = world.worker(concurrency=1)
    world.enqueue("a")
    world.enqueue("b")
    world.pump()
    worker.succeed(worker.take())
    worker.settle.until("EXEC")
    worker.settle.execute()
    worker.settle.lose()
    worker.settle.release()
    world.advance(1)
    assert worker.take().task.id == "b"


def test_a_mover_that_comes_second_does_not_complain_of_missing_bodies(world):
    """The first one had taken them along, and the second one's transaction was about to abort."""
    body = pack_fields(encode_task(Task("a", "q", "c", b"data")))
    world.call("ZADD", KEYS.schedule, world.server_ms() - 1, "a")
    world.call("HSET", KEYS.scheduled, "a", body)
    second = world.worker(start=False)
    second.read.frozen = True
    second.control.until("HMGET")
    first = world.worker()
    assert first.machine.counts["moved"] == 1
    second.control.release()
    assert second.events(EventKind.SCHEDULE_BROKEN) == []
    assert second.machine.counts["moved"] == 0


def worker_with_a_wrong_clock(world, wrong_by_ms):
    """It cannot reach the server by its control link yet, which asks for the time."""
    worker = world.worker(start=False)
    worker.machine = WorkerMachine(
        "wrong",
        {"q": 0.0},
        WorkerConfig(),
        now=world.now,
        wall_ms=world.server_ms() + wrong_by_ms,
        entropy=world.random.randbytes,
        random=world.random.random,
    )
    for wire, link in zip(worker.wires, worker.machine.links, strict=True):
        wire.machine, wire.link = worker.machine, link
    worker.control.frozen = True
    world.pump()
    return worker


@pytest.mark.parametrize("wrong_by_ms", [HOUR_MS, -HOUR_MS])
def test_a_retry_is_due_by_the_servers_clock_even_right_after_the_start(world, wrong_by_ms):
    worker = worker_with_a_wrong_clock(world, wrong_by_ms)
    world.enqueue("a", retry_delay_ms=500)
    world.pump()
    worker.fail(worker.take())
    world.pump()
    (row, score) = world.call("ZRANGE", KEYS.schedule, 0, -1, "WITHSCORES")
    assert row == b"a"
    assert int(score) == pytest.approx(world.server_ms() + 500, abs=50)


def test_a_task_does_not_expire_by_the_workers_own_clock(world):
    worker = worker_with_a_wrong_clock(world, HOUR_MS)
    world.enqueue("a", expires_ms=world.server_ms() + 1000)
    worker.settle.frozen = True
    world.pump()
    delivery = worker.machine.take(world.now)
    assert delivery is None or delivery.phase is Phase.RUNNING
    worker.settle.frozen = False
    world.pump()
    assert (delivery or worker.take()).task.id == "a"
