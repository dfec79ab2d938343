"""What the operations of x86-64 share: their `Context`, their registry, and what this processor lacks.

Room: `paravirt/operations`. One entry per `Operation`; each makes, from a decoded instruction, an
action that performs it and moves RIP. However an operation arrives (fault, planted trap, hypercall),
that is where it ends. Actions raise `Fault` for what the guest did wrong. They know a `Hypervisor`
only by the few things named in `Context`.
"""

from collections.abc import Callable
from typing import Protocol

from iced_x86 import Instruction, OpKind, RegisterExt

from emulator.isa.operation import Operation
from emulator.isa.x86.processor import Fault
from paravirt.modes.x86.returns import QuickReturns
from paravirt.modes.x86.vcpu import X86VirtualCpu

Action = Callable[[], None]
MASK = 0xFFFF_FFFF_FFFF_FFFF
HOLE = 0x8000_0000_0000
GENERAL_PROTECTION, INVALID_OPCODE = 13, 6


class Context(Protocol):
    """What the operations need of the hypervisor."""

    vcpu: X86VirtualCpu
    returns: QuickReturns | None
    """How IRETQ is done in haste, where that matters."""

    def shadow_begins(self) -> None:
        """STI: the next instruction still runs before an interrupt may come."""
        ...

    def halted(self) -> None:
        """The guest waits for an interrupt; RIP is behind the instruction."""
        ...

    def root_loaded(self) -> None:
        """CR3 was written."""
        ...

    def translations_changed(self) -> None:
        """CR0.WP, EFER.NXE or CR4.PGE changed: all translations go."""
        ...

    def real_controls_changed(self) -> None:
        """CR0's and CR4's floating-point bits changed."""
        ...

    def descriptors_changed(self) -> None:
        """GDTR, LDTR, TR or IDTR changed."""
        ...

    def invalidate(self, address: int) -> None:
        """INVLPG."""
        ...

    def read_port(self, port: int, size: int) -> int: ...

    def write_port(self, port: int, size: int, value: int) -> None: ...

    def time_stamp(self) -> int:
        """Virtual time-stamp counter."""
        ...


Prepare = Callable[[Context, Instruction], Action]
PREPARE: dict[Operation, Prepare] = {}
"""The handlers: how to make the action for an instruction that stands for an operation."""


def handles(operation: Operation) -> Callable[[Prepare], Prepare]:
    """Register the handler of an operation."""

    def register(prepare: Prepare) -> Prepare:
        PREPARE[operation] = prepare
        return prepare

    return register


def kernel_only(vcpu: X86VirtualCpu) -> None:
    if vcpu.level:
        raise Fault(GENERAL_PROTECTION, 0)


def operand_size(instruction: Instruction) -> int:
    """Operand size in bytes of a register or memory operand that follows the operand-size prefix."""
    for operand in range(instruction.op_count):
        if instruction.op_kind(operand) == OpKind.REGISTER:
            register = instruction.op_register(operand)
            if RegisterExt.is_gpr(register):
                return RegisterExt.size(register)
    return 2


def undefined() -> None:
    """The processor shown to the guest does not have this instruction."""
    raise Fault(INVALID_OPCODE)


def absent(_context: Context, _instruction: Instruction) -> Action:
    """The handler of operations that CPUID does not offer."""
    return undefined


for _absent in (
    Operation.SET_ACCESS_CHECK,
    Operation.MONITOR_WAIT,
    Operation.INVALIDATE_CONTEXT,
    Operation.READ_PROCESSOR_ID,
    Operation.READ_EXTENDED_CONTROL_REGISTER,
    Operation.WRITE_EXTENDED_CONTROL_REGISTER,
    Operation.READ_PROTECTION_KEYS,
    Operation.WRITE_PROTECTION_KEYS,
    Operation.ENTER_HYPERVISOR,
    Operation.SAVE_SUPERVISOR_STATE,
    Operation.RETURN_FROM_MANAGEMENT_MODE,
    Operation.MANAGE_SHADOW_STACK,
    Operation.CONTROL_PLATFORM,
    Operation.READ_SEGMENT_BASE,
    Operation.WRITE_SEGMENT_BASE,
):
    PREPARE[_absent] = absent
