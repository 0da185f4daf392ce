"""The link that keeps a worker's time.

It never wants a connection, so that its loop always sleeps until the next tick. All other loops may be waiting for
the replies of a silent server, just when handlers must be told to stop because others are about to take over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamfleet_core.connection import Reply, ServerIdentity
from streamfleet_core.link import Exchange, Link

if TYPE_CHECKING:
    from streamfleet_core.worker import WorkerMachine


class Timekeeper:
    """See the module's text. `WorkerMachine.step` ticks; this only says when."""

    __slots__ = ("_machine", "link")

    link: Link

    def __init__(self, machine: WorkerMachine) -> None:
        self._machine = machine

    def wanted(self) -> bool:
        """See `link.Duty.wanted`."""
        return False

    def finished(self) -> bool:
        """As soon as nothing will be settled any more."""
        lanes = self._machine.lanes.values()
        return all(lane.settle.refusal is not None or lane.settler.finished() for lane in lanes)

    def deadline(self) -> float:
        """See `link.Duty.deadline`."""
        return self._machine.next_tick

    def begin(self, identity: ServerIdentity, now: float) -> None:
        """Never called: there is no connection."""

    def pull(self, now: float) -> Exchange | None:
        """Never called."""

    def replies(self, replies: list[Reply], now: float) -> None:
        """Never called."""

    def lost(self, *, sent: bool, now: float) -> None:
        """Never called."""
