"""What really happens at the server, seen from its own state changes and never from the machines' counters.

Commands that matter are wrapped; what one transaction changes is judged when it ends. The observer's knowledge
is part of the server's history: when the server goes back to a snapshot, so does the knowledge.

What is checked here, at every transaction (numbers as in the list of invariants):

    I2   a task reaches one terminal state, once, within the history of one primary
    I3   its attempts form one unbranched chain: an entry with n failures is followed by one with n or n + 1
    I4   it has at most one live entry, in the stream or in the schedule
    I5   what was cancelled never ran, and never will (unless the server has lost the cancellation)
    I6   what completed had run to its end
    I8   the entry of a healthy worker is never reclaimed, after an outage neither
    I11  it has no more retries than allowed, and is dead-lettered for its deliveries only after so many
    I12  a notice never brings a receiver back; no client that beats is collected
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from streamfleet.memory.database import Database
from streamfleet.memory.session import Session
from streamfleet.memory.streams import Stream
from streamfleet_core.connection import Reply
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.replies import parse_entries, parse_read
from streamfleet_core.state import Delivery
from streamfleet_core.submission import Status, Submission
from streamfleet_core.wire import unpack_fields

from .plan import Act, TaskPlan
from .records import Record, Run, Wish

if TYPE_CHECKING:
    from .network import Wire
    from .processes import ClientProcess, Process, WorkerProcess
    from .world import World

Original = Callable[[Database, list[bytes]], Reply]
"""The model's own implementation of a command."""
RELEASED_MS = 86_400_000
"""An entry idle for longer was given back by its owner."""
_BEFORE = b"streamfleet:receiver:"


class Observer:
    """See the module's text."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.actor: Wire | None = None
        """On whose connection the command at hand came."""
        self.records: dict[str, Record] = {}
        self.entries: dict[tuple[bytes, bytes], str] = {}
        """Which task a live entry belongs to."""
        self.owners: dict[tuple[bytes, bytes], int] = {}
        """How many times an entry of a stream was handed to somebody."""
        self.unknown_to_owner: set[tuple[bytes, bytes]] = set()
        """Entries delivered on connections that their owners had given up."""
        self.beats: dict[bytes, float] = {}
        self.greeted: dict[str, list[float]] = {}
        """When each client has announced itself at its marker."""
        self.accepted_at: dict[str, float] = {}
        """When the server took each task from its client, last time."""
        self.starts: dict[tuple[bytes, bytes], int] = {}
        """How often an entry has been delivered, as the server counts."""
        self.runs: list[Run] = []
        self.runs_of: dict[str, list[Run]] = {}
        self.wishes: dict[str, Wish] = {}
        self.terminal_kinds: dict[str, set[str]] = {}
        """All terminal states that a task has ever had, in any history."""
        self.cancelled_at_server: set[str] = set()
        self._touched: dict[str, tuple[int, list[int], list[int], bool]] = {}
        self._in_transaction = False
        keys = [queue_keys(queue) for queue in world.queues]
        self._streams = {one.stream for one in keys}
        self._dead = {one.dead for one in keys}
        self._schedules = {one.schedule: one.scheduled for one in keys}
        self._receivers = {one.receivers for one in keys}
        self._install()

    # ---- installing ---------------------------------------------------------------------------------

    def _install(self) -> None:
        model = self.world.server.model
        table = dict(model.commands)
        watched = {
            b"XADD": self._xadd,
            b"XDEL": self._xdel,
            b"ZADD": self._zadd,
            b"ZREM": self._zrem,
            b"ZREMRANGEBYSCORE": self._zremrangebyscore,
            b"HSET": self._hset,
            b"HINCRBY": self._hincrby,
            b"XCLAIM": self._xclaim,
            b"XREADGROUP": self._xreadgroup,
        }
        for name, watch in watched.items():
            spec = table[name]
            table[name] = replace(spec, handler=partial(watch, original=cast("Original", spec.handler)))
        table[b"EXEC"] = replace(table[b"EXEC"], session_handler=self._exec)
        model.commands = table

    def _exec(self, session: Session, args: list[bytes]) -> Reply:
        self._in_transaction = True
        try:
            return session.exec(args)
        finally:
            self._in_transaction = False
            self._judge()

    def _step(self) -> None:
        """A command has changed something: judge now, or with its transaction."""
        if not self._in_transaction:
            self._judge()

    @property
    def who(self) -> str:
        """Whose command it is."""
        return self.actor.owner.name if self.actor is not None else "somebody"

    # ---- history ------------------------------------------------------------------------------------

    def save(self) -> tuple[object, ...]:
        """The knowledge that goes with a snapshot of the server."""
        records = {task_id: record.copy() for task_id, record in self.records.items()}
        return records, dict(self.entries), dict(self.owners), copy(self.unknown_to_owner), dict(self.beats)

    def load(self, saved: tuple[object, ...]) -> None:
        """The server has gone back."""
        records, self.entries, self.owners, self.unknown_to_owner, self.beats = saved  # type: ignore[assignment]
        self.records = {task_id: record.copy() for task_id, record in records.items()}  # type: ignore[attr-defined]
        self.entries = dict(self.entries)
        self.beats = dict(self.beats)

    def wiped(self) -> None:
        """The server has lost everything."""
        self.records, self.entries, self.owners = {}, {}, {}
        self.unknown_to_owner = set()

    def forgot_deliveries(self) -> None:
        """The server's counts of deliveries begin anew: somebody has removed a group or a consumer.

        What workers have in their hands then may start once more, uncounted.
        """
        self.starts = dict.fromkeys(self.starts, -len(self.world.workers))

    # ---- what users and handlers do -----------------------------------------------------------------

    def enqueued(self, client: ClientProcess, submission: Submission, task: TaskPlan) -> None:
        """A client has taken a task."""
        expires_at = 0.0 if task.expires_in is None else self.world.engine.now + task.expires_in
        self.wishes[submission.id] = Wish(client, task, submission, submission.expires_ms, expires_at)
        self.world.trace.note(client.name, f"enqueues {self.label(submission.id)}")

    def resolved(self, client: ClientProcess, submission: Submission) -> None:
        """A client tells its user how a task ended; it must be true."""
        wish = self.wishes[submission.id]
        wish.resolved = status = submission.status
        self.world.trace.note(client.name, f"{self.label(submission.id)} is {status.name}")
        kinds = self.terminal_kinds.get(submission.id, set())
        expected = {Status.COMPLETED: "completed", Status.FAILED: "dead"}.get(status)
        if expected is not None and expected not in kinds:
            self._violated("untrue", submission.id, f"{client.name} was told {status.name}, but it is {kinds}")
        if status is Status.EXPIRED:
            self._expired(submission.id, wish)
        if status is Status.CANCELLED and self.runs_of.get(submission.id) and not self.world.lossy:
            self._violated("I5", submission.id, "reported as cancelled, but it had run")

    def _expired(self, task_id: str, wish: Wish) -> None:
        """Not before its time; clocks that were set, or slow to tell the time, are no measure."""
        early = wish.expires_at - self.world.engine.now - wish.client.clock_error
        if early > 0.3 + 10 * self.world.plan.network.latency and not self.world.clock_odd:
            self._violated("expiry", task_id, f"has expired {early:.3f} s too early")

    def run_started(self, worker: WorkerProcess, delivery: Delivery) -> int:
        """A handler starts."""
        assert delivery.task is not None, "started without a task"
        run = Run(delivery.task.id, delivery.entry_id, worker.name, self.world.engine.now)
        self.runs.append(run)
        runs = self.runs_of.setdefault(run.task_id, [])
        runs.append(run)
        attempt = delivery.task.retries
        self.world.trace.note(worker.name, f"runs {self.label(run.task_id)}, {attempt} failures so far")
        wish = self.wishes.get(run.task_id)
        if wish is not None and wish.resolved is Status.CANCELLED and not self.world.lossy:
            self._violated("I5", run.task_id, "runs though it was reported as cancelled")
        if wish is not None and wish.expires_at and not self.world.clock_odd:
            holder = self.world.workers_by_name.get(worker.name)
            late = run.at - wish.expires_at - (holder.clock_error if holder else 0.0)
            if late > 0.3 + 10 * self.world.plan.network.latency:
                self._violated("expiry", run.task_id, f"is started {late:.3f} s after its expiry")
        place = (delivery.queue.keys.stream, run.entry_id)
        here = self.starts[place] = self.starts.get(place, 0) + 1
        if here > self.world.max_deliveries and not self.world.lossy:
            self._violated("I11", run.task_id, f"entry {run.entry_id!r} runs for the {here}th time")
        return len(self.runs) - 1

    def run_ended(self, number: int, act: Act) -> None:
        """A handler ends."""
        run = self.runs[number]
        run.ended, run.act = self.world.engine.now, act
        self.world.trace.note(run.worker, f"{self.label(run.task_id)}: {act.name}")

    def label(self, task_id: str) -> str:
        """A short name for people."""
        wish = self.wishes.get(task_id)
        return f"task {wish.task.number}" if wish else f"task {task_id[-6:]}"

    # ---- commands -----------------------------------------------------------------------------------

    def _record(self, task_id: str) -> Record:
        record = self.records.get(task_id)
        if record is None:
            record = self.records[task_id] = Record(self.label(task_id), task_id)
        return record

    def _touch(self, task_id: str) -> tuple[Record, tuple[int, list[int], list[int], bool]]:
        record = self._record(task_id)
        touched = self._touched.get(task_id)
        if touched is None:
            touched = self._touched[task_id] = (len(record.live), [], [], bool(record.ended))
        return record, touched

    def _gain(self, task_id: str, place: tuple[bytes, bytes], failures: int) -> None:
        record, touched = self._touch(task_id)
        record.live[place] = failures
        record.accepted = True
        self.entries[place] = task_id
        touched[1].append(failures)

    def _lose(self, place: tuple[bytes, bytes]) -> None:
        task_id = self.entries.pop(place, None)
        if task_id is None:
            return
        record, touched = self._touch(task_id)
        touched[2].append(record.live.pop(place, 0))
        self.owners.pop(place, None)
        self.unknown_to_owner.discard(place)

    def _xadd(self, db: Database, args: list[bytes], original: Original) -> Reply:
        key = args[1]
        was_there = key in db.values
        reply = original(db, args)
        if key in self._streams:
            fields = dict(zip(args[3::2], args[4::2], strict=True))
            self._gain(fields[b"id"].decode(), (key, cast("bytes", reply)), int(fields[b"retries"]))
            self._step()
        elif key in self._dead:
            fields = dict(zip(args[3::2], args[4::2], strict=True))
            task_id = fields[b"id"].decode()
            record, _ = self._touch(task_id)
            record.dead += 1
            self._delivered_too_often(task_id, fields)
            self._step()
        elif key.startswith(_BEFORE) and not was_there and key in db.values:
            self.world.violated("I12", f"{self.who}: a notice has brought back {key.decode()}")
        return reply

    def _xdel(self, db: Database, args: list[bytes], original: Original) -> Reply:
        reply = original(db, args)
        if args[1] in self._streams:
            for entry_id in args[2:]:
                self._lose((args[1], entry_id))
            self._step()
        return reply

    def _zadd(self, db: Database, args: list[bytes], original: Original) -> Reply:
        reply = original(db, args)
        late = self.actor is not None and self.actor.closed
        if args[1] in self._receivers and not late:
            self.beats[args[3]] = self.world.engine.now
        return reply

    def _hset(self, db: Database, args: list[bytes], original: Original) -> Reply:
        """A body goes into the schedule: the row was written just before, in the same transaction."""
        reply = original(db, args)
        key = next((schedule for schedule, bodies in self._schedules.items() if bodies == args[1]), None)
        if key is not None:
            self._gain(args[2].decode(), (key, args[2]), _failures_in(args[3]))
            self._step()
        return reply

    def _zrem(self, db: Database, args: list[bytes], original: Original) -> Reply:
        if args[1] in self._receivers:
            removed = args[2] in getattr(db.values.get(args[1]), "scores", {args[2]: 0})
            reply = original(db, args)
            if removed and reply:
                self._collected(args[2])
            return reply
        reply = original(db, args)
        if args[1] in self._schedules:
            for member in args[2:]:
                self._lose((args[1], member))
            self._step()
        return reply

    def _zremrangebyscore(self, db: Database, args: list[bytes], original: Original) -> Reply:
        before = _members(db, args[1])
        reply = original(db, args)
        for client in before - _members(db, args[1]):
            self._collected(client)
        return reply

    def _collected(self, client: bytes) -> None:
        """A client has been taken for dead, unless it went by itself."""
        if self.actor is None or "control" not in self.actor.owner.name:
            return
        silent = self.world.engine.now - self.beats.get(client, 0.0)
        if silent < self.world.plan.client_timeout * 0.95:
            text = f"{self.who} collected client {client.decode()}, which had beaten {silent:.3f} s before"
            self.world.violated("I12", text)

    def _xreadgroup(self, db: Database, args: list[bytes], original: Original) -> Reply:
        reply = original(db, args)
        if args[-1] == b">" and self.actor is not None:
            self.handed_out(self.actor, reply)
        elif args[-1] != b">" and isinstance(reply, list):
            self._read_again(reply)
        return reply

    def _read_again(self, reply: list[Reply]) -> None:
        """A worker reads its own pending entries: the server counts that as a delivery, known to it or not."""
        for stream, entries in parse_read(reply).items():
            for entry_id, _ in entries:
                place = (stream, entry_id)
                self.owners[place] = self.owners.get(place, 0) + 1

    def handed_out(self, wire: Wire, reply: Reply) -> None:
        """New entries were delivered on a connection."""
        for stream, entries in parse_read(reply).items() if isinstance(reply, list) else ():
            for entry_id, _ in entries if stream in self._streams else ():
                place = (stream, entry_id)
                self.owners[place] = 1
                if wire.closed:
                    self.unknown_to_owner.add(place)

    def _hincrby(self, db: Database, args: list[bytes], original: Original) -> Reply:
        if self.actor is not None:
            self.greeted.setdefault(self.who.split()[0], []).append(self.world.engine.now)
        return original(db, args)

    def _xclaim(self, db: Database, args: list[bytes], original: Original) -> Reply:
        key, by, min_idle = args[1], args[3], int(args[4])
        stream = db.values.get(key)
        before: dict[bytes, tuple[bytes, int]] = {}
        if min_idle and isinstance(stream, Stream) and GROUP in stream.groups:
            for number, pending in stream.groups[GROUP].pending.by_id.items():
                entry_id = b"%d-%d" % (number >> 64, number & (1 << 64) - 1)
                before[entry_id] = (pending.consumer.name, db.now_ms - pending.delivered_ms)
        reply = original(db, args)
        if isinstance(reply, list) and b"FORCE" in args:
            self.unknown_to_owner.update((key, entry_id) for entry_id in reply if isinstance(entry_id, bytes))
        elif isinstance(reply, list) and b"RETRYCOUNT" in args:
            count = int(args[args.index(b"RETRYCOUNT") + 1])
            self.owners.update(((key, entry_id), count) for entry_id in reply if isinstance(entry_id, bytes))
        elif isinstance(reply, list) and min_idle and b"JUSTID" not in args:
            for entry_id, _ in parse_entries(reply):
                place = (key, entry_id)
                self.owners[place] = self.owners.get(place, 0) + 1
                owner, idle = before.get(entry_id, (by, 0))
                self._reclaimed(place, owner, idle, by)
                if self.actor is not None and self.actor.closed:
                    self.unknown_to_owner.add(place)
                else:
                    self.unknown_to_owner.discard(place)
        return reply

    # ---- judging ------------------------------------------------------------------------------------

    def _reclaimed(self, place: tuple[bytes, bytes], owner: bytes, idle_ms: int, by: bytes) -> None:
        """Somebody has taken an entry over: its owner must have been in trouble."""
        world = self.world
        task_id = self.entries.get(place, "")
        world.trace.note(self.who, f"takes {self.label(task_id)} over from {owner.decode()}, idle {idle_ms} ms")
        world.counts["reclaimed"] += 1
        holder = world.workers_by_name.get(owner.decode())
        if holder is None or not holder.alive or holder.suspended or holder.partitioned:
            return
        if idle_ms > RELEASED_MS or place in self.unknown_to_owner or holder.machine.stopping:
            return
        now, lease = world.engine.now, world.plan.lease
        if now - world.odd_until < 2 * lease or world.plan.network.latency * 30 > lease:
            return
        if holder.quiet_for() >= lease:
            quiet = holder.quiet_for()
            self._violated("I8", task_id, f"{by.decode()} took it from {owner.decode()}, quiet for {quiet:.1f} s")
        elif world.outage_ended is not None and self._only_an_outage(holder):
            since = now - world.outage_ended
            text = f"{by.decode()} took it from {owner.decode()}, {since:.2f} s after an outage"
            self._violated("I8", task_id, text)

    def _only_an_outage(self, holder: Process) -> bool:
        """Was the outage that ended less than a lease ago the only trouble that this worker has had?"""
        world = self.world
        assert world.outage_ended is not None
        assert world.outage_began is not None
        quiet_before = world.outage_began - holder.disturbed_at
        return (
            world.plan.network.calm
            and world.engine.now - world.outage_ended < world.plan.lease
            and quiet_before > 2 * world.plan.lease
        )

    def _delivered_too_often(self, task_id: str, fields: dict[bytes, bytes]) -> None:
        if b"delivered" not in fields.get(b"dead_reason", b"") or self.world.lossy:
            return
        most = max((self.owners.get(place, 0) for place in self._record(task_id).live), default=0)
        if most < self.world.max_deliveries:
            text = f"dead-lettered for its deliveries, but handed out {most} times"
            self._violated("I11", task_id, text)

    def _judge(self) -> None:
        """A transaction, or a single command, has ended."""
        touched, self._touched = self._touched, {}
        for task_id, (before, gained, lost, had_ended) in touched.items():
            record = self.records[task_id]
            after = len(record.live)
            if after > 1:
                self._violated("I4", task_id, f"{after} live entries: {list(record.live)}")
            if gained and had_ended:
                self._violated("I2", task_id, f"has ended as {record.ended}, and is put into its queue again")
            self._chain(record, gained, lost)
            if record.dead and after:
                self._violated("I2", task_id, "is among the dead letters, and lives on")
            if after == 0 and (before or gained or record.dead > len(record.ended)):
                self._ended(record)
            elif gained and not before:
                self.accepted_at[task_id] = self.world.engine.now
                self.world.trace.note(self.who, f"server accepts {record.label}")

    def _chain(self, record: Record, gained: list[int], lost: list[int]) -> None:
        for failures in gained:
            if lost and failures not in (lost[0], lost[0] + 1):
                self._violated("I3", record.task_id, f"{lost[0]} failures, then {failures}")
            wish = self.wishes.get(record.task_id)
            if wish is not None and wish.task.max_retries is not None and failures > wish.task.max_retries:
                self._violated("I11", record.task_id, f"{failures} retries, {wish.task.max_retries} allowed")

    def _ended(self, record: Record) -> None:
        kind = self._kind(record)
        record.ended.append(kind)
        self.terminal_kinds.setdefault(record.task_id, set()).add(kind)
        self.world.trace.note(self.who, f"{record.label} has ended: {kind}")
        if len(record.ended) > 1:
            self._violated("I2", record.task_id, f"ended {len(record.ended)} times: {record.ended}")
        wish = self.wishes.get(record.task_id)
        if kind == "expired" and wish is not None:
            self._expired(record.task_id, wish)
        if kind == "completed":
            runs = self.runs_of.get(record.task_id, ())
            if not any(run.act in (Act.OK, Act.HANG) for run in runs):
                self._violated("I6", record.task_id, "completed, but no handler has completed it")

    def _kind(self, record: Record) -> str:
        if record.dead:
            return "dead"
        if self.actor is not None and "publish" in self.actor.owner.name:
            return "cancelled"
        wish = self.wishes.get(record.task_id)
        expires = wish.expires_ms if wish else 0
        done = any(run.act in (Act.OK, Act.HANG) for run in self.runs_of.get(record.task_id, ()))
        return "expired" if expires and not done else "completed"

    def _violated(self, invariant: str, task_id: str, text: str) -> None:
        self.world.violated(invariant, f"{self.who}: {self.label(task_id)} {text}")


def _members(db: Database, key: bytes) -> set[bytes]:
    value = db.values.get(key)
    return set(value.scores) if value is not None and hasattr(value, "scores") else set()


def _failures_in(packed: bytes) -> int:
    fields = unpack_fields(packed)
    return int(dict(zip(fields[::2], fields[1::2], strict=True))[b"retries"])
