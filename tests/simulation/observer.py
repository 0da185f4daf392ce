"""What really happens at the server, seen from its own state changes and never from the machines' counters.

Commands that matter are wrapped; what one transaction changes is judged when it ends. The observer's knowledge
is part of the server's history: when the server goes back to a snapshot, so does the knowledge.

What is checked (numbers as in the list of invariants), each in a module of its own:

    here       I2 a task reaches one terminal state, once, within the history of one primary; I3 its attempts form
               one unbranched chain; I4 it has at most one live entry, in the stream or in the schedule
    outcomes   I5, I6, I7, I11: each end, recorded or told, has its cause in what handlers and users did
    owned      I13: what was delivered is pending for somebody, and only its owner ends or renews it
    reclaims   I8, I9: what healthy workers hold is left to them, what others leave is taken over in time
    receivers  I12: no notice brings a receiver back; no client that beats is collected
    markers    I16: each loss that a client sees is reported, and no other

Tasks that a fault has touched (the server lost what it knew of them) are forgiven what follows from that: I5 and
I11. All others are not.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

from streamfleet.memory.database import Database
from streamfleet.memory.session import Session
from streamfleet_core.connection import Reply
from streamfleet_core.keys import queue_keys
from streamfleet_core.replies import parse_entries, parse_read
from streamfleet_core.state import Delivery
from streamfleet_core.submission import Submission
from streamfleet_core.wire import unpack_fields

from .markers import Markers
from .outcomes import Outcomes
from .owned import Owned
from .plan import Act, TaskPlan
from .receivers import RECEIVER, Receivers
from .reclaims import Reclaims
from .records import Change, Record, Run, Wish

if TYPE_CHECKING:
    from .network import Wire
    from .processes import ClientProcess, WorkerProcess
    from .world import World

Original: TypeAlias = Callable[[Database, list[bytes]], Reply]
"""The model's own implementation of a command."""
Watch: TypeAlias = Callable[[Database, list[bytes], Original], Reply]
"""What stands around it."""


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
        self.accepted_at: dict[str, float] = {}
        """When the server took each task from its client, last time."""
        self.starts: dict[tuple[bytes, bytes], int] = {}
        """How often an entry has been delivered, as the server counts."""
        self.runs: list[Run] = []
        self.runs_of: dict[str, list[Run]] = {}
        self.wishes: dict[str, Wish] = {}
        self.terminal_kinds: dict[str, set[str]] = {}
        """All terminal states that a task has ever had, in any history."""
        self.touched: set[str] = set()
        """Tasks of which the server has lost something."""
        self.in_transaction = False
        self._changes: dict[str, Change] = {}
        keys = [queue_keys(queue) for queue in world.queues]
        self.streams = {one.stream for one in keys}
        self._dead = {one.dead for one in keys}
        self._schedules = {one.schedule: one.scheduled for one in keys}
        self.receiver_sets = {one.receivers for one in keys}
        self.outcomes = Outcomes(self)
        self.owned = Owned(self)
        self.reclaims = Reclaims(self)
        self.receivers = Receivers(self)
        self.markers = Markers(self)
        self._install()

    # ---- installing ---------------------------------------------------------------------------------

    def _install(self) -> None:
        model = self.world.server.model
        table = dict(model.commands)
        own: dict[bytes, Watch] = {
            b"XADD": self._xadd,
            b"XDEL": self._xdel,
            b"ZREM": self._zrem,
            b"HSET": self._hset,
            b"XCLAIM": self._xclaim,
            b"XREADGROUP": self._xreadgroup,
        }
        for watched in (own, self.owned.watched(), self.reclaims.watched(), self.receivers.watched()):
            for name, watch in watched.items():
                spec = table[name]
                table[name] = replace(spec, handler=partial(watch, original=cast("Original", spec.handler)))
        table[b"EXEC"] = replace(table[b"EXEC"], session_handler=self._exec)
        model.commands = table

    def _exec(self, session: Session, args: list[bytes]) -> Reply:
        self.in_transaction = True
        try:
            return session.exec(args)
        finally:
            self.in_transaction = False
            self._judge()

    def step(self) -> None:
        """A command has changed something: judge now, or with its transaction."""
        if not self.in_transaction:
            self._judge()

    @property
    def who(self) -> str:
        """Whose command it is."""
        return self.actor.owner.name if self.actor is not None else "somebody"

    @property
    def process(self) -> str:
        """The process whose command it is."""
        return self.who.split()[0]

    @property
    def role(self) -> str:
        """The role of the link on which it came."""
        return self.who.partition(" ")[2]

    # ---- history ------------------------------------------------------------------------------------

    def save(self) -> tuple[object, ...]:
        """The knowledge that goes with a snapshot of the server."""
        records = {task_id: record.copy() for task_id, record in self.records.items()}
        beats = dict(self.receivers.beats)
        return records, dict(self.entries), dict(self.owners), copy(self.unknown_to_owner), beats

    def load(self, saved: tuple[object, ...]) -> None:
        """The server has gone back: what has happened to tasks since then is lost."""
        records, entries, owners, unknown, beats = saved
        before, handed_out = self.records, self.owners
        self.records = {task: record.copy() for task, record in cast("dict[str, Record]", records).items()}
        self.entries = dict(cast("dict[tuple[bytes, bytes], str]", entries))
        self.owners = dict(cast("dict[tuple[bytes, bytes], int]", owners))
        self.unknown_to_owner = set(cast("set[tuple[bytes, bytes]]", unknown))
        self.touched |= {task for task in {**before, **self.records} if before.get(task) != self.records.get(task)}
        for place, task in self.entries.items():
            if handed_out.get(place) != self.owners.get(place):
                self.touched.add(task)
        self.receivers.went_back(dict(cast("dict[bytes, float]", beats)))

    def wiped(self) -> None:
        """The server has lost everything."""
        self.touched |= self.records.keys()
        self.records, self.entries, self.owners = {}, {}, {}
        self.unknown_to_owner = set()
        self.receivers.went_back({})

    def forgot_deliveries(self, stream: bytes, consumer: bytes | None = None) -> None:
        """Somebody removes a group (or only a consumer): for its entries the server begins to count anew.

        What workers have in their hands then may start once more, uncounted.
        """
        for place, owner, _ in self.reclaims.pending():
            if place[0] == stream and consumer in (None, owner):
                self.starts[place] = -len(self.world.workers)
                self.owners[place] = 0

    # ---- what users and handlers do -----------------------------------------------------------------

    def enqueued(self, client: ClientProcess, submission: Submission, task: TaskPlan) -> None:
        """A client has taken a task."""
        now = self.world.engine.now
        expires_at = 0.0 if task.expires_in is None else now + task.expires_in
        self.wishes[submission.id] = Wish(client, task, submission, now, submission.expires_ms, expires_at)
        self.world.trace.note(client.name, f"enqueues {self.label(submission.id)}")

    def cancelling(self, client: ClientProcess, submission: Submission) -> None:
        """A user wants a task not to run."""
        self.wishes[submission.id].cancelled_at = self.world.engine.now
        self.world.trace.note(client.name, f"cancels {self.label(submission.id)}")

    def resolved(self, client: ClientProcess, submission: Submission) -> None:
        """A client tells its user how a task ended; it must be true."""
        wish = self.wishes[submission.id]
        wish.resolved = submission.status
        self.world.trace.note(client.name, f"{self.label(submission.id)} is {submission.status.name}")
        self.outcomes.told(wish, submission.status)

    def run_started(self, worker: WorkerProcess, delivery: Delivery) -> int:
        """A handler starts."""
        assert delivery.task is not None, "started without a task"
        place = (delivery.queue.keys.stream, delivery.entry_id)
        run = Run(delivery.task.id, delivery.entry_id, worker.name, self.world.engine.now)
        self.runs.append(run)
        self.runs_of.setdefault(run.task_id, []).append(run)
        attempt = delivery.task.retries
        self.world.trace.note(worker.name, f"runs {self.label(run.task_id)}, {attempt} failures so far")
        self.starts[place] = self.starts.get(place, 0) + 1
        self.outcomes.started(run, place)
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

    def record(self, task_id: str) -> Record:
        """What is known of a task."""
        record = self.records.get(task_id)
        if record is None:
            record = self.records[task_id] = Record(self.label(task_id), task_id)
        return record

    def _touch(self, task_id: str) -> tuple[Record, Change]:
        record = self.record(task_id)
        change = self._changes.get(task_id)
        if change is None:
            change = self._changes[task_id] = Change(len(record.live), bool(record.ended))
        return record, change

    def _gain(self, task_id: str, place: tuple[bytes, bytes], failures: int) -> None:
        record, change = self._touch(task_id)
        record.live[place] = failures
        record.accepted = True
        self.entries[place] = task_id
        change.gained.append((place, failures))

    def _lose(self, place: tuple[bytes, bytes]) -> None:
        task_id = self.entries.pop(place, None)
        if task_id is None:
            return
        record, change = self._touch(task_id)
        change.lost.append((place, record.live.pop(place, 0)))
        self.owners.pop(place, None)
        self.unknown_to_owner.discard(place)

    def _xadd(self, db: Database, args: list[bytes], original: Original) -> Reply:
        key = args[1]
        reply = original(db, args)
        if key in self.streams:
            fields = dict(zip(args[3::2], args[4::2], strict=True))
            self._gain(fields[b"id"].decode(), (key, cast("bytes", reply)), int(fields[b"retries"]))
            self.step()
        elif key in self._dead:
            fields = dict(zip(args[3::2], args[4::2], strict=True))
            record, change = self._touch(fields[b"id"].decode())
            record.dead += 1
            change.letter = fields
            self.outcomes.letter(record, fields)
            self.step()
        elif key.startswith(RECEIVER):
            first = args.index(b"*") + 1
            notice = dict(zip(args[first::2], args[first + 1 :: 2], strict=True))
            task_id = notice.get(b"task_id", b"").decode()
            if task_id in self.records:
                self._touch(task_id)[1].notices.append(notice[b"type"].decode())
                self.step()
        return reply

    def _xdel(self, db: Database, args: list[bytes], original: Original) -> Reply:
        reply = original(db, args)
        if args[1] in self.streams:
            for entry_id in args[2:]:
                self._lose((args[1], entry_id))
            self.step()
        return reply

    def _hset(self, db: Database, args: list[bytes], original: Original) -> Reply:
        """A body goes into the schedule: the row was written just before, in the same transaction."""
        reply = original(db, args)
        key = next((schedule for schedule, bodies in self._schedules.items() if bodies == args[1]), None)
        if key is not None:
            self._gain(args[2].decode(), (key, args[2]), _failures_in(args[3]))
            self.step()
        return reply

    def _zrem(self, db: Database, args: list[bytes], original: Original) -> Reply:
        scores = dict(getattr(db.values.get(args[1]), "scores", {})) if args[1] in self._schedules else {}
        reply = original(db, args)
        if args[1] in self._schedules:
            for member in args[2:]:
                if member in scores and self.role == "control":
                    self.outcomes.moved(member.decode(), scores[member], db.now_ms)
                self._lose((args[1], member))
            self.step()
        return reply

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
            for entry_id, _ in entries if stream in self.streams else ():
                place = (stream, entry_id)
                self.owners[place] = 1
                self.owned.handed_out(place)
                if wire.closed:
                    self.unknown_to_owner.add(place)

    def _xclaim(self, db: Database, args: list[bytes], original: Original) -> Reply:
        """Who claims to run an entry is handed it once more; who renews it may say how often that was."""
        reply = original(db, args)
        if not isinstance(reply, list):
            return reply
        key, min_idle = args[1], int(args[4])
        if b"FORCE" in args:
            self.unknown_to_owner.update((key, entry_id) for entry_id in reply if isinstance(entry_id, bytes))
        elif b"RETRYCOUNT" in args:
            count = int(args[args.index(b"RETRYCOUNT") + 1])
            self.owners.update(((key, entry_id), count) for entry_id in reply if isinstance(entry_id, bytes))
        elif min_idle and b"JUSTID" not in args:
            for entry_id, _ in parse_entries(reply):
                place = (key, entry_id)
                self.owners[place] = self.owners.get(place, 0) + 1
        return reply

    # ---- judging ------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """A transaction, or a single command, has ended."""
        self.owned.judge()
        changes, self._changes = self._changes, {}
        for task_id, change in changes.items():
            record = self.records[task_id]
            after = len(record.live)
            if after > 1:
                self.violated("I4", task_id, f"{after} live entries: {list(record.live)}")
            if change.gained and change.had_ended:
                self.violated("I2", task_id, f"has ended as {record.ended}, and is put into its queue again")
            self._chain(record, change)
            if record.dead and after:
                self.violated("I2", task_id, "is among the dead letters, and lives on")
            self.outcomes.changed(record, change)
            if after == 0 and (change.before or change.gained or change.letter is not None):
                self._ended(record, change)
            elif change.gained and not change.before:
                self.accepted_at[task_id] = self.world.engine.now
                self.world.trace.note(self.who, f"server accepts {record.label}")

    def _chain(self, record: Record, change: Change) -> None:
        for _, failures in change.gained:
            if change.lost and failures not in (change.lost[0][1], change.lost[0][1] + 1):
                self.violated("I3", record.task_id, f"{change.lost[0][1]} failures, then {failures}")

    def _ended(self, record: Record, change: Change) -> None:
        kind = self.outcomes.kind(record, change)
        record.ended.append(kind)
        self.terminal_kinds.setdefault(record.task_id, set()).add(kind)
        self.world.trace.note(self.who, f"{record.label} has ended: {kind}")
        if len(record.ended) > 1:
            self.violated("I2", record.task_id, f"ended {len(record.ended)} times: {record.ended}")
        self.outcomes.ended(record, change, kind)

    def violated(self, invariant: str, task_id: str, text: str) -> None:
        """An invariant does not hold for a task."""
        self.world.violated(invariant, f"{self.who}: {self.label(task_id)} {text}")


def _failures_in(packed: bytes) -> int:
    fields = unpack_fields(packed)
    return int(dict(zip(fields[::2], fields[1::2], strict=True))[b"retries"])
