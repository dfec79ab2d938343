"""What the operations of AArch64 share: their `Context`, and how an instruction finds its action.

Room: `paravirt/operations`. An action performs one instruction and moves PC; however an operation arrives, that is
where it ends. Actions raise `AArch64Exception` for what the guest did wrong. They know a `Hypervisor` only by the few
things named in `Context`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from emulator.isa.operation import Operation
from emulator.isa.sensitive import SensitiveInstruction
from paravirt.modes.aarch64.vcpu import AArch64VirtualCpu

Action = Callable[[], None]


class Context(Protocol):
    """What the operations need of the hypervisor."""

    vcpu: AArch64VirtualCpu

    def halted(self) -> None:
        """The guest waits for an interrupt; PC is behind the instruction."""
        ...

    def address_space_changed(self) -> None:
        """TTBR0_EL1 or TTBR1_EL1 were written."""
        ...

    def translation_changed(self) -> None:
        """SCTLR_EL1 or TCR_EL1 were written."""
        ...

    def invalidate(self, address: int, last: bool) -> None:
        """One page's translation goes, in every address space; with `last` what leads to its table may stay."""
        ...

    def invalidate_space(self) -> None:
        """The translations of one address space go."""
        ...

    def invalidate_all(self) -> None:
        """Every translation goes."""
        ...

    def read_timer(self, name: str) -> int:
        """A register of the generic timer."""
        ...

    def write_timer(self, name: str, value: int) -> None:
        """A register of the generic timer."""
        ...

    def floating_point_changed(self) -> None:
        """CPACR_EL1 was written."""
        ...

    def debug_changed(self) -> None:
        """A debug register was written."""
        ...

    def call_firmware(self) -> None:
        """HVC: PSCI; PC is behind the instruction."""
        ...

    def access_as_user(self, word: int) -> None:
        """LDTR or STTR, done with the rights of EL0; moves PC."""
        ...


Prepare = Callable[[Context, int, SensitiveInstruction], "Action | None"]
PREPARE: dict[Operation, Prepare] = {}
"""Every operation's maker of actions, from the instruction's word and row; None where the guest's processor does not
define the instruction."""


def handles(*operations: Operation) -> Callable[[Prepare], Prepare]:
    """Register a function for operations."""

    def register(function: Prepare) -> Prepare:
        for operation in operations:
            PREPARE[operation] = function
        return function

    return register


def prepare(context: Context, word: int, row: SensitiveInstruction) -> Action | None:
    """The action of an instruction; None where it is undefined on the guest's processor."""
    from paravirt.operations.aarch64 import registers, system  # noqa: F401  (they register themselves)

    make = PREPARE.get(row.operation)
    return make(context, word, row) if make is not None else None
