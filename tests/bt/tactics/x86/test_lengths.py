"""Lengths by table and the walk in blocks: exactly what decoding one instruction after the other says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Code, Decoder

from bt.image import Image
from bt.tactics.x86.chain import Chain
from bt.tactics.x86.lengths import BEHIND, lengths
from emulator.isa.x86.decode import REPORTED

PREFIXES = [b"", *(bytes((one,)) for one in (0x2E, 0x3E, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x41, 0x48, 0x4F))]
PREFIXES += [first + second for first in (b"\x65", b"\x66", b"\xf0", b"\xf3") for second in (b"\x48", b"\x66")]
REST = bytes(range(0x11, 0x1B))
PLAIN = (b"\x90", b"\x55", b"\x48\x89\xe5", b"\x0f\x1f\x44\x00\x00", b"\xe8\x01\x02\x03\x04", b"\xcc", b"\x74\x05")
OTHERS = (b"\xfa", b"\x9c", b"\x0f\x01\xd8", b"\x0f\x22\xd8", b"\xf3\x0f\x1e\xfa", b"\xc5\xf8\x77", b"\xc4", b"\x06")
CODE = st.lists(st.sampled_from(PLAIN + OTHERS) | st.binary(min_size=1, max_size=12), min_size=1, max_size=400)


@pytest.mark.parametrize("bits", [64, 32])
def test_every_plain_instruction_has_its_length_and_is_not_sensitive(bits: int) -> None:
    forms = product(PREFIXES, (b"", b"\x0f"), range(256), range(256), (0x25, 0xFA))
    pieces = [
        prefix + escape + bytes((opcode, follows, base)) + REST
        for prefix, escape, opcode, follows, base in forms
        if base == 0x25 or follows & 7 == 4 or follows == 0x1E
    ]
    data = b"".join(pieces) + bytes(BEHIND)
    starts = np.cumsum([0, *map(len, pieces[:-1])])
    given_lengths = lengths(np.frombuffer(data, np.uint8), bits)[starts]
    assert np.count_nonzero(given_lengths) > len(pieces) / 8
    decoder = Decoder(bits, data, ip=0)
    for start, length in zip(starts.tolist(), given_lengths.tolist(), strict=True):
        if length:
            decoder.position = start
            instruction = decoder.decode()
            assert instruction.len == length, data[start : start + 6].hex()
            assert instruction.code not in REPORTED | {int(Code.INVALID)}, data[start : start + 6].hex()


def _one_by_one(data: bytes, parts: list[tuple[int, int]], bits: int) -> tuple[set[int], list[tuple[int, int, int]]]:
    begins, noted = set(), []
    for start, end in parts:
        for instruction in Decoder(bits, data[start:end], ip=start):
            begins.add(instruction.ip)
            if instruction.code in REPORTED or instruction.code == Code.INVALID:
                noted.append((instruction.ip, instruction.len, int(instruction.code)))
    return begins, noted


def _in_blocks(data: bytes, parts: list[tuple[int, int]], bits: int) -> tuple[set[int], list[tuple[int, int, int]]]:
    chain = Chain(data, bits)
    chain.sweep(parts)
    return set(np.flatnonzero(chain.begins).tolist()), list(chain.noted())


@pytest.mark.parametrize("bits", [64, 32])
@given(code=CODE, repeat=st.integers(1, 30), cut=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_the_walk_in_blocks_is_one_linear_sweep(bits: int, code: list[bytes], repeat: int, cut: int) -> None:
    data = b"".join(code) * repeat
    middle = len(data) * cut // 100
    parts = [(0, middle), (min(middle + 3, len(data)), len(data))]
    assert _in_blocks(data, parts, bits) == _one_by_one(data, parts, bits)


def test_code_that_never_falls_into_step_is_walked_from_where_it_is_entered() -> None:
    # An instruction of ten bytes again and again: walked from another byte, it is never the same.
    data = b"\x90\x90\x90" + b"\x48\xb8\x48\xb8\x48\xb8\x48\xb8\x48\xb8" * 1000
    parts = [(0, len(data))]
    assert _in_blocks(data, parts, 64) == _one_by_one(data, parts, 64)


@pytest.mark.kernel
def test_nearly_all_of_a_kernel_is_plain(debian: Image) -> None:
    text = debian.section(".text")
    assert text is not None
    known = lengths(np.frombuffer(text.data, np.uint8), 64)
    chain = Chain(bytes(text.data), 64)
    chain.sweep([(0, len(text.data))])
    assert np.count_nonzero(known[chain.begins]) > 0.97 * np.count_nonzero(chain.begins)
