"""PUSHF and POPF of 32-bit guests.

Room: `paravirt/operations/i386`. CLI and STI are those of x86-64.
"""

from iced_x86 import Code, Instruction

from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from paravirt.operations.i386.context import MASK, Context, drop, handles, push, top
from paravirt.operations.x86.context import Action

_POPF_KERNEL = r.FLAGS_STATUS | r.FLAG_TF | r.FLAG_IF | r.FLAG_DF | r.FLAG_IOPL | r.FLAG_NT | r.FLAG_AC | r.FLAG_ID


def _width(instruction: Instruction) -> int:
    return 2 if instruction.code in (Code.PUSHFW, Code.POPFW) else 4


@handles(Operation.READ_FLAGS)
def _pushf(context: Context, instruction: Instruction) -> Action:
    vcpu, length, size = context.vcpu, len(instruction), _width(instruction)

    def action() -> None:
        push(vcpu, vcpu.rflags & ~(r.FLAG_RF | r.FLAG_VM), size)
        vcpu.advance(length)

    return action


def pop_flags(context: Context, size: int) -> None:
    """POPF of 2 or 4 bytes, EIP left alone; what it may change goes by CPL and IOPL (SDM 2, POPF)."""
    vcpu = context.vcpu
    stack, value = top(vcpu, size)
    mask = _POPF_KERNEL & (0xFFFF if size == 2 else MASK)
    if vcpu.level:
        mask &= ~r.FLAG_IOPL if vcpu.level <= vcpu.iopl else ~(r.FLAG_IOPL | r.FLAG_IF)
    vcpu.rflags = vcpu.rflags & ~(mask | r.FLAG_RF) | value & mask | 2
    drop(vcpu, stack, size)


@handles(Operation.WRITE_FLAGS)
def _popf(context: Context, instruction: Instruction) -> Action:
    vcpu, length, size = context.vcpu, len(instruction), _width(instruction)

    def action() -> None:
        pop_flags(context, size)
        vcpu.advance(length)

    return action
