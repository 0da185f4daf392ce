"""One link per connection role and slot: when to connect, what to exchange, how long to sleep.

A shell drives a link with one loop:

    action = link.step(now)
    Connect     open a connection; report `connected` or `connect_failed`
    Exchange    exchange the batch on it; report `replies_received` or `connection_lost`
    Disconnect  close it
    Sleep       wait until the time given, or until the link is kicked
    Finished    close it and end the loop

A link has at most one batch in flight. Batches are pulled when the connection is free, so whatever gathers
while one batch is in flight leaves with the next: back-pressure and group commit in one. A batch that was
meant for a connection dies with it; what it carried goes back to the duty, which knows how to resolve it.

What is sent over a link is its *duty*'s business (`Duty`): publish, receive, read, settle, control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from streamfleet_core.connection import Command, Reply, ServerError, ServerIdentity
from streamfleet_core.errors import ServerRefused
from streamfleet_core.events import Event, EventKind
from streamfleet_core.replies import ErrorKind, classify, refusal

FIRST_BACKOFF = 0.05
LARGEST_BACKOFF = 1.0
CONNECT_TIMEOUT = 5.0
EXCHANGE_TIMEOUT = 10.0
FOREVER = float("inf")


class Role(Enum):
    """What a connection is for."""

    PUBLISH = "publish"
    RECEIVE = "receive"
    READ = "read"
    SETTLE = "settle"
    CONTROL = "control"
    TIME = "time"
    """Never has one: its loop keeps the time."""


@dataclass(slots=True)
class Connect:
    """Open a connection within ``timeout`` seconds."""

    timeout: float


@dataclass(slots=True)
class Exchange:
    """Exchange these commands within ``timeout`` seconds; ``blocking`` marks a read that may be interrupted."""

    commands: list[Command]
    timeout: float = EXCHANGE_TIMEOUT
    blocking: bool = False


@dataclass(slots=True)
class Disconnect:
    """Close the connection; it is not needed for now."""


@dataclass(slots=True)
class Sleep:
    """Nothing to do until ``until`` (monotonic seconds), unless the link is kicked."""

    until: float


@dataclass(slots=True)
class Finished:
    """Close the connection and end the loop."""


Action: TypeAlias = Connect | Exchange | Disconnect | Sleep | Finished


class Duty(Protocol):
    """What a link is for. Called only while connected, except `wanted`, `finished`, `deadline` and `lost`."""

    def wanted(self) -> bool:
        """Is a connection needed?"""

    def finished(self) -> bool:
        """Has the duty ended for good?"""

    def deadline(self) -> float:
        """The next time (monotonic seconds) at which `pull` may have something though nobody kicked."""

    def begin(self, identity: ServerIdentity, now: float) -> None:
        """A new connection stands."""

    def pull(self, now: float) -> Exchange | None:
        """The next batch, or None when there is nothing to send."""

    def replies(self, replies: list[Reply], now: float) -> None:
        """The replies to the batch pulled last."""

    def lost(self, *, sent: bool, now: float) -> None:
        """The connection broke. ``sent``: a batch was in flight and some of its bytes may have left."""


class Outage:
    """Tells once when a machine's links lose the server, and once when all of them have it back."""

    __slots__ = ("_detail", "_down", "_emit", "_since", "_told", "_up")

    def __init__(self, emit: Callable[[Event], None], detail: Callable[[], str]) -> None:
        self._emit = emit
        self._detail = detail
        self._up: set[tuple[Role, int]] = set()
        self._down: set[tuple[Role, int]] = set()
        self._told = False
        self._since = 0.0

    def lost(self, role: Role, slot: int, error: Exception, now: float) -> None:
        """A link has lost its connection, or cannot make one."""
        if not self._told:
            self._told = True
            self._since = now
            self._emit(
                Event(EventKind.DISCONNECTED, f"no connection to the server: {error}", {"role": role.value})
            )
        self._down.add((role, slot))
        self._up.discard((role, slot))

    def back(self, role: Role, slot: int, now: float) -> None:
        """A link has a connection."""
        self._down.discard((role, slot))
        self._up.add((role, slot))
        self._tell_end(now)

    def unneeded(self, role: Role, slot: int, now: float) -> None:
        """A link does not need a connection any more: the outage ends without it, if others have theirs."""
        self._down.discard((role, slot))
        self._up.discard((role, slot))
        self._tell_end(now)

    def _tell_end(self, now: float) -> None:
        if self._told and self._up and not self._down:
            self._told = False
            seconds = now - self._since
            text = f"connected again after {seconds:.1f} s{self._detail()}"
            self._emit(Event(EventKind.RECONNECTED, text, {"seconds": seconds}))


class Link:
    """The life of one connection. See the module's text."""

    __slots__ = (
        "_answered",
        "_calm_at",
        "_connected",
        "_emit",
        "_failures",
        "_in_flight",
        "_longest_pause",
        "_outage",
        "_random",
        "_resume_at",
        "duty",
        "identity",
        "kicked",
        "last_error",
        "on_kick",
        "refusal",
        "role",
        "sleeping",
        "slot",
        "stopped",
    )

    def __init__(
        self,
        role: Role,
        slot: int,
        duty: Duty,
        random: Callable[[], float],
        emit: Callable[[Event], None],
        outage: Outage,
        on_kick: Callable[[Link], None],
        longest_pause: float = LARGEST_BACKOFF,
    ) -> None:
        self.role = role
        self.slot = slot
        self.duty = duty
        self.identity: ServerIdentity | None = None
        self.refusal: ServerRefused | None = None
        """Set when the server refuses for good; the link then finishes."""
        self.last_error: str = ""
        self.stopped = False
        self.sleeping = False
        self.kicked = False
        self.on_kick = on_kick
        self._random = random
        self._emit = emit
        self._outage = outage
        self._connected = False
        self._in_flight = False
        self._failures = 0
        self._answered = False
        """Has there been a good answer since the last trouble?"""
        self._calm_at = 0.0
        """From then on it ends the growth of pauses. A duty that asks before it writes hears some in between."""
        self._longest_pause = longest_pause
        self._resume_at = 0.0

    @property
    def connected_now(self) -> bool:
        """Does a connection stand?"""
        return self._connected

    def kick(self) -> None:
        """There may be something to do: end the shell's sleep."""
        if self.sleeping and not self.kicked:
            self.kicked = True
            self.on_kick(self)

    def stop(self) -> None:
        """Finish at the next step, whatever is left to do."""
        self.stopped = True
        self.kick()

    def step(self, now: float) -> Action:
        """What the shell should do next (see the module's text)."""
        self.sleeping = self.kicked = False
        if self.stopped or self.refusal is not None or self.duty.finished():
            return self._finish(now)
        if now < self._resume_at:
            return self._sleep(self._resume_at)
        if not self._connected:
            if self.duty.wanted():
                return Connect(CONNECT_TIMEOUT)
            self._outage.unneeded(self.role, self.slot, now)
            return self._sleep(self.duty.deadline())
        batch = self.duty.pull(now)
        if batch is not None:
            self._in_flight = True
            return batch
        if self.refusal is not None or self.duty.finished():
            return self._finish(now)
        if not self.duty.wanted():
            self._connected = False
            return Disconnect()
        return self._sleep(max(self._resume_at, self.duty.deadline()))

    def _finish(self, now: float) -> Finished:
        self._outage.unneeded(self.role, self.slot, now)
        return Finished()

    def _sleep(self, until: float) -> Sleep:
        self.sleeping = True
        return Sleep(until)

    def connected(self, identity: ServerIdentity, now: float) -> None:
        """A connection stands."""
        self.identity = identity
        self._connected = True
        self._outage.back(self.role, self.slot, now)
        self.duty.begin(identity, now)

    def connect_failed(self, error: Exception, now: float) -> None:
        """No connection could be made. A `ServerRefused` ends the link, anything else is tried again."""
        if isinstance(error, ServerRefused):
            self.refuse(error)
            return
        self._note_outage(error, now)
        self._back_off(now)

    def replies_received(self, replies: list[Reply], now: float) -> None:
        """The batch in flight has been answered."""
        self._in_flight = False
        failures = self._failures
        self.duty.replies(replies, now)
        if self._failures == failures:  # else the answer was one more of them
            self._answered = True

    def connection_lost(self, error: Exception, *, outcome_unknown: bool, now: float) -> None:
        """The connection broke, during an exchange or while idle."""
        sent = self._in_flight and outcome_unknown
        self._in_flight = self._connected = False
        self.duty.lost(sent=sent, now=now)
        if not self.duty.finished():
            self._note_outage(error, now)
            self._back_off(now)

    def wait(self, now: float, seconds: float) -> None:
        """Send nothing for a while: the server asked for patience."""
        self._resume_at = max(self._resume_at, now + seconds)

    def back_off(self, now: float, why: str) -> None:
        """The server answers but cannot serve: wait, longer each time."""
        self._emit(Event(EventKind.BACKING_OFF, f"{self.role.value}: {why}", {"role": self.role.value}))
        self._back_off(now)

    def trouble(self, error: ServerError, command: Command, now: float) -> None:
        """An error reply that the duty has no answer to: wait when it may pass, stop when it will not."""
        if classify(error) in (ErrorKind.TRY_AGAIN, ErrorKind.BACK_OFF, ErrorKind.ABORTED):
            self.back_off(now, error.message)
        else:
            self.refuse(self.explain(error, command))

    def explain(self, error: ServerError, command: Command) -> ServerRefused:
        """The error as an exception for people."""
        return refusal(error, command, self.identity.user if self.identity else "default")

    def refuse(self, error: ServerRefused) -> None:
        """The server refuses for good."""
        if self.refusal is None:
            self.refusal = error
            self._emit(Event(EventKind.REFUSED, str(error), {"role": self.role.value}))

    def _back_off(self, now: float) -> None:
        if self._answered and now >= self._calm_at:
            self._failures = 0
        self._answered = False
        pause = min(self._longest_pause, FIRST_BACKOFF * 2 ** min(self._failures, 10))
        self._failures += 1
        self._resume_at = now + pause * (0.5 + 0.5 * self._random())
        self._calm_at = self._resume_at + pause

    def _note_outage(self, error: Exception, now: float) -> None:
        self.last_error = str(error)
        self._outage.lost(self.role, self.slot, error, now)
