"""What is known of tasks, of the runs of their handlers, and of what clients wanted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from streamfleet_core.submission import Status, Submission

from .plan import Act, TaskPlan

if TYPE_CHECKING:
    from .processes import ClientProcess


@dataclass(slots=True)
class Record:
    """What the server's history says of one task."""

    label: str
    task_id: str
    live: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    """Its live entries (key and id) with the number of failures in each."""
    ended: list[str] = field(default_factory=list)
    """Its terminal states."""
    dead: int = 0
    accepted: bool = False

    def copy(self) -> Record:
        """An independent twin."""
        return replace(self, live=dict(self.live), ended=list(self.ended))


@dataclass(slots=True)
class Run:
    """One start of a handler."""

    task_id: str
    entry_id: bytes
    worker: str
    at: float
    ended: float | None = None
    act: Act | None = None


@dataclass(slots=True)
class Wish:
    """What a client asked for, and what it was told."""

    client: ClientProcess
    task: TaskPlan
    submission: Submission
    enqueued_at: float
    expires_ms: int
    expires_at: float
    """When it may not be started any more (virtual seconds); 0 is never."""
    resolved: Status | None = None
    cancelled_at: float | None = None
    """When its user asked for it not to run."""


@dataclass(slots=True)
class Change:
    """What one transaction does to one task. Entries stand with the number of failures in them."""

    before: int
    """How many live entries it had."""
    had_ended: bool
    gained: list[tuple[tuple[bytes, bytes], int]] = field(default_factory=list)
    lost: list[tuple[tuple[bytes, bytes], int]] = field(default_factory=list)
    letter: dict[bytes, bytes] | None = None
    """Its dead letter."""
    notices: list[str] = field(default_factory=list)
    """The types of its notices, whether or not there was a receiver for them."""
