"""Servers that are killed, slow or cut short in the middle of a write (rows 6, 46, 77, 78)."""

import shutil
import threading
from time import monotonic

import pytest

from streamfleet.embedded import EmbeddedServer
from streamfleet.sync import Client
from streamfleet_conformance.servers import available
from streamfleet_conformance.waiting import eventually, throughout

SERVERS = [name for name in available() if name in ("valkey-9.1", "redis-8.2", "redis-7.0")]
LEASE = 1.0


def offsets(path):
    """Where each command of an append-only file begins, and its words."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        found.append((at, []))
        words, at = _number(data, at)
        for _ in range(words):
            length, at = _number(data, at)
            found[-1][1].append(data[at : at + length])
            at += length + 2
    return found


def _number(data, at):
    """The number of a line such as ``*3`` or ``$10``, and where the next line begins."""
    end = data.index(b"\r\n", at)
    return int(data[at + 1 : end]), end + 2


def written(directory):
    """The append-only file that was being written to."""
    return max(directory.rglob("*.incr.aof"))


def transactions_in(path):
    """Where each transaction begins, each command in it does, and it ends; and the names of its commands."""
    commands = offsets(path)
    found, begin, inner, names = [], None, [], []
    for number, (at, command) in enumerate(commands):
        name = command[0].upper()
        if name == b"MULTI":
            begin, inner, names = at, [], []
        elif begin is not None:
            inner.append(at)
            names.append(name)
            if name == b"EXEC":
                end = commands[number + 1][0] if number + 1 < len(commands) else path.stat().st_size
                found.append((begin, inner, end, tuple(names)))
                begin = None
    return found


def kind(names):
    """What a transaction of these commands does to tasks."""
    if b"ZREM" in names:
        return "move"
    if b"XACK" in names:
        return "retry" if b"ZADD" in names else "completion"
    return "batch" if names[0] == b"XADD" else "other"


def contents(stage):
    """All that the queue consists of."""
    keys = stage.keys
    markers = stage.call("KEYS", "*producer*")
    queries = [
        ("XRANGE", keys.stream, "-", "+"),
        ("XRANGE", keys.dead, "-", "+"),
        ("ZRANGE", keys.schedule, 0, -1, "WITHSCORES"),
        ("HGETALL", keys.scheduled),
        ("MGET", keys.fence, keys.moves),
        *[("HGETALL", marker) for marker in markers],
    ]
    grouped = stage.call("EXISTS", keys.stream) and stage.call("XINFO", "GROUPS", keys.stream)
    return stage.pipeline(queries), stage.owners() if grouped else None


@pytest.mark.fault_row(46)
@pytest.mark.parametrize("name", SERVERS)
def test_a_transaction_whose_end_was_not_written_is_absent_as_a_whole(new_stage, name, tmp_path):
    stage = new_stage(name)
    stage.worker(lambda task: 1 / 0 if task.attempt == 1 and task.data == b"1" else None, concurrency=1)
    stage.enqueue(b"0", b"1", b"2", retry_delay=0.05)
    stage.journal.wait_starts(4)
    stage.drained()
    stage.enqueue(b"later", delay=100)
    stage.server.kill()
    stage.hang_up()
    last_of = {kind(names): places for *places, names in transactions_in(written(stage.server.directory))}
    del last_of["other"]
    assert sorted(last_of) == ["batch", "completion", "move", "retry"]

    def restarted(cut):
        """What a server finds whose file ends there."""
        directory = tmp_path / "cut"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(stage.server.directory, directory)
        with written(directory).open("r+b") as file:
            file.truncate(cut)
        with EmbeddedServer(stage.server.binary, directory=directory) as server:
            view = type(stage)(server)
            try:
                return contents(view)
            finally:
                view.hang_up()

    for begin, inner, end in last_of.values():
        before = restarted(begin)
        for cut in sorted({begin + 3, *inner, inner[1] - 2, end - 1}):
            assert restarted(cut) == before, (begin, cut, end)
        assert restarted(end) != before


@pytest.mark.fault_row(7, 46)
def test_a_client_sends_what_the_end_of_the_file_had_held(stage):
    client = stage.client()
    for number in range(100):
        client.enqueue(stage.queue, b"%d" % number)
    client.flush(10)
    stage.server.kill()
    stage.hang_up()
    path = written(stage.server.directory)
    _, inner, end, _ = transactions_in(path)[-1]
    with path.open("r+b") as file:
        file.truncate((inner[-1] + end) // 2)
    stage.server.restart()
    client.enqueue(stage.queue, b"100")
    client.flush(20)
    eventually(lambda: stage.call("XLEN", stage.keys.stream) >= 101, "what was cut off is sent again")
    rows = stage.call("XRANGE", stage.keys.stream, "-", "+")
    data = [dict(zip(fields[::2], fields[1::2], strict=True))[b"data"] for _, fields in rows]
    assert sorted(map(int, data)) == list(range(101))


@pytest.mark.fault_row(5, 77)
@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(new_stage, fsync):
    """With `everysec` the file is whole as long as the machine stays up: each reply comes after its write."""
    stage = new_stage(extra=("--appendfsync", fsync))
    assert stage.call("CONFIG", "GET", "appendfsync")[1] == fsync.encode()
    stage.worker(concurrency=10)
    over = threading.Event()
    handles = []

    def produce():
        with Client(stage.driver(), [stage.queue]) as client:
            while not over.is_set():
                handles.append(client.enqueue(stage.queue, b"%d" % len(handles)))
                over.wait(0.001)
            client.flush(30)

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for _ in range(5):
            before = len(stage.journal.ends)
            stage.journal.wait_ends(before + 50, within=20)
            stage.server.kill()
            stage.hang_up()
            stage.server.restart()
    finally:
        over.set()
        producer.join()
    stage.drained()
    assert len(handles) > 250
    stage.all_ended_once(len(handles))


@pytest.mark.fault_row(78)
def test_a_server_that_pauses_for_longer_than_the_lease_costs_nothing_but_time(stage):
    gate = threading.Event()
    stage.enqueue(*[b"%d" % number for number in range(10)])
    workers = [stage.worker(lambda task: gate.wait(20), who=who) for who in ("first", "second")]
    stage.journal.wait_starts(10)
    before = stage.owners()
    client = stage.client()
    client.enqueue(stage.queue, b"before")
    client.flush(10)
    began = monotonic()
    stage.call("CLIENT", "PAUSE", int(2.5 * LEASE * 1000), "ALL")
    for number in range(50):
        client.enqueue(stage.queue, b"during %d" % number)
    client.flush(20)
    assert monotonic() - began > 2 * LEASE
    kept = list(before.items())
    throughout(lambda: kept == [pair for pair in stage.owners().items() if pair in kept], LEASE, "all keep theirs")
    gate.set()
    stage.drained()
    assert [worker.counts.get("reclaimed", 0) for worker in workers] == [0, 0]
    assert set(stage.journal.times_run().values()) == {1}
    stage.all_ended_once(61)
