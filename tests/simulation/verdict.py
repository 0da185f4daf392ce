"""What must be true when a world has come to rest.

Weakened by what the server has lost (a restart without data, a failover that loses a tail): a task that was
lost may stay lost when its client is gone, or did not keep it any more when it noticed. A client that keeps tasks
and lives on has to notice (`bounds.notices_loss`). Nothing else is forgiven.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamfleet.memory.sorted_sets import SortedSet
from streamfleet.memory.streams import Stream
from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.submission import Status

from . import bounds

if TYPE_CHECKING:
    from .processes import ClientProcess
    from .records import Wish
    from .world import World


def undrained(world: World) -> str:
    """What is still to come; empty when everything has drained."""
    for client in world.clients + [one for one in world.former_clients if one.alive]:
        if client.machine.pending:
            return f"{client.name} has {client.machine.pending} tasks that the server has not accepted"
    for record in world.observer.records.values():
        if record.live:
            return f"{record.label} is still alive: {record.live}"
    for queue in world.queues:
        stream = world.server.model.database.values.get(queue_keys(queue).stream)
        if isinstance(stream, Stream) and GROUP in stream.groups and len(stream.groups[GROUP].pending):
            return f"{queue} has pending entries"
    for wish in world.observer.wishes.values():
        if _waits_in_vain(wish):
            return f"{wish.client.name} still waits for task {wish.task.number}"
    return ""


def _waits_in_vain(wish: Wish) -> bool:
    return wish.submission.tracked and wish.client.alive and not wish.client.closing and wish.resolved is None


def judge_end(world: World) -> None:
    """Everything has been closed."""
    _judge_tasks(world)
    _judge_keys(world)
    world.observer.markers.judge_all()


def _judge_tasks(world: World) -> None:
    """Total queue: lost, duplicated, recovered, unexpected."""
    records, wishes = world.observer.records, world.observer.wishes
    for task_id, record in records.items():
        if task_id not in wishes:
            world.violated("unexpected", f"{record.label} was never enqueued")
    told = (Status.ACCEPTED, Status.COMPLETED, Status.FAILED)
    for task_id, wish in wishes.items():
        runs = world.observer.runs_of.get(task_id, ())
        known = records.get(task_id)
        forgiven = task_id in world.observer.touched
        if known is not None and known.ended:
            world.counts["recovered"] += len({run.entry_id for run in runs}) < len(runs)
        elif known is not None:
            world.violated("I1", f"{known.label} has not ended")
        elif wish.submission.status is Status.ACCEPTED or (wish.submission.status in told and not forgiven):
            world.counts["lost"] += 1
            why = _unforgivable(world, task_id, wish)
            if why:
                world.violated("I1", f"task {wish.task.number} is lost: {why}")


def _unforgivable(world: World, task_id: str, wish: Wish) -> str:
    """Why a task that is gone should not be; empty when its loss is forgiven (see the module's text)."""
    when = max((at for at, tasks in world.losses if task_id in tasks), default=None)
    if when is None:
        return "and the server has lost nothing"
    client = wish.client
    greeted = [at for at in world.observer.markers.greeted.get(client.name, ()) if at > when]
    accepted = world.observer.accepted_at.get(task_id, 0.0)
    if not greeted and _should_have_noticed(world, client, accepted, when):
        return f"its client has never asked, {client.closed_at - when:.1f} s long"
    if client.dead or not greeted or accepted < greeted[0] - world.keep_seconds + 1.0:
        return ""
    return f"its client has noticed the loss {greeted[0] - accepted:.1f} s after the server had accepted it"


def _should_have_noticed(world: World, client: ClientProcess, accepted: float, lost: float) -> bool:
    """Has the client kept the task for long enough, and lived on for long enough, without ever being asleep?"""
    awake = not client.dead and not client.longest_sleep
    had_time = client.closed_at - max(lost, world.outage_ended or 0.0) > bounds.notices_loss(world)
    return awake and had_time and lost - accepted < world.keep_seconds / 2


def _collectable(world: World) -> set[bytes]:
    """Keys that late requests of clients that have left bring back, for a worker to collect."""
    keys: set[bytes] = set()
    if not world.plan.network.calm:
        for queue in world.queues:
            receivers = queue_keys(queue).receivers
            members = world.server.model.database.values.get(receivers)
            if isinstance(members, SortedSet):
                keys |= {receivers, *(receiver_key(client.decode()) for client in members.scores)}
    return keys


def _judge_keys(world: World) -> None:
    database = world.server.model.database
    allowed = set()
    for queue in world.queues:
        keys = queue_keys(queue)
        allowed |= {keys.stream, keys.dead, keys.fence, keys.moves}
        stream = database.values.get(keys.stream)
        if isinstance(stream, Stream) and len(stream.entries):
            world.violated("I13", f"{queue} holds entries that nobody has")
    late = _collectable(world)
    for key in database.values:
        if key in allowed:
            continue
        if key in late:
            continue
        if b":producer:" in key and key in database.expires:
            client = key.rpartition(b"}")[2].decode()
            clean = [c.name for c in [*world.clients, *world.former_clients] if c.ended]
            if client not in clean or client in world.gave_up_closing or not world.plan.network.calm:
                continue  # of a client that was killed, or greeted late: it goes by itself
        world.violated("I12", f"key {key.decode()} is left")
