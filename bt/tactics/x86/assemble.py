"""The few x86-64 instructions that fixups are made of, as functions that return their bytes.

Room: `bt`, the toolchain's own assembler. Every instruction here leaves the flags alone unless its docstring says
otherwise, and reaches the shared page by a sign-extended 32-bit absolute displacement. Encodings are those of Intel's
SDM, volume 2; the tests decode each with iced-x86. Registers are numbers in encoding order (RAX 0 .. R15 15).
"""

from __future__ import annotations

import struct
from typing import Final

from bt.tactics.tactics import OutOfReach

RAX: Final = 0
RCX: Final = 1
RSP: Final = 4

HLT: Final = b"\xf4"
"""The planted trap: one byte, and a general-protection fault in user mode."""
PUSHFQ: Final = b"\x9c"
POPFQ: Final = b"\x9d"
RET: Final = b"\xc3"
RDTSC: Final = b"\x0f\x31"
READ_GS_BASE_RAX: Final = b"\xf3\x48\x0f\xae\xc8"
"""`rdgsbase rax`."""
READ_FS_BASE_RAX: Final = b"\xf3\x48\x0f\xae\xc0"
"""`rdfsbase rax`."""
WRITE_GS_BASE_RAX: Final = b"\xf3\x48\x0f\xae\xd8"
"""`wrgsbase rax`."""
WRITE_FS_BASE_RCX: Final = b"\xf3\x48\x0f\xae\xd1"
"""`wrfsbase rcx`."""
MULTIPLY_RDX_RAX: Final = b"\xc4\xe2\xfb\xf6\xd0"
"""`mulx rdx, rax, rax`: RDX:RAX becomes RDX times RAX, and the flags stay."""
JUMP_LENGTH: Final = 5
"""Bytes of `jump`."""
SHORT_BRANCH_LENGTH: Final = 2
"""Bytes of `branch`."""

_MASK: Final = (1 << 64) - 1


def displacement(address: int) -> bytes:
    """`address` as a sign-extended 32-bit absolute displacement. Raises `OutOfReach`."""
    signed = (address & _MASK) - (1 << 64) if address >> 63 else address
    if not -(1 << 31) <= signed < 1 << 31:
        raise OutOfReach(f"address {address:#x} does not fit a 32-bit displacement")
    return struct.pack("<i", signed)


def relative(source: int, target: int) -> bytes:
    """The 32-bit distance from `source` (the end of the instruction) to `target`, modulo 2^64. Raises `OutOfReach`."""
    distance = (target - source) & _MASK
    if distance >> 63:
        distance -= 1 << 64
    if not -(1 << 31) <= distance < 1 << 31:
        raise OutOfReach(f"{target:#x} is out of a jump's reach from {source:#x}")
    return struct.pack("<i", distance)


def jump(source: int, target: int) -> bytes:
    """`jmp target` at address `source`, 5 bytes. Raises `OutOfReach`."""
    return b"\xe9" + relative(source + JUMP_LENGTH, target)


def load(register: int, address: int) -> bytes:
    """`mov r64, [address]`."""
    return bytes((0x48 | (register >> 3) << 2, 0x8B, 0x04 | (register & 7) << 3, 0x25)) + displacement(address)


def store(address: int, register: int) -> bytes:
    """`mov [address], r64`."""
    return bytes((0x48 | (register >> 3) << 2, 0x89, 0x04 | (register & 7) << 3, 0x25)) + displacement(address)


def load_half(register: int, address: int) -> bytes:
    """`mov r32, [address]`, clearing the upper half."""
    return _rex_r(register) + bytes((0x8B, 0x04 | (register & 7) << 3, 0x25)) + displacement(address)


def store_half(address: int, register: int) -> bytes:
    """`mov [address], r32`."""
    return _rex_r(register) + bytes((0x89, 0x04 | (register & 7) << 3, 0x25)) + displacement(address)


def load_word(register: int, address: int) -> bytes:
    """`mov r16, [address]`, keeping the rest."""
    return b"\x66" + load_half(register, address)


def load_byte(register: int, address: int) -> bytes:
    """`mov r8, [address]`, keeping the rest; the low byte of RAX, RCX, RDX or RBX."""
    if register > 3:
        raise ValueError("only the first four registers have a low byte without a prefix")
    return bytes((0x8A, 0x04 | register << 3, 0x25)) + displacement(address)


def extend_word(register: int, address: int) -> bytes:
    """`movzx r32, word [address]`, clearing the upper half."""
    return _rex_r(register) + bytes((0x0F, 0xB7, 0x04 | (register & 7) << 3, 0x25)) + displacement(address)


def exchange(address: int, register: int) -> bytes:
    """`xchg [address], r64`."""
    return bytes((0x48 | (register >> 3) << 2, 0x87, 0x04 | (register & 7) << 3, 0x25)) + displacement(address)


def move_half(register: int, other: int) -> bytes:
    """`mov r32, r32`, clearing the upper half; of the first eight registers."""
    return bytes((0x89, 0xC0 | other << 3 | register))


def extend_half(register: int, other: int) -> bytes:
    """`movzx r32, r16`, of the first eight registers."""
    return bytes((0x0F, 0xB7, 0xC0 | register << 3 | other))


def less_half(register: int, value: int) -> bytes:
    """`lea r32, [r - value]` modulo 2^32, clearing the upper half; `register` is one of the first eight, not RSP."""
    if register == RSP:
        raise ValueError("RSP needs another form")
    return bytes((0x8D, 0x80 | register << 3 | register)) + struct.pack("<I", -value & 0xFFFF_FFFF)


def store_constant(address: int, value: int) -> bytes:
    """`mov qword [address], value`; `value` is a signed 32-bit number."""
    return b"\x48\xc7\x04\x25" + displacement(address) + struct.pack("<i", value)


def compare_constant(address: int, value: int) -> bytes:
    """`cmp qword [address], value`; `value` is a signed byte. Writes the arithmetic flags."""
    return b"\x48\x83\x3c\x25" + displacement(address) + struct.pack("<b", value)


def load_stack(register: int, offset: int) -> bytes:
    """`mov r64, [rsp+offset]`; `offset` is a signed byte."""
    return bytes((0x48 | (register >> 3) << 2, 0x8B, 0x44 | (register & 7) << 3, 0x24)) + struct.pack("<b", offset)


def store_stack(offset: int, register: int) -> bytes:
    """`mov [rsp+offset], r64`; `offset` is a signed byte."""
    return bytes((0x48 | (register >> 3) << 2, 0x89, 0x44 | (register & 7) << 3, 0x24)) + struct.pack("<b", offset)


def exchange_stack(offset: int, register: int) -> bytes:
    """`xchg [rsp+offset], r64`; `offset` is a signed byte."""
    return bytes((0x48 | (register >> 3) << 2, 0x87, 0x44 | (register & 7) << 3, 0x24)) + struct.pack("<b", offset)


def push_constant(value: int) -> bytes:
    """`push value`, a sign-extended 32-bit number. Raises `OutOfReach` for another."""
    return b"\x68" + displacement(value)


def store_stack_constant(offset: int, value: int) -> bytes:
    """`mov qword [rsp+offset], value`; `offset` is a signed byte, `value` a signed 32-bit number."""
    return b"\x48\xc7\x44\x24" + struct.pack("<bi", offset, value)


def add(register: int, other: int) -> bytes:
    """`lea r64, [register+other]`: an addition that leaves the flags alone. `other` is not RSP."""
    if other == RSP:
        raise ValueError("RSP cannot be an index; name it first")
    prefix = 0x48 | (register >> 3) << 2 | (other >> 3) << 1 | register >> 3
    return bytes((prefix, 0x8D, 0x44 | (register & 7) << 3, (other & 7) << 3 | register & 7, 0))


def stack_address(register: int, offset: int) -> bytes:
    """`lea r64, [rsp+offset]`; `offset` is a signed byte. With RSP as `register` it moves the stack pointer."""
    return bytes((0x48 | (register >> 3) << 2, 0x8D, 0x44 | (register & 7) << 3, 0x24)) + struct.pack("<b", offset)


def add_constant(register: int, value: int) -> bytes:
    """`add r64, value`; `value` is a signed byte. Writes the arithmetic flags."""
    return bytes((0x48 | register >> 3, 0x83, 0xC0 | register & 7)) + struct.pack("<b", value)


def subtract_constant(register: int, value: int) -> bytes:
    """`sub r64, value`; `value` is a signed 32-bit number. Writes the arithmetic flags."""
    return bytes((0x48 | register >> 3, 0x81, 0xE8 | register & 7)) + struct.pack("<i", value)


def and_constant(register: int, value: int) -> bytes:
    """`and r32, value`, clearing the upper half. Writes the arithmetic flags."""
    return _rex_b(register) + bytes((0x81, 0xE0 | register & 7)) + struct.pack("<I", value)


def test_constant(register: int, value: int) -> bytes:
    """`test r32, value`. Writes the arithmetic flags."""
    return _rex_b(register) + bytes((0xF7, 0xC0 | register & 7)) + struct.pack("<I", value)


def set_constant(register: int, value: int) -> bytes:
    """`mov r32, value`, clearing the upper half."""
    return _rex_b(register) + bytes((0xB8 | register & 7,)) + struct.pack("<I", value)


def pop(register: int) -> bytes:
    """`pop r64`."""
    return _rex_b(register) + bytes((0x58 | register & 7,))


def jump_if_rcx_zero(distance: int) -> bytes:
    """`jrcxz` over `distance` bytes (a signed byte)."""
    return b"\xe3" + struct.pack("<b", distance)


def skip(distance: int) -> bytes:
    """`jmp` over `distance` bytes (a signed byte)."""
    return b"\xeb" + struct.pack("<b", distance)


def read_selector(register: int, segment: int) -> bytes:
    """`mov r32, sreg`, clearing the upper part; `segment` in encoding order: ES CS SS DS FS GS."""
    return _rex_b(register) + bytes((0x8C, 0xC0 | segment << 3 | register & 7))


def decrease(register: int, value: int, size: int) -> bytes:
    """`lea r, [r-value]` of `size` bytes (2 or 8): a subtraction that leaves the flags alone."""
    low = register & 7
    prefix = (b"\x66" if size == 2 else b"") + bytes((0x40 | (size == 8) << 3 | (register >> 3) * 5, 0x8D))
    operand = b"\x64\x24" if low == RSP else bytes((0x40 | low << 3 | low,))
    return prefix + operand + struct.pack("<b", -value)


def jump_if_not_zero(distance: int) -> bytes:
    """`jnz` over `distance` bytes (a signed byte)."""
    return b"\x75" + struct.pack("<b", distance)


def branch(condition: int, distance: int) -> bytes:
    """`jcc` over `distance` bytes (a signed byte); `condition` is the low four bits of its opcode."""
    return bytes((0x70 | condition,)) + struct.pack("<b", distance)


def _rex_r(register: int) -> bytes:
    """The prefix that a 32-bit instruction needs to name R8..R15 as its register operand."""
    return b"\x44" if register >> 3 else b""


def _rex_b(register: int) -> bytes:
    """The prefix that an instruction on the lower half of R8..R15 needs."""
    return b"\x41" if register >> 3 else b""
