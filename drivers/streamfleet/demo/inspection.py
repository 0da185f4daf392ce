"""The server's own state, asked for over a connection of our own."""

from __future__ import annotations

from streamfleet_core.connection import Command, Driver, Reply, ServerError
from streamfleet_core.errors import StreamfleetError
from streamfleet_core.keys import GROUP, queue_keys
from streamfleet_core.replies import parse_entries, parse_flat, parse_pending

MANY = 1_000_000
TIMEOUT = 10.0


class Inspector:
    """Looks at one queue. Not usable after the server has gone; make another one then."""

    def __init__(self, driver: Driver, queue: str) -> None:
        self._keys = queue_keys(queue)
        self._connection = driver.connect(TIMEOUT)

    def consumers(self) -> set[str]:
        """Names of the consumers that have read so far."""
        reply = self._connection.exchange([("XINFO", "CONSUMERS", self._keys.stream, GROUP)], TIMEOUT)[0]
        if isinstance(reply, ServerError):
            return set()  # the first worker to come creates the stream and its group
        rows = [parse_flat(row) for row in _list(reply)]
        return {name.decode() for row in rows if isinstance(name := row[b"name"], bytes)}

    def held_by(self, consumer: str) -> set[str]:
        """Ids of the tasks in a consumer's pending entries list."""
        rows = parse_pending(self._ask("XPENDING", self._keys.stream, GROUP, "-", "+", MANY, consumer))
        return {
            task for row in rows for task in self._tasks("XRANGE", self._keys.stream, row.entry_id, row.entry_id)
        }

    def left(self) -> int:
        """How many tasks are in the queue, in any state that is not an end."""
        waiting, scheduled = (
            self._ask("XLEN", self._keys.stream),
            self._ask("ZCARD", self._keys.schedule),
        )
        return _number(waiting) + _number(scheduled)

    def dead(self) -> set[str]:
        """Ids of the tasks among the dead letters."""
        return self._tasks("XRANGE", self._keys.dead, "-", "+")

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    def _tasks(self, *command: str | bytes) -> set[str]:
        entries = parse_entries(self._ask(*command))
        return {
            dict(zip(fields[::2], fields[1::2], strict=True))[b"id"].decode()
            for _, fields in entries
            if fields is not None
        }

    def _ask(self, *command: str | bytes | int) -> Reply:
        question: Command = command
        reply = self._connection.exchange([question], TIMEOUT)[0]
        if isinstance(reply, ServerError):
            raise StreamfleetError(f"the server answered {command[0]!r} with {reply.message}")
        return reply


def _list(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise StreamfleetError(f"expected a list from the server, got {reply!r:.80}")
    return reply


def _number(reply: Reply) -> int:
    if not isinstance(reply, int):
        raise StreamfleetError(f"expected a number from the server, got {reply!r:.80}")
    return reply
