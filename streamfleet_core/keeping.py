"""What a client has sent and the server has accepted, kept for a while in case the server loses it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from streamfleet_core.config import ClientConfig
from streamfleet_core.connection import Reply, ServerError
from streamfleet_core.submission import Status, Submission

CHECKS = 3
"""How often the server is asked, while accepted tasks are kept, whether it still knows them."""


@dataclass(slots=True)
class Batch:
    """Tasks that are accepted together or not at all."""

    number: int
    submissions: list[Submission]
    accepted_at: float = 0.0

    def errors(self, results: list[Reply], positions: list[int]) -> list[tuple[Submission, ServerError, int]]:
        """Which tasks had a command that failed, with the error, and with its place among the results.

        ``positions``: where those of each task begin.
        """
        if not any(isinstance(result, ServerError) for result in results):
            return []
        found: list[tuple[Submission, ServerError, int]] = []
        for submission, position in zip(self.submissions, positions, strict=True):
            for place in range(position, position + (2 if submission.scheduled else 1)):
                result = results[place]
                if isinstance(result, ServerError):
                    found.append((submission, result, place))
        return found


class Kept:
    """Accepted batches, oldest first; no more and no longer than the configuration says."""

    __slots__ = ("_batches", "_config", "_tasks", "check_at")

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._batches: deque[Batch] = deque()
        self._tasks = 0
        self.check_at = 0.0
        """When to ask the server next (monotonic seconds), should nothing have been sent by then."""

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: Batch, now: float) -> None:
        """The server has accepted a batch."""
        batch.accepted_at = now
        self._batches.append(batch)
        self._tasks += len(batch.submissions)
        self.checked(now)
        self.drop_old(now)

    def checked(self, now: float) -> None:
        """The server has just been heard to know of all that is kept, or is being asked."""
        self.check_at = now + max(1.0, self._config.keep_seconds / CHECKS)

    def drop_old(self, now: float) -> None:
        """What is older than the limit has most likely run: sending it again would run it twice."""
        oldest = now - self._config.keep_seconds
        batches = self._batches
        while batches and (self._tasks > self._config.keep_tasks or batches[0].accepted_at < oldest):
            self._tasks -= len(batches.popleft().submissions)

    def take_lost(self, applied: int, now: float) -> list[Batch]:
        """Give up the batches after ``applied``, which the server has lost, with what is to be sent again."""
        self.drop_old(now)
        lost = [batch for batch in self._batches if batch.number > applied]
        self._batches = deque(batch for batch in self._batches if batch.number <= applied)
        self._tasks = sum(len(batch.submissions) for batch in self._batches)
        for batch in lost:
            # Unknown: the receive link was the first to see the loss. What was given up may never have run.
            submissions = batch.submissions
            batch.submissions = [s for s in submissions if not s.status.terminal or s.status is Status.UNKNOWN]
        return lost

    def let_go(self, submission: Submission) -> None:
        """It is not to be sent again, even if the server loses it."""
        for batch in self._batches:
            if submission in batch.submissions:
                batch.submissions.remove(submission)
                self._tasks -= 1
