"""Dead letters: read them, put them back, delete them.

Putting one back is a transaction, under a WATCH of the dead letters, that adds the task to its queue and deletes
the letter. So of two people who replay the same letter one succeeds, and a transaction whose reply was lost
can be tried again: it either finds the letter gone, or writes to what the late one watches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from streamfleet.cli.session import Session
from streamfleet_core.connection import Command
from streamfleet_core.errors import WrongKeyType
from streamfleet_core.keys import QueueKeys
from streamfleet_core.replies import parse_entries
from streamfleet_core.wire import F_DEAD_AT, F_LAST_ERROR, F_REASON, F_TRACEBACK

PAGE = 500
NOTES = (F_REASON, F_DEAD_AT, F_LAST_ERROR, F_TRACEBACK)
"""Fields that make a task a dead letter; a task that is put back starts without them."""
ANEW = {b"retries": b"0", b"expires_ts": b"0"}
"""It gets all its attempts again, and whoever asks for it now wants it now."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them."""

    entry_id: bytes
    fields: list[bytes]

    @property
    def values(self) -> dict[bytes, bytes]:
        """Its fields by name."""
        return dict(zip(self.fields[::2], self.fields[1::2], strict=True))

    def text(self, name: bytes) -> str:
        """A field as text; empty when it is not there."""
        return self.values.get(name, b"").decode(errors="backslashreplace")

    @property
    def died_ms(self) -> int:
        """Unix ms at which it became one."""
        text = self.text(F_DEAD_AT)
        return int(text) if text.isdigit() else int(self.entry_id.partition(b"-")[0])

    def task(self) -> list[bytes]:
        """The entry that puts it back."""
        pairs = zip(self.fields[::2], self.fields[1::2], strict=True)  # an undecodable one may repeat a name
        return [part for name, value in pairs if name not in NOTES for part in (name, ANEW.get(name, value))]


def letters(session: Session, keys: QueueKeys, only: Sequence[str] = ()) -> Iterator[DeadLetter]:
    """Those with the entry or task ids given, or all, oldest first. Raises ConnectionFailure, a ServerRefused."""
    start = b"-"
    while True:
        page = parse_entries(session.ask("XRANGE", keys.dead, start, "+", "COUNT", PAGE))
        for entry_id, fields in page:
            letter = DeadLetter(entry_id, fields or [])
            if not only or entry_id.decode() in only or letter.text(b"id") in only:
                yield letter
        if len(page) < PAGE:
            return
        start = b"(" + page[-1][0]


def replay(session: Session, keys: QueueKeys, letter: DeadLetter) -> bool:
    """Put it back into its queue. False: somebody else has replayed or deleted it.

    Raises ConnectionFailure, and a ServerRefused.
    """
    while True:
        _, kind, there = session.ask_all(
            [("WATCH", keys.dead), ("TYPE", keys.stream), ("XRANGE", keys.dead, letter.entry_id, letter.entry_id)]
        )
        if kind not in (b"stream", b"none"):
            # A transaction does not roll back: the letter would be deleted though the task was not added.
            raise WrongKeyType(f"key {keys.stream.decode()!r} is not a stream; nothing was put back")
        if not there:
            session.ask("UNWATCH")
            return False
        commands: list[Command] = [
            ("MULTI",),
            ("XADD", keys.stream, "*", *letter.task()),
            ("XDEL", keys.dead, letter.entry_id),
            ("EXEC",),
        ]
        if session.ask_all(commands)[-1] is not None:
            return True


def purge(session: Session, keys: QueueKeys, chosen: Sequence[DeadLetter]) -> int:
    """Delete them. Returns how many there still were. Raises ConnectionFailure, and a ServerRefused."""
    deleted = 0
    for at in range(0, len(chosen), PAGE):
        reply = session.ask("XDEL", keys.dead, *(letter.entry_id for letter in chosen[at : at + PAGE]))
        deleted += reply if isinstance(reply, int) else 0
    return deleted
