"""Stopping in a hurry, and handlers that are stopped from outside."""

import random

import pytest

from streamfleet_core.config import WorkerConfig
from streamfleet_core.errors import PermissionMissing
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.link import Role
from streamfleet_core.state import Phase
from streamfleet_core.wire import Task, encode_task
from streamfleet_core.worker import WorkerMachine

KEYS = queue_keys("q")


@pytest.fixture
def machine():
    return WorkerMachine(
        "c",
        {"q": 0.0},
        WorkerConfig(drain=30.0, lease=10.0),
        now=0.0,
        wall_ms=1_700_000_000_000,
        entropy=random.Random(1).randbytes,
        random=random.Random(1).random,
    )


def running_delivery(machine):
    queue = machine.queues["q"]
    machine.received(queue, [(b"1-1", encode_task(Task("t", "q", "client", b"")))], b"f", 0.0)
    return machine.take(0.0)


def test_a_handler_stopped_without_contact_gives_its_entry_back(machine):
    delivery = running_delivery(machine)
    machine.cancel(delivery, "no contact to the server: others will take the task over")
    machine.handler_stopped(delivery)
    assert delivery.phase is Phase.RELEASING
    assert (machine.running, machine.held) == (0, 1)


def test_a_handler_stopped_after_the_machine_has_decided_changes_nothing(machine):
    delivery = running_delivery(machine)
    machine.handler_returned(delivery, 1.0)
    machine.handler_stopped(delivery)
    assert delivery.phase is Phase.SETTLING
    assert machine.running == 0


def test_the_last_delivery_of_one_slot_lets_the_others_leave(world):
    worker = world.worker("a", "b", slot_of=lambda keys: 1 if keys.queue == "a" else 2)
    world.enqueue("t", "b")
    world.pump()
    delivery = worker.take()
    worker.stop(drain=30)
    world.advance(1)
    worker.succeed(delivery)
    world.advance(0.1)
    assert worker.ended
    assert not worker.machine.time.gave_up


def test_a_shorter_stop_does_not_put_off_a_timeout(world):
    worker = world.worker(timeout=5.0)
    world.enqueue()
    world.pump()
    delivery = worker.take()
    worker.stop(drain=80)
    world.advance(1)
    worker.stop(drain=40)
    world.advance(4.1)
    assert delivery.cancelled == "timeout"


def test_that_entries_are_left_behind_is_told_once(world):
    worker = world.worker(lease=2)
    world.enqueue()
    world.pump()
    worker.take()
    world.available = False
    for wire in worker.wires:
        wire.lose()
        wire.frozen = True
    worker.stop(drain=1)
    for _ in range(8):
        world.now += 1
        worker.machine.time.tick(world.now)
    [event] = [e for e in worker.events(EventKind.RELEASED) if "neither" in e.text]
    assert event.data["entries"] == 1


def going_on(worker):
    """The links that do not stop, by role and slot."""
    return {(link.role, link.slot) for link in worker.machine.links if not link.stopped}


def test_a_refused_worker_with_nothing_to_put_back_stops_at_once(world):
    worker = world.worker("a", "b", slot_of=lambda keys: 1 if keys.queue == "a" else 2)
    worker.machine.abandon()
    assert going_on(worker) == set()
    world.pump()
    assert worker.ended


@pytest.mark.parametrize(
    ("hindrance", "left"),
    [
        (None, {(Role.SETTLE, 1), (Role.CONTROL, 2), (Role.TIME, 0)}),
        ("refused", {(Role.CONTROL, 2), (Role.TIME, 0)}),
        ("gave up", set()),
    ],
)
def test_of_a_refused_worker_those_links_go_on_that_put_tasks_back(world, hindrance, left):
    worker = world.worker("a", "b", slot_of=lambda keys: 1 if keys.queue == "a" else 2)
    lanes = worker.machine.lanes
    lanes[1].settler.rescues.append(("XADD", "streamfleet:a", "*", "f", "v"))
    lanes[2].controller.mover.rescues.append((queue_keys("b"), 0, b"t", b"body"))
    if hindrance == "refused":
        lanes[1].settle.refuse(PermissionMissing("no"))
    worker.machine.time.gave_up = hindrance == "gave up"
    worker.machine.abandon()
    assert going_on(worker) == left


def test_a_second_stop_can_shorten_the_wait_for_handlers_and_not_lengthen_it(machine):
    delivery = running_delivery(machine)
    machine.stop(1.0)
    machine.stop(2.0, 60.0)
    machine.time.tick(2.0)
    assert delivery.phase is Phase.RUNNING
    assert machine.time.stop_at == 31.0
    machine.stop(3.0, 0.0)
    machine.time.tick(3.0)
    assert delivery.phase is Phase.RELEASING
    assert delivery.cancelled == "the worker stops"


def test_a_farewell_takes_nothing_back_from_those_who_have_taken_it_over(world):
    """Between its look and its giving back another worker had claimed the entry, and was running it."""
    world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
    entry = world.enqueue("a")
    world.call("XREADGROUP", "GROUP", GROUP, "dead", "STREAMS", KEYS.stream, ">")
    leaving = world.worker(lease=4.0)
    world.call(
        "XCLAIM", KEYS.stream, GROUP, leaving.machine.consumer, 0, entry, "JUSTID"
    )  # it does not know of that
    leaving.stop()
    leaving.settle.hold_at("XCLAIM")
    other = world.worker(lease=4.0)
    world.advance(6.0)
    running = other.take()
    leaving.settle.release()
    world.advance(0.5)
    assert leaving.ended
    assert world.pending() == {entry: other.machine.consumer}
    other.succeed(running)
    world.advance(0.5)
    assert other.machine.counts["completed"] == 1
