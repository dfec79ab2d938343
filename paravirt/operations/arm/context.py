"""What the operations of ARMv7 share: their `Context`, their registry, and how an instruction is taken apart.

Room: `paravirt/operations`. One entry per `Operation`; each makes, from a decoded instruction, an action that performs
it and moves PC. However an operation arrives, that is where it ends. Actions raise `ArmException` for what the guest
did wrong. They know a `Hypervisor` only by the few things named in `Context`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from emulator.isa.operation import Operation
from emulator.isa.sensitive import SensitiveInstruction
from paravirt.modes.arm.vcpu import ArmVirtualCpu

Action = Callable[[], None]


class Instruction(NamedTuple):
    """A sensitive instruction of the guest."""

    row: SensitiveInstruction
    name: str
    """The row's, without its state."""
    word: int
    size: int
    thumb: bool

    @property
    def rt(self) -> int:
        """Bits 15:12, where most have their register."""
        return self.word >> 12 & 15

    @property
    def rn(self) -> int:
        """Bits 19:16."""
        return self.word >> 16 & 15


class Context(Protocol):
    """What the operations need of the hypervisor."""

    vcpu: ArmVirtualCpu

    @property
    def requested(self) -> bool:
        """Whether the board requests the processor."""
        ...

    def debug_changed(self) -> None:
        """A debug register was written."""
        ...

    def halted(self) -> None:
        """The guest waits for an interrupt; PC is behind the instruction."""
        ...

    def address_space_changed(self) -> None:
        """TTBR0, TTBR1, TTBCR or SCTLR.M were written."""
        ...

    def asid_changed(self, asid: int) -> None:
        """CONTEXTIDR was written."""
        ...

    def domains_changed(self, old: int) -> None:
        """DACR was written."""
        ...

    def invalidate(self, address: int) -> None:
        """One page's translation goes."""
        ...

    def invalidate_all(self) -> None:
        """Every translation of the current address space goes."""
        ...

    def floating_point_changed(self) -> None:
        """CPACR or FPEXC were written."""
        ...

    def read_timer(self, name: str) -> int:
        """A register of the generic timer."""
        ...

    def write_timer(self, name: str, value: int) -> None:
        """A register of the generic timer."""
        ...

    def call_firmware(self) -> None:
        """HVC or SMC: PSCI; PC is behind the instruction."""
        ...


Prepare = Callable[[Context, Instruction], Action]
PREPARE: dict[Operation, Prepare] = {}
"""Every operation's handler."""


def handles(*operations: Operation) -> Callable[[Prepare], Prepare]:
    """Register a function for operations."""

    def register(function: Prepare) -> Prepare:
        for operation in operations:
            PREPARE[operation] = function
        return function

    return register


def action_for(context: Context, instruction: Instruction) -> Action:
    """The action of an instruction, which does nothing but step over it where its condition does not hold."""
    action = PREPARE[instruction.row.operation](context, instruction)
    condition = instruction.word >> 28
    if instruction.thumb or condition >= 14:
        return action
    vcpu = context.vcpu

    def conditional() -> None:
        if vcpu.condition_holds(condition):
            action()
        else:
            vcpu.pc += 4

    return conditional
