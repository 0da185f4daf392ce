"""From the keyword arguments of `enqueue` to what the machine takes; the same for every shell."""

from __future__ import annotations

from functools import lru_cache

from streamfleet_core.client import DEFAULT_RETRY, PLAIN, Options
from streamfleet_core.errors import InvalidTask
from streamfleet_core.retry import RetryPolicy


def _check_delay(delay: object) -> None:
    # Before the cache, which takes True for 1 and cannot look up what has no hash.
    if isinstance(delay, bool) or not isinstance(delay, int | float):
        raise InvalidTask(f"retry_delay must be a number of seconds, got {type(delay).__name__}: {delay!r:.40}")
    if not delay >= 0:
        raise InvalidTask(f"retry_delay must be zero or more seconds, got {delay!r}")


@lru_cache(maxsize=256)
def _policy(max_retries: int | None, delay: float | None) -> RetryPolicy:
    if delay is None:
        return RetryPolicy(max_retries=max_retries)
    return RetryPolicy(max_retries=max_retries, delay=delay, max_delay=max(delay, DEFAULT_RETRY.max_delay))


def task_options(
    max_retries: int | None,
    retry_delay: float | None,
    retry: RetryPolicy | None,
    delay: float | None,
    at: float | None,
    expires_in: float | None,
    expires_at: float | None,
) -> Options:
    """Raises InvalidTask when a value is out of range, or when two say the same thing."""
    plain = max_retries == DEFAULT_RETRY.max_retries and type(max_retries) is int and retry_delay is None
    if retry is None and plain and delay is at is expires_in is expires_at is None:
        return PLAIN
    if retry is not None:
        if not isinstance(retry, RetryPolicy):
            raise InvalidTask(f"retry must be a RetryPolicy, got {type(retry).__name__}")
        if not plain:
            raise InvalidTask("give retry, or max_retries and retry_delay, not both")
        policy = retry
    else:
        if not isinstance(max_retries, int | None) or isinstance(max_retries, bool):
            raise InvalidTask(f"max_retries must be a whole number, or None for ever, got {max_retries!r:.40}")
        if retry_delay is not None:
            _check_delay(retry_delay)
        policy = _policy(max_retries, retry_delay)
    return Options(retry=policy, delay=delay, at=at, expires_in=expires_in, expires_at=expires_at)
