"""What of a processor is noted and compared, by instruction set: the one place that knows which room holds it.

Room: `bt/verify/views`. A `View` looks at the processor of a run, real or virtual, in the names of its manual; it
is imported when a guest of its instruction set is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bt.verify.views.view import View


@dataclass(frozen=True, slots=True)
class Processor:
    """What comparing and showing need to know of an instruction set."""

    load: Callable[[], type[View]]
    """Gives what looks at its processor."""
    pc: str
    """The program counter among the registers at the end."""
    noted: tuple[str, ...]
    """The registers that are noted with every event, in their order."""
    digits: int
    """Hexadecimal digits of a register."""
    states: dict[int, tuple[str, str]]
    """`Event.bits` -> the instruction set and the state in it by which `bt.disassembly` prints such code; the first
    is the kernel's."""
    vectors: dict[int, str]
    """The manual's names of the exceptions by the number that is noted."""
    saved: frozenset[str] = frozenset()
    """Registers at the end that show where the last interrupt came."""
    lines: bool = False
    """The number of an interrupt is a set of lines, one bit each."""


def _x86_64() -> type[View]:
    from bt.verify.views.x86 import X86View

    return X86View


def _i386() -> type[View]:
    from bt.verify.views.x86 import I386View

    return I386View


def _aarch64() -> type[View]:
    from bt.verify.views.aarch64 import AArch64View

    return AArch64View


def _armv7() -> type[View]:
    from bt.verify.views.arm import ArmView

    return ArmView


def _mips32() -> type[View]:
    from bt.verify.views.mips import MipsView

    return MipsView


GENERAL: Final = (
    *("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"),
    *("R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"),
)
"""x86's general registers in the order of their numbers."""
_X86_VECTORS: Final = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 21: "#CP",
}  # fmt: skip
"""The vendor's names of the exceptions (SDM 3A, table 6-1)."""
_AARCH64_VECTORS: Final = {
    0x00: "unknown reason", 0x07: "SIMD or floating point", 0x0E: "illegal execution state", 0x15: "SVC",
    0x18: "system register", 0x20: "instruction abort from EL0", 0x21: "instruction abort", 0x22: "PC alignment",
    0x24: "data abort from EL0", 0x25: "data abort", 0x26: "SP alignment", 0x3C: "BRK",
}  # fmt: skip
"""Classes of exceptions (DDI 0487, ESR_ELx.EC)."""
_ARM_VECTORS: Final = {1: "undefined instruction", 2: "supervisor call", 3: "prefetch abort", 4: "data abort"}
"""Numbers of the vectors (ARM B1.8.1)."""
_MIPS_VECTORS: Final = {
    1: "Mod", 2: "TLBL", 3: "TLBS", 4: "AdEL", 5: "AdES", 6: "IBE", 7: "DBE", 8: "Sys", 9: "Bp", 10: "RI", 11: "CpU",
    12: "Ov", 13: "Tr", 15: "FPE", 23: "WATCH",
}  # fmt: skip
"""Cause.ExcCode (MD00090, table 9.31)."""
_MIPS_NAMES: Final = (
    *("zero", "at", "v0", "v1", "a0", "a1", "a2", "a3", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7"),
    *("s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "t8", "t9", "k0", "k1", "gp", "sp", "fp", "ra"),
)

PROCESSORS: Final[dict[str, Processor]] = {
    "x86-64": Processor(_x86_64, "RIP", (*GENERAL, "RFLAGS"), 16, {64: ("x86-64", ""), 32: ("i386", "")}, _X86_VECTORS),
    "i386": Processor(_i386, "RIP", (*GENERAL, "RFLAGS"), 16, {32: ("i386", "")}, _X86_VECTORS),
    "aarch64": Processor(
        _aarch64,
        "PC",
        (*(f"X{number}" for number in range(31)), "SP", "PSTATE"),
        16,
        {64: ("aarch64", "")},
        _AARCH64_VECTORS,
        saved=frozenset({"ELR_EL1", "SPSR_EL1"}),
    ),
    "armv7": Processor(
        _armv7,
        "PC",
        (*(f"R{number}" for number in range(13)), "SP", "LR", "CPSR"),
        8,
        {32: ("armv7", ""), 16: ("armv7", "t32")},
        _ARM_VECTORS,
        saved=frozenset({"LR_irq", "SPSR_irq"}),
    ),
    "mips32": Processor(
        _mips32,
        "PC",
        (*_MIPS_NAMES, "Status"),
        8,
        {32: ("mips32", "")},
        _MIPS_VECTORS,
        # Whether a probe finds an entry depends on what processes brought into the TLB.
        saved=frozenset({"EPC", "Index"}),
        lines=True,
    ),
}
"""Every instruction set whose guests can be verified."""
