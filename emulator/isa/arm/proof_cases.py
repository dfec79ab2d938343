"""What must be seen when the examples of the ARMv7 table are run: the manual's word, as data.

Room: `emulator/isa/arm`. `cases_of` gives at least one case for every row, the first with the row's example.
`DEPARTURES` lists where the embedded engine does not do what the manual says, and why that is harmless or where it is
mended; an instruction that the manual leaves UNPREDICTABLE always departs, whatever the engine does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from emulator.engine import arm
from emulator.isa.arm.proof import (
    ARRIVES,
    CALLS,
    COMPLETES,
    DATA,
    HALTS,
    LAND,
    OWN,
    ROOT,
    SCTLR,
    STACK,
    TRAP_A32,
    UNDEFINED,
    UNPREDICTABLE,
    USER_STACK,
    Case,
    Claim,
    Departure,
    Event,
    Mode,
    aborts,
)
from emulator.isa.arm.row import T32
from emulator.isa.arm.rows_coprocessor import word_of
from emulator.isa.arm.system_registers import FLOATING_POINT, REGISTER_OF_NAME
from emulator.isa.sensitive import Patterns, SensitiveInstruction

_USR, _SYS = arm.USR, arm.SYS
_I, _E, _T, _C = 1 << 7, 1 << 9, 1 << 5, 1 << 29
_PERMISSION: Final = 0x00D
_OPEN: Final = Claim(UNPREDICTABLE)
_TO_HYPERVISOR: Final = Event("hypervisor call")
_TO_MONITOR: Final = Event("monitor call")
_DEBUG: Final = Event("exception", arm.PREFETCH_ABORT, arm.DEBUG_EVENT)


def _a32(word: int) -> bytes:
    return struct.pack("<I", word)


def _t32(word: int) -> bytes:
    return struct.pack("<HH", word >> 16, word & 0xFFFF) if word >> 16 else struct.pack("<H", word)


def _both(code: bytes, claim: Claim, thumb: bool, **more: object) -> Case:
    return Case(code, claim, claim, thumb, **more)  # type: ignore[arg-type]


def _status_cases(thumb: bool) -> dict[str, Case]:
    """CPS, MRS and MSR: the same in both states but for their encodings and for CPSR.T."""
    code = _t32 if thumb else _a32
    pick = (lambda _, short: short) if thumb else (lambda word, _: word)
    state = _T if thumb else 0
    return {
        "CPSIE": Case(
            code(pick(0xF1080080, 0xB662)), Claim(COMPLETES, {"I": 0}), Claim(COMPLETES, {"I": 1}), thumb, cpsr=_I
        ),
        "CPSID": Case(code(pick(0xF10C0080, 0xB672)), Claim(COMPLETES, {"I": 1}), Claim(COMPLETES, {"I": 0}), thumb),
        "CPS": Case(
            code(pick(0xF102001F, 0xF3AF811F)),
            Claim(COMPLETES, {"MODE": _SYS}),
            Claim(COMPLETES, {"MODE": _USR}),
            thumb,
        ),
        "MRS CPSR": Case(
            code(pick(0xE10F0000, 0xF3EF8000)),
            Claim(COMPLETES, {"R0": arm.SVC | _I}),
            Claim(COMPLETES, {"R0": _USR | _I}),
            thumb,
            cpsr=_I,
        ),
        "MRS SPSR": Case(code(pick(0xE14F0000, 0xF3FF8000)), Claim(COMPLETES, {"R0": _USR}), _OPEN, thumb),
        "MSR CPSR": Case(
            code(pick(0xE121F000, 0xF3808100)),
            Claim(COMPLETES, {"MODE": _SYS, "I": 0}),
            Claim(COMPLETES, {"MODE": _USR, "I": 1}),
            thumb,
            {0: _SYS},
            cpsr=_I,
        ),
        "MSR SPSR": Case(
            code(pick(0xE16FF000, 0xF3908F00)),
            Claim(COMPLETES, {"SPSR": 0x600F_0150}),
            _OPEN,
            thumb,
            {0: 0x600F_0150},
        ),
        "MRS banked": Case(code(pick(0xE1050200, 0xF3E58020)), Claim(COMPLETES, {"R0": USER_STACK}), _OPEN, thumb),
        "MSR banked": Case(
            code(pick(0xE125F200, 0xF3808520)), Claim(COMPLETES, {"SP_usr": 0x1234}), _OPEN, thumb, {0: 0x1234}
        ),
        "RFE": Case(
            code(pick(0xF8900A00, 0xE990C000)),
            Claim(ARRIVES, {"MODE": _USR}),
            _OPEN,
            thumb,
            {0: DATA},
            (LAND, _USR | state),
        ),
        "SRS": Case(
            code(pick(0xF8ED0513, 0xE9ADC013)),
            Claim(COMPLETES, {"DATA+0": LAND, "DATA+4": _SYS, "SP_svc": DATA + 8}),
            _OPEN,
            thumb,
            {13: DATA},
            spsr=_SYS,
        ),
    }


def _access_cases(thumb: bool) -> dict[str, Case]:
    """The T forms, on a page of the guest kernel's own."""
    words = {
        "LDRT": (0xE4B10004, 0xF8510E04, 0x8765_4321),
        "LDRBT": (0xE4F10004, 0xF8110E04, 0x21),
        "STRT": (0xE4A10004, 0xF8410E04, 0xDEAD_BEEF),
        "STRBT": (0xE4E10004, 0xF8010E04, 0x8765_43EF),
        "LDRHT": (0xE0F100B2, 0xF8310E04, 0x4321),
        "LDRSBT": (0xE0F100D2, 0xF9110E04, 0x21),
        "LDRSHT": (0xE0F100F2, 0xF9310E04, 0x4321),
        "STRHT": (0xE0E100B2, 0xF8210E04, 0x8765_BEEF),
    }
    cases = {}
    for name, (long, short, result) in words.items():
        load = name.startswith("L")
        status = _PERMISSION | (0 if load else arm.WRITE)
        own = (0x8765_4321, 0x8765_4321)
        place = f"OWN+{4 if thumb else 0}"
        cases[name] = Case(
            _t32(short) if thumb else _a32(long),
            Claim(aborts(status), {place: own[0]}),
            Claim(COMPLETES, {"R0" if load else place: result}),
            thumb,
            {0: 0xDEAD_BEEF, 1: OWN},
            own=own,
        )
    return cases


def _into_pc_cases() -> dict[str, Case]:
    claim = Claim(ARRIVES, {"MODE": _USR})
    operands: dict[str, tuple[int, int, int]] = {
        # opcode, R2 and R3 whose result is LAND
        "ANDS": (0, LAND | 0xFF, LAND | 0xF00_0000),
        "EORS": (1, LAND ^ 0xFF, 0xFF),
        "RSBS": (3, 4, LAND + 4),
        "ADDS": (4, LAND - 4, 4),
        "ADCS": (5, LAND - 5, 4),
        "SBCS": (6, LAND + 4, 4),
        "RSCS": (7, 4, LAND + 4),
        "ORRS": (12, 0x1000, 0x8000),
        "BICS": (14, LAND | 0xFF, 0xFF),
    }
    cases = {
        f"{name} PC": Case(_a32(0xE010F000 | opcode << 21 | 2 << 16 | 3), claim, _OPEN, gpr={2: one, 3: other}, cpsr=_C)
        for name, (opcode, one, other) in operands.items()
    }
    cases["SUBS PC"] = Case(_a32(0xE25EF004), claim, _OPEN, gpr={14: LAND + 4})
    cases["MOVS PC"] = Case(_a32(0xE1B0F00E), claim, _OPEN)
    cases["MVNS PC"] = Case(_a32(0xE1F0F00E), claim, _OPEN, gpr={14: ~LAND & 0xFFFF_FFFF})
    return cases


def _transfer_cases() -> dict[str, Case]:
    """What A32 alone has."""
    return {
        "LDM exception return": Case(
            _a32(0xE8D08002), Claim(ARRIVES, {"R1": 0x55, "MODE": _USR}), _OPEN, False, {0: DATA}, (0x55, LAND)
        ),
        "LDM user registers": Case(
            _a32(0xE8D06000),
            Claim(COMPLETES, {"SP_usr": 0x1234, "LR_usr": 0x5678, "SP_svc": STACK}),
            _OPEN,
            False,
            {0: DATA},
            (0x1234, 0x5678),
        ),
        "STM user registers": Case(
            _a32(0xE8C06000), Claim(COMPLETES, {"DATA+0": USER_STACK, "DATA+4": 0x777}), _OPEN, False, {0: DATA}
        ),
        "ERET": Case(_a32(0xE160006E), Claim(ARRIVES, {"MODE": _USR}), _OPEN),
    }


def _entering_cases(thumb: bool) -> dict[str, Case]:
    code = _t32 if thumb else _a32
    pick = (lambda _, short: short) if thumb else (lambda word, _: word)
    return {
        "SVC": _both(code(pick(0xEF000000, 0xDF00)), Claim(CALLS), thumb),
        "HVC": Case(code(pick(0xE1400070, 0xF7E08000)), Claim(_TO_HYPERVISOR), Claim(UNDEFINED), thumb),
        "SMC": Case(code(pick(0xE1600070, 0xF7F08000)), Claim(_TO_MONITOR), Claim(UNDEFINED), thumb),
        "BKPT": _both(code(pick(0xE1200070, 0xBE00)), Claim(_DEBUG), thumb),
        "UDF": _both(code(pick(TRAP_A32, 0xDE00)), Claim(UNDEFINED), thumb),
        "WFI": _both(code(pick(0xE320F003, 0xBF30)), Claim(HALTS), thumb),
        "WFE": _both(code(pick(0xE320F002, 0xBF20)), Claim(COMPLETES), thumb),
        "SETEND": _both(code(pick(0xF1010000, 0xB650)), Claim(COMPLETES, {"E": 0}), thumb, cpsr=_E),
    }


_A32_CASES: Final = {
    **_status_cases(False),
    **_transfer_cases(),
    **_access_cases(False),
    **_into_pc_cases(),
    **_entering_cases(False),
}
_T32_CASES: Final = {
    **_status_cases(True),
    **_access_cases(True),
    "SUBS PC": Case(_t32(0xF3DE8F04), Claim(ARRIVES, {"MODE": _USR}), _OPEN, True, {14: LAND + 4}, spsr=_USR | _T),
    **_entering_cases(True),
}

# -- coprocessors -------------------------------------------------------------------------------

_WRITTEN: Final[Mapping[str, int]] = {
    "SCTLR": SCTLR,
    "TTBR0": ROOT,
    "TTBR1": ROOT,
    "TTBR0_64": ROOT,
    "TTBR1_64": ROOT,
    "DACR": 1,
    "CPACR": 0x00F0_0000,
}
"""What an example writes where zero would take the ground from under it."""
_TOLD: Final[Mapping[str, int]] = {
    "CONTEXTIDR": 0x1234,
    "VBAR": 0xFFFF_0000,
    "TPIDRPRW": 0x1234_5678,
    "TPIDRURO": 0x8765_4321,
    "TPIDRURW": 0x1357,
    "DFSR": 0x80D,
    "IFSR": 5,
    "DFAR": 0x1111,
    "IFAR": 0x2222,
    "TTBR0": ROOT,
    "DACR": 1,
    "SCTLR": SCTLR,
    "TTBR1": ROOT,
    "TTBCR": 0,
    "CNTKCTL": 3,
    "PMUSERENR": 1,
    "PAR": 0x4000,
}
"""Values by which a write, and a read, is seen to have been of this register."""
_IDENTITY: Final[Mapping[str, int]] = {
    "MIDR": 0x410F_C075,
    "MPIDR": 0x8000_0000,
    "ID_MMFR0": 0x1010_1105,
    "ID_ISAR0": 0x0210_1110,
    "CTR": 0x8444_8003,
}
"""Identity of the processor shown, a Cortex-A7 (r0p5)."""
_SECURE_ONLY: Final = frozenset(
    {
        *(("SCR", True), ("SCR", False), ("SDER", True), ("SDER", False), ("MVBAR", True), ("MVBAR", False)),
        *(("NSACR", False), ("CNTFRQ", False)),
        *((f"ATS12NSO{kind}", False) for kind in ("PR", "PW", "UR", "UW")),
    }
)
"""Accesses that are undefined in Non-secure state, in which the cases are run; whether they read."""
_ABSENT: Final = frozenset(
    (name, read)
    for name in (
        *("PMCEID0", "PMCEID1", "RMR", "DBGWFAR", "DBGECR", "DBGDTRRXext", "DBGDTRTXext", "DBGPRCR"),
        *("DBGCLAIMSET", "DBGCLAIMCLR", "DBGAUTHSTATUS"),
    )
    for read in (True, False)
) | {("DBGDTRRXint", True), ("DBGDTRRXint", False)}
"""Optional registers, and registers of the debug architecture, that the emulated processor has not; whether read."""
_CONDITIONS: Final[Mapping[str, Mapping[str, int]]] = {"TEEHBR": {"TEECR": 1}}
"""System registers under which user mode is refused what a row's condition says."""


def _register_case(name: str, read: bool, thumb: bool) -> Case:
    """The access of a coprocessor register's row."""
    register = REGISTER_OF_NAME[name]
    code = (_t32 if thumb else _a32)(word_of(register, read)[1] | 0xE000_0000 | (1 << 16 if register.wide else 0))
    allowed = ("r" if read else "w") in register.user and not register.condition
    system: dict[str, int] = {}
    gpr = {0: _WRITTEN.get(name, 0), 1: 0}
    shows: dict[str, int] = {}
    if read:
        value = _TOLD.get(name, _IDENTITY.get(name))
        if value is not None:
            shows = {"R0": value}
            system = {name: value} if name in _TOLD and name not in _WRITTEN else {}
    elif name in _TOLD:
        gpr[0] = _TOLD[name]
        shows = {name: gpr[0]}
    done = Claim(COMPLETES, shows)
    absent = (name, read) in _SECURE_ONLY or (name, read) in _ABSENT
    kernel = Claim(UNDEFINED) if absent else done
    system |= _CONDITIONS.get(name, {})
    return Case(
        code, kernel, done if allowed and not absent else Claim(UNDEFINED), thumb, gpr, system=system, absent=absent
    )


def _coprocessor_cases(name: str, thumb: bool) -> Case:
    """The case of a row of `rows_coprocessor`, by the row's name without its state."""
    code = _t32 if thumb else _a32
    if name in ("LDC p14, c5", "STC p14, c5"):
        return Case(code(0xECB15E01 if name[0] == "L" else 0xECA15E01), Claim(COMPLETES), Claim(UNDEFINED), thumb)
    mnemonic, _, register = name.partition(" ")
    if mnemonic in ("VMRS", "VMSR"):
        number = next(number for known, number, _ in FLOATING_POINT if known == register)
        word = (0xEEF00A10 if mnemonic == "VMRS" else 0xEEE00A10) | number << 16
        absent = register in ("FPINST", "FPINST2")
        return Case(code(word), Claim(UNDEFINED if absent else COMPLETES), Claim(UNDEFINED), thumb, absent=absent)
    if register.endswith(", other"):
        coprocessor = int(register[1:3])
        read, seen = mnemonic.startswith("MR"), Claim(UNDEFINED)
        if mnemonic in ("MRRC", "MCRR"):
            word = (0xEC500000 if read else 0xEC400000) | 1 << 16 | coprocessor << 8 | 7 << 4 | 15
        else:
            word = 0xEEAF_001F | coprocessor << 8 | 7 << 5 | (1 << 20 if read else 0)
            seen = Claim(COMPLETES) if coprocessor == 15 else seen  # implementation defined: this processor has them
        return Case(code(word), seen, Claim(UNDEFINED), thumb, absent=seen.event == UNDEFINED)
    return _register_case(register, mnemonic in ("MRC", "MRRC"), thumb)


def cases_of(row: SensitiveInstruction) -> tuple[Case, ...]:
    """What must be seen of a row of the table. Raises KeyError for another row."""
    assert isinstance(row.match, Patterns)
    thumb = row.match.state == T32
    name = row.name.removesuffix(" (T32)")
    known = (_T32_CASES if thumb else _A32_CASES).get(name)
    return (known if known is not None else _coprocessor_cases(name, thumb),)


_TRAPPED: Final = "UNPREDICTABLE by the manual; the embedded engine raises Undefined Instruction"
_JUMPS: Final = "the embedded engine takes it for a jump that sets flags: no return from an exception"
_DEBUG_OPEN: Final = "the embedded engine lets user mode read it, whatever DBGDSCR.UDCCdis says"


def _departures() -> dict[tuple[str, Mode, int], Departure]:
    listed: dict[tuple[str, Mode, int], Departure] = {}

    def add(name: str, mode: Mode, departure: Departure, states: str = "both") -> None:
        if states != "t32":
            listed[name, mode, 0] = departure
        if states != "a32":
            listed[f"{name} (T32)", mode, 0] = departure

    trapped = Departure(UNDEFINED, _TRAPPED)
    for name in ("MRS SPSR", "MSR SPSR", "MRS banked", "MSR banked", "RFE", "SRS", "SUBS PC"):
        add(name, Mode.USER, trapped)
    for name in ("LDM exception return", "LDM user registers", "STM user registers", "ERET", "MOVS PC"):
        add(name, Mode.USER, trapped, "a32")
    for name in ("ANDS", "EORS", "RSBS", "ADDS", "ADCS", "SBCS", "RSCS", "ORRS", "BICS", "MVNS"):
        add(f"{name} PC", Mode.KERNEL, Departure(ARRIVES, _JUMPS, {"MODE": arm.SVC}), "a32")
        add(f"{name} PC", Mode.USER, Departure(ARRIVES, f"UNPREDICTABLE by the manual; {_JUMPS}"), "a32")
    add("HVC", Mode.KERNEL, Departure(UNDEFINED, "the embedded processor has no Hyp mode: who drives it does the call"))
    add("SMC", Mode.KERNEL, Departure(UNDEFINED, "no monitor is offered: `arm.py` makes the call undefined"))
    for name in ("MRC DBGDIDR", "MRC DBGDRAR", "MRC DBGDSAR", "MRRC DBGDRAR_64", "MRRC DBGDSAR_64"):
        add(name, Mode.USER, Departure(COMPLETES, _DEBUG_OPEN))
    add("MRC TEECR", Mode.USER, Departure(UNDEFINED, "the embedded engine refuses user mode what the manual allows it"))
    add("LDC p14, c5", Mode.USER, Departure(COMPLETES, "the embedded engine takes it for a no-operation"))
    add("STC p14, c5", Mode.KERNEL, Departure(UNDEFINED, "the embedded processor has no debug channel"))
    return listed


DEPARTURES: Final[Mapping[tuple[str, Mode, int], Departure]] = _departures()
"""By row name, mode and number of the case."""
