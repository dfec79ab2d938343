"""Encodings of A64's system instructions, and the 16-bit name of a system register.

Room: `emulator/isa/aarch64`, data about the instruction set. By the Arm Architecture Reference Manual (DDI 0487),
C5.1: a system instruction names op0, op1, CRn, CRm and op2, in bits 20-5 of the word; the same sixteen bits name a
system register everywhere in this project.
"""

from typing import Final

MRS: Final = 0xD530_0000
MSR: Final = 0xD510_0000
SYS: Final = 0xD508_0000
SYSL: Final = 0xD528_0000
SVC: Final = 0xD400_0001
HVC: Final = 0xD400_0002
SMC: Final = 0xD400_0003
BRK: Final = 0xD420_0000
HLT: Final = 0xD440_0000
ERET: Final = 0xD69F_03E0
NOP: Final = 0xD503_201F
WFE: Final = 0xD503_205F
WFI: Final = 0xD503_207F
ISB: Final = 0xD503_3FDF

REGISTER_MASK: Final = 0xFFFF_FFE0
"""All of MRS, MSR, SYS and SYSL but the general register."""
IMMEDIATE_MASK: Final = 0xFFFF_F0FF
"""All of MSR (immediate) but the immediate."""


def register(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """The 16-bit name of a system register (or of a SYS operation, whose op0 is 1)."""
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def fields(name: int) -> tuple[int, int, int, int, int]:
    """op0, op1, CRn, CRm and op2 of a register's 16-bit name."""
    return name >> 14, name >> 11 & 7, name >> 7 & 15, name >> 3 & 15, name & 7


def named(word: int) -> int:
    """The 16-bit name in a word that is MRS, MSR (register), SYS or SYSL."""
    return word >> 5 & 0xFFFF


def mrs(name: int, general: int = 0) -> int:
    """`mrs x<general>, <register>`."""
    return 0xD520_0000 | name << 5 | general


def msr(name: int, general: int = 0) -> int:
    """`msr <register>, x<general>`; with op0 = 1 the SYS instruction."""
    return 0xD500_0000 | name << 5 | general


def msr_immediate(op1: int, op2: int, value: int = 0) -> int:
    """`msr <field of PSTATE>, #value`."""
    return 0xD500_401F | op1 << 16 | value << 8 | op2 << 5


def generic(name: int) -> str:
    """How an assembler that knows no newer names writes a register: `s3_0_c1_c0_0`."""
    op0, op1, crn, crm, op2 = fields(name)
    return f"s{op0}_{op1}_c{crn}_c{crm}_{op2}"


def branch(source: int, target: int) -> int:
    """`b target` at address `source`. Raises ValueError when it is more than 128 MiB away or not a whole word."""
    distance = target - source
    if distance & 3 or not -(1 << 27) <= distance < 1 << 27:
        raise ValueError(f"{target:#x} is out of a branch's reach from {source:#x}")
    return 0x1400_0000 | distance >> 2 & 0x3FF_FFFF
