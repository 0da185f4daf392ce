"""Workers that are killed, frozen or blocked: real processes on a real server (rows 19 to 30)."""

import ctypes
import threading
from time import monotonic

import pytest

from streamfleet_conformance.waiting import eventually, throughout

LEASE, SCAN = 1.0, 0.2
MARGIN = 1.5
"""Seconds for a busy machine to do what is due."""


def tasks(number):
    return [b"%d" % n for n in range(number)]


def is_known(stage, number):
    """So many consumers have read from the queue."""
    return len(stage.consumers()) >= number


@pytest.mark.fault_row(19)
def test_all_tasks_of_a_killed_worker_start_elsewhere_within_a_lease_and_a_scan(stage):
    stage.enqueue(*tasks(20))
    doomed = stage.process("hang", concurrency=20)
    doomed.wait_starts(20)
    stage.worker()
    eventually(lambda: is_known(stage, 2), "the other worker is there")
    doomed.kill()
    killed = monotonic()
    starts = stage.journal.wait_starts(20)
    assert max(start.at for start in starts) - killed < LEASE + SCAN + MARGIN
    assert {(start.deliveries, start.attempt) for start in starts} == {(2, 1)}
    stage.drained()
    assert set(stage.journal.times_run().values()) == {1}
    stage.all_ended_once(20)


@pytest.mark.fault_row(20, 21, 22, 23)
@pytest.mark.parametrize(
    ("behaviour", "max_retries"),
    [("gate", 3), ("gate-fail", 3), ("gate-fail", 0)],
    ids=["completes", "would retry", "would bury"],
)
def test_a_worker_that_wakes_up_after_its_lease_changes_nothing_that_others_own(stage, behaviour, max_retries):
    stage.enqueue(*tasks(5), max_retries=max_retries)
    zombie = stage.process(behaviour)
    zombie.wait_starts(5)
    gate = threading.Event()
    heir = stage.worker(lambda task: gate.wait(20))
    eventually(lambda: is_known(stage, 2), "the heir is there")
    zombie.suspend()
    stage.journal.wait_starts(5)
    before = stage.owners()
    assert set(before.values()) == {heir.consumer}

    zombie.resume()
    # Beats are due at once: they must not take the entries back.
    throughout(lambda: stage.owners() == before, LEASE, "the heir keeps its entries")
    zombie.open_gate()
    zombie.wait_ends(5)
    counts = zombie.terminate()
    assert counts["lost"] == 5
    assert stage.owners() == before
    assert stage.call("XLEN", stage.keys.stream) == 5
    assert stage.pipeline([("EXISTS", stage.keys.dead), ("EXISTS", stage.keys.schedule)]) == [0, 0]

    gate.set()
    stage.drained()
    heir.stop()
    stage.all_ended_once(5)
    assert set(stage.journal.times_run().values()) == {1}


@pytest.mark.fault_row(24)
def test_a_handler_that_holds_the_interpreter_beyond_its_lease_costs_a_second_run_and_nothing_else(stage):
    gate = threading.Event()

    def hold_the_interpreter(task):
        gate.wait(20)
        ctypes.PyDLL(None).usleep(ctypes.c_uint(int(3.5 * LEASE * 1e6)))  # a PyDLL call keeps the GIL

    stage.enqueue(b"heavy")
    blocked = stage.worker(hold_the_interpreter, concurrency=1)
    stage.journal.wait_starts(1)
    other = stage.process("complete")
    eventually(lambda: is_known(stage, 2), "the other worker is there")
    gate.set()
    stage.journal.wait_ends(1)
    # Nobody in this process could beat meanwhile, so the other worker has run it, too.
    assert other.wait_starts(1)[0]["deliveries"] == 2
    eventually(lambda: blocked.counts.get("lost") == 1, "the blocked worker drops its outcome")
    stage.drained()
    other.terminate()
    stage.all_ended_once(1)


@pytest.mark.fault_row(25)
def test_a_task_of_many_leases_is_run_once(stage):
    gate = threading.Event()
    stage.enqueue(b"long")
    stage.worker(lambda task: gate.wait(20), lease=0.3)
    stage.journal.wait_starts(1)
    waiting = stage.worker(lease=0.3, scan_interval=0.05)
    eventually(lambda: is_known(stage, 2), "the other worker is there")
    throughout(lambda: waiting.counts.get("reclaimed", 0) == 0, 10 * 0.3, "nothing is taken over")
    gate.set()
    stage.drained()
    assert [start.deliveries for start in stage.journal.starts] == [1]


@pytest.mark.fault_row(26, 27)
def test_nobody_loses_a_task_while_the_server_is_down_for_three_leases(stage):
    stage.enqueue(*tasks(10))
    workers = [stage.process("gate", name=name) for name in ("first", "second")]
    eventually(lambda: sum(len(worker.events("start")) for worker in workers) == 10, "all tasks run")
    before = stage.owners()
    assert len(set(before.values())) == 2

    stage.server.kill()
    stage.hang_up()
    throughout(lambda: not stage.server.running, 3 * LEASE, "the server stays down")
    stage.server.restart()
    newcomer = stage.worker()
    eventually(lambda: is_known(stage, 3), "the newcomer is there")
    # For a lease everybody looks idle to the newcomer, then nobody does any more.
    throughout(lambda: stage.owners() == before, 2 * LEASE, "all keep what is theirs")
    for worker in workers:
        worker.open_gate()
    stage.drained()
    assert newcomer.counts.get("reclaimed", 0) == 0
    assert stage.journal.starts == []
    starts = [event for worker in workers for event in worker.events("start")]
    assert len({start["id"] for start in starts}) == len(starts) == 10
    assert [worker.terminate().get("lost", 0) for worker in workers] == [0, 0]
    stage.all_ended_once(10)


@pytest.mark.fault_row(30)
def test_a_task_that_kills_its_workers_is_put_aside_and_the_others_go_on(stage):
    limit = 2
    [poison] = stage.enqueue(b"poison")
    options = {"lease": 0.5, "max_deliveries": limit, "concurrency": 1}
    for life in range(limit):
        victim = stage.process("poison", **options)
        assert victim.wait_exit() == -9
        [start] = victim.events("start")
        assert (start["id"], start["deliveries"]) == (poison, life + 1)
    survivor = stage.process("poison", **options)
    stage.enqueue(*tasks(5))
    assert {event["data"] for event in survivor.wait_ends(5)} == {"0", "1", "2", "3", "4"}
    [[_, fields]] = eventually(lambda: stage.call("XRANGE", stage.keys.dead, "-", "+"), "it is put aside")
    letter = dict(zip(fields[::2], fields[1::2], strict=True))
    assert letter[b"id"] == poison.encode()
    assert b"without being settled" in letter[b"dead_reason"]
    stage.drained()
    survivor.terminate()
    stage.all_ended_once(6, ["completed", "dead"])
