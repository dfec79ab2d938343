"""Exceptions of ARMv7-A: what is raised, and how the processor enters them (ARM B1.8).

Room: `emulator/isa/arm`. Numbers are those of the vectors. Knows of no engine and no hypervisor.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from emulator.isa.exceptions import ArchitecturalException

UNDEFINED, SUPERVISOR_CALL, PREFETCH_ABORT, DATA_ABORT, INTERRUPT, FAST_INTERRUPT = 1, 2, 3, 4, 6, 7
USR, FIQ, IRQ, SVC, MON, ABT, HYP, UND, SYS = 0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x1A, 0x1B, 0x1F
MODES: Final = frozenset({USR, FIQ, IRQ, SVC, ABT, UND, SYS})
"""Modes of a processor without security and virtualisation extensions, as guests see it."""

FLAG_N, FLAG_Z, FLAG_C, FLAG_V = 1 << 31, 1 << 30, 1 << 29, 1 << 28
BIT_E, MASK_A, MASK_I, MASK_F, BIT_T = 1 << 9, 1 << 8, 1 << 7, 1 << 6, 1 << 5
IT: Final = 0x0600_FC00
FLAGS: Final = 0xF80F_0000
"""What user mode may change by MSR: N Z C V Q GE."""
MODE: Final = 0x1F
MASKS: Final = MASK_A | MASK_I | MASK_F

WRITE: Final = 1 << 11
"""WnR of a data abort's status."""
ALIGNMENT, DEBUG_EVENT, ACCESS_FLAG_SECTION, ACCESS_FLAG_PAGE = 0x1, 0x2, 0x3, 0x6
TRANSLATION_SECTION, TRANSLATION_PAGE, DOMAIN_SECTION, DOMAIN_PAGE = 0x5, 0x7, 0x9, 0xB
PERMISSION_SECTION, PERMISSION_PAGE, EXTERNAL = 0xD, 0xF, 0x8


class Entry(NamedTuple):
    """How an exception is entered."""

    mode: int
    masks: int
    """Masks set besides I."""
    arm: int
    """What LR is beyond the address of the instruction, in A32."""
    thumb: int
    """The same in T32."""


ENTRIES: Final[dict[int, Entry]] = {
    UNDEFINED: Entry(UND, 0, 4, 2),
    SUPERVISOR_CALL: Entry(SVC, 0, 4, 2),
    PREFETCH_ABORT: Entry(ABT, MASK_A, 4, 4),
    DATA_ABORT: Entry(ABT, MASK_A, 8, 8),
    INTERRUPT: Entry(IRQ, MASK_A, 4, 4),
    FAST_INTERRUPT: Entry(FIQ, MASK_A | MASK_F, 4, 4),
}
"""By vector number. SVC's is counted from the instruction, and so is an interrupt's from the one it comes before."""


class ArmException(ArchitecturalException):
    """An exception of the guest's processor: `error` is a fault status in short-descriptor form, `address` a FAR."""

    __slots__ = ()


def undefined() -> ArmException:
    """Undefined Instruction."""
    return ArmException(UNDEFINED)
