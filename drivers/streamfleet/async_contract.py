"""What the asyncio and trio shells refuse before anything runs: the wrong driver, an unusable handler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from streamfleet_core.connection import AsyncDriver
from streamfleet_core.errors import InvalidHandler, WrongDriver

Library = Literal["asyncio", "trio"]

ONLY_FOR: dict[str, Library] = {"redis": "asyncio", "valkey": "asyncio", "trio": "trio"}
"""Drivers, by name, whose async form is for one of the two; the others serve both."""

FITTING = {
    "asyncio": "RedisDriver, ValkeyDriver, FakeDriver or MemoryDriver",
    "trio": "TrioDriver, FakeDriver or MemoryDriver",
}


def check_async_driver(driver: object, library: Library) -> AsyncDriver:
    """Raises WrongDriver when the object does not serve ``library``."""
    name = type(driver).__name__
    if not isinstance(driver, AsyncDriver):
        if hasattr(driver, "connect"):
            raise WrongDriver(f"{name} serves threads, not {library}: use {FITTING[library]}")
        raise WrongDriver(f"expected a driver, got {driver!r:.80}: for {library} use {FITTING[library]}")
    inner = getattr(driver, "driver", driver)  # an embedded server's driver stands before another
    served = ONLY_FOR.get(inner.name, library)
    if served != library:
        raise WrongDriver(f"{type(inner).__name__} serves {served}, not {library}: use {FITTING[library]}")
    return driver


def check_async_handler(queue: str, function: Callable[..., Any], *, threads: bool) -> None:
    """Raises InvalidHandler for a plain function without ``threads``, and for an async one with it."""
    if not callable(function):
        return  # `Handlers.register` says so
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
    name = handler_name(function)
    if is_async and threads:
        raise InvalidHandler(f"handler {name} of queue {queue!r} is async: it cannot run in a thread")
    if not is_async and not threads:
        raise InvalidHandler(
            f"handler {name} of queue {queue!r} is a plain function, which would block the event loop: "
            "make it async, or register it with threads=True to run it in a worker thread"
        )


def handler_name(function: object) -> str:
    """The handler's name, for people."""
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    return str(name or type(function).__qualname__)
