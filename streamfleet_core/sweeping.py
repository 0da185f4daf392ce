"""Garbage collection: what crashed clients, workers and administrators leave behind (protocol, sections 5, 7).

One kind at a time, each once per `sweep_interval`, spread so that an idle worker stays quiet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from streamfleet_core import safeguards
from streamfleet_core.connection import Command, Reply, ServerError
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP, receiver_key
from streamfleet_core.procedure import Answer, Steps, committed, first_error, transaction, trouble
from streamfleet_core.replies import parse_entries, parse_flat, parse_pending, parse_time
from streamfleet_core.state import QueueState

if TYPE_CHECKING:
    from streamfleet_core.control import Controller
    from streamfleet_core.worker import WorkerMachine

PAGE = 100
"""Entries compared in one call."""
ORPHAN_IDLE_MS = 60_000
"""An entry that somebody took meanwhile is younger than this, and stays with them."""


class Sweeper:
    """See the module's text."""

    __slots__ = ("_control", "_machine", "_queues", "_scores", "_turn", "next_at")

    def __init__(self, machine: WorkerMachine, control: Controller, queues: list[QueueState], now: float) -> None:
        self._machine = machine
        self._control = control
        self._queues = queues
        self._scores: dict[tuple[str, bytes], tuple[bytes, float]] = {}
        """Per queue and client: the score last seen, and since when (monotonic) it has not changed."""
        self._turn = 0
        self.next_at = now + machine.config.sweep_interval / 4 * machine.random()

    def sweep(self, now: float) -> Steps:
        """The next kind of garbage in turn."""
        kinds: list[Callable[[], Steps]] = [self._receivers, self._orphans, self._consumers, self._clock]
        kind = kinds[self._turn % len(kinds)]
        self._turn += 1
        self.next_at = now + self._machine.config.sweep_interval / len(kinds)
        yield from kind()

    # ---- dead clients -------------------------------------------------------------------------------

    def _receivers(self) -> Steps:
        """A client is dead when its score has not changed for the timeout, by *our* monotonic clock."""
        commands: list[Command] = [("ZRANGE", queue.keys.receivers, 0, -1, "WITHSCORES") for queue in self._queues]
        answer = yield commands
        for queue, command, reply in zip(self._queues, commands, answer.replies, strict=True):
            if isinstance(reply, ServerError):
                trouble(self._control.link, reply, command, answer.now)
                continue
            for client, score in self._silent(queue, reply, answer.now):
                yield from self._forget(queue, client, score)

    def _silent(self, queue: QueueState, reply: Reply, now: float) -> list[tuple[bytes, bytes]]:
        flat = reply if isinstance(reply, list) else []
        seen: dict[tuple[str, bytes], tuple[bytes, float]] = {}
        silent: list[tuple[bytes, bytes]] = []
        for client, score in zip(flat[::2], flat[1::2], strict=True):
            if not isinstance(client, bytes) or not isinstance(score, bytes):
                continue
            key = (queue.keys.queue, client)
            before, since = self._scores.get(key, (score, now))
            seen[key] = (score, since if before == score else now)
            if now - seen[key][1] >= self._machine.config.client_timeout:
                silent.append((client, score))
        others = {key: value for key, value in self._scores.items() if key[0] != queue.keys.queue}
        self._scores = others | seen
        return silent

    def _forget(self, queue: QueueState, client: bytes, score: bytes) -> Steps:
        """Out of the set, and its receiver with it, unless it beats meanwhile.

        All in one transaction: nobody would look for the receiver of a client that is not in the set any more.
        """
        receivers, receiver = queue.keys.receivers, receiver_key(client.decode(errors="surrogateescape"))
        query: list[Command] = [safeguards.watch_receivers(receivers), ("ZSCORE", receivers, client)]
        answer = yield query
        failed = first_error(answer, query)
        if failed:
            trouble(self._control.link, *failed, answer.now)
            return
        if not safeguards.still_silent(score, answer.replies[1]):
            yield [("UNWATCH",)]
            return
        # Its marker goes by itself: should the client be alive, it would send again what has been accepted.
        commands = transaction([("ZREM", receivers, client), ("DEL", receiver)])
        answer = yield commands
        results = committed(answer, commands, self._control.link)
        if results and results[0] == 1:
            self._machine.counts["collected"] += 1
            name = client.decode(errors="replace")
            text = f"{queue.keys.queue}: removed what the dead client {name} left"
            self._machine.emit(EventKind.CLIENT_COLLECTED, text, queue=queue.keys.queue, client=name)

    # ---- entries without an owner -------------------------------------------------------------------

    def _orphans(self) -> Steps:
        """Each delivered entry must be pending for someone; XGROUP DELCONSUMER leaves some that are not."""
        answer = yield [("XRANGE", queue.keys.stream, "-", "+", "COUNT", 1) for queue in self._queues]
        for queue, reply in zip(self._queues, answer.replies, strict=True):
            if isinstance(reply, list) and reply and self._is_our_turn(queue):
                yield from self._restore(queue)

    def _is_our_turn(self, queue: QueueState) -> bool:
        """Of n live workers, one in n does it each time. The dead are listed for a day, and do nothing."""
        config = self._machine.config
        silent = 2000 * max(config.lease, config.block)
        rows = self._control.reclaimer.consumers.get(queue.keys.queue, ())
        idle = [row.get(b"idle") for row in rows]
        peers = sum(1 for ms in idle if isinstance(ms, int) and ms < silent)
        return self._machine.random() * max(peers, 1) < 1.0

    def _restore(self, queue: QueueState) -> Steps:
        keys, start = queue.keys, b"-"
        while start:
            commands = transaction(
                [
                    ("XINFO", "GROUPS", keys.stream),
                    ("XPENDING", keys.stream, GROUP, start, "+", PAGE),
                    ("XRANGE", keys.stream, start, "+", "COUNT", PAGE),
                ]
            )
            answer = yield commands
            results = committed(answer, commands, self._control.link)
            if results is None or any(isinstance(result, ServerError) for result in results):
                return
            orphans, start = _ownerless(results)
            if orphans:
                yield from self._adopt(queue, orphans)

    def _adopt(self, queue: QueueState, orphans: list[bytes]) -> Steps:
        """Make them ours without running them: after a lease they are reclaimed like those of any dead worker."""
        machine, keys = self._machine, queue.keys
        claim: Command = ("XCLAIM", keys.stream, GROUP, machine.consumer, ORPHAN_IDLE_MS, *orphans)
        commands = transaction([(*claim, "FORCE", "JUSTID"), *safeguards.bump_fence(keys.fence, machine.token())])
        answer: Answer = yield commands
        results = committed(answer, commands, self._control.link)
        adopted = len(results[0]) if results and isinstance(results[0], list) else 0
        if adopted:
            machine.counts["adopted"] += adopted
            text = f"{keys.queue}: {adopted} delivered entries had no owner; they will run after one lease"
            machine.emit(EventKind.ORPHANS_RESTORED, text, queue=keys.queue, entries=adopted)

    # ---- the rest -----------------------------------------------------------------------------------

    def _consumers(self) -> Steps:
        """Remove consumers that have had nothing pending for a day. Their names never come back."""
        timeout = self._machine.config.consumer_timeout * 1000
        gone: list[Command] = []
        for queue in self._queues:
            for row in self._control.reclaimer.consumers.get(queue.keys.queue, ()):
                name, idle = row.get(b"name"), row.get(b"idle")
                silent = isinstance(idle, int) and idle > timeout and row.get(b"pending") == 0
                if silent and isinstance(name, bytes) and name != self._machine.consumer:
                    gone.append(("XGROUP", "DELCONSUMER", queue.keys.stream, GROUP, name))
        if gone:
            yield gone

    def _clock(self) -> Steps:
        answer = yield [("TIME",)]
        if not isinstance(answer.replies[0], ServerError):
            self._machine.clock.observed(parse_time(answer.replies[0]), answer.sent, answer.now)


def _number(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or b"0")


def _ownerless(results: list[Reply]) -> tuple[list[bytes], bytes]:
    """Delivered entries of one page that nobody has pending, and where the next page starts (empty: no more)."""
    groups, pending, page = results
    delivered = (0, 0)
    for row in groups if isinstance(groups, list) else []:
        group = parse_flat(row)
        last = group.get(b"last-delivered-id")
        if group.get(b"name") == GROUP and isinstance(last, bytes):
            delivered = _number(last)
    owned = [row.entry_id for row in parse_pending(pending)]
    ids = [entry_id for entry_id, _ in parse_entries(page)]
    # A whole page tells nothing of what lies behind its last id.
    known_up_to = min((rows[-1] for rows in (owned, ids) if len(rows) == PAGE), key=_number, default=None)
    limit = delivered if known_up_to is None else min(delivered, _number(known_up_to))
    orphans = [entry_id for entry_id in ids if entry_id not in owned and _number(entry_id) <= limit]
    return orphans, b"" if known_up_to is None or limit == delivered else b"(" + known_up_to
