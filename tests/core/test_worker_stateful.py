"""The bare worker machines against the model server, in any order of events, beside a model of a task's life."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from streamfleet_core.connection import ServerError
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.link import Role
from streamfleet_core.state import TERMINAL, Phase
from streamfleet_core.wire import Task, encode_task, unpack_fields

KEYS = queue_keys("q")
WIRES = st.integers(0, 5)


@dataclass
class Life:
    """What may become of a task, told without machines: attempts in a chain, then one end."""

    max_retries: int
    attempt: int = 0
    ended: bool = False
    succeeded: bool = False
    """Has a handler returned for the present attempt?"""
    failed: bool = False
    """Has a handler raised for the present attempt?"""

    def observe(self, live: list[int], dead: int) -> None:
        """``live``: the attempts for which there is an entry or a row of the schedule."""
        assert len(live) <= 1, "at most one live entry"
        assert dead <= 1, "at most one dead letter"
        if self.ended:
            assert not live, "nothing comes after the end"
            return
        if live:
            assert not dead
            (attempt,) = live
            assert attempt in (self.attempt, self.attempt + 1), "attempts are a chain"
            if attempt > self.attempt:
                assert self.failed, "a retry follows a failure"
                assert attempt <= self.max_retries
                self.attempt, self.succeeded, self.failed = attempt, False, False
            return
        self.ended = True
        if dead:
            assert self.failed, "a dead letter follows a failure"
        else:
            assert self.succeeded, "no task is lost"


class Fleet(RuleBasedStateMachine):
    """Two workers; each of their loops, each handler and each fault is a rule."""

    World = None

    @initialize(concurrency=st.integers(1, 3))
    def begin(self, concurrency):
        self.world = self.World()
        self.world.call("XGROUP", "CREATE", KEYS.stream, GROUP, "0", "MKSTREAM")
        self.concurrency = concurrency
        self.lives: dict[bytes, Life] = {}
        self.running: list[tuple] = []
        self.count = 0
        self.workers = [self.another(), self.another()]

    def another(self):
        worker = self.world.worker(start=False, concurrency=self.concurrency, max_deliveries=1_000_000)
        for wire in worker.wires:
            wire.watching = False
            wire.on_send = lambda exchange, wire=wire, worker=worker: self.about_to_send(worker, wire, exchange)
        return worker

    # ---- what is checked at each message ------------------------------------------------------------

    def about_to_send(self, worker, wire, exchange):
        commands = exchange.commands
        if wire.link.role is not Role.SETTLE or not self.world.transacts(commands):
            return
        assert wire.watching, "no MULTI before the reply to its WATCH"
        queue = worker.machine.queues["q"]
        for command in commands:
            if command[0] in ("XACK", "XCLAIM"):
                for part in command[3:]:
                    delivery = queue.in_flight.get(part)
                    if delivery is not None:
                        assert delivery.fence == queue.fence, "nothing is written for an entry in doubt"

    def run_on_server(self, wire):
        """The server reads a request; nothing in it may end what others own."""
        flight = wire.flight or wire.ghosts[0]
        self.run(flight, wire.machine.consumer)

    def run(self, flight, consumer):
        owners = self.world.pending()
        flight.execute()
        settles = [c for c in flight.commands if c[0] == "XACK"]
        if settles and ("EXEC",) in flight.commands and flight.executed:
            result = flight.replies[flight.commands.index(("EXEC",))]
            if isinstance(result, list):
                for entry in settles[0][3:]:
                    # Nobody's, when the group was destroyed: then it is ended by whoever had it last.
                    assert owners.get(entry, consumer) == consumer, "only its owner ends an entry"
        self.look()

    def look(self):
        """Compare what is on the server with each task's life."""
        live: dict[bytes, list[int]] = {}
        dead: dict[bytes, int] = {}
        for entry in self.world.stream():
            live.setdefault(entry[b"id"], []).append(int(entry[b"retries"]))
        waiting = self.world.call("ZRANGE", KEYS.schedule, 0, -1)
        for packed in self.world.call("HMGET", KEYS.scheduled, *waiting) if waiting else []:
            fields = unpack_fields(packed)
            entry = dict(zip(fields[::2], fields[1::2], strict=True))
            live.setdefault(entry[b"id"], []).append(int(entry[b"retries"]))
        for letter in self.world.dead():
            dead[letter[b"id"]] = dead.get(letter[b"id"], 0) + 1
        assert set(live) | set(dead) <= set(self.lives)
        for task_id, life in self.lives.items():
            life.observe(live.get(task_id, []), dead.get(task_id, 0))

    # ---- rules --------------------------------------------------------------------------------------

    def wire(self, number):
        return self.workers[number // 3].wires[number % 3]

    @rule(max_retries=st.integers(0, 2), delay=st.sampled_from([0, 0, 800]))
    def enqueue(self, max_retries, delay):
        if self.count >= 12:
            return
        self.count += 1
        name = f"t{self.count}"
        self.lives[name.encode()] = Life(max_retries)
        task = Task(name, "q", "c", b"", max_retries=max_retries, retry_delay_ms=delay)
        self.world.call("XADD", KEYS.stream, "*", *encode_task(task))

    @rule(number=WIRES)
    def step(self, number):
        """A loop asks its link what to do; nothing is answered yet."""
        wire = self.wire(number)
        if wire.flight is None and not wire.ended:
            wire.step()
            if wire.session is None:
                wire.watching = False

    @rule(number=WIRES)
    def server_reads(self, number):
        wire = self.wire(number)
        if wire.flight is not None and not wire.flight.session.closed:
            self.run_on_server(wire)

    @rule(number=WIRES)
    def answer_arrives(self, number):
        wire = self.wire(number)
        flight = wire.flight
        if flight is None:
            return
        if flight.session.closed:
            self.connection_breaks(number, "cut")
            return
        if not flight.executed:
            self.run_on_server(wire)
        if flight.executed:
            for command, reply in zip(flight.commands, flight.replies, strict=True):
                if command[0] in ("EXEC", "WATCH"):
                    wire.watching = command[0] == "WATCH" and not isinstance(reply, ServerError)
            wire.deliver(flight.replies)

    @rule(number=WIRES, how=st.sampled_from(["cut", "late", "not sent"]))
    def connection_breaks(self, number, how):
        wire = self.wire(number)
        if wire.session is None or wire.ended:
            return
        if how == "not sent" and (wire.flight is None or wire.flight.replies):
            return
        wire.watching = False
        wire.lose(unknown=how != "not sent", late=how == "late")

    @rule(number=WIRES)
    def request_arrives_late(self, number):
        wire = self.wire(number)
        if wire.ghosts:
            ghost = wire.ghosts[0]
            if not ghost.session.closed:
                self.run(ghost, wire.machine.consumer)
                ghost.session.close()
            wire.ghosts.pop(0)

    @rule(number=st.integers(0, 1))
    def handler_takes(self, number):
        worker = self.workers[number]
        if worker.machine.running < self.concurrency:
            delivery = worker.machine.take(self.world.now)
            if delivery is not None:
                self.running.append((worker, delivery))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), success=st.booleans())
    def handler_ends(self, data, success):
        self.end(*self.running.pop(data.draw(st.integers(0, len(self.running) - 1))), success)

    def end(self, worker, delivery, success):
        life = self.lives[delivery.task.id.encode()]
        if delivery.phase is Phase.RUNNING and delivery.task.retries == life.attempt:
            life.succeeded |= success
            life.failed |= not success
        worker.succeed(delivery) if success else worker.fail(delivery)

    @rule(seconds=st.sampled_from([0.01, 0.5, 2.0, 4.0, 11.0, 30.0]))
    def time_passes(self, seconds):
        self.world.now += seconds
        self.world.server.tick()

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0]), outcome=st.sampled_from([None, None, True, False]))
    def all_is_well_for_a_while(self, seconds, outcome=None):
        """Everybody goes on by himself. Without this, hypothesis seldom gets anywhere."""
        until = self.world.now + seconds
        while self.world.now < until:
            for _ in range(4):
                for number in range(6):
                    if self.wire(number).flight is not None:
                        self.answer_arrives(number)
                    else:
                        self.step(number)
            if outcome is not None:
                self.handler_takes(0)
                self.handler_takes(1)
                while self.running:
                    self.end(*self.running.pop(), outcome)
            self.world.now += 0.5
            self.world.server.tick()

    @rule(number=st.integers(0, 1))
    def worker_dies(self, number):
        worker = self.workers[number]
        worker.crash()
        self.running = [pair for pair in self.running if pair[0] is not worker]
        self.workers[number] = self.another()

    @rule(number=st.integers(0, 1), drain=st.sampled_from([0.0, 30.0]))
    def worker_stops(self, number, drain):
        self.workers[number].stop(drain)

    @rule()
    def group_is_destroyed(self):
        self.world.call("XGROUP", "DESTROY", KEYS.stream, GROUP)

    # ---- always -------------------------------------------------------------------------------------

    @invariant()
    def books_balance(self):
        for worker in getattr(self, "workers", ()):
            machine = worker.machine
            deliveries = worker.deliveries
            assert machine.held == len(deliveries)
            assert machine.running == sum(d.phase is Phase.RUNNING for d in deliveries) >= 0
            assert not any(d.phase in TERMINAL for d in deliveries)
            assert not any(d.phase in (Phase.COMMITTING, Phase.RETURNING) for d in deliveries) or (
                worker.settle.flight is not None
            )
            assert machine.refusal is None

    def teardown(self):
        """When the faults stop, every task comes to its one end."""
        if not hasattr(self, "workers"):
            return
        for number in (0, 1):
            for wire in self.workers[number].wires:
                while wire.ghosts:
                    self.request_arrives_late(number * 3 + self.workers[number].wires.index(wire))
            if self.workers[number].machine.stopping:
                self.worker_dies(number)
        for _ in range(40):
            if all(life.ended for life in self.lives.values()):
                break
            self.all_is_well_for_a_while(11.0)
            for number in (0, 1):
                for _ in range(self.concurrency):
                    self.handler_takes(number)
            while self.running:
                self.end(*self.running.pop(), True)
            self.look()
        assert all(life.ended for life in self.lives.values()), "no task is left behind"


def test_any_order_of_events(new_world):
    Fleet.World = new_world
    profile = settings()
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=profile.max_examples * 2,
            stateful_step_count=60,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
