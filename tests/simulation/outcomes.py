"""Each end of a task, written at the server or told to a user, has its cause in what handlers and users did.

    completed   the worker that ended its entry has run it, and the handler returned (I6)
    retried     that worker's handler has raised, or has taken longer than its timeout; one failure more (I3)
    dead        the same, with all retries used (I11), or the handler forbade a retry, or the entry had been
                delivered as often as it may be (I11)
    expired     not before its time; and none is started long after it
    cancelled   its user asked for it, and it never ran, nor will (I5)
    unknown     the server has lost something of the task, or its client was without a receiver since the server
                had the task, or the connection broke while it was being cancelled

What is told to a user is what was written before; a tracked task's notice is part of the transaction that ends it,
and says the same (I7). A task leaves the schedule when the server's clock says so, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamfleet_core.submission import Status

from .plan import Act
from .records import Change, Record, Run, Wish

if TYPE_CHECKING:
    from .observer import Observer

EARLY = 0.003
"""Seconds by which something may come too early: three clocks that count in whole milliseconds."""
NOTICES = {"completed": "completed", "expired": "expired", "dead": "error", "cancelled": "canceled"}
"""The type of the notice of each end."""
WRITTEN = {Status.COMPLETED: "completed", Status.FAILED: "dead", Status.EXPIRED: "expired"}
"""What must have been written before a user is told; expired and cancelled ones may never have been sent."""


class Outcomes:
    """See the module's text."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._world = observer.world

    # ---- what is written ----------------------------------------------------------------------------

    def changed(self, record: Record, change: Change) -> None:
        """A transaction has changed where a task is."""
        observer = self._observer
        if change.notices and not change.lost:
            observer.violated("I7", record.task_id, f"is notified as {change.notices}, but has not ended")
        wish = observer.wishes.get(record.task_id)
        if wish is None:
            return
        for _, failures in change.gained:
            if wish.task.max_retries is not None and failures > wish.task.max_retries:
                observer.violated("I11", record.task_id, f"{failures} retries, {wish.task.max_retries} allowed")
        if change.gained and not change.before and wish.resolved is Status.CANCELLED:
            self._unless_touched("I5", record.task_id, "is put into its queue though it was reported as cancelled")
        if observer.role != "settle" or not change.lost:
            return
        runs, failures = self._runs(record, change), change.lost[0][1]
        if change.gained:
            if not any(self._failed(run, wish) for run in runs):
                observer.violated("I3", record.task_id, f"is retried, but no handler has failed: {_acts(runs)}")
            if change.gained[0][1] != failures + 1:
                observer.violated("I3", record.task_id, f"is retried with {change.gained[0][1]} failures")
        elif change.letter is not None:
            self._put_aside(record, change, runs, wish)

    def _runs(self, record: Record, change: Change) -> list[Run]:
        """The runs of the entry that ends, by the process that ends it."""
        entry_id, worker = change.lost[0][0][1], self._observer.process
        runs = self._observer.runs_of.get(record.task_id, ())
        return [run for run in runs if run.entry_id == entry_id and run.worker == worker]

    def _failed(self, run: Run, wish: Wish) -> bool:
        """Has this attempt failed, so that there may be another one?"""
        world = self._world
        timeout = world.plan.timeout if wish.task.queue == world.plan.queues - 1 else 0.0
        too_long = bool(timeout) and world.engine.now - run.at >= timeout - EARLY
        return too_long or run.act in (Act.FAIL, Act.LATER)

    def _put_aside(self, record: Record, change: Change, runs: list[Run], wish: Wish) -> None:
        """A dead letter for what handlers did; `letter` judges those for the number of deliveries."""
        assert change.letter is not None, "put aside without a letter"
        reason = change.letter.get(b"dead_reason", b"").decode()
        if reason.startswith("delivered"):
            return
        most, failures = wish.task.max_retries, change.lost[0][1]
        forbidden = any(run.act is Act.FINAL for run in runs)
        used_up = any(self._failed(run, wish) for run in runs) and most is not None and failures >= most
        if not forbidden and not used_up:
            text = f"is dead ({reason}) after {failures} failures, {most} retries allowed; {_acts(runs)}"
            self._observer.violated("I11", record.task_id, text)

    def letter(self, record: Record, fields: dict[bytes, bytes]) -> None:
        """A dead letter is written; the entry that it is for is still there."""
        if b"delivered" not in fields.get(b"dead_reason", b""):
            return
        most = max((self._observer.owners.get(place, 0) for place in record.live), default=0)
        if most < self._world.max_deliveries:
            text = f"dead-lettered for its deliveries, but handed out {most} times"
            self._unless_touched("I11", record.task_id, text)

    def moved(self, task_id: str, due_ms: float, now_ms: int) -> None:
        """A worker takes a task out of the schedule."""
        if due_ms > now_ms and not self._world.clock_set:
            self._observer.violated("due", task_id, f"leaves the schedule {due_ms - now_ms:.0f} ms too early")

    def kind(self, record: Record, change: Change) -> str:
        """How a task has ended; without a notice, what ended without a handler's return has expired."""
        if record.dead:
            return "dead"
        if self._observer.role == "publish":
            return "cancelled"
        for kind in ("completed", "expired"):
            if NOTICES[kind] in change.notices:
                return kind
        wish = self._observer.wishes.get(record.task_id)
        expires = wish.expires_ms if wish else 0
        return "expired" if expires and not _returned(self._those_that_count(record, change)) else "completed"

    def _those_that_count(self, record: Record, change: Change) -> list[Run]:
        """Of an end that a worker writes, only its own runs of that entry count."""
        if self._observer.role == "settle" and change.lost:
            return self._runs(record, change)
        return self._observer.runs_of.get(record.task_id, [])

    def ended(self, record: Record, change: Change, kind: str) -> None:
        """A task has ended at the server."""
        observer, task_id = self._observer, record.task_id
        wish = observer.wishes.get(task_id)
        runs = self._those_that_count(record, change)
        if kind == "completed" and not _returned(runs):
            observer.violated("I6", task_id, f"completed, but no handler has completed it: {_acts(runs)}")
        if wish is None:
            return
        if kind == "expired":
            self._expired(task_id, wish)
        if kind == "cancelled" and (wish.cancelled_at is None or wish.client.name != observer.process):
            observer.violated("I5", task_id, "is cancelled, but its user has not asked for that")
        if kind == "cancelled" and task_id in observer.runs_of:
            self._unless_touched("I5", task_id, "is cancelled, but it had run")
        expected = [NOTICES[kind]] if wish.submission.tracked and observer.role == "settle" else []
        if change.notices != expected:
            observer.violated("I7", task_id, f"ends as {kind} with the notices {change.notices}")

    # ---- what handlers meet -------------------------------------------------------------------------

    def started(self, run: Run, place: tuple[bytes, bytes]) -> None:
        """A handler has been given a task."""
        world, observer = self._world, self._observer
        wish = observer.wishes.get(run.task_id)
        if wish is not None and wish.resolved is Status.CANCELLED:
            self._unless_touched("I5", run.task_id, "runs though it was reported as cancelled")
        if wish is not None and wish.expires_at and not world.clock_odd:
            holder = world.workers_by_name.get(run.worker)
            late = run.at - wish.expires_at - (holder.clock_error if holder else 0.0)
            if late > 0.3 + 10 * world.plan.network.latency:
                observer.violated("expiry", run.task_id, f"is started {late:.3f} s after its expiry")
        here = observer.starts[place]
        if here > world.max_deliveries:
            self._unless_touched("I11", run.task_id, f"entry {run.entry_id!r} runs for the {here}th time")

    # ---- what users are told ------------------------------------------------------------------------

    def told(self, wish: Wish, status: Status) -> None:
        """A handle has got its end."""
        observer, task_id = self._observer, wish.submission.id
        kinds = observer.terminal_kinds.get(task_id, set())
        sent = task_id in observer.accepted_at
        wanted = WRITTEN.get(status)
        if wanted is not None and wanted not in kinds and (sent or status is not Status.EXPIRED):
            text = f"{wish.client.name} was told {status.name}, but it is {kinds}"
            observer.violated("untrue", task_id, text)
        if status is Status.EXPIRED:
            self._expired(task_id, wish)
        elif status is Status.CANCELLED:
            self._told_cancelled(wish, kinds, sent=sent)
        elif status is Status.UNKNOWN and not self._excuse(wish):
            observer.violated("untrue", task_id, f"{wish.client.name} was told UNKNOWN, and nothing explains it")
        elif status is Status.REFUSED:
            observer.violated("untrue", task_id, f"{wish.client.name} was told REFUSED, and nobody refuses here")

    def _told_cancelled(self, wish: Wish, kinds: set[str], *, sent: bool) -> None:
        observer, task_id = self._observer, wish.submission.id
        if observer.runs_of.get(task_id):
            self._unless_touched("I5", task_id, "reported as cancelled, but it had run")
        elif sent and "cancelled" not in kinds:
            observer.violated("untrue", task_id, f"{wish.client.name} was told CANCELLED, but it is {kinds}")
        elif wish.cancelled_at is None and not wish.client.closing:
            observer.violated("untrue", task_id, f"{wish.client.name} was told CANCELLED without having asked")

    def _excuse(self, wish: Wish) -> str:
        """Why the outcome of a task may not be known; empty when it should be."""
        observer, task_id = self._observer, wish.submission.id
        if task_id in observer.touched:
            return "the server has lost something of it"
        if observer.receivers.missing_since(wish.client, observer.accepted_at.get(task_id, wish.enqueued_at)):
            return "its notice may have been lost"
        if wish.cancelled_at is not None and wish.client.broke_since(wish.cancelled_at):
            return "its cancellation may have been lost"
        return ""

    def _expired(self, task_id: str, wish: Wish) -> None:
        """Not before its time, however slow the network and whoever slept; a clock that was set is no measure."""
        early = wish.expires_at - self._world.engine.now
        if early > EARLY and not self._world.clock_set:
            self._observer.violated("expiry", task_id, f"has expired {early:.3f} s too early")

    def _unless_touched(self, invariant: str, task_id: str, text: str) -> None:
        """Forgiven to a task of which the server has lost something."""
        if task_id not in self._observer.touched:
            self._observer.violated(invariant, task_id, text)


def _returned(runs: list[Run]) -> bool:
    return any(run.act in (Act.OK, Act.HANG) for run in runs)


def _acts(runs: list[Run]) -> str:
    return ", ".join(run.act.name if run.act else "no end" for run in runs) or "no run"
