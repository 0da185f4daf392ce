"""The figures, from what was told, what was done and what was stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What happened to the tasks."""

    accepted: int
    """Tasks that the client took: `enqueue` returned, and had till the end to have the server accept them."""
    completed: int
    """Of these, those whose handler came to its end, at least once."""
    lost: int
    """Accepted, but neither completed nor kept among the dead letters."""
    enqueued_twice: int
    """Tasks of which the server has stored one and the same attempt more than once."""
    ran_twice: int
    """Tasks that handlers began more than once: allowed, and the reason why handlers should be idempotent."""
    reclaimed: int
    """Tasks that the killed worker held and others began."""
    buffered: int
    """Tasks that the client took while the server was down."""
    seconds: float

    @property
    def good(self) -> bool:
        """Was every promise kept?"""
        return self.lost == 0 and self.enqueued_twice == 0

    def as_dict(self) -> dict[str, int | float]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.accepted:,} accepted · {self.completed:,} completed · {self.lost:,} lost · "
            f"{self.enqueued_twice:,} enqueued twice · {self.ran_twice:,} ran twice"
        )


class Contradiction(Exception):
    """The records do not fit together."""


def count(
    *,
    accepted: Sequence[str],
    begun: Mapping[str, Sequence[str]],
    ended: Mapping[str, Sequence[str]],
    stored: Counter[tuple[str, str]],
    dead: set[str],
    held: set[str],
    victim: str,
    buffered: int,
    seconds: float,
) -> Figures:
    """Count.

    ``accepted``: ids of what the client took. ``begun`` and ``ended``: who began and ended each task.
    ``stored``: how often the server stored each attempt (see `appendonly.additions`). ``dead``: ids among the
    dead letters. ``held``: ids that ``victim`` had when it was killed. Times in seconds.

    Raises Contradiction when a handler worked on a task that the server has never stored: then one of the
    records cannot be trusted, and neither can a figure drawn from it.
    """
    stray = begun.keys() - {task for task, _ in stored}
    if stray:
        raise Contradiction(f"{len(stray)} tasks were worked on but never stored, for instance {min(stray)}")
    completed = {task for task in accepted if task in ended}
    return Figures(
        accepted=len(accepted),
        completed=len(completed),
        lost=sum(1 for task in accepted if task not in completed and task not in dead),
        enqueued_twice=len({task for (task, _), times in stored.items() if times > 1}),
        ran_twice=sum(1 for names in begun.values() if len(names) > 1),
        reclaimed=sum(1 for task in held if any(name != victim for name in begun.get(task, ()))),
        buffered=buffered,
        seconds=round(seconds, 1),
    )
