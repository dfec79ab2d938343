"""Control and debug registers.

Room: `paravirt/operations`. What a write means for translations and for the real floating-point bits is
told to the hypervisor by `Context`.
"""

from iced_x86 import Instruction, RegisterExt

from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.processor import Fault
from paravirt.operations.x86.context import (
    GENERAL_PROTECTION,
    Action,
    Context,
    handles,
    kernel_only,
    undefined,
)
from paravirt.operations.x86.operands import (
    operand_reader,
    operand_writer,
    register_reader,
    register_writer,
)

_CR0_KEPT = r.CR0_PE | r.CR0_MP | r.CR0_EM | r.CR0_TS | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_AM | r.CR0_NW
_CR0_KEPT |= r.CR0_CD | r.CR0_PG
_CR4_KNOWN = r.CR4_TSD | r.CR4_DE | r.CR4_PSE | r.CR4_PAE | r.CR4_MCE | r.CR4_PGE | r.CR4_PCE
_CR4_KNOWN |= r.CR4_OSFXSR | r.CR4_OSXMMEXCPT


@handles(Operation.READ_CONTROL_REGISTER)
def _read_control(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    number = RegisterExt.number(instruction.op_register(1))
    write = register_writer(vcpu, instruction.op_register(0))
    if number not in (0, 2, 3, 4, 8):
        return undefined
    name = f"cr{number}"

    def action() -> None:
        kernel_only(vcpu)
        write(getattr(vcpu, name))
        vcpu.advance(length)

    return action


def write_cr0(context: Context, value: int) -> None:
    """CR0 <- value: long mode keeps PE and PG set; reserved bits and NW without CD are #GP."""
    vcpu = context.vcpu
    if value >> 32 or not value & r.CR0_PE or not value & r.CR0_PG:
        raise Fault(GENERAL_PROTECTION, 0)
    if value & r.CR0_NW and not value & r.CR0_CD:
        raise Fault(GENERAL_PROTECTION, 0)
    old, value = vcpu.cr0, value & _CR0_KEPT | r.CR0_ET
    vcpu.cr0 = value
    if (old ^ value) & r.CR0_WP:
        context.translations_changed()
    if (old ^ value) & (r.CR0_TS | r.CR0_EM | r.CR0_MP | r.CR0_NE):
        context.real_controls_changed()


def write_cr4(context: Context, value: int) -> None:
    """CR4 <- value: features CPUID does not show, and clearing PAE, are #GP."""
    vcpu = context.vcpu
    if value & ~_CR4_KNOWN or not value & r.CR4_PAE:
        raise Fault(GENERAL_PROTECTION, 0)
    old = vcpu.cr4
    vcpu.cr4 = value
    if (old ^ value) & (r.CR4_PGE | r.CR4_PSE):
        context.translations_changed()
    if (old ^ value) & (r.CR4_OSFXSR | r.CR4_OSXMMEXCPT):
        context.real_controls_changed()


@handles(Operation.WRITE_CONTROL_REGISTER)
def _write_control(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    number = RegisterExt.number(instruction.op_register(0))
    read = register_reader(vcpu, instruction.op_register(1))

    def cr0() -> None:
        kernel_only(vcpu)
        write_cr0(context, read())
        vcpu.advance(length)

    def cr2() -> None:
        kernel_only(vcpu)
        vcpu.cr2 = read()
        vcpu.advance(length)

    def cr3() -> None:
        kernel_only(vcpu)
        value = read()
        if value >> 36:
            raise Fault(GENERAL_PROTECTION, 0)
        vcpu.cr3 = value
        context.root_loaded()
        vcpu.advance(length)

    def cr4() -> None:
        kernel_only(vcpu)
        write_cr4(context, read())
        vcpu.advance(length)

    def cr8() -> None:
        kernel_only(vcpu)
        if read() >> 4:
            raise Fault(GENERAL_PROTECTION, 0)
        vcpu.cr8 = read()
        vcpu.advance(length)

    return {0: cr0, 2: cr2, 3: cr3, 4: cr4, 8: cr8}.get(number, undefined)


@handles(Operation.CLEAR_TASK_SWITCHED)
def _clts(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        kernel_only(vcpu)
        if vcpu.cr0 & r.CR0_TS:
            vcpu.cr0 &= ~r.CR0_TS
            context.real_controls_changed()
        vcpu.advance(length)

    return action


@handles(Operation.READ_MACHINE_STATUS_WORD)
def _smsw(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    write = operand_writer(vcpu, instruction, 0, 2)

    def action() -> None:
        write(vcpu.cr0)
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_MACHINE_STATUS_WORD)
def _lmsw(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    read = operand_reader(vcpu, instruction, 0, 2)

    def action() -> None:
        kernel_only(vcpu)
        value = read() & 0xF
        write_cr0(context, vcpu.cr0 & ~0xE | value | vcpu.cr0 & 1)
        vcpu.advance(length)

    return action


@handles(Operation.READ_DEBUG_REGISTER)
def _read_debug(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    number = RegisterExt.number(instruction.op_register(1))
    write = register_writer(vcpu, instruction.op_register(0))
    if number > 7:
        return undefined
    index = number + 2 if number in (4, 5) else number

    def action() -> None:
        kernel_only(vcpu)
        write(vcpu.debug[index])
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_DEBUG_REGISTER)
def _write_debug(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    number = RegisterExt.number(instruction.op_register(0))
    read = register_reader(vcpu, instruction.op_register(1))
    if number > 7:
        return undefined
    index = number + 2 if number in (4, 5) else number

    def action() -> None:
        kernel_only(vcpu)
        value = read()
        if index == 6:
            value = value & 0xE00F | 0xFFFF_0FF0
        elif index == 7:
            value = value & 0xFFFF_23FF | 0x400
        vcpu.debug[index] = value
        vcpu.advance(length)

    return action
