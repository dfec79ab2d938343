"""The instruction sets there are, by name: the one place that knows which.

Room: `emulator/isa`. An `Isa` says in data what the toolchain must know of an instruction set; its table and its
proofs are imported when they are asked for, so that a command that needs none loads none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulator.isa.proof import Proof
    from emulator.isa.sensitive import ContextSensitive, SensitiveInstruction


@dataclass(frozen=True, slots=True)
class Isa:
    """One instruction set."""

    name: str
    """As users write it: "x86-64", "i386", "armv7", "aarch64", "mips32"."""
    title: str
    """As manuals write it."""
    bits: int
    """Width of an address: 32 or 64."""
    byte_orders: tuple[str, ...]
    """"little", "big" or both, the usual one first."""
    machine: int
    """`e_machine` of its ELF files."""
    load_rows: Callable[[], tuple[SensitiveInstruction, ...]]
    """Gives its sensitive-instruction table."""
    encodings: Callable[[SensitiveInstruction], list[str]]
    """The manual's encodings of a row, for people."""
    planted: Callable[[SensitiveInstruction], bool]
    """Whether a row needs a planted trap, because it does not exit by itself in user mode."""
    prove: Callable[[Sequence[SensitiveInstruction]], Iterator[Proof]]
    """Runs rows live in kernel and in user mode, in their order. Raises `EngineMissing`."""
    load_contexts: Callable[[], tuple[ContextSensitive, ...]] = tuple
    """Gives what is sensitive by its context only."""

    @property
    def rows(self) -> tuple[SensitiveInstruction, ...]:
        """Its sensitive-instruction table, in the order in which it is printed."""
        return self.load_rows()


def _x86_64_rows() -> tuple[SensitiveInstruction, ...]:
    from emulator.isa.x86.table import ROWS

    return ROWS


def _x86_64_encodings(row: SensitiveInstruction) -> list[str]:
    from emulator.isa.x86.table import encodings

    return encodings(row)


def _x86_64_planted(row: SensitiveInstruction) -> bool:
    from emulator.isa.x86.table import planted

    return planted(row)


def _x86_64_prove(rows: Sequence[SensitiveInstruction]) -> Iterator[Proof]:
    from emulator.isa.x86.proof import prove_rows

    return prove_rows(rows)


X86_64 = Isa("x86-64", "x86-64", 64, ("little",), 62, _x86_64_rows, _x86_64_encodings, _x86_64_planted, _x86_64_prove)


def _i386_rows() -> tuple[SensitiveInstruction, ...]:
    from emulator.isa.x86.table import ROWS_32

    return ROWS_32


def _i386_prove(rows: Sequence[SensitiveInstruction]) -> Iterator[Proof]:
    from emulator.isa.x86.proof import prove_rows

    return prove_rows(rows, 32)


I386 = Isa("i386", "IA-32", 32, ("little",), 3, _i386_rows, _x86_64_encodings, _x86_64_planted, _i386_prove)


def _aarch64_rows() -> tuple[SensitiveInstruction, ...]:
    from emulator.isa.aarch64.table import ROWS

    return ROWS


def _aarch64_encodings(row: SensitiveInstruction) -> list[str]:
    from emulator.isa.aarch64.table import encodings

    return encodings(row)


def _aarch64_planted(row: SensitiveInstruction) -> bool:
    from emulator.isa.aarch64.table import planted

    return planted(row)


def _aarch64_prove(rows: Sequence[SensitiveInstruction]) -> Iterator[Proof]:
    from emulator.isa.aarch64.proof import prove_rows

    return prove_rows(rows)


def _aarch64_contexts() -> tuple[ContextSensitive, ...]:
    from emulator.isa.aarch64.table import CONTEXTS

    return CONTEXTS


AARCH64 = Isa(
    "aarch64",
    "AArch64",
    64,
    ("little",),
    183,
    _aarch64_rows,
    _aarch64_encodings,
    _aarch64_planted,
    _aarch64_prove,
    _aarch64_contexts,
)


def _arm_rows() -> tuple[SensitiveInstruction, ...]:
    from emulator.isa.arm.table import ROWS

    return ROWS


def _arm_encodings(row: SensitiveInstruction) -> list[str]:
    from emulator.isa.arm.table import encodings

    return encodings(row)


def _arm_planted(row: SensitiveInstruction) -> bool:
    from emulator.isa.arm.table import planted

    return planted(row)


def _arm_prove(rows: Sequence[SensitiveInstruction]) -> Iterator[Proof]:
    from emulator.isa.arm.proof import prove_rows

    return prove_rows(rows)


def _arm_contexts() -> tuple[ContextSensitive, ...]:
    from emulator.isa.arm.table import CONTEXTS

    return CONTEXTS


ARMV7 = Isa(
    "armv7",
    "ARMv7-A",
    32,
    ("little",),
    40,
    _arm_rows,
    _arm_encodings,
    _arm_planted,
    _arm_prove,
    _arm_contexts,
)


def _mips_rows() -> tuple[SensitiveInstruction, ...]:
    from emulator.isa.mips.table import ROWS

    return ROWS


def _mips_encodings(row: SensitiveInstruction) -> list[str]:
    from emulator.isa.mips.table import encodings

    return encodings(row)


def _mips_planted(row: SensitiveInstruction) -> bool:
    from emulator.isa.mips.table import planted

    return planted(row)


def _mips_prove(rows: Sequence[SensitiveInstruction]) -> Iterator[Proof]:
    from emulator.isa.mips.proof import prove_rows

    return prove_rows(rows)


def _mips_contexts() -> tuple[ContextSensitive, ...]:
    from emulator.isa.mips.table import CONTEXTS

    return CONTEXTS


MIPS32 = Isa(
    "mips32",
    "MIPS32",
    32,
    ("little", "big"),
    8,
    _mips_rows,
    _mips_encodings,
    _mips_planted,
    _mips_prove,
    _mips_contexts,
)

ISAS: dict[str, Isa] = {isa.name: isa for isa in (X86_64, I386, AARCH64, ARMV7, MIPS32)}
"""Every instruction set by its name."""
