"""The settle link of a worker: outcomes, beats and releases, fenced (protocol, section 4).

Everything that has gathered while one transaction was in flight leaves in the next:

    MULTI  [retry copy | schedule row | dead letter] [notice] …  XACK ids  XDEL ids  [beats] [releases]  EXEC
    WATCH fences  GET fences                                     (in the same write)

A delivery that is in doubt is verified first, with one XPENDING under the WATCH that is already held.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING

from streamfleet_core import safeguards
from streamfleet_core.connection import Command, Reply, ServerError, ServerIdentity
from streamfleet_core.events import EventKind
from streamfleet_core.keys import GROUP
from streamfleet_core.leaving import farewell
from streamfleet_core.link import FOREVER, Exchange, Link
from streamfleet_core.pressure import Memory, Pressure, bare_commands, bare_replies, needs_memory
from streamfleet_core.procedure import TRIAL, Answer, Steps
from streamfleet_core.replies import ErrorKind, abort_cause, classify, parse_pending, parse_time
from streamfleet_core.settlement import Commit, build
from streamfleet_core.state import Delivery, Phase, QueueState, Verdict

if TYPE_CHECKING:
    from streamfleet_core.worker import WorkerMachine

BATCH = 1000
"""Deliveries in one transaction."""
VERIFY_BATCH = 500
"""Owners asked for in one exchange."""

# CPython 3.11 finds members through a descriptor: slow where it is done for each task.
_SETTLING, _SETTLED = Phase.SETTLING, Phase.SETTLED
_RELEASING, _COMPLETED = Phase.RELEASING, Verdict.COMPLETED


class Stage(Enum):
    """What the exchange in flight was for."""

    ARM = "watch the fences and read them"
    VERIFY = "ask who owns the doubtful entries"
    COMMIT = "write outcomes, beats and releases"
    BARE = "end and renew entries without a transaction, because the server is out of memory"
    RESCUE = "put tasks back whose transfer failed"
    LEAVE = "give back what is left in our pending entries list, and remove the consumer"


class Settler:
    """See the module's text."""

    __slots__ = (
        "_armed",
        "_arming",
        "_asked",
        "_bare",
        "_commit",
        "_last_words",
        "_leaving",
        "_machine",
        "_next_beat",
        "_pending",
        "_pressure",
        "_queues",
        "_said_goodbye",
        "_sent_at",
        "_stage",
        "_suspect",
        "controller_gone",
        "link",
        "reader_gone",
        "rescues",
    )

    link: Link

    def __init__(self, machine: WorkerMachine, queues: list[QueueState], now: float) -> None:
        self._machine = machine
        self._queues = queues
        self._pending: deque[Delivery] = deque()
        self._armed = False
        self._arming: list[Command] = []
        """What precedes the WATCH in the exchange that arms."""
        self._sent_at = 0.0
        self._suspect: set[str] = set()
        """Queues for which a transaction of ours may still arrive: their fence is to be moved first."""
        self._stage = Stage.ARM
        self._asked: list[Delivery] = []
        self._bare: list[tuple[Delivery, Phase]] = []
        self._commit = Commit()
        self._last_words: list[Command] = []
        self._leaving: Steps | None = None
        """What is left to be said at the end of a graceful stop."""
        self.rescues: list[Command] = []
        """What puts tasks back that exist nowhere else."""
        self._next_beat = now
        self._pressure = Pressure()
        self._said_goodbye = False
        self.reader_gone = False
        self.controller_gone = False

    def add(self, delivery: Delivery) -> None:
        """An outcome was decided, or the delivery is to be given back."""
        self._pending.append(delivery)
        if self.link.sleeping:
            self.link.kick()

    # ---- duty ---------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """See `link.Duty.wanted`."""
        return True

    def finished(self) -> bool:
        """At the end of a graceful stop; without a server, as soon as there is nothing left to write."""
        if self._said_goodbye or self._machine.time.gave_up:
            return True
        return self._machine.stopping and not self.link.connected_now and self._may_leave()

    def deadline(self) -> float:
        """See `link.Duty.deadline`."""
        beat = self._next_beat if any(queue.in_flight for queue in self._queues) else FOREVER
        pressure = self._pressure
        return min(beat, pressure.until) if self._pending and pressure.memory is not Memory.ENOUGH else beat

    def begin(self, identity: ServerIdentity, now: float) -> None:
        """See `link.Duty.begin`."""
        self._armed = False

    def pull(self, now: float) -> Exchange | None:
        """The next exchange: arm, verify, or commit."""
        self._pressure.relax(now)
        if not self._armed or (self._suspect and self._pressure.memory is Memory.ENOUGH):
            return self._arm(now)
        if self.rescues:
            self._stage = Stage.RESCUE
            return Exchange(list(self.rescues))
        outcomes_, beats = self._outcomes(), self._due_beats(now)
        if self._pressure.memory is Memory.BARE and (outcomes_ or beats):
            return self._pull_bare(outcomes_, beats, now)
        doubtful = [d for d in (*outcomes_, *beats) if not safeguards.fence_holds(d.fence, d.queue.fence)]
        if doubtful:
            return self._verify(doubtful[:VERIFY_BATCH])
        if outcomes_ or beats:
            return self._begin_commit(outcomes_, beats, now)
        if self._machine.stopping and self._may_leave():
            return self._leave()
        return None

    def replies(self, replies: list[Reply], now: float) -> None:
        """Take the answer in, by stage."""
        stage = self._stage
        if stage is Stage.COMMIT:
            self._committed(replies, now)
        elif stage is Stage.ARM:
            self._armed_anew(replies, now)
        elif stage is Stage.VERIFY:
            self._verified(replies, now)
        elif stage is Stage.BARE:
            self._ended_bare(replies, now)
        elif stage is Stage.RESCUE:
            self._rescued(replies, now)
        else:
            self._left(Answer(replies, now, now))

    def lost(self, *, sent: bool, now: float) -> None:
        """The outcome of what was in flight is unknown, unless nothing was sent."""
        for queue in self._queues:
            queue.disconnected()
        if self._stage is Stage.COMMIT:
            self._take_back(self._commit, doubtful=sent)
        elif self._stage is Stage.BARE and sent:
            for delivery, phase in self._bare:
                delivery.doubt()
                delivery.maybe_applied = phase is Phase.SETTLING
        self._leaving = None
        self._stage = Stage.ARM

    # ---- arming -------------------------------------------------------------------------------------

    def _arm(self, now: float) -> Exchange:
        self._stage = Stage.ARM
        self._sent_at = now
        # What is written from here on may say when a task is due: by the server's clock, not by ours.
        commands: list[Command] = [*TRIAL] if self._machine.clock.synchronised else [*TRIAL, ("TIME",)]
        # A full server takes no fence. Until it does, only outcomes go on that may be written twice (`pressure`).
        enough = self._pressure.memory is Memory.ENOUGH
        for queue in self._queues:
            if enough and queue.keys.queue in self._suspect:
                commands += safeguards.self_invalidate(queue.keys.fence, self._machine.token())
        self._arming = commands
        return Exchange([*commands, *self._watch_and_get()])

    def _watch_and_get(self) -> list[Command]:
        """WATCH before GET, so that the value read is the value watched."""
        fences = [queue.keys.fence for queue in self._queues]
        return [safeguards.watch_fences(fences), *(("GET", fence) for fence in fences)]

    def _armed_anew(self, replies: list[Reply], now: float) -> None:
        watched = len(self._queues) + 1
        for command, reply in zip(self._arming, replies[:-watched], strict=True):
            if isinstance(reply, ServerError):
                self._server_says_no(abort_cause(reply) or reply, command, now)
                return
            if command == ("TIME",):
                self._machine.clock.observed(parse_time(reply), self._sent_at, now)
        if self._pressure.memory is Memory.ENOUGH:
            self._suspect.clear()
        self._rearmed(replies[-watched:], now)

    def _rearmed(self, replies: list[Reply], now: float) -> None:
        for command, reply in zip(self._watch_and_get(), replies, strict=True):
            if isinstance(reply, ServerError):
                self._armed = False
                self._server_says_no(reply, command, now)
                return
        self._armed = True
        for queue, value in zip(self._queues, replies[1:], strict=True):
            queue.fence = value if isinstance(value, bytes) else None

    # ---- choosing -----------------------------------------------------------------------------------

    def _outcomes(self) -> list[Delivery]:
        """Up to a batch of deliveries to settle or release; those that need memory wait while there is none."""
        enough = self._pressure.memory is Memory.ENOUGH
        if enough:
            first = list(islice(self._pending, BATCH))
            if all(d.phase is _SETTLING or d.phase is _RELEASING for d in first):
                return first
        chosen: list[Delivery] = []
        kept: list[Delivery] = []
        while self._pending and len(chosen) < BATCH:
            delivery = self._pending.popleft()
            if delivery.phase is not Phase.SETTLING and delivery.phase is not Phase.RELEASING:
                continue
            if not enough and needs_memory(delivery):
                kept.append(delivery)
            else:
                chosen.append(delivery)
        self._pending.extendleft(reversed((*chosen, *kept)))
        return chosen

    def _due_beats(self, now: float) -> list[Delivery]:
        """Entries to renew: at each quarter of the lease, all that are older than an eighth."""
        if now < self._next_beat:
            return []
        lease = self._machine.config.lease
        due = [
            delivery
            for queue in self._queues
            for delivery in queue.in_flight.values()
            if delivery.leased_from <= now - lease / 8 and delivery.phase is not Phase.RELEASING
        ]
        if not due:
            self._next_beat = now + lease / 4  # else the link would look again and again until one is old enough
        return due

    # ---- verification -------------------------------------------------------------------------------

    def _verify(self, doubtful: list[Delivery]) -> Exchange:
        self._stage = Stage.VERIFY
        self._asked = list(dict.fromkeys(doubtful))
        return Exchange([self._owner_query(delivery) for delivery in self._asked])

    @staticmethod
    def _owner_query(delivery: Delivery) -> Command:
        return ("XPENDING", delivery.queue.keys.stream, GROUP, delivery.entry_id, delivery.entry_id, 1)

    def _verified(self, replies: list[Reply], now: float) -> None:
        for delivery, reply in zip(self._asked, replies, strict=True):
            if isinstance(reply, ServerError):
                if classify(reply) is ErrorKind.NO_GROUP:
                    # The reader heals the group; the entry will be delivered again, to whomever.
                    self._resolve(delivery, None)
                    continue
                self._stage = Stage.ARM  # what was not answered is not known: ask again (`_pull_bare`)
                self._server_says_no(reply, self._owner_query(delivery), now)
                return
            rows = parse_pending(reply)
            self._resolve(delivery, rows[0].consumer if rows else None)

    def _resolve(self, delivery: Delivery, owner: bytes | None) -> None:
        """The owner of a doubtful delivery is known: us, others, or nobody because its entry has ended."""
        self._machine.counts["verified"] += 1
        if delivery.phase not in (Phase.READY, Phase.RUNNING, Phase.SETTLING, Phase.RELEASING):
            return
        if owner == self._machine.consumer:
            delivery.fence = delivery.queue.fence
            delivery.maybe_applied = False
            return
        if owner is None and delivery.maybe_applied and delivery.phase is Phase.SETTLING:
            self._settled(delivery)
        else:
            self._machine.lost(delivery, owner)
        self._machine.room_changed()

    # ---- transactions -------------------------------------------------------------------------------

    def _begin_commit(self, chosen: list[Delivery], beats: list[Delivery], now: float) -> Exchange:
        self._stage = Stage.COMMIT
        for _ in chosen:
            self._pending.popleft()
        if now >= self._next_beat:
            self._next_beat = now + self._machine.config.lease / 4
        machine = self._machine
        commit = self._commit = build(chosen, beats, machine.consumer, machine.clock.ms(now), now)
        return Exchange([*commit.commands, *self._watch_and_get()])

    def _committed(self, replies: list[Reply], now: float) -> None:
        commit = self._commit
        size = len(commit.commands)
        result = replies[size - 1]
        if isinstance(result, list):
            self._apply(commit, result)
        elif result is None:
            self._machine.counts["aborted"] += 1
            self._take_back(commit, doubtful=False)
            for delivery in (*commit.settled, *commit.released, *commit.beats):
                delivery.doubt()
        else:
            self._take_back(commit, doubtful=False)
            self._refused(commit, replies[:size], now)
        self._rearmed(replies[size:], now)
        self._commit = Commit()

    def _apply(self, commit: Commit, results: list[Reply]) -> None:
        for number, reply in enumerate(results, start=1):
            if isinstance(reply, ServerError):
                self._failed_inside(commit, number, reply)
        self._renew(commit, results)
        ended = self._machine.ended
        for delivery in commit.released:
            ended(delivery, Phase.RELEASED)
        if commit.released:
            self._machine.counts["released"] += len(commit.released)
            text = f"gave {len(commit.released)} entries back"
            self._machine.emit(EventKind.RELEASED, text, entries=len(commit.released))
        completed = 0
        for delivery in commit.settled:
            if delivery.verdict is _COMPLETED:
                ended(delivery, _SETTLED)
                completed += 1
            elif delivery in commit.rescued:
                ended(delivery, _SETTLED)
            else:
                self._settled(delivery)
        if completed:
            self._machine.counts[_COMPLETED.value] += completed
        self._machine.room_changed()

    @staticmethod
    def _renew(commit: Commit, results: list[Reply]) -> None:
        """Entries that a beat did not claim are not pending any more: somebody deleted or acknowledged them."""
        renewed = commit.renewed(results)
        for delivery in commit.beats:
            if delivery.entry_id in renewed:
                delivery.leased_from = commit.sent_at
            else:
                delivery.doubt()

    def _settled(self, delivery: Delivery) -> None:
        machine = self._machine
        machine.ended(delivery, Phase.SETTLED)
        verdict = delivery.verdict
        assert verdict is not None, "settled without a verdict"
        machine.counts[verdict.value] += 1
        if verdict is Verdict.RETRY:
            text = f"attempt failed, next in {delivery.delay_ms} ms: {delivery.error}"
            machine.emit(EventKind.RETRIED, text, delivery, delay_ms=delivery.delay_ms)
            if delivery.delay_ms:
                machine.lane_of(delivery.queue).controller.due_at(self._commit.sent_at + delivery.delay_ms / 1000)
        elif verdict is Verdict.DEAD:
            text = f"dead-lettered: {delivery.reason}"
            machine.emit(EventKind.DEAD_LETTERED, text, delivery, error=delivery.error)
        elif verdict is Verdict.EXPIRED:
            machine.emit(EventKind.EXPIRED, "expired before it was started", delivery)

    def _take_back(self, commit: Commit, *, doubtful: bool) -> None:
        """The transaction was not applied, or (``doubtful``) perhaps was."""
        for delivery in reversed(commit.settled):
            delivery.move(Phase.SETTLING)
            self._pending.appendleft(delivery)
            if doubtful:
                delivery.doubt()
                delivery.maybe_applied = True
                self._suspect.add(delivery.queue.keys.queue)
        for delivery in commit.released:
            delivery.move(Phase.RELEASING)
            self._pending.append(delivery)
            if doubtful:
                delivery.doubt()
        self._next_beat = min(self._next_beat, commit.sent_at) if commit.beats else self._next_beat

    # ---- trouble ------------------------------------------------------------------------------------

    def _refused(self, commit: Commit, replies: list[Reply], now: float) -> None:
        """The transaction was refused while it was queued; nothing was applied."""
        for command, reply in zip(commit.commands, replies, strict=True):
            if isinstance(reply, ServerError) and classify(reply) is not ErrorKind.ABORTED:
                self._server_says_no(reply, command, now)
                return
        result = replies[-1]
        assert isinstance(result, ServerError), "EXEC answers an array, nil or an error"
        self._server_says_no(abort_cause(result) or result, ("EXEC",), now)

    def _server_says_no(self, error: ServerError, command: Command, now: float) -> None:
        first = self._pressure.memory is Memory.ENOUGH
        if error.code == "OOM" and self._pressure.rise(now):
            if first:
                self._machine.emit(EventKind.BACKING_OFF, f"settle: {error.message}", role=self.link.role.value)
        else:
            self.link.trouble(error, command, now)

    def _failed_inside(self, commit: Commit, number: int, error: ServerError) -> None:
        """A command failed though the transaction went through: MULTI does not roll back.

        When it was to carry the task on, the task exists only here now: put it back into its queue, and stop,
        because the next one would fare no better.
        """
        command, delivery = commit.commands[number], commit.marks[number]
        why = self.link.explain(error, command)
        if delivery is None:
            self._machine.emit(EventKind.REFUSED, f"inside a transaction: {why}")
            return
        if delivery in commit.rescued:
            return
        commit.rescued.add(delivery)
        self._machine.counts["rescued"] += 1
        self._machine.emit(EventKind.RESCUED, f"put back into its queue: {why}", delivery)
        self.rescues.append(("XADD", delivery.queue.keys.stream, "*", *delivery.fields))
        self._machine.fail(why, commit.sent_at)

    def _rescued(self, replies: list[Reply], now: float) -> None:
        """Sent until it is accepted: here a duplicate is better than a loss."""
        left = [
            (command, reply)
            for command, reply in zip(self.rescues, replies, strict=True)
            if isinstance(reply, ServerError)
        ]
        self.rescues = [command for command, _ in left]
        if left:
            self.link.back_off(now, left[0][1].message)

    def _pull_bare(self, chosen: list[Delivery], beats: list[Delivery], now: float) -> Exchange:
        """Out of memory, and even in a transaction nothing is taken: ownership is asked for right before."""
        if self._stage is not Stage.VERIFY:
            return self._verify([*chosen, *beats][:VERIFY_BATCH])
        self._stage = Stage.BARE
        asked = set(self._asked).intersection((*chosen, *beats))
        sure = [d for d in self._asked if d in asked and safeguards.fence_holds(d.fence, d.queue.fence)]
        ends = set(chosen)  # the others are renewed; ended without what they need memory for, they would be lost
        self._bare = [(delivery, delivery.phase if delivery in ends else Phase.RUNNING) for delivery in sure]
        if now >= self._next_beat:
            self._next_beat = now + self._machine.config.lease / 4
        young_ms = int(self._machine.config.lease / 8 * 1000)
        self._sent_at = now
        return Exchange([*bare_commands(self._bare, self._machine.consumer, young_ms), ("PING",)])

    def _ended_bare(self, replies: list[Reply], now: float) -> None:
        for (delivery, phase), reply in zip(self._bare, bare_replies(self._bare, replies), strict=True):
            if isinstance(reply, ServerError):
                self._server_says_no(reply, ("XDEL", delivery.queue.keys.stream), now)
                return
            if phase is Phase.SETTLING:
                delivery.move(Phase.COMMITTING)
                self._settled(delivery)
            elif phase is Phase.RELEASING:
                delivery.move(Phase.RETURNING)
                self._machine.ended(delivery, Phase.RELEASED)
                self._machine.counts["released"] += 1
            elif reply:
                delivery.leased_from = self._sent_at
        self._machine.room_changed()

    # ---- leaving ------------------------------------------------------------------------------------

    def _may_leave(self) -> bool:
        waiting = self._pending or self.rescues
        return self._machine.idle and not waiting and self.reader_gone and self.controller_gone

    def _leave(self) -> Exchange:
        self._stage = Stage.LEAVE
        if self._leaving is None:
            self._leaving = farewell(self._queues, self._machine.consumer)
            self._last_words = next(self._leaving)
        return Exchange(self._last_words)

    def _left(self, answer: Answer) -> None:
        assert self._leaving is not None, "an answer to words that were not said"
        try:
            self._last_words = self._leaving.send(answer)
        except StopIteration:
            self._said_goodbye = True
