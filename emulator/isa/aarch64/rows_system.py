"""Rows of the instructions that are no plain access of a register: PSTATE fields, maintenance, exceptions, waiting.

Room: `emulator/isa/aarch64`, data about the instruction set. TLBI, AT, DC and IC are aliases of SYS; a row is a name
of the manual, with its forms (local, inner and outer shareable, `nXS`) as patterns.
"""

from collections.abc import Iterator
from typing import Final

from emulator.isa.aarch64 import row as r
from emulator.isa.aarch64.encoding import (
    BRK,
    ERET,
    HLT,
    HVC,
    IMMEDIATE_MASK,
    REGISTER_MASK,
    SMC,
    SVC,
    SYS,
    SYSL,
    WFE,
    WFI,
    msr,
    msr_immediate,
    register,
)
from emulator.isa.operation import Operation as O
from emulator.isa.sensitive import Pattern, Route, SensitiveInstruction, Sensitivity, UserBehaviour


def _sys(op1: int, crn: int, crm: int, op2: int) -> Pattern:
    return Pattern(REGISTER_MASK, msr(register(1, op1, crn, crm, op2)))


def _immediate(
    name: str,
    op1: int,
    op2: int,
    operation: O,
    behaviour: Sensitivity,
    example: str,
    condition: str = "",
    note: str = "",
    inline: bool = False,
) -> SensitiveInstruction:
    return r.row(
        f"MSR {name} (immediate)",
        (Pattern(IMMEDIATE_MASK, msr_immediate(op1, op2)),),
        r.TRAPS,
        behaviour,
        operation,
        r.INLINE if inline else r.CALL,
        example,
        f"C6.2 (MSR immediate), C5.2 ({name})",
        condition,
        note,
    )


_UMA = "SCTLR_EL1.UMA = 0"

PSTATE_ROWS: Final = (
    _immediate("DAIFSet", 3, 6, O.DISABLE_INTERRUPTS, r.CONTROL, "msr daifset, #2", _UMA, inline=True),
    _immediate("DAIFClr", 3, 7, O.ENABLE_INTERRUPTS, r.CONTROL, "msr daifclr, #2", _UMA, inline=True),
    _immediate("SPSel", 0, 5, O.SELECT_STACK, r.CONTROL, "msr spsel, #0"),
    _immediate("PAN", 0, 4, O.SET_ACCESS_CHECK, r.CONTROL, r.word(msr_immediate(0, 4, 1)), note="FEAT_PAN"),
    _immediate("UAO", 0, 3, O.SET_ACCESS_CHECK, r.CONTROL, r.word(msr_immediate(0, 3, 1)), note="FEAT_UAO"),
    r.row(
        "MSR ALLINT (immediate)",
        (Pattern(0xFFFF_FEFF, msr_immediate(1, 0)),),
        r.TRAPS,
        r.CONTROL,
        O.DISABLE_INTERRUPTS,
        r.CALL,
        r.word(msr_immediate(1, 0, 1)),
        "C6.2 (MSR immediate), C5.2 (ALLINT)",
        note="FEAT_NMI, else undefined",
    ),
)

_OFTEN_IDLE = frozenset({"VAAE1", "VAALE1"})
"""What a kernel invalidates again and again although nothing was mapped since: a fixup leaves that out."""
_SHARED = (("", 7), ("IS", 3), ("OS", 1))
_SHARED_RANGES = (("", 6), ("IS", 2), ("OS", 5))


def _tlbi(name: str, op2: int, what: str, ranges: bool = False) -> SensitiveInstruction:
    """One TLBI: local, inner shareable and outer shareable, with and without nXS (CRn 8 and 9)."""
    forms = tuple(_sys(0, crn, crm, op2) for crn in (8, 9) for _, crm in (_SHARED_RANGES if ranges else _SHARED))
    example = f"tlbi {name.lower()}is" + ("" if name == "VMALLE1" else ", x0")
    if ranges:
        example = r.word(forms[1].value)
    return r.row(
        f"TLBI {name}",
        forms,
        r.TRAPS,
        r.CONTROL,
        O.INVALIDATE_TRANSLATIONS,
        r.INLINE if name in _OFTEN_IDLE else r.CALL,
        example,
        f"C5.5 (TLBI {name})",
        note=what
        + ("; FEAT_TLBIRANGE, else undefined" if ranges else "; IS, OS (FEAT_TLBIOS) and nXS (FEAT_XS) alike"),
    )


TLBI_ROWS: Final = (
    _tlbi("VMALLE1", 0, "all of EL1 and EL0"),
    _tlbi("VAE1", 1, "one address of one address space, all levels"),
    _tlbi("ASIDE1", 2, "one address space"),
    _tlbi("VAAE1", 3, "one address of every address space"),
    _tlbi("VALE1", 5, "one address of one address space, last level"),
    _tlbi("VAALE1", 7, "one address of every address space, last level"),
    _tlbi("RVAE1", 1, "a range of one address space, all levels", True),
    _tlbi("RVAAE1", 3, "a range of every address space, all levels", True),
    _tlbi("RVALE1", 5, "a range of one address space, last level", True),
    _tlbi("RVAALE1", 7, "a range of every address space, last level", True),
)
_TLBI_HIGHER = Pattern(0xFFFC_F000, msr(register(1, 4, 8, 0, 0))), Pattern(0xFFFC_F000, msr(register(1, 4, 9, 0, 0)))

_UCI = "SCTLR_EL1.UCI = 0"


def _at(name: str, crm: int, op2: int, note: str = "") -> SensitiveInstruction:
    example = f"at {name.lower()}, x0" if not note else r.word(_sys(0, 7, crm, op2).value)
    return r.row(
        f"AT {name}",
        (_sys(0, 7, crm, op2),),
        r.TRAPS,
        r.BOTH,
        O.TRANSLATE_ADDRESS,
        r.CALL,
        example,
        f"C5.4 (AT {name})",
        note=note,
    )


AT_ROWS: Final = (
    _at("S1E1R", 8, 0),
    _at("S1E1W", 8, 1),
    _at("S1E0R", 8, 2),
    _at("S1E0W", 8, 3),
    _at("S1E1RP", 9, 0, "FEAT_PAN2, else undefined"),
    _at("S1E1WP", 9, 1, "FEAT_PAN2, else undefined"),
    _at("S1E1A", 9, 2, "FEAT_ATS1A, else undefined"),
)


def _cache(
    name: str, forms: tuple[Pattern, ...], condition: str = "", note: str = "", example: str = ""
) -> SensitiveInstruction:
    return r.row(
        name,
        forms,
        r.TRAPS,
        r.CONTROL,
        O.MAINTAIN_CACHES,
        r.CALL,
        example or f"{name.lower()}, x0",
        f"C5.3 ({name})",
        condition,
        note,
    )


_MTE = "FEAT_MTE2, else undefined"

CACHE_ROWS: Final = (
    _cache("IC IALLU", (_sys(0, 7, 5, 0),), example="ic iallu"),
    _cache("IC IALLUIS", (_sys(0, 7, 1, 0),), example="ic ialluis"),
    _cache("IC IVAU", (_sys(3, 7, 5, 1),), _UCI),
    _cache("DC IVAC", (_sys(0, 7, 6, 1),)),
    _cache("DC ISW", (_sys(0, 7, 6, 2),)),
    _cache("DC CSW", (_sys(0, 7, 10, 2),)),
    _cache("DC CISW", (_sys(0, 7, 14, 2),)),
    _cache("DC ZVA", (_sys(3, 7, 4, 1),), "SCTLR_EL1.DZE = 0"),
    _cache("DC CVAC", (_sys(3, 7, 10, 1),), _UCI),
    _cache("DC CVAU", (_sys(3, 7, 11, 1),), _UCI),
    _cache("DC CIVAC", (_sys(3, 7, 14, 1),), _UCI),
    _cache("DC CVAP", (_sys(3, 7, 12, 1),), _UCI, "FEAT_DPB, else undefined", r.word(_sys(3, 7, 12, 1).value)),
    _cache("DC CVADP", (_sys(3, 7, 13, 1),), _UCI, "FEAT_DPB2, else undefined", r.word(_sys(3, 7, 13, 1).value)),
    _cache(
        "DC (tags, by set and way)",
        tuple(_sys(0, 7, crm, op2) for crm in (6, 10, 14) for op2 in (3, 4, 5, 6) if crm == 6 or op2 in (4, 6)),
        note=_MTE,
        example=r.word(_sys(0, 7, 6, 3).value),
    ),
    _cache(
        "DC (tags, by address)",
        tuple(_sys(3, 7, crm, op2) for crm in (10, 12, 13, 14) for op2 in (3, 5)),
        _UCI,
        _MTE,
        r.word(_sys(3, 7, 10, 3).value),
    ),
    _cache(
        "DC GVA and GZVA",
        (_sys(3, 7, 4, 3), _sys(3, 7, 4, 4)),
        "SCTLR_EL1.DZE = 0",
        _MTE,
        r.word(_sys(3, 7, 4, 3).value),
    ),
)

PREDICTION_ROWS: Final = tuple(
    r.row(
        f"{name} RCTX",
        (_sys(3, 7, 3, op2),),
        r.TRAPS,
        r.CONTROL,
        O.MAINTAIN_CACHES,
        r.CALL,
        r.word(_sys(3, 7, 3, op2).value),
        f"C5.6 ({name} RCTX)",
        "SCTLR_EL1.EnRCTX = 0",
        "FEAT_SPECRES, else undefined",
    )
    for name, op2 in (("CFP", 4), ("DVP", 5), ("CPP", 7))
)


def _others() -> Iterator[SensitiveInstruction]:
    """SYS and SYSL that no other row names."""
    named = (*TLBI_ROWS, *AT_ROWS, *CACHE_ROWS, *PREDICTION_ROWS)
    unless = tuple((form.mask, form.value) for one in named for form in one.match.patterns)  # type: ignore[union-attr]
    higher = (
        _TLBI_HIGHER + tuple(_sys(4, 7, 8, op2) for op2 in (0, 1, 4, 5, 6, 7)) + (_sys(6, 7, 8, 0), _sys(6, 7, 8, 1))
    )
    above = tuple((form.mask, form.value) for form in higher)
    yield r.row(
        "TLBI and AT (EL2 or EL3)",
        higher,
        r.TRAPS,
        r.CONTROL,
        O.INVALIDATE_TRANSLATIONS,
        r.TRAP,
        "tlbi alle2",
        "C5.4, C5.5",
        note="undefined at EL1 as well",
    )
    yield r.row(
        "SYS (any other operation)",
        (Pattern(0xFFF8_0000, SYS, unless + above),),
        r.TRAPS,
        r.CONTROL,
        O.CONTROL_PLATFORM,
        r.TRAP,
        "sys #0, c15, c0, #0, x0",
        "C6.2 (SYS)",
        note="implementation-defined or undefined",
    )
    yield r.row(
        "SYSL",
        (Pattern(0xFFF8_0000, SYSL),),
        r.TRAPS,
        r.BOTH,
        O.CONTROL_PLATFORM,
        r.TRAP,
        "sysl x0, #0, c15, c0, #0",
        "C6.2 (SYSL)",
        note="implementation-defined or undefined",
    )


def _exception(
    name: str,
    value: int,
    operation: O,
    sensitivity: Sensitivity,
    example: str,
    note: str = "",
    mask: int = 0xFFE0_001F,
    routes: tuple[Route, ...] = r.TRAP,
    behaviour: UserBehaviour = r.TRAPS,
) -> SensitiveInstruction:
    return r.row(
        name, (Pattern(mask, value),), behaviour, sensitivity, operation, routes, example, f"C6.2 ({name})", note=note
    )


_PAUTH = "FEAT_PAuth, else undefined"

EXCEPTION_ROWS: Final = (
    _exception("ERET", ERET, O.RETURN_FROM_EXCEPTION, r.BOTH, "eret", mask=r.ALL, routes=r.CALL),
    _exception("ERETAA", 0xD69F_0BFF, O.RETURN_FROM_EXCEPTION, r.BOTH, r.word(0xD69F_0BFF), _PAUTH, r.ALL, r.CALL),
    _exception("ERETAB", 0xD69F_0FFF, O.RETURN_FROM_EXCEPTION, r.BOTH, r.word(0xD69F_0FFF), _PAUTH, r.ALL, r.CALL),
    _exception("SVC", SVC, O.SYSTEM_CALL, r.CONTROL, "svc #0", "the vector shows the level it was executed at"),
    _exception("HVC", HVC, O.ENTER_HYPERVISOR, r.CONTROL, "hvc #0"),
    _exception("SMC", SMC, O.CALL_SECURE_MONITOR, r.CONTROL, "smc #0"),
    _exception("BRK", BRK, O.BREAKPOINT, r.CONTROL, "brk #1", "the vector shows the level it was executed at"),
    _exception("HLT", HLT, O.BREAKPOINT, r.CONTROL, "hlt #1", "undefined unless a debugger may halt the processor"),
    _exception(
        "DCPS1, DCPS2, DCPS3",
        0xD4A0_0000,
        O.CONTROL_PLATFORM,
        r.CONTROL,
        "dcps1",
        "undefined unless a debugger has halted the processor",
        0xFFE0_001C,
    ),
    _exception(
        "DRPS",
        0xD6BF_03E0,
        O.CONTROL_PLATFORM,
        r.CONTROL,
        "drps",
        "undefined unless a debugger has halted the processor",
        r.ALL,
    ),
)


def _wait(name: str, value: int, operation: O, control: str, mask: int = r.ALL, note: str = "") -> SensitiveInstruction:
    return r.row(
        name,
        (Pattern(mask, value),),
        r.TRAPS,
        r.CONTROL,
        operation,
        r.CALL,
        name.lower() if not note else r.word(value),
        f"C6.2 ({name})",
        f"SCTLR_EL1.{control} = 0",
        note,
    )


WAIT_ROWS: Final = (
    _wait("WFI", WFI, O.HALT, "nTWI"),
    _wait("WFE", WFE, O.WAIT_FOR_EVENT, "nTWE"),
    _wait("WFET", 0xD503_1000, O.WAIT_FOR_EVENT, "nTWE", REGISTER_MASK, "FEAT_WFxT, else undefined"),
    _wait("WFIT", 0xD503_1020, O.HALT, "nTWI", REGISTER_MASK, "FEAT_WFxT, else undefined"),
)

SYSTEM_ROWS: Final[tuple[SensitiveInstruction, ...]] = (
    *PSTATE_ROWS,
    *TLBI_ROWS,
    *AT_ROWS,
    *CACHE_ROWS,
    *PREDICTION_ROWS,
    *_others(),
    *EXCEPTION_ROWS,
    *WAIT_ROWS,
)
