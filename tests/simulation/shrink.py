"""From a world that violates an invariant to its essence: fewer actors, fewer faults, fewer tasks, shorter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

from .plan import Act, Attempt, Plan
from .world import run

TRIES = 600
"""Worlds that are lived through before what is left counts as the essence."""

SHORT = 0.2
"""Seconds that are not worth being shortened."""


def shrink(plan: Plan, invariant: str, tries: int = TRIES) -> Plan:
    """The smallest plan found that still violates the invariant."""
    progress = True
    while progress:
        progress = False
        for smaller in (_fewer_things, _fewer_actors, _shorter, _simpler_tasks):
            found = True
            while found:
                found = False
                for candidate in smaller(plan):
                    if tries <= 0:
                        return plan
                    tries -= 1
                    if _violates(candidate, invariant):
                        plan, found, progress = candidate, True, True
                        break
    return plan


def _violates(plan: Plan, invariant: str) -> bool:
    return any(name == invariant for name, _ in run(plan).violations)


def _fewer_things(plan: Plan) -> Iterator[Plan]:
    """Less happens; the boldest first."""
    yield from _with_fewer(plan, "tasks")
    yield from _with_fewer(plan, "faults")
    for rate in fields(plan.network):
        if rate.name not in ("latency", "late_by") and getattr(plan.network, rate.name):
            yield replace(plan, network=replace(plan.network, **{rate.name: 0.0}))


def _fewer_actors(plan: Plan) -> Iterator[Plan]:
    if plan.workers > 1:
        yield replace(plan, workers=1)
        yield replace(plan, workers=plan.workers - 1)
    if plan.clients > 1:
        yield replace(plan, clients=1, tasks=tuple(replace(task, client=0) for task in plan.tasks))
    if plan.queues > 1:
        yield replace(plan, queues=1, tasks=tuple(replace(task, queue=0) for task in plan.tasks))
    if plan.concurrency > 1:
        yield replace(plan, concurrency=1)
    if plan.obedient:
        yield replace(plan, obedient=0)
    if plan.skew:
        yield replace(plan, skew=0.0)
    if plan.timeout and not any(one.act is Act.HANG for task in plan.tasks for one in task.script):
        yield replace(plan, timeout=0.0)


def _shorter(plan: Plan) -> Iterator[Plan]:
    """The world ends earlier, pauses are cut out of it, faults pass sooner."""
    moments = sorted({0.0, *(task.at for task in plan.tasks), *(fault.at for fault in plan.faults)})
    for horizon in (moments[-1] + 0.1, moments[-1] + plan.lease, (moments[-1] + plan.horizon) / 2):
        if horizon < plan.horizon - SHORT:
            yield replace(plan, horizon=horizon)
    for before, after in pairwise(moments):
        for cut in (after - before - 0.1, (after - before) / 2):
            if cut > SHORT:
                yield _without_time(plan, before, cut)
    for index, fault in enumerate(plan.faults):
        if abs(fault.amount) > SHORT:
            shorter = replace(fault, amount=fault.amount / 2)
            yield replace(plan, faults=(*plan.faults[:index], shorter, *plan.faults[index + 1 :]))


def _without_time(plan: Plan, moment: float, cut: float) -> Plan:
    """All that comes after the moment comes earlier."""
    tasks = tuple(replace(one, at=one.at - cut) if one.at > moment else one for one in plan.tasks)
    faults = tuple(replace(one, at=one.at - cut) if one.at > moment else one for one in plan.faults)
    return replace(plan, tasks=tasks, faults=faults, horizon=plan.horizon - cut)


def _with_fewer(plan: Plan, name: str) -> Iterator[Plan]:
    """Without a half, a quarter, … of them; at last without single ones."""
    items: tuple[Any, ...] = getattr(plan, name)
    size = len(items)
    while size:
        for start in range(0, len(items), size):
            changed: dict[str, Any] = {name: items[:start] + items[start + size :]}
            yield replace(plan, **changed)
        size //= 2


def _simpler_tasks(plan: Plan) -> Iterator[Plan]:
    plain = (Attempt(Act.OK, 0.01),)
    for index, task in enumerate(plan.tasks):
        simpler = [
            replace(task, script=plain),
            replace(task, script=task.script[1:] or task.script),
            replace(task, delay=None, cancel_after=None),
            replace(task, expires_in=None),
            replace(task, tracked=False),
            replace(task, script=tuple(replace(one, seconds=_half(one.seconds)) for one in task.script)),
        ]
        for one in simpler:
            if one != task:
                yield replace(plan, tasks=(*plan.tasks[:index], one, *plan.tasks[index + 1 :]))


def _half(seconds: float) -> float:
    return seconds / 2 if seconds > SHORT else seconds


def describe(plan: Plan) -> str:
    """The plan for people: who there is, what they do, what goes wrong."""
    lines = [
        f"seed {plan.seed} ({plan.profile}): {plan.workers} workers with {plan.concurrency} handlers, "
        f"{plan.clients} clients, {plan.queues} queues, lease {plan.lease:g} s, until {plan.horizon:.1f} s",
        f"  network: {plan.network}",
    ]
    for task in plan.tasks:
        script = ", ".join(f"{one.act.name} after {one.seconds:g} s" for one in task.script)
        extras = {
            name: getattr(task, name)
            for name in ("tracked", "delay", "expires_in", "cancel_after", "max_retries", "retry_delay")
            if getattr(task, name) not in (None, False)
        }
        lines.append(f"  at {task.at:.3f} s client {task.client} enqueues task {task.number}: {script}; {extras}")
    lines += [f"  at {f.at:.3f} s {f.kind.name} ({f.kind.value}) {f.who} {f.amount:g}" for f in plan.faults]
    return "\n".join(lines)
