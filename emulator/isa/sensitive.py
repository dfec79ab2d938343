"""The form of a sensitive-instruction table: one typed row an instruction.

Room: `emulator/isa`. Scanner, planner, rewriter, hypervisor, tests and documentation all read
these rows; the rows of an ISA live in `emulator/isa/<isa>/table.py`. Terms are those of the
lecture ("Trap-and-Emulate Requirements") and of Popek and Goldberg (CACM 17(7), 1974).
"""

from dataclasses import dataclass
from enum import Enum, Flag, auto

from emulator.isa.operation import Operation


class UserBehaviour(Enum):
    """What the instruction does when it is executed in user mode."""

    TRAPS = "traps"
    """Raises an exception: the instruction is privileged."""
    IGNORED = "ignored"
    """Completes, silently leaving out its privileged part."""
    LEAKS = "leaks"
    """Completes and shows privileged state, or changes it without asking."""
    DIFFERS = "differs"
    """Completes, with another effect than in kernel mode."""


class Sensitivity(Flag):
    """Which of the two kinds of sensitivity the instruction has; it may have both."""

    CONTROL = auto()
    """Changes privileged state."""
    BEHAVIOUR = auto()
    """Its result shows, or depends on, privileged state."""


class Route(Enum):
    """A way by which the operation may reach its handler."""

    INLINE = "inline"
    """A fixup does the work inside the guest; no exit."""
    HYPERCALL = "hypercall"
    """A fixup calls the hypervisor."""
    TRAP = "trap"
    """The instruction, or a trap planted on its first byte, faults."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Recognition on x86: a set of iced-x86 `Code` values."""

    codes: frozenset[int]
    """The encodings this row stands for; no code is in two rows."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Recognition on a fixed-width ISA: a word matches when `word & mask == value`."""

    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class SensitiveInstruction:
    """One row of an ISA's sensitive-instruction table."""

    name: str
    """The vendor's mnemonic, with a distinguishing operand where one mnemonic has two rows."""
    match: Codes | Pattern
    """How to recognise the instruction."""
    at_user_level: UserBehaviour
    """What it does in user mode, by the manual."""
    sensitivity: Sensitivity
    """Control-sensitive, behaviour-sensitive, or both."""
    operation: Operation
    """The privileged act it stands for."""
    routes: tuple[Route, ...]
    """The routes it may take, best first; `Route.TRAP` is always the last."""
    example: str
    """One instance in Intel syntax, assembled by the tests."""
    manual: str
    """Where the vendor's manual describes it."""
    condition: str = ""
    """When the behaviour holds, if not always ("CR4.TSD = 1")."""
    note: str = ""
    """What a reader of the table must know besides."""

    @property
    def privileged(self) -> bool:
        """Whether it traps in user mode (unconditionally or under `condition`)."""
        return self.at_user_level is UserBehaviour.TRAPS
