"""Settling while the server is out of memory (protocol, section 4).

Outcomes that need memory (retries, dead letters, notices) wait. Those that only free memory go on, so that a full
server can be drained: in a transaction where the server allows it, without one where it refuses all (Redis up
to 7.0).
"""

from __future__ import annotations

from enum import Enum

from streamfleet_core.connection import Command, Reply, ServerError
from streamfleet_core.keys import GROUP
from streamfleet_core.settlement import count_back, release
from streamfleet_core.state import Delivery, Phase, Verdict

LEAN_PAUSE = 1.0
"""Seconds between attempts to write outcomes that need memory, while the server has none."""


class Memory(Enum):
    """How much of a settlement the server has memory for."""

    ENOUGH = "everything"
    LEAN = "only outcomes that add nothing"
    BARE = "not even those in a transaction"


class Pressure:
    """What the server has memory for, as far as we know."""

    __slots__ = ("memory", "until")

    def __init__(self) -> None:
        self.memory = Memory.ENOUGH
        self.until = 0.0
        """When to try everything again (monotonic seconds)."""

    def relax(self, now: float) -> None:
        """Time has passed: try everything again."""
        if self.memory is not Memory.ENOUGH and now >= self.until:
            self.memory = Memory.ENOUGH

    def rise(self, now: float) -> bool:
        """The server refused for lack of memory. False: there is nothing that we could leave out any more."""
        if self.memory is Memory.BARE:
            return False
        self.memory = Memory.LEAN if self.memory is Memory.ENOUGH else Memory.BARE
        self.until = now + LEAN_PAUSE
        return True


def needs_memory(delivery: Delivery) -> bool:
    """Does its settlement add something to the server?"""
    if delivery.phase is not Phase.SETTLING:
        return False
    if delivery.verdict in (Verdict.RETRY, Verdict.DEAD):
        return True
    return delivery.task is not None and delivery.task.notify


def bare_commands(deliveries: list[tuple[Delivery, Phase]], consumer: bytes, young_ms: int) -> list[Command]:
    """End, give back or renew entries whose owner has just been asked for.

    XDEL comes before XACK, so that a crash in between leaves a pending entry without a body, and never a body that
    nobody will run. A beat claims only what has been idle for a while, so that it cannot take back what was
    reclaimed just now.
    """
    commands: list[Command] = []
    for delivery, phase in deliveries:
        stream, entry_id = delivery.queue.keys.stream, delivery.entry_id
        if phase is Phase.SETTLING:
            commands += [("XDEL", stream, entry_id), ("XACK", stream, GROUP, entry_id)]
        elif phase is Phase.RELEASING:
            commands.append(release(stream, consumer, [entry_id], *count_back(delivery)))
        else:
            commands.append(("XCLAIM", stream, GROUP, consumer, young_ms, entry_id, "JUSTID"))
    return commands


def bare_replies(deliveries: list[tuple[Delivery, Phase]], replies: list[Reply]) -> list[Reply]:
    """One reply for each delivery: the error where there was one, else the last."""
    answers = iter(replies)
    merged: list[Reply] = []
    for _, phase in deliveries:
        reply = next(answers)
        if phase is Phase.SETTLING:
            last = next(answers)
            reply = reply if isinstance(reply, ServerError) else last
        merged.append(reply)
    return merged
