"""Descriptor tables and segment registers of 32-bit guests.

Room: `paravirt/operations/i386`. The rules of loading are in `emulator.isa.x86.segments`; LLDT, LTR, SLDT, STR, LAR,
LSL, VERR and VERW are those of x86-64, whose rules follow the mode.
"""

from iced_x86 import Code, Instruction, Register

from emulator.isa.operation import Operation
from emulator.isa.x86.segments import load_segment
from paravirt.operations.i386.context import MASK, Context, drop, handles, push, top
from paravirt.operations.x86.context import Action, kernel_only, operand_size, undefined
from paravirt.operations.x86.operands import address_reader, operand_reader, operand_writer, register_writer

_INTERRUPT_TABLES = (Code.SIDT_M1632, Code.SIDT_M1632_16, Code.LIDT_M1632, Code.LIDT_M1632_16)
_SHORT_BASES = (Code.LGDT_M1632_16, Code.LIDT_M1632_16)
"""With an operand size of 16 bits a load takes 24 bits of the base."""


@handles(Operation.READ_DESCRIPTOR_TABLE)
def _read_table(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    address = address_reader(vcpu, instruction)
    interrupts = instruction.code in _INTERRUPT_TABLES

    def action() -> None:
        at, user = address(), vcpu.level == 3
        base, limit = (vcpu.idt_base, vcpu.idt_limit) if interrupts else (vcpu.gdt_base, vcpu.gdt_limit)
        vcpu.write(at, 2, limit, user)
        vcpu.write(at + 2 & MASK, 4, base, user)
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_DESCRIPTOR_TABLE)
def _write_table(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    address = address_reader(vcpu, instruction)
    interrupts = instruction.code in _INTERRUPT_TABLES
    mask = 0xFF_FFFF if instruction.code in _SHORT_BASES else MASK

    def action() -> None:
        kernel_only(vcpu)
        at = address()
        limit, base = vcpu.read(at, 2), vcpu.read(at + 2 & MASK, 4) & mask
        if interrupts:
            vcpu.idt_base, vcpu.idt_limit = base, limit
        else:
            vcpu.gdt_base, vcpu.gdt_limit = base, limit
        context.descriptors_changed()
        vcpu.advance(length)

    return action


_SEGMENTS = {
    Register.ES: 0, Register.CS: 1, Register.SS: 2, Register.DS: 3, Register.FS: 4, Register.GS: 5,
}  # fmt: skip
_PUSHES = {
    **dict.fromkeys((Code.PUSHW_ES, Code.PUSHW_CS, Code.PUSHW_SS, Code.PUSHW_DS, Code.PUSHW_FS, Code.PUSHW_GS), 2),
    **dict.fromkeys((Code.PUSHD_ES, Code.PUSHD_CS, Code.PUSHD_SS, Code.PUSHD_DS, Code.PUSHD_FS, Code.PUSHD_GS), 4),
}
_POPS = {
    **dict.fromkeys((Code.POPW_ES, Code.POPW_SS, Code.POPW_DS, Code.POPW_FS, Code.POPW_GS), 2),
    **dict.fromkeys((Code.POPD_ES, Code.POPD_SS, Code.POPD_DS, Code.POPD_FS, Code.POPD_GS), 4),
}


@handles(Operation.READ_SEGMENT_SELECTOR)
def _read_selector(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    size = _PUSHES.get(instruction.code)
    if size is not None:
        index = _SEGMENTS[instruction.op_register(0)]

        def pushed() -> None:
            push(vcpu, vcpu.segment(index)[0], size)
            vcpu.advance(length)

        return pushed
    index = _SEGMENTS[instruction.op_register(1)]
    write = operand_writer(vcpu, instruction, 0, 2)

    def action() -> None:
        write(vcpu.segment(index)[0])
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_SEGMENT_SELECTOR)
def _write_selector(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    size = _POPS.get(instruction.code)
    if size is not None:
        index = _SEGMENTS[instruction.op_register(0)]

        def popped() -> None:
            stack, value = top(vcpu, size)
            load_segment(vcpu, index, value & 0xFFFF)
            if index == 2:
                vcpu.gpr[4] = vcpu.gpr[4] + size & MASK  # the pop is of the stack that was
            else:
                drop(vcpu, stack, size)
            vcpu.advance(length)

        return popped
    first = instruction.op_register(0)
    if first in _SEGMENTS:
        if first == Register.CS:
            return undefined
        index = _SEGMENTS[first]
        read = operand_reader(vcpu, instruction, 1, 2)

        def move() -> None:
            load_segment(vcpu, index, read() & 0xFFFF)
            vcpu.advance(length)

        return move
    return _load_far_pointer(context, instruction)


def _load_far_pointer(context: Context, instruction: Instruction) -> Action:
    """LDS, LES, LSS, LFS, LGS: a general register and a segment register from memory."""
    vcpu, length = context.vcpu, len(instruction)
    index = {"les": 0, "lss": 2, "lds": 3, "lfs": 4, "lgs": 5}[str(instruction).split()[0]]
    size = operand_size(instruction)
    address, write = address_reader(vcpu, instruction), register_writer(vcpu, instruction.op_register(0))

    def action() -> None:
        at, user = address(), vcpu.level == 3
        value = vcpu.read(at, size, user)
        load_segment(vcpu, index, vcpu.read(at + size & MASK, 2, user))
        write(value)
        vcpu.advance(length)

    return action
