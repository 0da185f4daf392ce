"""The data of a sorted set: scores by member, and members in the order of their scores."""

from __future__ import annotations

from bisect import bisect_left, insort


class SortedSet:
    """Members ordered by score, then by name."""

    __slots__ = ("order", "scores")

    def __init__(self) -> None:
        self.scores: dict[bytes, float] = {}
        self.order: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self.scores)

    def copy(self) -> SortedSet:
        """An independent twin."""
        twin = SortedSet()
        twin.scores = self.scores.copy()
        twin.order = self.order.copy()
        return twin

    def set(self, member: bytes, score: float) -> None:
        """Add a member, or move it to a new score."""
        self.remove(member)
        self.scores[member] = score
        insort(self.order, (score, member))

    def remove(self, member: bytes) -> bool:
        """Remove a member; whether it was there."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        del self.order[bisect_left(self.order, (score, member))]
        return True

    def between(self, low: Bound, high: Bound) -> list[tuple[float, bytes]]:
        """The members within two bounds of the score, rising."""
        start = self._position(low.score, after=low.exclusive)
        stop = self._position(high.score, after=not high.exclusive)
        return self.order[start:stop]

    def _position(self, score: float, *, after: bool) -> int:
        if after:
            return bisect_left(self.order, True, key=lambda pair: pair[0] > score)
        return bisect_left(self.order, (score, b""))


class Bound:
    """A bound of an interval of scores."""

    __slots__ = ("exclusive", "score")

    def __init__(self, score: float, exclusive: bool) -> None:
        self.score = score
        self.exclusive = exclusive
