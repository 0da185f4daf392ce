"""What a client hands out for each task that it takes."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from streamfleet_core.errors import Closed, NotTracked
from streamfleet_core.submission import Status, Submission

if TYPE_CHECKING:
    from streamfleet.sync.client import Client


class Handle:
    """One enqueued task, as its client knows it."""

    __slots__ = ("_client", "_submission")

    def __init__(self, client: Client, submission: Submission) -> None:
        self._client = client
        self._submission = submission

    @property
    def id(self) -> str:
        """The task's id."""
        return self._submission.id

    @property
    def queue(self) -> str:
        """The queue it was enqueued to."""
        return self._submission.keys.queue

    @property
    def status(self) -> Status:
        """Where it is, as far as this client knows. An untracked task stays ACCEPTED."""
        return self._submission.status

    @property
    def done(self) -> bool:
        """Is its outcome known?"""
        return self._submission.status.terminal

    def accepted(self, timeout: float | None = None) -> None:
        """Wait until the server has the task (``timeout`` in seconds; None: without end).

        Raises TimeoutError, NotAccepted when the server refused it, TaskExpired or TaskCancelled when it
        never left, Closed, and a ServerRefused when the server will not work with this client.
        """
        self._wait(timeout, (Status.BUFFERED, Status.SENT), "accepted")
        if self._submission.status in (Status.REFUSED, Status.EXPIRED, Status.CANCELLED):
            failure = self._submission.failure()
            if failure is not None:
                raise failure

    def wait(self, timeout: float | None = None) -> bytes | None:
        """Wait for the outcome (``timeout`` in seconds; None: without end) and return what the handler returned.

        Raises TimeoutError, NotTracked for an untracked task, TaskFailed, TaskExpired, TaskCancelled,
        OutcomeLost, NotAccepted, Closed, and a ServerRefused when the server will not work with this client.
        """
        submission = self._submission
        if not submission.tracked and submission.status is not Status.EXPIRED:
            raise NotTracked(f"task {self.id} is not tracked: use enqueue_tracked to learn its outcome")
        self._wait(timeout, (Status.BUFFERED, Status.SENT, Status.ACCEPTED), "finished")
        failure = submission.failure()
        if failure is not None:
            raise failure
        return submission.result

    def cancel(self, timeout: float | None = 5.0) -> bool:
        """Cancel the task if it has not left this client, or is still in the schedule. True: it never runs.

        Raises TimeoutError when the server does not answer within ``timeout`` seconds.
        """
        return self._client._cancel(self._submission, timeout)

    def _wait(self, timeout: float | None, until_not: tuple[Status, ...], what: str) -> None:
        submission, client = self._submission, self._client
        if submission.status not in until_not:
            return
        deadline = None if timeout is None else monotonic() + timeout
        with client._loops.lock:
            waiter = client._waiter_of(submission)
            while submission.status in until_not:
                client._check_alive()
                if client._ended:
                    raise Closed(f"the client was closed before task {self.id} was {what}")
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    now = submission.status.name.lower()
                    raise TimeoutError(f"task {self.id} was not {what} within {timeout:g} s; it is {now}")
                client._loops.wait(waiter, left)

    def __repr__(self) -> str:
        return f"<Handle {self.id} {self.status.name}>"
