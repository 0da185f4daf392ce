"""Servers that die, come back, run full or refuse to write."""

from __future__ import annotations

from collections import Counter

import pytest

from streamfleet_conformance.marks import in_threads, needs, owned, row
from streamfleet_conformance.scene import LEASE, Scene
from streamfleet_conformance.waiting import counted, eventually, throughout
from streamfleet_core.connection import Capability
from streamfleet_core.submission import Status

SECONDS = 20.0


@row(5)
@needs(Capability.PERSISTENCE)
@owned(durable=True)
def test_a_server_killed_under_load_loses_nothing_accepted(scene: Scene) -> None:
    for _ in range(2):
        scene.worker()
    client = scene.client(batch_tasks=10)
    handles = [client.enqueue_tracked(scene.queue, str(number)) for number in range(300)]
    eventually(lambda: any(handle.status.terminal for handle in handles), "some have ended")
    scene.backend.kill()
    handles += [client.enqueue_tracked(scene.queue, str(number)) for number in range(300, 350)]
    scene.backend.restart()
    for handle in handles:
        handle.wait(SECONDS)
    scene.drained()
    assert len(scene.journal.times_run()) == 350
    assert not client.counts.get("regressed")
    completed = Counter(attempt.data for attempt in scene.journal.ends)
    assert completed.total() - len(completed) <= 40  # at most what was in flight ran again


@row(6)
@owned
def test_a_server_that_lost_its_data_is_noticed_and_what_is_kept_sent_again(scene: Scene) -> None:
    client = scene.client()
    handles = client.enqueue_many(scene.queue, [b"%d" % number for number in range(20)])
    client.flush(SECONDS)
    scene.backend.kill()
    scene.backend.restart()
    handles = [*handles, client.enqueue(scene.queue, "next")]
    client.flush(SECONDS)
    counted(client, regressed=1)
    assert Counter(e[b"data"] for e in scene.entries()) == Counter([*(b"%d" % n for n in range(20)), b"next"])
    assert {handle.status for handle in handles} == {Status.ACCEPTED}


@row(6)
@owned
def test_workers_and_tracked_tasks_survive_the_loss_of_all_data(scene: Scene) -> None:
    gate = scene.gate()
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()))
    client = scene.client(heartbeat=0.2, block=0.2)
    client.enqueue_tracked(scene.queue, "before")
    scene.journal.wait_starts(1)
    scene.backend.kill()
    scene.backend.restart()
    gate.set()
    handle = client.enqueue_tracked(scene.queue, "after")
    eventually(lambda: handle.status.terminal, "it has an end, or is known to be unknown")
    assert handle.status in (Status.COMPLETED, Status.UNKNOWN)
    eventually(lambda: worker.in_flight == 0, "the worker holds nothing")
    scene.drained()


@row(26)
@needs(Capability.PERSISTENCE)
@owned(durable=True)
@in_threads
def test_a_server_that_is_down_for_three_leases_costs_no_live_task(scene: Scene) -> None:
    gate = scene.gate()
    client = scene.client()
    client.enqueue_many(scene.queue, [b"%d" % number for number in range(4)])
    for _ in range(2):
        scene.worker(scene.journal.handler(lambda task: gate.wait()), concurrency=2)
    scene.journal.wait_starts(4)
    scene.backend.kill()
    throughout(lambda: len(scene.journal.starts) == 4, 3 * LEASE, "nothing begins without a server")
    scene.backend.restart()
    throughout(lambda: len(scene.journal.starts) == 4, 2 * LEASE, "no task begins anew")
    gate.set()
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}


@row(78)
@needs(Capability.OUT_OF_PROCESS)
@owned
def test_a_frozen_server_costs_nothing_but_time(scene: Scene) -> None:
    worker = scene.worker(lease=3.0)
    client = scene.client()
    client.enqueue_tracked(scene.queue, "before").wait(SECONDS)
    scene.backend.suspend()
    handle = client.enqueue_tracked(scene.queue, "meanwhile")
    with pytest.raises(TimeoutError):
        handle.wait(0.5)
    scene.backend.resume()
    handle.wait(SECONDS)
    scene.drained()
    counted(worker, completed=2)
    assert set(scene.journal.times_run().values()) == {1}


@row(11)
@needs(Capability.SERVER_INFO)
@owned
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    ],
    ids=["noreplicas", "readonly"],
)
def test_a_server_that_takes_no_writes_is_waited_for(
    scene: Scene, begin: tuple[str, ...], end: tuple[str, ...]
) -> None:
    gate = scene.gate()
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()), block=0.5)
    client = scene.client()
    first = client.enqueue_tracked(scene.queue, "first")
    scene.journal.wait_starts(1)
    assert scene.do(*begin) == b"OK"
    second = client.enqueue_tracked(scene.queue, "second")
    gate.set()
    with pytest.raises(TimeoutError):
        second.accepted(0.5)
    assert not first.status.terminal
    assert scene.do(*end) == b"OK"
    first.wait(SECONDS)
    second.wait(SECONDS)
    scene.drained()
    counted(worker, completed=2)
