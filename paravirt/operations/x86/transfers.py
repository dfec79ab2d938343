"""Transfers of control that depend on or change the privilege level, and HLT.

Room: `paravirt/operations`. The architecture's own rules are in `emulator.isa.x86.transfer`; here they are
applied to the virtual CPU.
"""

from collections.abc import Callable

from iced_x86 import Code, Instruction, OpKind

from emulator.isa.operation import Operation
from emulator.isa.x86.transfer import far_call, far_jump, far_return, iret, sysret
from paravirt.operations.x86.context import (
    MASK,
    Action,
    Context,
    handles,
    kernel_only,
    undefined,
)
from paravirt.operations.x86.operands import (
    address_reader,
)


@handles(Operation.RETURN_FROM_EXCEPTION)
def _iret(context: Context, instruction: Instruction) -> Action:
    vcpu = context.vcpu
    size = {Code.IRETW: 2, Code.IRETD: 4}.get(instruction.code, 8)

    def action() -> None:
        iret(vcpu, size)

    returns = context.returns
    if returns is None or size != 8:
        return action
    quickly, learn = returns.done, returns.learn

    def quick() -> None:
        if not quickly():
            iret(vcpu, size)
            if vcpu.level in (0, 3):
                learn()

    return quick


_FAR_RETURN_SIZES = {
    Code.RETFW: 2,
    Code.RETFW_IMM16: 2,
    Code.RETFD: 4,
    Code.RETFD_IMM16: 4,
    Code.RETFQ: 8,
    Code.RETFQ_IMM16: 8,
}


@handles(Operation.FAR_RETURN)
def _far_return(context: Context, instruction: Instruction) -> Action:
    vcpu, size = context.vcpu, _FAR_RETURN_SIZES[instruction.code]
    release = instruction.immediate16 if instruction.op_count else 0
    return lambda: far_return(vcpu, size, release)


def _far_pointer(context: Context, instruction: Instruction) -> tuple[Callable[[], tuple[int, int]], int]:
    """Reads selector and offset of a far transfer's operand; also gives the operand size."""
    vcpu = context.vcpu
    kind = instruction.op_kind(0)
    if kind in (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32):
        size = 2 if kind == OpKind.FAR_BRANCH16 else 4
        selector = instruction.far_branch_selector
        offset = instruction.far_branch16 if size == 2 else instruction.far_branch32
        return lambda: (selector, offset), size
    size = {
        Code.JMP_M1616: 2, Code.CALL_M1616: 2, Code.JMP_M1632: 4, Code.CALL_M1632: 4,
    }.get(instruction.code, 8)  # fmt: skip
    address = address_reader(vcpu, instruction)

    def pointer() -> tuple[int, int]:
        at, user = address(), vcpu.level == 3
        return vcpu.read(at + size & MASK, 2, user), vcpu.read(at, size, user)

    return pointer, size


@handles(Operation.FAR_JUMP)
def _far_jump(context: Context, instruction: Instruction) -> Action:
    pointer, _size = _far_pointer(context, instruction)
    vcpu, length = context.vcpu, len(instruction)
    return lambda: far_jump(vcpu, *pointer(), length)


@handles(Operation.FAR_CALL)
def _far_call(context: Context, instruction: Instruction) -> Action:
    pointer, size = _far_pointer(context, instruction)
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        selector, offset = pointer()
        far_call(vcpu, selector, offset, size, length)

    return action


@handles(Operation.RETURN_FROM_SYSTEM_CALL)
def _sysret(context: Context, instruction: Instruction) -> Action:
    vcpu = context.vcpu
    if instruction.code in (Code.SYSEXITD, Code.SYSEXITQ):
        return undefined
    size = 8 if instruction.code == Code.SYSRETQ else 4

    def action() -> None:
        sysret(vcpu, size)

    return action


@handles(Operation.SYSTEM_CALL)
def _sysenter(_context: Context, _instruction: Instruction) -> Action:
    return undefined


@handles(Operation.SWAP_GS)
def _swapgs(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    registers = vcpu.registers

    def action() -> None:
        kernel_only(vcpu)
        base = registers.segment_base(5)
        registers.set_segment_base(5, vcpu.kernel_gs_base)
        vcpu.kernel_gs_base = base
        vcpu.advance(length)

    return action


@handles(Operation.HALT)
def _hlt(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        kernel_only(vcpu)
        vcpu.advance(length)
        context.halted()

    return action
