"""Every error that streamfleet raises.

    StreamfleetError
    ├── UsageError (also ValueError)      an argument is wrong; nothing was sent, nothing was lost
    │   ├── InvalidQueueName
    │   ├── InvalidTask                    payload, delay, expiry or retry settings out of range
    │   ├── InvalidURL
    │   ├── InvalidHandler                 duplicate or unusable handler
    │   └── WrongDriver                    this driver does not serve this shell
    ├── MissingExtra (also ImportError)    an optional dependency is not installed
    ├── BufferFull                         the client's local buffer stayed full for too long
    ├── NotAccepted                        the server has not accepted the task in time, or never will
    ├── NotTracked                         the outcome of an untracked task was asked for
    ├── Closed                             the client or worker has been closed
    ├── TaskError                          a tracked task ended without success
    │   ├── TaskFailed                     it failed for good (its last error is in the message)
    │   ├── TaskExpired                    it was not started before its expiry
    │   ├── TaskCancelled                  it was cancelled before it ran
    │   └── OutcomeLost                    this client was collected meanwhile; the outcome is not known
    ├── ConnectionFailure                  what a driver raises; the core resolves these by itself
    │   ├── NotSent                        the request did not leave: safe to send again
    │   └── OutcomeUnknown                 the request may have been applied
    └── ServerRefused                      the server answers, but will not do what is needed
        ├── AuthenticationFailed
        ├── PermissionMissing              an ACL right is missing: which command, which user
        ├── WrongKeyType                   a key of ours holds another type: which key, which type
        └── UnsupportedServer              the server lacks a needed command

Raised by handlers to steer their task, not errors of the library:

    HandlerSignal
    ├── RetryLater                         run again after a delay; counts as an attempt
    └── DoNotRetry                         fail for good now
"""

from __future__ import annotations


class StreamfleetError(Exception):
    """Base of all errors of the library."""


class UsageError(StreamfleetError, ValueError):
    """An argument is wrong; nothing was sent."""


class InvalidQueueName(UsageError):
    """The queue name is empty, too long or collides with a key of the protocol."""


class InvalidTask(UsageError):
    """Payload, delay, expiry or retry settings are out of range."""


class InvalidURL(UsageError):
    """The server's URL cannot be understood."""


class InvalidHandler(UsageError):
    """A handler is a duplicate, or not usable as one."""


class WrongDriver(UsageError):
    """The driver does not serve this shell."""


class MissingExtra(StreamfleetError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class BufferFull(StreamfleetError):
    """The client's local buffer stayed full; the refused task was not accepted, earlier ones are kept."""


class NotAccepted(StreamfleetError):
    """The server has not accepted the task in time, or the task never left this client."""


class NotTracked(StreamfleetError):
    """The task was enqueued without tracking: its outcome is not sent to anyone."""


class Closed(StreamfleetError):
    """The client or worker has been closed."""


class TaskError(StreamfleetError):
    """A tracked task ended without success."""


class TaskFailed(TaskError):
    """The task failed for good."""


class TaskExpired(TaskError):
    """The task was not started before its expiry."""


class TaskCancelled(TaskError):
    """The task was cancelled before it ran."""


class OutcomeLost(TaskError):
    """The client was garbage-collected by others while it was out of contact; the outcome is not known."""


class ConnectionFailure(StreamfleetError):
    """A connection could not be made or was lost."""


class NotSent(ConnectionFailure):
    """No byte of the request left: it is safe to send it again."""


class OutcomeUnknown(ConnectionFailure):
    """The request, or a part of it, may have been applied by the server."""


class ServerRefused(StreamfleetError):
    """The server answers, but will not do what is needed until somebody changes its settings."""


class AuthenticationFailed(ServerRefused):
    """The user name or password is wrong or missing."""


class PermissionMissing(ServerRefused):
    """The user lacks an ACL right."""


class WrongKeyType(ServerRefused):
    """A key that the protocol needs holds another type."""


class UnsupportedServer(ServerRefused):
    """The server lacks a command that is needed."""


class HandlerSignal(Exception):
    """Base of what a handler raises to steer its task."""


class RetryLater(HandlerSignal):
    """Run the task again after ``delay`` seconds. Counts as an attempt.

    Raises ValueError when the delay is negative.
    """

    def __init__(self, delay: float, reason: str = "") -> None:
        if not delay >= 0:
            raise ValueError(f"RetryLater delay must be zero or more seconds, got {delay!r}")
        super().__init__(reason or f"retry in {delay} s")
        self.delay = delay


class DoNotRetry(HandlerSignal):
    """Fail the task for good now, whatever retries are left."""
