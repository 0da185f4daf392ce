"""A worker that dies after any command of what it sends to end a task (rows 40, 58)."""

import pytest

from streamfleet_core.keys import queue_keys
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status

KEYS = queue_keys("q")
LEASE = 10.0
AGAIN = {"retry": RetryPolicy(max_retries=1, delay=0)}
OUTCOMES = {
    "completed": (lambda worker, delivery: worker.succeed(delivery, b"42"), {}),
    "retried": (lambda worker, delivery: worker.fail(delivery), AGAIN),
    "retried later": (
        lambda worker, delivery: worker.fail(delivery, retry_in=5.0),
        {"retry": RetryPolicy(max_retries=1, delay=0)},
    ),
    "buried": (lambda worker, delivery: worker.fail(delivery), {"retry": RetryPolicy(max_retries=0)}),
}

AFTERWARDS = {"completed": (0, 0, 0), "retried": (1, 0, 0), "retried later": (0, 1, 0), "buried": (0, 0, 1)}
"""In the stream, in the schedule and dead."""


def crash_within(world, end, how, after):
    """One task, whose worker dies when the server has got so many commands. Returns the handle and their names."""
    doomed = world.worker(concurrency=1)
    world.enqueue("earlier")  # the first one's end finds a fence that moved when the group was created
    world.pump()
    doomed.succeed(doomed.take())
    world.pump()
    handle = world.client().enqueue(b"x", tracked=True, **how)
    world.pump()
    end(doomed, doomed.take())
    flight = doomed.settle.until("EXEC")
    names = flight.names
    for command in flight.commands[:after]:
        flight.session.execute(command)
    doomed.crash()
    return handle, names


@pytest.mark.fault_row(40, 58)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_task_whose_worker_dies_while_ending_it_has_ended_or_runs_again(new_world, outcome):
    end, how = OUTCOMES[outcome]
    _, names = crash_within(new_world(), end, how, 0)
    assert names.count("MULTI") == names.count("EXEC") == 1
    applied = set()
    for after in range(len(names) + 1):
        world = new_world()
        handle, _ = crash_within(world, end, how, after)
        committed = after > names.index("EXEC")
        states = (len(world.stream()), int(world.call("ZCARD", KEYS.schedule)), len(world.dead()))
        assert states == (AFTERWARDS[outcome] if committed else (1, 0, 0)), after
        world.pump()
        told = handle.status.terminal
        assert told == (committed and outcome in ("completed", "buried")), "told if and only if it has ended"
        applied.add(committed)

        heir = world.worker(concurrency=1)
        world.advance(2 * LEASE + 10)
        if heir.machine.held:
            assert not told
            delivery = heir.take()
            assert delivery.task.retries == int(committed)
            heir.succeed(delivery)
        world.advance(1.0)
        assert handle.status is (Status.FAILED if told and outcome == "buried" else Status.COMPLETED)
        assert (world.stream(), world.pending(), world.call("ZCARD", KEYS.schedule)) == ([], {}, 0)
    assert applied == {True, False}
