"""Stopping in a hurry, and handlers that are stopped from outside."""

import random

import pytest

from streamfleet_core.config import WorkerConfig
from streamfleet_core.state import Phase
from streamfleet_core.wire import Task, encode_task
from streamfleet_core.worker import WorkerMachine


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


def test_a_second_stop_can_shorten_the_wait_for_handlers_and_not_lengthen_it(machine):
    delivery = running_delivery(machine)
    machine.stop(1.0)
    machine.stop(2.0, 60.0)
    machine.tick(2.0)
    assert delivery.phase is Phase.RUNNING
    assert machine.stop_at == 31.0
    machine.stop(3.0, 0.0)
    machine.tick(3.0)
    assert delivery.phase is Phase.RELEASING
    assert delivery.cancelled == "the worker stops"
