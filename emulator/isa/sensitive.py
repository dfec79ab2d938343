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
    """One encoding on a fixed-width ISA: a word matches when `word & mask == value` and no exception does."""

    mask: int
    value: int
    unless: tuple[tuple[int, int], ...] = ()
    """Exceptions as (mask, value): encodings inside this one that stand for something else."""
    size: int = 4
    """Bytes of the instruction. A 32-bit T32 instruction is the word (first halfword << 16 | second halfword)."""

    def matches(self, word: int) -> bool:
        """Whether `word`, of this pattern's size, is this encoding."""
        return word & self.mask == self.value and not any(word & mask == value for mask, value in self.unless)


@dataclass(frozen=True, slots=True)
class Patterns:
    """Recognition on a fixed-width ISA: any of some encodings."""

    patterns: tuple[Pattern, ...]
    state: str = ""
    """The instruction-set state the encodings are of, where an ISA has several ("a32", "t32"); "" where it has one."""


@dataclass(frozen=True, slots=True)
class SensitiveInstruction:
    """One row of an ISA's sensitive-instruction table."""

    name: str
    """The vendor's mnemonic, with a distinguishing operand where one mnemonic has two rows."""
    match: Codes | Patterns
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
    """One instance in the vendor's assembler syntax (x86: Intel), assembled by the tests. Where no assembler that is
    installed knows it: the word, as ".inst 0x..." (32-bit T32: first halfword high)."""
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


@dataclass(frozen=True, slots=True)
class ContextSensitive:
    """Sensitivity that no encoding shows: an innocuous instruction whose operand makes it sensitive."""

    name: str
    """What is done ("a store to a translation table")."""
    instructions: str
    """Which instructions may do it."""
    context: str
    """What makes it sensitive."""
    handled: str
    """How it is caught, since no scan can find it."""
    manual: str
    """Where the vendor's manual describes it."""
