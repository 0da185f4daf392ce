"""What the end of a delivery writes, command by command."""

from dataclasses import replace

import pytest

from streamfleet_core.keys import queue_keys, receiver_key
from streamfleet_core.outcomes import dead_letter, next_attempt, notice, transfer
from streamfleet_core.safeguards import UNKNOWN
from streamfleet_core.state import Delivery, QueueState, Verdict
from streamfleet_core.wire import NoticeType, Task, decode_notification, encode_task, pack_fields

KEYS = queue_keys("q")
NOW_MS = 1_700_000_000_000
TASK = Task("t1", "q", "c", b"data", 7, NOW_MS + 1, 250, True, 2, {b"own": b"1"})


def ended(verdict, task=TASK, fields=None, **how):
    came = fields if fields is not None else encode_task(task) if task else []
    delivery = Delivery(QueueState(KEYS), b"1-0", task, came, UNKNOWN, 0.0)
    delivery.verdict = verdict
    for name, value in how.items():
        setattr(delivery, name, value)
    return delivery


def test_the_next_attempt_is_the_same_task_with_one_more_failure():
    after = next_attempt(ended(Verdict.RETRY, error="boom"))
    assert after == replace(TASK, retries=3, extra={b"own": b"1", b"last_error": b"boom"})
    assert type(after.notify) is bool
    assert TASK.extra == {b"own": b"1"}, "the task in hand may be written again, after an abort"


@pytest.mark.parametrize("delay_ms", [0, 1])
def test_a_retry_waits_in_the_schedule_however_short_its_delay(delay_ms):
    delivery = ended(Verdict.RETRY, delay_ms=delay_ms, error="boom")
    fields = encode_task(next_attempt(delivery))
    in_stream = [("XADD", KEYS.stream, "*", *fields)]
    in_schedule = [
        ("ZADD", KEYS.schedule, NOW_MS + 1, "t1"),
        ("HSET", KEYS.scheduled, "t1", pack_fields(fields)),
    ]
    assert transfer(delivery, NOW_MS) == (in_schedule if delay_ms else in_stream)


@pytest.mark.parametrize("verdict", [Verdict.COMPLETED, Verdict.EXPIRED, Verdict.VANISHED])
def test_what_has_ended_goes_nowhere(verdict):
    assert transfer(ended(verdict), NOW_MS) == []


def test_a_dead_letter_holds_its_entry_as_it_came():
    fields = [b"id", b"t1", b"strange", b"", b"odd one out"]
    delivery = ended(Verdict.DEAD, None, fields, reason="undecodable")
    letter = [*fields, b"dead_reason", b"undecodable", b"dead_ms", b"%d" % NOW_MS]
    assert dead_letter(delivery, NOW_MS) == letter
    assert transfer(delivery, NOW_MS) == [("XADD", KEYS.dead, "*", *letter)]


def test_a_letter_that_was_enqueued_again_and_died_again_has_each_field_once():
    first = ended(Verdict.DEAD, error="first", reason="one", traceback="at 1")
    again = ended(Verdict.DEAD, fields=dead_letter(first, NOW_MS), error="second", reason="two", traceback="at 2")
    letter = dead_letter(again, NOW_MS + 5)
    assert letter[::2] == dead_letter(first, NOW_MS)[::2]
    assert dict(zip(letter[::2], letter[1::2], strict=True)) == {
        **dict(zip(again.fields[::2], again.fields[1::2], strict=True)),
        b"dead_reason": b"two",
        b"dead_ms": b"%d" % (NOW_MS + 5),
        b"last_error": b"second",
        b"traceback": b"at 2",
    }


def test_an_error_that_is_no_proper_text_can_be_written_all_the_same():
    how = {"error": "half \ud800", "reason": "bad \ud801", "traceback": "at \ud802"}
    assert next_attempt(ended(Verdict.RETRY, **how)).extra[b"last_error"] == rb"half \ud800"
    letter = dead_letter(ended(Verdict.DEAD, **how), NOW_MS)
    written = dict(zip(letter[::2], letter[1::2], strict=True))
    assert written[b"last_error"] == rb"half \ud800"
    assert written[b"dead_reason"] == rb"bad \ud801"
    assert written[b"traceback"] == rb"at \ud802"


@pytest.mark.parametrize(
    ("verdict", "how", "kind", "error"),
    [
        (Verdict.COMPLETED, {"error": "of an earlier life"}, NoticeType.COMPLETED, ""),
        (Verdict.EXPIRED, {"error": "of an earlier life"}, NoticeType.EXPIRED, "expired before it was started"),
        (Verdict.DEAD, {"error": "boom", "reason": "no retries left"}, NoticeType.ERROR, "boom (no retries left)"),
        (Verdict.DEAD, {"reason": "delivered too often"}, NoticeType.ERROR, "delivered too often"),
    ],
)
def test_a_notice_says_how_it_ended_and_why(verdict, how, kind, error):
    ((name, key, *options, star), fields) = split(notice(ended(verdict, **how)))
    assert (name, key, options, star) == ("XADD", receiver_key("c"), ["NOMKSTREAM"], "*")
    told = decode_notification(fields)
    assert (told.type, told.task_id, told.error) == (kind, "t1", error)


def split(commands):
    (command,) = commands
    at = command.index("*") + 1
    return command[:at], list(command[at:])


@pytest.mark.parametrize(
    "delivery",
    [
        ended(Verdict.COMPLETED, replace(TASK, notify=False)),
        ended(Verdict.DEAD, None),
        ended(Verdict.RETRY),
        ended(Verdict.VANISHED),
    ],
)
def test_no_notice_where_nobody_asked_or_nothing_has_ended(delivery):
    assert notice(delivery) == []
