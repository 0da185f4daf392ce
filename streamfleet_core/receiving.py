"""The receive link of a client: notices in, heartbeats out (protocol, section 7).

The receiver is read from a cursor in memory, from its beginning after each (re)connect; notices are deleted
once they have been handled. So a notice whose delivery was lost is read again, and one that comes twice
changes nothing, because the first terminal notice of a task counts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from streamfleet_core import safeguards
from streamfleet_core.connection import Command, Reply, ServerError, ServerIdentity
from streamfleet_core.events import EventKind
from streamfleet_core.keys import QueueKeys, receiver_key
from streamfleet_core.link import FOREVER, Exchange, Link
from streamfleet_core.replies import ErrorKind, classify, parse_read
from streamfleet_core.submission import Status, Submission
from streamfleet_core.wire import F_RESULT, NoticeType, Notification, Undecodable, decode_notification

if TYPE_CHECKING:
    from streamfleet_core.client import ClientMachine

PAGE = 500
"""Notices per read."""
LOOK_EVERY = 2
"""Every so many beats, and first of all after a reconnect: is our receiver still there?"""
READ_MARGIN = 5.0
"""Seconds beyond BLOCK after which a silent server counts as lost."""

STATUS = {
    NoticeType.COMPLETED: Status.COMPLETED,
    NoticeType.CANCELLED: Status.CANCELLED,
    NoticeType.EXPIRED: Status.EXPIRED,
    NoticeType.ERROR: Status.FAILED,
}


class Receiver:
    """See the module's text."""

    __slots__ = (
        "_beats",
        "_client_id",
        "_commands",
        "_cursor",
        "_handled",
        "_known",
        "_machine",
        "_next_beat",
        "_queues",
        "_registrations",
        "_registrations_then",
        "active",
        "forgotten",
        "has_stream",
        "link",
        "publish",
    )

    link: Link
    publish: Link
    """The link that enters it at the server."""

    def __init__(self, machine: ClientMachine, client_id: str, queues: dict[str, QueueKeys]) -> None:
        self._machine = machine
        self._client_id = client_id
        self._queues = queues
        self._known: set[str] = set()
        """Queues whose set of receivers we are in."""
        self._cursor = b"0"
        self._handled: list[bytes] = []
        self._next_beat = 0.0
        self._beats = 0
        self._commands: list[Command] = []
        self._registrations = self._registrations_then = 0
        """How often the publisher has registered us: now, and when the exchange in flight was sent."""
        self.active = False
        self.forgotten = False
        """Has the server perhaps lost it?"""
        self.has_stream = False
        """Has the stream ever been created? Before that nobody drives this link."""

    def want(self, link: Link) -> None:
        """A task is tracked: from now on this client has a receiver."""
        if not self.active:
            self.active = True
            link.kick()

    def knows(self, keys: QueueKeys) -> bool:
        """May tracked tasks of this queue be sent?"""
        return keys.queue in self._known and not self.forgotten

    def missing(self, unsent: Collection[Submission]) -> None:
        """The publisher has found no receiver where there was one, and will make it anew.

        ``unsent``: what is still to be sent, or to be sent again, and will be notified.
        """
        lost = [submission for submission in self._under_way(Status.ACCEPTED) if submission not in unsent]
        if lost or not self.forgotten:
            self._give_up(lost)
        self.forgotten = True

    def registered(self, queues: list[QueueKeys], now: float) -> None:
        """The publisher has entered the receiver for these queues, and there is one."""
        self._registrations += 1
        self.has_stream = True
        self.forgotten = False
        self._known.update(keys.queue for keys in queues)
        self._next_beat = now + self._machine.config.heartbeat
        self.link.kick()

    def forget(self) -> None:
        """The server has lost data, perhaps our receiver too: the publisher is to enter it again.

        Meanwhile it is read as before, for those who still wait.
        """
        self.forgotten = bool(self._known)

    # ---- duty ---------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """See `link.Duty.wanted`."""
        return bool(self._known) and not self.finished()

    def finished(self) -> bool:
        """At close it stays for as long as tracked tasks are on their way to the server."""
        machine = self._machine
        return machine.closing and (machine.pending == 0 or not self.active)

    def deadline(self) -> float:
        """See `link.Duty.deadline`."""
        return FOREVER

    def begin(self, identity: ServerIdentity, now: float) -> None:
        """See `link.Duty.begin`."""
        self._cursor = b"0"
        self._handled.clear()
        self._next_beat = now
        self._beats = 0

    def pull(self, now: float) -> Exchange | None:
        """Delete what was handled, beat when it is time, read on: in one write."""
        if not self.wanted():
            return None
        config = self._machine.config
        self._registrations_then = self._registrations
        receiver = receiver_key(self._client_id)
        commands: list[Command] = []
        if self._handled:
            commands.append(("XDEL", receiver, *self._handled))
            self._handled = []
        if now >= self._next_beat:
            self._next_beat = now + config.heartbeat
            score = self._machine.clock.ms(now)
            commands += [
                ("ZADD", self._queues[name].receivers, score, self._client_id) for name in sorted(self._known)
            ]
            if self._beats % LOOK_EVERY == 0:
                commands.append(("EXISTS", receiver))
            self._beats += 1
        block = max(0.001, min(config.block, self._next_beat - now))
        read: Command = (
            "XREAD",
            "COUNT",
            PAGE,
            "BLOCK",
            int(block * 1000),
            "STREAMS",
            receiver,
            self._cursor,
        )
        self._commands = [*commands, read]
        return Exchange(self._commands, block + READ_MARGIN, blocking=True)

    def replies(self, replies: list[Reply], now: float) -> None:
        """Take notices in; they come before what a beat has to say, for they may be the last ones."""
        read = replies[-1]
        if not isinstance(read, ServerError):
            for entries in parse_read(read).values():
                for entry_id, fields in entries:
                    self._cursor = entry_id
                    self._handled.append(entry_id)
                    if fields is not None:
                        self._notice(entry_id, fields)
        collected = False
        for command, reply in zip(self._commands, replies, strict=True):
            if isinstance(reply, ServerError):
                if classify(reply) not in (ErrorKind.GROUP_EXISTS, ErrorKind.UNBLOCKED, ErrorKind.NO_GROUP):
                    self.link.trouble(reply, command, now)
                    break
            elif (command[0] == "ZADD" and reply == 1) or (command[0] == "EXISTS" and reply == 0):
                collected = True
        if collected and not self.forgotten:  # else the publisher is about to look for itself
            if self._registrations == self._registrations_then:
                self._collected()
            else:
                # While a read waits its news grows old: what was missing then may be there since. Ask again.
                self._next_beat, self._beats = now, 0

    def lost(self, *, sent: bool, now: float) -> None:
        """Whatever a lost reply carried is still in the stream, and `begin` reads that from its start."""

    # ---- parts --------------------------------------------------------------------------------------

    def _notice(self, entry_id: bytes, fields: list[bytes]) -> None:
        machine = self._machine
        try:
            notice: Notification = decode_notification(fields)
        except Undecodable as problem:
            text = f"notice {entry_id.decode()} cannot be read ({problem}); removed"
            machine.emit(EventKind.NOT_ACCEPTED, text, entry=entry_id.decode())
            return
        submission = machine.tracked.get(notice.task_id)
        if submission is None:
            return
        if not safeguards.notice_counts(submission.status.terminal):
            machine.counts["repeated_notices"] += 1
            return
        machine.counts["notices"] += 1
        submission.error = notice.error
        submission.result = notice.extra.get(F_RESULT)
        machine.resolve(submission, STATUS[notice.type])

    def _collected(self) -> None:
        """Others took us for dead, or somebody removed our receiver: it is made anew before more is sent."""
        self.forgotten = True
        self.publish.kick()
        self._give_up(self._under_way(Status.SENT, Status.ACCEPTED))

    def _under_way(self, *statuses: Status) -> list[Submission]:
        return [s for s in self._machine.tracked.values() if s.status in statuses and s.keys.queue in self._known]

    def _give_up(self, lost: list[Submission]) -> None:
        """What was notified while there was no receiver is lost, so nobody may hang on it."""
        machine = self._machine
        machine.counts["collected"] += 1
        text = f"this client was taken for dead and its receiver removed; {len(lost)} outcomes may be lost"
        machine.emit(EventKind.COLLECTED, text, tasks=len(lost))
        for submission in lost:
            submission.error = "this client was out of contact for so long that its receiver was removed"
            machine.resolve(submission, Status.UNKNOWN)
