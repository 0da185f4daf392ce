"""streamfleet: a work queue on Redis Streams and Valkey Streams.

    from streamfleet.sync import Client, Worker       # or .asyncio, .trio
    from streamfleet.redis import RedisDriver          # or .valkey, .memory, …

Importing this package imports no client library.
"""

from streamfleet import errors
from streamfleet.drivers import driver_from_url
from streamfleet.task import Task
from streamfleet_core.errors import (
    BufferFull,
    DoNotRetry,
    NotAccepted,
    OutcomeLost,
    RetryLater,
    ServerRefused,
    StreamfleetError,
    TaskCancelled,
    TaskError,
    TaskExpired,
    TaskFailed,
)
from streamfleet_core.retry import RetryPolicy
from streamfleet_core.submission import Status

__all__ = [
    "BufferFull",
    "DoNotRetry",
    "NotAccepted",
    "OutcomeLost",
    "RetryLater",
    "RetryPolicy",
    "ServerRefused",
    "Status",
    "StreamfleetError",
    "Task",
    "TaskCancelled",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "driver_from_url",
    "errors",
]
