"""The floor: one thread, one bare connection, no safeguards. What a client library could reach at best.

It writes and reads the base format of `streamfleet_core.wire`, in batches, and waits for each batch's replies.
"""

from __future__ import annotations

import time
from typing import Any

from streamfleet.bench.bare import BareConnection
from streamfleet.bench.orders import (
    PAYLOAD,
    QUEUE,
    STAMP_BYTES,
    WAIT_SECONDS,
    WARM_QUEUE,
    Contender,
    Order,
    PlainAgent,
    Report,
    age_us,
    paced,
    stamp,
)
from streamfleet_core.connection import Command
from streamfleet_core.keys import GROUP, queue_keys, receiver_key
from streamfleet_core.wire import (
    AT_DATA,
    AT_ID,
    NoticeType,
    Notification,
    Task,
    encode_notification,
    encode_task,
)

BATCH = 500
"""XADDs in one write."""
PAGE = 100
"""Entries in one read."""
BLOCK_MS = 100
CLIENT = "floor"
CONSUMER = "floor"

STREAM = queue_keys(QUEUE).stream
RECEIVER = receiver_key(CLIENT)
_TEMPLATE = encode_task(Task("", QUEUE, CLIENT, b""))


def _add(number: int, payload: bytes, stream: bytes = STREAM) -> Command:
    """The XADD of a task."""
    fields = _TEMPLATE.copy()
    fields[AT_ID] = b"0192d3c0-0000-7000-8000-%012x" % number
    fields[AT_DATA] = payload
    return ("XADD", stream, "*", *fields)


def _read(block_ms: int) -> Command:
    """The read of new entries; it does not block when ``block_ms`` is 0."""
    block = ("BLOCK", block_ms) if block_ms else ()
    return ("XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", PAGE, *block, "STREAMS", STREAM, ">")


def _entries(reply: Any) -> list[Any]:
    entries: list[Any] = reply[0][1] if reply else []
    return entries


class _Connected(PlainAgent):
    """An agent's beginning."""

    def prepare(self) -> None:
        """Connect, and send one task to another queue."""
        self.connection = BareConnection(self.order.url)
        self.connection.exchange([_add(0, PAYLOAD, queue_keys(WARM_QUEUE).stream)])


class Enqueue(_Connected):
    """Many tasks, pipelined."""

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        start = time.perf_counter()
        for first in range(0, self.order.tasks, BATCH):
            last = min(first + BATCH, self.order.tasks)
            self.connection.exchange([_add(number, PAYLOAD) for number in range(first, last)])
        return {"seconds": [time.perf_counter() - start]}


class EnqueueEach(_Connected):
    """One task at a time, each with its own round trip."""

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        start = time.perf_counter()
        for number in range(self.order.tasks):
            self.connection.exchange([_add(number, PAYLOAD)])
        return {"seconds": [time.perf_counter() - start]}


class Drain(PlainAgent):
    """Read a page, call the handler with each task's fields, acknowledge and delete the page."""

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        start = time.perf_counter()
        connection = BareConnection(self.order.url)
        connection.exchange([("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")])
        left = self.order.tasks
        entries = _entries(connection.exchange([_read(0)])[0])
        while entries:
            for _, fields in entries:
                _handle(dict(zip(fields[::2], fields[1::2], strict=True)))
            ids = [entry_id for entry_id, _ in entries]
            left -= len(ids)
            connection.exchange([("XACK", STREAM, GROUP, *ids), ("XDEL", STREAM, *ids)])
            entries = _entries(connection.exchange([_read(0)])[0])
        if left:
            raise RuntimeError(f"{left} tasks are missing")
        return {"seconds": [time.perf_counter() - start]}


def _handle(task: dict[bytes, bytes]) -> None:
    """The handler of the drain."""


class Serve(PlainAgent):
    """Notify, settle and read on in one write."""

    def prepare(self) -> None:
        """See `PlainAgent.prepare`."""
        self.connection = BareConnection(self.order.url)
        self.connection.exchange([("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")])

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        ages: list[float] = []
        served = 0
        settle: list[Command] = []
        deadline = time.monotonic() + WAIT_SECONDS
        while served < self.order.tasks:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{served} of {self.order.tasks} tasks have come")
            entries = _entries(self.connection.exchange([*settle, _read(BLOCK_MS)])[-1])
            settle = self._serve(entries, ages) if entries else []
            served += len(entries)
        self.connection.exchange(settle)
        return {"ages_us": ages}

    @staticmethod
    def _serve(entries: list[Any], ages: list[float]) -> list[Command]:
        """Handle entries. Returns what is to be written for them."""
        settle: list[Command] = []
        for _, fields in entries:
            if len(fields[AT_DATA]) == STAMP_BYTES:
                ages.append(age_us(fields[AT_DATA]))
            settle.append(("XADD", RECEIVER, "*", *_notice(fields[AT_ID])))
        ids = [entry_id for entry_id, _ in entries]
        return [*settle, ("XACK", STREAM, GROUP, *ids), ("XDEL", STREAM, *ids)]


def _notice(task_id: bytes) -> list[bytes]:
    fields = encode_notification(_COMPLETED)
    fields[3] = task_id
    return fields


_COMPLETED = Notification("", NoticeType.COMPLETED)


class Wait(PlainAgent):
    """Tracked tasks: enqueue, delete the notices handled and read on in one write."""

    def prepare(self) -> None:
        """Connect, and wait for one task."""
        self.connection = BareConnection(self.order.url)
        self._notices = self._exchanges()
        next(self._notices)
        self._notices.send(1)

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        latencies: list[float] = []
        left = self.order.tasks
        start = before = time.perf_counter()
        flying = min(self.order.outstanding, left)
        got = self._notices.send(flying)
        left -= flying
        while True:
            now = time.perf_counter()
            latencies.append((now - before) * 1e6)
            before = now
            flying -= got
            send = min(got, left)
            if not flying and not send:
                return {"seconds": [now - start], "latencies_us": latencies}
            flying += send
            left -= send
            got = self._notices.send(send)

    def _exchanges(self) -> Any:
        """A generator: send it how many tasks to enqueue, get how many notices have come."""
        cursor, number, got = b"0", 0, 0
        handled: list[bytes] = []
        while True:
            count = yield got
            commands = [_add(number + more, PAYLOAD) for more in range(count)]
            number += count
            if handled:
                commands.append(("XDEL", RECEIVER, *handled))
            commands.append(
                ("XREAD", "COUNT", PAGE, "BLOCK", int(WAIT_SECONDS * 1000), "STREAMS", RECEIVER, cursor)
            )
            handled = [entry_id for entry_id, _ in _entries(self.connection.exchange(commands)[-1])]
            cursor = handled[-1]
            got = len(handled)


class Pace(PlainAgent):
    """One task at a time, at a given rate."""

    def prepare(self) -> None:
        """Connect, and wait for one task."""
        warm = Wait(Order(self.order.url, 1))
        warm.prepare()
        self.connection = warm.connection

    def run(self) -> Report:
        """See `PlainAgent.run`."""
        for number, at in enumerate(paced(self.order)):
            time.sleep(max(0.0, at - time.monotonic()))
            self.connection.exchange([_add(number, stamp())])
        return {}


AGENTS: Contender = {
    "enqueue": Enqueue,
    "enqueue-many": Enqueue,
    "enqueue-each": EnqueueEach,
    "drain": Drain,
    "serve": Serve,
    "wait": Wait,
    "pace": Pace,
}
