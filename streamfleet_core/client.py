"""The client machine: takes tasks into a bounded buffer, has the server accept them, and learns their outcome.

As the worker machine it does no I/O. A shell drives its links and calls

    enqueue(...)         into the buffer; a `Submission` comes back at once
    cancel(...)          a task that is still here or in the schedule
    close(now)           send what is buffered, then remove what is ours from the server

Per slot there is a *publish* link (`publishing`) and a *receive* link (`receiving`); the latter is only used
once a task has been tracked.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from streamfleet_core.clock import ServerClock
from streamfleet_core.config import MAX_DELAY, ClientConfig
from streamfleet_core.errors import BufferFull, Closed, InvalidTask, ServerRefused
from streamfleet_core.events import Event, EventKind
from streamfleet_core.ids import ENTROPY_BYTES, uuid7
from streamfleet_core.keys import QueueKeys, queue_keys
from streamfleet_core.link import Action, Finished, Link, Outage, Role
from streamfleet_core.publishing import Publisher
from streamfleet_core.receiving import Receiver
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status, Submission
from streamfleet_core.wire import AT_DATA, AT_EXPIRES, AT_ID, Task, encode_task

DEFAULT_RETRY = RetryPolicy()
MAX_TEMPLATES = 100
MAX_UNTOLD = 1000
"""Refused tasks that are kept for whoever flushes; nobody may."""
IDS_PER_DRAW = 128
"""Ids whose entropy is drawn at once."""

# CPython 3.11 finds members through a descriptor: slow where it is done for each task.
_BUFFERED, _SENT, _ACCEPTED = Status.BUFFERED, Status.SENT, Status.ACCEPTED


@dataclass(slots=True)
class Lane:
    """The duties and links for the queues of one slot."""

    client_id: str
    queues: dict[str, QueueKeys]
    plain: tuple[list[bytes], list[bytes]]
    """Encoded tasks without options, untracked and tracked, that lack only id and payload."""
    templates: dict[tuple[RetryPolicy, bool], list[bytes]]
    """The same for other retry policies, as they come."""
    publisher: Publisher
    receiver: Receiver
    publish: Link
    receive: Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one task is to be treated. Times in seconds; at most one of each pair.

    Raises InvalidTask when a value is out of range.
    """

    retry: RetryPolicy = DEFAULT_RETRY
    delay: float | None = None
    """Run no earlier than this many seconds from now."""
    at: float | None = None
    """Run no earlier than this Unix time (seconds)."""
    expires_in: float | None = None
    """Do not start later than this many seconds from now."""
    expires_at: float | None = None
    """Do not start later than this Unix time (seconds)."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further fields of the entry, for workers that know them."""

    def __post_init__(self) -> None:
        for one, other in (("delay", "at"), ("expires_in", "expires_at")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise InvalidTask(f"give {one} or {other}, not both")
        for name in ("delay", "at", "expires_in", "expires_at"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidTask(f"{name} must be a number of seconds, got {type(value).__name__}: {value!r:.40}")
            least = 0.0 if name in ("delay", "at", "expires_at") else -MAX_DELAY
            if not least <= value <= 1e12:
                raise InvalidTask(f"{name} must be zero or more seconds, got {value!r:.40}")
        if self.delay is not None and self.delay > MAX_DELAY:
            raise InvalidTask(f"delay must be at most {MAX_DELAY:g} seconds (ten years), got {self.delay!r:.40}")

    def expires_ms(self, server_ms: int) -> int:
        """The expiry as Unix ms, when the server's clock shows ``server_ms``; 0 = none."""
        if self.expires_in is not None:
            return max(1, server_ms + int(self.expires_in * 1000))
        return 0 if self.expires_at is None else max(1, int(self.expires_at * 1000))


PLAIN = Options()


class ClientMachine:
    """See the module's text.

    ``unique`` makes this client's id: it must never be used twice. ``entropy(n)`` gives n random bytes and
    ``random()`` a float in [0, 1).
    """

    def __init__(
        self,
        unique: str,
        queues: list[str],
        config: ClientConfig,
        *,
        now: float,
        wall_ms: float,
        entropy: Callable[[int], bytes],
        random: Callable[[], float],
        slot_of: Callable[[QueueKeys], int] = lambda keys: 0,
    ) -> None:
        self.unique = unique
        self.config = config
        self.entropy = entropy
        self.random = random
        self.clock = ServerClock(wall_ms, now)
        self.counts: Counter[str] = Counter()
        self.events: deque[Event] = deque(maxlen=10_000)
        self.kicked: list[Link] = []
        self.changed: list[Submission] = []
        """Submissions with a waiter whose status has changed, for the shell to wake."""
        self.new_links: list[Link] = []
        """Links that need a loop and have none yet, for the shell to start."""
        self.tracked: WeakValueDictionary[str, Submission] = WeakValueDictionary()
        """Tracked tasks that somebody still holds a handle of, by id."""
        self.buffered_tasks = 0
        self.buffered_bytes = 0
        self.pending = 0
        """Tasks that the server has not accepted yet, wherever they are."""
        self.refused_since: list[Submission] = []
        """Refused tasks that nobody has been told of yet, the first of them."""
        self.closing = False
        self.abandoned = 0
        """Tasks that were given up at the end, because they could not be sent in time."""
        self._entropy = b""
        self._entropy_at = 0
        self._slot_of = slot_of
        self._outage = Outage(self.events.append, self._buffer_text)
        self.lanes: dict[int, Lane] = {}
        self._lane_of: dict[str, tuple[QueueKeys, Lane]] = {}
        for queue in queues:
            self._route(queue)

    # ---- what a shell calls -------------------------------------------------------------------------

    @property
    def links(self) -> list[Link]:
        """All links that have been needed so far."""
        return [link for lane in self.lanes.values() for link in (lane.publish, lane.receive)]

    @property
    def refusal(self) -> ServerRefused | None:
        """Why the server will not work with us, if so."""
        for lane in self.lanes.values():  # asked for at each enqueue
            refusal = lane.publish.refusal or lane.receive.refusal
            if refusal is not None:
                return refusal
        return None

    @property
    def full(self) -> bool:
        """Is there no room in the local buffer?"""
        config = self.config
        return self.buffered_tasks >= config.buffer_tasks or self.buffered_bytes >= config.buffer_bytes

    def step(self, link: Link, now: float) -> Action:
        """What the loop of ``link`` should do next."""
        action = link.step(now)
        if type(action) is Finished and link.role is Role.RECEIVE:
            lane = self.lanes[link.slot]
            lane.publisher.receiver_gone = True
            lane.publish.kick()
        return action

    def enqueue(
        self, queue: str, data: bytes, now: float, options: Options = PLAIN, *, tracked: bool = False
    ) -> Submission:
        """Take a task into the buffer.

        Raises InvalidQueueName or InvalidTask for bad arguments, BufferFull when there is no room, Closed
        after `close`. Nothing is taken then.
        """
        keys, lane = self._lane_of.get(queue) or self._route(queue)
        if type(data) is not bytes:
            data = _payload(data)
        if len(data) > self.config.max_payload:
            raise InvalidTask(
                f"payload of {len(data):,} bytes exceeds the limit of {self.config.max_payload:,} bytes: "
                "store it elsewhere and send a reference, or raise the client's max_payload"
            )
        if self.closing:
            raise Closed("this client has been closed; create another one")
        if self.full:
            raise BufferFull(
                f"{self.buffered_tasks:,} tasks ({self.buffered_bytes:,} bytes) already wait for the server "
                f"(limits {self.config.buffer_tasks:,} tasks, {self.config.buffer_bytes:,} bytes)"
            )
        submission = self._submission(keys, lane, data, now, options, tracked)
        if submission.status is _BUFFERED:
            self.buffered_tasks += 1
            self.buffered_bytes += len(data)
            self.pending += 1
            if tracked:
                self.tracked[submission.id] = submission
                lane.receiver.want(lane.receive)
            lane.publisher.add(submission)
        return submission

    def _submission(
        self, keys: QueueKeys, lane: Lane, data: bytes, now: float, options: Options, tracked: bool
    ) -> Submission:
        server_ms = self.clock.ms(now)
        task_id = uuid7(server_ms, self._random_bytes())
        if options is PLAIN:
            fields = lane.plain[tracked].copy()
            fields[AT_ID] = task_id.encode()
            fields[AT_DATA] = data
            return Submission(keys, task_id, fields, tracked, 0, 0.0, 0)
        due_at = now + options.delay if options.delay else 0.0
        due_ms = int(options.at * 1000) if options.at else 0
        expires_ms = options.expires_ms(server_ms)
        template = lane.templates.get((options.retry, tracked)) or self._template(lane, options.retry, tracked)
        fields = template.copy()
        fields[AT_ID] = task_id.encode()
        fields[AT_DATA] = data
        if expires_ms:
            fields[AT_EXPIRES] = b"%d" % expires_ms
        for name, value in options.extra.items():
            fields += (name.encode(), value.encode())
        submission = Submission(keys, task_id, fields, tracked, expires_ms, due_at, due_ms)
        if options.expires_in is not None:
            submission.expires_at = now + options.expires_in
        if expires_ms and expires_ms <= server_ms:
            self.expire(submission)
        return submission

    def _template(self, lane: Lane, retry: RetryPolicy, tracked: bool) -> list[bytes]:
        if len(lane.templates) >= MAX_TEMPLATES:
            lane.templates.clear()
        template = lane.templates[retry, tracked] = _encoded(lane.client_id, retry, tracked)
        return template

    def _random_bytes(self) -> bytes:
        """The entropy of one id; fetched for many at a time."""
        start = self._entropy_at
        if start >= len(self._entropy):
            self._entropy, start = self.entropy(ENTROPY_BYTES * IDS_PER_DRAW), 0
        self._entropy_at = start + ENTROPY_BYTES
        return self._entropy[start : start + ENTROPY_BYTES]

    def cancel(self, submission: Submission) -> None:
        """Cancel a task that has not left its buffer, at once; one in the schedule, by asking the server.

        The status tells the outcome: CANCELLED means that it never runs.
        """
        lane = self._lane_of[submission.keys.queue][1]
        if submission.status is Status.BUFFERED:
            self.left_buffer(submission)
            self.pending -= 1
            self.resolve(submission, Status.CANCELLED)
        elif submission.scheduled and submission.status in (Status.SENT, Status.ACCEPTED):
            submission.cancelling = True
            lane.publisher.cancel(submission)

    def close(self, now: float, *, abandon: bool = False) -> None:
        """Accept nothing more; send what is buffered (unless ``abandon``) and leave the server clean."""
        self.closing = True
        for lane in self.lanes.values():
            if abandon:
                lane.publisher.abandon()
            lane.publish.kick()
            lane.receive.kick()

    # ---- inside the machine -------------------------------------------------------------------------

    def _route(self, queue: str) -> tuple[QueueKeys, Lane]:
        """Where tasks of ``queue`` go; made at its first use."""
        keys = queue_keys(queue)
        slot = self._slot_of(keys)
        lane = self.lanes.get(slot)
        if lane is None:
            lane = self.lanes[slot] = self._lane(slot, keys)
        lane.queues[queue] = keys
        self._lane_of[queue] = (keys, lane)
        return keys, lane

    def _lane(self, slot: int, keys: QueueKeys) -> Lane:
        client_id = keys.client_id(self.unique)
        queues: dict[str, QueueKeys] = {}
        receiver = Receiver(self, client_id, queues)
        publisher = Publisher(self, client_id, keys.producer(client_id), queues, receiver)
        publish, receive = (
            Link(role, slot, duty, self.random, self.events.append, self._outage, self.kicked.append)
            for role, duty in ((Role.PUBLISH, publisher), (Role.RECEIVE, receiver))
        )
        publisher.link, receiver.link, receiver.publish = publish, receive, publish
        self.new_links += (publish, receive)
        plain = _encoded(client_id, DEFAULT_RETRY, False), _encoded(client_id, DEFAULT_RETRY, True)
        return Lane(client_id, queues, plain, {}, publisher, receiver, publish, receive)

    def left_buffer(self, submission: Submission) -> None:
        """A submission left the buffer, one way or the other."""
        self.buffered_tasks -= 1
        self.buffered_bytes -= len(submission.fields[AT_DATA])

    def expire(self, submission: Submission) -> None:
        """It expired before it was sent."""
        self.counts["expired"] += 1
        text = f"task {submission.id} expired before it was sent"
        self.emit(EventKind.EXPIRED_LOCALLY, text, task=submission.id, queue=submission.keys.queue)
        self.resolve(submission, Status.EXPIRED)

    def accepted(self, submission: Submission) -> None:
        """The server has it."""
        self.pending -= 1
        if submission.status is _SENT:
            submission.status = _ACCEPTED
            if submission.waiter is not None:
                self.changed.append(submission)

    def given_up(self, queues: Collection[str], applied: int, sent_again: Collection[Submission]) -> None:
        """The server has lost what it accepted after batch ``applied``; what is not kept cannot be sent again."""
        for submission in list(self.tracked.values()):
            lost = submission.batch > applied and submission.status is Status.ACCEPTED
            if lost and submission.keys.queue in queues and submission not in sent_again:
                submission.error = "the server has lost it, and it was accepted too long ago to be sent again"
                self.resolve(submission, Status.UNKNOWN)

    def refused(self, submission: Submission, why: str) -> None:
        """The server refused this one task."""
        self.pending -= 1
        submission.error = why
        self.counts["refused"] += 1
        if len(self.refused_since) < MAX_UNTOLD:
            self.refused_since.append(submission)
        text = f"task {submission.id} for queue {submission.keys.queue!r} was not accepted: {why}"
        self.emit(EventKind.NOT_ACCEPTED, text, task=submission.id, queue=submission.keys.queue)
        self.resolve(submission, Status.REFUSED)

    def resolve(self, submission: Submission, status: Status) -> None:
        """The submission has reached its end."""
        submission.status = status
        if submission.waiter is not None:
            self.changed.append(submission)

    def emit(self, kind: EventKind, text: str, **data: object) -> None:
        """Tell the outside."""
        self.events.append(Event(kind, text, data))

    def token(self) -> bytes:
        """A value that no key of ours has had before."""
        return self.entropy(12).hex().encode()

    def _buffer_text(self) -> str:
        return f"; {self.buffered_tasks:,} buffered tasks are being sent" if self.buffered_tasks else ""


def _encoded(client_id: str, retry: RetryPolicy, tracked: bool) -> list[bytes]:
    task = Task("", "", client_id, b"", notify=tracked)
    retry.apply_to(task)
    return encode_task(task)


def _payload(data: object) -> bytes:
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise InvalidTask(
        f"payload must be bytes or str, got {type(data).__name__}: serialise it, for instance with json.dumps"
    )
