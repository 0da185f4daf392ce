"""The life of a task at a worker, and the rules by which it moves.

Theory of operation
===================

A *task* is what a user enqueues. It lives in a stream *entry*; a retry is a new entry with ``retries`` + 1,
and the old entry ends in the same transaction, so at most one live entry exists per task.

An entry that the server hands to a worker becomes a `Delivery` here and sits in the pending entries list
(PEL) of the worker's consumer until it is *settled*: completed, retried, dead-lettered or expired. The
worker owns it for a *lease*: as long as it renews the entry's idle time (a *beat*) others leave it alone.
An entry idle for longer than the lease is *reclaimed* by whoever sees it first.

Three things can go wrong with an owner, and each has one answer:

1. *It dies.* Its entries become idle and are reclaimed after the lease.
2. *It is suspended, and wakes up when others own its entries.* Each reclaim sets the queue's fence key to a
   new token in the same transaction, and each settlement is a transaction under a WATCH of the fence. So the
   settlement of a worker that missed a reclaim aborts. It then asks the server, entry by entry, whether it is
   still the owner (*verification*), settles what is, and drops what is not.
3. *Its connection breaks while a settlement is in flight.* Whether it was applied is unknown. On a new
   connection the worker sets the fence itself, so that the old transaction can no longer be applied, and then
   verifies: still pending for us means it was not applied; gone means that it was.

So each delivery remembers the fence value under which it was known to be ours (``fence``). While that is not
the value being watched, the delivery is *in doubt* and is verified before anything is written for it. Doubt
is not a phase: a running task can be in doubt, and goes on running.

A new connection may lead to a server that has lost its last seconds, and whose fence has an old value again. So
when the settling connection breaks, all deliveries are in doubt.

The value that counts is the one watched *before* the read that fetched the entry was sent: a reclaim between
the read's execution and its reply would otherwise be missed.

Beats and releases are writes too, and go under the same fence.

An outage makes everybody's entries look idle. So a worker reclaims only after one lease of its own
uninterrupted contact with the server (the *grace rule*): by then every live owner has beaten.

Phases
======

The table below is checked in one place, `Delivery.move`; the state diagram in the documentation is drawn
from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from streamfleet_core.safeguards import UNKNOWN, Fence

if TYPE_CHECKING:
    from streamfleet_core.keys import QueueKeys
    from streamfleet_core.wire import Task


class Phase(Enum):
    """Where a delivery is."""

    READY = "waits for a handler"
    RUNNING = "a handler works on it"
    SETTLING = "its outcome is decided and waits to be written"
    COMMITTING = "its outcome is being written"
    RELEASING = "is to be given back"
    RETURNING = "is being given back"
    SETTLED = "its entry has ended"
    RELEASED = "others may take it now"
    LOST = "others own it, or it is gone; nothing of ours is written"


TRANSITIONS: dict[Phase, dict[Phase, str]] = {
    Phase.READY: {
        Phase.RUNNING: "a handler takes it",
        Phase.SETTLING: "expired, undecodable or delivered too often",
        Phase.RELEASING: "the worker stops",
        Phase.LOST: "verification: not ours",
    },
    Phase.RUNNING: {
        Phase.SETTLING: "the handler returns, raises or takes too long",
        Phase.RELEASING: "the drain deadline has passed, or the handler was stopped without contact",
        Phase.LOST: "verification: not ours",
    },
    Phase.SETTLING: {
        Phase.COMMITTING: "pulled into a transaction",
        Phase.SETTLED: "verification after an unknown outcome: gone, so it had been applied",
        Phase.LOST: "verification: not ours",
    },
    Phase.COMMITTING: {
        Phase.SETTLED: "the transaction was applied",
        Phase.SETTLING: "aborted, refused, not sent or unknown",
    },
    Phase.RELEASING: {
        Phase.RETURNING: "pulled into a transaction",
        Phase.LOST: "verification: not ours",
    },
    Phase.RETURNING: {
        Phase.RELEASED: "the transaction was applied",
        Phase.RELEASING: "aborted, refused, not sent or unknown",
    },
    Phase.SETTLED: {},
    Phase.RELEASED: {},
    Phase.LOST: {},
}

# Enum members hash in Python code on CPython 3.11; the check runs four times per task, so it uses bits.
_BIT = {phase: 1 << number for number, phase in enumerate(Phase)}
for _phase, _targets in TRANSITIONS.items():
    _phase.bit = _BIT[_phase]  # type: ignore[attr-defined]
    _phase.successors = sum(_BIT[target] for target in _targets)  # type: ignore[attr-defined]

_READY = Phase.READY  # CPython 3.11 finds members through a descriptor: slow where it is done for each task

RELEASED_IDLE_MS = 365 * 86_400_000
"""The idle time given to released entries. Nothing else is idle for a year, so they can be told apart."""

TERMINAL = frozenset(phase for phase, targets in TRANSITIONS.items() if not targets)


class IllegalTransition(AssertionError):
    """A defect of the core: a delivery was moved against the table."""


class Verdict(Enum):
    """How an attempt ended, which decides what its settlement writes."""

    COMPLETED = "completed"
    RETRY = "retry"
    DEAD = "dead"
    EXPIRED = "expired"
    VANISHED = "vanished"
    """The entry was deleted by others while pending: only its PEL row is left."""


@dataclass(slots=True, eq=False)
class QueueState:
    """What a worker knows of one queue."""

    keys: QueueKeys
    timeout: float = 0.0
    """Seconds after which a handler's attempt counts as failed; 0 = never."""
    fence: Fence = UNKNOWN
    """The fence value under the settling connection's WATCH."""
    in_flight: dict[bytes, Delivery] = field(default_factory=dict)
    """Deliveries that are ours as far as we know, by entry id."""
    ended_meanwhile: set[bytes] | None = None
    """While a read of our history is on its way: entries that have ended since it was sent, but may be in it."""
    claiming: set[bytes] = field(default_factory=set)
    """Entries that a claim in flight will bring; whoever meets them elsewhere leaves them to it."""
    looked_at: dict[bytes, int] = field(default_factory=dict)
    """Entries of our history that were listed and perhaps not yet read: how often they were delivered then."""
    broken: int = 0
    """How often the settling connection has broken."""

    def disconnected(self) -> None:
        """The settling connection broke, and the next one may lead to a server that has gone back in time.

        There the fence may have a value again under which entries were taken that this server has never
        delivered. So nothing that was taken before is known to be ours any more.
        """
        self.broken += 1
        self.fence = UNKNOWN
        for delivery in self.in_flight.values():
            delivery.doubt()

    def fence_since(self, fence: Fence, broken: int) -> Fence:
        """The fence as it was when the settling connection had broken so often, unless it has broken since."""
        return fence if broken == self.broken else UNKNOWN


class Delivery:
    """One entry in our hands. The machine's own record; shells only pass it around."""

    # The dictionary holds what few deliveries have; for all others it is never made, and the class's values count.
    __slots__ = (
        "__dict__",
        "entry_id",
        "fence",
        "fields",
        "leased_from",
        "phase",
        "queue",
        "ran",
        "started",
        "task",
        "verdict",
    )

    deliveries: int = 1
    """The number of this delivery, as far as we know."""
    counted: bool = True
    """Do we know it? The server's count may be higher: to it, each read of our own history is a delivery too."""
    deadline: float = 0.0
    cancelled: str = ""
    """Why the handler should stop, or empty."""
    on_cancel: object = None
    """The shell's hook, called when ``cancelled`` is set; again when want of contact was only the first reason."""
    delay_ms: int = 0
    error: str = ""
    traceback: str = ""
    reason: str = ""
    result: bytes | None = None
    maybe_applied: bool = False
    """Its settlement was in flight when the connection broke."""

    def __init__(
        self,
        queue: QueueState,
        entry_id: bytes,
        task: Task | None,
        fields: list[bytes],
        fence: Fence,
        leased_from: float,
    ) -> None:
        self.queue = queue
        self.entry_id = entry_id
        self.task = task
        """None when the entry could not be decoded; ``fields`` then holds it as it came."""
        self.fields = fields
        self.fence = fence
        self.leased_from = leased_from
        """When the request that took or last renewed the entry was sent (monotonic seconds)."""
        self.phase = _READY
        self.ran = False
        self.started = 0.0
        self.verdict: Verdict | None = None

    def move(self, phase: Phase) -> None:
        """Go to ``phase``; the one place where the table is checked."""
        if not self.phase.successors & phase.bit:  # type: ignore[attr-defined]
            raise IllegalTransition(f"{self.entry_id!r}: {self.phase.name} to {phase.name}")
        self.phase = phase

    def doubt(self) -> None:
        """Forget that it is known to be ours."""
        self.fence = UNKNOWN

    def __repr__(self) -> str:
        return f"<Delivery {self.entry_id!r} {self.phase.name} {self.verdict}>"
