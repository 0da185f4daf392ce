"""Taking over the entries of silent consumers (protocol, section 5).

A consumer's entries are idle when it neither settles nor renews them. Looking consumer by consumer keeps each
call short, however long the pending entries list is.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from streamfleet_core import safeguards
from streamfleet_core.connection import Command, Reply, ServerError
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP
from streamfleet_core.procedure import Answer, Steps, committed, first_error, transaction, trouble
from streamfleet_core.replies import PendingEntry, parse_entries, parse_flat, parse_pending
from streamfleet_core.safeguards import UNKNOWN
from streamfleet_core.state import RELEASED_IDLE_MS, QueueState

if TYPE_CHECKING:
    from streamfleet_core.control import Controller
    from streamfleet_core.worker import WorkerMachine

PAGE = 100
"""Entries looked at, and claimed, in one call."""
IDLE_FACTOR = 2.5
"""How much rarer to look while nobody has pending entries: one that appears then has a whole lease to go."""


class Reclaimer:
    """See the module's text."""

    __slots__ = ("_control", "_left", "_looked_at", "_machine", "_queues", "consumers", "next_at")

    def __init__(self, machine: WorkerMachine, control: Controller, queues: list[QueueState], now: float) -> None:
        self._machine = machine
        self._control = control
        self._queues = queues
        self.next_at = now
        self.consumers: dict[str, list[dict[bytes, Reply]]] = {}
        """What the server said of each queue's consumers, last time."""
        self._looked_at = now
        """When it looked last (monotonic seconds)."""
        self._left = False
        """Were idle entries left where they are, for want of room?"""

    def reclaim(self, now: float) -> Steps:
        """Who has pending entries? Which of them are idle? Claim those and move the fence, in one transaction."""
        config = self._machine.config
        interval = min(config.scan_interval, config.lease / 2)
        commands: list[Command] = [("XINFO", "CONSUMERS", queue.keys.stream, GROUP) for queue in self._queues]
        answer = yield commands
        self._looked_at = answer.now
        self.next_at = answer.now + interval
        self._left = False
        suspects = self._suspects(answer, commands)
        if not any(row.get(b"pending") for rows in self.consumers.values() for row in rows):
            self.next_at = answer.now + min(interval * IDLE_FACTOR, config.lease / 2)
        if not suspects:
            return
        # What was given back may be taken at any time; what is merely idle, not right after an outage.
        grace_over = safeguards.grace_is_over(self._control.contact_since, answer.now, config.lease)
        lease_ms = int(config.lease * 1000) if grace_over else RELEASED_IDLE_MS
        commands = [
            ("XPENDING", queue.keys.stream, GROUP, "IDLE", lease_ms, "-", "+", PAGE, consumer)
            for queue, consumer in suspects
        ]
        answer = yield commands
        if grace_over and not safeguards.grace_is_over(self._control.contact_since, answer.now, config.lease):
            return  # the server was slow to answer: what owners have sent meanwhile comes first
        idle: dict[str, list[PendingEntry]] = {}
        for (queue, _), command, reply in zip(suspects, commands, answer.replies, strict=True):
            if isinstance(reply, ServerError):
                trouble(self._control.link, reply, command, answer.now)
                continue
            rows = [row for row in parse_pending(reply) if row.entry_id not in queue.in_flight]
            idle.setdefault(queue.keys.queue, []).extend(rows)
        for queue in self._queues:
            rows = idle.get(queue.keys.queue, [])
            room = self._room()
            self._left = self._left or len(rows) > room
            if rows and room > 0:
                yield from self._claim(queue, rows[:room], lease_ms, more=len(rows) >= room)

    def _suspects(self, answer: Answer, commands: list[Command]) -> list[tuple[QueueState, bytes]]:
        suspects: list[tuple[QueueState, bytes]] = []
        for queue, command, reply in zip(self._queues, commands, answer.replies, strict=True):
            if isinstance(reply, ServerError):
                trouble(self._control.link, reply, command, answer.now)
                self.consumers[queue.keys.queue] = []
                continue
            rows = [parse_flat(row) for row in reply] if isinstance(reply, list) else []
            self.consumers[queue.keys.queue] = rows
            for row in rows:
                name, pending = row.get(b"name"), row.get(b"pending")
                if not isinstance(name, bytes) or not isinstance(pending, int) or not pending:
                    continue
                if name != self._machine.consumer or pending > len(queue.in_flight):
                    suspects.append((queue, name))
        return suspects

    def room_changed(self) -> None:
        """Entries have ended: what was left for want of room may be taken now."""
        if self._left and self._room() > 0:
            self._left = False
            self.next_at = min(self.next_at, self._looked_at)  # and not before what is due for longer
            self._control.link.kick()

    def _room(self) -> int:
        """Reclaimed entries go first, so a busy worker takes some too, but never a heap."""
        machine = self._machine
        concurrency = machine.config.concurrency
        free = max(machine.window() - machine.held, 0) + concurrency
        return min(PAGE, free if machine.held < machine.window() + concurrency else 0)

    def _claim(self, queue: QueueState, rows: list[PendingEntry], lease_ms: int, *, more: bool) -> Steps:
        """Claim these. ``more``: there may be others, to be looked for at once unless this is refused."""
        machine, keys = self._machine, queue.keys
        ids = [row.entry_id for row in rows]
        token = machine.token()
        bump = safeguards.bump_fence(keys.fence, token)
        commands = transaction([("XCLAIM", keys.stream, GROUP, machine.consumer, lease_ms, *ids), *bump])
        broken = queue.broken
        queue.claiming.update(ids)
        for entry_id in ids:
            queue.looked_at.pop(entry_id, None)  # should we find them in our history, then by a new delivery
        try:
            answer = yield commands
        finally:
            queue.claiming.difference_update(ids)
        results = committed(answer, commands, self._control.link)
        entries: list[tuple[bytes, list[bytes] | None]] = []
        if results is not None:
            failed = first_error(Answer(results, answer.sent, answer.now), commands[1:-1])
            if failed:
                trouble(self._control.link, *failed, answer.now)
            else:
                entries = parse_entries(results[0])
                if more:
                    self.next_at = answer.now
        if len(entries) < len(ids):
            # Deleted meanwhile, (Redis 6.2) deleted and yet claimed, or refused while our reader, which leaves
            # alone what is being claimed, met one of them in our history: there we find them.
            machine.lane_of(queue).reader.reread()
        counts = {row.entry_id: row.deliveries + 1 for row in rows}
        # Each goes to the front of those that wait, so that the oldest, handed in last, comes first.
        fence = queue.fence_since(token, broken) if bump else UNKNOWN
        new = machine.received(queue, entries[::-1], fence, answer.sent, counts, first=True)
        if new:
            owners = Counter(row.consumer.decode(errors="replace") for row in rows)
            machine.counts["reclaimed"] += new
            text = f"{keys.queue}: took {new} entries over from {', '.join(owners)}"
            machine.emit(EventKind.RECLAIMED, text, queue=keys.queue, entries=new, owners=dict(owners))
