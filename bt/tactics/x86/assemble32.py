"""The few 32-bit instructions that fixups are made of, as functions that return their bytes.

Room: `bt/tactics/x86`; the names are those of `assemble`. Every instruction here leaves the flags alone unless its
docstring says otherwise. The shared page is reached through SS, which a kernel has flat whenever it runs fixups, while
DS may still be the user's. Encodings are those of Intel's SDM, volume 2; the tests decode each with iced-x86.
"""

from __future__ import annotations

import struct
from typing import Final

RAX: Final = 0
RCX: Final = 1
RSP: Final = 4
"""Numbers of EAX, ECX and ESP."""

HLT: Final = b"\xf4"
"""The planted trap: one byte, and a general-protection fault in user mode."""
PUSH_FLAGS: Final = b"\x9c"
POP_FLAGS: Final = b"\x9d"
RET: Final = b"\xc3"
JUMP_LENGTH: Final = 5
"""Bytes of `jump`."""
SHORT_BRANCH_LENGTH: Final = 2
"""Bytes of `branch`."""
WORD: Final = 4
"""Bytes of a stack slot."""

_MASK: Final = (1 << 32) - 1
_SS: Final = b"\x36"


def displacement(address: int) -> bytes:
    """`address` as a 32-bit displacement."""
    return struct.pack("<I", address & _MASK)


def relative(source: int, target: int) -> bytes:
    """The 32-bit distance from `source` (the end of the instruction) to `target`: always in reach."""
    return struct.pack("<I", (target - source) & _MASK)


def jump(source: int, target: int) -> bytes:
    """`jmp target` at address `source`, 5 bytes."""
    return b"\xe9" + relative(source + JUMP_LENGTH, target)


def load(register: int, address: int) -> bytes:
    """`mov r32, ss:[address]`."""
    return _SS + bytes((0x8B, 0x05 | register << 3)) + displacement(address)


def store(address: int, register: int) -> bytes:
    """`mov ss:[address], r32`."""
    return _SS + bytes((0x89, 0x05 | register << 3)) + displacement(address)


def store_constant(address: int, value: int) -> bytes:
    """`mov dword ss:[address], value`; `value` is a signed 32-bit number."""
    return _SS + b"\xc7\x05" + displacement(address) + struct.pack("<i", value)


def compare_constant(address: int, value: int) -> bytes:
    """`cmp dword ss:[address], value`; `value` is a signed byte. Writes the arithmetic flags."""
    return _SS + b"\x83\x3d" + displacement(address) + struct.pack("<b", value)


def load_stack(register: int, offset: int) -> bytes:
    """`mov r32, [esp+offset]`; `offset` is a signed byte."""
    return bytes((0x8B, 0x44 | register << 3, 0x24)) + struct.pack("<b", offset)


def store_stack(offset: int, register: int) -> bytes:
    """`mov [esp+offset], r32`; `offset` is a signed byte."""
    return bytes((0x89, 0x44 | register << 3, 0x24)) + struct.pack("<b", offset)


def store_stack_constant(offset: int, value: int) -> bytes:
    """`mov dword [esp+offset], value`; `offset` is a signed byte, `value` a 32-bit number."""
    return b"\xc7\x44\x24" + struct.pack("<bI", offset, value & _MASK)


def add(register: int, other: int) -> bytes:
    """`lea r32, [register+other]`: an addition that leaves the flags alone. `other` is not ESP."""
    if other == RSP:
        raise ValueError("ESP cannot be an index; name it first")
    return bytes((0x8D, 0x44 | register << 3, other << 3 | register, 0))


def stack_address(register: int, offset: int) -> bytes:
    """`lea r32, [esp+offset]`; `offset` is a signed byte. With ESP as `register` it moves the stack pointer."""
    return bytes((0x8D, 0x44 | register << 3, 0x24)) + struct.pack("<b", offset)


def subtract_constant(register: int, value: int) -> bytes:
    """`sub r32, value`; `value` is a signed 32-bit number. Writes the arithmetic flags."""
    return bytes((0x81, 0xE8 | register)) + struct.pack("<i", value)


def and_constant(register: int, value: int) -> bytes:
    """`and r32, value`. Writes the arithmetic flags."""
    return bytes((0x81, 0xE0 | register)) + struct.pack("<I", value)


def test_constant(register: int, value: int) -> bytes:
    """`test r32, value`. Writes the arithmetic flags."""
    return bytes((0xF7, 0xC0 | register)) + struct.pack("<I", value)


def pop(register: int) -> bytes:
    """`pop r32`."""
    return bytes((0x58 | register,))


def jump_if_rcx_zero(distance: int) -> bytes:
    """`jecxz` over `distance` bytes (a signed byte)."""
    return b"\xe3" + struct.pack("<b", distance)


def skip(distance: int) -> bytes:
    """`jmp` over `distance` bytes (a signed byte)."""
    return b"\xeb" + struct.pack("<b", distance)


def read_selector(register: int, segment: int) -> bytes:
    """`mov r32, sreg`, clearing the upper part; `segment` in encoding order: ES CS SS DS FS GS."""
    return bytes((0x8C, 0xC0 | segment << 3 | register))


def decrease(register: int, value: int, size: int) -> bytes:
    """`lea r, [r-value]` of `size` bytes (2 or 4): a subtraction that leaves the flags alone."""
    operand = b"\x64\x24" if register == RSP else bytes((0x40 | register << 3 | register,))
    return (b"\x66" if size == 2 else b"") + b"\x8d" + operand + struct.pack("<b", -value)


def jump_if_not_zero(distance: int) -> bytes:
    """`jnz` over `distance` bytes (a signed byte)."""
    return b"\x75" + struct.pack("<b", distance)


def branch(condition: int, distance: int) -> bytes:
    """`jcc` over `distance` bytes (a signed byte); `condition` is the low four bits of its opcode."""
    return bytes((0x70 | condition,)) + struct.pack("<b", distance)


def exchange_stack(offset: int, register: int) -> bytes:
    """`xchg [esp+offset], r32`; `offset` is a signed byte."""
    return bytes((0x87, 0x44 | register << 3, 0x24)) + struct.pack("<b", offset)


def push_constant(value: int) -> bytes:
    """`push value`, 5 bytes."""
    return b"\x68" + displacement(value)
