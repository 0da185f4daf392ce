"""The server's wall clock is set while everybody works (row 37).

On the model server always; on a real one where a C compiler can make the library that is preloaded into it.
"""

import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from streamfleet_conformance.waiting import eventually, throughout
from streamfleet_core.keys import queue_keys

MINUTES = 60_000
"""Milliseconds."""
LEASE = 10.0

compiled = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None,
    reason="capability: a C compiler on Linux, to move a server's clock without moving the machine's",
)


class Jumping:
    """A world whose server's clock can be set."""

    def __init__(self, world):
        self.moved_ms = 0
        honest, deadline = world.server_ms, world.server.next_deadline
        world.server.now_ms = lambda: honest() + self.moved_ms
        # The world goes by its own time from one deadline of the server to the next.
        world.server.next_deadline = lambda: None if deadline() is None else deadline() - self.moved_ms


@pytest.fixture
def jump(world):
    return Jumping(world)


def test_the_model_follows_its_clock(world, jump):
    before = int(world.call("TIME")[0])
    jump.moved_ms = 10 * MINUTES
    assert int(world.call("TIME")[0]) - before == 600


@pytest.mark.fault_row(37)
def test_a_clock_set_forward_costs_second_runs_at_most(world, jump):
    first, second = world.worker(concurrency=1), world.worker(concurrency=1)
    world.advance(LEASE + 1)
    world.enqueue("t1")
    world.pump()
    owner, other = (first, second) if first.machine.held else (second, first)
    mine = owner.take()
    jump.moved_ms = 10 * MINUTES
    world.advance(1.0)  # shorter than what is left until the next beat, longer than a scan
    runs = [(owner, mine)]
    if other.machine.held:
        runs.append((other, other.take()))
    for worker, delivery in runs:
        worker.succeed(delivery)
    world.advance(LEASE)
    assert world.stream() == world.dead() == []
    assert world.pending() == {}
    assert sum(worker.machine.counts["completed"] for worker, _ in runs) == 1
    assert sum(worker.machine.counts["lost"] for worker, _ in runs) == len(runs) - 1


@pytest.mark.fault_row(37)
def test_a_clock_set_back_delays_recovery_and_loses_nothing(world, jump):
    doomed = world.worker(concurrency=1)
    world.enqueue("t1")
    world.pump()
    doomed.take()
    doomed.crash()
    jump.moved_ms = -10 * MINUTES
    heir = world.worker(concurrency=1)
    client = world.client()
    submission = client.enqueue(b"new", tracked=True)
    world.pump()
    heir.succeed(heir.take())
    world.pump()
    assert submission.status.terminal, "what is new is not delayed"
    assert world.server.next_deadline() is not None, "reads go on"

    world.advance(3 * LEASE)
    assert heir.machine.held == 0, "nobody can tell that its owner is silent"
    world.advance(600 + 3 * LEASE)
    heir.succeed(heir.take())
    world.pump()
    assert world.call("XLEN", queue_keys("q").stream) == 0


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """What moves a server's clock."""
    path = tmp_path_factory.mktemp("clock") / "movable_clock.so"
    source = Path(__file__).parent / "movable_clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(path), str(source)], check=True)
    return path


@compiled
@pytest.mark.fault_row(37)
@pytest.mark.parametrize("minutes", [10, -10])
@pytest.mark.parametrize("server", ["valkey-9.1", "redis-8.2"])
def test_a_real_servers_clock_may_be_set_under_load(new_stage, library, tmp_path, monkeypatch, server, minutes):
    clock = tmp_path / "clock"
    clock.write_bytes(struct.pack("=q", 0))
    monkeypatch.setenv("FAULTS_CLOCK", str(clock))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    stage = new_stage(server)
    monkeypatch.undo()
    before = time.time()
    gate = threading.Event()

    def wait_if_long(task):
        if task.data == b"long":
            gate.wait(20)

    options = {"lease": 1.0, "poll_interval": 0.05, "sweep_interval": 0.4}
    workers = [stage.worker(wait_if_long, who=who, **options) for who in ("1", "2")]
    client = stage.client()
    accepted = [client.enqueue(stage.queue, b"long")]
    stage.journal.wait_starts(1)
    accepted += [client.enqueue(stage.queue, b"%d" % number) for number in range(200)]
    accepted.append(client.enqueue(stage.queue, b"scheduled", delay=0.5))
    client.flush(10)

    with clock.open("r+b") as file:
        file.write(struct.pack("=q", minutes * MINUTES))
    # The server keeps the time of its current round: one that was under way still has the old one.
    eventually(lambda: abs(int(stage.call("TIME")[0]) - before - minutes * 60) < 60, "the server believes it")
    accepted += [client.enqueue(stage.queue, b"%d" % number) for number in range(200, 400)]
    client.flush(10)
    only_long = [("XLEN", stage.keys.stream), ("ZCARD", stage.keys.schedule)]
    eventually(lambda: stage.pipeline(only_long) == [1, int(minutes < 0)], "all others run")
    throughout(lambda: stage.call("XLEN", stage.keys.stream) == 1, 1.5, "the long task is still somebody's")
    gate.set()
    if minutes < 0:  # what was to be run in half a second is due when the clock shows that again
        with clock.open("r+b") as file:
            file.write(struct.pack("=q", 0))
    stage.drained()
    eventually(lambda: not any(worker.in_flight for worker in workers), "all is settled")
    runs = stage.journal.times_run()
    long = runs.pop(b"long")
    assert 1 <= long <= 2
    assert set(runs.values()) == {1}
    stage.all_ended_once(len(accepted))
