"""The format on the server, shared with the Go library (protocol, sections 1 and 2)."""

from __future__ import annotations

import re

import pytest

from streamfleet.task import Task
from streamfleet_conformance.marks import row
from streamfleet_conformance.scene import GO_TASK, Scene, shuffled
from streamfleet_conformance.waiting import eventually
from streamfleet_core.keys import GROUP, RECEIVER_GROUP, key_slot, queue_keys, receiver_key
from streamfleet_core.replies import parse_entries, parse_flat

SECONDS = 10.0
UUID7 = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
BASE_FIELDS = [name.encode() for name in GO_TASK]


def enqueued(
    scene: Scene, data: bytes = b"data", *, tracked: bool = False, **options: object
) -> dict[bytes, bytes]:
    """The entry of a task that a client has enqueued; the client is closed."""
    client = scene.client()
    enqueue = client.enqueue_tracked if tracked else client.enqueue
    handle = enqueue(scene.queue, data, **options)  # type: ignore[arg-type]
    handle.accepted(SECONDS)
    [entry] = scene.entries()
    client.close()
    assert entry[b"id"] == handle.id.encode()
    return entry


@row(67)
def test_the_nine_base_fields_come_first_and_in_order(scene: Scene) -> None:
    entry = enqueued(scene)
    assert list(entry)[:9] == BASE_FIELDS
    assert UUID7.fullmatch(entry[b"id"])
    assert entry | {b"id": b"", b"client_id": b""} == entry | {
        b"enc_version": b"1",
        b"id": b"",
        b"client_id": b"",
        b"data": b"data",
        b"max_retries": b"3",
        b"expires_ts": b"0",
        b"retry_delay": b"1000",
        b"send_notif": b"0",
        b"retries": b"0",
    }


def test_a_tracked_task_says_so(scene: Scene) -> None:
    entry = enqueued(scene, tracked=True)
    assert entry[b"send_notif"] == b"1"
    assert entry[b"client_id"].startswith(scene.keys.prefix)


def test_never_retry_is_said_in_an_extra_field(scene: Scene) -> None:
    entry = enqueued(scene, max_retries=0)
    assert (entry[b"max_retries"], entry[b"no_retry"]) == (b"1", b"1")


def test_retry_for_ever_is_zero(scene: Scene) -> None:
    entry = enqueued(scene, max_retries=None)
    assert entry[b"max_retries"] == b"0"
    assert b"no_retry" not in entry


def test_expiry_and_delays_are_in_ms(scene: Scene) -> None:
    entry = enqueued(scene, expires_at=4_000_000_000.5, retry_delay=2.5)
    assert (entry[b"expires_ts"], entry[b"retry_delay"]) == (b"4000000000500", b"2500")


def test_a_queue_has_the_names_of_the_base_format(scene: Scene) -> None:
    scene.worker()
    client = scene.client()
    client.enqueue_tracked(scene.queue, "x").wait(SECONDS)
    stream = f"streamfleet:{scene.queue}".encode()
    groups = scene.do("XINFO", "GROUPS", stream)
    assert isinstance(groups, list)
    assert [parse_flat(group)[b"name"] for group in groups] == [b"streamfleet-server"]
    members = scene.do("ZRANGE", stream + b":receivers", 0, -1)
    assert isinstance(members, list)
    [client_id] = members
    assert isinstance(client_id, bytes)
    groups = scene.do("XINFO", "GROUPS", b"streamfleet:receiver:" + client_id)
    assert isinstance(groups, list)
    assert [parse_flat(group)[b"name"] for group in groups] == [RECEIVER_GROUP]


@pytest.mark.parametrize("seed", range(6))
def test_a_go_clients_task_runs_whatever_the_order_of_its_fields(scene: Scene, seed: int) -> None:
    scene.add(shuffled(GO_TASK, seed))
    scene.worker()
    [attempt] = scene.journal.wait_ends(1)
    assert (attempt.id, attempt.data, attempt.attempt) == (GO_TASK["id"], b"hello", 1)
    scene.drained()


@pytest.mark.parametrize("field", ["send_notif", "retry_delay", "client_id", "data"])
def test_values_of_other_writers_are_understood(scene: Scene, field: str) -> None:
    value = {"send_notif": "true", "retry_delay": "60000", "client_id": "", "data": ""}[field]
    scene.add(GO_TASK | {field: value})
    scene.worker()
    [attempt] = scene.journal.wait_ends(1)
    assert attempt.data == (b"" if field == "data" else b"hello")
    scene.drained()


@pytest.mark.parametrize(
    "data",
    [b"", bytes(range(256)), b"\r\n+OK\r\n$-1\r\n", "Grüße, 世界".encode(), b"x" * 1_000_000],
    ids=["empty", "every-byte", "protocol", "utf-8", "large"],
)
def test_any_payload_arrives_as_it_was(scene: Scene, data: bytes) -> None:
    scene.worker()
    scene.client().enqueue(scene.queue, data)
    assert scene.journal.wait_ends(1)[0].data == data


def test_unknown_fields_are_there_for_the_handler_and_kept_by_a_retry(scene: Scene) -> None:
    seen: list[bytes] = []

    def fail_once(task: Task) -> None:
        seen.append(task.fields[b"x-trace"])
        if task.attempt == 1:
            raise RuntimeError("once")

    scene.add(GO_TASK | {"x-trace": "abc\x00def"})
    scene.worker(scene.journal.handler(fail_once))
    scene.journal.wait_ends(1)
    assert seen == [b"abc\x00def"] * 2
    scene.drained()


def test_a_retry_differs_in_its_count_alone(scene: Scene) -> None:
    gate = scene.gate()

    def fail_then_wait(task: Task) -> None:
        if task.attempt == 1:
            raise ValueError("first")
        gate.wait()

    scene.add(GO_TASK | {"x": "y"})
    scene.worker(scene.journal.handler(fail_then_wait))
    scene.journal.wait_starts(2)
    [entry] = scene.entries()
    expected = {name.encode(): value.encode() for name, value in GO_TASK.items()}
    assert {name: entry[name] for name in BASE_FIELDS} == expected | {b"retries": b"1"}
    assert list(entry)[:9] == BASE_FIELDS
    assert (entry[b"x"], entry[b"last_error"]) == (b"y", b"ValueError: first")


@row(59)
@pytest.mark.parametrize(
    ("word", "error"), [("completed", b""), ("error", b"RuntimeError: no"), ("expired", b"expired")]
)
def test_a_go_client_is_notified_in_the_base_format(scene: Scene, word: str, error: bytes) -> None:
    client_id = f"go-{scene.queue}"
    receiver = receiver_key(client_id)

    def end(task: Task) -> None:
        if word == "error":
            raise RuntimeError("no")

    scene.do("XGROUP", "CREATE", receiver, RECEIVER_GROUP, "0", "MKSTREAM")
    expires = {"expires_ts": "1"} if word == "expired" else {}
    last = {"retries": "3"} if word == "error" else {}
    scene.add(GO_TASK | {"client_id": client_id, "send_notif": "1"} | expires | last)
    scene.worker(scene.journal.handler(end))
    [(_, fields)] = eventually(lambda: parse_entries(scene.do("XRANGE", receiver, "-", "+")), "a notice has come")
    assert fields is not None
    notice = dict(zip(fields[::2], fields[1::2], strict=True))
    assert list(notice)[:4] == [b"enc_version", b"task_id", b"type", b"err_msg"]
    assert (notice[b"enc_version"], notice[b"task_id"]) == (b"1", GO_TASK["id"].encode())
    assert notice[b"type"] == word.encode()
    assert notice[b"err_msg"].startswith(error)


def test_the_group_begins_at_the_first_entry(scene: Scene) -> None:
    for number in range(3):
        scene.add(GO_TASK | {"data": str(number)})
    scene.worker(concurrency=1)
    assert [attempt.data for attempt in scene.journal.wait_ends(3)] == [b"0", b"1", b"2"]


def test_an_existing_group_is_used_as_it_stands(scene: Scene) -> None:
    scene.add(GO_TASK | {"data": "before"})
    scene.do("XGROUP", "CREATE", scene.keys.stream, GROUP, "$")
    scene.add(GO_TASK | {"data": "after"})
    scene.worker()
    assert [attempt.data for attempt in scene.journal.wait_ends(1)] == [b"after"]


@row(16)
@pytest.mark.parametrize(
    "shape", ["a{{b}}c-{}", "a{{}}b-{}", "a}}b-{}", "a{{b-{}", "{{x}}-{}", "{}-{{}}", "ä b\n{}"]
)
def test_any_queue_name_works(scene: Scene, shape: str) -> None:
    name = scene.more_queue(shape.format(scene.queue))
    keys = queue_keys(name)
    client = scene.client(name)
    scene.worker({name: scene.journal.handler(lambda task: task.data)})
    handles = [client.enqueue_tracked(name, "x"), client.enqueue_tracked(name, "y", delay=0.05)]
    assert [handle.wait(SECONDS) for handle in handles] == [b"x", b"y"]
    slots = {key_slot(key) for key in scene.own_keys() if key != keys.receivers}
    assert slots == {key_slot(keys.stream)}
