"""Descriptor tables, system selectors and segment registers.

Room: `paravirt/operations`. The rules of loading are in `emulator.isa.x86.segments`; the guest's own tables
are the authority.
"""

from iced_x86 import Code, Instruction, Register

from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.segments import lar, load_ldt, load_segment, load_task_register, lsl, verr, verw
from paravirt.operations.x86.context import (
    GENERAL_PROTECTION,
    HOLE,
    MASK,
    Action,
    Context,
    handles,
    kernel_only,
    operand_size,
    undefined,
)
from paravirt.operations.x86.operands import (
    address_reader,
    operand_reader,
    operand_writer,
    register_writer,
)


@handles(Operation.READ_DESCRIPTOR_TABLE)
def _read_table(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    address = address_reader(vcpu, instruction)
    interrupts = instruction.code in (Code.SIDT_M1664, Code.SIDT_M1632, Code.SIDT_M1632_16)

    def action() -> None:
        at, user = address(), vcpu.level == 3
        base, limit = (vcpu.idt_base, vcpu.idt_limit) if interrupts else (vcpu.gdt_base, vcpu.gdt_limit)
        vcpu.write(at, 2, limit, user)
        vcpu.write(at + 2 & MASK, 8, base, user)
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_DESCRIPTOR_TABLE)
def _write_table(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    address = address_reader(vcpu, instruction)
    interrupts = instruction.code in (Code.LIDT_M1664, Code.LIDT_M1632, Code.LIDT_M1632_16)

    def action() -> None:
        kernel_only(vcpu)
        at = address()
        limit, base = vcpu.read(at, 2), vcpu.read(at + 2 & MASK, 8)
        if (base + HOLE) >> 48 & 0xFFFF:
            raise Fault(GENERAL_PROTECTION, 0)
        if interrupts:
            vcpu.idt_base, vcpu.idt_limit = base, limit
        else:
            vcpu.gdt_base, vcpu.gdt_limit = base, limit
        context.descriptors_changed()
        vcpu.advance(length)

    return action


_SELECTOR_OF_CODE = {
    **dict.fromkeys((Code.SLDT_RM16, Code.SLDT_R32M16, Code.SLDT_R64M16, Code.LLDT_RM16), 6),
    **dict.fromkeys((Code.LLDT_R32M16, Code.LLDT_R64M16), 6),
}


@handles(Operation.READ_SYSTEM_SELECTOR)
def _read_system(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    index = _SELECTOR_OF_CODE.get(instruction.code, 7)
    write = operand_writer(vcpu, instruction, 0, 2)

    def action() -> None:
        write(vcpu.segment(index)[0])
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_SYSTEM_SELECTOR)
def _write_system(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    load = load_ldt if _SELECTOR_OF_CODE.get(instruction.code) == 6 else load_task_register
    read = operand_reader(vcpu, instruction, 0, 2)

    def action() -> None:
        kernel_only(vcpu)
        load(vcpu, read() & 0xFFFF)
        context.descriptors_changed()
        vcpu.advance(length)

    return action


_SEGMENTS = {
    Register.ES: 0, Register.CS: 1, Register.SS: 2, Register.DS: 3, Register.FS: 4, Register.GS: 5,
}  # fmt: skip
_PUSH_SIZES = {Code.PUSHW_FS: 2, Code.PUSHW_GS: 2, Code.POPW_FS: 2, Code.POPW_GS: 2}
_PUSHES = frozenset({Code.PUSHW_FS, Code.PUSHW_GS, Code.PUSHQ_FS, Code.PUSHQ_GS})
_POPS = frozenset({Code.POPW_FS, Code.POPW_GS, Code.POPQ_FS, Code.POPQ_GS})


@handles(Operation.READ_SEGMENT_SELECTOR)
def _read_selector(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    if instruction.code in _PUSHES:
        index, size = _SEGMENTS[instruction.op_register(0)], _PUSH_SIZES.get(instruction.code, 8)

        def push() -> None:
            top = vcpu.gpr[4] - size & MASK
            vcpu.write(top, size, vcpu.segment(index)[0], vcpu.level == 3)
            vcpu.gpr[4] = top
            vcpu.advance(length)

        return push
    index = _SEGMENTS[instruction.op_register(1)]
    write = operand_writer(vcpu, instruction, 0, 2)

    def action() -> None:
        write(vcpu.segment(index)[0])
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_SEGMENT_SELECTOR)
def _write_selector(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    if instruction.code in _POPS:
        index, size = _SEGMENTS[instruction.op_register(0)], _PUSH_SIZES.get(instruction.code, 8)

        def pop() -> None:
            top = vcpu.gpr[4]
            load_segment(vcpu, index, vcpu.read(top, size, vcpu.level == 3) & 0xFFFF)
            vcpu.gpr[4] = top + size & MASK
            vcpu.advance(length)

        return pop
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
    """LSS, LFS, LGS: a general register and a segment register from memory."""
    vcpu, length = context.vcpu, len(instruction)
    text = str(instruction)
    index = {"lss": 2, "lfs": 4, "lgs": 5}[text.split()[0]]
    size = operand_size(instruction)
    address, write = address_reader(vcpu, instruction), register_writer(vcpu, instruction.op_register(0))

    def action() -> None:
        at, user = address(), vcpu.level == 3
        value = vcpu.read(at, size, user)
        load_segment(vcpu, index, vcpu.read(at + size & MASK, 2, user))
        write(value)
        vcpu.advance(length)

    return action


@handles(Operation.INSPECT_DESCRIPTOR)
def _inspect(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    name = str(instruction).split()[0]
    if name in ("verr", "verw"):
        check = verr if name == "verr" else verw
        read = operand_reader(vcpu, instruction, 0, 2)

        def verify() -> None:
            ok = check(vcpu, read() & 0xFFFF)
            vcpu.rflags = vcpu.rflags & ~r.FLAG_ZF | (r.FLAG_ZF if ok else 0)
            vcpu.advance(length)

        return verify
    query = lar if name == "lar" else lsl
    read, write = operand_reader(vcpu, instruction, 1, 2), register_writer(vcpu, instruction.op_register(0))

    def action() -> None:
        value = query(vcpu, read() & 0xFFFF)
        if value is not None:
            write(value)
        vcpu.rflags = vcpu.rflags & ~r.FLAG_ZF | (r.FLAG_ZF if value is not None else 0)
        vcpu.advance(length)

    return action
