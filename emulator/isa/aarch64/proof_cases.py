"""What running each row of the AArch64 table must show, by the manual, and where the embedded engine departs.

Room: `emulator/isa/aarch64`, data. Most rows need no case of their own: a register is read or written back at EL1 and
refused at EL0. The processor is a Cortex-A53 (Armv8.0); rows of later extensions must be undefined on it.
"""

from collections.abc import Sequence
from typing import Final

from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.encoding import mrs, named
from emulator.isa.aarch64.proof import ARRIVES, COMPLETES, WAITS, Case, Claim, Departure, Mode, exception
from emulator.isa.aarch64.registers import BY_ENCODING
from emulator.isa.aarch64.room import DATA, KERNEL_DATA, SCTLR
from emulator.isa.sensitive import Patterns, SensitiveInstruction, UserBehaviour

_UNDEFINED = Claim(exception(x.UNKNOWN))
_TRAPPED = Claim(exception(x.SYSTEM_REGISTER))
_DONE = Claim(COMPLETES)
_NTWI, _NTWE = 1 << 16, 1 << 18
_MAGIC = 0x1122_3344_5566_7788


def cases_of(row: SensitiveInstruction) -> Sequence[Case]:
    """The cases of a row."""
    if row.name in _OWN:
        return _OWN[row.name]
    assert isinstance(row.match, Patterns)
    word = row.match.patterns[0].value
    if row.name.endswith(("(any other register)", "(register of EL2 or EL3)", "(any other operation)", "(EL2 or EL3)")):
        return (Case(word | _SOME_OTHER.get(row.name, 0), _UNDEFINED, _UNDEFINED),)
    if row.name in _UNDEFINED_EVERYWHERE:
        return (Case(word, _UNDEFINED, _UNDEFINED),)
    if "else undefined" in row.note or row.name in _LATER:
        return (Case(word, _UNDEFINED, _UNDEFINED, absent=True),)
    user = _TRAPPED if row.condition else _UNDEFINED
    if row.at_user_level is not UserBehaviour.TRAPS:
        user = _DONE
    if row.name.startswith("MSR ") and word >> 20 == 0xD51:
        one = BY_ENCODING[named(word)]
        before = (mrs(one.encoding),) if one.kind in _WRITTEN_BACK else ()
        return (Case(word, _DONE, user, {0: 0}, before),)
    return (Case(word, _DONE, user),)


_WRITTEN_BACK: Final = frozenset({"system control", "address translation"})
"""Kinds of registers that are given the value they have; the others are given 0."""
_SOME_OTHER: Final = {
    "MRS (any other register)": 15 << 12,
    "MSR (any other register)": 15 << 12,
    "SYS (any other operation)": 15 << 12,
}
"""What to add to the rows' words, which else are of registers that other rows name: CRn = 15."""
_DEBUG_STATE: Final = tuple(f"{way} {name}" for name in ("DSPSR_EL0", "DLR_EL0") for way in ("MRS", "MSR"))
_UNDEFINED_EVERYWHERE: Final = frozenset({"SYSL", "HVC", "SMC", "HLT", "DCPS1, DCPS2, DCPS3", "DRPS", *_DEBUG_STATE})
"""Undefined at EL1 too, without EL2 and EL3 to take them and without a debugger that halts the processor."""
_LATER: Final = frozenset({"MSR PAN (immediate)", "MSR UAO (immediate)"})


def _unprivileged(word: int, loaded: int | None) -> tuple[Case, ...]:
    """A load or store of X0 by X1: of EL0's data at both levels, and of EL1's, which EL1 may not reach by it."""
    shows = {"X0": loaded} if loaded is not None else {}
    refused = Claim(exception(x.DATA_SAME))
    return (
        Case(word | 1 << 5, Claim(COMPLETES, shows), Claim(COMPLETES, shows), {1: DATA}),
        Case(word | 1 << 5, refused, Claim(exception(x.DATA_LOWER)), {1: KERNEL_DATA}),
    )


_OWN: Final[dict[str, tuple[Case, ...]]] = {
    "MSR DAIFSet (immediate)": (
        Case(0xD503_42DF, Claim(COMPLETES, {"DAIF": 0x3C0}), _TRAPPED),
        Case(0xD503_42DF, Claim(COMPLETES), Claim(COMPLETES, {"DAIF": 0x3C0}), sctlr=SCTLR | 1 << 9),
    ),
    "MSR DAIFClr (immediate)": (
        Case(0xD503_42FF, Claim(COMPLETES, {"DAIF": 0x340}), _TRAPPED),
        Case(0xD503_42FF, Claim(COMPLETES), Claim(COMPLETES, {"DAIF": 0x340}), sctlr=SCTLR | 1 << 9),
    ),
    "MSR SPSel (immediate)": (Case(0xD500_40BF, Claim(COMPLETES, {"SPSel": 0}), _UNDEFINED),),
    "ERET": (Case(0xD69F_03E0, Claim(ARRIVES, {"EL": 1}), _UNDEFINED),),
    "SVC": (Case(0xD400_0001, Claim(exception(x.SVC)), Claim(exception(x.SVC))),),
    "BRK": (Case(0xD420_0020, Claim(exception(x.BREAKPOINT)), Claim(exception(x.BREAKPOINT))),),
    "WFI": (
        Case(0xD503_207F, Claim(WAITS), Claim(exception(x.WAITING))),
        Case(0xD503_207F, Claim(WAITS), Claim(WAITS), sctlr=SCTLR | _NTWI),
    ),
    "WFE": (Case(0xD503_205F, _DONE, Claim(exception(x.WAITING))),),
    "MRS CurrentEL": (Case(0xD538_4240, Claim(COMPLETES, {"X0": 4}), _UNDEFINED),),
    "MRS DCZID_EL0": (Case(0xD53B_00E0, Claim(COMPLETES, {"X0": 4}), Claim(COMPLETES, {"X0": 0x14})),),
    "MSR TPIDR_EL0": (Case(0xD51B_D040, _DONE, _DONE, {0: 0}),),
    "LDTR": _unprivileged(0xF840_0800, _MAGIC),
    "LDTRB": _unprivileged(0x3840_0800, 0x88),
    "LDTRH": _unprivileged(0x7840_0800, 0x7788),
    "LDTRSB": _unprivileged(0x3880_0800, 0xFFFF_FFFF_FFFF_FF88),
    "LDTRSH": _unprivileged(0x7880_0800, 0x7788),
    "LDTRSW": _unprivileged(0xB880_0800, 0x5566_7788),
    "STTR": _unprivileged(0xF800_0800, None),
    "STTRB": _unprivileged(0x3800_0800, None),
    "STTRH": _unprivileged(0x7800_0800, None),
}

_NO_DEBUGGER: Final = "QEMU has no external debugger, and not the registers that talk to one"
_EXTERNAL: Final = (
    *("OSDTRRX_EL1", "OSDTRTX_EL1", "OSECCR_EL1", "DBGPRCR_EL1", "DBGCLAIMSET_EL1", "DBGCLAIMCLR_EL1"),
    *("DBGAUTHSTATUS_EL1", "MDCCSR_EL0", "DBGDTR_EL0", "DBGDTRTX_EL0"),
)
_READ_ONLY: Final = ("DBGAUTHSTATUS_EL1", "MDCCSR_EL0")
_ASKING: Final = ("MDCCSR_EL0", "DBGDTR_EL0", "DBGDTRTX_EL0")
_CLASS: Final = "the class is that of an undefined instruction; what the class says is in the word as well"

DEPARTURES: Final[dict[tuple[str, Mode, int], Departure]] = {
    ("MSR DAIFSet (immediate)", Mode.USER, 0): Departure(exception(x.UNKNOWN), _CLASS),
    ("MSR DAIFClr (immediate)", Mode.USER, 0): Departure(exception(x.UNKNOWN), _CLASS),
    ("WFE", Mode.USER, 0): Departure(COMPLETES, "QEMU executes WFE as YIELD, whatever SCTLR_EL1.nTWE says"),
    **{
        (f"{way} {name}", mode, 0): Departure(exception(x.UNKNOWN), _NO_DEBUGGER)
        for name in _EXTERNAL
        for way in ("MRS", "MSR")
        for mode in Mode
        if (way == "MRS" or name not in _READ_ONLY) and (mode is Mode.KERNEL or name in _ASKING)
    },
}
"""By row name, mode and number of the case."""
