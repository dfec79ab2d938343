"""The sieve before decoding: no sensitive instruction is held back, whatever its prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder, OpCodeInfo

from bt.image import Image
from bt.tactics.registry import tactics_of
from bt.tactics.x86.opcodes import candidates
from emulator.isa.x86.decode import REPORTED

OPCODES = sorted(
    {OpCodeInfo(code).op_code & 0xFF for code in REPORTED}  # type: ignore[arg-type]
    | {0x0F, 0x01, 0xF3, 0x66, 0x48, 0x38, 0x3A}
)
PREFIXES = st.lists(st.sampled_from([0x66, 0xF2, 0xF3, 0xF0, 0x2E, 0x65, 0x67]), max_size=6).map(bytes)
CODE = st.builds(
    lambda prefixes, rex, escape, opcode, rest: prefixes + rex + escape + bytes((opcode,)) + rest,
    PREFIXES,
    st.sampled_from([b"", b"\x48", b"\x41"]),
    st.sampled_from([b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\x0f\x01"]),
    st.sampled_from(OPCODES),
    st.binary(min_size=10, max_size=10),
)


@pytest.mark.parametrize("bits", [64, 32])
@given(st.lists(CODE, min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_every_sensitive_instruction_passes(bits: int, pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    begins, sensitive = [], []
    for instruction in Decoder(bits, data, ip=0):
        begins.append(instruction.ip)
        if instruction.code in REPORTED:
            sensitive.append(instruction.ip)
    passed = candidates(np.frombuffer(data, np.uint8), np.array(begins, np.int32), bits)
    assert set(sensitive) <= set(passed.tolist())


@pytest.mark.kernel
def test_little_else_of_a_kernel_passes(debian: Image) -> None:
    text = debian.section(".text")
    assert text is not None
    stretch = next(s for s in tactics_of("x86-64").sweep(debian) if s.start <= text.vaddr < s.end)
    begins = np.flatnonzero(np.unpackbits(stretch.begins, bitorder="little")[: text.size]).astype(np.int32)
    passed = candidates(np.frombuffer(text.data, np.uint8), begins, 64)
    assert len(stretch.sites) <= len(passed) < 2 * len(stretch.sites)
