"""Transfers of control of 32-bit guests: SYSENTER and SYSEXIT, and string I/O, whose registers are narrower.

Room: `paravirt/operations/i386`. IRET and far transfers are those of x86-64, whose rules follow the mode.
"""

from iced_x86 import Code, Instruction, OpKind, RegisterExt

from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.msr import IA32_SYSENTER_CS
from emulator.isa.x86.transfer32 import sysexit
from paravirt.operations.i386.context import MASK, Context, handles
from paravirt.operations.x86.context import PREPARE, Action, kernel_only, undefined

_STRING_SIZES = {
    Code.INSB_M8_DX: 1, Code.INSW_M16_DX: 2, Code.INSD_M32_DX: 4,
    Code.OUTSB_DX_M8: 1, Code.OUTSW_DX_M16: 2, Code.OUTSD_DX_M32: 4,
}  # fmt: skip
_ES = 0
_SHORT = (OpKind.MEMORY_SEG_SI, OpKind.MEMORY_ESDI)
"""Operands whose registers have 16 bits."""


@handles(Operation.RETURN_FROM_SYSTEM_CALL)
def _sysexit(context: Context, instruction: Instruction) -> Action:
    vcpu = context.vcpu
    if instruction.code != Code.SYSEXITD:
        return undefined
    return lambda: sysexit(vcpu, vcpu.msrs.get(IA32_SYSENTER_CS, 0))


@handles(Operation.READ_PORT)
def _in(context: Context, instruction: Instruction) -> Action:
    if instruction.code not in _STRING_SIZES:
        return PREPARE[Operation.READ_PORT](context, instruction)
    return _string_port(context, instruction, True)


@handles(Operation.WRITE_PORT)
def _out(context: Context, instruction: Instruction) -> Action:
    if instruction.code not in _STRING_SIZES:
        return PREPARE[Operation.WRITE_PORT](context, instruction)
    return _string_port(context, instruction, False)


def _string_port(context: Context, instruction: Instruction, inward: bool) -> Action:
    """INS and OUTS, one element a visit: a repeated one stays at its address until ECX is 0."""
    vcpu, length, size = context.vcpu, len(instruction), _STRING_SIZES[instruction.code]
    repeated = instruction.has_rep_prefix or instruction.has_repne_prefix
    pointer, segment = (7, _ES) if inward else (6, RegisterExt.number(instruction.memory_segment))
    mask = 0xFFFF if any(instruction.op_kind(index) in _SHORT for index in range(instruction.op_count)) else MASK
    gpr, registers = vcpu.gpr, vcpu.registers

    def action() -> None:
        kernel_only(vcpu)
        if repeated and not gpr[1] & mask:
            vcpu.advance(length)
            return
        port, user = gpr[2] & 0xFFFF, vcpu.level == 3
        address = registers.segment_base(segment) + (gpr[pointer] & mask) & MASK
        if inward:
            vcpu.write(address, size, context.read_port(port, size), user)
        else:
            context.write_port(port, size, vcpu.read(address, size, user))
        step = -size if vcpu.rflags & r.FLAG_DF else size
        gpr[pointer] = gpr[pointer] & ~mask & MASK | gpr[pointer] + step & mask
        if repeated:
            gpr[1] = gpr[1] & ~mask & MASK | gpr[1] - 1 & mask
        if not repeated or not gpr[1] & mask:
            vcpu.advance(length)

    return action
