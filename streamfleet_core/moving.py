"""Due tasks from the schedule into their stream (protocol, section 6).

Any worker moves. Of several that read the same due tasks one commits, because each writes the key that all
of them watch. An unknown outcome needs no handling: whoever looks next sees what is still there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamfleet_core import safeguards
from streamfleet_core.connection import Command, Reply, ServerError
from streamfleet_core.events import EventKind
from streamfleet_core.keys import QueueKeys
from streamfleet_core.procedure import Answer, Steps, committed, first_error, transaction, trouble
from streamfleet_core.replies import parse_time
from streamfleet_core.state import QueueState
from streamfleet_core.wire import F_REASON, Undecodable, unpack_fields

if TYPE_CHECKING:
    from streamfleet_core.control import Controller
    from streamfleet_core.worker import WorkerMachine

BATCH = 500
"""Tasks moved in one transaction."""


class Mover:
    """See the module's text."""

    __slots__ = ("_control", "_machine", "_queues", "next_at", "rescues")

    def __init__(self, machine: WorkerMachine, control: Controller, queues: list[QueueState], now: float) -> None:
        self._machine = machine
        self._control = control
        self._queues = queues
        self.next_at = now
        self.rescues: list[tuple[QueueKeys, int, bytes, bytes]] = []
        """Tasks that have left the schedule, and that no stream has taken: they exist nowhere else."""

    def due_at(self, at: float) -> None:
        """A task was scheduled by this worker: look when it is due, not only at the next poll."""
        self.next_at = min(self.next_at, at)

    def move(self, now: float) -> Steps:
        """Look at the earliest task of each schedule; move what is due."""
        commands: list[Command] = [("ZRANGE", queue.keys.schedule, 0, 0, "WITHSCORES") for queue in self._queues]
        answer = yield commands
        clock = self._machine.clock
        self.next_at = answer.now + self._control.poll
        for queue, command, reply in zip(self._queues, commands, answer.replies, strict=True):
            if isinstance(reply, ServerError):
                trouble(self._control.link, reply, command, answer.now)
            elif isinstance(reply, list) and reply:
                due = clock.local(_score(reply[1]))
                if due <= answer.now:
                    yield from self._move_due(queue)
                else:
                    self.next_at = min(self.next_at, due)

    def _move_due(self, queue: QueueState) -> Steps:
        """Read under a WATCH, judge by the server's own clock, move in one transaction, until nothing is due."""
        keys = queue.keys
        while True:
            query: list[Command] = [
                safeguards.watch_moves(keys.moves),
                ("TIME",),
                ("ZRANGEBYSCORE", keys.schedule, "-inf", "+inf", "WITHSCORES", "LIMIT", 0, BATCH),
            ]
            answer = yield query
            failed = first_error(answer, query)
            if failed:
                trouble(self._control.link, *failed, answer.now)
                return
            server_ms = parse_time(answer.replies[1])
            self._machine.clock.observed(server_ms, answer.sent, answer.now)
            due, later = _split(answer.replies[2], server_ms)
            if later is not None:
                self.next_at = min(self.next_at, self._machine.clock.local(later))
            if not due:
                yield [("UNWATCH",)]
                return
            bodies = yield [("HMGET", keys.scheduled, *due)]
            if isinstance(bodies.replies[0], ServerError):
                trouble(self._control.link, bodies.replies[0], ("HMGET", keys.scheduled), bodies.now)
                return
            commands = transaction(self._moves(queue, due, bodies.replies[0]))
            answer = yield commands
            results = committed(answer, commands, self._control.link)
            if isinstance(answer.replies[-1], ServerError):
                return
            if results is not None:
                self._machine.counts["moved"] += len(due)
                self._report_missing(queue, due, bodies.replies[0])
                failed = first_error(Answer(results, answer.sent, answer.now), commands[1:-1])
                if failed:
                    self._rescue(queue, due, bodies.replies[0], results[2:-1], server_ms)
                    yield from self.put_back()
                    trouble(self._control.link, *failed, answer.now)
                    return
            if later is not None:
                return

    def _moves(self, queue: QueueState, due: list[bytes], bodies: Reply) -> list[Command]:
        keys = queue.keys
        commands: list[Command] = [("ZREM", keys.schedule, *due), ("HDEL", keys.scheduled, *due)]
        for task_id, body in zip(due, _list(bodies), strict=True):
            if not isinstance(body, bytes):
                continue
            try:
                fields = unpack_fields(body)
                if not fields or len(fields) % 2:
                    raise Undecodable(f"{len(fields)} parts do not make fields and values")
                commands.append(("XADD", keys.stream, "*", *fields))
            except Undecodable as problem:
                reason = f"undecodable in the schedule: {problem}".encode(errors="backslashreplace")
                commands.append(("XADD", keys.dead, "*", b"id", task_id, b"data", body, F_REASON, reason))
        commands.append(("SET", keys.moves, self._machine.token()))
        return commands

    def _rescue(
        self, queue: QueueState, due: list[bytes], bodies: Reply, added: list[Reply], server_ms: int
    ) -> None:
        """MULTI does not roll back: put back what was not added, and stop, for others would fare no better."""
        moved = [pair for pair in zip(due, _list(bodies), strict=True) if isinstance(pair[1], bytes)]
        for (task_id, body), result in zip(moved, added, strict=True):
            if isinstance(result, ServerError) and isinstance(body, bytes):
                self.rescues.append((queue.keys, server_ms, task_id, body))

    def put_back(self) -> Steps:
        """Sent until it is accepted, after a lost reply too: here a duplicate is better than a loss."""
        while self.rescues:
            rows: list[Command] = []
            for keys, due_ms, task_id, body in self.rescues:
                rows.append(("ZADD", keys.schedule, due_ms, task_id))
                rows.append(("HSET", keys.scheduled, task_id, body))
            answer = yield transaction(rows)
            result = answer.replies[-1]
            results = result if isinstance(result, list) else [result]
            error = next((reply for reply in results if isinstance(reply, ServerError)), None)
            if error is None:
                self.rescues.clear()
            else:
                self._control.link.back_off(answer.now, error.message)

    def _report_missing(self, queue: QueueState, due: list[bytes], bodies: Reply) -> None:
        """Only once the move has gone through: another mover may have taken the body along with the row."""
        for task_id, body in zip(due, _list(bodies), strict=True):
            if not isinstance(body, bytes):
                name = task_id.decode(errors="replace")
                text = f"{queue.keys.queue}: scheduled task {name} has no body; dropped"
                self._machine.emit(EventKind.SCHEDULE_BROKEN, text, queue=queue.keys.queue)


def _list(reply: Reply) -> list[Reply]:
    return reply if isinstance(reply, list) else []


def _score(score: Reply) -> float:
    return float(score) if isinstance(score, bytes | int) else 0.0


def _split(reply: Reply, server_ms: int) -> tuple[list[bytes], float | None]:
    """The ids that are due, and when the first later one is (None: none seen, there may be more)."""
    flat = _list(reply)
    due: list[bytes] = []
    for task_id, score in zip(flat[::2], flat[1::2], strict=True):
        if _score(score) > server_ms:
            return due, _score(score)
        if isinstance(task_id, bytes):
            due.append(task_id)
    return due, (float("inf") if len(flat) < 2 * BATCH else None)
