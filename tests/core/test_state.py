import itertools

import pytest

from streamfleet_core.keys import queue_keys
from streamfleet_core.safeguards import UNKNOWN, fence_holds
from streamfleet_core.state import TERMINAL, TRANSITIONS, Delivery, IllegalTransition, Phase, QueueState


def delivery(phase: Phase = Phase.READY) -> Delivery:
    fresh = Delivery(QueueState(queue_keys("q")), b"1-0", None, [], b"token", 0.0)
    fresh.phase = phase
    return fresh


def test_the_table_names_every_phase():
    assert set(TRANSITIONS) == set(Phase)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Phase, Phase)))
def test_a_delivery_moves_by_the_table_and_not_otherwise(before, after):
    moved = delivery(before)
    if after in TRANSITIONS[before]:
        moved.move(after)
        assert moved.phase is after
    else:
        with pytest.raises(IllegalTransition, match=f"{before.name} to {after.name}"):
            moved.move(after)
        assert moved.phase is before


def test_every_phase_is_reached_and_left_for_an_end():
    seen, ahead = {Phase.READY}, [Phase.READY]
    while ahead:
        for target in TRANSITIONS[ahead.pop()]:
            if target not in seen:
                seen.add(target)
                ahead.append(target)
    assert seen == set(Phase)
    ends = set(TERMINAL)
    for _ in Phase:
        ends |= {phase for phase, targets in TRANSITIONS.items() if ends & set(targets)}
    assert ends == set(Phase)


def test_ends_are_final():
    assert {Phase.SETTLED, Phase.RELEASED, Phase.LOST} == TERMINAL


def test_a_running_task_ends_only_through_an_outcome_or_a_loss():
    assert Phase.SETTLED not in TRANSITIONS[Phase.RUNNING]
    assert Phase.SETTLED not in TRANSITIONS[Phase.READY]


def test_doubt_holds_against_any_fence():
    doubtful = delivery()
    assert fence_holds(doubtful.fence, b"token")
    doubtful.doubt()
    assert doubtful.fence is UNKNOWN
    for fence in (b"token", None, UNKNOWN):
        assert not fence_holds(doubtful.fence, fence)
    assert repr(doubtful.fence) == "UNKNOWN"


def test_it_shows_itself():
    assert repr(delivery()) == "<Delivery b'1-0' READY None>"


def test_after_a_broken_connection_nothing_of_before_is_known_to_be_ours():
    queue = QueueState(queue_keys("q"), fence=b"token")
    held = Delivery(queue, b"1-0", None, [], b"token", 0.0)
    queue.in_flight[held.entry_id] = held
    asked = queue.broken
    assert queue.fence_since(b"token", asked) == b"token"
    queue.disconnected()
    assert queue.fence is UNKNOWN
    assert held.fence is UNKNOWN
    assert queue.fence_since(b"token", asked) is UNKNOWN


def test_each_break_of_the_connection_counts():
    queue = QueueState(queue_keys("q"))
    queue.disconnected()
    asked = queue.broken
    queue.disconnected()
    assert queue.fence_since(b"token", asked) is UNKNOWN
