import pytest

from streamfleet_core.errors import NotAccepted, OutcomeLost, TaskCancelled, TaskExpired, TaskFailed
from streamfleet_core.keys import queue_keys
from streamfleet_core.submission import Status, Submission
from streamfleet_core.wire import Task, decode_task, encode_task

LIVE = {Status.BUFFERED, Status.SENT, Status.ACCEPTED}


def submission(**how) -> Submission:
    task = Task("t1", "q", "c", b"payload")
    settings = {"tracked": True, "expires_ms": 0, "due_at": 0.0, "due_ms": 0} | how
    return Submission(queue_keys("q"), task.id, encode_task(task), **settings)


def test_it_begins_in_the_buffer():
    fresh = submission()
    assert fresh.status is Status.BUFFERED
    assert fresh.failure() is None
    assert fresh.size == len(b"payload")
    assert not fresh.cancelling
    assert (fresh.error, fresh.result, fresh.expires_ms) == ("", None, 0)
    assert submission(expires_ms=5).expires_ms == 5


def test_an_expiry_at_the_beginning_of_time_is_one():
    early = submission()
    early.expires(0)
    assert early.expires_ms == 1, "0 would be none"
    assert decode_task(early.fields, "q").expires_ms == 1


@pytest.mark.parametrize("status", Status)
def test_terminal_statuses(status):
    assert status.terminal is (status not in LIVE)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.FAILED, TaskFailed),
        (Status.EXPIRED, TaskExpired),
        (Status.CANCELLED, TaskCancelled),
        (Status.REFUSED, NotAccepted),
        (Status.UNKNOWN, OutcomeLost),
    ],
)
def test_each_failure_has_its_error_which_names_the_task(status, error):
    ended = submission()
    ended.status, ended.error = status, "because"
    failure = ended.failure()
    assert type(failure) is error
    assert "t1" in str(failure)
    if error not in (TaskExpired, TaskCancelled):
        assert "because" in str(failure)


@pytest.mark.parametrize("status", [*LIVE, Status.COMPLETED])
def test_no_failure_while_live_and_on_success(status):
    fresh = submission()
    fresh.status = status
    assert fresh.failure() is None


def test_scheduled():
    assert not submission().scheduled
    assert submission(due_at=1.0).scheduled
    assert submission(due_ms=1).scheduled
