"""Disassembly for people: every instruction set in its vendor's syntax, and bytes that are none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.disassembly import BAD, disassemble
from emulator.isa.isas import ISAS

CASES = [
    ("x86-64", "little", "", "9c 0f20e0 e9fbffffff", ["pushfq", "mov rax, cr4", "jmp 8"]),
    ("i386", "little", "", "9c cf", ["pushfd", "iretd"]),
    ("aarch64", "little", "", "004138d5 e0039fd6", ["mrs x0, sp_el0", "eret"]),
    ("armv7", "little", "a32", "80000cf1", ["cpsid i"]),
    ("armv7", "little", "t32", "72b6 bff34f8f", ["cpsid i", "dsb sy"]),
    ("mips32", "little", "", "00600240 18000042", ["mfc0 $v0, $t4, 0", "eret"]),
    ("mips32", "big", "", "40026000 42000018", ["mfc0 $v0, $t4, 0", "eret"]),
]
FORMS = [(isa, order, state) for isa, order, state, _, _ in CASES]


@pytest.mark.parametrize(("isa", "order", "state", "code", "expected"), CASES)
def test_every_instruction_set_is_printed(isa: str, order: str, state: str, code: str, expected: list[str]) -> None:
    lines = disassemble(bytes.fromhex(code), 4, isa=isa, order=order, state=state)
    assert [line.text for line in lines] == expected
    assert b"".join(line.bytes for line in lines) == bytes.fromhex(code)
    assert [line.address for line in lines] == [
        4 + sum(len(one.bytes) for one in lines[:number]) for number in range(len(lines))
    ]


def test_every_registered_instruction_set_can_be_printed() -> None:
    for name, isa in ISAS.items():
        for order in isa.byte_orders:
            assert disassemble(bytes(8), 0x1000, isa=name, order=order)


def test_at_most_so_many_are_printed() -> None:
    assert len(disassemble(b"\x90" * 9, 0, 3)) == 3
    assert disassemble(b"", 0) == ()


@pytest.mark.parametrize(("isa", "order", "state"), FORMS)
@given(code=st.binary(max_size=40), address=st.sampled_from((0, 0x1000, 0xFFFF_FFF0, (1 << 64) - 16)))
@settings(max_examples=60, deadline=None)
def test_no_byte_is_lost_whatever_the_code_is(isa: str, order: str, state: str, code: bytes, address: int) -> None:
    lines = disassemble(
        code, address & (1 << ISAS[isa].bits if isa in ISAS else 1 << 64) - 1, isa=isa, order=order, state=state
    )
    assert b"".join(line.bytes for line in lines) == code
    assert all(line.text for line in lines)


def test_bytes_that_are_no_instruction_are_said_to_be_none() -> None:
    assert [line.text for line in disassemble(b"\x06", 0)] == [BAD]
    assert disassemble(b"\xff\xff\xff\xff\x1f\x20\x03\xd5", 0, isa="aarch64")[0].text == BAD
    assert [line.text for line in disassemble(b"\xff\xff\xff\xff\x1f\x20\x03\xd5", 0, isa="aarch64")] == [BAD, "nop"]
