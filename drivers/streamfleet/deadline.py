"""One deadline for all steps of a connect."""

from __future__ import annotations

from time import monotonic


class Deadline:
    """A moment that is ``seconds`` from now on; never, for infinity."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float) -> None:
        self._at = monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, 0 when it has passed."""
        return max(self._at - monotonic(), 0.0)
