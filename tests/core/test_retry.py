import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_core.errors import InvalidTask
from streamfleet_core.retry import MAX_DELAY, MAX_RETRIES, RetryPolicy, policy_of
from streamfleet_core.wire import (
    F_BACKOFF,
    F_NAME,
    Task,
    decode_task,
    encode_task,
)


def task(**changes) -> Task:
    return Task("id", "q", "client", b"", **changes)


# Delays in whole ms, which is what the wire can say.
seconds = st.integers(0, 10_000_000).map(lambda ms: ms / 1000)
units = st.floats(0, 1, exclude_max=True)


@st.composite
def policies(draw):
    delay, bound = sorted((draw(seconds), draw(seconds)))
    return RetryPolicy(
        max_retries=draw(st.none() | st.integers(0, MAX_RETRIES)),
        delay=delay,
        factor=draw(st.floats(1, 100)),
        max_delay=bound,
        jitter=draw(st.floats(0, 1)),
    )


def test_delays_double_up_to_the_bound():
    policy = RetryPolicy(delay=1, factor=2, max_delay=10, jitter=0)
    assert [policy.delay_ms(n, 0.5) for n in range(1, 7)] == [1000, 2000, 4000, 8000, 10000, 10000]


def test_jitter_spreads_to_both_sides():
    policy = RetryPolicy(delay=10, factor=1, jitter=0.1)
    assert [policy.delay_ms(1, unit) for unit in (0, 0.5, 1 - 2**-53)] == [9000, 10000, 11000]


@given(policies(), st.integers(1, 10**6), units)
def test_a_delay_is_never_out_of_bounds(policy, retries, unit):
    delay = policy.delay_ms(retries, unit)
    assert isinstance(delay, int)
    low, high = (policy.delay * (1 - policy.jitter), policy.max_delay * (1 + policy.jitter))
    assert math.floor(low * 1000) - 1 <= delay <= math.ceil(high * 1000) + 1


@given(policies(), st.integers(1, 1000), units)
def test_delays_do_not_shrink(policy, retries, unit):
    assert policy.delay_ms(retries, unit) <= policy.delay_ms(retries + 1, unit)


@pytest.mark.parametrize("factor", [2, 1e6, 1.0000001])
def test_a_million_failures_do_not_overflow(factor):
    policy = RetryPolicy(max_retries=None, delay=1, factor=factor, max_delay=60, jitter=0)
    assert 1000 <= policy.delay_ms(10**6, 0.5) <= 60_000
    assert RetryPolicy(delay=0, factor=factor).delay_ms(10**6, 0.5) == 0


@pytest.mark.parametrize("retries", [0, -1])
def test_no_failure_no_delay(retries):
    with pytest.raises(ValueError, match="at least one failure"):
        RetryPolicy().delay_ms(retries, 0.5)


NUMBERS = ["delay", "factor", "max_delay", "jitter"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [True, math.nan, math.inf, -math.inf, -1, -0.001, pytest.param(10**5000, id="huge"), "1", None, 1j],
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(InvalidTask, match=name):
        RetryPolicy(**{name: value})


def test_there_may_be_as_many_retries_as_the_bound_says():
    assert RetryPolicy(max_retries=MAX_RETRIES).max_retries == MAX_RETRIES


@pytest.mark.parametrize("value", [True, 1.0, "3", -1, MAX_RETRIES + 1, pytest.param(10**5000, id="huge")])
def test_max_retries_out_of_range_is_refused(value):
    with pytest.raises(InvalidTask, match="max_retries"):
        RetryPolicy(max_retries=value)


@pytest.mark.parametrize(
    "settings", [{"delay": MAX_DELAY + 1}, {"max_delay": MAX_DELAY + 1}, {"factor": 0.5}, {"jitter": 1.1}]
)
def test_bounds_of_the_settings(settings):
    with pytest.raises(InvalidTask, match=next(iter(settings))):
        RetryPolicy(**settings)


def test_a_delay_above_its_own_bound_is_refused_with_the_mend():
    with pytest.raises(InvalidTask, match="raise max_delay"):
        RetryPolicy(delay=7200)
    assert RetryPolicy(delay=7200, max_delay=7200, jitter=0).delay_ms(1, 0.5) == 7_200_000


def test_a_constant_delay_needs_no_extra_field():
    written = task(extra={F_BACKOFF: b"7", F_NAME: b"kept"})
    RetryPolicy(max_retries=5, delay=1.5, factor=1, jitter=0).apply_to(written)
    assert (written.max_retries, written.retry_delay_ms, written.extra) == (5, 1500, {F_NAME: b"kept"})


def test_growth_bound_and_jitter_share_an_extra_field():
    written = task()
    RetryPolicy(max_retries=None, delay=0.25, factor=1.5, max_delay=60, jitter=0.1).apply_to(written)
    assert (written.max_retries, written.retry_delay_ms) == (-1, 250)
    assert written.extra == {F_BACKOFF: b"1.5/60000/0.1"}


def test_a_task_of_the_go_library_has_a_constant_delay():
    policy = policy_of(task(max_retries=3, retry_delay_ms=7_200_000))
    assert policy.max_retries == 3
    assert [policy.delay_ms(n, 0.99) for n in (1, 2, 100)] == [7_200_000] * 3


@pytest.mark.parametrize(("most", "wire"), [(None, -1), (0, 0), (4, 4)])
def test_max_retries_on_the_wire(most, wire):
    written = task()
    RetryPolicy(max_retries=most).apply_to(written)
    assert written.max_retries == wire
    assert policy_of(written).max_retries == most


@given(policies(), st.integers(1, 10**6), units)
def test_a_policy_survives_the_wire(policy, retries, unit):
    written = task()
    policy.apply_to(written)
    read = policy_of(decode_task(encode_task(written), "q"))
    assert read.max_retries == policy.max_retries
    assert read.delay_ms(retries, unit) == policy.delay_ms(retries, unit)


def test_applying_a_policy_shares_nothing_between_tasks():
    first, second = task(), task()
    RetryPolicy().apply_to(first)
    first.extra[F_BACKOFF] = b"9"
    RetryPolicy().apply_to(second)
    assert second.extra[F_BACKOFF] == b"2/3600000/0.1"


strange = st.binary(max_size=8) | st.sampled_from([b"nan", b"inf", b"-inf", b"-1", b"1e999", b"0", b"1e300"])


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**63 - 1),
    strange,
    strange,
    strange,
    st.integers(1, 10**6),
)
def test_whatever_a_task_carries_gives_a_policy(most, delay, backoff, bound, jitter, retries):
    odd = task(
        max_retries=most,
        retry_delay_ms=delay,
        extra={F_BACKOFF: b"/".join((backoff, bound, jitter))},
    )
    assert policy_of(odd).delay_ms(retries, 0.5) >= 0


@pytest.mark.parametrize("text", [b"inf", b"-inf", b"nan", b"1e999", b"", b"\xff", b"1,5", b"0.5"])
def test_a_strange_factor_counts_as_constant(text):
    assert policy_of(task(retry_delay_ms=1000, extra={F_BACKOFF: text})).delay_ms(9, 0.5) == 1000


@pytest.mark.parametrize(
    ("text", "factor", "max_delay", "jitter"),
    [
        (b"2", 2, MAX_DELAY, 0),
        (b"2/5000", 2, 5, 0),
        (b"2/5000/0.5", 2, 5, 0.5),
        (b"/5000/0.5", 1, 5, 0.5),
        (b"2//0.5", 2, MAX_DELAY, 0.5),
        (b"1e9/5000/7", 1e6, 5, 1),
        (b"2/5/-1", 2, 1, 0),
        (b"2/5000/0.5/of a later version", 2, 5, 0),
    ],
)
def test_each_part_of_the_extra_field_is_read_for_itself(text, factor, max_delay, jitter):
    policy = policy_of(task(retry_delay_ms=1000, extra={F_BACKOFF: text}))
    assert (policy.delay, policy.factor, policy.max_delay, policy.jitter) == (1, factor, max_delay, jitter)


def test_a_policy_that_was_read_is_one_that_may_be_written():
    policy = policy_of(task(extra={F_BACKOFF: b"1e9"}))
    assert RetryPolicy(factor=policy.factor).factor == 1e6
    with pytest.raises(InvalidTask, match="factor"):
        RetryPolicy(factor=1e6 + 0.5)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"max_retries": True}, "or None for ever, got True"),
        ({"max_retries": -7}, "got -7"),
        ({"max_retries": 10**20}, f"got {10**20}"),
        ({"max_retries": 10**20 + 1}, "got a number of more than 20 digits"),
        ({"max_retries": -(10**5000)}, "got a number of more than 20 digits"),
        ({"delay": "soon"}, "delay must be a number, got str: 'soon'"),
        ({"delay": True}, "delay must be a number, got bool: True"),
        ({"jitter": 1.5}, "jitter must be from 0 to 1, got 1.5"),
    ],
)
def test_a_refusal_shows_the_value_that_was_given(how, text):
    with pytest.raises(InvalidTask) as refused:
        RetryPolicy(**how)
    assert text in str(refused.value)
