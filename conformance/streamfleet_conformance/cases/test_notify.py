"""Notices to clients, and what dead clients leave behind (protocol, section 7)."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from streamfleet_conformance.marks import needs, row
from streamfleet_conformance.scene import GO_TASK, Scene
from streamfleet_conformance.waiting import eventually, throughout
from streamfleet_core.connection import Capability
from streamfleet_core.errors import OutcomeLost
from streamfleet_core.keys import GROUP, RECEIVER_GROUP, receiver_key
from streamfleet_core.submission import Status

SECONDS = 15.0


def receivers(scene: Scene) -> list[bytes]:
    """Keys of receivers of this case's clients."""
    return [key for key in scene.own_keys() if b":receiver:" in key]


def members(scene: Scene) -> list[bytes]:
    """Clients that are said to be alive."""
    reply = scene.do("ZRANGE", scene.keys.receivers, 0, -1)
    assert isinstance(reply, list)
    return [member for member in reply if isinstance(member, bytes)]


def dead_client(scene: Scene, name: str, score: float = 1.0) -> bytes:
    """A client of which nothing more is heard. Returns its receiver's key."""
    receiver = receiver_key(name)
    scene.do_all(
        ("ZADD", scene.keys.receivers, score, name),
        ("XGROUP", "CREATE", receiver, RECEIVER_GROUP, "0", "MKSTREAM"),
        ("HSET", scene.keys.producer(name), "e", 1, "s", 1),
        ("PEXPIRE", scene.keys.producer(name), 86_400_000),
    )
    return receiver


def test_notices_are_deleted_once_they_are_read(scene: Scene) -> None:
    scene.worker()
    client = scene.client()
    for handle in [client.enqueue_tracked(scene.queue, "x") for _ in range(50)]:
        handle.wait(SECONDS)
    [receiver] = receivers(scene)
    client.enqueue_tracked(scene.queue, "y").wait(SECONDS)
    eventually(lambda: scene.number("XLEN", receiver) <= 1, "the notices were deleted")


def test_a_client_without_tracked_tasks_has_no_receiver(scene: Scene) -> None:
    scene.worker()
    client = scene.client()
    client.enqueue(scene.queue, "x")
    scene.journal.wait_ends(1)
    assert (receivers(scene), members(scene)) == ([], [])


@row(59)
def test_the_first_terminal_notice_counts(scene: Scene) -> None:
    client = scene.client()
    handle = client.enqueue_tracked(scene.queue, "x")
    handle.accepted(SECONDS)
    [receiver] = receivers(scene)
    for kind, text in (("completed", ""), ("error", "too late")):
        fields = {"enc_version": "1", "task_id": handle.id, "type": kind, "err_msg": text}
        scene.do("XADD", receiver, "*", *(part for pair in fields.items() for part in pair))
    assert handle.wait(SECONDS) is None
    eventually(lambda: client.counts.get("repeated_notices") == 1, "the second was seen")
    assert handle.status is Status.COMPLETED


def test_a_go_workers_notice_is_understood(scene: Scene) -> None:
    client = scene.client()
    handle = client.enqueue_tracked(scene.queue, "x")
    handle.accepted(SECONDS)
    [receiver] = receivers(scene)
    fields = {"err_msg": "", "type": "canceled", "task_id": handle.id, "enc_version": "1"}
    scene.do("XADD", receiver, "*", *(part for pair in fields.items() for part in pair))
    eventually(lambda: handle.status is Status.CANCELLED, "the task counts as cancelled")


@row(61)
def test_a_client_that_has_gone_is_not_brought_back(scene: Scene) -> None:
    gate = scene.gate()
    scene.worker(scene.journal.handler(lambda task: gate.wait()))
    client = scene.client()
    client.enqueue_tracked(scene.queue, "x")
    scene.journal.wait_starts(1)
    client.close(SECONDS)
    assert (receivers(scene), members(scene)) == ([], [])
    gate.set()
    scene.drained()
    assert (receivers(scene), members(scene)) == ([], [])


@row(62)
def test_a_client_that_was_taken_for_dead_says_so_and_goes_on(scene: Scene) -> None:
    gate = scene.gate()
    scene.worker(scene.journal.handler(lambda task: gate.wait()))
    client = scene.client(heartbeat=0.1, block=0.1)
    handle = client.enqueue_tracked(scene.queue, "x")
    scene.journal.wait_starts(1)
    [receiver] = receivers(scene)
    scene.do_all(("ZREM", scene.keys.receivers, members(scene)[0]), ("DEL", receiver))
    with pytest.raises(OutcomeLost):
        handle.wait(SECONDS)
    gate.set()
    eventually(lambda: receivers(scene) == [receiver], "the receiver exists again")
    client.enqueue_tracked(scene.queue, "y").wait(SECONDS)


@row(62)
@needs(Capability.OUT_OF_PROCESS)
def test_a_client_out_of_contact_is_collected_and_comes_back(scene: Scene) -> None:
    gate = scene.gate()
    scene.worker(scene.journal.handler(lambda task: gate.wait()), client_timeout=0.4, sweep_interval=0.4)
    way = scene.way()
    client = scene.client(way=way, heartbeat=0.1, block=0.1)
    handle = client.enqueue_tracked(scene.queue, "x")
    scene.journal.wait_starts(1)
    throughout(lambda: len(members(scene)) == 1, 0.8, "a beating client stays")
    way.block()
    eventually(lambda: not members(scene) and not receivers(scene), "the client was collected")
    way.open()
    with pytest.raises(OutcomeLost):
        handle.wait(SECONDS)
    gate.set()
    client.enqueue_tracked(scene.queue, "y").wait(SECONDS)


@row(66)
def test_what_dead_clients_leave_is_removed(scene: Scene) -> None:
    for number in range(3):
        dead_client(scene, f"{scene.keys.prefix.decode()}dead-{number}", number)
    scene.worker(client_timeout=0.3, sweep_interval=0.2)
    eventually(lambda: not members(scene), "no client is left")
    keys = scene.keys
    declared = {keys.stream, keys.fence, keys.moves, keys.dead}
    eventually(lambda: scene.lasting_keys() <= declared, "only declared keys are left for good")


@row(63, 64)
@pytest.mark.parametrize("offset", [-3_600_000, 0, 3_600_000], ids=["behind", "right", "ahead"])
def test_a_client_that_beats_stays_whatever_its_clock_says(scene: Scene, offset: int) -> None:
    name = f"{scene.keys.prefix.decode()}beating"
    receiver = dead_client(scene, name, 1_700_000_000_000 + offset)
    stop = threading.Event()
    connection = scene.connect()

    def beat() -> None:
        for tick in count(1):
            if stop.wait(0.05):
                return
            score = 1_700_000_000_000 + offset + tick
            connection.exchange([("ZADD", scene.keys.receivers, score, name)], 5.0)

    thread = threading.Thread(target=beat)
    thread.start()
    scene.worker(client_timeout=0.4, sweep_interval=0.2)
    try:
        throughout(lambda: scene.do("EXISTS", receiver) == 1, 1.2, "the client stays")
    finally:
        stop.set()
        thread.join(SECONDS)
    eventually(lambda: scene.do("EXISTS", receiver) == 0, "once silent it goes")


@row(59)
def test_a_receiver_in_another_slot_is_notified(scene: Scene) -> None:
    receiver = dead_client(scene, f"elsewhere-{scene.queue}", 1.0)
    scene.add(GO_TASK | {"client_id": f"elsewhere-{scene.queue}", "send_notif": "1"})
    scene.worker()
    scene.journal.wait_ends(1)
    scene.drained()
    assert scene.number("XLEN", receiver) == 1


@row(65)
@needs(Capability.OUT_OF_PROCESS)
def test_after_a_crash_of_everybody_one_worker_tidies_up(scene: Scene) -> None:
    process = scene.process("hang")
    name = f"{scene.keys.prefix.decode()}dead"
    dead_client(scene, name)
    scene.add(GO_TASK | {"client_id": name, "send_notif": "1"})
    process.wait_starts(1)
    process.kill()
    worker = scene.worker(client_timeout=0.3, sweep_interval=0.2, consumer_timeout=0.2)
    scene.journal.wait_ends(1)
    scene.drained()
    eventually(lambda: set(scene.consumers()) == {worker.consumer}, "dead consumers are removed")
    worker.stop()
    keys = scene.keys
    assert scene.lasting_keys() <= {keys.stream, keys.fence, keys.moves, keys.dead}
    groups = scene.do("XINFO", "GROUPS", keys.stream)
    assert isinstance(groups, list)
    assert len(groups) == 1
    assert GROUP in groups[0]  # type: ignore[operator]
