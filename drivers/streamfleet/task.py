"""What a handler sees of its task."""

from __future__ import annotations

from collections.abc import Mapping

from streamfleet_core.errors import InvalidTask
from streamfleet_core.state import Delivery
from streamfleet_core.wire import F_NAME
from streamfleet_core.wire import Task as WireTask


class Task:
    """One attempt at a task, as a handler gets it. Read-only."""

    __slots__ = ("_delivery", "_task")

    def __init__(self, delivery: Delivery) -> None:
        if delivery.task is None:
            raise TypeError("only decoded entries are handed to handlers")
        self._delivery = delivery
        self._task: WireTask = delivery.task

    @property
    def id(self) -> str:
        """The task's id: the same in each attempt, so that handlers can recognise a repetition."""
        return self._task.id

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self._task.queue

    @property
    def data(self) -> bytes:
        """The payload."""
        return self._task.data

    @property
    def text(self) -> str:
        """The payload as UTF-8 text. Raises UnicodeDecodeError when it is not."""
        return self._task.data.decode()

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return self._task.attempt

    @property
    def retries_left(self) -> int | None:
        """How many retries may follow this attempt; None = without end."""
        task = self._task
        return None if task.max_retries < 0 else max(0, task.max_retries - task.retries)

    @property
    def deliveries(self) -> int:
        """How often this entry has been handed to a worker: more than 1 when a worker before us died."""
        return self._delivery.deliveries

    @property
    def name(self) -> str:
        """The task's name, where one was given; else empty."""
        return self._task.extra.get(F_NAME, b"").decode(errors="replace")

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """The entry's additional fields."""
        return self._task.extra

    @property
    def tracked(self) -> bool:
        """Does the client wait for the outcome?"""
        return self._task.notify

    @property
    def cancelled(self) -> bool:
        """Should the handler stop? Its outcome no longer counts, or will soon not."""
        return bool(self._delivery.cancelled)

    @property
    def cancel_reason(self) -> str:
        """Why it should stop; empty while it should not."""
        return self._delivery.cancelled

    def __repr__(self) -> str:
        return f"<Task {self.id} of {self.queue!r}, attempt {self.attempt}>"


def result_bytes(value: object) -> bytes | None:
    """What a handler returned, as it travels to the client: bytes, or text as UTF-8, or nothing."""
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, str):
        return value.encode()
    return None


def payload_bytes(data: object) -> bytes:
    """What a client sends. Raises InvalidTask for anything but bytes and text."""
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as problem:
            raise InvalidTask(f"payload is not valid text ({problem}): send bytes instead") from None
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise InvalidTask(
        f"payload must be bytes or str, got {type(data).__name__}: serialise it, for instance with json.dumps"
    )
