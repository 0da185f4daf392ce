import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_core.clock import ServerClock

WALL = 1_700_000_000_000.0


def test_the_local_wall_clock_serves_until_the_server_has_been_asked():
    clock = ServerClock(WALL, 50.0)
    assert not clock.synchronised
    assert clock.ms(50.0) == WALL
    assert clock.ms(51.5) == WALL + 1500


def test_a_sample_is_placed_in_the_middle_of_its_exchange():
    clock = ServerClock(0.0, 50.0)
    clock.observed(1_000_000, 60.0, 62.0)
    assert clock.synchronised
    assert clock.ms(61.0) == 1_000_000
    assert clock.ms(71.0) == 1_010_000
    assert clock.local(1_010_000) == pytest.approx(71.0)


def test_the_newest_sample_counts():
    clock = ServerClock(WALL, 0.0)
    clock.observed(1_000_000, 1.0, 1.0)
    clock.observed(500_000, 2.0, 2.0)
    assert clock.ms(3.0) == 501_000


def test_a_slow_answer_does_not_spoil_what_is_known_better():
    clock = ServerClock(WALL, 0.0)
    clock.observed(1_001_000, 1.0, 1.001)
    clock.observed(1_006_000, 2.0, 6.0)  # suspended for four seconds, and read its clock at the end
    assert clock.ms(6.0) == pytest.approx(1_006_000, abs=1)
    assert clock.at_least_ms(6.0) <= 1_006_000 <= clock.at_most_ms(6.0)


def test_a_clock_that_was_set_is_followed():
    clock = ServerClock(WALL, 0.0)
    clock.observed(1_001_000, 1.0, 1.001)
    clock.observed(1_602_000, 2.0, 2.5)
    assert clock.ms(2.25) == 1_602_000


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1), st.floats(0, 10)), min_size=1))
def test_whatever_the_answers_took_the_servers_time_is_within_the_bounds(exchanges):
    clock, now = ServerClock(WALL, 0.0), 0.0
    for before, part, took in exchanges:
        sent = now + before
        now = sent + took
        clock.observed(int((sent + took * part) * 1000) + 5_000_000, sent, now)
    assert clock.at_least_ms(now) - 1 <= int(now * 1000) + 5_000_000 <= clock.at_most_ms(now) + 1
    assert clock.at_least_ms(now) <= clock.ms(now) <= clock.at_most_ms(now)


@given(
    st.floats(0, 1e9),
    st.integers(0, 2**47),
    st.floats(0, 10),
    st.floats(0, 1e6),
)
def test_local_is_the_inverse_of_ms(now, server_ms, took, later):
    clock = ServerClock(0.0, 0.0)
    clock.observed(server_ms, now, now + took)
    at = now + later
    assert clock.local(clock.ms(at)) == pytest.approx(at, abs=0.01)
