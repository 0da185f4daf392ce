"""How deliveries end: completed, retried, dead-lettered, and what gets in the way (protocol, section 4)."""

from __future__ import annotations

from uuid import uuid4

import pytest

from streamfleet.task import Task
from streamfleet_conformance.marks import needs, owned, row
from streamfleet_conformance.scene import GO_TASK, Scene
from streamfleet_conformance.waiting import counted, eventually
from streamfleet_core.connection import Capability
from streamfleet_core.errors import DoNotRetry, PermissionMissing, RetryLater, TaskFailed, WrongKeyType
from streamfleet_core.keys import GROUP

SECONDS = 10.0


def fail(task: Task) -> None:
    """A handler that never succeeds."""
    raise RuntimeError(f"attempt {task.attempt}")


def test_a_failed_task_is_tried_again(scene: Scene) -> None:
    scene.worker(scene.journal.handler(lambda task: fail(task) if task.attempt < 3 else task.data))
    handle = scene.client().enqueue_tracked(scene.queue, "x", retry_delay=0)
    assert handle.wait(SECONDS) == b"x"
    assert [(a.attempt, a.deliveries) for a in scene.journal.starts] == [(1, 1), (2, 1), (3, 1)]
    assert {attempt.id for attempt in scene.journal.starts} == {handle.id}
    scene.drained()


@row(47)
@pytest.mark.parametrize("most", [0, 1, 3])
def test_when_its_retries_are_used_up_it_becomes_a_dead_letter(scene: Scene, most: int) -> None:
    scene.worker(scene.journal.handler(fail))
    handle = scene.client().enqueue_tracked(scene.queue, "x", max_retries=most, retry_delay=0)
    with pytest.raises(TaskFailed, match=f"attempt {most + 1}"):
        handle.wait(SECONDS)
    assert len(scene.journal.starts) == most + 1
    scene.drained()
    [letter] = scene.dead_letters()
    assert (letter[b"id"], letter[b"data"]) == (handle.id.encode(), b"x")
    assert letter[b"retries"] == b"%d" % most
    assert letter[b"last_error"] == b"RuntimeError: attempt %d" % (most + 1)
    assert b"in fail" in letter[b"traceback"]
    assert letter[b"dead_reason"]
    assert int(letter[b"dead_ms"]) > 1_600_000_000_000


def test_a_handler_may_forbid_retries(scene: Scene) -> None:
    def give_up(task: Task) -> None:
        raise DoNotRetry("pointless")

    scene.worker(scene.journal.handler(give_up))
    with pytest.raises(TaskFailed, match="pointless"):
        scene.client().enqueue_tracked(scene.queue, "x", max_retries=None).wait(SECONDS)
    assert len(scene.journal.starts) == 1
    assert len(scene.dead_letters()) == 1


def test_a_handler_may_choose_its_delay(scene: Scene) -> None:
    def later_once(task: Task) -> None:
        if task.attempt == 1:
            raise RetryLater(0.3, "not yet")

    scene.worker(scene.journal.handler(later_once))
    scene.client().enqueue_tracked(scene.queue, "x", retry_delay=60).wait(SECONDS)
    first, second = scene.journal.starts
    assert (first.attempt, second.attempt) == (1, 2)
    assert 0.29 <= second.at - first.at < 3.0
    scene.drained()


def test_without_end_means_that(scene: Scene) -> None:
    scene.worker(scene.journal.handler(lambda task: fail(task) if task.attempt < 20 else None))
    scene.client().enqueue_tracked(scene.queue, "x", max_retries=None, retry_delay=0).wait(SECONDS)
    assert len(scene.journal.starts) == 20


@row(48)
def test_a_delayed_retry_survives_its_worker(scene: Scene) -> None:
    worker = scene.worker(scene.journal.handler(fail))
    handle = scene.client().enqueue_tracked(scene.queue, "x", retry_delay=0.4)
    scene.journal.wait_starts(1)
    eventually(lambda: scene.number("ZCARD", scene.keys.schedule) == 1, "the retry is in the schedule")
    assert scene.number("XLEN", scene.keys.stream) == 0
    worker.stop()
    scene.worker()
    handle.wait(SECONDS)
    assert [attempt.attempt for attempt in scene.journal.starts] == [1, 2]
    scene.drained()


@row(32)
@pytest.mark.parametrize(
    "entry",
    [
        {"enc_version": "2", "new": "world"},
        {"some": "garbage"},
        {**GO_TASK, "max_retries": "many"},
        {**GO_TASK, "expires_ts": "-1"},
        {name: value for name, value in GO_TASK.items() if name != "data"},
        {**GO_TASK, "enc_version": "2"},
    ],
    ids=["other-version", "garbage", "not-a-number", "negative", "missing-field", "newer"],
)
def test_what_cannot_be_read_is_put_aside_as_it_came(scene: Scene, entry: dict[str, str]) -> None:
    scene.add(entry)
    scene.add(GO_TASK | {"data": "next"})
    scene.worker(concurrency=1)
    assert scene.journal.wait_ends(1)[0].data == b"next"
    scene.drained()
    [letter] = scene.dead_letters()
    assert {name.encode(): value.encode() for name, value in entry.items()}.items() <= letter.items()
    assert letter[b"dead_reason"].startswith(b"undecodable")


@row(43)
@pytest.mark.parametrize("part", ["stream", "dead", "schedule", "scheduled", "receivers", "fence", "moves"])
def test_a_key_of_the_wrong_type_is_found_at_the_start(scene: Scene, part: str) -> None:
    key: bytes = getattr(scene.keys, part)
    if part != "stream":
        scene.group()  # creating it would overwrite the fence, whatever that is
    if part in ("fence", "moves"):
        scene.do("HSET", key, "f", "v")
    else:
        scene.do("SET", key, "x")
    worker = scene.worker()
    with pytest.raises(WrongKeyType, match=key.decode()):
        worker.wait(SECONDS)


@row(43)
def test_a_dead_letter_that_cannot_be_written_is_not_lost(scene: Scene) -> None:
    worker = scene.worker(scene.journal.handler(lambda task: fail(task) if task.data == b"precious" else None))
    client = scene.client()
    client.enqueue_tracked(scene.queue, "first").wait(SECONDS)  # by then the worker has looked at the keys
    scene.do("SET", scene.keys.dead, "in the way")
    handle = client.enqueue_tracked(scene.queue, "precious", max_retries=0)
    with pytest.raises(WrongKeyType):
        worker.wait(SECONDS)
    scene.do("DEL", scene.keys.dead)
    assert [entry[b"data"] for entry in scene.entries()] == [b"precious"]
    scene.worker()
    assert scene.journal.wait_ends(2)[1].id == handle.id
    scene.drained()


@row(44)
@needs(Capability.ACL, Capability.OUT_OF_PROCESS)
def test_a_missing_permission_stops_the_worker_and_changes_nothing(scene: Scene) -> None:
    user = f"u-{uuid4().hex}"
    scene.do("ACL", "SETUSER", user, "on", "nopass", "~*", "+@all", "-xdel")
    url = scene.backend.url.replace("://", f"://{user}:any@")
    scene.add(GO_TASK)
    try:
        worker = scene.worker(url=url)
        with pytest.raises(PermissionMissing, match=f"(?is){user}.*xdel|xdel.*{user}"):
            worker.wait(SECONDS)
    finally:
        scene.do("ACL", "DELUSER", user)
    scene.journal.wait_ends(1)
    assert len(scene.entries()) == 1
    assert len(scene.pending()) == 1


@row(10, 45)
@needs(Capability.SERVER_INFO)
@owned
def test_a_full_server_can_be_drained(scene: Scene) -> None:
    client = scene.client()
    client.enqueue_many(scene.queue, [b"%d" % n for n in range(50)])
    client.flush(SECONDS)
    scene.group()
    scene.do("CONFIG", "SET", "maxmemory", "1")
    late = client.enqueue(scene.queue, "late")
    scene.worker()
    scene.journal.wait_ends(50)
    eventually(lambda: scene.number("XLEN", scene.keys.stream) == 0, "the queue was drained")
    assert scene.pending() == []
    with pytest.raises(TimeoutError):
        late.accepted(0.05)
    scene.do("CONFIG", "SET", "maxmemory", "0")
    scene.journal.wait_ends(51)
    scene.drained()
    assert set(scene.journal.times_run().values()) == {1}


@row(45)
@needs(Capability.SERVER_INFO)
@owned
def test_what_needs_memory_waits_for_it(scene: Scene) -> None:
    gate = scene.gate()

    def fail_behind_gate(task: Task) -> None:
        gate.wait()
        if task.attempt == 1:
            raise RuntimeError("again")

    scene.add(GO_TASK)
    scene.worker(scene.journal.handler(fail_behind_gate))
    scene.journal.wait_starts(1)
    scene.do("CONFIG", "SET", "maxmemory", "1")
    gate.set()
    eventually(lambda: len(scene.entries()) == 1 and len(scene.pending()) == 1, "the entry is still there")
    scene.do("CONFIG", "SET", "maxmemory", "0")
    scene.journal.wait_ends(1)
    scene.drained()
    assert [attempt.attempt for attempt in scene.journal.starts] == [1, 2]


@row(49)
def test_one_lost_entry_does_not_take_others_with_it(scene: Scene) -> None:
    gate = scene.gate()
    for number in range(10):
        scene.add(GO_TASK | {"data": str(number), "id": GO_TASK["id"][:-1] + str(number)})
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()), concurrency=10)
    scene.journal.wait_starts(10)
    stolen = scene.pending()[3][0]
    assert isinstance(stolen, bytes)
    scene.do_all(
        ("MULTI",),
        ("XCLAIM", scene.keys.stream, GROUP, "thief", 0, stolen),
        ("SET", scene.keys.fence, "moved"),
        ("EXEC",),
    )
    gate.set()
    eventually(lambda: worker.in_flight == 0, "all ten have ended")
    counted(worker, completed=9)
    counted(worker, lost=1)
    assert [(row[0], row[1]) for row in scene.pending()] == [(stolen, b"thief")]
    assert len(scene.entries()) == 1


def test_a_moved_fence_alone_changes_nothing(scene: Scene) -> None:
    gate = scene.gate()
    scene.add(GO_TASK)
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()))
    scene.journal.wait_starts(1)
    scene.do("SET", scene.keys.fence, "moved")
    gate.set()
    scene.drained()
    counted(worker, completed=1)
    assert len(scene.journal.starts) == 1


@row(31)
def test_an_entry_deleted_while_it_runs_is_let_go(scene: Scene) -> None:
    gate = scene.gate()
    entry = scene.add(GO_TASK)
    worker = scene.worker(scene.journal.handler(lambda task: gate.wait()))
    scene.journal.wait_starts(1)
    scene.do("XDEL", scene.keys.stream, entry)
    gate.set()
    eventually(lambda: worker.in_flight == 0, "the worker has let it go")
    scene.drained()
