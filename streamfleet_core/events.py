"""What the machines tell about themselves: facts for logs, metrics and callbacks, never needed for correctness."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class EventKind(Enum):
    """Every kind of event, with what it means to an operator."""

    DISCONNECTED = "the server is out of reach"
    RECONNECTED = "the server is back"
    REFUSED = "the server refuses for good: it stops here, and says why"
    BACKING_OFF = "the server asks for patience (out of memory, loading, too few replicas)"
    RECLAIMED = "entries of a silent worker were taken over"
    OWNERSHIP_LOST = "an entry was taken over by others; its outcome here was dropped"
    COMPLETED = "a task completed"
    RETRIED = "a task failed and will be tried again"
    DEAD_LETTERED = "a task failed for good and is kept among the dead letters"
    EXPIRED = "a task was not started before its expiry"
    TIMED_OUT = "a handler took longer than its timeout"
    LATE_RETURN = "a handler returned after its task had been settled without it"
    RELEASED = "entries were given back unstarted"
    GROUP_HEALED = "a missing consumer group or stream was created again"
    RESCUED = "a task whose transfer failed was put back into its queue"
    MARKER_REGRESSED = "the server lost accepted tasks; what was kept is sent again"
    COLLECTED = "this client was taken for dead and its receiver was removed"
    EXPIRED_LOCALLY = "a task expired before it could be sent"
    NOT_ACCEPTED = "the server refused a single task"
    SCHEDULE_BROKEN = "a scheduled task had no body and was dropped from the schedule"
    ORPHANS_RESTORED = "entries without an owner were given one"
    CLIENT_COLLECTED = "a dead client's receiver was removed"
    UNSAFE_SERVER = "the server's settings can lose tasks"
    HANDLERS_HANG = "so many handlers hang after they were given up that no more threads are added for them"
    RESULT_DROPPED = "a handler returned what cannot travel to the client"


@dataclass(frozen=True, slots=True)
class Event:
    """One fact. ``text`` is a complete sentence for people; ``data`` holds the same as values."""

    kind: EventKind
    text: str
    data: dict[str, object] = field(default_factory=dict)
