"""What is kept of accepted batches, and for how long."""

import pytest

from streamfleet_core.config import ClientConfig
from streamfleet_core.keeping import Batch, Kept
from streamfleet_core.keys import queue_keys
from streamfleet_core.submission import Status, Submission


def batch(number, *names):
    return Batch(number, [Submission(queue_keys("q"), name, [], False, 0, 0.0, 0) for name in names])


def names(batches):
    return [[submission.id for submission in batch.submissions] for batch in batches]


def test_the_oldest_batches_go_when_there_are_too_many_tasks():
    kept = Kept(ClientConfig(keep_tasks=4))
    for number in range(1, 4):
        kept.add(batch(number, f"{number}a", f"{number}b"), 0.0)
    assert names(kept) == [["2a", "2b"], ["3a", "3b"]]
    assert len(kept) == 2


def test_a_batch_goes_when_it_is_older_than_the_limit():
    kept = Kept(ClientConfig(keep_seconds=30.0))
    kept.add(batch(1, "a"), 0.0)
    kept.add(batch(2, "b"), 10.0)
    kept.drop_old(30.0)
    assert names(kept) == [["a"], ["b"]]
    kept.drop_old(30.1)
    assert names(kept) == [["b"]]


def test_what_is_let_go_makes_room_for_others():
    kept = Kept(ClientConfig(keep_tasks=5))
    first = batch(1, "a", "b", "c")
    kept.add(first, 0.0)
    kept.let_go(first.submissions[0])
    kept.add(batch(2, "d", "e", "f"), 0.0)
    assert names(kept) == [["b", "c"], ["d", "e", "f"]]
    kept.add(batch(3, "g"), 0.0)
    assert names(kept) == [["d", "e", "f"], ["g"]]


@pytest.mark.parametrize(("keep_seconds", "after"), [(30.0, 10.0), (1.5, 1.0), (0.0, 1.0)])
def test_the_server_is_asked_three_times_while_a_task_is_kept(keep_seconds, after):
    kept = Kept(ClientConfig(keep_seconds=keep_seconds))
    kept.checked(100.0)
    assert kept.check_at == 100.0 + after


def test_what_is_lost_is_what_came_after_the_last_batch_that_is_known():
    kept = Kept(ClientConfig(keep_tasks=5))
    for number in range(1, 5):
        kept.add(batch(number, f"{number}"), 0.0)
    done, unknown = (next(b for b in kept if b.number == number).submissions[0] for number in (3, 4))
    done.status, unknown.status = Status.COMPLETED, Status.UNKNOWN
    lost = kept.take_lost(2, 1.0)
    assert [b.number for b in lost] == [3, 4]
    assert names(lost) == [[], ["4"]]
    assert names(kept) == [["1"], ["2"]]
    kept.add(batch(5, "5", "6", "7"), 1.0)
    assert names(kept) == [["1"], ["2"], ["5", "6", "7"]], "there is room for what was taken out"
