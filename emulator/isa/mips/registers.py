"""Coprocessor 0 of MIPS32r2 by the names of its registers, and the bits that software looks at.

Room: `emulator/isa/mips`, data about the instruction set. Source: MIPS32 Privileged Resource Architecture
(MD00090), chapter 9; bit names are the manual's.
"""

from typing import Final, NamedTuple


class Register(NamedTuple):
    """One register of coprocessor 0."""

    name: str
    number: int
    select: int
    writable: bool
    """Whether MTC0 changes anything of it."""
    purpose: str


REGISTERS: Final[tuple[Register, ...]] = (
    Register("Index", 0, 0, True, "entry of the TLB"),
    Register("Random", 1, 0, False, "entry that TLBWR replaces"),
    Register("EntryLo0", 2, 0, True, "TLB: even page"),
    Register("EntryLo1", 3, 0, True, "TLB: odd page"),
    Register("Context", 4, 0, True, "pointer into a page table"),
    Register("UserLocal", 4, 2, True, "thread pointer, read by RDHWR $29"),
    Register("PageMask", 5, 0, True, "TLB: size of a page"),
    Register("PageGrain", 5, 1, True, "small pages"),
    Register("Wired", 6, 0, True, "TLB entries that TLBWR spares"),
    Register("HWREna", 7, 0, True, "what RDHWR may read"),
    Register("BadVAddr", 8, 0, False, "address of the last address exception"),
    Register("Count", 9, 0, True, "timer"),
    Register("EntryHi", 10, 0, True, "TLB: virtual page and ASID"),
    Register("Compare", 11, 0, True, "when the timer interrupts"),
    Register("Status", 12, 0, True, "mode, interrupt enable and mask, coprocessors"),
    Register("IntCtl", 12, 1, True, "vectored interrupts"),
    Register("SRSCtl", 12, 2, True, "shadow register sets"),
    Register("SRSMap", 12, 3, True, "shadow sets of vectors"),
    Register("Cause", 13, 0, True, "last exception, pending interrupts"),
    Register("EPC", 14, 0, True, "where ERET goes on"),
    Register("PRId", 15, 0, False, "processor's identity"),
    Register("EBase", 15, 1, True, "base of the exception vectors, number of the CPU"),
    Register("Config", 16, 0, True, "cacheability of KSEG0, architecture"),
    Register("Config1", 16, 1, False, "TLB and caches"),
    Register("Config2", 16, 2, False, "second-level caches"),
    Register("Config3", 16, 3, False, "optional parts"),
    Register("LLAddr", 17, 0, False, "address of the last LL"),
    Register("WatchLo", 18, 0, True, "watchpoint"),
    Register("WatchHi", 19, 0, True, "watchpoint"),
    Register("Debug", 23, 0, True, "EJTAG"),
    Register("DEPC", 24, 0, True, "where DERET goes on"),
    Register("PerfCtl0", 25, 0, True, "performance counter"),
    Register("PerfCnt0", 25, 1, True, "performance counter"),
    Register("ErrCtl", 26, 0, True, "parity and ECC"),
    Register("CacheErr", 27, 0, False, "cache error"),
    Register("TagLo", 28, 0, True, "tag of a cache line"),
    Register("DataLo", 28, 1, True, "data of a cache line"),
    Register("TagHi", 29, 0, True, "tag of a cache line"),
    Register("DataHi", 29, 1, True, "data of a cache line"),
    Register("ErrorEPC", 30, 0, True, "where ERET goes on when ERL is set"),
    Register("DESAVE", 31, 0, True, "scratch of a debugger"),
)
"""Every register that the table has rows of."""

BY_PLACE: Final[dict[tuple[int, int], Register]] = {(entry.number, entry.select): entry for entry in REGISTERS}
BY_NAME: Final[dict[str, Register]] = {entry.name: entry for entry in REGISTERS}

STATUS_IE: Final = 1 << 0
STATUS_EXL: Final = 1 << 1
STATUS_ERL: Final = 1 << 2
STATUS_KSU: Final = 3 << 3
STATUS_UM: Final = 2 << 3
STATUS_IM: Final = 0xFF << 8
STATUS_BEV: Final = 1 << 22
STATUS_FR: Final = 1 << 26
STATUS_CU0: Final = 1 << 28
STATUS_CU1: Final = 1 << 29

CAUSE_EXCCODE: Final = 0x1F << 2
CAUSE_IP: Final = 0xFF << 8
CAUSE_IV: Final = 1 << 23
CAUSE_DC: Final = 1 << 27
CAUSE_CE: Final = 3 << 28
CAUSE_TI: Final = 1 << 30
CAUSE_BD: Final = 1 << 31

INT, MOD, TLBL, TLBS, ADEL, ADES, IBE, DBE = range(8)
SYS, BP, RI, CPU, OV, TR = range(8, 14)
FPE, WATCH, MCHECK = 15, 23, 24

EXCEPTIONS: Final[dict[int, str]] = {
    INT: "Int",
    MOD: "Mod",
    TLBL: "TLBL",
    TLBS: "TLBS",
    ADEL: "AdEL",
    ADES: "AdES",
    IBE: "IBE",
    DBE: "DBE",
    SYS: "Sys",
    BP: "Bp",
    RI: "RI",
    CPU: "CpU",
    OV: "Ov",
    TR: "Tr",
    FPE: "FPE",
    WATCH: "WATCH",
    MCHECK: "MCheck",
}
"""Cause.ExcCode by mnemonic (MD00090, table 9.52)."""

KSEG0, KSEG1, KSEG2, KSEG3 = 0x8000_0000, 0xA000_0000, 0xC000_0000, 0xE000_0000
UNMAPPED: Final = 0x1FFF_FFFF
"""Physical part of an address in KSEG0 or KSEG1."""
