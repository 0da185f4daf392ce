"""The model server on the virtual clock, and connections to it on which anything may go wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from streamfleet.memory import Blocked, ModelServer, Session
from streamfleet_core.connection import Command, Reply, ServerError

from .engine import Engine

if TYPE_CHECKING:
    from random import Random

    from .observer import Observer
    from .plan import Network

EPOCH_MS = 1_700_000_000_000
"""What the server's clock shows when a world begins."""


class Memory(Enum):
    """What the server has memory for."""

    ENOUGH = "everything"
    FULL = "nothing new"
    FULL_AND_OLD = "nothing new, and nothing at all within a transaction, as before 7.0"


FULL = ServerError("OOM command not allowed when used memory > 'maxmemory'.")
ADDING = frozenset(("XADD", "ZADD", "HSET", "HINCRBY", "SET", "XGROUP CREATE"))
"""Commands of ours that may need memory, as the server sees it (flag ``denyoom``)."""
LEAVING = frozenset(("EXEC", "DISCARD", "UNWATCH"))


class Server:
    """The model server, which may be down, slow, or have its clock moved."""

    def __init__(self, engine: Engine, network: Network) -> None:
        self.engine = engine
        self.network = network
        self.model = ModelServer(self.now_ms)
        self.jumped_ms = 0.0
        self.up = True
        self.slow = False
        self.memory = Memory.ENOUGH
        self.wires: dict[Wire, None] = {}
        self._backlog: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._tick_at = float("inf")

    def now_ms(self) -> int:
        """The server's clock."""
        return int(EPOCH_MS + self.engine.now * 1000 + self.jumped_ms)

    def submit(self, do: Callable[..., object], *args: Any) -> None:
        """Do it now, or when the server is not slow any more, in the order of arrival."""
        if self.slow:
            self._backlog.append((do, args))
        else:
            do(*args)

    def recovered(self) -> None:
        """The server works through what has arrived meanwhile."""
        self.slow = False
        backlog, self._backlog = self._backlog, []
        for do, args in backlog:
            do(*args)

    def execute(self, session: Session, command: Command) -> Reply | Blocked:
        """As the model does, unless there is no memory for it."""
        if self.memory is not Memory.ENOUGH:
            name = "XGROUP CREATE" if command[:2] == ("XGROUP", "CREATE") else command[0]
            queueing = session._queue is not None
            old = self.memory is Memory.FULL_AND_OLD and queueing and name not in LEAVING
            if old or name in ADDING:
                session._aborted = queueing
                return FULL
        return session.execute(command)

    def stop(self) -> None:
        """Down: connections break, requests on their way to it are lost."""
        self.up = False
        self.slow = False
        self._backlog.clear()
        self.drop_connections()

    def drop_connections(self) -> None:
        """All connections break at once."""
        for wire in list(self.wires):
            wire.broken()

    def watch_clock(self) -> None:
        """See to it that blocked reads end in time."""
        deadline = self.model.next_deadline()
        if deadline is None:
            return
        at = (deadline - EPOCH_MS - self.jumped_ms) / 1000 + 1e-6
        if at < self._tick_at:
            self._tick_at = at
            self.engine.at(at, self._tick, at)

    def _tick(self, at: float) -> None:
        if at == self._tick_at:
            self._tick_at = float("inf")
            if self.up:
                self.model.tick()
            self.watch_clock()

    def jump(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.jumped_ms += seconds * 1000
        self._tick_at = float("inf")
        self.model.tick()
        self.watch_clock()


class Owner(Protocol):
    """Who holds a connection: the loop of a link."""

    name: str

    def replied(self, exchange: int, replies: list[Reply]) -> None:
        """The replies have arrived."""

    def failed(self, exchange: int, unknown: bool, why: str) -> None:
        """The connection is seen to be broken."""

    def timed_out(self, exchange: int) -> None:
        """The exchange has taken too long."""

    def disturbed(self) -> None:
        """Something goes wrong that it cannot know of yet."""


class Wire:
    """One connection. What is sent on it may be lost, or be late, or do its work unseen."""

    __slots__ = (
        "_blocked",
        "_busy_until",
        "_exchange",
        "_random",
        "closed",
        "late",
        "observer",
        "owner",
        "server",
        "session",
    )

    def __init__(self, server: Server, owner: Owner, random: Random, observer: Observer) -> None:
        self.server = server
        self.owner = owner
        self.observer = observer
        self.session: Session = server.model.session()
        self.closed = False
        """The owner has given it up."""
        self.late = False
        """A request on it was delivered after its owner had given it up."""
        self._random = random
        self._exchange = 0
        """The exchange in flight; 0 is none."""
        self._busy_until = 0.0
        """When the last request on its way arrives."""
        self._blocked: Blocked | None = None
        server.wires[self] = None

    # ---- the owner's end ----------------------------------------------------------------------------

    def send(self, exchange: int, commands: Sequence[Command], timeout: float, *, blocking: bool) -> None:
        """Begin an exchange; the owner hears of its end."""
        engine, network, random = self.server.engine, self.server.network, self._random
        self._exchange = exchange
        if self.session.closed:
            engine.after(self._latency(), self._fail, exchange, random.random() < 0.5, "closed by the server")
            return
        arrival = self._latency()
        if network.calm:
            engine.after(arrival, self._arrive, exchange, commands, len(commands), True)
            if blocking or self.server.slow:
                engine.after(timeout, self.owner.timed_out, exchange)
            return
        engine.after(timeout, self.owner.timed_out, exchange)
        self._send_badly(exchange, commands, arrival)

    def _send_badly(self, exchange: int, commands: Sequence[Command], arrival: float) -> None:
        engine, network, random = self.server.engine, self.server.network, self._random
        dice = random.random()
        size = len(commands)
        dice -= network.not_sent
        if dice < 0:
            engine.after(0.0, self._fail, exchange, False, "not sent")
            return
        dice -= network.request_lost
        if dice < 0:
            engine.after(arrival, self._fail, exchange, True, "request lost")
            return
        dice -= network.half_open
        if dice < 0:
            self.owner.disturbed()
            return  # neither end hears anything until the owner's patience is over
        dice -= network.reply_lost
        if dice < 0:
            engine.after(arrival, self._arrive, exchange, commands, size, False)
            return
        dice -= network.partial
        if dice < 0:
            engine.after(arrival, self._arrive, exchange, commands, random.randrange(size), False)
            return
        dice -= network.late
        if dice < 0:
            delay = arrival + random.expovariate(1.0 / network.late_by)
            self._busy_until = engine.now + delay
            engine.after(arrival, self._fail, exchange, True, f"request {delay:.3f} s late")
            engine.at(self._busy_until, self._arrive, exchange, commands, size, False)
            return
        engine.after(arrival, self._arrive, exchange, commands, size, True)

    def close(self) -> None:
        """The owner gives it up; the server learns of it after whatever is still on its way."""
        if not self.closed:
            self.closed = True
            self._exchange = 0
            engine = self.server.engine
            engine.at(max(engine.now + self._latency(), self._busy_until) + 1e-6, self._closed_at_server)

    def cut(self) -> None:
        """The network breaks it: both ends notice."""
        self.broken()

    # ---- the server's end ---------------------------------------------------------------------------

    def _closed_at_server(self) -> None:
        self.server.submit(self._end)

    def _end(self) -> None:
        self.session.close()
        self.server.wires.pop(self, None)

    def broken(self) -> None:
        """The server closes it."""
        self._end()
        if self._exchange:
            self.server.engine.after(self._latency(), self._fail, self._exchange, True, "connection lost")

    def _arrive(self, exchange: int, commands: Sequence[Command], limit: int, answered: bool) -> None:
        if self.server.slow and not self.session.closed:
            self.server.engine.after(10.0, self.owner.timed_out, exchange)
        self.server.submit(self._execute, exchange, commands, 0, [], limit, answered)

    def _execute(
        self,
        exchange: int,
        commands: Sequence[Command],
        position: int,
        replies: list[Reply],
        limit: int,
        answered: bool,
    ) -> None:
        session = self.session
        if session.closed:
            return
        self.late = self.closed
        observer, engine = self.observer, self.server.engine
        while position < limit:
            observer.actor = self
            outcome = self.server.execute(session, commands[position])
            position += 1
            if isinstance(outcome, Blocked):
                self._blocked = outcome
                rest = (exchange, commands, position, replies, limit, answered)
                outcome.on_done = partial(self._unblocking, outcome, rest)
                self.server.watch_clock()
                return
            replies.append(outcome)
        if answered:
            engine.after(self._latency(), self._reply, exchange, replies)
        elif exchange == self._exchange:
            engine.after(self._latency(), self._fail, exchange, True, "reply lost")
            self._end()

    def _unblocking(self, blocked: Blocked, rest: tuple[Any, ...]) -> None:
        self.observer.handed_out(self, blocked.reply)
        self.server.engine.after(0.0, self._unblocked, blocked, rest)

    def _unblocked(self, blocked: Blocked, rest: tuple[Any, ...]) -> None:
        if not blocked.lost:
            exchange, commands, position, replies, limit, answered = rest
            replies.append(blocked.reply)
            self.server.submit(self._execute, exchange, commands, position, replies, limit, answered)

    # ---- back at the owner --------------------------------------------------------------------------

    def _reply(self, exchange: int, replies: list[Reply]) -> None:
        if exchange == self._exchange:
            self.owner.replied(exchange, replies)

    def _fail(self, exchange: int, unknown: bool, why: str) -> None:
        if exchange == self._exchange:
            self.owner.failed(exchange, unknown, why)

    def finished(self, exchange: int) -> None:
        """The owner has taken the outcome of the exchange."""
        if self._exchange == exchange:
            self._exchange = 0

    def _latency(self) -> float:
        return self._random.expovariate(1.0 / self.server.network.latency)
