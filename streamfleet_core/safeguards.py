"""The safeguards, one place each.

Everything here could be left out and the queue would still work on a good day. Each function is called
through this module, so that a test can take one safeguard away from outside and show that the invariants
then break. The names in brackets are those of the ablations.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamfleet_core.connection import Command, Reply


class _Unknown:
    """A fence value that equals no other: the entry's owner must be asked for."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()
Fence = bytes | None | _Unknown
"""The value of a queue's fence key (None when the key is missing), or `UNKNOWN`."""

TERMINAL_NOTICES_OPTIONS: tuple[str, ...] = ("NOMKSTREAM",)


def watch_fences(fences: Sequence[bytes]) -> Command:
    """[fence] Whoever reclaims sets the fence; a settlement in flight meanwhile aborts (protocol, section 4)."""
    return ("WATCH", *fences)


def fence_holds(taken_under: Fence, current: Fence) -> bool:
    """[fence] Was the entry taken under the fence that is being watched? If not, its owner must be asked for."""
    return taken_under == current and taken_under is not UNKNOWN


def bump_fence(fence: bytes, token: bytes) -> list[Command]:
    """[fence] Part of each reclaim: make every settlement in flight abort."""
    return [("SET", fence, token)]


def self_invalidate(fence: bytes, token: bytes) -> list[Command]:
    """[self-invalidation] After an unknown outcome: our own EXEC may still be on its way, so make it abort."""
    return [("SET", fence, token)]


def record_batch(marker: bytes, seq: int) -> list[Command]:
    """[marker] The batch's number is stored with the batch itself (protocol, section 3)."""
    return [("HSET", marker, "s", seq)]


def applied_batch(stored: Reply) -> int:
    """[marker] The number of the last batch that the server applied; 0 when it knows of none."""
    return int(stored) if isinstance(stored, bytes) else 0


def watch_marker(marker: bytes) -> list[Command]:
    """[marker-watch] A late EXEC of a broken connection aborts, because reconnecting writes the marker."""
    return [("WATCH", marker)]


def first_history_cursor() -> bytes | None:
    """[own-pel-first] Read the consumer's own pending entries before new ones (protocol, section 5)."""
    return b"0"


def grace_is_over(contact_since: float, now: float, lease: float) -> bool:
    """[grace] Reclaim only after one lease of uninterrupted contact: an outage makes everybody look idle."""
    return now - contact_since >= lease


def watch_moves(moves: bytes) -> Command:
    """[moves-token] Of several movers that read the same due tasks, one commits (protocol, section 6)."""
    return ("WATCH", moves)


def watch_receivers(receivers: bytes) -> Command:
    """[sweep-compare] Remove a dead client only if nobody has beaten meanwhile (protocol, section 8)."""
    return ("WATCH", receivers)


def still_silent(score: bytes, now: Reply) -> bool:
    """[sweep-compare] Has the client not beaten since its silence was noticed?"""
    return now == score


def notice_counts(already_terminal: bool) -> bool:
    """[first-notice-wins] Later notices for the same task change nothing."""
    return not already_terminal


def notice_options() -> tuple[str, ...]:
    """[nomkstream] A notice to a client that has gone must not bring its receiver back."""
    return TERMINAL_NOTICES_OPTIONS
