"""Packing and parsing: the parser in Python against hiredis and libvalkey."""

import itertools

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamfleet.resp
from streamfleet.resp import PYTHON_CODEC, ProtocolFault, PythonReader, installed_codec, pack_commands
from streamfleet_core.connection import ServerError

CODECS = [PYTHON_CODEC, installed_codec("hiredis"), installed_codec("libvalkey")]
each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)

arguments = st.one_of(
    st.binary(), st.text(st.characters(codec="utf-8")), st.integers(), st.floats(allow_nan=False)
)
lines = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=20)
replies = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40) | st.builds(ServerError, lines),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
)


def encoded(reply):
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case ServerError():
            return b"-" + reply.message.encode() + b"\r\n"
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(encoded, reply))


def read_all(reader):
    found = []
    while (reply := reader.gets()) is not False:
        found.append(reply)
    return found


def test_all_three_are_tried_here():
    assert [codec.name for codec in CODECS] == ["python", "hiredis", "libvalkey"]


def test_without_extensions_there_is_still_a_parser(monkeypatch):
    monkeypatch.setattr(streamfleet.resp, "find_spec", lambda name: None)
    assert installed_codec().name == "python"


@given(st.lists(st.lists(arguments, min_size=1, max_size=6).map(tuple), max_size=4))
def test_packs_as_hiredis_does(commands):
    assert pack_commands(commands) == b"".join(hiredis.pack_command(command) for command in commands)


@each_codec
@pytest.mark.parametrize("wrong", [None, True, ["x"], object()], ids=repr)
def test_packs_nothing_else(codec, wrong):
    with pytest.raises(TypeError):
        codec.pack([("SET", "key", wrong)])


@given(st.lists(replies, max_size=4), st.lists(st.integers(0, 300), max_size=6))
def test_parses_alike_however_the_bytes_arrive(expected, cuts):
    data = b"".join(map(encoded, expected))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for codec in CODECS:
        reader, found = codec.reader(), []
        for start, end in itertools.pairwise(edges):
            reader.feed(bytearray(data), start, end - start)
            found += read_all(reader)
        assert found == expected, codec.name


@each_codec
def test_status_and_nil_array(codec):
    reader = codec.reader()
    data = b"+OK\r\n*-1\r\n*0\r\n+\r\n"
    reader.feed(data, 0, len(data))
    assert read_all(reader) == [b"OK", None, [], b""]


@each_codec
def test_an_error_line_that_is_not_utf8(codec):
    reader = codec.reader()
    reader.feed(b"-ERR \xff\r\n", 0, 8)
    assert read_all(reader) == [ServerError("ERR �")]


@each_codec
@pytest.mark.parametrize("data", [b"HTTP/1.1 400\r\n", b"$x\r\n", b"*x\r\n", b":x\r\n"])
def test_what_is_not_resp_is_a_fault(codec, data):
    reader = codec.reader()
    reader.feed(data, 0, len(data))
    with pytest.raises(ProtocolFault):
        reader.gets()


def test_keeps_nothing_that_it_has_handed_out():
    reader = PythonReader()
    data = encoded(b"x" * 1000)
    for _ in range(100):
        reader.feed(data, 0, len(data))
        assert reader.gets() == b"x" * 1000
        assert reader.gets() is False
    assert len(reader._data) == 0
