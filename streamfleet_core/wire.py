"""Tasks and notifications as stream entries, and back.

An entry is a flat list ``[field, value, …]`` of bytes. We write the fields of the base format first and in a
fixed order (a stream stores entries with the same fields in half the space), then the extra ones; we read any
order.

Two things that the base format cannot say:

- ``max_retries`` counts 0 as "for ever", so "never retry" is written as 1 together with the extra field
  ``no_retry``. A worker of the Go library, which does not know the field, retries such a task once.
- Our `Task.max_retries` is the other way round, so that it can be compared: 0 never retries, -1 does for
  ever.

What does not decode raises `Undecodable`; nothing here guesses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

F_NO_RETRY = b"no_retry"
"""``1``: never retry."""
F_NAME = b"task"
"""Name of the task, which selects its handler."""
F_BACKOFF = b"backoff"
"""``factor/bound/jitter``: each retry delay is the one before times the factor, up to the bound (ms), varied by
the jitter (a fraction) either way; absent: the delay is constant."""
F_LAST_ERROR = b"last_error"
"""Why the last attempt failed."""
F_TRACEBACK = b"traceback"
"""Traceback of the last attempt."""
F_REASON = b"dead_reason"
"""Why a dead letter is one."""
F_DEAD_AT = b"dead_ms"
"""Unix ms at which a dead letter became one."""
F_CONTENT = b"content_type"
"""How ``data`` is encoded."""
F_RESULT = b"result"
"""In a notification: what the handler returned."""

_VERSION = b"1"
_MAX_INT64 = 2**63 - 1

_F_VERSION = b"enc_version"
_F_ID = b"id"
_F_CLIENT = b"client_id"
_F_DATA = b"data"
_F_MAX_RETRIES = b"max_retries"
_F_EXPIRES = b"expires_ts"
_F_RETRY_DELAY = b"retry_delay"
_F_NOTIFY = b"send_notif"
_F_RETRIES = b"retries"
_TASK_FIELDS = [
    _F_VERSION,
    _F_ID,
    _F_CLIENT,
    _F_DATA,
    _F_MAX_RETRIES,
    _F_EXPIRES,
    _F_RETRY_DELAY,
    _F_NOTIFY,
    _F_RETRIES,
]
_TASK_FIELD_SET = frozenset(_TASK_FIELDS)
_TASK_LENGTH = 2 * len(_TASK_FIELDS)

AT_ID = 3
"""Where a task's id stands in what `encode_task` returns."""
AT_DATA = 7
AT_EXPIRES = 11

_F_TASK_ID = b"task_id"
_F_TYPE = b"type"
_F_ERROR = b"err_msg"
_NOTICE_FIELDS = (_F_VERSION, _F_TASK_ID, _F_TYPE, _F_ERROR)


class Undecodable(ValueError):
    """An entry is not a task or notification that we can read; ``reason`` says why, for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Task:
    """A task as it travels. Encoding trusts the values: numbers must fit 64 bits."""

    id: str
    queue: str
    """Not on the wire: which stream the task is in says it."""
    client_id: str
    data: bytes
    max_retries: int = 3
    """-1: for ever; 0: never retry; otherwise so many retries after the first attempt."""
    expires_ms: int = 0
    """Unix ms after which the task is not started any more; 0: never expires."""
    retry_delay_ms: int = 0
    notify: bool = False
    """Whether the client wants to be told the outcome."""
    retries: int = 0
    """Attempts that have failed so far."""
    extra: dict[bytes, bytes] = field(default_factory=dict)
    """Fields beyond the base format, ours and unknown ones; kept when the task is encoded again."""

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.retries + 1

    @property
    def retries_left(self) -> bool:
        """Whether the task may run again if this attempt fails."""
        return self.max_retries < 0 or self.retries < self.max_retries


def encode_task(task: Task) -> list[bytes]:
    """Return the entry of a task: the nine base fields in fixed order, then the extra ones."""
    most = task.max_retries
    fields = [
        _F_VERSION,
        _VERSION,
        _F_ID,
        task.id.encode(),
        _F_CLIENT,
        task.client_id.encode(),
        _F_DATA,
        task.data,
        _F_MAX_RETRIES,
        b"%d" % most if most > 0 else b"0" if most else b"1",
        _F_EXPIRES,
        b"%d" % task.expires_ms,
        _F_RETRY_DELAY,
        b"%d" % task.retry_delay_ms,
        _F_NOTIFY,
        b"1" if task.notify else b"0",
        _F_RETRIES,
        b"%d" % task.retries,
    ]
    if not most:
        fields += (F_NO_RETRY, b"1")
    if task.extra:
        for name, value in task.extra.items():
            if name not in _TASK_FIELD_SET and name != F_NO_RETRY:  # those say what the attributes say
                fields += (name, value)
    return fields


def decode_task(fields: list[bytes], queue: str) -> Task:
    """Return the task of an entry of ``queue``. Raises Undecodable."""
    if fields[0:_TASK_LENGTH:2] == _TASK_FIELDS and not len(fields) % 2:
        version, task_id, client_id, data, most, expires, delay, notify, retries = fields[1:_TASK_LENGTH:2]
        extra = _further(fields)
    else:
        extra = _pairs(fields)
        version, task_id, client_id, data, most, expires, delay, notify, retries = _take(extra, _TASK_FIELDS)
    if version != _VERSION:
        raise Undecodable(f"enc_version {version!r:.40} is not known; this release reads {_VERSION!r}")
    try:
        return Task(
            task_id.decode(),
            queue,
            client_id.decode(),
            data,
            _max_retries(most, extra),
            0 if expires == b"0" else _natural(_F_EXPIRES, expires),
            0 if delay == b"0" else _repeating_natural(_F_RETRY_DELAY, delay),
            notify != b"0",
            0 if retries == b"0" else _natural(_F_RETRIES, retries),
            extra,
        )
    except UnicodeDecodeError as error:
        raise Undecodable(f"id or client_id is not UTF-8: {error.object!r:.80}") from None


def _further(fields: list[bytes]) -> dict[bytes, bytes]:
    """The extra fields, after the base ones in their fixed order."""
    length = len(fields)
    if length == _TASK_LENGTH:
        return {}
    if length == _TASK_LENGTH + 2:  # the retry policy alone: nearly all tasks
        extra = {fields[_TASK_LENGTH]: fields[_TASK_LENGTH + 1]}
    else:
        extra = _pairs(fields[_TASK_LENGTH:])
    if not _TASK_FIELD_SET.isdisjoint(extra):
        raise Undecodable("a field of the base format appears twice")
    return extra


def _max_retries(value: bytes, extra: dict[bytes, bytes]) -> int:
    number = _repeating_integer(_F_MAX_RETRIES, value)
    if extra and extra.get(F_NO_RETRY) == b"1":
        del extra[F_NO_RETRY]  # the attribute says it from here on, and encoding writes it anew
        return 0
    return number if number > 0 else -1


def _natural(name: bytes, value: bytes) -> int:
    number = _integer(name, value)
    if number < 0:
        raise Undecodable(f"{name.decode()} is negative: {number}")
    return number


def _integer(name: bytes, value: bytes) -> int:
    # int() alone would also take spaces, underscores and any number of digits.
    digits = value[1:] if value[:1] in (b"-", b"+") else value
    if not digits.isdigit():
        raise Undecodable(f"{name.decode()} is not a decimal number: {value!r:.40}")
    number = int(value) if len(digits) <= 40 else _MAX_INT64 + 1
    if not -_MAX_INT64 - 1 <= number <= _MAX_INT64:
        raise Undecodable(f"{name.decode()} does not fit 64 bits: {value!r:.40}")
    return number


# For the fields that have the same few values in most tasks.
_repeating_integer = lru_cache(maxsize=256)(_integer)
_repeating_natural = lru_cache(maxsize=256)(_natural)


def _pairs(fields: list[bytes]) -> dict[bytes, bytes]:
    if len(fields) % 2:
        raise Undecodable(f"an entry has fields in pairs, got {len(fields)} parts")
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    if 2 * len(pairs) != len(fields):
        raise Undecodable("a field appears twice")
    return pairs


def _take(pairs: dict[bytes, bytes], names: list[bytes] | tuple[bytes, ...]) -> list[bytes]:
    missing = [name.decode() for name in names if name not in pairs]
    if missing:
        raise Undecodable(f"missing field{'s' if len(missing) > 1 else ''}: {', '.join(missing)}")
    return [pairs.pop(name) for name in names]


def pack_fields(fields: list[bytes]) -> bytes:
    """Return the fields as one value, for a hash: each as its length, a colon, its bytes, a comma."""
    return b"".join([b"%d:%b," % (len(part), part) for part in fields])


def unpack_fields(packed: bytes) -> list[bytes]:
    """Return what `pack_fields` has packed. Raises Undecodable for anything that it cannot have written."""
    fields: list[bytes] = []
    at = 0
    while at < len(packed):
        colon = packed.find(b":", at, at + 20)
        digits = packed[at:colon] if colon > 0 else b""
        if not digits.isdigit() or (digits[:1] == b"0" and digits != b"0"):
            raise Undecodable(f"packed fields: no length at byte {at} of {len(packed)}")
        end = colon + 1 + int(digits)
        if packed[end : end + 1] != b",":
            raise Undecodable(f"packed fields: the field at byte {at} of {len(packed)} does not end at {end}")
        fields.append(packed[colon + 1 : end])
        at = end + 1
    return fields


def has_failed(packed: bytes) -> bool:
    """Tell whether the task of packed fields is a retry. What cannot be read counts as one: it may have run."""
    try:
        fields = unpack_fields(packed)
    except Undecodable:
        return True
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(_F_RETRIES) != b"0"


class NoticeType(Enum):
    """How a task ended, in the words of the base format."""

    COMPLETED = "completed"
    CANCELLED = "canceled"
    EXPIRED = "expired"
    ERROR = "error"


_NOTICE_TYPES = {kind.value.encode(): kind for kind in NoticeType}
_NOTICE_WORDS = {kind: word for word, kind in _NOTICE_TYPES.items()}


@dataclass(slots=True)
class Notification:
    """What a client is told about the end of a task."""

    task_id: str
    type: NoticeType
    error: str = ""
    extra: dict[bytes, bytes] = field(default_factory=dict)


def encode_notification(notice: Notification) -> list[bytes]:
    """Return the entry of a notification: the four base fields in fixed order, then the extra ones."""
    fields = [
        _F_VERSION,
        _VERSION,
        _F_TASK_ID,
        notice.task_id.encode(),
        _F_TYPE,
        _NOTICE_WORDS[notice.type],
        _F_ERROR,
        notice.error.encode(errors="backslashreplace"),  # a handler's error may hold lone surrogates
    ]
    for name, value in notice.extra.items():
        if name not in _NOTICE_FIELDS:
            fields += (name, value)
    return fields


def decode_notification(fields: list[bytes]) -> Notification:
    """Return the notification of an entry. Raises Undecodable."""
    extra = _pairs(fields)
    version, task_id, word, error = _take(extra, _NOTICE_FIELDS)
    if version != _VERSION:
        raise Undecodable(f"enc_version {version!r:.40} is not known; this release reads {_VERSION!r}")
    kind = _NOTICE_TYPES.get(word)
    if kind is None:
        raise Undecodable(f"notification type {word!r:.40} is not known")
    try:
        return Notification(task_id.decode(), kind, error.decode(errors="replace"), extra)
    except UnicodeDecodeError:
        raise Undecodable(f"task_id is not UTF-8: {task_id!r:.80}") from None
