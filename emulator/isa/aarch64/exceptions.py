"""Exception classes, syndromes and vectors of AArch64, as data.

Room: `emulator/isa/aarch64`. By DDI 0487, D1.3 (exceptions), D19.2 (ESR_EL1) and D1.3.1.5 (vector offsets).
"""

from typing import Final

from emulator.isa.exceptions import ArchitecturalException

UNKNOWN: Final = 0x00
WAITING: Final = 0x01
FLOATING_POINT: Final = 0x07
ILLEGAL_STATE: Final = 0x0E
SVC: Final = 0x15
HVC: Final = 0x16
SMC: Final = 0x17
SYSTEM_REGISTER: Final = 0x18
FETCH_LOWER: Final = 0x20
FETCH_SAME: Final = 0x21
PC_ALIGNMENT: Final = 0x22
DATA_LOWER: Final = 0x24
DATA_SAME: Final = 0x25
SP_ALIGNMENT: Final = 0x26
BREAKPOINT_LOWER: Final = 0x30
BREAKPOINT_SAME: Final = 0x31
STEP_LOWER: Final = 0x32
STEP_SAME: Final = 0x33
WATCHPOINT_LOWER: Final = 0x34
WATCHPOINT_SAME: Final = 0x35
BREAKPOINT: Final = 0x3C

NAMES: Final[dict[int, str]] = {
    UNKNOWN: "undefined",
    WAITING: "trapped WFI or WFE",
    FLOATING_POINT: "trapped floating point",
    ILLEGAL_STATE: "illegal execution state",
    SVC: "SVC",
    HVC: "HVC",
    SMC: "SMC",
    SYSTEM_REGISTER: "trapped system instruction",
    FETCH_LOWER: "instruction abort from EL0",
    FETCH_SAME: "instruction abort",
    PC_ALIGNMENT: "misaligned PC",
    DATA_LOWER: "data abort from EL0",
    DATA_SAME: "data abort",
    SP_ALIGNMENT: "misaligned SP",
    BREAKPOINT_LOWER: "breakpoint from EL0",
    BREAKPOINT_SAME: "breakpoint",
    STEP_LOWER: "software step from EL0",
    STEP_SAME: "software step",
    WATCHPOINT_LOWER: "watchpoint from EL0",
    WATCHPOINT_SAME: "watchpoint",
    BREAKPOINT: "BRK",
}
"""What each class that EL1 can see is called."""

IL: Final = 1 << 25
"""Syndrome: the instruction has 32 bits."""
WNR: Final = 1 << 6
"""Syndrome of a data abort: a write."""
CM: Final = 1 << 8
"""Syndrome of a data abort: cache maintenance or AT."""

ADDRESS_SIZE_FAULT: Final = 0x00
TRANSLATION_FAULT: Final = 0x04
ACCESS_FLAG_FAULT: Final = 0x08
PERMISSION_FAULT: Final = 0x0C
EXTERNAL_ABORT: Final = 0x10
ALIGNMENT_FAULT: Final = 0x21
"""Fault status codes; the first four have the level of the walk added."""

SYNCHRONOUS: Final = 0x000
IRQ: Final = 0x080
FIQ: Final = 0x100
SERROR: Final = 0x180
"""Vector offsets within one of the four groups."""
FROM_SP0: Final = 0x000
FROM_SPX: Final = 0x200
FROM_EL0: Final = 0x400
"""Groups of vectors: taken from EL1 with SP_EL0, from EL1 with SP_EL1, from EL0 in AArch64."""

N, Z, C, V = 1 << 31, 1 << 30, 1 << 29, 1 << 28
SS, ILLEGAL = 1 << 21, 1 << 20
MASK_D, MASK_A, MASK_I, MASK_F = 1 << 9, 1 << 8, 1 << 7, 1 << 6
MASKS: Final = MASK_D | MASK_A | MASK_I | MASK_F
FLAGS: Final = N | Z | C | V
EL0T, EL1T, EL1H = 0, 4, 5
"""Bits and modes of PSTATE as SPSR_EL1 has them (C5.2.18)."""


def syndrome(kind: int, specific: int = 0) -> int:
    """ESR_EL1 of an exception of a 32-bit instruction."""
    return kind << 26 | IL | specific


class AArch64Exception(ArchitecturalException):
    """A synchronous exception of the guest's processor: `vector` is its class, `error` its syndrome without class, IL
    and what depends on the level (`ESR_EL1.ISS`), `address` FAR_EL1 where it has one."""

    __slots__ = ()


def undefined() -> AArch64Exception:
    """An instruction that is not defined here."""
    return AArch64Exception(UNKNOWN, 0)
