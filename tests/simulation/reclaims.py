"""Taking entries over: never from a healthy worker (I8), always from a silent one, and in time (I9).

I8 is judged at each claim. I9 is looked at now and then: an entry that has been idle for its lease, or was given
back, may not lie there for longer than `bounds.takeover` under the eyes of a worker that could take it: one that
is at work, has had contact for a lease, has room, and is not the one whom it is pending for.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from streamfleet.memory.database import Database
from streamfleet.memory.streams import Pending, Stream
from streamfleet_core.connection import Reply
from streamfleet_core.keys import GROUP
from streamfleet_core.link import Role
from streamfleet_core.replies import parse_entries

from .bounds import takeover
from .network import Memory
from .owned import written

if TYPE_CHECKING:
    from .observer import Observer, Original, Watch
    from .processes import Process, WorkerProcess

RELEASED_MS = 86_400_000
"""An entry idle for longer was given back by its owner."""
Place: TypeAlias = tuple[bytes, bytes]


class Reclaims:
    """See the module's text."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._world = observer.world
        self._idle: dict[tuple[Place, bytes, int], float] = {}
        """Since when an entry is seen to be idle for its lease, with its owner and the time of its delivery."""
        self._unfit_until: dict[str, float] = {}
        self._told: set[tuple[Place, bytes, int]] = set()

    def watched(self) -> dict[bytes, Watch]:
        """The commands that it looks at."""
        return {b"XCLAIM": self._xclaim}

    def pending(self) -> list[tuple[Place, bytes, Pending]]:
        """All entries that are pending, and for whom."""
        rows: list[tuple[Place, bytes, Pending]] = []
        values = self._world.server.model.database.values
        for stream in sorted(self._observer.streams):
            value = values.get(stream)
            if isinstance(value, Stream) and GROUP in value.groups:
                for entry, pending in value.groups[GROUP].pending.by_id.items():
                    rows.append(((stream, written(entry)), pending.consumer.name, pending))
        return rows

    # ---- claims -------------------------------------------------------------------------------------

    def _xclaim(self, db: Database, args: list[bytes], original: Original) -> Reply:
        key, by = args[1], args[3]
        if args[4] == b"0" or b"JUSTID" in args:
            return original(db, args)
        before = {
            place[1]: (owner, db.now_ms - pending.delivered_ms)
            for place, owner, pending in self.pending()
            if place[0] == key
        }
        reply = original(db, args)
        observer = self._observer
        for entry_id, _ in parse_entries(reply) if isinstance(reply, list) else ():
            place = (key, entry_id)
            owner, idle = before.get(entry_id, (by, 0))
            self._reclaimed(place, owner, idle, by)
            if observer.actor is not None and observer.actor.closed:
                observer.unknown_to_owner.add(place)
            else:
                observer.unknown_to_owner.discard(place)
        return reply

    def _reclaimed(self, place: Place, owner: bytes, idle_ms: int, by: bytes) -> None:
        """Somebody has taken an entry over: its owner must have been in trouble."""
        world, observer = self._world, self._observer
        task_id = observer.entries.get(place, "")
        who = f"{observer.label(task_id)} over from {owner.decode()}"
        world.trace.note(observer.who, f"takes {who}, idle {idle_ms} ms")
        world.counts["reclaimed"] += 1
        holder = world.workers_by_name.get(owner.decode())
        if holder is None or not holder.alive or holder.suspended or holder.partitioned:
            return
        if idle_ms > RELEASED_MS or place in observer.unknown_to_owner or holder.machine.stopping:
            return
        now, lease = world.engine.now, world.plan.lease
        if now - world.odd_until < 2 * lease or self._too_far:
            return
        if holder.quiet_for() >= lease:
            quiet = holder.quiet_for()
            text = f"{by.decode()} took it from {owner.decode()}, quiet for {quiet:.1f} s"
            observer.violated("I8", task_id, text)
        elif world.outage_ended is not None and self._only_an_outage(holder):
            since = now - world.outage_ended
            text = f"{by.decode()} took it from {owner.decode()}, {since:.2f} s after an outage"
            observer.violated("I8", task_id, text)

    @property
    def _too_far(self) -> bool:
        """Is the server so far away that a lease is a matter of luck?"""
        return self._world.plan.network.latency * 30 > self._world.plan.lease

    def _only_an_outage(self, holder: Process) -> bool:
        """Was the outage that ended less than a lease ago the only trouble that this worker has had?"""
        world = self._world
        assert world.outage_ended is not None
        assert world.outage_began is not None
        quiet_before = world.outage_began - holder.disturbed_at
        return (
            world.plan.network.calm
            and world.engine.now - world.outage_ended < world.plan.lease
            and quiet_before > 2 * world.plan.lease
        )

    # ---- what nobody takes --------------------------------------------------------------------------

    def look(self) -> None:
        """Is anything left lying that somebody could take over?"""
        world, now = self._world, self._world.engine.now
        rows = self.pending()
        held = Counter(owner.decode() for _, owner, _ in rows)
        fit = self._fit(held)
        server_ms, lease_ms = world.server.now_ms(), world.plan.lease * 1000
        before, self._idle = self._idle, {}
        for place, owner, pending in rows:
            name = (place, owner, pending.delivered_ms)
            if server_ms - pending.delivered_ms < lease_ms or name in self._told:
                continue
            since = self._idle[name] = before.get(name, now)
            for worker, from_then_on in fit.items():
                lain = now - max(since, from_then_on)
                if worker != owner.decode() and lain > takeover(world.plan):
                    task_id = self._observer.entries.get(place, "")
                    text = f"of {owner.decode()} lies there for {lain:.1f} s, and {worker} could take it"
                    world.violated("I9", f"{self._observer.label(task_id)} {text}")
                    self._told.add(name)
                    break

    def _fit(self, held: Counter[str]) -> dict[str, float]:
        """Workers that could take an entry over, and since when."""
        world, now = self._world, self._world.engine.now
        server = world.server
        able = server.up and not server.slow and server.memory is Memory.ENOUGH and not self._too_far
        fit: dict[str, float] = {}
        for worker in world.workers:
            contact = self._contact(worker) if able else now
            if worker.suspended or worker.partitioned or not worker.alive or worker.machine.stopping:
                contact = now
            if contact >= now:
                self._unfit_until[worker.name] = now + world.plan.lease
            elif held[worker.name] >= self._most(worker):
                self._unfit_until[worker.name] = max(self._unfit_until.get(worker.name, 0.0), now)
            else:
                fit[worker.name] = max(contact + world.plan.lease, self._unfit_until.get(worker.name, 0.0))
        return fit

    @staticmethod
    def _most(worker: WorkerProcess) -> int:
        """So many entries leave no room for others'."""
        config = worker.machine.config
        return config.concurrency + min(config.concurrency, config.max_prefetch)

    @staticmethod
    def _contact(worker: WorkerProcess) -> float:
        """Since when it can claim and settle; in the future when it cannot."""
        return max(loop.quiet_since for loop in worker.loops if loop.link.role in (Role.CONTROL, Role.SETTLE))
