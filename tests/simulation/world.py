"""A world: built from its plan, run through its phases, judged at the end.

1. work     tasks come, faults come
2. drain    faults have stopped: everything must drain within a bound computed from the plan (I1, I7, I9, I15)
3. close    clients close; what dead ones have left is collected (I12)
4. stop     workers stop; only declared keys are left (I12, I13)
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from traceback import extract_tb, format_exception
from typing import TYPE_CHECKING

from streamfleet.memory.streams import Stream
from streamfleet_core.connection import Argument
from streamfleet_core.events import Event, EventKind
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.state import IllegalTransition

from . import bounds, faults
from .engine import Engine
from .network import Memory, Server
from .observer import Observer
from .plan import Network, Plan, TaskPlan
from .processes import MAX_TURNS, ClientProcess, Process, WorkerProcess
from .records import Record
from .trace import Trace
from .verdict import judge_end, undrained

if TYPE_CHECKING:
    from streamfleet_core.connection import Reply

MAX_VIOLATIONS = 10


@dataclass(slots=True)
class Result:
    """What came of a world."""

    plan: Plan
    violations: list[tuple[str, str]]
    """Which invariant, and what happened."""
    hours: float
    events: int
    counts: Counter[str] = field(default_factory=Counter)
    share: float = 0.0
    """The part of the time in which it had to drain that it needed."""
    digest: str = ""
    lines: list[str] | None = None


class Stop(BaseException):
    """Enough violations. Nothing that catches exceptions on its way may keep it."""


class World:
    """See the module's text."""

    block = 2.0
    sweep_interval = 4.0
    keep_seconds = 10.0
    max_deliveries = 5

    def __init__(self, plan: Plan, *, keep_trace: bool = False, hashed: bool = False) -> None:
        self.plan = plan
        self.engine = Engine()
        self.trace = Trace(self.engine, keep=keep_trace, hashed=hashed)
        self.counts: Counter[str] = Counter()
        self.violations: list[tuple[str, str]] = []
        self.queues = [f"q{number}" for number in range(plan.queues)]
        self.server = Server(self.engine, plan.network)
        self.observer = Observer(self)
        self.calmed = False
        self.ending = False
        self.generation = 0
        self.losses: list[tuple[float, set[str]]] = []
        """When, and which tasks."""
        self.odd_until = -1e9
        """When something last happened that makes the entries of healthy workers look idle, or theirs no more."""
        self.outage_began: float | None = None
        self.outage_ended: float | None = None
        self.jumped_back = 0.0
        self.clock_odd = False
        """Has somebody set the server's clock, or was it slow to tell the time?"""
        self.clock_set = False
        """Has somebody set the server's clock?"""
        self.share = 0.0
        self.gave_up_closing: set[str] = set()
        self.workers: list[WorkerProcess] = []
        self.workers_by_name: dict[str, WorkerProcess] = {}
        self.clients: list[ClientProcess] = []
        self.former_clients: list[ClientProcess] = []
        self._starts: Counter[str] = Counter()
        self._administrator = self.server.model.session()

    # ---- parts of the world -------------------------------------------------------------------------

    def random(self, name: str) -> Random:
        """Randomness of its own for each part, so that a part that is left out changes little for the others."""
        return Random(f"{self.plan.seed} {name}")

    def _name(self, slot: str) -> str:
        self._starts[slot] += 1
        return f"{slot}.{self._starts[slot]}"

    @staticmethod
    def slot_of(name: str) -> int:
        """Where a process of this name is at work."""
        return int(name[1 : name.index(".")])

    def start_worker(self, slot: int) -> None:
        """Start a worker in a slot, unless one is at work there, or the world comes to its end."""
        if self.ending:
            return
        if slot < len(self.workers):
            present = self.workers[slot]
            if present.alive and not present.machine.stopping:
                return
        worker = WorkerProcess(self, self._name(f"w{slot}"))
        self.workers_by_name[worker.name] = worker
        self.workers[slot : slot + 1] = [worker]
        self.trace.note(worker.name, "started")

    def start_client(self, slot: int) -> None:
        """Start a client in a slot, in the place of the one that was there."""
        if slot < len(self.clients):
            self.former_clients.append(self.clients[slot])
        client = ClientProcess(self, self._name(f"c{slot}"))
        self.clients[slot : slot + 1] = [client]
        self.trace.note(client.name, "started")

    def plan_of(self, data: bytes) -> TaskPlan:
        """The plan of a task, from its payload."""
        return self._tasks[int(data)]

    def poisoned(self, worker: WorkerProcess) -> None:
        """A handler has killed its worker."""
        worker.crash()
        self.engine.after(worker.random.uniform(0.1, 1.0), self.start_worker, self.slot_of(worker.name))

    def administrator(self, *command: Argument) -> Reply:
        """Somebody does something by hand."""
        if not self.server.up:
            return None
        if self._administrator.closed:
            self._administrator = self.server.model.session()
        self.observer.actor = None
        reply = self._administrator.execute(command)
        return reply  # type: ignore[return-value]

    # ---- what happens to it -------------------------------------------------------------------------

    def violated(self, invariant: str, text: str) -> None:
        """An invariant does not hold."""
        self.trace.note("VIOLATION", f"{invariant}: {text}")
        self.violations.append((invariant, f"at {self.engine.now:.4f} s: {text}"))
        if len(self.violations) >= MAX_VIOLATIONS:
            raise Stop

    def _crashed(self, defect: Exception) -> None:
        """A machine has raised what it should not: its loop, and with it its process, would end here."""
        for line in "".join(format_exception(defect)).splitlines():
            self.trace.note("traceback", line)
        last = extract_tb(defect.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno} in {last.name}"
        self.violated("crash", f"{type(defect).__name__}: {defect} ({where})")

    def spins(self, process: Process) -> None:
        """A process takes turns without end; no more of this world, for its time may never pass."""
        self.violated("spin", f"{process.name} takes more than {MAX_TURNS} turns within a second")
        raise Stop

    def noted(self, process: Process, event: Event) -> None:
        """A machine tells something."""
        self.counts[event.kind.name] += 1
        if event.kind is EventKind.MARKER_REGRESSED:
            self.observer.markers.reported(process, event.text)
        if not self.trace.quiet:
            task = event.data.get("task")
            what = f"{self.observer.label(task)}: " if isinstance(task, str) else ""
            self.trace.note(process.name, f"[{event.kind.name}] {what}{event.text}")

    def odd(self) -> None:
        """From now on, and for a while, healthy workers' entries may look idle."""
        self.odd_until = self.engine.now

    def outage_begins(self) -> None:
        """The server goes down."""
        self.outage_began = self.engine.now

    def outage_ends(self) -> None:
        """The server is back."""
        self.outage_ended = self.engine.now

    def lost(self, records: dict[str, Record]) -> None:
        """The server has lost these tasks (or their ends)."""
        self.generation += 1
        self.losses.append((self.engine.now, {task for task, record in records.items() if record.accepted}))

    # ---- phases -------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Live through it."""
        with suppress(Stop):
            try:
                self._live()
            except IllegalTransition as defect:
                self.violated("transition", str(defect))
            except Exception as defect:
                self._crashed(defect)
        self.counts["tasks"] = len(self.observer.wishes)
        self.counts["runs"] = len(self.observer.runs)
        self.counts["terminal"] = sum(len(record.ended) for record in self.observer.records.values())
        return Result(
            self.plan,
            self.violations,
            self.engine.now / 3600,
            self.engine.events,
            self.counts,
            self.share,
            self.trace.digest,
            self.trace.lines,
        )

    def _live(self) -> None:
        plan = self.plan
        self._tasks = {task.number: task for task in plan.tasks}
        for slot in range(plan.workers):
            self.start_worker(slot)
        for slot in range(plan.clients):
            self.start_client(slot)
        for task in plan.tasks:
            self.engine.at(task.at, self._enqueue, task)
        for fault in plan.faults:
            self.engine.at(fault.at, faults.inflict, self, fault)
        self._look()
        self.engine.run(plan.horizon, lambda: False)
        self._count_what_is_left()
        self._calm()
        limit = bounds.drain(self)
        self.share = self._wait("I15", limit, lambda: undrained(self)) / limit
        for client in self.clients:
            client.close(10.0)
        self._wait("I12", plan.client_timeout * 1.5 + 6 * self.sweep_interval + self.jumped_back, self._unclean)
        if self.losses:  # a client that was idle has noticed the loss only now, and has sent tasks again
            self._wait("I15", bounds.drain(self), lambda: undrained(self))
        self.ending = True
        for worker in self.workers_by_name.values():
            if worker.alive:
                worker.stop(plan.lease)
        self._wait("I12", plan.lease * 3 + 20.0, self._unstopped)
        judge_end(self)

    def _look(self) -> None:
        """What takes time to be wrong is looked at now and then (I9, I13)."""
        self.observer.reclaims.look()
        self.observer.owned.look()
        if not self.ending:
            self.engine.after(bounds.LOOK_EVERY, self._look)

    def _enqueue(self, task: TaskPlan) -> None:
        self.clients[task.client].enqueue(task)

    def _calm(self) -> None:
        """Faults end here."""
        self.calmed = True
        self.trace.note("world", "faults have stopped")
        self.server.network = Network(latency=min(self.plan.network.latency, 0.005))
        if not self.server.up:
            self.server.up = True
            self.outage_ends()
        if self.server.slow:
            self.server.recovered()
        self.server.memory = Memory.ENOUGH
        for process in [*self.workers_by_name.values(), *self.clients, *self.former_clients]:
            process.resume()
            if process.partitioned:
                process.heal()
        for slot in range(self.plan.workers):
            self.start_worker(slot)

    def _count_what_is_left(self) -> None:
        """When faults stop: how much is still to be done, and where it is."""
        counts, values = self.counts, self.server.model.database.values
        counts["left unsent"] = sum(client.machine.pending for client in self.clients)
        counts["left while memory is full"] = self.server.memory is not Memory.ENOUGH
        for queue in self.queues:
            keys = queue_keys(queue)
            counts["left in schedules"] += len(getattr(values.get(keys.schedule), "scores", ()))
            stream = values.get(keys.stream)
            if isinstance(stream, Stream) and GROUP in stream.groups:
                pending = stream.groups[GROUP].pending.by_id
                counts["left in queues"] += len(stream.entries) - len(pending)
                owners = [self.workers_by_name.get(one.consumer.name.decode()) for one in pending.values()]
                counts["left with the dead"] += sum(owner is None or owner.dead for owner in owners)

    def _wait(self, invariant: str, seconds: float, what_is_left: object) -> float:
        """Let time pass until nothing is left to happen, or too much time has passed; how much has."""
        assert callable(what_is_left)
        engine = self.engine
        began = engine.now
        limit = began + seconds
        while what_is_left():
            if engine.now >= limit:
                self.violated(invariant, f"after {seconds:.0f} s of peace: {what_is_left()}")
                break
            engine.run(min(limit, engine.now + 0.5), lambda: False)
        return engine.now - began

    def _unclean(self) -> str:
        """What clients have left at the server."""
        for client in [*self.clients, *self.former_clients]:
            if client.alive:
                return f"client {client.name} has not left"
        keys = self.server.model.database.values
        left = [key.decode() for key in keys if b":receivers" in key or key.startswith(b"streamfleet:receiver:")]
        return f"left of clients: {left}" if left else ""

    def _unstopped(self) -> str:
        names = [worker.name for worker in self.workers_by_name.values() if worker.alive]
        return f"workers have not left: {names}" if names else ""


def run(plan: Plan, *, keep_trace: bool = False, hashed: bool = False) -> Result:
    """Live through the world of a plan."""
    return World(plan, keep_trace=keep_trace, hashed=hashed).run()
