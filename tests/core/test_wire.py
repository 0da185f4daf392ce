import itertools
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamfleet_core.wire import (
    F_NAME,
    F_NO_RETRY,
    F_RESULT,
    NoticeType,
    Notification,
    Task,
    Undecodable,
    decode_notification,
    decode_task,
    encode_notification,
    encode_task,
    has_failed,
    pack_fields,
    unpack_fields,
)

BASE = {
    b"enc_version": b"1",
    b"id": b"0190163d-8694-739b-aea5-966c26f8ad91",
    b"client_id": b"client-7",
    b"data": b"\x00\xff\r\n$5",
    b"max_retries": b"3",
    b"expires_ts": b"1790000000000",
    b"retry_delay": b"1500",
    b"send_notif": b"1",
    b"retries": b"2",
}
TASK = Task(
    id="0190163d-8694-739b-aea5-966c26f8ad91",
    queue="q",
    client_id="client-7",
    data=b"\x00\xff\r\n$5",
    max_retries=3,
    expires_ms=1790000000000,
    retry_delay_ms=1500,
    notify=True,
    retries=2,
)
INT64 = 2**63 - 1


def flat(pairs) -> list[bytes]:
    return list(itertools.chain.from_iterable(pairs.items() if isinstance(pairs, dict) else pairs))


def base(**changes: bytes) -> list[bytes]:
    return flat(BASE | {name.encode(): value for name, value in changes.items()})


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
naturals = st.integers(0, INT64)
extras = st.dictionaries(st.binary(max_size=12), st.binary(max_size=40), max_size=4).filter(
    lambda extra: not {*BASE, F_NO_RETRY} & {*extra}
)
tasks = st.builds(
    Task,
    id=texts,
    queue=st.just("q"),
    client_id=texts,
    data=st.binary(max_size=200),
    max_retries=st.sampled_from([-1, 0, 1]) | naturals,
    expires_ms=naturals,
    retry_delay_ms=naturals,
    notify=st.booleans(),
    retries=naturals,
    extra=extras,
)


# Tasks


def test_a_task_is_written_as_the_protocol_says():
    assert encode_task(TASK) == flat(BASE)


def test_a_task_is_read_as_the_protocol_says():
    assert decode_task(flat(BASE), "q") == TASK


@given(st.permutations(list(BASE.items())))
def test_fields_come_in_any_order(pairs):
    assert decode_task(flat(pairs), "q") == TASK


@given(tasks)
def test_a_task_survives_the_wire(task):
    assert decode_task(encode_task(task), "q") == task


@given(tasks, st.randoms(use_true_random=False))
def test_a_task_survives_the_wire_in_any_order(task, rng: random.Random):
    fields = encode_task(task)
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    rng.shuffle(pairs)
    assert decode_task(flat(pairs), "q") == task


@given(tasks)
def test_every_base_field_is_always_there_and_first(task):
    fields = encode_task(task)
    assert fields[:18:2] == list(BASE)
    assert all(type(part) is bytes for part in fields)


def test_unknown_fields_are_kept_in_their_order():
    fields = [*flat(BASE), b"trace", b"00-1", b"\xff", b"", F_NAME, b"greet"]
    task = decode_task(fields, "q")
    assert list(task.extra.items()) == [(b"trace", b"00-1"), (b"\xff", b""), (F_NAME, b"greet")]
    assert encode_task(task) == fields


@pytest.mark.parametrize(
    ("ours", "written", "marked"), [(-1, b"0", False), (0, b"1", True), (1, b"1", False), (7, b"7", False)]
)
def test_the_three_meanings_of_max_retries(ours, written, marked):
    task = Task("i", "q", "c", b"", max_retries=ours)
    fields = encode_task(task)
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    assert pairs[b"max_retries"] == written
    assert pairs.get(F_NO_RETRY) == (b"1" if marked else None)
    assert decode_task(fields, "q") == task


@pytest.mark.parametrize("value", [b"-1", b"-9223372036854775808", b"0"])
def test_max_retries_of_zero_or_less_is_for_ever(value):
    assert decode_task(base(max_retries=value), "q").max_retries == -1


def test_a_stray_no_retry_field_does_not_outlive_a_changed_attribute():
    task = decode_task([*flat(BASE), F_NO_RETRY, b"1"], "q")
    assert task.max_retries == 0
    task.max_retries = 5
    assert F_NO_RETRY not in encode_task(task)
    task.extra[F_NO_RETRY] = b"1"
    task.extra[b"id"] = b"other"
    assert decode_task(encode_task(task), "q").max_retries == 5


@pytest.mark.parametrize(("value", "notify"), [(b"0", False), (b"1", True), (b"true", True), (b"", True)])
def test_anything_but_zero_asks_for_a_notification(value, notify):
    assert decode_task(base(send_notif=value), "q").notify is notify


@pytest.mark.parametrize("name", list(BASE))
def test_a_missing_field_is_named(name):
    fields = flat({field: value for field, value in BASE.items() if field != name})
    with pytest.raises(Undecodable, match=f"missing field: {name.decode()}") as caught:
        decode_task(fields, "q")
    assert caught.value.reason == str(caught.value)


def test_all_missing_fields_are_named():
    with pytest.raises(Undecodable, match="missing fields: enc_version, id, client_id"):
        decode_task([b"data", b"x"], "q")


NUMBERS = ["max_retries", "expires_ts", "retry_delay", "retries"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"1.5", b" 1", b"1_000", b"0x1", b"--1", b"-", b"+", b"1e3", "\u0661".encode(), b"1\n"],
)
def test_what_is_not_a_number_is_undecodable(name, value):
    with pytest.raises(Undecodable, match=f"{name} is not a decimal number"):
        decode_task(base(**{name: value}), "q")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [b"9223372036854775808", b"-9223372036854775809", b"9" * 10_000])
def test_a_number_beyond_64_bits_is_undecodable(name, value):
    with pytest.raises(Undecodable, match=f"{name} does not fit 64 bits"):
        decode_task(base(**{name: value}), "q")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [b"9223372036854775807", b"007", b"+7"])
def test_numbers_up_to_64_bits_are_fine(name, value):
    attribute = {"expires_ts": "expires_ms", "retry_delay": "retry_delay_ms"}.get(name, name)
    assert getattr(decode_task(base(**{name: value}), "q"), attribute) == int(value)


@pytest.mark.parametrize("name", ["expires_ts", "retry_delay", "retries"])
def test_a_negative_number_is_undecodable(name):
    with pytest.raises(Undecodable, match=f"{name} is negative: -1"):
        decode_task(base(**{name: b"-1"}), "q")


@pytest.mark.parametrize("version", [b"0", b"2", b"", b"01", b"x"])
def test_another_version_is_undecodable(version):
    with pytest.raises(Undecodable, match="enc_version"):
        decode_task(base(enc_version=version), "q")


@pytest.mark.parametrize("name", ["id", "client_id"])
def test_an_id_that_is_not_utf8_is_undecodable(name):
    with pytest.raises(Undecodable, match="not UTF-8"):
        decode_task(base(**{name: b"\xff"}), "q")


@pytest.mark.parametrize(
    "fields",
    [
        [*flat(BASE), b"id", b"other"],
        [b"id", b"other", *flat(BASE)],
        [*flat(BASE), b"x", b"1", b"x", b"2"],
    ],
)
def test_a_field_that_appears_twice_is_undecodable(fields):
    with pytest.raises(Undecodable, match="appears twice"):
        decode_task(fields, "q")


@pytest.mark.parametrize("fields", [[b"id"], [*flat(BASE), b"x"], flat(BASE)[:-1]])
def test_a_field_without_a_value_is_undecodable(fields):
    with pytest.raises(Undecodable, match="pairs"):
        decode_task(fields, "q")


parts = st.sampled_from([*BASE, b"0", b"1", b"-1", b"\xff"]) | st.binary(max_size=6)


@given(st.lists(parts, max_size=24))
def test_garbage_is_undecodable_and_nothing_else(fields):
    try:
        task = decode_task(list(fields), "q")
    except Undecodable:
        return
    assert decode_task(encode_task(task), "q") == task


@given(tasks, st.integers(0, 17), st.binary(max_size=6))
def test_a_spoiled_task_decodes_or_is_undecodable(task, at, value):
    fields = encode_task(task)
    assume(fields[at] != value)
    fields[at] = value
    try:
        read = decode_task(fields, "q")
    except Undecodable:
        return
    assert at % 2 == 1  # a base field's name cannot be missed
    assert decode_task(encode_task(read), "q") == read


@pytest.mark.parametrize(
    ("most", "retries", "left"),
    [(0, 0, False), (1, 0, True), (1, 1, False), (3, 2, True), (3, 3, False), (-1, 10**9, True)],
)
def test_retries_left(most, retries, left):
    task = Task("i", "q", "c", b"", max_retries=most, retries=retries)
    assert task.retries_left is left
    assert task.attempt == retries + 1


def test_tasks_do_not_share_their_extra_fields():
    Task("i", "q", "c", b"").extra[b"x"] = b"1"
    assert Task("i", "q", "c", b"").extra == {}


# Packed fields


def test_packed_fields_as_they_are_stored():
    assert pack_fields([b"id", b"", b"1:2,"]) == b"2:id,0:,4:1:2,,"


@given(st.lists(st.binary(max_size=30)))
def test_packed_fields_come_back(fields):
    assert unpack_fields(pack_fields(fields)) == fields


@given(st.lists(st.binary(max_size=12), min_size=1), st.data())
def test_a_truncated_packing_is_undecodable_or_a_shorter_list(fields, data):
    packed = pack_fields(fields)
    cut = packed[: data.draw(st.integers(0, len(packed) - 1))]
    try:
        assert unpack_fields(cut) == fields[: len(unpack_fields(cut))]
    except Undecodable:
        assert cut


@given(st.binary(max_size=30) | st.text("0123:,", max_size=12).map(str.encode))
def test_only_what_was_packed_unpacks(packed):
    try:
        fields = unpack_fields(packed)
    except Undecodable:
        return
    assert pack_fields(fields) == packed


@pytest.mark.parametrize(
    "packed", [b":,", b"1:a", b"1:ab", b"01:a,", b"-1:a,", b" 1:a,", b"2:a,", b"1:a,1", b"9" * 5000, b"x:,"]
)
def test_broken_packings(packed):
    with pytest.raises(Undecodable, match="packed fields"):
        unpack_fields(packed)


# Notifications

NOTICE = [b"enc_version", b"1", b"task_id", b"t1", b"type", b"error", b"err_msg", b"boom \xc3\xa9"]

notices = st.builds(
    Notification,
    task_id=texts,
    type=st.sampled_from(NoticeType),
    error=texts,
    extra=st.dictionaries(st.binary(max_size=8), st.binary(max_size=20), max_size=3).filter(
        lambda extra: not {b"enc_version", b"task_id", b"type", b"err_msg"} & {*extra}
    ),
)


def test_a_notification_as_the_protocol_says():
    notice = Notification("t1", NoticeType.ERROR, "boom é")
    assert encode_notification(notice) == NOTICE
    assert decode_notification(NOTICE) == notice


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (NoticeType.COMPLETED, b"completed"),
        (NoticeType.CANCELLED, b"canceled"),
        (NoticeType.EXPIRED, b"expired"),
        (NoticeType.ERROR, b"error"),
    ],
)
def test_words_of_the_notification_types(kind, word):
    assert encode_notification(Notification("t", kind))[5] == word
    assert decode_notification([*NOTICE[:5], word, *NOTICE[6:]]).type is kind


@given(notices, st.randoms(use_true_random=False))
def test_a_notification_survives_the_wire_in_any_order(notice, rng: random.Random):
    fields = encode_notification(notice)
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    rng.shuffle(pairs)
    assert decode_notification(flat(pairs)) == notice


def test_extra_fields_of_a_notification_cannot_replace_its_own():
    notice = Notification("t", NoticeType.COMPLETED, extra={F_RESULT: b"42", b"task_id": b"other"})
    read = decode_notification(encode_notification(notice))
    assert (read.task_id, read.extra) == ("t", {F_RESULT: b"42"})


def test_an_error_text_always_encodes_and_decodes():
    notice = Notification("t", NoticeType.ERROR, "lone \ud800")
    assert decode_notification(encode_notification(notice)).error == "lone \\ud800"
    assert decode_notification([*NOTICE[:7], b"\xff"]).error == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (NOTICE[:-2], "missing field: err_msg"),
        ([b"enc_version", b"2", *NOTICE[2:]], "enc_version"),
        ([*NOTICE[:5], b"done", *NOTICE[6:]], "type b'done' is not known"),
        ([*NOTICE[:3], b"\xff", *NOTICE[4:]], "task_id is not UTF-8"),
        (NOTICE[:-1], "pairs"),
        (NOTICE + NOTICE[:2], "appears twice"),
    ],
)
def test_a_bad_notification_is_undecodable(fields, reason):
    with pytest.raises(Undecodable, match=reason):
        decode_notification(fields)


@pytest.mark.parametrize("zero", [b"00", b"-0", b"+0"])
def test_nothing_may_be_written_at_length(zero):
    task = decode_task(base(expires_ts=zero, retry_delay=zero, retries=zero), "q")
    assert (task.expires_ms, task.retry_delay_ms, task.retries) == (0, 0, 0)


@pytest.mark.parametrize(
    ("packed", "failed"),
    [
        (pack_fields(base(retries=b"0")), False),
        (pack_fields(base(retries=b"1")), True),
        (pack_fields([*base(retries=b"0"), b"odd one out"]), False),
        (b"no packing", True),
        (b"", True),
    ],
)
def test_what_may_have_run_counts_as_a_retry(packed, failed):
    assert has_failed(packed) is failed
