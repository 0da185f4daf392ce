"""The control link of a worker: what is done now and then (protocol, sections 5 to 7).

Each chore is a procedure: a generator that yields commands and is sent the answer. A lost connection ends the
procedure where it stands; all chores are safe to begin again.

    check      once per connection: key types, eviction policy, the server's clock
    reclaim    entries of silent consumers
    move       due tasks from the schedule into their stream
    sweep      receivers of dead clients, entries without an owner, consumers long gone
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from streamfleet_core.connection import Command, Reply, ServerIdentity
from streamfleet_core.link import FOREVER, Exchange, Link
from streamfleet_core.moving import Mover
from streamfleet_core.procedure import Answer, Steps
from streamfleet_core.reclaiming import Reclaimer
from streamfleet_core.startup import check_server
from streamfleet_core.state import QueueState
from streamfleet_core.sweeping import Sweeper

if TYPE_CHECKING:
    from streamfleet_core.worker import WorkerMachine


class Controller:
    """Runs one chore at a time, whichever is due."""

    __slots__ = (
        "_last_reply",
        "_machine",
        "_next",
        "_procedure",
        "_queues",
        "_sent_at",
        "contact_since",
        "link",
        "mover",
        "poll",
        "reclaimer",
        "sweeper",
    )

    link: Link

    def __init__(self, machine: WorkerMachine, queues: list[QueueState], now: float) -> None:
        config = machine.config
        self._machine = machine
        self._queues = queues
        self.poll = min(config.poll_interval, config.lease / 4)
        self.contact_since = now
        self.reclaimer = Reclaimer(machine, self, queues, now)
        self.mover = Mover(machine, self, queues, now)
        self.sweeper = Sweeper(machine, self, queues, now)
        self._procedure: Generator[list[Command], Answer, None] | None = None
        self._next: list[Command] = []
        self._sent_at = now
        self._last_reply = now

    def due_at(self, at: float) -> None:
        """This worker has put a task into the schedule, due at this local time (monotonic seconds)."""
        self.mover.due_at(at)
        self.link.kick()

    # ---- duty ---------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """See `link.Duty.wanted`."""
        return not self.finished()

    def finished(self) -> bool:
        """See `link.Duty.finished`."""
        if self._machine.time.gave_up:
            return True
        return self._machine.stopping and self._procedure is None and not self.mover.rescues

    def deadline(self) -> float:
        """See `link.Duty.deadline`."""
        return FOREVER if self._machine.stopping else min(at for at, _ in self._chores())

    def begin(self, identity: ServerIdentity, now: float) -> None:
        """See `link.Duty.begin`."""
        self.contact_since = self._last_reply = now
        self._start(self._greet())

    def pull(self, now: float) -> Exchange | None:
        """The next step of the chore at work, or of one that is due."""
        while self._procedure is None and not self._machine.stopping:
            at, chore = min(self._chores(), key=lambda pair: pair[0])
            if at > now:
                return None
            self._start(chore(now))
        if self._procedure is None:
            return None
        self._sent_at = now
        return Exchange(self._next)

    def replies(self, replies: list[Reply], now: float) -> None:
        """Let the chore go on. A long silence counts as an interruption of contact (grace rule)."""
        if now - self._last_reply > self.poll + self._machine.config.lease / 4:
            self.contact_since = now
        self._last_reply = now
        procedure = self._procedure
        assert procedure is not None, "replies without a procedure"
        try:
            self._next = procedure.send(Answer(replies, self._sent_at, now))
        except StopIteration:
            self._procedure = None

    def lost(self, *, sent: bool, now: float) -> None:
        """A claim may have been applied: our own PEL will tell."""
        if self._procedure is not None:
            self._procedure.close()
            self._procedure = None
            if sent:
                self._machine.lanes[self.link.slot].reader.reread()

    # ---- parts --------------------------------------------------------------------------------------

    def _greet(self) -> Steps:
        yield from self.mover.put_back()
        yield from check_server(self._machine, self.link, self._queues)

    def _chores(self) -> list[tuple[float, Callable[[float], Steps]]]:
        return [
            (self.mover.next_at, self.mover.move),
            (self.reclaimer.next_at, self.reclaimer.reclaim),
            (self.sweeper.next_at, self.sweeper.sweep),
        ]

    def _start(self, procedure: Steps) -> None:
        try:
            self._next = next(procedure)
        except StopIteration:
            return
        self._procedure = procedure
