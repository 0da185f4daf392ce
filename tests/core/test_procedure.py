import pytest

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import PermissionMissing
from streamfleet_core.procedure import Answer, committed, transaction, trouble

COMMANDS = transaction([("SET", "k", "v"), ("DEL", "x")])
QUEUED = [b"OK", b"QUEUED", b"QUEUED"]


class Troubled:
    """A link that writes down what it is told."""

    def __init__(self):
        self.told = []

    def trouble(self, error, command, now):
        self.told.append((error.message, command, now))


@pytest.fixture
def link():
    return Troubled()


def test_a_transaction_is_wrapped():
    assert COMMANDS == [("MULTI",), ("SET", "k", "v"), ("DEL", "x"), ("EXEC",)]


def test_results_of_one_that_was_applied(link):
    answer = Answer([*QUEUED, [b"OK", 1]], 1.0, 2.0)
    assert committed(answer, COMMANDS, link) == [b"OK", 1]
    assert link.told == []


def test_one_that_was_aborted_by_a_watch(link):
    assert committed(Answer([*QUEUED, None], 1.0, 2.0), COMMANDS, link) is None
    assert link.told == []


def test_the_command_that_was_refused_is_the_cause(link):
    replies = [b"OK", b"QUEUED", ServerError("NOPERM no"), ServerError("EXECABORT discarded")]
    assert committed(Answer(replies, 1.0, 2.0), COMMANDS, link) is None
    assert link.told == [("NOPERM no", ("DEL", "x"), 2.0)]


def test_a_transaction_behind_other_commands(link):
    replies = [b"OK", *QUEUED[:2], ServerError("OOM full"), ServerError("EXECABORT discarded")]
    assert committed(Answer(replies, 1.0, 2.0), COMMANDS, link) is None
    assert link.told == [("OOM full", ("DEL", "x"), 2.0)]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("EXECABORT Transaction discarded because of: NOREPLICAS few", "NOREPLICAS few"),
        ("EXECABORT Transaction discarded because of previous errors.", None),
    ],
)
def test_a_cause_that_only_the_exec_reply_tells(link, line, cause):
    assert committed(Answer([*QUEUED, ServerError(line)], 1.0, 2.0), COMMANDS, link) is None
    assert link.told == [(cause or line, ("EXEC",), 2.0)]


def test_a_missing_group_is_nobodys_trouble(link):
    trouble(link, ServerError("NOGROUP no such group"), ("XPENDING",), 1.0)
    assert link.told == []
    trouble(link, ServerError("LOADING"), ("XPENDING",), 1.0)
    assert link.told == [("LOADING", ("XPENDING",), 1.0)]


def test_it_is_the_links_business_to_stop(world):
    worker = world.worker()
    trouble(worker.control.link, ServerError("NOPERM no"), ("XPENDING", "k"), world.now)
    assert isinstance(worker.machine.refusal, PermissionMissing)
