"""The registers of coprocessors 14 and 15 by the names that the ARM ARM gives them, and the operations among them.

Room: `emulator/isa/arm`, data: one line a register. DDI 0406C, tables B3-42 (VMSA CP15), B7-14 (functions), C11-1
(debug) and A2-8 (ThumbEE, Jazelle). `user` says what user mode may do: "" nothing, or as in the manual's PL0 column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from emulator.isa.operation import Operation


@dataclass(frozen=True, slots=True)
class SystemRegister:
    """A register, or an operation that is a write to one."""

    name: str
    coprocessor: int
    opc1: int
    crn: int
    """-1 for a 64-bit register, which MRRC and MCRR move."""
    crm: int
    opc2: int
    access: str
    """In kernel mode: "r", "w" or both."""
    user: str = ""
    """In user mode: "", "r", "w" or both, under `condition` if there is one."""
    read_operation: Operation = Operation.READ_SYSTEM_REGISTER
    write_operation: Operation = Operation.WRITE_SYSTEM_REGISTER
    condition: str = ""
    """When user mode is refused what `user` says."""
    note: str = ""

    @property
    def key(self) -> tuple[int, int, int, int, int]:
        """(coprocessor, opc1, CRn, CRm, opc2); CRn is -1 for a 64-bit register."""
        return self.coprocessor, self.opc1, self.crn, self.crm, self.opc2

    @property
    def wide(self) -> bool:
        """Whether MRRC and MCRR move it."""
        return self.crn < 0


_IDS: Final = (
    # CRm, opc2, name
    *((0, 0, "MIDR"), (0, 1, "CTR"), (0, 2, "TCMTR"), (0, 3, "TLBTR"), (0, 5, "MPIDR"), (0, 6, "REVIDR")),
    *((1, 0, "ID_PFR0"), (1, 1, "ID_PFR1"), (1, 2, "ID_DFR0"), (1, 3, "ID_AFR0")),
    *((1, 4, "ID_MMFR0"), (1, 5, "ID_MMFR1"), (1, 6, "ID_MMFR2"), (1, 7, "ID_MMFR3")),
    *((2, 0, "ID_ISAR0"), (2, 1, "ID_ISAR1"), (2, 2, "ID_ISAR2"), (2, 3, "ID_ISAR3")),
    *((2, 4, "ID_ISAR4"), (2, 5, "ID_ISAR5")),
)
_CACHE_OPERATIONS: Final = (
    # CRm, opc2, name, by CRn 7
    *((1, 0, "ICIALLUIS"), (1, 6, "BPIALLIS"), (5, 0, "ICIALLU"), (5, 1, "ICIMVAU"), (5, 6, "BPIALL")),
    *((5, 7, "BPIMVA"), (6, 1, "DCIMVAC"), (6, 2, "DCISW"), (10, 1, "DCCMVAC"), (10, 2, "DCCSW")),
    *((11, 1, "DCCMVAU"), (14, 1, "DCCIMVAC"), (14, 2, "DCCISW")),
)
_TRANSLATIONS: Final = (
    *((8, 0, "ATS1CPR"), (8, 1, "ATS1CPW"), (8, 2, "ATS1CUR"), (8, 3, "ATS1CUW")),
    *((8, 4, "ATS12NSOPR"), (8, 5, "ATS12NSOPW"), (8, 6, "ATS12NSOUR"), (8, 7, "ATS12NSOUW")),
)
_TLB_OPERATIONS: Final = (
    *((3, 0, "TLBIALLIS"), (3, 1, "TLBIMVAIS"), (3, 2, "TLBIASIDIS"), (3, 3, "TLBIMVAAIS")),
    *((5, 0, "ITLBIALL"), (5, 1, "ITLBIMVA"), (5, 2, "ITLBIASID")),
    *((6, 0, "DTLBIALL"), (6, 1, "DTLBIMVA"), (6, 2, "DTLBIASID")),
    *((7, 0, "TLBIALL"), (7, 1, "TLBIMVA"), (7, 2, "TLBIASID"), (7, 3, "TLBIMVAA")),
)
_COUNTERS: Final = "PMUSERENR.EN = 0"
_TIMER: Final = "CNTKCTL refuses it: PL0PCTEN, PL0VCTEN, PL0PTEN, PL0VTEN; the hypervisor clears them"
_DEBUG: Final = "DBGDSCR.UDCCdis = 1"
_THREAD: Final = (
    "Innocuous in user code; it is a row because a kernel's thread registers can be kept in others' places, where user "
    "mode reads them without a trap."
)


def _r15(name: str, crn: int, opc1: int, crm: int, opc2: int, access: str = "rw", **more: object) -> SystemRegister:
    return SystemRegister(name, 15, opc1, crn, crm, opc2, access, **more)  # type: ignore[arg-type]


def _w15(name: str, crm: int, opc1: int, access: str = "rw", **more: object) -> SystemRegister:
    return SystemRegister(name, 15, opc1, -1, crm, 0, access, **more)  # type: ignore[arg-type]


def _r14(name: str, opc1: int, crn: int, crm: int, opc2: int, access: str = "rw", **more: object) -> SystemRegister:
    return SystemRegister(name, 14, opc1, crn, crm, opc2, access, **more)  # type: ignore[arg-type]


SYSTEM_REGISTERS: Final[tuple[SystemRegister, ...]] = (
    # c0: identity.
    *(_r15(name, 0, 0, crm, opc2, "r", read_operation=Operation.IDENTIFY_PROCESSOR) for crm, opc2, name in _IDS),
    _r15("CCSIDR", 0, 1, 0, 0, "r", read_operation=Operation.IDENTIFY_PROCESSOR),
    _r15("CLIDR", 0, 1, 0, 1, "r", read_operation=Operation.IDENTIFY_PROCESSOR),
    _r15("AIDR", 0, 1, 0, 7, "r", read_operation=Operation.IDENTIFY_PROCESSOR),
    _r15("CSSELR", 0, 2, 0, 0),
    # c1: control.
    _r15("SCTLR", 1, 0, 0, 0),
    _r15("ACTLR", 1, 0, 0, 1),
    _r15("CPACR", 1, 0, 0, 2),
    _r15("SCR", 1, 0, 1, 0, note="Secure state only."),
    _r15("SDER", 1, 0, 1, 1, note="Secure state only."),
    _r15("NSACR", 1, 0, 1, 2, note="Writable in Secure state only."),
    # c2, c3: translation tables and domains.
    _r15("TTBR0", 2, 0, 0, 0),
    _r15("TTBR1", 2, 0, 0, 1),
    _r15("TTBCR", 2, 0, 0, 2),
    _r15("DACR", 3, 0, 0, 0),
    # c5, c6: faults.
    _r15("DFSR", 5, 0, 0, 0),
    _r15("IFSR", 5, 0, 0, 1),
    _r15("ADFSR", 5, 0, 1, 0),
    _r15("AIFSR", 5, 0, 1, 1),
    _r15("DFAR", 6, 0, 0, 0),
    _r15("IFAR", 6, 0, 0, 2),
    # c7: caches, branch predictors, address translation.
    *(
        _r15(name, 7, 0, crm, opc2, "w", write_operation=Operation.MAINTAIN_CACHES)
        for crm, opc2, name in _CACHE_OPERATIONS
    ),
    *(
        _r15(name, 7, 0, crm, opc2, "w", write_operation=Operation.TRANSLATE_ADDRESS)
        for crm, opc2, name in _TRANSLATIONS
    ),
    _r15("PAR", 7, 0, 4, 0),
    # c8: the TLB.
    *(
        _r15(name, 8, 0, crm, opc2, "w", write_operation=Operation.INVALIDATE_TRANSLATIONS)
        for crm, opc2, name in _TLB_OPERATIONS
    ),
    # c9: performance monitors, and L2 control of the Cortex processors.
    _r15("PMCR", 9, 0, 12, 0, user="rw", condition=_COUNTERS),
    _r15("PMCNTENSET", 9, 0, 12, 1, user="rw", condition=_COUNTERS),
    _r15("PMCNTENCLR", 9, 0, 12, 2, user="rw", condition=_COUNTERS),
    _r15("PMOVSR", 9, 0, 12, 3, user="rw", condition=_COUNTERS),
    _r15("PMSWINC", 9, 0, 12, 4, "w", user="w", condition=_COUNTERS),
    _r15("PMSELR", 9, 0, 12, 5, user="rw", condition=_COUNTERS),
    _r15("PMCEID0", 9, 0, 12, 6, "r", user="r", condition=_COUNTERS),
    _r15("PMCEID1", 9, 0, 12, 7, "r", user="r", condition=_COUNTERS),
    _r15("PMCCNTR", 9, 0, 13, 0, user="rw", condition=_COUNTERS),
    _r15("PMXEVTYPER", 9, 0, 13, 1, user="rw", condition=_COUNTERS),
    _r15("PMXEVCNTR", 9, 0, 13, 2, user="rw", condition=_COUNTERS),
    _r15("PMUSERENR", 9, 0, 14, 0, user="r", note="User mode may read it."),
    _r15("PMINTENSET", 9, 0, 14, 1),
    _r15("PMINTENCLR", 9, 0, 14, 2),
    _r15("PMOVSSET", 9, 0, 14, 3),
    _r15("L2CTLR", 9, 1, 0, 2, note="Implementation defined: the Cortex-A7 and A15 have it."),
    _r15("L2ECTLR", 9, 1, 0, 3, note="Implementation defined: the Cortex-A7 and A15 have it."),
    # c10: memory attributes.
    _r15("PRRR", 10, 0, 2, 0, note="MAIR0 with the long descriptors."),
    _r15("NMRR", 10, 0, 2, 1, note="MAIR1 with the long descriptors."),
    _r15("AMAIR0", 10, 0, 3, 0),
    _r15("AMAIR1", 10, 0, 3, 1),
    # c12: vectors.
    _r15("VBAR", 12, 0, 0, 0),
    _r15("MVBAR", 12, 0, 0, 1, note="Secure state only."),
    _r15("RMR", 12, 0, 0, 2, note="Optional."),
    _r15("ISR", 12, 0, 1, 0, "r"),
    # c13: context and threads.
    _r15("FCSEIDR", 13, 0, 0, 0),
    _r15("CONTEXTIDR", 13, 0, 0, 1),
    _r15("TPIDRURW", 13, 0, 0, 2, user="rw", note=_THREAD),
    _r15("TPIDRURO", 13, 0, 0, 3, user="r", note=_THREAD),
    _r15("TPIDRPRW", 13, 0, 0, 4),
    # c14: the generic timer.
    _r15("CNTFRQ", 14, 0, 0, 0, user="r", condition=_TIMER),
    _r15("CNTKCTL", 14, 0, 1, 0),
    _r15("CNTP_TVAL", 14, 0, 2, 0, user="rw", condition=_TIMER),
    _r15("CNTP_CTL", 14, 0, 2, 1, user="rw", condition=_TIMER),
    _r15("CNTV_TVAL", 14, 0, 3, 0, user="rw", condition=_TIMER),
    _r15("CNTV_CTL", 14, 0, 3, 1, user="rw", condition=_TIMER),
    _r15("CBAR", 15, 4, 0, 0, "r", note="Implementation defined: where the interrupt controller is."),
    _w15("TTBR0_64", 2, 0, note="With the large physical address extension."),
    _w15("TTBR1_64", 2, 1, note="With the large physical address extension."),
    _w15("PAR_64", 7, 0, note="With the large physical address extension."),
    _w15("CNTPCT", 14, 0, "r", user="r", condition=_TIMER, read_operation=Operation.READ_TIME_STAMP),
    _w15("CNTVCT", 14, 1, "r", user="r", condition=_TIMER, read_operation=Operation.READ_TIME_STAMP),
    _w15("CNTP_CVAL", 14, 2, user="rw", condition=_TIMER),
    _w15("CNTV_CVAL", 14, 3, user="rw", condition=_TIMER),
    # Coprocessor 14: debug, ThumbEE, Jazelle.
    _r14("DBGDIDR", 0, 0, 0, 0, "r", user="r", condition=_DEBUG, read_operation=Operation.IDENTIFY_PROCESSOR),
    _r14("DBGWFAR", 0, 0, 6, 0),
    _r14("DBGVCR", 0, 0, 7, 0),
    _r14("DBGECR", 0, 0, 9, 0, note="Optional."),
    _r14("DBGDTRRXext", 0, 0, 0, 2),
    _r14("DBGDSCRext", 0, 0, 2, 2),
    _r14("DBGDTRTXext", 0, 0, 3, 2),
    _r14("DBGDSCRint", 0, 0, 1, 0, "r", user="r", condition=_DEBUG),
    _r14("DBGDTRRXint", 0, 0, 5, 0, "rw", user="rw", condition=_DEBUG, note="A write is to DBGDTRTXint."),
    *(_r14(f"DBGBVR{n}", 0, 0, n, 4) for n in range(6)),
    *(_r14(f"DBGBCR{n}", 0, 0, n, 5) for n in range(6)),
    *(_r14(f"DBGWVR{n}", 0, 0, n, 6) for n in range(4)),
    *(_r14(f"DBGWCR{n}", 0, 0, n, 7) for n in range(4)),
    _r14("DBGDRAR", 0, 1, 0, 0, "r", user="r", condition=_DEBUG),
    _r14("DBGOSLAR", 0, 1, 0, 4, "w"),
    _r14("DBGOSLSR", 0, 1, 1, 4, "r"),
    _r14("DBGOSDLR", 0, 1, 3, 4),
    _r14("DBGPRCR", 0, 1, 4, 4),
    _r14("DBGDSAR", 0, 2, 0, 0, "r", user="r", condition=_DEBUG),
    _r14("DBGCLAIMSET", 0, 7, 8, 6),
    _r14("DBGCLAIMCLR", 0, 7, 9, 6),
    _r14("DBGAUTHSTATUS", 0, 7, 14, 6, "r"),
    _r14("TEECR", 6, 0, 0, 0, user="r", note="ThumbEE; user mode may read it."),
    _r14("TEEHBR", 6, 1, 0, 0, user="rw", condition="TEECR.XED = 1", note="ThumbEE."),
    _r14("JIDR", 7, 0, 0, 0, "r", user="r", condition="JOSCR.CD = 1", note="Jazelle."),
    _r14("JOSCR", 7, 1, 0, 0, note="Jazelle."),
    _r14("JMCR", 7, 2, 0, 0, user="w", condition="JOSCR.CD = 1", note="Jazelle."),
    SystemRegister("DBGDRAR_64", 14, 0, -1, 1, 0, "r", user="r", condition=_DEBUG),
    SystemRegister("DBGDSAR_64", 14, 0, -1, 2, 0, "r", user="r", condition=_DEBUG),
)
"""Every register that has a row of its own, in the order of the table."""

BARRIERS: Final[tuple[tuple[int, int], ...]] = ((5, 4), (10, 4), (10, 5))
"""(CRm, opc2) of the c7 operations that user mode has, ISB, DSB and DMB: innocuous."""

FLOATING_POINT: Final[tuple[tuple[str, int, str], ...]] = (
    ("FPSID", 0, "rw"),
    ("MVFR1", 6, "r"),
    ("MVFR0", 7, "r"),
    ("FPEXC", 8, "rw"),
    ("FPINST", 9, "rw"),
    ("FPINST2", 10, "rw"),
)
"""Floating-point system registers that user mode may not touch: name, number in VMRS and VMSR, access. FPSCR is
innocuous."""

REGISTER_OF_KEY: Final = {register.key: register for register in SYSTEM_REGISTERS}
"""A register by coprocessor, opc1, CRn, CRm, opc2."""

REGISTER_OF_NAME: Final = {register.name: register for register in SYSTEM_REGISTERS}
