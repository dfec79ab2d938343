"""CLI, STI, PUSHF, POPF: the virtual flags.

Room: `paravirt/operations`. The interrupt flag of a deprivileged guest's kernel lies in the shared page;
these actions are the slow way to it, and the oracle for the fixups.
"""

from iced_x86 import Code, Instruction

from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.processor import Fault
from paravirt.operations.x86.context import (
    GENERAL_PROTECTION,
    MASK,
    Action,
    Context,
    handles,
)


@handles(Operation.DISABLE_INTERRUPTS)
def _cli(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        if vcpu.level > vcpu.iopl:
            raise Fault(GENERAL_PROTECTION, 0)
        vcpu.interrupts_enabled = False
        vcpu.advance(length)

    return action


@handles(Operation.ENABLE_INTERRUPTS)
def _sti(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        if vcpu.level > vcpu.iopl:
            raise Fault(GENERAL_PROTECTION, 0)
        was = vcpu.interrupts_enabled
        vcpu.interrupts_enabled = True
        vcpu.advance(length)
        if not was:
            context.shadow_begins()

    return action


def _stack_width(instruction: Instruction) -> int:
    return 2 if instruction.code in (Code.PUSHFW, Code.POPFW) else 8


@handles(Operation.READ_FLAGS)
def _pushf(context: Context, instruction: Instruction) -> Action:
    vcpu, length, size = context.vcpu, len(instruction), _stack_width(instruction)

    def action() -> None:
        top = vcpu.gpr[4] - size & MASK
        vcpu.write(top, size, vcpu.rflags & ~(r.FLAG_RF | r.FLAG_VM))
        vcpu.gpr[4] = top
        vcpu.advance(length)

    return action


_POPF_KERNEL = r.FLAGS_STATUS | r.FLAG_TF | r.FLAG_IF | r.FLAG_DF | r.FLAG_IOPL | r.FLAG_NT | r.FLAG_AC | r.FLAG_ID


def pop_flags(context: Context, size: int) -> None:
    """POPF of 2 or 8 bytes, RIP left alone; what it may change goes by CPL and IOPL (SDM 2, POPF)."""
    vcpu = context.vcpu
    top = vcpu.gpr[4]
    value = vcpu.read(top, size)
    mask = _POPF_KERNEL & (0xFFFF if size == 2 else MASK)
    if vcpu.level:
        mask &= ~r.FLAG_IOPL if vcpu.level <= vcpu.iopl else ~(r.FLAG_IOPL | r.FLAG_IF)
    vcpu.rflags = vcpu.rflags & ~(mask | r.FLAG_RF) | value & mask | 2
    vcpu.gpr[4] = top + size & MASK


@handles(Operation.WRITE_FLAGS)
def _popf(context: Context, instruction: Instruction) -> Action:
    vcpu, length, size = context.vcpu, len(instruction), _stack_width(instruction)

    def action() -> None:
        pop_flags(context, size)
        vcpu.advance(length)

    return action
