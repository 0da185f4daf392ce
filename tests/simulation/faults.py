"""Faults of the plan, done to the world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamfleet_core.keys import GROUP, queue_keys, receiver_key

from .network import Memory
from .plan import Fault, Kind

if TYPE_CHECKING:
    from .world import World


def inflict(world: World, fault: Fault) -> None:
    """Do it, and arrange for its end."""
    seconds = f" {fault.amount:g} s" if fault.amount else ""
    world.trace.note("fault", f"{fault.kind.name} {_victim(world, fault)}{seconds}")
    world.counts["faults"] += 1
    _DO[fault.kind](world, fault)


def _victim(world: World, fault: Fault) -> str:
    """Whom it strikes; the server, where it is nobody else."""
    worker = world.workers[fault.who % len(world.workers)].name
    queue = world.queues[fault.who % len(world.queues)]
    if fault.kind in _OF_WORKERS:
        return worker
    if fault.kind in _OF_CLIENTS:
        return world.clients[fault.who % len(world.clients)].name
    return {Kind.DELETE_CONSUMER: f"{worker} of {queue}", Kind.DESTROY_GROUP: queue}.get(fault.kind, "server")


def _crash_worker(world: World, fault: Fault) -> None:
    slot = fault.who % len(world.workers)
    world.workers[slot].crash()
    world.engine.after(fault.amount, world.start_worker, slot)


def _deploy(world: World, fault: Fault) -> None:
    slot = fault.who % len(world.workers)
    world.workers[slot].stop(fault.amount)
    world.start_worker(slot)


def _suspend_worker(world: World, fault: Fault) -> None:
    worker = world.workers[fault.who % len(world.workers)]
    worker.suspend()
    world.engine.after(fault.amount, worker.resume)


def _cut_worker(world: World, fault: Fault) -> None:
    world.workers[fault.who % len(world.workers)].cut()


def _partition(world: World, fault: Fault) -> None:
    worker = world.workers[fault.who % len(world.workers)]
    worker.partition()
    world.engine.after(fault.amount, worker.heal)


def _crash_client(world: World, fault: Fault) -> None:
    slot = fault.who % len(world.clients)
    world.clients[slot].crash()
    world.start_client(slot)


def _close_client(world: World, fault: Fault) -> None:
    slot = fault.who % len(world.clients)
    world.clients[slot].close(fault.amount)
    world.start_client(slot)


def _suspend_client(world: World, fault: Fault) -> None:
    client = world.clients[fault.who % len(world.clients)]
    client.suspend()
    world.engine.after(fault.amount, client.resume)


def _cut_client(world: World, fault: Fault) -> None:
    world.clients[fault.who % len(world.clients)].cut()


def _down(world: World, fault: Fault) -> None:
    if world.server.up:
        world.outage_begins()
        world.server.stop()
        world.engine.after(fault.amount, _up, world)


def _up(world: World) -> None:
    if not world.server.up:
        world.server.up = True
        world.trace.note("server", "is up again")
        world.outage_ends()


def _slow(world: World, fault: Fault) -> None:
    if world.server.up and not world.server.slow:
        world.server.slow = True
        world.clock_odd = True
        world.engine.after(fault.amount, _answers, world)


def _answers(world: World) -> None:
    if world.server.slow:
        world.trace.note("server", "answers again")
    world.server.recovered()


def _full(world: World, fault: Fault) -> None:
    """Servers before 7.0 then refuse even what adds nothing, within a transaction."""
    if world.server.memory is Memory.ENOUGH:
        world.server.memory = Memory.FULL if fault.who % 2 else Memory.FULL_AND_OLD
        world.engine.after(fault.amount, _freed, world)


def _freed(world: World) -> None:
    world.trace.note("server", "has memory again")
    world.server.memory = Memory.ENOUGH


def _wipe(world: World, fault: Fault) -> None:
    if not world.server.up:
        return
    world.outage_begins()
    world.server.stop()
    world.server.model.reset()
    world.odd()
    world.lost(dict(world.observer.records))
    world.observer.wiped()
    world.engine.after(fault.amount, _up, world)


def _failover(world: World, fault: Fault) -> None:
    """What a replica had that lags by so much becomes the truth."""
    snapshot = world.server.model.snapshot()
    saved = world.observer.save()
    world.engine.after(fault.amount, _fail_over, world, snapshot, saved, world.generation)


def _fail_over(world: World, snapshot: object, saved: tuple[object, ...], generation: int) -> None:
    if generation != world.generation or world.calmed:
        return  # another loss came in between
    world.outage_begins()
    world.server.stop()
    world.server.model.restore(snapshot)  # type: ignore[arg-type]
    world.odd()
    before = dict(world.observer.records)
    world.observer.load(saved)
    world.lost({task: record for task, record in before.items() if task not in world.observer.records})
    world.engine.after(0.3, _up, world)


def _jump(world: World, fault: Fault) -> None:
    world.server.jump(fault.amount)
    world.clock_odd = world.clock_set = True
    world.jumped_back += max(0.0, -fault.amount)
    world.odd()


def _drop_all(world: World, fault: Fault) -> None:
    world.server.drop_connections()


def _delete_consumer(world: World, fault: Fault) -> None:
    worker = world.workers[fault.who % len(world.workers)]
    stream = queue_keys(world.queues[fault.who % len(world.queues)]).stream
    if world.server.up:
        world.odd()
        world.observer.forgot_deliveries(stream, worker.name.encode())
        world.administrator("XGROUP", "DELCONSUMER", stream, GROUP, worker.name)


def _destroy_group(world: World, fault: Fault) -> None:
    stream = queue_keys(world.queues[fault.who % len(world.queues)]).stream
    if world.server.up:
        world.odd()
        world.observer.forgot_deliveries(stream)
        world.administrator("XGROUP", "DESTROY", stream, GROUP)


def _delete_receiver(world: World, fault: Fault) -> None:
    client = world.clients[fault.who % len(world.clients)]
    for lane in client.machine.lanes.values():
        world.administrator("DEL", receiver_key(lane.client_id))


_OF_WORKERS = (Kind.CRASH_WORKER, Kind.DEPLOY, Kind.SUSPEND_WORKER, Kind.CUT_WORKER, Kind.PARTITION)
_OF_CLIENTS = (Kind.CRASH_CLIENT, Kind.CLOSE_CLIENT, Kind.SUSPEND_CLIENT, Kind.CUT_CLIENT, Kind.DELETE_RECEIVER)
_DO = {
    Kind.CRASH_WORKER: _crash_worker,
    Kind.DEPLOY: _deploy,
    Kind.SUSPEND_WORKER: _suspend_worker,
    Kind.CUT_WORKER: _cut_worker,
    Kind.PARTITION: _partition,
    Kind.CRASH_CLIENT: _crash_client,
    Kind.CLOSE_CLIENT: _close_client,
    Kind.SUSPEND_CLIENT: _suspend_client,
    Kind.CUT_CLIENT: _cut_client,
    Kind.DOWN: _down,
    Kind.SLOW: _slow,
    Kind.FULL: _full,
    Kind.WIPE: _wipe,
    Kind.FAILOVER: _failover,
    Kind.JUMP: _jump,
    Kind.DROP_ALL: _drop_all,
    Kind.DELETE_CONSUMER: _delete_consumer,
    Kind.DESTROY_GROUP: _destroy_group,
    Kind.DELETE_RECEIVER: _delete_receiver,
}
