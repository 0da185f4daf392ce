"""The bare client machine against the model server, in any order of events: each task is accepted exactly once."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from streamfleet_core.connection import ServerError
from streamfleet_core.errors import BufferFull
from streamfleet_core.keys import queue_keys
from streamfleet_core.link import Role
from streamfleet_core.submission import Status

KEYS = queue_keys("q")
BUFFER = 8
WIRES = st.integers(0, 1)


class Producer(RuleBasedStateMachine):
    """One client; each of its loops and each fault is a rule. Nobody consumes, so that all can be counted."""

    World = None

    @initialize()
    def begin(self):
        self.world = self.World()
        self.client = self.world.client(buffer_tasks=BUFFER, batch_tasks=3, keep_tasks=10_000, keep_seconds=1e9)
        self.submissions = []
        self.snapshots = [self.world.server.snapshot()]
        self.regressed = False

    def wires(self):
        for wire in self.client.adopt_links():
            wire.watching = False
            wire.on_send = lambda exchange, wire=wire: self.about_to_send(wire, exchange)
        return self.client.wires

    def about_to_send(self, wire, exchange):
        if wire.link.role is Role.PUBLISH and exchange.commands[0] == ("MULTI",):
            assert wire.watching, "no MULTI before the reply to its WATCH"

    def wire(self, number):
        wires = self.wires()
        return wires[number] if number < len(wires) else None

    # ---- rules --------------------------------------------------------------------------------------

    @rule(tracked=st.booleans(), delay=st.sampled_from([None, None, 60.0]))
    def enqueue(self, tracked, delay):
        machine = self.client.machine
        full = machine.buffered_tasks >= BUFFER
        try:
            how = {} if delay is None else {"delay": delay}
            self.submissions.append(self.client.enqueue(b"x", tracked=tracked, **how))
            assert not full
        except BufferFull:
            assert full

    @rule(number=WIRES)
    def step(self, number):
        wire = self.wire(number)
        if wire is not None and wire.flight is None and not wire.ended:
            wire.step()

    @rule(number=WIRES)
    def answer_arrives(self, number):
        wire = self.wire(number)
        if wire is None or wire.flight is None:
            return
        flight = wire.flight
        if flight.session.closed:
            self.connection_breaks(number, "cut")
            return
        flight.execute()
        if flight.executed:
            for command, reply in zip(flight.commands, flight.replies, strict=True):
                if command[0] in ("EXEC", "WATCH"):
                    wire.watching = command[0] == "WATCH" and not isinstance(reply, ServerError)
            wire.deliver(flight.replies)

    @rule(number=WIRES)
    def server_reads(self, number):
        wire = self.wire(number)
        if wire is not None and wire.flight is not None and not wire.flight.session.closed:
            wire.flight.execute()

    @rule(number=WIRES, how=st.sampled_from(["cut", "late", "late", "not sent"]))
    def connection_breaks(self, number, how):
        wire = self.wire(number)
        if wire is None or wire.session is None or wire.ended:
            return
        if how == "not sent" and (wire.flight is None or wire.flight.replies):
            return
        wire.watching = False
        wire.lose(unknown=how != "not sent", late=how == "late")

    @rule(number=WIRES)
    def request_arrives_late(self, number):
        wire = self.wire(number)
        if wire is not None and wire.ghosts:
            wire.arrive_late()

    @rule(which=st.integers(0, 30))
    def cancel(self, which):
        if which < len(self.submissions):
            self.client.machine.cancel(self.submissions[which])

    @rule(
        line=st.sampled_from(["OOM full", "READONLY a replica"]), name=st.sampled_from(["XADD", "HINCRBY", "ZADD"])
    )
    def server_refuses_once(self, line, name):
        self.world.refuse(line, name, times=1)

    @rule()
    def replica_is_up_to_date(self):
        self.snapshots.append(self.world.server.snapshot())

    @rule(which=st.integers(0, 10))
    def failover(self, which):
        """To what a replica had: later acceptances are gone, and so is what was on its way."""
        if which < len(self.snapshots):
            self.world.server.restore(self.snapshots[which])
            self.world.admin = self.world.server.session()
            self.regressed = True

    @rule(seconds=st.sampled_from([0.1, 1.0, 12.0]))
    def time_passes(self, seconds):
        self.world.now += seconds
        self.world.server.tick()

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def all_is_well_for_a_while(self, seconds):
        until = self.world.now + seconds
        while self.world.now < until:
            for _ in range(6):
                for number in (0, 1):
                    wire = self.wire(number)
                    if wire is not None:
                        self.answer_arrives(number) if wire.flight is not None else self.step(number)
            self.world.now += 0.5
            self.world.server.tick()

    # ---- always -------------------------------------------------------------------------------------

    def stored(self):
        """How often each task is on the server."""
        counts = {}
        scheduled = self.world.call("ZRANGE", KEYS.schedule, 0, -1)
        for name in [*(entry[b"id"] for entry in self.world.stream()), *scheduled]:
            counts[name.decode()] = counts.get(name.decode(), 0) + 1
        return counts

    @invariant()
    def nothing_is_doubled_and_what_was_accepted_is_there(self):
        if not hasattr(self, "client"):
            return
        counts = self.stored()
        assert all(count == 1 for count in counts.values()), "accepted once"
        for submission in self.submissions:
            if submission.status is Status.BUFFERED:
                assert submission.id not in counts
            if submission.status is Status.ACCEPTED and not self.regressed:
                assert submission.id in counts
            if submission.status is Status.CANCELLED and not self.regressed:
                assert submission.id not in counts, "cancelled: never to run"

    @invariant()
    def books_balance(self):
        if not hasattr(self, "client"):
            return
        machine = self.client.machine
        buffered = [s for s in self.submissions if s.status is Status.BUFFERED]
        assert machine.buffered_tasks == len(buffered) <= BUFFER
        assert machine.buffered_bytes == len(buffered)
        assert machine.pending >= len(buffered)
        assert machine.refusal is None
        if not self.regressed:
            live = (Status.BUFFERED, Status.SENT)
            assert machine.pending >= sum(s.status in live for s in self.submissions)

    def teardown(self):
        """When the faults stop, each task is on the server once, and a closed client leaves nothing else."""
        if not hasattr(self, "client"):
            return
        self.world.denials.clear()
        for number in (0, 1):
            wire = self.wire(number)
            while wire is not None and wire.ghosts:
                wire.arrive_late()
        for _ in range(3):
            self.all_is_well_for_a_while(6.0)
        # An idle client learns of a failover when it next has something to send.
        self.submissions.append(self.client.enqueue(b"x"))
        for _ in range(6):
            self.all_is_well_for_a_while(6.0)
        assert self.client.machine.pending == 0
        counts = self.stored()
        for submission in self.submissions:
            ended = submission.status in (Status.CANCELLED, Status.UNKNOWN)
            assert counts.get(submission.id, 0) == 1 or ended
            assert submission.status is not Status.SENT
        self.client.close()
        for _ in range(4):
            self.all_is_well_for_a_while(6.0)
        assert self.client.ended or not self.client.wires
        assert set(self.world.call("KEYS", "*")) <= {KEYS.stream, KEYS.schedule, KEYS.scheduled, KEYS.moves}


def test_any_order_of_events(new_world):
    Producer.World = new_world
    profile = settings()
    run_state_machine_as_test(
        Producer,
        settings=settings(
            max_examples=profile.max_examples * 2,
            stateful_step_count=50,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
