"""The worker machine: takes entries, hands them to handlers, and settles what became of them.

The machine does no I/O. A shell drives the machine's links (`link.Link`) with one loop each, and reports what
its handlers do:

    take(now)                 the next delivery for a free handler, or None
    handler_returned(...)     it completed
    handler_failed(...)       it raised; the machine decides between retry and dead letter
    stop(now)                 no new work; `finished` when all is given back or settled

See `state` for how a delivery moves and why that is safe.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from streamfleet_core.clock import ServerClock
from streamfleet_core.config import MAX_DELAY, WorkerConfig
from streamfleet_core.control import Controller
from streamfleet_core.errors import ServerRefused, UsageError
from streamfleet_core.events import Event, EventKind
from streamfleet_core.features import Feature
from streamfleet_core.keys import QueueKeys, queue_keys
from streamfleet_core.link import LARGEST_BACKOFF, Action, Finished, Link, Outage, Role
from streamfleet_core.reading import Reader
from streamfleet_core.retry import policy_of
from streamfleet_core.safeguards import Fence
from streamfleet_core.settling import Settler
from streamfleet_core.state import Delivery, Phase, QueueState, Verdict
from streamfleet_core.timekeeping import NO_CONTACT, Timekeeper
from streamfleet_core.wire import Undecodable, decode_task

MAX_ERROR = 500
"""Characters of an error message that travel with the task."""
MAX_TRACEBACK = 8_000
"""Characters of traceback text kept in a dead letter."""
SMOOTHING = 0.1
"""Weight of the newest handler duration in the running mean."""

# CPython 3.11 finds members through a descriptor: slow where it is done for each task.
_READY, _RUNNING, _SETTLING, _COMPLETED = Phase.READY, Phase.RUNNING, Phase.SETTLING, Verdict.COMPLETED


@dataclass(slots=True)
class Lane:
    """The duties and links for the queues of one slot."""

    queues: list[QueueState]
    reader: Reader
    settler: Settler
    controller: Controller
    read: Link
    settle: Link
    control: Link


class WorkerMachine:
    """See the module's text.

    ``consumer`` must be unique to this start of this process. ``entropy(n)`` gives n random bytes and
    ``random()`` a float in [0, 1). ``queues`` maps queue names to handler timeouts (seconds, 0 = none).
    """

    def __init__(
        self,
        consumer: str,
        queues: dict[str, float],
        config: WorkerConfig,
        *,
        now: float,
        wall_ms: float,
        entropy: Callable[[int], bytes],
        random: Callable[[], float],
        slot_of: Callable[[QueueKeys], int] = lambda keys: 0,
    ) -> None:
        if not queues:
            raise UsageError("worker: no handlers; register at least one with @worker.handler(queue)")
        self.consumer = consumer.encode()
        self.config = config
        self.entropy = entropy
        self.random = random
        self.clock = ServerClock(wall_ms, now)
        self.counts: Counter[str] = Counter()
        self.events: deque[Event] = deque(maxlen=10_000)
        self.kicked: list[Link] = []
        self.ready: deque[Delivery] = deque()
        self.held = 0
        """Deliveries in our hands in any phase that is not terminal."""
        self.running = 0
        self.stopping = False
        self.features: frozenset[Feature] = frozenset()
        """What the server can do beyond the baseline, once it has been asked."""
        self._failure: ServerRefused | None = None
        self._mean = 0.0
        self._outage = Outage(self.events.append, lambda: "")
        self.queues: dict[str, QueueState] = {
            name: QueueState(queue_keys(name), timeout) for name, timeout in queues.items()
        }
        slots: dict[int, list[QueueState]] = {}
        for queue in self.queues.values():
            slots.setdefault(slot_of(queue.keys), []).append(queue)
        self.lanes = {slot: self._lane(slot, members, now) for slot, members in slots.items()}
        self._lane_of = {queue.keys.queue: lane for lane in self.lanes.values() for queue in lane.queues}
        self.time = Timekeeper(self, now)
        self._link(Role.TIME, 0, self.time)

    def _lane(self, slot: int, queues: list[QueueState], now: float) -> Lane:
        reader = Reader(self, queues)
        settler = Settler(self, queues, now)
        controller = Controller(self, queues, now)
        read = self._link(Role.READ, slot, reader)
        settle = self._link(Role.SETTLE, slot, settler)
        control = self._link(Role.CONTROL, slot, controller)
        return Lane(queues, reader, settler, controller, read, settle, control)

    def _link(self, role: Role, slot: int, duty: Reader | Settler | Controller | Timekeeper) -> Link:
        # The grace rule trusts that every live owner beats within one lease of the end of an outage.
        pause = min(LARGEST_BACKOFF, self.config.lease / 4)
        emit, kicked = self.events.append, self.kicked.append
        link = duty.link = Link(role, slot, duty, self.random, emit, self._outage, kicked, pause)
        return link

    # ---- what a shell calls -------------------------------------------------------------------------

    @property
    def links(self) -> list[Link]:
        """All links, each to be driven by a loop of its own."""
        lanes = self.lanes.values()
        return [*(link for lane in lanes for link in (lane.read, lane.settle, lane.control)), self.time.link]

    @property
    def refusal(self) -> ServerRefused | None:
        """Why the server will not work with us, if so."""
        return self._failure or next((link.refusal for link in self.links if link.refusal is not None), None)

    def step(self, link: Link, now: float) -> Action:
        """What the loop of ``link`` should do next; also lets time pass (`Timekeeper.tick`)."""
        if now >= self.time.next_tick:
            self.time.tick(now)
        action = link.step(now)
        if type(action) is Finished and link.role is not Role.TIME:
            self._link_finished(link)
        return action

    def take(self, now: float) -> Delivery | None:
        """Give a free handler its next delivery, or None. Settles the expired ones on the way."""
        ready = self.ready
        while ready and not self.stopping:
            delivery = ready.popleft()
            task = delivery.task
            if delivery.phase is not _READY or task is None:
                continue
            if delivery.leased_from < now - self.time.patience:
                ready.appendleft(delivery)  # not renewed for so long that others may have it: wait for the beat
                return None
            if task.expires_ms:
                if not self.clock.synchronised:
                    ready.appendleft(delivery)  # our own clock may be wrong: wait for what the server's says
                    return None
                if task.expires_ms <= self.clock.at_least_ms(now):
                    self._decide(delivery, Verdict.EXPIRED)
                    continue
            delivery.move(_RUNNING)
            delivery.ran = True
            delivery.started = now
            self.running += 1
            self.time.started(delivery, now)
            return delivery
        return None

    def handler_returned(self, delivery: Delivery, now: float, result: bytes | None = None) -> None:
        """The handler completed; ``result`` travels in the notification."""
        if not self._handler_ended(delivery, now):
            return
        if result is not None:
            delivery.result = result
        self._decide(delivery, _COMPLETED)

    def handler_failed(
        self,
        delivery: Delivery,
        now: float,
        error: str,
        traceback: str = "",
        *,
        retry_in: float | None = None,
        final: bool = False,
    ) -> None:
        """The handler raised.

        ``retry_in`` (seconds, ten years at most) overrides the task's own delay (`RetryLater`); ``final`` forbids
        a retry (`DoNotRetry`).
        """
        if self._handler_ended(delivery, now):
            self._fail(delivery, error, traceback, retry_in, "not to be retried" if final else "")

    def handler_stopped(self, delivery: Delivery) -> None:
        """The handler was stopped because the delivery is cancelled, and has no outcome: give the entry back.

        For shells that can stop their handlers. Without contact to the server others may own the entry by now;
        giving it back goes under the fence like everything else, so that this changes nothing of theirs.
        """
        if delivery.phase is not Phase.RUNNING:
            return
        self._release_running(delivery)

    def stop(self, now: float, drain: float | None = None) -> None:
        """Take no new work, give back what has not started, and wait ``drain`` seconds for running handlers.

        Called again, it can only shorten that wait: whoever is in a hurry the second time gets his way.
        """
        self.time.stop(now + (self.config.drain if drain is None else drain))
        self.stopping = True
        for delivery in self.ready:
            if delivery.phase is Phase.READY:
                delivery.move(Phase.RELEASING)
                self._lane_of[delivery.queue.keys.queue].settler.add(delivery)
        self.ready.clear()
        self.kick_all()

    def kick_all(self) -> None:
        """Wake every loop."""
        for link in self.links:
            link.kick()

    def abandon(self) -> None:
        """The server refuses: stop at once. Only what exists nowhere else is put back first (call again, then)."""
        needed: list[Link] = []
        for lane in self.lanes.values():
            for link, keeper in ((lane.settle, lane.settler), (lane.control, lane.controller.mover)):
                if keeper.rescues and link.refusal is None and not self.time.gave_up:
                    needed += (link, self.time.link)
        for link in self.links:
            if link not in needed:
                link.stop()

    def give_up_running(self) -> None:
        """The time for handlers is over: give their entries back."""
        for queue in self.queues.values():
            for delivery in queue.in_flight.values():
                if delivery.phase is _RUNNING:
                    self.cancel(delivery, "the worker stops")
                    self._release_running(delivery)

    def time_out(self, delivery: Delivery) -> None:
        """Its handler takes too long: that counts as a failure."""
        timeout = delivery.queue.timeout
        self._not_running(delivery)
        text = f"{delivery.queue.keys.queue}: handler took longer than its timeout of {timeout:g} s"
        self.emit(EventKind.TIMED_OUT, text, delivery)
        self.cancel(delivery, "timeout")
        self._fail(delivery, f"timeout after {timeout:g} s", "", None, "")

    def _not_running(self, delivery: Delivery) -> None:
        self.running -= 1
        if delivery.deadline:
            self.time.ended(delivery)

    def _release_running(self, delivery: Delivery) -> None:
        self._not_running(delivery)
        delivery.move(Phase.RELEASING)
        self._lane_of[delivery.queue.keys.queue].settler.add(delivery)

    @property
    def failing_in_order(self) -> bool:
        """Is the refusal one after which what is in our hands can still be settled?"""
        return self._failure is not None and all(link.refusal is None for link in self.links)

    @property
    def idle(self) -> bool:
        """Nothing is in our hands."""
        return self.held == 0

    # ---- deliveries ---------------------------------------------------------------------------------

    def window(self) -> int:
        """How many entries to hold: enough that no handler waits, and no more than `prefetch_horizon` of work."""
        concurrency = self.config.concurrency
        if self._mean <= 0.0:
            return min(concurrency, self.config.max_prefetch)
        ahead = min(self.config.prefetch_horizon / self._mean, float(self.config.max_prefetch))
        return min(concurrency + int(concurrency * ahead), max(concurrency, self.config.max_prefetch))

    def received(
        self,
        queue: QueueState,
        entries: Iterable[tuple[bytes, list[bytes] | None]],
        fence: Fence,
        sent_at: float,
        deliveries: dict[bytes, int] | None = None,
        *,
        first: bool = False,
    ) -> int:
        """Entries are in our PEL, known to be ours under ``fence``. Returns how many were new to us.

        ``deliveries``: which delivery this is, of those that were not just read for the first time; without it
        in there it is not known. ``first``: they go before what waits.
        """
        new = 0
        in_flight = queue.in_flight
        plain = deliveries is None and not self.stopping
        for entry_id, fields in entries:
            if entry_id in in_flight or entry_id in queue.claiming:
                continue
            new += 1
            delivery = in_flight[entry_id] = self._admit(queue, entry_id, fields, fence, sent_at)
            self.held += 1
            if plain and delivery.verdict is None:
                self.ready.append(delivery)
                continue
            if deliveries is not None:
                delivery.counted = entry_id in deliveries
                delivery.deliveries = deliveries.get(entry_id, 1)
            self._place(delivery, first)
        self.counts["received"] += new
        return new

    def _place(self, delivery: Delivery, first: bool) -> None:
        """What to do with an entry that is not simply new."""
        limit = self.config.max_deliveries
        if delivery.verdict is not None:
            self._decide(delivery, delivery.verdict)
        elif delivery.deliveries > limit:
            delivery.reason = f"delivered {limit} times without being settled (limit {limit})"
            self._decide(delivery, Verdict.DEAD)
        elif self.stopping:
            delivery.move(Phase.RELEASING)
            self.lane_of(delivery.queue).settler.add(delivery)
        elif first:
            self.ready.appendleft(delivery)
        else:
            self.ready.append(delivery)

    def _admit(
        self, queue: QueueState, entry_id: bytes, fields: list[bytes] | None, fence: Fence, sent_at: float
    ) -> Delivery:
        if fields is None:
            delivery = Delivery(queue, entry_id, None, [], fence, sent_at)
            delivery.verdict = Verdict.VANISHED
            return delivery
        try:
            task = decode_task(fields, queue.keys.queue)
        except Undecodable as problem:
            delivery = Delivery(queue, entry_id, None, fields, fence, sent_at)
            delivery.verdict = Verdict.DEAD
            delivery.reason = f"undecodable: {problem}"
            return delivery
        return Delivery(queue, entry_id, task, fields, fence, sent_at)

    def ended(self, delivery: Delivery, phase: Phase) -> None:
        """A delivery reached a terminal phase."""
        delivery.move(phase)
        queue = delivery.queue
        del queue.in_flight[delivery.entry_id]
        if queue.ended_meanwhile is not None:
            queue.ended_meanwhile.add(delivery.entry_id)
        self.held -= 1
        if self.stopping and not self.held:
            self.kick_all()  # the settle links of other slots wait for this

    def lost(self, delivery: Delivery, owner: bytes | None) -> None:
        """Verification says that others own the entry, or that it is gone."""
        if delivery.phase is Phase.RUNNING:
            self._not_running(delivery)
        decided = delivery.verdict
        self.ended(delivery, Phase.LOST)
        self.counts["lost"] += 1
        where = f"now with {owner.decode(errors='replace')}" if owner else "gone"
        outcome = f"; its outcome ({decided.value}) was dropped" if decided else ""
        self.emit(EventKind.OWNERSHIP_LOST, f"entry no longer ours: {where}{outcome}", delivery)
        self.cancel(delivery, "others own the task now")

    def cancel(self, delivery: Delivery, why: str) -> None:
        """Ask the handler to stop (cooperative). Want of contact may give way to another reason."""
        if delivery.cancelled and delivery.cancelled != NO_CONTACT:
            return
        delivery.cancelled = why
        if callable(delivery.on_cancel):
            delivery.on_cancel()

    def _handler_ended(self, delivery: Delivery, now: float) -> bool:
        """Book-keeping for a handler that came back. False when its task was settled or lost without it."""
        if delivery.phase is not _RUNNING:
            self.counts["late"] += 1
            text = f"handler came back after {now - delivery.started:.1f} s, too late: {delivery.cancelled}"
            self.emit(EventKind.LATE_RETURN, text, delivery)
            return False
        self._not_running(delivery)
        mean = self._mean
        mean += (now - delivery.started - mean) * (SMOOTHING if mean else 1.0)
        self._mean = mean if mean > 1e-6 else 1e-6
        return True

    def _fail(self, delivery: Delivery, error: str, traceback: str, retry_in: float | None, final: str) -> None:
        task = delivery.task
        assert task is not None, "a delivery without a task never runs"
        delivery.error = error[:MAX_ERROR]
        delivery.traceback = traceback[-MAX_TRACEBACK:]
        if final or not task.retries_left:
            delivery.reason = final or (
                f"failed {task.attempt} times, {task.max_retries} retries allowed"
                if task.max_retries
                else "failed, no retries allowed"
            )
            self._decide(delivery, Verdict.DEAD)
            return
        if retry_in is None:
            delivery.delay_ms = policy_of(task).delay_ms(task.retries + 1, self.random())
        else:
            delivery.delay_ms = int(min(retry_in, MAX_DELAY) * 1000)
        self._decide(delivery, Verdict.RETRY)

    def _decide(self, delivery: Delivery, verdict: Verdict) -> None:
        delivery.verdict = verdict
        delivery.move(_SETTLING)
        self._lane_of[delivery.queue.keys.queue].settler.add(delivery)

    # ---- inside the machine -------------------------------------------------------------------------

    def fail(self, why: ServerRefused, now: float) -> None:
        """Something is wrong that the next task would meet too: finish in order, and say why."""
        if self._failure is None:
            self._failure = why
            self.emit(EventKind.REFUSED, str(why))
            self.stop(now)

    def room_changed(self) -> None:
        """Deliveries ended: readers may go on, those of other slots, too, for the room is one."""
        for lane in self.lanes.values():
            if lane.read.sleeping and lane.reader.room() > 0:
                lane.read.kick()
            lane.controller.reclaimer.room_changed()

    def token(self) -> bytes:
        """A value that no key of ours has had before: for fences and moves."""
        return self.entropy(12).hex().encode()

    def emit(self, kind: EventKind, text: str, delivery: Delivery | None = None, **data: object) -> None:
        """Tell the outside."""
        if delivery is not None:
            data["queue"] = delivery.queue.keys.queue
            data["entry"] = delivery.entry_id.decode()
            if delivery.task is not None:
                data["task"] = delivery.task.id
        self.events.append(Event(kind, text, data))

    def lane_of(self, queue: QueueState) -> Lane:
        """The lane that serves ``queue``."""
        return self._lane_of[queue.keys.queue]

    def _link_finished(self, link: Link) -> None:
        lane = self.lanes[link.slot]
        if link.role is Role.READ:
            lane.settler.reader_gone = True
        elif link.role is Role.CONTROL:
            lane.settler.controller_gone = True
        lane.settle.kick()
        self.time.link.kick()
