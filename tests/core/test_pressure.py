"""What a server without memory still takes, and what of it is known afterwards."""

import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.pressure import LEAN_PAUSE, Memory, Pressure, bare_commands, bare_replies, needs_memory
from streamfleet_core.state import RELEASED_IDLE_MS, Delivery, Phase, QueueState, Verdict
from streamfleet_core.wire import Task

KEYS = queue_keys("q")
QUEUE = QueueState(KEYS, 0.0)
ERROR = ServerError("READONLY a replica")


def delivery(entry=b"5-0", *, notify=False, phase=Phase.SETTLING, verdict=Verdict.COMPLETED):
    made = Delivery(QUEUE, entry, Task("t", "q", "c", b"", notify=notify), [], b"fence", 0.0)
    made.phase, made.verdict = phase, verdict
    return made


def test_it_rises_twice_and_passes_with_time():
    pressure = Pressure()
    assert pressure.memory is Memory.ENOUGH
    assert pressure.rise(5.0)
    assert (pressure.memory, pressure.until) == (Memory.LEAN, 5.0 + LEAN_PAUSE)
    assert pressure.rise(5.5)
    assert (pressure.memory, pressure.until) == (Memory.BARE, 5.5 + LEAN_PAUSE)
    assert not pressure.rise(5.7), "nothing is left that could be left out"
    pressure.relax(5.4 + LEAN_PAUSE)
    assert pressure.memory is Memory.BARE
    pressure.relax(5.5 + LEAN_PAUSE)
    assert pressure.memory is Memory.ENOUGH


@pytest.mark.parametrize(
    ("how", "needs"),
    [
        ({}, False),
        ({"notify": True}, True),
        ({"verdict": Verdict.RETRY}, True),
        ({"verdict": Verdict.DEAD}, True),
        ({"verdict": Verdict.EXPIRED}, False),
        ({"verdict": Verdict.RETRY, "phase": Phase.RELEASING}, False),
        ({"notify": True, "phase": Phase.RUNNING}, False),
    ],
)
def test_what_needs_memory(how, needs):
    assert needs_memory(delivery(**how)) is needs


def test_what_is_sent_for_each_entry():
    done, unstarted, started, running = (delivery(b"%d-0" % number) for number in range(4))
    started.ran = True
    unstarted.deliveries = started.deliveries = 3
    phases = [Phase.SETTLING, Phase.RELEASING, Phase.RELEASING, Phase.RUNNING]
    rows = list(zip((done, unstarted, started, running), phases, strict=True))
    back = ("XCLAIM", KEYS.stream, GROUP, b"me", 0)
    assert bare_commands(rows, b"me", 1250) == [
        ("XDEL", KEYS.stream, b"0-0"),
        ("XACK", KEYS.stream, GROUP, b"0-0"),
        (*back, b"1-0", "IDLE", RELEASED_IDLE_MS, "RETRYCOUNT", 2, "JUSTID"),
        (*back, b"2-0", "IDLE", RELEASED_IDLE_MS, "RETRYCOUNT", 3, "JUSTID"),
        ("XCLAIM", KEYS.stream, GROUP, b"me", 1250, b"3-0", "JUSTID"),
    ]


@pytest.mark.parametrize(("deleted", "acknowledged"), [(ERROR, 1), (1, ERROR), (ERROR, ERROR)])
def test_an_entry_is_ended_only_when_it_was_deleted_and_acknowledged(deleted, acknowledged):
    rows = [(delivery(), Phase.SETTLING), (delivery(), Phase.RUNNING), (delivery(), Phase.SETTLING)]
    replies = [deleted, acknowledged, [b"6-0"], 1, 0, b"PONG"]
    assert bare_replies(rows, replies) == [ERROR, [b"6-0"], 0]
