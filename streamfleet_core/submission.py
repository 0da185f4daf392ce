"""The life of a task at the client that enqueued it."""

from __future__ import annotations

from enum import Enum

from streamfleet_core.errors import (
    NotAccepted,
    OutcomeLost,
    TaskCancelled,
    TaskError,
    TaskExpired,
    TaskFailed,
)
from streamfleet_core.keys import QueueKeys
from streamfleet_core.wire import AT_DATA, AT_EXPIRES


class Status(Enum):
    """Where a submission is, as far as its client knows."""

    BUFFERED = "waits in the local buffer"
    SENT = "is on its way; the server's answer is not known yet"
    ACCEPTED = "the server has it"
    COMPLETED = "it completed"
    FAILED = "it failed for good"
    EXPIRED = "it was not started before its expiry"
    CANCELLED = "it was cancelled before it ran"
    REFUSED = "the server refused it; it is in no queue"
    UNKNOWN = "this client was collected meanwhile; the outcome is not known"

    @property
    def terminal(self) -> bool:
        """Does the status never change again?"""
        return self not in (Status.BUFFERED, Status.SENT, Status.ACCEPTED)


_BUFFERED = Status.BUFFERED


class Submission:
    """One enqueued task. The machine's record; a shell's handle looks at it."""

    __slots__ = (
        "__weakref__",
        "batch",
        "cancelling",
        "due_at",
        "due_ms",
        "error",
        "expires_at",
        "expires_ms",
        "fields",
        "id",
        "keys",
        "result",
        "status",
        "tracked",
        "waiter",
    )

    def __init__(
        self,
        keys: QueueKeys,
        task_id: str,
        fields: list[bytes],
        tracked: bool,
        expires_ms: int,
        due_at: float,
        due_ms: int,
    ) -> None:
        self.keys = keys
        self.id = task_id
        self.fields = fields
        self.tracked = tracked
        self.expires_ms = expires_ms
        self.expires_at = 0.0
        """Local monotonic time of a relative expiry; 0 = none."""
        self.due_at = due_at
        """Local monotonic time of a relative delay; 0 = none."""
        self.due_ms = due_ms
        """Unix ms of an absolute due time; 0 = none."""
        self.batch = 0
        """The number of the batch in which the server has accepted it."""
        self.status = _BUFFERED
        self.error = ""
        self.result: bytes | None = None
        self.cancelling = False
        """Has the server been asked to take it out of the schedule, and not answered yet?"""
        self.waiter: object = None
        """The shell's, while somebody waits for a change."""

    def expires(self, server_ms: int) -> None:
        """It expires when the server's clock shows ``server_ms``."""
        self.expires_ms = max(1, server_ms)
        self.fields[AT_EXPIRES] = b"%d" % self.expires_ms

    @property
    def scheduled(self) -> bool:
        """Is it to be run later?"""
        return bool(self.due_at or self.due_ms)

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return len(self.fields[AT_DATA])

    def failure(self) -> TaskError | NotAccepted | None:
        """What to raise to those who wait for the outcome; None while live, and on success."""
        status = self.status
        if status is Status.FAILED:
            return TaskFailed(f"task {self.id} failed for good: {self.error}")
        if status is Status.EXPIRED:
            return TaskExpired(f"task {self.id} expired before it was started")
        if status is Status.CANCELLED:
            return TaskCancelled(f"task {self.id} was cancelled before it ran")
        if status is Status.REFUSED:
            return NotAccepted(f"task {self.id} was not accepted: {self.error}")
        if status is Status.UNKNOWN:
            return OutcomeLost(f"task {self.id}: {self.error}")
        return None
