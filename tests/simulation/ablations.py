"""Each safeguard taken away from outside, to show that the invariants break without it.

``within``: in so many seeds of its profile a violation must be found; the product has no switch for any of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from streamfleet_core import safeguards
from streamfleet_core.connection import Command


@dataclass(frozen=True, slots=True)
class Ablation:
    """What stands in the place of which functions of `streamfleet_core.safeguards`."""

    profile: str
    within: int
    replacements: dict[str, Callable[..., object]]


def _ping(*_: object) -> Command:
    return ("PING",)


def _nothing(*_: object) -> list[Command]:
    return []


def _always(*_: object) -> bool:
    return True


def _no_batch(stored: object) -> int:
    return 0


def _watch_nothing(fences: Sequence[bytes]) -> Command:
    return ("PING",)


ABLATIONS: dict[str, Ablation] = {
    "fence": Ablation("suspensions", 100, {"watch_fences": _watch_nothing, "fence_holds": _always}),
    "self-invalidation": Ablation("late", 100, {"self_invalidate": _nothing}),
    "marker": Ablation("lossy", 100, {"record_batch": _nothing, "applied_batch": _no_batch}),
    "marker-watch": Ablation("late", 100, {"watch_marker": _nothing}),
    "own-pel-first": Ablation("partitions", 100, {"first_history_cursor": lambda: None}),
    "grace": Ablation("outages", 100, {"grace_is_over": _always}),
    "moves-token": Ablation("schedule", 100, {"watch_moves": _ping}),
    "sweep-compare": Ablation("collectors", 200, {"watch_receivers": _ping, "still_silent": _always}),
    "first-notice-wins": Ablation("clients", 100, {"notice_counts": _always}),
    "nomkstream": Ablation("crashes", 100, {"notice_options": lambda: ()}),
}


@contextmanager
def without(name: str) -> Iterator[None]:
    """Take the safeguard of this name away; an empty name takes nothing."""
    replacements = ABLATIONS[name].replacements if name else {}
    before = {function: getattr(safeguards, function) for function in replacements}
    for function, replacement in replacements.items():
        setattr(safeguards, function, replacement)
    try:
        yield
    finally:
        for function, original in before.items():
            setattr(safeguards, function, original)
