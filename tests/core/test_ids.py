import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_core.ids import is_uuid, timestamp_ms, uuid7

times = st.integers(0, 2**48 - 1)
entropies = st.binary(min_size=10, max_size=10)


def test_the_example_of_the_rfc():
    # RFC 9562, appendix A.6: rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F.
    made = uuid7(0x017F22E279B0, bytes.fromhex("0cc318c4dc0c0c07398f"))
    assert made == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(times, entropies)
def test_an_id_is_a_canonical_uuid_of_version_7(ms, entropy):
    made = uuid7(ms, entropy)
    parsed = uuid.UUID(made)
    assert str(parsed) == made
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert is_uuid(made)
    assert timestamp_ms(made) == ms


@given(times, entropies, times, entropies)
def test_ids_sort_by_time(ms, entropy, other_ms, other_entropy):
    if ms < other_ms:
        assert uuid7(ms, entropy) < uuid7(other_ms, other_entropy)


@given(times, entropies, st.integers(0, 79))
def test_every_random_bit_but_those_of_version_and_variant_counts(ms, entropy, bit):
    flipped = (int.from_bytes(entropy, "big") ^ (1 << bit)).to_bytes(10, "big")
    fixed = bit in (62, 63, 76, 77, 78, 79)
    assert (uuid7(ms, entropy) == uuid7(ms, flipped)) is fixed


@pytest.mark.parametrize("ms", [-1, 2**48])
def test_a_time_out_of_range_is_refused(ms):
    with pytest.raises(ValueError, match="ms since 1970"):
        uuid7(ms, bytes(10))


@pytest.mark.parametrize("length", [0, 9, 11, 16])
def test_entropy_of_another_length_is_refused(length):
    with pytest.raises(ValueError, match=f"got {length}"):
        uuid7(0, bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "017f22e279b07cc398c4dc0c0c07398f",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398g",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f\n",
        "{017f22e2-79b0-7cc3-98c4-dc0c0c07398f}",
    ],
)
def test_what_is_not_a_uuid(text):
    assert not is_uuid(text)
    with pytest.raises(ValueError, match="not a UUIDv7"):
        timestamp_ms(text)


def test_a_uuid_of_another_version_has_no_time():
    text = "9f0d8c2e-1c1f-4b6b-8d5e-0d6a1f1f2a3b"
    assert is_uuid(text)
    assert is_uuid(text.upper())
    with pytest.raises(ValueError, match="not a UUIDv7"):
        timestamp_ms(text)
