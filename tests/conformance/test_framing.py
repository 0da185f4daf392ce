from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_conformance.framing import (
    MORE,
    Frames,
    FramingError,
    PythonReader,
    Reader,
    new_reader,
    parse_frame,
)

READERS = pytest.mark.parametrize("reader", [new_reader, PythonReader], ids=["hiredis", "python"])

REPLIES = [
    b"+OK\r\n",
    b"-ERR wrong\r\n",
    b":-12\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"$0\r\n\r\n",
    b"$6\r\na\r\nb\r\n\r\n",
    b"*0\r\n",
    b"*2\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nk\r\n$2\r\n\r\n\r\n*3\r\n:1\r\n$-1\r\n+QUEUED\r\n",
]


def request(*arguments: bytes) -> bytes:
    return b"".join((b"*%d\r\n" % len(arguments), *(b"$%d\r\n%b\r\n" % (len(a), a) for a in arguments)))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@READERS
@given(
    commands=st.lists(st.lists(st.binary(max_size=9), min_size=1, max_size=4), max_size=6),
    cuts=st.lists(st.integers(0, 999), max_size=6),
)
def test_requests_are_found_however_the_bytes_arrive(
    reader: Callable[[], Reader], commands: list[list[bytes]], cuts: list[int]
) -> None:
    frames = Frames(reader())
    found: list[list[bytes]] = []
    for piece in pieces(b"".join(request(*command) for command in commands), cuts):
        found += frames.feed(piece)
    assert found == commands


@READERS
@given(
    replies=st.lists(st.sampled_from(REPLIES), max_size=8),
    cuts=st.lists(st.integers(0, 999), max_size=6),
)
def test_replies_are_counted_however_the_bytes_arrive(
    reader: Callable[[], Reader], replies: list[bytes], cuts: list[int]
) -> None:
    frames = Frames(reader())
    assert sum(len(frames.feed(piece)) for piece in pieces(b"".join(replies), cuts)) == len(replies)


@given(
    replies=st.lists(st.sampled_from(REPLIES), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 99), max_size=3),
)
def test_both_readers_agree_on_what_is_complete(replies: list[bytes], cuts: list[int]) -> None:
    ours, theirs = PythonReader(), hiredis.Reader(notEnoughData=MORE)
    for piece in pieces(b"".join(replies), cuts):
        ours.feed(piece)
        theirs.feed(piece)
        while (value := ours.gets()) is not MORE:
            other = theirs.gets()
            assert isinstance(value, list) is isinstance(other, list)
            assert (value is None) is (other is None)
        assert theirs.gets() is MORE


@READERS
@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"*x\r\n", b"\x16\x03\x01\r\n"])
def test_other_protocols_are_refused(reader: Callable[[], Reader], garbage: bytes) -> None:
    with pytest.raises(FramingError):
        Frames(reader()).feed(garbage)


def test_a_frame_is_incomplete_at_every_cut() -> None:
    frame = REPLIES[-1]
    assert parse_frame(frame, 0) == ([[[b"1-0", [b"k", b"\r\n"]]], [b"1", None, b"QUEUED"]], len(frame))
    assert [parse_frame(frame[:cut], 0) for cut in range(len(frame))] == [None] * len(frame)


def test_hiredis_is_optional() -> None:
    program = (
        "import sys; sys.modules['hiredis'] = None\n"
        "from streamfleet_conformance.framing import PythonReader, new_reader\n"
        "assert isinstance(new_reader(), PythonReader)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
