"""The ordered map under streams and pending lists, against a plain sorted dict; and glob patterns."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet.memory.glob import matches
from streamfleet.memory.idmap import IdMap

KEYS = st.integers(0, 40)
CHANGES = st.lists(st.tuples(st.booleans(), KEYS), max_size=300)


@given(CHANGES, st.tuples(KEYS, KEYS), st.integers(-1, 5))
def test_as_a_sorted_dict(changes: list[tuple[bool, int]], bounds: tuple[int, int], limit: int) -> None:
    ours: IdMap[int] = IdMap()
    plain: dict[int, int] = {}
    low, high = bounds
    for number, (add, key) in enumerate(changes):
        if add:
            ours.add(key, number + 1)
            plain[key] = number + 1
        else:
            assert ours.pop(key) == plain.pop(key, None)
        expected = [one for one in sorted(plain) if low <= one <= high]
        assert (ours.first(), ours.last()) == (min(plain, default=None), max(plain, default=None))
        assert ours.keys(low, high, limit) == (expected if limit < 0 else expected[:limit])
        backwards = expected[::-1]
        assert ours.keys_reversed(low, high, limit) == (backwards if limit < 0 else backwards[:limit])
    assert len(ours) == len(plain)
    assert ours.copy().by_id == plain
    assert ours.copy().keys(0, 40) == sorted(plain)


def test_room_of_what_was_removed_is_given_back() -> None:
    ours: IdMap[int] = IdMap()
    for key in range(10_000):
        ours.add(key, 1)
        if key >= 10:
            ours.pop(key - 10)
    assert len(ours._order) < 100


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        (b"", b"", True),
        (b"*", b"anything", True),
        (b"a*c*e", b"abcde", True),
        (b"a*c*e", b"abcd", False),
        (b"h?llo", b"hallo", True),
        (b"h?llo", b"hllo", False),
        (b"h[a-e]llo", b"hello", True),
        (b"h[e-a]llo", b"hello", True),
        (b"h[^a-e]llo", b"hello", False),
        (b"h[^a-e]llo", b"hillo", True),
        (b"[\\]]", b"]", True),
        (b"\\*", b"*", True),
        (b"\\*", b"a", False),
        (b"a\\", b"a\\", True),
    ],
)
def test_glob_patterns(pattern: bytes, subject: bytes, expected: bool) -> None:
    assert matches(pattern, subject) is expected


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_stars_and_question_marks_are_those_of_the_shell(pattern: str, subject: str) -> None:
    assert matches(pattern.encode(), subject.encode()) == fnmatch.fnmatchcase(subject, pattern)
