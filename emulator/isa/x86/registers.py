"""The registers of an x86-64 processor as numbers: indices, bits, exception vectors, page-table bits.

Room: `emulator/isa/x86`, data about the instruction set, in the vendor's spelling. Knows no engine
and imports nothing heavy. Sources: Intel SDM volume 3A, sections 2.3, 2.5, 4.5, 6.15 and
17.2; volume 1, section 3.4.3.
"""

from enum import Enum
from typing import Final, NamedTuple

# General-purpose registers, in encoding order (SDM volume 2, table 2-2).
RAX: Final = 0
RCX: Final = 1
RDX: Final = 2
RBX: Final = 3
RSP: Final = 4
RBP: Final = 5
RSI: Final = 6
RDI: Final = 7
R8: Final = 8
R9: Final = 9
R10: Final = 10
R11: Final = 11
R12: Final = 12
R13: Final = 13
R14: Final = 14
R15: Final = 15

GPR_NAMES: Final = (
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
    "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
)  # fmt: skip
"""Names of the general-purpose registers by index."""

# Segment registers, in encoding order; LDTR and TR behind them, as the engine counts them.
ES: Final = 0
CS: Final = 1
SS: Final = 2
DS: Final = 3
FS: Final = 4
GS: Final = 5
LDTR: Final = 6
TR: Final = 7

SEGMENT_NAMES: Final = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
"""Names of the segment registers by index."""

# RFLAGS.
FLAG_CF: Final = 1 << 0
FLAG_FIXED: Final = 1 << 1
"""Always reads as 1."""
FLAG_PF: Final = 1 << 2
FLAG_AF: Final = 1 << 4
FLAG_ZF: Final = 1 << 6
FLAG_SF: Final = 1 << 7
FLAG_TF: Final = 1 << 8
FLAG_IF: Final = 1 << 9
FLAG_DF: Final = 1 << 10
FLAG_OF: Final = 1 << 11
FLAG_IOPL: Final = 3 << 12
FLAG_IOPL_SHIFT: Final = 12
FLAG_NT: Final = 1 << 14
FLAG_RF: Final = 1 << 16
FLAG_VM: Final = 1 << 17
FLAG_AC: Final = 1 << 18
FLAG_VIF: Final = 1 << 19
FLAG_VIP: Final = 1 << 20
FLAG_ID: Final = 1 << 21

FLAGS_STATUS: Final = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF
"""The flags that arithmetic sets."""
FLAGS_VALID: Final = (
    FLAGS_STATUS | FLAG_TF | FLAG_IF | FLAG_DF | FLAG_IOPL | FLAG_NT | FLAG_RF
    | FLAG_VM | FLAG_AC | FLAG_VIF | FLAG_VIP | FLAG_ID
)  # fmt: skip
"""Every defined flag; the others are reserved."""

# CR0.
CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_EM: Final = 1 << 2
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_AM: Final = 1 << 18
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31

# CR3.
CR3_PWT: Final = 1 << 3
CR3_PCD: Final = 1 << 4
CR3_PCID: Final = 0xFFF
CR3_NO_FLUSH: Final = 1 << 63
"""With CR4.PCIDE: a load of CR3 keeps the translations of its PCID."""

# CR4.
CR4_VME: Final = 1 << 0
CR4_PVI: Final = 1 << 1
CR4_TSD: Final = 1 << 2
CR4_DE: Final = 1 << 3
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_MCE: Final = 1 << 6
CR4_PGE: Final = 1 << 7
CR4_PCE: Final = 1 << 8
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
CR4_UMIP: Final = 1 << 11
CR4_LA57: Final = 1 << 12
CR4_VMXE: Final = 1 << 13
CR4_SMXE: Final = 1 << 14
CR4_FSGSBASE: Final = 1 << 16
CR4_PCIDE: Final = 1 << 17
CR4_OSXSAVE: Final = 1 << 18
CR4_KL: Final = 1 << 19
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
CR4_PKE: Final = 1 << 22
CR4_CET: Final = 1 << 23
CR4_PKS: Final = 1 << 24
CR4_UINTR: Final = 1 << 25
CR4_FRED: Final = 1 << 32

# IA32_EFER.
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
EFER_SVME: Final = 1 << 12
EFER_LMSLE: Final = 1 << 13
EFER_FFXSR: Final = 1 << 14

# DR6 and DR7.
DR6_BS: Final = 1 << 14
"""Single step."""
DR6_BD: Final = 1 << 13
"""A debug register was accessed while DR7.GD was set."""
DR6_FIXED: Final = 0xFFFF_0FF0
"""Bits that read as 1, and DR6 after a reset."""
DR7_GD: Final = 1 << 13
DR7_FIXED: Final = 0x400
"""The bit that reads as 1, and DR7 after a reset."""

# XCR0.
XCR0_X87: Final = 1 << 0
XCR0_SSE: Final = 1 << 1
XCR0_AVX: Final = 1 << 2
XCR0_PKRU: Final = 1 << 9

# Selectors.
SELECTOR_RPL: Final = 3
SELECTOR_TI: Final = 1 << 2

# Page-table entries, of every level unless it is said (SDM volume 3A, section 4.5).
PAGE_P: Final = 1 << 0
PAGE_RW: Final = 1 << 1
PAGE_US: Final = 1 << 2
PAGE_PWT: Final = 1 << 3
PAGE_PCD: Final = 1 << 4
PAGE_A: Final = 1 << 5
PAGE_D: Final = 1 << 6
"""Leaf entries only."""
PAGE_PS: Final = 1 << 7
"""In a PDE or PDPTE: the entry maps a large page."""
PAGE_PAT: Final = 1 << 7
"""In a PTE."""
PAGE_PAT_LARGE: Final = 1 << 12
"""In a PDE or PDPTE that maps a large page."""
PAGE_G: Final = 1 << 8
"""Leaf entries only."""
PAGE_XD: Final = 1 << 63
PAGE_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
"""The physical address in an entry; reserved above the processor's MAXPHYADDR."""

# Error code of a page fault (SDM volume 3A, section 4.7).
FAULT_P: Final = 1 << 0
FAULT_WR: Final = 1 << 1
FAULT_US: Final = 1 << 2
FAULT_RSVD: Final = 1 << 3
FAULT_ID: Final = 1 << 4
FAULT_PK: Final = 1 << 5

# Selector error code of the other exceptions (SDM volume 3A, section 6.13).
ERROR_EXT: Final = 1 << 0
ERROR_IDT: Final = 1 << 1
ERROR_TI: Final = 1 << 2

# Exception vectors.
VECTOR_DE: Final = 0
VECTOR_DB: Final = 1
VECTOR_NMI: Final = 2
VECTOR_BP: Final = 3
VECTOR_OF: Final = 4
VECTOR_BR: Final = 5
VECTOR_UD: Final = 6
VECTOR_NM: Final = 7
VECTOR_DF: Final = 8
VECTOR_TS: Final = 10
VECTOR_NP: Final = 11
VECTOR_SS: Final = 12
VECTOR_GP: Final = 13
VECTOR_PF: Final = 14
VECTOR_MF: Final = 16
VECTOR_AC: Final = 17
VECTOR_MC: Final = 18
VECTOR_XM: Final = 19
VECTOR_VE: Final = 20
VECTOR_CP: Final = 21


class Class(Enum):
    """How an exception is reported (SDM volume 3A, section 6.5)."""

    FAULT = "fault"
    """The saved RIP is at the instruction, which can be restarted."""
    TRAP = "trap"
    """The saved RIP is behind the instruction."""
    ABORT = "abort"
    """The program cannot be resumed."""
    INTERRUPT = "interrupt"
    """Not caused by the instruction."""


class Doubling(Enum):
    """What a second exception makes of the first (SDM volume 3A, table 6-4)."""

    BENIGN = "benign"
    CONTRIBUTORY = "contributory"
    """After a contributory exception or a page fault: a double fault."""
    PAGE_FAULT = "page fault"
    """After a page fault: a double fault; and so is a contributory exception after it."""


class ExceptionVector(NamedTuple):
    """One architectural exception (SDM volume 3A, table 6-1)."""

    vector: int
    mnemonic: str
    """With the leading #, as the manual has it."""
    name: str
    error_code: bool
    """Whether its delivery pushes an error code."""
    kind: Class
    doubling: Doubling


def _vectors(*rows: tuple[int, str, str, bool, Class, Doubling]) -> dict[int, ExceptionVector]:
    return {row[0]: ExceptionVector(*row) for row in rows}


_FAULT, _TRAP, _ABORT = Class.FAULT, Class.TRAP, Class.ABORT
_BENIGN, _CONTRIBUTORY, _PAGE_FAULT = Doubling.BENIGN, Doubling.CONTRIBUTORY, Doubling.PAGE_FAULT

EXCEPTIONS: Final[dict[int, ExceptionVector]] = _vectors(
    (VECTOR_DE, "#DE", "divide error", False, _FAULT, _CONTRIBUTORY),
    (VECTOR_DB, "#DB", "debug exception", False, _TRAP, _BENIGN),  # a fault for instruction breakpoints
    (VECTOR_NMI, "NMI", "non-maskable interrupt", False, Class.INTERRUPT, _BENIGN),
    (VECTOR_BP, "#BP", "breakpoint", False, _TRAP, _BENIGN),
    (VECTOR_OF, "#OF", "overflow", False, _TRAP, _BENIGN),
    (VECTOR_BR, "#BR", "bound range exceeded", False, _FAULT, _BENIGN),
    (VECTOR_UD, "#UD", "invalid opcode", False, _FAULT, _BENIGN),
    (VECTOR_NM, "#NM", "device not available", False, _FAULT, _BENIGN),
    (VECTOR_DF, "#DF", "double fault", True, _ABORT, _BENIGN),
    (VECTOR_TS, "#TS", "invalid TSS", True, _FAULT, _CONTRIBUTORY),
    (VECTOR_NP, "#NP", "segment not present", True, _FAULT, _CONTRIBUTORY),
    (VECTOR_SS, "#SS", "stack-segment fault", True, _FAULT, _CONTRIBUTORY),
    (VECTOR_GP, "#GP", "general protection", True, _FAULT, _CONTRIBUTORY),
    (VECTOR_PF, "#PF", "page fault", True, _FAULT, _PAGE_FAULT),
    (VECTOR_MF, "#MF", "x87 floating-point error", False, _FAULT, _BENIGN),
    (VECTOR_AC, "#AC", "alignment check", True, _FAULT, _BENIGN),
    (VECTOR_MC, "#MC", "machine check", False, _ABORT, _BENIGN),
    (VECTOR_XM, "#XM", "SIMD floating-point exception", False, _FAULT, _BENIGN),
    (VECTOR_VE, "#VE", "virtualisation exception", False, _FAULT, _PAGE_FAULT),
    (VECTOR_CP, "#CP", "control-protection exception", True, _FAULT, _CONTRIBUTORY),
)
"""The architectural exceptions by vector."""
