"""Credential providers: they are asked at each connection, and may have to fetch from afar what logs in.

A provider blocks for as long as it likes. It is asked in a thread of its own in every shell, so that it holds up
no event loop, and nobody waits for it beyond the deadline of the connect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import wait
from dataclasses import replace
from typing import Any, Protocol

from streamfleet.blocking_calls import BlockingCalls, result_in_trio
from streamfleet.deadline import Deadline
from streamfleet.handshake import Greeting
from streamfleet_core.errors import AuthenticationFailed, NotSent, UsageError

_LIBRARIES = ("redis.credentials", "valkey.credentials")


class CredentialProvider(Protocol):
    """The credential providers of redis-py and valkey-py."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """A password, or a user's name and password, that are valid now. May block."""
        ...


class Credentials:
    """Makes a driver's greeting for each connection, with what logs in at that moment.

    The methods raise NotSent when the provider fails, and AuthenticationFailed when what it gives cannot be sent.
    """

    def __init__(self, greeting: Greeting, provider: CredentialProvider | None) -> None:
        """Raises UsageError when the greeting has credentials already, or the provider is none."""
        if provider is not None and greeting.credentials:
            raise UsageError("give a credential provider, or a user name and password, not both")
        if provider is not None and not callable(getattr(provider, "get_credentials", None)):
            raise UsageError(f"a credential provider has get_credentials(), unlike {type(provider).__name__}")
        self._greeting = greeting
        self._provider = provider
        self._calls = BlockingCalls(f"the credential provider for {greeting.url}")

    def greeting(self, deadline: Deadline) -> Greeting:
        """For threads. Raises NotSent also when the provider has not answered by the deadline."""
        if self._provider is None:
            return self._greeting
        asked = self._calls.start_or_call(self._ask)
        wait([asked], deadline.left())
        if not asked.done():
            raise NotSent(f"{self._greeting.url}: the credential provider has not answered in time")
        return asked.result()

    async def greeting_asyncio(self) -> Greeting:
        """For asyncio; the caller bounds the time. A coroutine of the provider's own is awaited on the loop."""
        if self._provider is None:
            return self._greeting
        ask = _own_coroutine(self._provider)
        if ask is None:
            return await asyncio.wrap_future(self._calls.start(self._ask))
        try:
            answer = await ask()
        except Exception as error:
            raise self._failed(error) from error
        return self._filled(answer)

    async def greeting_trio(self) -> Greeting:
        """For trio; the caller bounds the time."""
        if self._provider is None:
            return self._greeting
        return await result_in_trio(self._calls.start(self._ask))

    def _ask(self) -> Greeting:
        assert self._provider is not None
        try:
            answer = self._provider.get_credentials()
        except Exception as error:
            raise self._failed(error) from error
        return self._filled(answer)

    def _failed(self, error: Exception) -> NotSent:
        return NotSent(f"{self._greeting.url}: the credential provider failed: {error!r}")

    def _filled(self, answer: Any) -> Greeting:
        # Only kinds are told: there may be a password in it.
        parts = list(answer) if isinstance(answer, tuple | list) else []
        if len(parts) in (1, 2) and all(isinstance(part, str) for part in parts):
            # Without what a class of the provider's own adds: one that masks itself would log in with the mask.
            return replace(self._greeting, credentials=tuple(map(str.__str__, parts)))
        kinds = [type(part).__name__ for part in parts]
        gave = type(answer).__name__ + (f" ({', '.join(kinds)})" if kinds else "")
        raise AuthenticationFailed(
            f"{self._greeting.url}: the credential provider gave {gave}; "
            "it must be a tuple of one str, the password, or of two, the user's name and the password"
        )


def _own_coroutine(provider: object) -> Callable[[], Awaitable[Any]] | None:
    """The provider's coroutine; None for that of the libraries' base class, which blocks the loop."""
    ask: Any = getattr(provider, "get_credentials_async", None)
    function = getattr(ask, "__func__", ask)
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
    inherited = name == "CredentialProvider.get_credentials_async" and module in _LIBRARIES
    return None if ask is None or inherited else ask
