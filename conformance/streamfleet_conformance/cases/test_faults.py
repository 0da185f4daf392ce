"""Requests and replies that get lost, or come late: nothing twice, nothing lost (protocol, sections 3 and 4)."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from streamfleet.task import Task
from streamfleet_conformance.marks import needs, row
from streamfleet_conformance.proxy import Commands, Fault
from streamfleet_conformance.scene import GO_TASK, LEASE, Scene
from streamfleet_conformance.waiting import counted, eventually
from streamfleet_core.connection import Capability
from streamfleet_core.errors import TaskFailed
from streamfleet_core.submission import Status

pytestmark = needs(Capability.OUT_OF_PROCESS)

SECONDS = 20.0
LONG_LEASE = 60.0
BREAKS = [Fault.REQUEST_LOST, Fault.REPLY_LOST, Fault.CUT, Fault.CUT_MID_REPLY, Fault.DELIVERED_LATE]


def publishes(commands: Commands) -> bool:
    """A batch of a client."""
    names = {command[0] for command in commands}
    return b"MULTI" in names and b"HSET" in names and bool(names & {b"XADD", b"ZADD"})


def settles(commands: Commands) -> bool:
    """A settlement of a worker."""
    return any(command[0] == b"XACK" for command in commands)


def moves(commands: Commands) -> bool:
    """A move of due tasks into their stream."""
    return any(command[0] == b"ZREM" for command in commands)


def payloads(scene: Scene) -> Counter[bytes]:
    """How often each payload is in the queue."""
    return Counter(entry[b"data"] for entry in scene.entries())


def name(fault: Fault) -> str:
    """For the names of cases."""
    return fault.name.lower().replace("_", "-")


# ---- enqueue --------------------------------------------------------------------------------------------


@row(1, 2, 3)
@pytest.mark.parametrize("fault", BREAKS, ids=name)
def test_a_batch_whose_outcome_is_unknown_is_in_the_queue_once(scene: Scene, fault: Fault) -> None:
    way = scene.way()
    client = scene.client(way=way)
    client.enqueue(scene.queue, "first")
    client.flush(SECONDS)
    injected = way.proxy.inject(fault, publishes)
    handles = [client.enqueue(scene.queue, str(number)) for number in range(20)]
    injected.wait_hit()
    client.flush(SECONDS)
    way.proxy.release_late()
    assert payloads(scene) == Counter([b"first", *(b"%d" % number for number in range(20))])
    assert {handle.status for handle in handles} == {Status.ACCEPTED}


@row(3)
def test_a_late_batch_that_comes_before_it_is_sent_again_is_noticed(scene: Scene) -> None:
    way = scene.way()
    client = scene.client(way=way)
    client.enqueue(scene.queue, "first")
    client.flush(SECONDS)
    way.proxy.refuse()
    way.proxy.accept()
    late = way.proxy.inject(Fault.DELIVERED_LATE, publishes)
    client.enqueue(scene.queue, "second")
    late.wait_hit()
    way.proxy.release_late()
    client.flush(SECONDS)
    assert payloads(scene) == Counter([b"first", b"second"])


@row(2)
@pytest.mark.parametrize("fault", [Fault.REPLY_LOST, Fault.REQUEST_LOST], ids=name)
def test_a_delayed_task_is_scheduled_once(scene: Scene, fault: Fault) -> None:
    way = scene.way()
    client = scene.client(way=way)
    injected = way.proxy.inject(fault, publishes)
    client.enqueue(scene.queue, "later", delay=60)
    injected.wait_hit()
    client.flush(SECONDS)
    assert scene.do_all(("ZCARD", scene.keys.schedule), ("HLEN", scene.keys.scheduled)) == [1, 1]


def test_a_storm_of_faults_neither_loses_nor_doubles_an_enqueue(scene: Scene) -> None:
    way = scene.way()
    client = scene.client(way=way, batch_tasks=5, buffer_tasks=10_000)
    way.proxy.random_faults(random.Random(7), dict.fromkeys(BREAKS, 0.04))
    for number in range(600):
        client.enqueue(scene.queue, str(number))
    eventually(lambda: way.proxy.counts.total() >= 5, "several faults have happened")
    way.proxy.calm()
    client.flush(SECONDS)
    way.proxy.release_late()
    assert payloads(scene) == Counter(b"%d" % number for number in range(600))


@row(9)
def test_a_lost_marker_is_noticed_and_told(scene: Scene) -> None:
    client = scene.client()
    client.enqueue_many(scene.queue, [b"%d" % number for number in range(10)])
    client.flush(SECONDS)
    [marker] = [key for key in scene.own_keys() if b":producer:" in key]
    scene.do("DEL", marker)
    client.enqueue(scene.queue, "next")
    client.flush(SECONDS)
    counted(client, regressed=1)
    counted(client, resent=10)
    found = payloads(scene)
    assert found.keys() == {b"%d" % number for number in range(10)} | {b"next"}
    assert found[b"next"] == 1


# ---- settle ---------------------------------------------------------------------------------------------


@row(41, 42)
@pytest.mark.parametrize("fault", BREAKS, ids=name)
@pytest.mark.parametrize("end", ["completed", "retry", "dead"])
def test_a_settlement_whose_outcome_is_unknown_happens_once(scene: Scene, fault: Fault, end: str) -> None:
    def script(task: Task) -> bytes:
        if end == "dead" or (end == "retry" and task.attempt == 1):
            raise RuntimeError("on purpose")
        return b"%d" % task.attempt

    way = scene.way()
    worker = scene.worker(scene.journal.handler(script), way=way, lease=LONG_LEASE)
    client = scene.client()
    client.enqueue_tracked(scene.queue, "warm up", max_retries=1, retry_delay=0)
    scene.journal.wait_starts({"completed": 1, "retry": 2, "dead": 2}[end])
    scene.drained()
    before = len(scene.dead_letters())
    injected = way.proxy.inject(fault, settles)
    handle = client.enqueue_tracked(scene.queue, "x", max_retries=int(end == "retry"), retry_delay=0)
    injected.wait_hit()
    if end == "dead":
        with pytest.raises(TaskFailed):
            handle.wait(SECONDS)
    else:
        assert handle.wait(SECONDS) == (b"2" if end == "retry" else b"1")
    scene.drained()
    way.proxy.release_late()
    scene.drained()
    assert len(scene.dead_letters()) - before == int(end == "dead")
    assert scene.journal.times_run()[b"x"] == (2 if end == "retry" else 1)
    assert not client.counts.get("repeated_notices")
    eventually(lambda: worker.in_flight == 0, "the worker holds nothing")


@row(50)
@pytest.mark.parametrize("fault", BREAKS, ids=name)
def test_a_move_whose_outcome_is_unknown_happens_once(scene: Scene, fault: Fault) -> None:
    way = scene.way()
    injected = way.proxy.inject(fault, moves)
    client = scene.client()
    for number in range(10):
        client.enqueue(scene.queue, str(number), delay=0.01)
    client.flush(SECONDS)
    scene.worker(way=way, lease=LONG_LEASE)
    injected.wait_hit()
    scene.journal.wait_ends(10)
    scene.drained()
    way.proxy.release_late()
    scene.drained()
    assert scene.journal.times_run() == Counter(b"%d" % number for number in range(10))


@row(51)
def test_movers_that_race_through_faults_move_each_task_once(scene: Scene) -> None:
    ways = [scene.way() for _ in range(3)]
    client = scene.client()
    for number in range(300):
        client.enqueue(scene.queue, str(number), delay=0.05 + number / 1000)
    client.flush(SECONDS)
    for seed, way in enumerate(ways):
        rates = dict.fromkeys((Fault.REPLY_LOST, Fault.DELIVERED_LATE), 0.05)
        way.proxy.random_faults(random.Random(seed), rates)
        scene.worker(way=way, lease=5.0)
    eventually(lambda: len(scene.journal.times_run()) == 300, "each task has run", 30.0)
    for way in ways:
        way.proxy.calm()
    scene.drained()
    assert {task for task, times in scene.journal.times_run().items() if times > 1} == set()


@row(60)
@pytest.mark.parametrize("fault", [Fault.REPLY_LOST, Fault.CUT_MID_REPLY], ids=name)
def test_a_notice_whose_delivery_was_lost_is_read_again(scene: Scene, fault: Fault) -> None:
    gate = scene.gate()
    scene.worker(scene.journal.handler(lambda task: (gate.wait(), b"done")[1]))
    way = scene.way()
    client = scene.client(way=way, block=0.2)
    handle = client.enqueue_tracked(scene.queue, "x")
    scene.journal.wait_starts(1)
    way.proxy.blackhole()
    gate.set()
    scene.drained()
    injected = way.proxy.inject(fault, b"XREAD", times=2)
    way.proxy.heal()
    injected.wait_hit()
    assert handle.wait(SECONDS) == b"done"
    way.proxy.calm()
    eventually(lambda: receiver_is_empty(scene), "the notice was deleted")


def receiver_is_empty(scene: Scene) -> bool:
    """The only client's receiver exists and holds nothing."""
    [receiver] = [key for key in scene.own_keys() if b":receiver:" in key]
    return scene.do("XLEN", receiver) == 0


def test_a_storm_of_faults_over_a_whole_fleet(scene: Scene) -> None:
    """Each accepted task reaches exactly one end, and its client is told of it."""

    def script(task: Task) -> bytes:
        if int(task.data) % 5 == 0 and task.attempt == 1:
            raise RuntimeError("once")
        return task.data

    seeds = iter(range(100))
    ways = [scene.way() for _ in range(3)]
    for way in ways[:2]:
        scene.worker(scene.journal.handler(script), way=way, lease=2 * LEASE)
    client = scene.client(way=ways[2], batch_tasks=7)
    for way in ways:
        way.proxy.random_faults(random.Random(next(seeds)), dict.fromkeys(BREAKS, 0.02))
    handles = [client.enqueue_tracked(scene.queue, str(number), retry_delay=0) for number in range(200)]
    eventually(lambda: sum(handle.status.terminal for handle in handles) > 100, "half have ended", 30.0)
    for way in ways:
        way.proxy.calm()
    results = Counter(handle.wait(30.0) for handle in handles)
    assert results == Counter(b"%d" % number for number in range(200))
    scene.drained()
    assert scene.dead_letters() == []


def test_garbage_among_the_notices_harms_nobody(scene: Scene) -> None:
    scene.worker()
    client = scene.client()
    client.enqueue_tracked(scene.queue, "first").wait(SECONDS)
    [receiver] = [key for key in scene.own_keys() if b":receiver:" in key]
    scene.do("XADD", receiver, "*", "some", "garbage")
    client.enqueue_tracked(scene.queue, GO_TASK["data"]).wait(SECONDS)
    eventually(lambda: receiver_is_empty(scene), "the garbage was removed")
