"""When a failed task runs again. Randomness is an argument.

On the wire a constant delay is the base format's ``retry_delay``; growth, bound and jitter share one extra field,
written only where it matters. So a task of the Go library has a constant delay, and a worker of the Go
library, which does not know the extra field, retries our tasks with the constant first delay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from streamfleet_core.errors import InvalidTask
from streamfleet_core.wire import F_BACKOFF, Task

MAX_DELAY = 2**31 - 1
"""Seconds (68 years)."""
MAX_RETRIES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a failed task runs again. Raises InvalidTask when a value is out of range."""

    max_retries: int | None = 3
    """Retries after the first attempt; 0: never retry; None: for ever."""
    delay: float = 1.0
    """Seconds before the first retry."""
    factor: float = 2.0
    """Each delay is the one before times this; 1 keeps it constant."""
    max_delay: float = 3600.0
    """Seconds that no delay exceeds before jitter; not less than ``delay``."""
    jitter: float = 0.1
    """Each delay varies by up to this fraction either way."""

    def __post_init__(self) -> None:
        most = self.max_retries
        if most is not None:
            if isinstance(most, bool) or not isinstance(most, int):
                raise InvalidTask(f"max_retries must be a whole number, or None for ever, got {_shown(most)}")
            if not 0 <= most <= MAX_RETRIES:
                raise InvalidTask(f"max_retries must be 0 to {MAX_RETRIES}, or None, got {_shown(most)}")
        for name, low, high in (
            ("delay", 0, MAX_DELAY),
            ("factor", 1, 1e6),
            ("max_delay", 0, MAX_DELAY),
            ("jitter", 0, 1),
        ):
            value = _checked(name, getattr(self, name), low, high)
            object.__setattr__(self, name, value)  # as a float: whole-number powers would grow without bound
        if self.delay > self.max_delay:
            raise InvalidTask(
                f"delay ({self.delay:g} s) exceeds max_delay ({self.max_delay:g} s); raise max_delay too"
            )

    def delay_ms(self, retries: int, unit: float) -> int:
        """Return the delay in ms before the attempt that follows ``retries`` failures (at least 1).

        ``unit`` is a random number from 0 to below 1. Raises ValueError when ``retries`` is less than 1.
        """
        if retries < 1:
            raise ValueError(f"a retry follows at least one failure, got retries={retries!r}")
        seconds = self.delay
        if self.factor != 1 and seconds:
            try:
                seconds = min(self.max_delay, seconds * self.factor ** (retries - 1))
            except OverflowError:
                seconds = self.max_delay
        return round(seconds * (1 + self.jitter * (2 * unit - 1)) * 1000)

    def apply_to(self, task: Task) -> None:
        """Write the policy into a task's attributes and its extra field, in whole ms."""
        task.max_retries = -1 if self.max_retries is None else self.max_retries
        task.retry_delay_ms = round(self.delay * 1000)
        backoff = _backoff(self)
        if backoff:
            task.extra[F_BACKOFF] = backoff
        else:
            task.extra.pop(F_BACKOFF, None)


def _shown(value: object) -> str:
    # Python refuses to write out numbers of some thousand digits.
    if isinstance(value, int) and abs(value) > 10**20:
        return "a number of more than 20 digits"
    return f"{value!r:.40}"


def _checked(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTask(f"{name} must be a number, got {type(value).__name__}: {_shown(value)}")
    # Written so that NaN, which compares false with everything, is refused.
    if not low <= value <= high:
        raise InvalidTask(f"{name} must be from {low:g} to {high:.10g}, got {_shown(value)}")
    return float(value)


@lru_cache(maxsize=256)
def _backoff(policy: RetryPolicy) -> bytes:
    """The extra field of a policy; empty for a constant delay."""
    if not policy.delay or (policy.factor == 1 and not policy.jitter):
        return b""
    return b"%b/%d/%b" % (_text(policy.factor), round(policy.max_delay * 1000), _text(policy.jitter))


def _text(value: float) -> bytes:
    return repr(value).removesuffix(".0").encode()


def policy_of(task: Task) -> RetryPolicy:
    """Return the policy that a task carries. Never raises: what is out of range is brought into it.

    Lenient, because extra fields are optional for the reader: a strange one must not kill a good task.
    """
    delay = min(max(task.retry_delay_ms, 0) / 1000, MAX_DELAY)
    factor, _, rest = task.extra.get(F_BACKOFF, b"").partition(b"/")
    bound, _, jitter = rest.partition(b"/")
    return RetryPolicy(
        max_retries=None if task.max_retries < 0 else min(task.max_retries, MAX_RETRIES),
        delay=delay,
        factor=min(max(_number(factor, 1.0), 1.0), 1e6),
        max_delay=min(max(_number(bound, math.inf) / 1000, delay), MAX_DELAY),
        jitter=min(max(_number(jitter, 0.0), 0.0), 1.0),
    )


def _number(text: bytes, default: float) -> float:
    try:
        value = float(text)
    except ValueError:
        return default
    return value if math.isfinite(value) else default
