"""What the end of a delivery writes: retry copy, schedule row, dead letter, notification (protocol, section 4)."""

from __future__ import annotations

from streamfleet_core import safeguards
from streamfleet_core.connection import Command
from streamfleet_core.keys import QueueKeys, receiver_key
from streamfleet_core.state import Delivery, Verdict
from streamfleet_core.wire import (
    F_DEAD_AT,
    F_LAST_ERROR,
    F_REASON,
    F_RESULT,
    F_TRACEBACK,
    NoticeType,
    Notification,
    Task,
    encode_notification,
    encode_task,
    pack_fields,
)

NOTICES = {
    Verdict.COMPLETED: NoticeType.COMPLETED,
    Verdict.EXPIRED: NoticeType.EXPIRED,
    Verdict.DEAD: NoticeType.ERROR,
}


def transfer(delivery: Delivery, server_ms: int) -> list[Command]:
    """Where the task goes from here. Without these commands it would be gone when its entry ends."""
    keys = delivery.queue.keys
    if delivery.verdict is Verdict.RETRY:
        return _retry(delivery, keys, server_ms)
    if delivery.verdict is Verdict.DEAD:
        return [("XADD", keys.dead, "*", *dead_letter(delivery, server_ms))]
    return []


def _retry(delivery: Delivery, keys: QueueKeys, server_ms: int) -> list[Command]:
    fields = encode_task(next_attempt(delivery))
    if delivery.delay_ms <= 0:
        return [("XADD", keys.stream, "*", *fields)]
    assert delivery.task is not None, "only decoded tasks are retried"
    return schedule(keys, delivery.task.id, fields, server_ms + delivery.delay_ms)


def schedule(keys: QueueKeys, task_id: str, fields: list[bytes], due_ms: int) -> list[Command]:
    """Put a task into the schedule, to be moved into its stream at ``due_ms`` (Unix ms of the server)."""
    return [("ZADD", keys.schedule, due_ms, task_id), ("HSET", keys.scheduled, task_id, pack_fields(fields))]


def next_attempt(delivery: Delivery) -> Task:
    """The task as it is written for its retry."""
    task = delivery.task
    assert task is not None, "only decoded tasks are retried"
    extra = dict(task.extra)
    extra[F_LAST_ERROR] = delivery.error.encode(errors="backslashreplace")
    return Task(
        task.id,
        task.queue,
        task.client_id,
        task.data,
        task.max_retries,
        task.expires_ms,
        task.retry_delay_ms,
        task.notify,
        task.retries + 1,
        extra,
    )


def dead_letter(delivery: Delivery, server_ms: int) -> list[bytes]:
    """The entry as it came, and why it is dead."""
    extra = {F_REASON: delivery.reason.encode(errors="backslashreplace"), F_DEAD_AT: b"%d" % server_ms}
    if delivery.error:
        extra[F_LAST_ERROR] = delivery.error.encode(errors="backslashreplace")
    if delivery.traceback:
        extra[F_TRACEBACK] = delivery.traceback.encode(errors="backslashreplace")
    fields = list(delivery.fields)
    known = dict(zip(fields[::2], range(1, len(fields), 2), strict=False))
    for name, value in extra.items():
        if name in known:
            fields[known[name]] = value
        else:
            fields += (name, value)
    return fields


def notice(delivery: Delivery) -> list[Command]:
    """Tell the client that tracks the task how it ended, if its receiver still exists."""
    task = delivery.task
    if task is None or not task.notify or delivery.verdict not in NOTICES:
        return []
    extra = {} if delivery.result is None else {F_RESULT: delivery.result}
    error = ""
    if delivery.verdict is Verdict.DEAD:
        error = f"{delivery.error} ({delivery.reason})" if delivery.error else delivery.reason
    elif delivery.verdict is Verdict.EXPIRED:
        error = "expired before it was started"
    fields = encode_notification(Notification(task.id, NOTICES[delivery.verdict], error, extra))
    return [("XADD", receiver_key(task.client_id), *safeguards.notice_options(), "*", *fields)]
