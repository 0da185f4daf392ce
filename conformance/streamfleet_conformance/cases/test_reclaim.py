"""Delivery, leases and what becomes of the entries of silent workers (protocol, section 5)."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from streamfleet.task import Task
from streamfleet_conformance.marks import in_threads, needs, owned, row
from streamfleet_conformance.proxy import Commands, Fault
from streamfleet_conformance.scene import GO_TASK, LEASE, Scene
from streamfleet_conformance.waiting import counted, eventually, throughout
from streamfleet_core.connection import Capability
from streamfleet_core.keys import GROUP

OUT = Capability.OUT_OF_PROCESS
SECONDS = 15.0
LONG_LEASE = 60.0
"""Longer than any case: what happens within it was not reclaimed."""


def add_tasks(scene: Scene, count: int, **fields: str) -> None:
    """Put tasks into the queue whose payloads and ids are numbered."""
    for number in range(count):
        scene.add(GO_TASK | {"id": f"{GO_TASK['id'][:-4]}{number:04}", "data": str(number)} | fields)


def reads_new(commands: Commands) -> bool:
    """A request that reads new entries."""
    return any(command[0] == b"XREADGROUP" and command[-1] == b">" for command in commands)


@row(19, 28)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_dead_workers_entries_run_elsewhere_once(scene: Scene, workers: int) -> None:
    add_tasks(scene, 30)
    scene.dead_consumer(30)
    running = [scene.worker() for _ in range(workers)]
    attempts = scene.journal.wait_ends(30)
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}
    assert {attempt.deliveries for attempt in attempts} == {2}
    assert sum(worker.counts.get("reclaimed", 0) for worker in running) == 30


@row(27)
def test_a_new_worker_waits_for_a_lease_of_its_own_contact(scene: Scene) -> None:
    add_tasks(scene, 1)
    [entry] = scene.dead_consumer(1)
    scene.do("XCLAIM", scene.keys.stream, GROUP, "dead:consumer", 0, entry, "IDLE", 3_600_000, "JUSTID")
    begun = monotonic()
    scene.worker()
    [attempt] = scene.journal.wait_ends(1)
    assert LEASE * 0.95 <= attempt.at - begun < LEASE + 5.0


@row(25, 29)
@pytest.mark.parametrize("others", [0, 1])
def test_a_long_task_is_never_taken_from_a_healthy_worker(scene: Scene, others: int) -> None:
    gate = scene.gate()
    add_tasks(scene, 1)
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()), lease=0.5)
    scene.journal.wait_starts(1)
    for _ in range(others):
        scene.worker(lease=0.5)
    throughout(lambda: len(scene.journal.starts) == 1, 5 * 0.5, "the task runs once")
    [pending] = scene.pending()
    assert (pending[1], pending[3]) == (worker.consumer.encode(), 1)
    gate.set()
    scene.drained()
    assert len(scene.journal.starts) == 1


@row(26)
def test_an_outage_of_several_leases_ends_each_task_once(scene: Scene) -> None:
    """Handlers that can be stopped begin anew, without a failed attempt; the others go on."""
    gate = scene.gate()
    way = scene.way()
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait() and None), way=way)
    client = scene.client()
    handles = [client.enqueue_tracked(scene.queue, str(number), max_retries=0) for number in range(4)]
    scene.journal.wait_starts(4)
    way.block()
    eventually(lambda: all(start.task.cancelled for start in scene.journal.starts), "the tasks count as given up")
    eventually(lambda: worker.interrupted == 4 * scene.interrupts, "the handlers are interrupted")
    way.open()
    scene.journal.wait_starts(4 + worker.interrupted)
    gate.set()
    for handle in handles:
        handle.wait(SECONDS)
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1 + scene.interrupts}
    assert {attempt.attempt for attempt in scene.journal.starts} == {1}
    counted(worker, completed=4)


@row(26)
@in_threads
def test_an_outage_of_several_leases_costs_no_live_task(scene: Scene) -> None:
    gate = scene.gate()
    add_tasks(scene, 4)
    ways = [scene.way(), scene.way()]
    workers = [scene.worker(scene.journal.handler(lambda task: gate.wait()), way=w, concurrency=2) for w in ways]
    scene.journal.wait_starts(4)
    for way in ways:
        way.block()
    begun = monotonic()
    eventually(lambda: monotonic() - begun > 3 * LEASE, "three leases have passed")
    for way in ways:
        way.open()
    throughout(lambda: len(scene.journal.starts) == 4, 2 * LEASE, "no task begins anew")
    gate.set()
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}
    assert [worker.counts.get("reclaimed", 0) for worker in workers] == [0, 0]


@row(19)
@needs(OUT)
def test_a_killed_process_loses_nothing(scene: Scene) -> None:
    client = scene.client()
    handles = [client.enqueue_tracked(scene.queue, str(number)) for number in range(10)]
    client.flush(SECONDS)
    process = scene.process("hang")
    held = {event["data"].encode() for event in process.wait_starts(4)}
    scene.worker()
    scene.journal.wait_ends(6)
    process.kill()
    killed = monotonic()
    for handle in handles:
        handle.wait(SECONDS)
    assert monotonic() - killed < LEASE + 5.0
    assert {attempt.data for attempt in scene.journal.ends if attempt.deliveries > 1} == held
    scene.drained()


@row(20, 21, 22)
@needs(OUT)
@pytest.mark.parametrize("behaviour", ["gate", "gate-fail"])
@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_worker_that_wakes_up_changes_nothing(scene: Scene, behaviour: str, max_retries: int) -> None:
    handle = scene.client().enqueue_tracked(scene.queue, "x", max_retries=max_retries, retry_delay=0)
    zombie = scene.process(behaviour)
    zombie.wait_starts(1)
    zombie.suspend()
    gate = scene.gate()
    owner = scene.worker(scene.journal.handler(lambda task: (gate.wait(), b"by its owner")[1]))
    scene.journal.wait_starts(1)
    zombie.open_gate()
    zombie.resume()
    zombie.wait_ends(1)
    counts = zombie.terminate()
    assert counts.get("lost") == 1, (counts, zombie.log)
    assert not counts.keys() & {"completed", "retry", "dead"}, (counts, zombie.log)
    assert [line[1] for line in scene.pending()] == [owner.consumer.encode()]
    assert len(scene.entries()) == 1
    gate.set()
    assert handle.wait(SECONDS) == b"by its owner"
    scene.drained()
    assert scene.dead_letters() == []
    assert len(scene.journal.starts) == 1


@row(23)
@needs(OUT)
def test_the_beat_of_a_worker_that_wakes_up_steals_nothing(scene: Scene) -> None:
    add_tasks(scene, 1)
    zombie = scene.process("gate")
    zombie.wait_starts(1)
    zombie.suspend()
    gate = scene.gate()
    owner = scene.worker(scene.journal.handler(lambda task: gate.wait())).consumer.encode()
    scene.journal.wait_starts(1)
    zombie.resume()
    throughout(lambda: [line[1] for line in scene.pending()] == [owner], 2 * LEASE, "the owner keeps it")
    gate.set()
    scene.drained()
    assert len(scene.journal.starts) == 1


@row(30)
def test_what_was_delivered_too_often_is_put_aside(scene: Scene) -> None:
    add_tasks(scene, 1)
    [entry] = scene.dead_consumer(1)
    scene.do("XCLAIM", scene.keys.stream, GROUP, "dead:consumer", 0, entry, "RETRYCOUNT", 5, "JUSTID")
    add_tasks(scene, 1, data="next")
    scene.worker()
    eventually(scene.dead_letters, "there is a dead letter")
    scene.drained()
    [letter] = scene.dead_letters()
    assert letter[b"data"] == b"0"
    assert b"delivered 5 times" in letter[b"dead_reason"]
    assert [attempt.data for attempt in scene.journal.starts] == [b"next"]


@row(30)
@needs(OUT)
def test_a_task_that_kills_its_workers_is_put_aside(scene: Scene) -> None:
    handle = scene.client().enqueue_tracked(scene.queue, "poison")
    for _ in range(2):
        process = scene.process("poison", max_deliveries=2)
        assert process.wait_exit() == -9
        assert len(process.events("start")) == 1
    scene.worker(max_deliveries=2)
    eventually(scene.dead_letters, "there is a dead letter")
    assert scene.dead_letters()[0][b"id"] == handle.id.encode()
    scene.drained()
    assert scene.journal.starts == []


@row(31)
def test_a_deleted_entry_leaves_the_pending_list(scene: Scene) -> None:
    add_tasks(scene, 3)
    entries = scene.dead_consumer(3)
    scene.do("XDEL", scene.keys.stream, entries[1])
    scene.worker()
    eventually(lambda: not scene.pending(), "nothing is pending")
    assert {attempt.data for attempt in scene.journal.wait_ends(2)} == {b"0", b"2"}
    scene.drained()
    assert len(scene.journal.starts) == 2


@row(36)
@pytest.mark.parametrize("loss", ["group", "stream"])
def test_a_lost_group_is_created_again(scene: Scene, loss: str) -> None:
    scene.worker(block=0.5)
    add_tasks(scene, 1)
    scene.journal.wait_ends(1)
    scene.drained()
    if loss == "group":
        scene.do("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    else:
        scene.do("DEL", scene.keys.stream)
    scene.add(GO_TASK | {"data": "after"})
    assert scene.journal.wait_ends(2)[1].data == b"after"
    scene.drained()


@row(36)
@owned
def test_a_flushed_server_is_taken_into_use_again(scene: Scene) -> None:
    scene.worker(block=0.5)
    client = scene.client()
    client.enqueue_tracked(scene.queue, "before").wait(SECONDS)
    scene.do("FLUSHALL")
    client.enqueue_tracked(scene.queue, "after").wait(SECONDS)
    scene.drained()


@row(36)
def test_an_entry_of_a_lost_group_ends_once_though_it_runs(scene: Scene) -> None:
    gate = scene.gate()
    add_tasks(scene, 1)
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()))
    scene.journal.wait_starts(1)
    scene.do("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    eventually(lambda: [row[1] for row in scene.pending()] == [worker.consumer.encode()], "it is delivered again")
    gate.set()
    scene.drained()
    counted(worker, completed=1)


@row(36)
def test_entries_of_a_lost_group_run_again_when_their_worker_is_gone(scene: Scene) -> None:
    add_tasks(scene, 3)
    scene.dead_consumer(3)
    scene.do("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    scene.worker(lease=LONG_LEASE)
    scene.journal.wait_ends(3)
    scene.drained()


@row(35)
def test_entries_of_a_deleted_consumer_are_restored(scene: Scene) -> None:
    add_tasks(scene, 5)
    scene.dead_consumer(5)
    scene.do("XGROUP", "DELCONSUMER", scene.keys.stream, GROUP, "dead:consumer")
    scene.worker(sweep_interval=0.4)
    scene.journal.wait_ends(5)
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}


@row(35)
def test_a_live_consumer_may_be_deleted(scene: Scene) -> None:
    gate = scene.gate()
    add_tasks(scene, 1)
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()), sweep_interval=0.4)
    scene.journal.wait_starts(1)
    scene.do("XGROUP", "DELCONSUMER", scene.keys.stream, GROUP, worker.consumer)
    eventually(lambda: len(scene.pending()) == 1, "the entry has an owner again")
    gate.set()
    scene.drained()
    counted(worker, completed=1)


@row(34)
def test_consumers_are_removed_when_they_have_nothing_and_are_long_gone(scene: Scene) -> None:
    add_tasks(scene, 2)
    scene.dead_consumer(2)
    for number in range(20):
        scene.do("XGROUP", "CREATECONSUMER", scene.keys.stream, GROUP, f"gone:{number}")
    worker = scene.worker(sweep_interval=0.2, consumer_timeout=0.2)
    eventually(lambda: set(scene.consumers()) == {worker.consumer}, "only the worker is left")
    assert len(scene.journal.wait_ends(2)) == 2
    scene.drained()


@row(34)
def test_consumers_stay_while_they_have_something_or_may_come_back(scene: Scene) -> None:
    add_tasks(scene, 1)
    scene.dead_consumer(1)
    scene.do("XGROUP", "CREATECONSUMER", scene.keys.stream, GROUP, "young:1")
    worker = scene.worker(sweep_interval=0.2, lease=LONG_LEASE)
    expected = {worker.consumer, "dead:consumer", "young:1"}
    # Before 7.2 the server does not list a consumer that has never been given anything.
    scene.client().enqueue_tracked(scene.queue, "x").wait(SECONDS)
    throughout(lambda: set(scene.consumers()) == expected, 0.6, "nobody is removed")


@row(39)
def test_a_stopping_worker_gives_back_what_it_has_not_started(scene: Scene) -> None:
    lease, gate, hold = 2.0, scene.gate(), scene.gate()
    scripts = {b"slow": gate, b"hold": hold}

    def script(task: Task) -> None:
        if task.data in scripts:
            scripts[task.data].wait()

    begun = monotonic()
    client = scene.client()
    client.enqueue_many(scene.queue, [b"hold"] * 2)
    other = scene.worker(scene.journal.handler(script, "other"), concurrency=2, lease=lease)
    scene.journal.wait_starts(2)
    worker = scene.worker(scene.journal.handler(script, "leaving"), concurrency=1, lease=lease, max_prefetch=50)
    client.enqueue_many(scene.queue, [b"quick"] * 300 + [b"slow"] + [b"late"] * 20)
    scene.journal.wait_starts(303)
    eventually(lambda: worker.in_flight > 10, "entries are prefetched")
    eventually(lambda: monotonic() - begun > 1.5 * lease, "the other worker has had a lease of contact")
    hold.set()
    stopped = monotonic()
    stop = threading.Thread(target=lambda: worker.stop(0.1))
    stop.start()
    eventually(lambda: scene.journal.times_run()[b"late"] == 20, "what was prefetched runs elsewhere", 5.0)
    eventually(lambda: scene.journal.times_run()[b"slow"] == 2, "what was given up runs elsewhere", 5.0)
    assert monotonic() - stopped < 0.9 * lease
    late = [attempt for attempt in scene.journal.starts if attempt.data == b"late"]
    assert {(attempt.who, attempt.deliveries) for attempt in late} == {("other", 1)}
    assert worker.interrupted == int(scene.interrupts)
    gate.set()
    stop.join(SECONDS)
    scene.drained()
    counted(other, completed=23)


def test_a_stopping_worker_lets_running_handlers_finish(scene: Scene) -> None:
    gate = scene.gate()
    add_tasks(scene, 1)
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()))
    scene.journal.wait_starts(1)
    stop = threading.Thread(target=lambda: worker.stop(SECONDS))
    stop.start()
    throughout(stop.is_alive, 0.2, "the worker waits for its handler")
    gate.set()
    stop.join(SECONDS)
    counted(worker, completed=1)
    scene.drained()


@row(17)
@needs(OUT)
def test_an_entry_whose_delivery_was_lost_runs_at_once(scene: Scene) -> None:
    add_tasks(scene, 3)
    scene.group()
    way = scene.way()
    lost = way.proxy.inject(Fault.REPLY_LOST, reads_new)
    scene.worker(way=way, lease=LONG_LEASE)
    lost.wait_hit()
    scene.journal.wait_ends(3)
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}


@row(18)
@needs(OUT)
def test_an_entry_that_a_late_read_took_is_not_forgotten(scene: Scene) -> None:
    scene.group()
    way = scene.way()
    late = way.proxy.inject(Fault.DELIVERED_LATE, reads_new)
    worker = scene.worker(way=way, block=1.0)
    late.wait_hit()
    release = threading.Thread(target=way.proxy.release_late)
    release.start()
    add_tasks(scene, 8)
    scene.journal.wait_ends(8)
    release.join(SECONDS)
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}
    counted(worker, completed=8)
