"""A world for the core's machines: a virtual clock, a model server, and loops that tests can hold and cut.

Offered through fixtures, because tests cannot import each other: `world` and, for property tests, `new_world`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from streamfleet.memory.model import ModelServer
from streamfleet.memory.session import Blocked, Session
from streamfleet_core.client import PLAIN, ClientMachine, Options
from streamfleet_core.config import ClientConfig, WorkerConfig
from streamfleet_core.connection import Command, Reply, ServerError, ServerIdentity
from streamfleet_core.errors import NotSent, OutcomeUnknown
from streamfleet_core.events import Event, EventKind
from streamfleet_core.keys import GROUP, QueueKeys, queue_keys
from streamfleet_core.link import Connect, Disconnect, Exchange, Finished, Link, Role, Sleep
from streamfleet_core.procedure import TRIAL
from streamfleet_core.state import Delivery
from streamfleet_core.submission import Submission
from streamfleet_core.wire import Task, encode_task

WALL_MS = 1_700_000_000_000
NEVER = float("inf")
Denial = Callable[[Command], str | None]
OPTIONS = {
    *("BLOCK", "CONSUMERS", "COUNT", "CREATE", "DELCONSUMER", "FORCE", "GROUP", "GROUPS"),
    *("IDLE", "JUSTID", "LIMIT", "MKSTREAM", "RETRYCOUNT", "STREAMS", "WITHSCORES"),
}
"""Words of the protocol inside commands; all others that are not names or values of ours stand alone."""


def word(argument: object) -> str:
    return argument.decode() if isinstance(argument, bytes) else str(argument)


def without_trial(commands: list[Command]) -> list[Command]:
    """The commands but for the transaction that holds nothing, by which a connection is tried."""
    at = next((at for at in range(len(commands)) if tuple(commands[at : at + len(TRIAL)]) == TRIAL), len(commands))
    return [*commands[:at], *commands[at + len(TRIAL) :]]


def in_capitals(command: Command) -> bool:
    """Are the command's name and its options written so? Servers do not mind; whoever compares them does."""
    options = (argument for argument in command[1:] if isinstance(argument, str) and argument.upper() in OPTIONS)
    return word(command[0]).isupper() and all(option.isupper() for option in options)


class Flight:
    """An exchange on its way: the server runs it at `execute`, and may be too late for those who asked."""

    def __init__(self, world: World, session: Session, exchange: Exchange) -> None:
        self.world = world
        self.session = session
        self.exchange = exchange
        self.replies: list[Reply] = []
        self.blocked: Blocked | None = None
        self._next = 0

    @property
    def commands(self) -> list[Command]:
        return self.exchange.commands

    @property
    def names(self) -> list[str]:
        """Without a trial's."""
        return [word(command[0]) for command in without_trial(self.commands)]

    @property
    def executed(self) -> bool:
        return self._next == len(self.commands) and self.blocked is None

    def execute(self) -> None:
        """The server reads what is left of it; a blocking read may wait, and is then executed again."""
        if self.blocked is not None:
            if not self.blocked.done:
                return
            self.replies.append(self.blocked.reply)
            self.blocked = None
        while self._next < len(self.commands):
            command = self.commands[self._next]
            self._next += 1
            outcome = self._run(command)
            if isinstance(outcome, Blocked):
                self.blocked = outcome
                return
            self.replies.append(outcome)

    def _run(self, command: Command) -> Reply | Blocked:
        denied = self.world.deny(command, self.session)
        if denied is None:
            return self.session.execute(command)
        if word(command[0]) == "EXEC":
            self.session.execute(("DISCARD",))
        self.session._aborted = True  # as a server does for what it refuses to queue
        return ServerError(denied)


class Wire:
    """The loop of one link, and its connection."""

    def __init__(self, world: World, machine: object, link: Link) -> None:
        self.world = world
        self.machine = machine
        self.link = link
        self.session: Session | None = None
        self.flight: Flight | None = None
        self.ended = False
        self.held = False
        """Exchanges wait for the test."""
        self.frozen = False
        """Its process is suspended."""
        self.wake_at = 0.0
        self.sent: list[list[Command]] = []
        self.ghosts: list[Flight] = []
        """Requests of broken connections that the server may still get."""
        self.on_send: Callable[[Exchange], None] | None = None
        self._hold_at = ""

    # ---- one thing at a time ------------------------------------------------------------------------

    def step(self) -> object:
        """Ask the link what to do, and begin that."""
        world, link = self.world, self.link
        assert self.flight is None, "at most one batch in flight"
        action = self.machine.step(link, world.now)
        self.wake_at = 0.0
        if isinstance(action, Exchange):
            assert self.session is not None
            if self.on_send is not None:
                self.on_send(action)
            assert all(map(in_capitals, action.commands)), action.commands
            self.sent.append(action.commands)
            self.flight = Flight(world, self.session, action)
            if self._hold_at in self.flight.names:
                self.held, self._hold_at = True, ""
        elif isinstance(action, Connect):
            if world.available:
                self.session = world.server.session()
                identity = ServerIdentity("memory", "0", client_id=self.session.client_id)
                link.connected(identity, world.now)
            else:
                link.connect_failed(NotSent("nobody listens"), world.now)
        elif isinstance(action, Sleep):
            self.wake_at = action.until
        else:
            assert isinstance(action, Disconnect | Finished)
            self._hang_up()
            self.ended = isinstance(action, Finished)
        return action

    def execute(self) -> None:
        """The server gets the request."""
        assert self.flight is not None
        self.world.server.tick()
        self.flight.execute()

    def deliver(self, replies: list[Reply] | None = None) -> None:
        """The replies arrive: the server's, or those given."""
        flight = self.flight
        assert flight is not None
        if replies is None:
            self.execute()
            assert flight.executed
            replies = flight.replies
        self.flight = None
        assert len(replies) == len(flight.commands), flight.commands
        self.link.replies_received(replies, self.world.now)

    def lose(self, *, unknown: bool = True, late: bool = False) -> None:
        """The connection breaks. ``late``: the server still gets what was on its way (see ``ghosts``)."""
        flight, self.flight = self.flight, None
        self.wake_at = 0.0
        if flight is not None and late and not flight.executed:
            self.ghosts.append(flight)
            self.session = None
        self._hang_up()
        error = OutcomeUnknown("cut") if unknown else NotSent("cut")
        self.link.connection_lost(error, outcome_unknown=unknown, now=self.world.now)

    def arrive_late(self) -> list[Reply]:
        """The request of a broken connection reaches the server after all."""
        ghost = self.ghosts.pop(0)
        if not ghost.session.closed:
            ghost.execute()
            ghost.session.close()
        return ghost.replies

    def _hang_up(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    # ---- by itself ----------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Go on as a shell does. False when there is nothing to do now."""
        if self.ended or self.frozen:
            return False
        flight = self.flight
        if flight is not None:
            if self.held:
                return False
            if flight.session.closed:
                self.lose()
                return True
            flight.execute()
            if flight.executed:
                self.deliver(flight.replies)
                return True
            if self.link.duty.finished() or self.link.stopped:
                self.lose()
                return True
            return False
        if self.link.sleeping and not self.link.kicked and self.world.now < self.wake_at:
            return False
        return not isinstance(self.step(), Sleep)

    def until(self, name: str) -> Flight:
        """Hold the wire, once an exchange with this command is on its way; others are answered."""
        self.held = False
        for _ in range(100):
            if self.flight is not None and name in self.flight.names:
                self.held = True
                return self.flight
            self.turn()
        raise AssertionError(f"no {name} was sent")

    def hold_at(self, name: str) -> Flight:
        """Let time pass until an exchange with this command is on its way, and hold that."""
        self._hold_at = name
        for _ in range(10_000):
            if self.held:
                assert self.flight is not None
                return self.flight
            self.world.advance(0.05)
        raise AssertionError(f"no {name} was sent")

    def release(self) -> None:
        self.held = False
        self.world.pump()


class Actor:
    """A machine with its wires."""

    def __init__(self, world: World, machine: object) -> None:
        self.world = world
        self.machine = machine
        self.wires: list[Wire] = []

    def wire(self, role: Role) -> Wire:
        return next(wire for wire in self.wires if wire.link.role is role)

    def turn(self) -> bool:
        moved = [wire.turn() for wire in self.wires]
        return any(moved)

    def events(self, kind: EventKind) -> list[Event]:
        found = [event for event in self.machine.events if event.kind is kind]
        assert all(isinstance(event.text, str) and event.text for event in found), "an event that says nothing"
        return found

    def suspend(self) -> None:
        for wire in self.wires:
            wire.frozen = True

    def resume(self) -> None:
        for wire in self.wires:
            wire.frozen = False
        self.world.pump()

    def crash(self) -> None:
        for wire in self.wires:
            wire._hang_up()
        self.world.actors.remove(self)

    @property
    def ended(self) -> bool:
        return all(wire.ended for wire in self.wires)


class WorkerActor(Actor):
    def __init__(self, world: World, machine: object) -> None:
        from streamfleet_core.worker import WorkerMachine

        assert isinstance(machine, WorkerMachine)
        super().__init__(world, machine)
        self.machine: WorkerMachine = machine
        self.wires = [Wire(world, machine, link) for link in machine.links]

    read = property(lambda self: self.wire(Role.READ))
    settle = property(lambda self: self.wire(Role.SETTLE))
    control = property(lambda self: self.wire(Role.CONTROL))

    @property
    def deliveries(self) -> list[Delivery]:
        return [d for queue in self.machine.queues.values() for d in queue.in_flight.values()]

    def take(self) -> Delivery:
        delivery = self.machine.take(self.world.now)
        assert delivery is not None
        return delivery

    def begin(self, **attributes: object) -> Delivery:
        """A task that a handler works on."""
        self.world.enqueue(**attributes)
        self.world.pump()
        return self.take()

    def start(self, count: int = 1, **attributes: object) -> list[Delivery]:
        """So many tasks that handlers work on."""
        for n in range(count):
            self.world.enqueue(f"t{n}", **attributes)
        self.world.pump()
        return [self.take() for _ in range(count)]

    def succeed(self, delivery: Delivery, result: bytes | None = None) -> None:
        self.machine.handler_returned(delivery, self.world.now, result)

    def fail(self, delivery: Delivery, error: str = "boom", **how: object) -> None:
        self.machine.handler_failed(delivery, self.world.now, error, "Traceback…", **how)

    def stop(self, drain: float | None = None) -> None:
        self.machine.stop(self.world.now, drain)


class ClientActor(Actor):
    def __init__(self, world: World, machine: ClientMachine) -> None:
        super().__init__(world, machine)
        self.machine: ClientMachine = machine

    publish = property(lambda self: self.wire(Role.PUBLISH))
    receive = property(lambda self: self.wire(Role.RECEIVE))

    @property
    def client_id(self) -> str:
        """The id that it has in its first slot."""
        return next(iter(self.machine.lanes.values())).client_id

    def marker(self, queue: str = "q") -> bytes:
        return queue_keys(queue).producer(self.client_id)

    def adopt_links(self) -> list[Wire]:
        """Give the links that are wanted by now a wire each; returns these."""
        new = [link for link in self.machine.new_links if link.duty.wanted()]
        self.machine.new_links = [link for link in self.machine.new_links if link not in new]
        wires = [Wire(self.world, self.machine, link) for link in new]
        self.wires += wires
        return wires

    def turn(self) -> bool:
        self.adopt_links()
        return super().turn()

    def enqueue(self, data: bytes = b"x", queue: str = "q", *, tracked: bool = False, **how: object) -> Submission:
        options = Options(**how) if how else PLAIN
        return self.machine.enqueue(queue, data, self.world.now, options, tracked=tracked)

    def close(self, *, abandon: bool = False) -> None:
        self.machine.close(self.world.now, abandon=abandon)


class World:
    """One server, one clock, and everybody who works with them."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1000.0
        self.random = Random(seed)
        self.server = ModelServer(self.server_ms)
        self.available = True
        self.denials: list[Denial] = []
        self.in_multi = False
        """Is the command that the denials are asked about one of a transaction?"""
        self.actors: list[Actor] = []
        self.admin = self.server.session()
        self._unique = 0

    @staticmethod
    def transacts(commands: list[Command]) -> bool:
        """Is there a transaction in it that may do something?"""
        return ("MULTI",) in without_trial(commands)

    def server_ms(self) -> int:
        return WALL_MS + int(self.now * 1000)

    def deny(self, command: Command, session: Session) -> str | None:
        self.in_multi = session._queue is not None
        return next((denied for denial in self.denials if (denied := denial(command)) is not None), None)

    def refuse(self, line: str, *names: str, times: int = 1_000_000) -> Callable[[], None]:
        """Answer these commands with an error, so many times; returns what ends it."""
        left = times

        def denial(command: Command) -> str | None:
            nonlocal left
            if word(command[0]) not in names or left <= 0:
                return None
            left -= 1
            return line

        self.denials.append(denial)
        return lambda: self.denials.remove(denial)

    # ---- actors -------------------------------------------------------------------------------------

    def worker(
        self,
        *queues: str,
        consumer: str = "",
        timeout: float = 0.0,
        slot_of: Callable[[QueueKeys], int] = lambda keys: 0,
        start: bool = True,
        **config: object,
    ) -> WorkerActor:
        from streamfleet_core.worker import WorkerMachine

        self._unique += 1
        machine = WorkerMachine(
            consumer or f"worker:{self._unique}",
            dict.fromkeys(queues or ("q",), timeout),
            WorkerConfig(**config),
            now=self.now,
            wall_ms=self.server_ms(),
            entropy=self.random.randbytes,
            random=self.random.random,
            slot_of=slot_of,
        )
        actor = WorkerActor(self, machine)
        self.actors.append(actor)
        if start:
            self.pump()
        return actor

    def client(
        self,
        *queues: str,
        wall_ms: float | None = None,
        slot_of: Callable[[QueueKeys], int] = lambda keys: 0,
        **config: object,
    ) -> ClientActor:
        self._unique += 1
        machine = ClientMachine(
            f"client-{self._unique}",
            list(queues or ("q",)),
            ClientConfig(**config),
            now=self.now,
            wall_ms=self.server_ms() if wall_ms is None else wall_ms,
            entropy=self.random.randbytes,
            random=self.random.random,
            slot_of=slot_of,
        )
        actor = ClientActor(self, machine)
        self.actors.append(actor)
        return actor

    def settled_client(self) -> ClientActor:
        """A client whose connection stands, and which has sent one task."""
        client = self.client()
        client.enqueue(b"first")
        self.pump()
        return client

    # ---- time ---------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Let everybody do what there is to do now."""
        for _ in range(10_000):
            self.server.tick()
            moved = [actor.turn() for actor in self.actors]
            if not any(moved):
                return
        raise AssertionError("they never come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, from one deadline to the next."""
        target = self.now + seconds
        self.pump()
        for _ in range(1_000_000):
            at = self._next_deadline()
            if at > target:
                break
            self.now = max(self.now + 1e-4, at)
            self.pump()
        self.now = max(self.now, target)
        self.pump()

    def _next_deadline(self) -> float:
        wires = [wire for actor in self.actors for wire in actor.wires]
        asleep = [wire.wake_at for wire in wires if not (wire.ended or wire.frozen or wire.flight)]
        at = min(asleep, default=NEVER)
        deadline = self.server.next_deadline()
        return at if deadline is None else min(at, (deadline - WALL_MS) / 1000 + 1e-6)

    # ---- the server, seen from outside --------------------------------------------------------------

    def call(self, *command: str | bytes | int) -> Reply:
        """Run one command as an administrator does, past all denials."""
        reply = self.admin.execute(command)
        assert not isinstance(reply, Blocked)
        return reply

    def enqueue(self, task_id: str = "t1", queue: str = "q", **attributes: object) -> bytes:
        """Put a task into its stream; returns the entry id."""
        task = Task(task_id, queue, str(attributes.pop("client_id", "c")), b"data", **attributes)
        entry_id = self.call("XADD", queue_keys(queue).stream, "*", *encode_task(task))
        assert isinstance(entry_id, bytes)
        return entry_id

    def restore(self, snapshot: object) -> None:
        """The server loses what it has got since the snapshot, and all connections to it."""
        self.server.restore(snapshot)
        self.admin = self.server.session()

    def task_ids(self, queue: str = "q") -> list[str]:
        return [entry[b"id"].decode() for entry in self.stream(queue)]

    def stream(self, queue: str = "q") -> list[dict[bytes, bytes]]:
        return self.entries(queue_keys(queue).stream)

    def dead(self, queue: str = "q") -> list[dict[bytes, bytes]]:
        return self.entries(queue_keys(queue).dead)

    def entries(self, key: bytes) -> list[dict[bytes, bytes]]:
        reply = self.call("XRANGE", key, "-", "+")
        assert isinstance(reply, list)
        return [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in reply]

    def pending(self, queue: str = "q") -> dict[bytes, bytes]:
        """Owners by entry id."""
        reply = self.call("XPENDING", queue_keys(queue).stream, GROUP, "-", "+", 100_000)
        return {row[0]: row[1] for row in reply} if isinstance(reply, list) else {}

    def value(self, key: bytes) -> Reply:
        return self.call("GET", key)


@pytest.fixture
def world() -> World:
    """A world with nobody in it yet."""
    return World()


@pytest.fixture(scope="session")
def new_world() -> type[World]:
    """For tests that need many worlds."""
    return World
