"""The checker of takeovers in time (I9); that healthy workers keep their entries (I8) is in `test_checker`."""

from dataclasses import replace

import pytest

from streamfleet_core.keys import GROUP
from streamfleet_core.link import Role

from .bounds import LOOK_EVERY, takeover
from .loops import FOREVER
from .network import Memory
from .plan import Network
from .stage import KEYS, Stage

LEASE = 3.0


@pytest.fixture
def stage():
    """A worker that has died with an entry, and one that stands by; nobody moves."""
    stage = Stage(lease=LEASE, concurrency=1)
    stage.world.start_worker(0)
    stage.world.start_worker(1)
    stage.dead, stage.other = stage.world.workers
    stage.taken = stage.enqueue()
    assert stage.read() == [stage.taken]
    stage.dead.crash()
    for loop in stage.other.loops:
        loop.quiet_since = 0.0
    return stage


def watch(stage, seconds):
    """Let time pass, with a look now and then."""
    end = stage.world.engine.now + seconds
    while stage.world.engine.now < end:
        stage.world.engine.now += LOOK_EVERY
        stage.observer.reclaims.look()


def loop(stage, role):
    return next(loop for loop in stage.other.loops if loop.link.role is role)


def bound(stage):
    return takeover(stage.world.plan)


def test_i9_a_dead_workers_entry_that_nobody_takes(stage):
    watch(stage, LEASE + bound(stage) - LOOK_EVERY)
    assert stage.violated == set()
    watch(stage, 3 * LOOK_EVERY)
    assert stage.violated == {"I9"}


def test_i9_is_said_once(stage):
    watch(stage, LEASE + 5 * bound(stage))
    assert len(stage.world.violations) == 1


def test_an_entry_that_is_taken_in_time(stage):
    watch(stage, LEASE + 1.0)
    stage.do("w1.1 control", "XCLAIM", KEYS.stream, GROUP, "w1.1", 3000, stage.taken)
    watch(stage, LEASE + bound(stage))
    assert stage.violated == set()


def test_i9_an_entry_that_was_given_back_need_not_be_idle_for_a_lease(stage):
    stage.do("w0.1 settle", "XCLAIM", KEYS.stream, GROUP, "w0.1", 0, stage.taken, "IDLE", 10**9, "JUSTID")
    watch(stage, LEASE)
    assert stage.violated == set()  # contact, too, has to last for a lease
    watch(stage, bound(stage) + 2 * LOOK_EVERY)
    assert stage.violated == {"I9"}


def test_i9_an_entry_of_a_suspended_worker(stage):
    stage.world.start_worker(0)
    stage.world.workers[0].suspend()
    stage.do("w0.2 settle", "XCLAIM", KEYS.stream, GROUP, "w0.2", 0, stage.taken, "JUSTID")
    watch(stage, LEASE + bound(stage) + 2 * LOOK_EVERY)
    assert stage.violated == {"I9"}


def unfit(stage, how):
    if how in ("suspended", "partitioned", "dead"):
        setattr(stage.other, how, True)
    elif how == "stopping":
        stage.other.machine.stopping = True
    elif how in ("control", "settle"):
        loop(stage, Role(how)).quiet_since = FOREVER
    elif how == "busy":
        for number in range(2):
            stage.do("c0.1 publish", *stage.entry(task_id=f"{number}"))
        stage.read("w1.1 read")
    elif how == "full":
        stage.world.server.memory = Memory.FULL
    else:
        setattr(stage.world.server, *{"down": ("up", False), "slow": ("slow", True)}[how])


WAYS = ("suspended", "partitioned", "dead", "stopping", "control", "settle", "busy", "full", "down", "slow")


@pytest.mark.parametrize("how", WAYS)
def test_nobody_is_expected_to_take_what_he_cannot(stage, how):
    unfit(stage, how)
    watch(stage, LEASE + 2 * bound(stage))
    assert stage.violated == set()


def test_whoever_comes_back_is_given_time(stage):
    unfit(stage, "suspended")
    watch(stage, LEASE + bound(stage))
    stage.other.suspended = False
    watch(stage, LEASE + bound(stage) - LOOK_EVERY)
    assert stage.violated == set()
    watch(stage, 3 * LOOK_EVERY)
    assert stage.violated == {"I9"}


def test_a_worker_does_not_take_from_itself(stage):
    stage.do("w1.1 settle", "XCLAIM", KEYS.stream, GROUP, "w1.1", 0, stage.taken, "JUSTID")
    watch(stage, LEASE + 2 * bound(stage))
    assert stage.violated == set()


def test_a_server_far_away_makes_a_lease_a_matter_of_luck(stage):
    stage.world.plan = replace(stage.world.plan, network=Network(latency=0.3))
    watch(stage, 10 * LEASE)
    assert stage.violated == set()
