import dataclasses

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from streamfleet_core.errors import InvalidQueueName
from streamfleet_core.keys import (
    MAX_QUEUE_NAME,
    SLOTS,
    QueueKeys,
    _tag_for_slot,
    check_queue_name,
    key_slot,
    queue_keys,
    receiver_key,
)

ODD_NAMES = [
    "a{b}c",
    "a{}b",
    "a}b",
    "a{b",
    "{x}",
    "{}",
    "}{",
    "{{}}",
    "{}{x}",
    "{x}{y}",
    "}",
    "{",
    "{}}",
    "}{x}",
]

# Braces and colons are what can go wrong, so most names hold some.
names = (st.text(st.sampled_from("{}:a1é"), min_size=1, max_size=12) | st.text(min_size=1, max_size=40)).filter(
    lambda name: _is_legal(name)
)


def _is_legal(name):
    try:
        check_queue_name(name)
    except InvalidQueueName:
        return False
    return True


def colocated(keys: QueueKeys) -> list[bytes]:
    return [keys.fence, keys.dead, keys.schedule, keys.scheduled, keys.moves, keys.producer("c}{1")]


def crc16_bit_by_bit(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        # The check value of CRC16-XMODEM, and answers of CLUSTER KEYSLOT.
        (b"123456789", 0x31C3 % SLOTS),
        (b"", 0),
        (b"foo", 12182),
        (b"{foo}", 12182),
        (b"x{foo}y{bar}", 12182),
        (b"x}{foo}", 12182),
    ],
)
def test_slot_of_known_keys(key, slot):
    assert key_slot(key) == slot


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"a{b}c", b"b"),
        (b"a{}b", b"a{}b"),
        (b"a{}{b}", b"a{}{b}"),
        (b"a{{b}}c", b"{b"),
        (b"a}b", b"a}b"),
        (b"a{b", b"a{b"),
        (b"}a{b}", b"b"),
    ],
)
def test_only_the_first_nonempty_tag_is_hashed(key, hashed):
    assert key_slot(key) == crc16_bit_by_bit(hashed) % SLOTS


@given(st.binary(max_size=60).filter(lambda key: b"{" not in key))
def test_slot_agrees_with_the_definition_of_the_crc(key):
    assert key_slot(key) == crc16_bit_by_bit(key) % SLOTS


def test_every_slot_has_a_tag_and_tags_hold_no_braces():
    found = {}
    number = 0
    while len(found) < SLOTS and number < 2**20:
        found.setdefault(key_slot(b"%x" % number), b"%x" % number)
        number += 1
    assert len(found) == SLOTS
    for slot in (0, 1, 4711, SLOTS - 1):
        assert _tag_for_slot(slot) == found[slot]


def test_keys_of_a_plain_name():
    keys = queue_keys("mail")
    assert dataclasses.asdict(keys) == {
        "queue": "mail",
        "stream": b"streamfleet:mail",
        "receivers": b"streamfleet:mail:receivers",
        "prefix": b"{streamfleet:mail}",
        "fence": b"{streamfleet:mail}:fence",
        "dead": b"{streamfleet:mail}:dead",
        "schedule": b"{streamfleet:mail}:schedule",
        "scheduled": b"{streamfleet:mail}:scheduled",
        "moves": b"{streamfleet:mail}:moves",
    }
    assert keys.producer("c1") == b"{streamfleet:mail}:producer:c1"
    assert keys.producer("\udcff") == b"{streamfleet:mail}:producer:\xff"
    assert keys.client_id("u1") == "{streamfleet:mail}u1"
    assert receiver_key("c1") == b"streamfleet:receiver:c1"


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("a{b}c", b"{b}17:streamfleet:a{b}c"),
        ("a{eu}b", b"{eu}18:streamfleet:a{eu}b"),
        ("a{b", b"{streamfleet:a{b}"),
        ("a}b", b"{19049}15:streamfleet:a}b"),
        ("{}", b"{222f}14:streamfleet:{}"),
    ],
)
def test_prefixes_of_names_with_braces_stay_what_they_are(name, prefix):
    # Part of the protocol: another value here would strand what other releases have written.
    assert queue_keys(name).prefix == prefix


@given(names)
@example("q")
def test_all_keys_of_a_queue_are_in_the_slot_of_its_stream(name):
    keys = queue_keys(name)
    slot = key_slot(keys.stream)
    assert {key_slot(key) for key in colocated(keys)} == {slot}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_all_keys_of_an_oddly_named_queue_are_in_the_slot_of_its_stream(name):
    test_all_keys_of_a_queue_are_in_the_slot_of_its_stream.hypothesis.inner_test(name)
    test_a_client_receives_in_the_slot_of_its_queue.hypothesis.inner_test(name)


@given(names)
def test_a_client_receives_in_the_slot_of_its_queue(name):
    keys = queue_keys(name)
    client_id = keys.client_id("0190163d-8694-739b-aea5-966c26f8ad91")
    assert key_slot(receiver_key(client_id)) == key_slot(keys.stream)
    assert key_slot(keys.producer(client_id)) == key_slot(keys.stream)


@given(names, st.sampled_from(["", ":fence", ":dead", ":producer:x", ":producer:x:fence", "}", "}:fence"]), names)
def test_two_queues_never_share_a_key(first, suffix, second):
    longer = first + suffix
    assume(_is_legal(longer))
    for other in {second, longer} - {first}:
        one, two = queue_keys(first), queue_keys(other)
        # Producers' ids are opaque, so not even a chosen one may lead into another queue's keys.
        ones = {*colocated(one), one.stream, one.receivers, one.producer("x:fence"), one.producer("x:moves")}
        twos = {*colocated(two), two.stream, two.receivers, two.producer("x:fence"), two.producer("x:moves")}
        assert not ones & twos
        assert not two.prefix.startswith(one.prefix)
        assert not one.prefix.startswith(two.prefix)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "^a queue's name must not be empty$"),
        ("receiver:x", "receiver:"),
        ("mail:receivers", ":receivers"),
        ("a\0b", "NUL"),
        ("a\ud800", "surrogate at index 1"),
        ("x" * (MAX_QUEUE_NAME + 1), f"queue name '{40 * 'x'}'… has {MAX_QUEUE_NAME + 1} bytes"),
        ("é" * (MAX_QUEUE_NAME // 2 + 1), f"{MAX_QUEUE_NAME + 2} bytes"),
        (b"mail", "must be a str, got bytes: b'mail'"),
        (None, "NoneType"),
        (7, "int"),
    ],
)
def test_names_that_cannot_be_a_queue_are_refused(name, told):
    with pytest.raises(InvalidQueueName, match=told):
        check_queue_name(name)
    with pytest.raises(InvalidQueueName, match=told):
        queue_keys(name)


@pytest.mark.parametrize("name", ["a", "receivers", "x:receiver:y", "a b", "é", "x" * MAX_QUEUE_NAME])
def test_names_that_are_close_to_refused_ones_are_fine(name):
    assert check_queue_name(name) is name


def test_keys_are_made_once():
    assert queue_keys("cached") is queue_keys("cached")
