"""Entering a client's receiver at the server, and making it (protocol, section 7).

The heartbeat comes before the stream, so that no stream is ever left without a trace.

A receiver that has vanished took notices with it. Once it has been made anew nothing tells of that any more, and
the answer to making it may be lost. So where there was one it is looked for first, and made only if it is missing.
"""

from __future__ import annotations

from collections.abc import Collection

from streamfleet_core.connection import Command, Reply
from streamfleet_core.keys import RECEIVER_GROUP, QueueKeys, receiver_key
from streamfleet_core.receiving import Receiver
from streamfleet_core.submission import Submission


class Registration:
    """Steps of the publish link, one exchange each, until the receiver is entered for all queues known by then."""

    __slots__ = ("_client_id", "_create", "_entering", "_queues", "_receiver", "_seeking")

    def __init__(self, client_id: str, queues: dict[str, QueueKeys], receiver: Receiver) -> None:
        self._client_id = client_id
        self._queues = queues
        self._receiver = receiver
        self._create: bool | None = None
        """Is it missing? None: to be looked for."""
        self._seeking = False
        """Does the exchange in flight look for it?"""
        self._entering: list[QueueKeys] = []
        """The queues that the exchange in flight is for; more may be met before it is answered."""

    def begin(self) -> None:
        """Whatever was in flight is forgotten."""
        self._create = None

    def commands(self, score: int) -> list[Command]:
        """The next exchange; ``score`` is the server's time (Unix ms)."""
        key = receiver_key(self._client_id)
        create = self._create if self._receiver.has_stream else True
        self._seeking = create is None
        if self._seeking:
            return [("EXISTS", key)]
        self._entering = list(self._queues.values())
        entries: list[Command] = [("ZADD", keys.receivers, score, self._client_id) for keys in self._entering]
        return [*entries, ("XGROUP", "CREATE", key, RECEIVER_GROUP, b"0", "MKSTREAM")] if create else entries

    def answered(self, replies: list[Reply], now: float, unsent: Collection[Submission]) -> None:
        """It went through. ``unsent``: tasks that are still to be sent, or to be sent again, and then notified."""
        if self._seeking:
            self._create = replies[0] == 0
            if self._create:
                self._receiver.missing(unsent)
        else:
            self._create = None
            self._receiver.registered(self._entering, now)
