"""MRS and MSR (register): one row a system register and direction, and rows for all the others.

Room: `emulator/isa/aarch64`, data about the instruction set, made from the list in `registers`. A numbered family
(DBGBVR0_EL1..DBGBVR15_EL1) is one row.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from emulator.isa.aarch64 import row as r
from emulator.isa.aarch64.encoding import MRS, MSR, REGISTER_MASK, generic, mrs, msr
from emulator.isa.aarch64.registers import INNOCUOUS, REGISTERS, SystemRegister
from emulator.isa.operation import Operation
from emulator.isa.sensitive import Pattern, Route, SensitiveInstruction, Sensitivity, UserBehaviour

_READS: Final = {
    "DAIF": Operation.READ_FLAGS,
    "CNTVCT_EL0": Operation.READ_TIME_STAMP,
    "CNTPCT_EL0": Operation.READ_TIME_STAMP,
    "CNTVCTSS_EL0": Operation.READ_TIME_STAMP,
    "CNTPCTSS_EL0": Operation.READ_TIME_STAMP,
}
_WRITES: Final = {
    "DAIF": Operation.WRITE_FLAGS,
    "TTBR0_EL1": Operation.WRITE_PAGE_TABLE_BASE,
    "TTBR1_EL1": Operation.WRITE_PAGE_TABLE_BASE,
    "PAN": Operation.SET_ACCESS_CHECK,
    "UAO": Operation.SET_ACCESS_CHECK,
    "SPSel": Operation.SELECT_STACK,
}
_INLINE: Final = frozenset(
    {"SP_EL0", "TPIDR_EL1", "TPIDR_EL0", "TPIDRRO_EL0", "DAIF", "CNTVCT_EL0", "CurrentEL"}
    | {"ELR_EL1", "SPSR_EL1", "ESR_EL1", "FAR_EL1", "CPACR_EL1"}
)
"""Registers whose reads, at least, can be made to need no exit."""

_NOTES: Final = {
    "MRS DCZID_EL0": "bit 4 (DZP) shows SCTLR_EL1.DZE at EL0, and 0 at EL1",
    "MRS TPIDRRO_EL0": "innocuous by itself; sensitive where a hypervisor keeps SP_EL0 of the guest in it",
    "MRS TPIDR_EL0": "innocuous by itself; sensitive where a hypervisor keeps TPIDR_EL1 of the guest in it",
    "MSR TPIDR_EL0": "innocuous by itself; sensitive where a hypervisor keeps TPIDR_EL1 of the guest in it",
    "MRS PMUSERENR_EL0": "shows which counters EL0 may use",
    "MRS AMUSERENR_EL0": "shows whether EL0 may use the activity monitors",
}


def _family(one: SystemRegister) -> str:
    """Its name, with the number of a numbered family as `<n>`."""
    stem, _, level = one.name.rpartition("_")
    for prefix in ("PMEVCNTR", "PMEVTYPER", "AMEVCNTR0", "AMEVCNTR1", "AMEVTYPER0", "AMEVTYPER1", "ERXMISC"):
        if stem.startswith(prefix):
            return f"{prefix}<n>_{level}"
    for prefix in ("DBGBVR", "DBGBCR", "DBGWVR", "DBGWCR"):
        if stem.startswith(prefix):
            return f"{prefix}<n>_{level}"
    if stem[:-1] in ("ICC_AP0R", "ICC_AP1R"):
        return f"{stem[:-1]}<n>_{level}"
    return one.name


def _rows() -> Iterator[SensitiveInstruction]:
    for name, members in groupby(REGISTERS, _family):
        group = list(members)
        if "r" in group[0].access:
            yield _row("MRS", name, group)
        if "w" in group[0].access:
            yield _row("MSR", name, group)


def _row(mnemonic: str, name: str, group: list[SystemRegister]) -> SensitiveInstruction:
    first, reads = group[0], mnemonic == "MRS"
    word = mrs if reads else msr
    letter = "r" if reads else "w"
    behaviour, condition = UserBehaviour.TRAPS, ""
    if letter in first.asks:
        condition = first.unless
    elif letter in first.user:
        behaviour = UserBehaviour.DIFFERS if name == "DCZID_EL0" else UserBehaviour.LEAKS
    notes = [_NOTES.get(f"{mnemonic} {name}", ""), first.feature and f"{first.feature}, else undefined"]
    spelled = first.name.lower() if not first.later else generic(first.encoding)
    return r.row(
        f"{mnemonic} {name}",
        tuple(Pattern(REGISTER_MASK, word(one.encoding)) for one in group),
        behaviour,
        Sensitivity.BEHAVIOUR if reads else Sensitivity.CONTROL,
        _operation(reads, first),
        r.INLINE if name in _INLINE else r.CALL,
        f"mrs x0, {spelled}" if reads else f"msr {spelled}, x0",
        f"D19 ({name})",
        condition,
        "; ".join(note for note in notes if note),
    )


def _operation(reads: bool, one: SystemRegister) -> Operation:
    if not reads:
        return _WRITES.get(one.name, Operation.WRITE_SYSTEM_REGISTER)
    if one.kind == "identification" and one.name != "CSSELR_EL1":
        return Operation.IDENTIFY_PROCESSOR
    if one.kind == "performance monitors":
        return Operation.READ_PERFORMANCE_COUNTER
    return _READS.get(one.name, Operation.READ_SYSTEM_REGISTER)


def _others(mnemonic: str) -> Iterator[SensitiveInstruction]:
    """Rows for what the list does not name: registers of EL2 and EL3, and whatever else there may be."""
    reads = mnemonic == "MRS"
    value, word, letter = (MRS, mrs, "r") if reads else (MSR, msr, "w")
    named = [one.encoding for one in REGISTERS if letter in one.access]
    unless = tuple((REGISTER_MASK, word(encoding)) for encoding in (*named, *INNOCUOUS.values()))
    higher = Pattern(0xFFFC_0000, value | 0x000C_0000)
    operation = Operation.READ_SYSTEM_REGISTER if reads else Operation.WRITE_SYSTEM_REGISTER
    kind = Sensitivity.BEHAVIOUR if reads else Sensitivity.CONTROL
    example = "mrs x0, {}" if reads else "msr {}, x0"
    yield r.row(
        f"{mnemonic} (register of EL2 or EL3)",
        (higher,),
        r.TRAPS,
        kind,
        operation,
        (Route.TRAP,),
        example.format("s3_4_c1_c1_0"),
        "D19.1.2",
        note="op0 = 3 and op1 from 4 on; undefined at EL1 as well, the names that end in _EL12 included",
    )
    yield r.row(
        f"{mnemonic} (any other register)",
        (Pattern(0xFFF0_0000, value, (*unless, (higher.mask, higher.value))),),
        r.TRAPS,
        kind,
        operation,
        (Route.TRAP,),
        example.format("s3_0_c15_c0_0"),
        "D19.1.2",
        note="implementation-defined, of the trace unit, read in the direction that it does not have, or undefined",
    )


REGISTER_ROWS: Final[tuple[SensitiveInstruction, ...]] = (*_rows(), *_others("MRS"), *_others("MSR"))
"""In the order of `registers`, MRS before MSR."""
