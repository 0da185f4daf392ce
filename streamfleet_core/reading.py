"""The read link of a worker: entries in, with back-pressure (protocol, section 5).

After each (re)connect the consumer's own pending entries come first: an entry whose reply was lost would
otherwise strand in the PEL of a healthy worker. Then new entries, as many as there is room for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamfleet_core import safeguards
from streamfleet_core.connection import Command, Reply, ServerError, ServerIdentity
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP
from streamfleet_core.link import FOREVER, Exchange, Link
from streamfleet_core.replies import ErrorKind, PendingEntry, abort_cause, classify, parse_pending, parse_read
from streamfleet_core.safeguards import Fence
from streamfleet_core.state import RELEASED_IDLE_MS, QueueState

if TYPE_CHECKING:
    from streamfleet_core.worker import WorkerMachine

PAGE = 500
"""The most entries in one read, unless there are more handlers."""
HISTORY_PAGE = 100
"""Entries per read of our own PEL."""
READ_MARGIN = 5.0
"""Seconds beyond BLOCK after which a silent server counts as lost."""


@dataclass(slots=True)
class Question:
    """What is in a queue's history after ``cursor``? Or, with ``missing``: what are these entries of it?"""

    queue: QueueState
    cursor: bytes
    commands: list[Command]
    missing: dict[bytes, int] | None = None


def id_before(entry_id: bytes) -> bytes:
    """The largest entry id below this one."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    if int(sequence):
        return b"%b-%d" % (milliseconds, int(sequence) - 1)
    return b"%d-%d" % (int(milliseconds) - 1, 2**64 - 1)


def _which_delivery(queue: QueueState, row: PendingEntry) -> int:
    """Which delivery of it an entry of our history is, now that we are about to read it.

    A read whose reply was lost counts as a delivery to the server; so what it said at first is true. But one that
    we have given back after it had run is delivered once more.
    """
    if row.idle_ms >= RELEASED_IDLE_MS:
        queue.looked_at[row.entry_id] = row.deliveries + 1
    return queue.looked_at.setdefault(row.entry_id, row.deliveries)


class Reader:
    """See the module's text."""

    __slots__ = (
        "_asked",
        "_cursors",
        "_fences",
        "_heal",
        "_machine",
        "_missing",
        "_queues",
        "_sent_at",
        "link",
    )

    link: Link

    def __init__(self, machine: WorkerMachine, queues: list[QueueState]) -> None:
        self._machine = machine
        self._queues = queues
        self._cursors: dict[str, bytes] = {}
        """Queues whose history is being read, with the last id seen."""
        self._heal = False
        self._asked: list[Question] = []
        """What the read in flight asks of histories; empty for a read of new entries."""
        self._missing: dict[str, dict[bytes, int]] = {}
        """Entries of the history that we do not know of, and have yet to read: how often each was delivered."""
        self._fences: dict[str, tuple[Fence, int]] = {}
        """When the read in flight was sent: each queue's fence, and how often its connection had broken."""
        self._sent_at = 0.0

    def room(self) -> int:
        """How many entries to ask for: a page of a large window, as soon as there is room for one.

        A page is at most half of the window, so that the server can read one while handlers work on another.
        """
        machine = self._machine
        window, concurrency = machine.window(), machine.config.concurrency
        page = min(max((window - concurrency) // 2, 1), PAGE)
        room = window - machine.held
        return min(room, max(page, concurrency)) if room >= page else 0

    def reread(self) -> None:
        """Entries may be in our PEL that we do not know of: read it again before anything new."""
        cursor = safeguards.first_history_cursor()
        if cursor is not None:
            self._cursors = {queue.keys.queue: cursor for queue in self._queues}
            self._missing.clear()
            for question in self._asked:
                question.cursor = b""  # the answer on its way is too old to go on from
            self.link.kick()

    # ---- duty ---------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """See `link.Duty.wanted`."""
        return not self._machine.stopping

    def finished(self) -> bool:
        """See `link.Duty.finished`."""
        return self._machine.stopping

    def deadline(self) -> float:
        """See `link.Duty.deadline`."""
        return FOREVER

    def begin(self, identity: ServerIdentity, now: float) -> None:
        """See `link.Duty.begin`."""
        self.reread()

    def pull(self, now: float) -> Exchange | None:
        """The next read."""
        self._sent_at = now
        self._fences = {queue.keys.queue: (queue.fence, queue.broken) for queue in self._queues}
        if self._heal:
            return Exchange(self._healing())
        self._asked = [self._question(queue) for queue in self._queues if queue.keys.queue in self._cursors]
        if self._asked:
            return Exchange([command for question in self._asked for command in question.commands])
        room = self.room()
        if room <= 0:
            return None
        config = self._machine.config
        count = -(-room // len(self._queues))
        block = max(1, int(config.block * 1000))  # 0 would be without end
        command: Command = (
            "XREADGROUP",
            "GROUP",
            GROUP,
            self._machine.consumer,
            "COUNT",
            count,
            "BLOCK",
            block,
        )
        streams = tuple(queue.keys.stream for queue in self._queues)
        command = (*command, "STREAMS", *streams, *(b">" for _ in streams))
        return Exchange([command], config.block + READ_MARGIN, blocking=True)

    def replies(self, replies: list[Reply], now: float) -> None:
        """Take the entries in."""
        if self._heal:
            self._healed(replies)
        elif self._asked:
            answers = iter(replies)
            for question in self._asked:
                self._history_reply(question, [next(answers) for _ in question.commands], now)
        else:
            self._new_entries(replies[0], now)

    def lost(self, *, sent: bool, now: float) -> None:
        """Whatever a lost reply carried is in our PEL, and `begin` reads that."""
        for queue in self._queues:
            queue.ended_meanwhile = None

    # ---- parts --------------------------------------------------------------------------------------

    def _question(self, queue: QueueState) -> Question:
        """The next part of a queue's history.

        Reading it counts as a delivery of each entry: with a bad connection, a long task would soon have been
        delivered too often. So it is looked at first, and then only those entries are read that we do not know of.
        """
        name, stream = queue.keys.queue, queue.keys.stream
        cursor = self._cursors[name]
        queue.ended_meanwhile = set()
        missing = self._missing.pop(name, None)
        if missing:
            head: Command = ("XREADGROUP", "GROUP", GROUP, self._machine.consumer, "COUNT", 1, "STREAMS", stream)
            return Question(queue, cursor, [(*head, id_before(entry_id)) for entry_id in missing], missing)
        start = b"-" if cursor == b"0" else b"(" + cursor
        look: Command = ("XPENDING", stream, GROUP, start, "+", HISTORY_PAGE, self._machine.consumer)
        return Question(queue, cursor, [look])

    def _history_reply(self, question: Question, replies: list[Reply], now: float) -> None:
        queue = question.queue
        ended, queue.ended_meanwhile = queue.ended_meanwhile or set(), None
        for reply in replies:
            if isinstance(reply, ServerError):
                if question.missing and self._cursors.get(queue.keys.queue) == question.cursor:
                    self._missing[queue.keys.queue] = question.missing
                self._trouble(reply, [queue], now)
                return
        name = queue.keys.queue
        if question.missing is not None:
            entries = [e for reply in replies for e in parse_read(reply).get(queue.keys.stream, [])]
            alive = [entry for entry in entries if entry[0] not in ended]
            fence = queue.fence_since(*self._fences[name])
            self._machine.received(queue, alive, fence, self._sent_at, question.missing)
        elif self._cursors.get(name) == question.cursor:  # otherwise it is all to be looked at again
            rows = parse_pending(replies[0])
            known = queue.in_flight.keys() | queue.claiming | ended
            missing = [row for row in rows if row.entry_id not in known]
            self._missing[name] = {row.entry_id: _which_delivery(queue, row) for row in missing}
            if rows:
                self._cursors[name] = rows[-1].entry_id
            else:
                del self._cursors[name]
                queue.looked_at.clear()

    def _new_entries(self, reply: Reply, now: float) -> None:
        if isinstance(reply, ServerError):
            self._trouble(reply, self._queues, now)
            return
        by_stream = {queue.keys.stream: queue for queue in self._queues}
        for stream, entries in parse_read(reply).items():
            queue = by_stream[stream]
            fence = queue.fence_since(*self._fences[queue.keys.queue])
            self._machine.received(queue, entries, fence, self._sent_at)

    def _trouble(self, error: ServerError, queues: list[QueueState], now: float) -> None:
        kind = classify(error)
        if kind is ErrorKind.NO_GROUP:
            self._heal = True
        elif kind is ErrorKind.UNBLOCKED:
            return
        else:
            # Of several streams the server does not say which one it means.
            keys = ("STREAMS", queues[0].keys.stream) if len(queues) == 1 else ()
            self.link.trouble(error, ("XREADGROUP", "GROUP", GROUP, self._machine.consumer, *keys), now)

    def _healing(self) -> list[Command]:
        """Create missing groups at 0, so that undeleted entries are delivered again.

        Whoever still works on one of them must notice: the fence moves in the same transaction.
        """
        commands: list[Command] = []
        for queue in self._queues:
            commands.append(("MULTI",))
            commands.append(("XGROUP", "CREATE", queue.keys.stream, GROUP, b"0", "MKSTREAM"))
            commands.extend(safeguards.bump_fence(queue.keys.fence, self._machine.token()))
            commands.append(("EXEC",))
        return commands

    def _healed(self, replies: list[Reply]) -> None:
        self._heal = False
        stride = len(replies) // len(self._queues)
        for number, queue in enumerate(self._queues):
            *queued, result = replies[stride * number : stride * (number + 1)]
            if isinstance(result, ServerError):
                cause = abort_cause(result) or result
                aborted = next((reply for reply in queued if isinstance(reply, ServerError)), cause)
                self._heal = True
                self.link.trouble(aborted, ("XGROUP", "CREATE", queue.keys.stream), self._sent_at)
                return
            created = result[0] if isinstance(result, list) else None
            if not isinstance(created, ServerError):
                self._machine.counts["healed"] += 1
                text = f"{queue.keys.queue}: consumer group created at the beginning of the stream"
                self._machine.emit(EventKind.GROUP_HEALED, text, queue=queue.keys.queue)
            elif classify(created) is not ErrorKind.GROUP_EXISTS:
                self.link.trouble(created, ("XGROUP", "CREATE", queue.keys.stream), self._sent_at)
                return
        self.reread()
