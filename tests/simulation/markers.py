"""Losses of the server, as clients see them at their markers (I16).

A client that has been told of batch n and reads a smaller number at its marker has detected a loss: it says so at
once, and nobody else does. What counts is what has arrived at the client, not what the server knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamfleet_core.connection import Command, Reply, ServerError

if TYPE_CHECKING:
    from .observer import Observer
    from .processes import Process


class Markers:
    """See the module's text."""

    def __init__(self, observer: Observer) -> None:
        self._world = observer.world
        self.greeted: dict[str, list[float]] = {}
        """When each client has heard what its marker says."""
        self._told: dict[str, int] = {}
        """The largest batch that each client was told of."""
        self._owed: dict[str, str] = {}
        """Clients that have seen a loss and not reported it yet."""
        self._suspicious: dict[str, str] = {}
        """Clients that have seen one in passing: they are to greet the marker next, and to judge then."""

    def heard(self, client: Process, commands: Sequence[Command], replies: Sequence[Reply]) -> None:
        """An exchange of a client's publish link has been answered, and the client is about to hear of it."""
        name, first = client.name, commands[0][0]
        self.judge(name)
        if name in self._suspicious:
            seen = self._suspicious.pop(name)
            if first != "UNWATCH":
                self._world.violated("I16", f"{name} has read {seen}, and goes on with {first}")
        if any(isinstance(reply, ServerError) for reply in replies):
            return
        if first == "UNWATCH":
            told = replies[[command[0] for command in commands].index("EXEC")]
            self._greeted(name, _batch(told[1] if isinstance(told, list) else None))
        elif first == "HGET":
            if _batch(replies[0]) < self._told.get(name, 0):
                self._suspicious[name] = self._difference(name, _batch(replies[0]))
        elif first == "MULTI":
            self._published(name, commands, replies)

    def _greeted(self, name: str, stored: int) -> None:
        self.greeted.setdefault(name, []).append(self._world.engine.now)
        if stored < self._told.get(name, 0):
            self._owed[name] = self._difference(name, stored)
        self._told[name] = stored

    def _difference(self, name: str, stored: int) -> str:
        return f"batch {stored} after it was told of {self._told[name]}"

    def _published(self, name: str, commands: Sequence[Command], replies: Sequence[Reply]) -> None:
        for position in range(len(commands) - 1, 0, -1):
            command = commands[position]
            if command[0] == "EXEC" and not isinstance(replies[position], list):
                return
            if command[0] == "HSET" and command[2] == "s":
                self._told[name] = max(self._told.get(name, 0), int(command[3]))
                return

    def reported(self, client: Process, text: str) -> None:
        """A client says that the server has lost something."""
        if self._owed.pop(client.name, None) is None or not self._world.losses:
            self._world.violated("I16", f"{client.name} reports a loss that has not happened: {text}")

    def judge(self, name: str) -> None:
        """A client has had its say: has it reported what it saw?"""
        seen = self._owed.pop(name, None)
        if seen is not None:
            self._world.violated("I16", f"{name} has read {seen}, and says nothing")

    def judge_all(self) -> None:
        """Nobody will say anything more."""
        for name in sorted(self._owed):
            self.judge(name)


def _batch(reply: Reply) -> int:
    return int(reply) if isinstance(reply, bytes) else 0
