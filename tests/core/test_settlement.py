"""A settling transaction: which reply belongs to which beat."""

from streamfleet_core.connection import ServerError
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.safeguards import UNKNOWN
from streamfleet_core.settlement import build
from streamfleet_core.state import Delivery, Phase, QueueState, Verdict
from streamfleet_core.wire import Task


def delivery(queue: QueueState, entry_id: bytes, phase: Phase) -> Delivery:
    made = Delivery(queue, entry_id, Task("t", "q", "c", b""), [], UNKNOWN, 0.0)
    made.phase = phase
    made.verdict = Verdict.COMPLETED
    return made


def test_beats_are_answered_each_by_the_reply_to_its_own_claim():
    one, two = QueueState(queue_keys("one")), QueueState(queue_keys("two"))
    done = delivery(one, b"1-0", Phase.SETTLING)
    beats = [delivery(one, b"2-0", Phase.RUNNING), delivery(two, b"3-0", Phase.READY)]
    commit = build([done], beats, b"me", 0, 5.0)
    names = [command[0] for command in commit.commands]
    assert names == ["MULTI", "XACK", "XDEL", "XCLAIM", "XCLAIM", "EXEC"]
    # EXEC answers for all between MULTI and itself.
    assert commit.renewed([1, 1, [b"2-0"], [b"3-0"]]) == {b"2-0", b"3-0"}
    assert commit.renewed([1, 1, [b"2-0"], []]) == {b"2-0"}
    assert commit.renewed([1, 1, [], [b"3-0"]]) == {b"3-0"}
    assert commit.renewed([1, 1, ServerError("WRONGTYPE no stream"), [b"3-0"]]) == {b"3-0"}
    assert commit.sent_at == 5.0


def test_a_beat_puts_the_servers_count_of_deliveries_right_where_it_is_known():
    queue = QueueState(queue_keys("q"))
    first, third, same, unknown = (delivery(queue, b"%d-0" % number, Phase.RUNNING) for number in range(1, 5))
    third.deliveries = same.deliveries = 3
    first.counted = third.counted = same.counted = True
    unknown.counted = False
    commit = build([], [first, third, same, unknown], b"me", 0, 5.0)
    claim = ("XCLAIM", queue.keys.stream, GROUP, b"me", 0)
    assert commit.commands[1:-1] == [
        (*claim, b"1-0", "RETRYCOUNT", 1, "JUSTID"),
        (*claim, b"2-0", b"3-0", "RETRYCOUNT", 3, "JUSTID"),
        (*claim, b"4-0", "JUSTID"),
    ]
