"""INVLPG, caches, port I/O by a planted trap, and software interrupts.

Room: `paravirt/operations`. Ports reach the board's bus by `Context`.
"""

from iced_x86 import Code, Instruction

from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.delivery import software_interrupt
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.segments import port_permitted
from paravirt.modes.x86.vcpu import X86VirtualCpu
from paravirt.operations.x86.context import (
    GENERAL_PROTECTION,
    MASK,
    Action,
    Context,
    handles,
    kernel_only,
)
from paravirt.operations.x86.operands import (
    address_reader,
)


@handles(Operation.INVALIDATE_PAGE)
def _invlpg(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)
    address = address_reader(vcpu, instruction)

    def action() -> None:
        kernel_only(vcpu)
        context.invalidate(address())
        vcpu.advance(length)

    return action


@handles(Operation.FLUSH_CACHES)
def _wbinvd(context: Context, instruction: Instruction) -> Action:
    vcpu, length = context.vcpu, len(instruction)

    def action() -> None:
        kernel_only(vcpu)
        vcpu.advance(length)

    return action


_PORT_IN_DX = {Code.IN_AL_DX: 1, Code.IN_AX_DX: 2, Code.IN_EAX_DX: 4}
_PORT_IN_IMM = {Code.IN_AL_IMM8: 1, Code.IN_AX_IMM8: 2, Code.IN_EAX_IMM8: 4}
_PORT_OUT_DX = {Code.OUT_DX_AL: 1, Code.OUT_DX_AX: 2, Code.OUT_DX_EAX: 4}
_PORT_OUT_IMM = {Code.OUT_IMM8_AL: 1, Code.OUT_IMM8_AX: 2, Code.OUT_IMM8_EAX: 4}


def _permitted(vcpu: X86VirtualCpu, port: int, size: int) -> None:
    """Raise the fault of user code that may not use a port; there are engines on which all that it does faults."""
    if vcpu.level > vcpu.iopl and not port_permitted(vcpu, port, size):
        raise Fault(GENERAL_PROTECTION, 0)


@handles(Operation.READ_PORT)
def _in(context: Context, instruction: Instruction) -> Action:
    vcpu, length, code = context.vcpu, len(instruction), instruction.code
    gpr = vcpu.gpr
    size = _PORT_IN_DX.get(code) or _PORT_IN_IMM.get(code)
    if size is None:
        return _string_port(context, instruction, True)
    fixed = instruction.immediate8 if code in _PORT_IN_IMM else -1

    def action() -> None:
        port = fixed if fixed >= 0 else gpr[2] & 0xFFFF
        _permitted(vcpu, port, size)
        value = context.read_port(port, size)
        mask = (1 << 8 * size) - 1
        gpr[0] = value & mask if size == 4 else gpr[0] & ~mask | value & mask
        vcpu.advance(length)

    return action


@handles(Operation.WRITE_PORT)
def _out(context: Context, instruction: Instruction) -> Action:
    vcpu, length, code = context.vcpu, len(instruction), instruction.code
    gpr = vcpu.gpr
    size = _PORT_OUT_DX.get(code) or _PORT_OUT_IMM.get(code)
    if size is None:
        return _string_port(context, instruction, False)
    fixed = instruction.immediate8 if code in _PORT_OUT_IMM else -1

    def action() -> None:
        port = fixed if fixed >= 0 else gpr[2] & 0xFFFF
        _permitted(vcpu, port, size)
        context.write_port(port, size, gpr[0] & ((1 << 8 * size) - 1))
        vcpu.advance(length)

    return action


def _string_port(context: Context, instruction: Instruction, inward: bool) -> Action:
    """INS and OUTS, one element a visit: a repeated one stays at its address until RCX is 0."""
    vcpu, length = context.vcpu, len(instruction)
    size = _STRING_SIZES[instruction.code]
    repeated = instruction.has_rep_prefix or instruction.has_repne_prefix
    pointer = 7 if inward else 6
    gpr = vcpu.gpr

    def action() -> None:
        port, address, user = gpr[2] & 0xFFFF, gpr[pointer], vcpu.level == 3
        _permitted(vcpu, port, size)
        if repeated and gpr[1] == 0:
            vcpu.advance(length)
            return
        if inward:
            vcpu.write(address, size, context.read_port(port, size), user)
        else:
            context.write_port(port, size, vcpu.read(address, size, user))
        gpr[pointer] = address + (-size if vcpu.rflags & r.FLAG_DF else size) & MASK
        if repeated:
            gpr[1] = gpr[1] - 1 & MASK
        if not repeated or gpr[1] == 0:
            vcpu.advance(length)

    return action


_STRING_SIZES = {
    Code.INSB_M8_DX: 1, Code.INSW_M16_DX: 2, Code.INSD_M32_DX: 4,
    Code.OUTSB_DX_M8: 1, Code.OUTSW_DX_M16: 2, Code.OUTSD_DX_M32: 4,
}  # fmt: skip


@handles(Operation.SOFTWARE_INTERRUPT)
def _int(context: Context, instruction: Instruction) -> Action:

    vcpu, length = context.vcpu, len(instruction)
    vector = {Code.INT3: 3, Code.INT1: 1}.get(instruction.code)
    number = instruction.immediate8 if vector is None else vector
    return lambda: software_interrupt(vcpu, number, length)
