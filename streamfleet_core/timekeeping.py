"""The link that keeps a worker's time.

It never wants a connection, so that its loop always sleeps until the next tick. All other loops may be waiting for
the replies of a silent server, just when handlers must be told to stop because others are about to take over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamfleet_core.connection import Reply, ServerIdentity
from streamfleet_core.events import EventKind
from streamfleet_core.link import FOREVER, Exchange, Link
from streamfleet_core.state import Delivery, Phase

if TYPE_CHECKING:
    from streamfleet_core.worker import WorkerMachine

NO_CONTACT = "no contact to the server: others will take the task over"
"""Why handlers are told to stop before their lease ends, unless contact comes back first."""
CANCEL_AT = 0.9
"""The part of the lease after which, without a beat, handlers are told to stop and none is started."""


class Timekeeper:
    """See the module's text."""

    __slots__ = ("_machine", "_timed", "gave_up", "link", "next_tick", "patience", "stop_at")

    link: Link

    def __init__(self, machine: WorkerMachine, now: float) -> None:
        self._machine = machine
        self.patience = machine.config.lease * CANCEL_AT
        """Seconds after its last renewal for which an entry is surely ours."""
        self._timed: dict[Delivery, None] = {}
        """Running deliveries with a timeout."""
        self.next_tick = now
        """When `tick` is to be called next (monotonic seconds)."""
        self.stop_at = FOREVER
        """When running handlers are given up."""
        self.gave_up = False
        """A lease later there were still entries in our hands, and are no more."""

    # ---- what the machine calls ---------------------------------------------------------------------

    def started(self, delivery: Delivery, now: float) -> None:
        """A handler begins: in time it may have to be told to stop."""
        first = delivery.leased_from + self.patience
        timeout = delivery.queue.timeout
        if timeout:
            delivery.deadline = now + timeout
            self._timed[delivery] = None
            first = min(first, delivery.deadline)
        if first < self.next_tick:
            self.next_tick = first
            self.link.kick()

    def ended(self, delivery: Delivery) -> None:
        """It does not run any more."""
        self._timed.pop(delivery, None)

    def stop(self, at: float) -> None:
        """Give running handlers up at this time; a second call can only make it earlier."""
        self.stop_at = min(self.stop_at, at)
        self.next_tick = min(self.next_tick, self.stop_at)

    def tick(self, now: float) -> None:
        """Time out handlers, and tell those without contact to stop before others take their entries over."""
        machine = self._machine
        lease = machine.config.lease
        self.next_tick = now + lease / 8
        for delivery in [d for d in self._timed if d.deadline <= now]:
            machine.time_out(delivery)
        if self._timed:
            self.next_tick = min(self.next_tick, min(d.deadline for d in self._timed))
        for queue in machine.queues.values():
            if queue.in_flight:
                machine.lane_of(queue).settle.kick()  # it sleeps without end while it has nothing to renew
            for delivery in queue.in_flight.values():
                if delivery.phase is Phase.RUNNING and not delivery.cancelled:
                    until = delivery.leased_from + self.patience
                    if until <= now:
                        machine.cancel(delivery, NO_CONTACT)
                    else:
                        self.next_tick = min(self.next_tick, until)
        if now < self.stop_at:
            self.next_tick = min(self.next_tick, self.stop_at)
        elif not self.gave_up:
            machine.give_up_running()
            end = self.stop_at + lease
            if now < end:
                self.next_tick = end
                return
            self.gave_up = True
            if held := machine.held:
                text = f"stopped with {held} entries neither settled nor given back; others will take them over"
                machine.emit(EventKind.RELEASED, text, entries=held)
            machine.kick_all()

    # ---- duty ---------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """See `link.Duty.wanted`."""
        return False

    def finished(self) -> bool:
        """As soon as nothing will be settled any more."""
        lanes = self._machine.lanes.values()
        return all(lane.settle.refusal is not None or lane.settler.finished() for lane in lanes)

    def deadline(self) -> float:
        """See `link.Duty.deadline`."""
        return self.next_tick

    def begin(self, identity: ServerIdentity, now: float) -> None:
        """Never called: there is no connection."""

    def pull(self, now: float) -> Exchange | None:
        """Never called."""

    def replies(self, replies: list[Reply], now: float) -> None:
        """Never called."""

    def lost(self, *, sent: bool, now: float) -> None:
        """Never called."""
