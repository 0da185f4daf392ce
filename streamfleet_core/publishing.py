"""The publish link of a client: duplicate-safe enqueue by the marker (protocol, section 3).

Tasks leave in numbered batches, one in flight at a time:

    MULTI  XADD …  HSET marker s <number>  EXEC      WATCH marker      (one write)

The number is stored by the transaction that stores the tasks. After a broken connection the marker says
whether the batch in flight was applied. Reading it is not enough, for the old transaction may still arrive:
so reconnecting writes the marker (HINCRBY), and each transaction runs under a WATCH of it.

Accepted batches are kept for a while. Should the marker go backwards, the server has lost them (a failover,
a restart without its data), and they are sent again.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

from streamfleet_core import outcomes, safeguards
from streamfleet_core.connection import Command, Reply, ServerError, ServerIdentity
from streamfleet_core.events import EventKind
from streamfleet_core.keeping import Batch, Kept
from streamfleet_core.keys import QueueKeys, receiver_key
from streamfleet_core.link import FOREVER, Exchange, Link
from streamfleet_core.receiving import Receiver
from streamfleet_core.registering import Registration
from streamfleet_core.replies import ErrorKind, abort_cause, classify, parse_time
from streamfleet_core.submission import Status, Submission
from streamfleet_core.wire import AT_DATA, has_failed

if TYPE_CHECKING:
    from streamfleet_core.client import ClientMachine

MARKER_REFRESH = 3600.0
"""Seconds after which the marker's time to live is renewed, if not a quarter of that time is less."""


# CPython 3.11 finds members through a descriptor: slow where it is done for each task.
_BUFFERED, _SENT = Status.BUFFERED, Status.SENT


class Stage(Enum):
    """What the exchange in flight was for."""

    GREET = "announce ourselves at the marker and read it"
    REGISTER = "enter the receiver"
    PUBLISH = "a batch"
    CHECK = "ask the marker whether the server still knows what it has accepted"
    LOOK = "has a task that is to be cancelled run before?"
    CANCEL = "take a task out of the schedule"
    CLEAN = "remove what is ours"


class Publisher:
    """See the module's text."""

    __slots__ = (
        "_accepted",
        "_batch",
        "_buffer",
        "_cancel_unknown",
        "_cancelled_last",
        "_cancels",
        "_client_id",
        "_commands",
        "_kept",
        "_last",
        "_leaving",
        "_looked",
        "_machine",
        "_marker",
        "_positions",
        "_queues",
        "_ready",
        "_receiver",
        "_refresh_at",
        "_registration",
        "_resend",
        "_said_goodbye",
        "_sent_at",
        "_stage",
        "_touched",
        "link",
        "receiver_gone",
    )

    link: Link

    def __init__(
        self,
        machine: ClientMachine,
        client_id: str,
        marker: bytes,
        queues: dict[str, QueueKeys],
        receiver: Receiver,
    ) -> None:
        self._machine = machine
        self._client_id = client_id
        self._marker = marker
        self._queues = queues
        self._receiver = receiver
        self._registration = Registration(client_id, queues, receiver)
        self._buffer: deque[Submission] = deque()
        self._batch: Batch | None = None
        """The batch in flight, or whose outcome is unknown."""
        self._resend: deque[Batch] = deque()
        """Batches to be sent again, before anything new."""
        self._kept = Kept(machine.config)
        """Accepted batches, oldest first."""
        self._last = 0
        """The largest batch number used."""
        self._accepted = 0
        """The largest batch number that the server has confirmed."""
        self._touched = False
        """Has the server been told anything that is to be removed at the end?"""
        self._ready = False
        self._stage = Stage.GREET
        self._cancels: deque[Submission] = deque()
        self._cancel_unknown = False
        self._cancelled_last = False
        """Cancels and batches take turns."""
        self._leaving = False
        """Was the marker told to go? Should the reply be lost: its absence is no loss."""
        self._looked = False
        """Was the first task that is to be cancelled looked at, under a WATCH that stands, and has not run?"""
        self._commands: list[Command] = []
        self._positions: list[int] = []
        self._sent_at = 0.0
        self._refresh_at = FOREVER
        self._said_goodbye = False
        self.receiver_gone = False

    def add(self, submission: Submission) -> None:
        """A task was enqueued."""
        self._buffer.append(submission)
        if self.link.sleeping:
            self.link.kick()

    def cancel(self, submission: Submission) -> None:
        """A task is to be taken out of the schedule."""
        self._cancels.append(submission)
        self.link.kick()

    def abandon(self) -> None:
        """What has not been sent is given up; its submissions say so."""
        for submission in self._buffer:
            if submission.status is Status.BUFFERED:
                self._machine.left_buffer(submission)
                self._machine.pending -= 1
                self._machine.abandoned += 1
                self._machine.resolve(submission, Status.CANCELLED)
        self._buffer.clear()

    # ---- duty ---------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """Connected while there is something to send, and from then on."""
        return self._touched or bool(self._buffer)

    def finished(self) -> bool:
        """See `link.Duty.finished`."""
        if not self._machine.closing:
            return False
        return self._said_goodbye or not self.wanted()

    def deadline(self) -> float:
        """See `link.Duty.deadline`."""
        check_at = self._kept.check_at if self._kept else FOREVER
        return min(check_at, self._refresh_at)

    def begin(self, identity: ServerIdentity, now: float) -> None:
        """See `link.Duty.begin`."""
        self._ready = False

    def pull(self, now: float) -> Exchange | None:
        """Greet, register, publish, cancel, or say goodbye: whatever comes next."""
        self._sent_at = now
        if self._leaving:
            return self._clean()
        if not self._ready or now >= self._refresh_at:
            return self._greet(now)  # also from time to time: a marker that expires looks like a loss
        if self._looked:
            return self._cancel(self._cancels[0])  # first: the EXEC of a batch would end the watch
        if self._receiver.forgotten:
            return self._register(now)
        in_turn = self._cancelled_last or self._batch is not None or self._resend
        if self._cancels and not in_turn:
            return self._look(self._cancels[0])  # else it would wait for as long as others are enqueued
        batch = self._next_batch(now)
        if batch is not None:
            if any(s.tracked and not self._receiver.knows(s.keys) for s in batch.submissions):
                return self._register(now)
            return self._publish(batch)
        if self._cancels:
            return self._look(self._cancels[0])
        if self._machine.closing and (self.receiver_gone or not self._receiver.has_stream):
            return self._clean()
        return self._check(now)

    def replies(self, replies: list[Reply], now: float) -> None:
        """Take the answer in, by stage."""
        stage = self._stage
        if stage is Stage.PUBLISH:
            self._published(replies, now)
        elif stage is Stage.GREET:
            self._greeted(replies, now)
        elif stage is Stage.REGISTER:
            self._registered(replies, now)
        elif stage is Stage.CHECK:
            self._checked(replies[0], now)
        elif stage is Stage.LOOK:
            self._seen(replies, now)
        elif stage is Stage.CANCEL:
            self._cancelled(replies, now)
        else:
            self._said_goodbye = True

    def lost(self, *, sent: bool, now: float) -> None:
        """The batch in flight stays as it is: the marker will tell whether it was applied."""
        if sent and self._stage is Stage.CANCEL:
            self._cancel_unknown = True

    # ---- greeting -----------------------------------------------------------------------------------

    def _greet(self, now: float) -> Exchange:
        self._stage = Stage.GREET
        self._touched = True
        lifetime = self._machine.config.marker_ttl
        self._refresh_at = now + min(MARKER_REFRESH, lifetime / 4)
        # In one transaction: a marker without its time to live would stay for ever, should nobody come back to it.
        # After a refusal the marker is still watched, and HINCRBY has made that watch abort what follows.
        self._commands = [
            ("UNWATCH",),
            ("MULTI",),
            ("HINCRBY", self._marker, "e", 1),
            ("HGET", self._marker, "s"),
            ("PEXPIRE", self._marker, int(lifetime * 1000)),
            ("EXEC",),
            ("TIME",),
            *safeguards.watch_marker(self._marker),
        ]
        return Exchange(self._commands)

    def _greeted(self, replies: list[Reply], now: float) -> None:
        result = replies[5]
        results = result if isinstance(result, list) else []
        told = [*zip(self._commands, replies, strict=True), *zip(self._commands[2:], results, strict=False)]
        for command, reply in told:
            if isinstance(reply, ServerError):
                self._trouble(abort_cause(reply) or reply, command, now)
                return
        assert results, "EXEC answers an array, as nothing is watched"
        self._machine.clock.observed(parse_time(replies[6]), self._sent_at, now)
        self._ready = True
        self._looked = False
        self._registration.begin()
        applied = safeguards.applied_batch(results[1])
        batch, self._batch = self._batch, None
        if batch is not None:
            self._resend.appendleft(batch)
        while self._resend and self._resend[0].number <= applied:  # or a lost tail that has come back
            self._confirm(self._resend.popleft(), now)
        if applied < self._accepted:
            self._regressed(applied, now)
        self._last = max(self._last, applied)

    def _regressed(self, applied: int, now: float) -> None:
        """The server has forgotten batches that it had accepted: send those again that are still kept."""
        missing = self._kept.take_lost(applied, now)
        tasks = sum(len(batch.submissions) for batch in missing)
        gap = self._accepted - applied - len(missing)
        self._machine.counts["resent"] += tasks
        self._machine.counts["regressed"] += 1
        text = (
            f"the server has lost accepted tasks (batch {applied} is its last, {self._accepted} was confirmed): "
            f"sending {tasks:,} tasks again" + (f"; {gap} older batches were not kept" if gap else "")
        )
        self._machine.emit(EventKind.MARKER_REGRESSED, text, tasks=tasks, batches_not_kept=gap)
        self._accepted = applied
        for batch in missing:
            self._machine.pending += len(batch.submissions)
        self._resend.extendleft(reversed(missing))
        self._receiver.forget()
        self._machine.given_up(self._queues, applied, self._unsent())

    def _check(self, now: float) -> Exchange | None:
        """A client that has nothing to send would never notice that the server has lost its last tasks."""
        if now < self._kept.check_at:
            return None
        self._kept.checked(now)
        self._kept.drop_old(now)
        if not self._kept:
            return None
        self._stage = Stage.CHECK
        self._commands = [("HGET", self._marker, "s")]
        return Exchange(self._commands)

    def _checked(self, reply: Reply, now: float) -> None:
        if isinstance(reply, ServerError):
            self._trouble(reply, self._commands[0], now)
        elif safeguards.applied_batch(reply) < self._accepted:
            self._ready = False

    # ---- publishing ---------------------------------------------------------------------------------

    def _next_batch(self, now: float) -> Batch | None:
        if self._batch is not None:
            return self._batch
        if self._resend:
            self._batch = self._resend.popleft()
            return self._batch
        submissions = self._gather(now)
        if not submissions:
            return None
        self._last += 1
        self._batch = Batch(self._last, submissions)
        return self._batch

    def _gather(self, now: float) -> list[Submission]:
        """As many buffered tasks as fit one transaction; expired ones end here."""
        config, buffer, machine = self._machine.config, self._buffer, self._machine
        server_ms = machine.clock.ms(now)
        chosen: list[Submission] = []
        size = 0
        while buffer and len(chosen) < config.batch_tasks and size < config.batch_bytes:
            submission = buffer.popleft()
            if submission.status is not _BUFFERED:
                continue
            machine.left_buffer(submission)
            if submission.expires_at:  # now that the server's clock is known
                submission.expires(machine.clock.at_most_ms(submission.expires_at))
            if submission.expires_ms and submission.expires_ms <= server_ms:
                machine.pending -= 1
                machine.expire(submission)
                continue
            submission.status = _SENT
            size += len(submission.fields[AT_DATA])
            chosen.append(submission)
        return chosen

    def _publish(self, batch: Batch) -> Exchange:
        self._stage = Stage.PUBLISH
        self._cancelled_last = False
        commands: list[Command] = [("MULTI",)]
        positions: list[int] = []
        clock = self._machine.clock
        for submission in batch.submissions:
            positions.append(len(commands) - 1)
            if submission.due_at or submission.due_ms:
                due_ms = submission.due_ms or clock.ms(submission.due_at)
                commands += outcomes.schedule(submission.keys, submission.id, submission.fields, due_ms)
            else:
                commands.append(("XADD", submission.keys.stream, "*", *submission.fields))
        commands += safeguards.record_batch(self._marker, batch.number)
        commands.append(("EXEC",))
        self._positions = positions
        self._commands = commands
        return Exchange([*commands, *safeguards.watch_marker(self._marker)])

    def _published(self, replies: list[Reply], now: float) -> None:
        result = replies[len(self._commands) - 1]
        batch = self._batch
        assert batch is not None, "an answer without a batch"
        if isinstance(result, list):
            self._batch = None
            self._confirm(batch, now, result)
            self._watched(replies[len(self._commands) :], now)
        elif result is None:
            self._machine.counts["aborted"] += 1
            self._ready = False
        else:
            for command, reply in zip(self._commands, replies, strict=False):
                if isinstance(reply, ServerError) and classify(reply) is not ErrorKind.ABORTED:
                    self._trouble(reply, command, now)
                    return
            assert isinstance(result, ServerError), "EXEC answers an array, nil or an error"
            self._trouble(abort_cause(result) or result, ("EXEC",), now)

    def _watched(self, replies: list[Reply], now: float) -> None:
        """Nothing is sent without a watch of the marker: else the marker is greeted again."""
        for reply in replies:
            if isinstance(reply, ServerError):
                self._trouble(reply, ("WATCH", self._marker), now)

    def _confirm(self, batch: Batch, now: float, results: list[Reply] | None = None) -> None:
        """The server has applied the batch. A single command in it may still have failed (wrong type)."""
        machine = self._machine
        self._accepted = max(self._accepted, batch.number)
        machine.counts["batches"] += 1
        refused = self._refused_in(batch, results) if results is not None else {}
        for submission in batch.submissions:
            why = refused.get(submission.id)
            if why is None:
                submission.batch = batch.number
                machine.accepted(submission)
            else:
                machine.refused(submission, why)
        machine.counts["accepted"] += len(batch.submissions) - len(refused)
        if refused:
            batch.submissions = [s for s in batch.submissions if s.id not in refused]
        self._kept.add(batch, now)

    def _refused_in(self, batch: Batch, results: list[Reply]) -> dict[str, str]:
        errors = batch.errors(results, self._positions)
        return {s.id: str(self.link.explain(error, self._commands[place + 1])) for s, error, place in errors}

    # ---- receiver, schedule, end --------------------------------------------------------------------

    def _register(self, now: float) -> Exchange:
        self._stage = Stage.REGISTER
        self._commands = self._registration.commands(self._machine.clock.ms(now))
        return Exchange(self._commands)

    def _registered(self, replies: list[Reply], now: float) -> None:
        for command, reply in zip(self._commands, replies, strict=True):
            if isinstance(reply, ServerError) and classify(reply) is not ErrorKind.GROUP_EXISTS:
                self._trouble(reply, command, now)
                return
        self._registration.answered(replies, now, self._unsent())

    def _unsent(self) -> set[Submission]:
        """What is in batches that are still to be sent, or to be sent again."""
        batches = [*self._resend, *([self._batch] if self._batch else [])]
        return {submission for batch in batches for submission in batch.submissions}

    def _look(self, submission: Submission) -> Exchange:
        """A retry waits in the schedule, too; but that task has run, and what is cancelled never has."""
        self._stage, keys = Stage.LOOK, submission.keys
        self._commands = [safeguards.watch_moves(keys.moves), ("HGET", keys.scheduled, submission.id)]
        return Exchange(self._commands)

    def _seen(self, replies: list[Reply], now: float) -> None:
        for command, reply in zip(self._commands, replies, strict=True):
            if isinstance(reply, ServerError):
                self._trouble(reply, command, now)
                return
        body = replies[1]
        self._looked = isinstance(body, bytes) and not has_failed(body)
        if not self._looked:
            self._ready = False  # which drops the watch
            self._cancel_ended(removed=False, gone=body is None)

    def _cancel(self, submission: Submission) -> Exchange:
        self._stage = Stage.CANCEL
        self._looked = False
        keys = submission.keys
        self._commands = [
            ("MULTI",),
            ("ZREM", keys.schedule, submission.id),
            ("HDEL", keys.scheduled, submission.id),
            ("SET", keys.moves, self._machine.token()),
            ("EXEC",),
        ]
        return Exchange([*self._commands, *safeguards.watch_marker(self._marker)])

    def _cancelled(self, replies: list[Reply], now: float) -> None:
        """Removed from the schedule means that it never ran; otherwise it takes its course."""
        result = replies[len(self._commands) - 1]
        if isinstance(result, list):
            self._watched(replies[len(self._commands) :], now)
            self._cancel_ended(removed=result[0] == 1, gone=True)
            return
        self._ready = False
        if isinstance(result, ServerError):
            self._trouble(abort_cause(result) or result, ("EXEC",), now)

    def _cancel_ended(self, *, removed: bool, gone: bool) -> None:
        """The first task that was to be cancelled was removed, or (``gone``) was not in the schedule any more."""
        self._cancelled_last = True
        submission = self._cancels.popleft()
        submission.cancelling = False
        unknown, self._cancel_unknown = self._cancel_unknown and gone, False
        if removed and not submission.status.terminal:
            self._machine.resolve(submission, Status.CANCELLED)
        elif unknown and not submission.status.terminal:
            submission.error = "the connection broke while it was being cancelled; it has run, or never will"
            self._machine.resolve(submission, Status.UNKNOWN)
            self._kept.let_go(submission)
        elif submission.waiter is not None:
            self._machine.changed.append(submission)

    def _clean(self) -> Exchange:
        self._stage = Stage.CLEAN
        self._leaving = True
        receiver = receiver_key(self._client_id)
        commands: list[Command] = [("DEL", self._marker)]
        if self._receiver.active:  # it may exist although the answer to its creation was lost
            commands += [("ZREM", keys.receivers, self._client_id) for keys in self._queues.values()]
            commands.append(("DEL", receiver))
        return Exchange(commands)

    def _trouble(self, error: ServerError, command: Command, now: float) -> None:
        """Nothing was applied; the marker is read again before anything else."""
        self._ready = False
        self.link.trouble(error, command, now)
