import pytest

from streamfleet_core.client import PLAIN, Options
from streamfleet_core.config import MAX_DELAY
from streamfleet_core.errors import InvalidTask
from streamfleet_core.options import task_options
from streamfleet_core.retry import RetryPolicy


def options(
    max_retries=3, retry_delay=None, retry=None, delay=None, at=None, expires_in=None, expires_at=None
) -> Options:
    return task_options(max_retries, retry_delay, retry, delay, at, expires_in, expires_at)


def test_defaults_are_one_shared_object():
    assert options() is PLAIN


@pytest.mark.parametrize("retries", [0, 1, 7, None])
def test_max_retries(retries):
    assert options(max_retries=retries).retry == RetryPolicy(max_retries=retries)


def test_three_retries_with_a_delay_are_not_plain():
    chosen = options(retry_delay=0.5)
    assert chosen.retry.delay == 0.5
    assert chosen.retry.max_retries == 3


def test_a_delay_beyond_the_default_bound_raises_the_bound():
    assert options(retry_delay=7200).retry.max_delay == 7200
    assert options(retry_delay=1).retry.max_delay == RetryPolicy().max_delay


def test_a_whole_policy():
    policy = RetryPolicy(max_retries=9, jitter=0)
    assert options(retry=policy).retry is policy


def test_times_are_passed_on():
    chosen = options(delay=5, expires_in=60)
    assert (chosen.delay, chosen.at, chosen.expires_in, chosen.expires_at) == (5, None, 60, None)
    chosen = options(at=1e9, expires_at=2e9)
    assert (chosen.delay, chosen.at, chosen.expires_in, chosen.expires_at) == (None, 1e9, None, 2e9)


@pytest.mark.parametrize("given", [{"max_retries": 4}, {"retry_delay": 1.0}, {"max_retries": 3.0}])
def test_a_policy_and_its_parts_contradict_each_other(given):
    with pytest.raises(InvalidTask, match="^give retry, or max_retries and retry_delay, not both$"):
        options(retry=RetryPolicy(), **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": True}, "max_retries"),
        ({"max_retries": "3"}, "max_retries"),
        ({"max_retries": 3.0}, "max_retries"),
        ({"max_retries": 2**31}, "max_retries"),
        ({"retry_delay": -0.1}, "retry_delay must be zero or more"),
        ({"retry_delay": float("nan")}, "retry_delay must be zero or more"),
        ({"retry_delay": "1"}, "retry_delay must be a number of seconds, got str: '1'"),
        ({"retry_delay": True}, "retry_delay must be a number"),
        ({"retry_delay": [1]}, "retry_delay must be a number"),
        ({"retry": 3}, "retry must be a RetryPolicy, got int$"),
        ({"delay": -1}, "delay"),
        ({"delay": "soon"}, "delay must be a number"),
        ({"delay": True}, "delay must be a number"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": float("inf")}, "delay"),
        ({"delay": MAX_DELAY * 1.01}, "ten years"),
        ({"at": -1}, "at must"),
        ({"expires_at": -1}, "expires_at"),
        ({"expires_in": 1e13}, "expires_in"),
        ({"delay": 1, "at": 1}, "delay or at, not both"),
        ({"expires_in": 1, "expires_at": 1}, "expires_in or expires_at, not both"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(given, said):
    with pytest.raises(InvalidTask, match=said):
        options(**given)


def test_a_retry_may_come_at_once():
    assert options(retry_delay=0).retry.delay == 0


def test_an_expiry_in_the_past_is_allowed():
    assert options(expires_in=-5).expires_in == -5
