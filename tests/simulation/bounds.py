"""How long things may take, computed from the plan of a world (seconds)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plan import Act, Kind, Plan, TaskPlan

if TYPE_CHECKING:
    from .world import World

EXCHANGE_TIMEOUT = 10.0
READ_MARGIN = 5.0
LOOK_EVERY = 0.5
"""How often entries that nobody renews are looked at."""
EXCHANGES = 20
"""Round trips that a worker's control link may have to finish before it looks for idle entries and claims them."""


def scan_interval(plan: Plan) -> float:
    """How often a worker of this world looks for entries of silent workers."""
    return min(2.0, plan.lease / 3)


def takeover(plan: Plan) -> float:
    """Within which an entry that has been idle for a lease is claimed by a worker with room and in contact (I9).

    At the latest half a lease after its last look a worker looks again, and then it claims.
    """
    between_looks = plan.lease / 2
    return between_looks + 2 * EXCHANGES * plan.network.latency + 2 * LOOK_EVERY


def notices_loss(world: World) -> float:
    """Within which a client that keeps accepted tasks, and can reach the server, notices that these are lost."""
    return world.keep_seconds + EXCHANGE_TIMEOUT


def drain(world: World) -> float:
    """Within which everything must drain once faults have stopped (I15)."""
    plan = world.plan
    noticed = EXCHANGE_TIMEOUT + world.block + READ_MARGIN
    taken_over = 3 * plan.lease + 2.0
    work = sum(attempt.seconds for task in plan.tasks for attempt in task.script if attempt.act is not Act.HANG)
    hanging = sum(attempt.act is Act.HANG for task in plan.tasks for attempt in task.script)
    delays = max((_delay(task) for task in plan.tasks), default=0.0)
    deadly = sum(any(one.act is Act.POISON for one in task.script) for task in plan.tasks)
    poison = deadly * world.max_deliveries * (2.5 * plan.lease + 3.0)
    restored = 60 * world.sweep_interval if any(f.kind is Kind.DELETE_CONSUMER for f in plan.faults) else 0.0
    longest = noticed + taken_over + work + hanging * (20 * plan.timeout + 2.0) + delays + poison + restored
    return 1.5 * longest + world.jumped_back


def _delay(task: TaskPlan) -> float:
    most = len(task.script) if task.max_retries is None else task.max_retries
    return (task.delay or 0.0) + most * max(task.retry_delay, 0.5)
