"""Operands of a decoded x86 instruction as closures over a virtual CPU.

Room: `paravirt/operations/x86`. A sensitive instruction is decoded once, at its first trap; its operands
become small functions, so that the next trap at the same site does no decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iced_x86 import Instruction, OpKind, Register, RegisterExt

from paravirt.modes.x86.vcpu import X86VirtualCpu

if TYPE_CHECKING:
    from iced_x86._iced_x86_py import Register as RegisterNumber

_MASK = 0xFFFF_FFFF_FFFF_FFFF
Reader = Callable[[], int]
Writer = Callable[[int], None]


def general_register(register: RegisterNumber) -> tuple[int, int]:
    """Encoding number and size in bytes of a general register."""
    return RegisterExt.number(register), RegisterExt.size(register)


def register_reader(vcpu: X86VirtualCpu, register: RegisterNumber) -> Reader:
    """Reads a general register of any size."""
    number, size = general_register(register)
    gpr = vcpu.gpr
    if register in (Register.AH, Register.CH, Register.DH, Register.BH):
        return lambda: gpr[number - 4] >> 8 & 0xFF
    if size == 8:
        return lambda: gpr[number]
    mask = (1 << 8 * size) - 1
    return lambda: gpr[number] & mask


def register_writer(vcpu: X86VirtualCpu, register: RegisterNumber) -> Writer:
    """Writes a general register; 32-bit writes clear the upper half."""
    number, size = general_register(register)
    gpr = vcpu.gpr

    def write64(value: int) -> None:
        gpr[number] = value & _MASK

    def write32(value: int) -> None:
        gpr[number] = value & 0xFFFF_FFFF

    def write16(value: int) -> None:
        gpr[number] = gpr[number] & ~0xFFFF | value & 0xFFFF

    return {8: write64, 4: write32}.get(size, write16)


def address_reader(vcpu: X86VirtualCpu, instruction: Instruction) -> Reader:
    """Computes the linear address of the instruction's memory operand."""
    gpr = vcpu.gpr
    displacement = instruction.memory_displacement
    base, index = instruction.memory_base, instruction.memory_index
    scale = instruction.memory_index_scale
    segment = instruction.memory_segment
    if vcpu.MODE_BITS == 32:
        return _segmented_address_reader(vcpu, instruction)
    if base in (Register.RIP, Register.EIP):
        base = Register.NONE  # iced gives the target as the displacement
    width = 32 if any(RegisterExt.size(x) == 4 for x in (base, index) if x != Register.NONE) else 64
    mask = (1 << width) - 1
    base_number = RegisterExt.number(base) if base != Register.NONE else -1
    index_number = RegisterExt.number(index) if index != Register.NONE else -1
    segment_index = {Register.FS: 4, Register.GS: 5}.get(segment, -1)
    registers = vcpu.registers

    def address() -> int:
        value = displacement
        if base_number >= 0:
            value += gpr[base_number]
        if index_number >= 0:
            value += gpr[index_number] * scale
        value &= mask
        if segment_index >= 0:
            value += registers.segment_base(segment_index)
        return value & _MASK

    return address


def _segmented_address_reader(vcpu: X86VirtualCpu, instruction: Instruction) -> Reader:
    """The same for 32-bit guests: registers of 32 or 16 bits, and every segment has a base."""
    gpr, registers = vcpu.gpr, vcpu.registers
    displacement, scale = instruction.memory_displacement, instruction.memory_index_scale
    base, index = instruction.memory_base, instruction.memory_index
    used = [register for register in (base, index) if register != Register.NONE]
    short = any(RegisterExt.size(register) == 2 for register in used) or instruction.memory_displ_size == 2
    mask = 0xFFFF if short and not any(RegisterExt.size(register) == 4 for register in used) else 0xFFFF_FFFF
    base_number = RegisterExt.number(base) if base != Register.NONE else -1
    index_number = RegisterExt.number(index) if index != Register.NONE else -1
    segment = RegisterExt.number(instruction.memory_segment)

    def address() -> int:
        value = displacement
        if base_number >= 0:
            value += gpr[base_number]
        if index_number >= 0:
            value += gpr[index_number] * scale
        return registers.segment_base(segment) + (value & mask) & 0xFFFF_FFFF

    return address


def operand_reader(vcpu: X86VirtualCpu, instruction: Instruction, operand: int, size: int) -> Reader:
    """Reads a register or memory operand; memory operands are `size` bytes."""
    if instruction.op_kind(operand) == OpKind.REGISTER:
        return register_reader(vcpu, instruction.op_register(operand))
    address = address_reader(vcpu, instruction)
    return lambda: vcpu.read(address(), size, vcpu.level == 3)


def operand_writer(vcpu: X86VirtualCpu, instruction: Instruction, operand: int, size: int) -> Writer:
    """Writes a register or memory operand; memory operands are `size` bytes."""
    if instruction.op_kind(operand) == OpKind.REGISTER:
        return register_writer(vcpu, instruction.op_register(operand))
    address = address_reader(vcpu, instruction)
    return lambda value: vcpu.write(address(), size, value, vcpu.level == 3)
