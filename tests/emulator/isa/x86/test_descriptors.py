"""Descriptors as integers: both directions agree, and what cannot be expressed is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.isa.x86 import descriptors as d

WORD = st.integers(0, 2**64 - 1)
ATTRIBUTES = st.integers(0, 0xFFFF_FFFF).map(lambda bits: bits & d.ATTRIBUTES)


def test_the_flat_kernel_segment_is_the_descriptor_that_every_kernel_uses() -> None:
    assert d.segment_descriptor(0, d.FLAT_LIMIT, d.KERNEL_CODE) == 0x00AF_9B00_0000_FFFF
    assert d.segment_descriptor(0, d.FLAT_LIMIT, d.FLAT_DATA) == 0x00CF_9300_0000_FFFF
    assert d.segment_descriptor(0, d.FLAT_LIMIT, d.USER_CODE_32) == 0x00CF_FB00_0000_FFFF


@given(WORD)
def test_a_segment_descriptor_survives_parsing_and_encoding(descriptor: int) -> None:
    base, limit, attributes = d.segment_parts(descriptor)
    assert d.segment_descriptor(base, limit, attributes) == descriptor


@given(WORD, st.integers(0, 2**32 - 1))
def test_a_system_descriptor_survives_parsing_and_encoding(low: int, high: int) -> None:
    assert d.system_descriptor(*d.system_parts(low, high)) == (low, high)


@given(
    st.integers(0, 0xFFFF), WORD, st.integers(0, 15), st.integers(0, 3), st.integers(0, 7), st.booleans(),
)  # fmt: skip
def test_a_gate_survives_encoding_and_parsing(
    selector: int, offset: int, kind: int, dpl: int, stack: int, present: bool
) -> None:
    parts = d.gate_parts(*d.gate(selector, offset, kind, dpl=dpl, stack=stack, present=present))
    assert parts == (selector, offset, stack, kind << 8 | dpl << 13 | (d.PRESENT if present else 0))


@given(WORD, WORD)
def test_any_bits_parse_to_fields_within_their_width(low: int, high: int) -> None:
    base, limit, attributes = d.system_parts(low, high)
    assert 0 <= base < 2**64
    assert 0 <= limit < 2**32
    assert attributes & ~d.ATTRIBUTES == 0
    selector, offset, stack, _ = d.gate_parts(low, high)
    assert (selector >> 16, offset >> 64, stack >> 3) == (0, 0, 0)


@pytest.mark.parametrize(
    ("base", "limit", "attributes"),
    [
        (1 << 32, 0, 0),
        (-1, 0, 0),
        (0, 1 << 20, 0),
        (0, -1, 0),
        (0, 0x1_0000, d.GRANULARITY),
        (0, 1 << 32 | 0xFFF, d.GRANULARITY),
        (0, 0, 0xF_0000),
    ],
)
def test_what_a_descriptor_cannot_express_is_refused(base: int, limit: int, attributes: int) -> None:
    with pytest.raises(ValueError, match="0x"):
        d.segment_descriptor(base, limit, attributes)


def test_gate_fields_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="gate field"):
        d.gate(8, 0, d.TYPE_TRAP_GATE, dpl=4)
    with pytest.raises(ValueError, match="gate field"):
        d.gate(8, 0, d.TYPE_TRAP_GATE, stack=8)
    with pytest.raises(ValueError, match="gate offset"):
        d.gate(8, 1 << 64, d.TYPE_TRAP_GATE)
    with pytest.raises(ValueError, match="system segment base"):
        d.system_descriptor(1 << 64, 0, 0)
