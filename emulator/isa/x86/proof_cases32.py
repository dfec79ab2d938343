"""What must be seen when the examples of the 32-bit table are run: the manual's word, as data.

Room: `emulator/isa/x86`. As `proof_cases`, for protected mode with PAE paging (`room32`). Where an instruction is the
same in both modes, bytes and claims included, its cases are those of 64-bit mode.
"""

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from emulator.engine.exit import ExitKind
from emulator.isa.x86 import proof_cases as wide
from emulator.isa.x86 import registers as r
from emulator.isa.x86.msr import IA32_SYSENTER_CS
from emulator.isa.x86.proof import ARRIVES, COMPLETES, Case, Claim, Departure, Event, Mode, exception, exits, software
from emulator.isa.x86.proof_extensions import EXTENSION_CASES
from emulator.isa.x86.room import DATA, GDT, IDT, LAND, STACK
from emulator.isa.x86.room32 import (
    GDT_LIMIT,
    IDT_LIMIT,
    KERNEL_CODE,
    KERNEL_DATA,
    LDT_SELECTOR,
    TSS_SELECTOR,
    USER_CODE,
    USER_DATA,
)

_FIXED: Final = r.FLAG_FIXED
_ON: Final = r.FLAG_FIXED | r.FLAG_IF
_UD: Final = exception(r.VECTOR_UD)
_BASE: Final = 0x1234_5000
_CR0: Final = r.CR0_PE | r.CR0_MP | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_AM | r.CR0_PG

_SAME: Final = (
    *("INT1", "CPUID", "XGETBV", "RDPKRU", "WRPKRU", "ENCLU"),
    *("CLI", "STI", "HLT", "MONITOR", "MWAIT", "UMWAIT", "TPAUSE", "MOV r, CR", "MOV CR, r", "LMSW", "CLTS"),
    *("MOV r, DR", "WRMSRNS", "XSETBV", "XSAVES", "XRSTORS", "RDTSC", "RDTSCP", "RDPMC", "RDPRU", "INVLPG"),
    *("INVPCID", "INVD", "WBINVD", "WBNOINVD", "CLAC", "STAC", "IN", "OUT", "INS", "OUTS", "RSM", "RDPID", "INT n"),
    *("INT3",),
)
"""Rows whose cases are those of 64-bit mode."""


def _done(**shows: int) -> Claim:
    """Completes, and then shows these values."""
    return Claim(COMPLETES, shows)


def _seen(shows: Mapping[str, int], event: Event = COMPLETES) -> Claim:
    return Claim(event, shows)


def _gp(error: int = 0) -> Claim:
    return Claim(exception(r.VECTOR_GP, error))


def _both(code: str, claim: Claim, gpr: Mapping[int, int] | None = None, data: bytes = b"") -> Case:
    """The same in both modes."""
    return Case(bytes.fromhex(code), claim, claim, gpr or {}, data)


def _trap(code: str, kernel: Claim, gpr: Mapping[int, int] | None = None, data: bytes = b"") -> Case:
    """Does its work in kernel mode, raises #GP(0) in user mode."""
    return Case(bytes.fromhex(code), kernel, _gp(), gpr or {}, data)


def _move(number: int, value: int) -> bytes:
    """MOV r32, imm32."""
    return bytes([0xB8 + number]) + struct.pack("<I", value)


def _write_msr(number: int, value: int) -> bytes:
    return _move(r.RCX, number) + _move(r.RAX, value) + _move(r.RDX, 0) + b"\x0f\x30"


def _pointer(selector: int, offset: int = LAND) -> bytes:
    """A far pointer m16:32, by default to the landing place."""
    return struct.pack("<IH", offset, selector)


def _selector(code: str, gpr: Mapping[int, int], shows: str, data: bytes = b"", stack: int = 0) -> Case:
    """A load of a kernel's data selector."""
    words = (stack,) if stack else ()
    loaded = _seen({shows: KERNEL_DATA})
    return Case(bytes.fromhex(code), loaded, _gp(KERNEL_DATA), gpr, data, kernel_stack=words, user_stack=words)


def _pushed(code: str, kernel: int, user: int) -> Case:
    return Case(bytes.fromhex(code), _done(TOP=kernel), _done(TOP=user))


def _far(code: str) -> tuple[Case, ...]:
    """A far CALL or JMP by way of [EAX], to the kernel's and to the user's code."""
    return (
        Case(bytes.fromhex(code), Claim(ARRIVES, {"CS": KERNEL_CODE}), _gp(KERNEL_CODE), data=_pointer(KERNEL_CODE)),
        Case(bytes.fromhex(code), _gp(USER_CODE & ~3), Claim(ARRIVES, {"CS": USER_CODE}), data=_pointer(USER_CODE)),
    )


def _direct(opcode: str) -> Case:
    """The same with the pointer in the instruction."""
    code = bytes.fromhex(opcode) + _pointer(KERNEL_CODE)
    return Case(code, Claim(ARRIVES, {"CS": KERNEL_CODE}), _gp(KERNEL_CODE))


_OFF: Final = _FIXED | r.FLAG_IOPL | r.FLAG_CF
"""Flags to pop: interrupts off, IOPL 3."""
_TABLE: Final = struct.pack("<HI", 0x77, _BASE)

_UNPRIVILEGED: Final[dict[str, tuple[Case, ...]]] = {
    "PUSHF": (
        _both("9c", _done(TOP=_ON)),
        replace(_both("9c", _done(TOP=_FIXED)), rflags=_FIXED),
        replace(_both("669c", Claim(COMPLETES)), rflags=_FIXED),
    ),
    "POPF": (
        Case(
            bytes.fromhex("9d"),
            _done(IF=0, IOPL=3, CF=1),
            _done(IF=1, IOPL=0, CF=1),
            kernel_stack=(_OFF,),
            user_stack=(_OFF,),
        ),
    ),
    "IRET": (
        Case(
            bytes.fromhex("cf"),
            Claim(ARRIVES, {"IF": 0, "IOPL": 3, "CF": 1, "CS": KERNEL_CODE}),
            Claim(ARRIVES, {"IF": 1, "IOPL": 0, "CF": 1, "CS": USER_CODE}),
            kernel_stack=(LAND, KERNEL_CODE, _OFF),
            user_stack=(LAND, USER_CODE, _OFF),
        ),
        Case(
            bytes.fromhex("cf"),
            Claim(ARRIVES, {"CPL": 3, "CS": USER_CODE, "SS": USER_DATA, "RSP": STACK + 64}),
            _gp(KERNEL_CODE),
            kernel_stack=(LAND, USER_CODE, _ON, STACK + 64, USER_DATA),
            user_stack=(LAND, KERNEL_CODE, _ON, STACK + 64, KERNEL_DATA),
        ),
    ),
    "SGDT": (_both("0f0100", _seen({"DATA:2": GDT_LIMIT, "DATA+2:4": GDT})),),
    "SIDT": (_both("0f0108", _seen({"DATA:2": IDT_LIMIT, "DATA+2:4": IDT})),),
    "SLDT": (_both("0f00c0", _done(RAX=LDT_SELECTOR)),),
    "STR": (_both("0f00c8", _done(RAX=TSS_SELECTOR)),),
    "SMSW": (_both("660f01e0", _done(RAX=_CR0 & 0xFFFF), {r.RAX: 0}),),
    "MOV r, Sreg": (Case(bytes.fromhex("8cc8"), _done(RAX=KERNEL_CODE), _done(RAX=USER_CODE)),),
    "MOV Sreg, r": (
        _selector("8ed8", {r.RAX: KERNEL_DATA}, "DS"),
        _both("8ed8", _done(DS=USER_DATA), gpr={r.RAX: USER_DATA}),
        _both("8ed0", _gp(), gpr={r.RAX: 0}),
    ),
    "PUSH FS, PUSH GS": (_pushed("0fa0", KERNEL_DATA, USER_DATA), _pushed("0fa8", KERNEL_DATA, USER_DATA)),
    "POP FS, POP GS": (
        _selector("0fa1", {}, "FS", stack=KERNEL_DATA),
        _selector("0fa9", {}, "GS", stack=KERNEL_DATA),
    ),
    "PUSH CS": (_pushed("0e", KERNEL_CODE, USER_CODE),),
    "PUSH SS": (_pushed("16", KERNEL_DATA, USER_DATA),),
    "PUSH DS, PUSH ES": (_pushed("1e", KERNEL_DATA, USER_DATA), _pushed("06", KERNEL_DATA, USER_DATA)),
    "POP SS": (_selector("17", {}, "SS", stack=KERNEL_DATA),),
    "POP DS, POP ES": (
        _selector("1f", {}, "DS", stack=KERNEL_DATA),
        _selector("07", {}, "ES", stack=KERNEL_DATA),
    ),
    "LDS": (_selector("c508", {}, "DS", _pointer(KERNEL_DATA, 0)),),
    "LES": (_selector("c408", {}, "ES", _pointer(KERNEL_DATA, 0)),),
    "LSS": (_selector("0fb220", {}, "SS", _pointer(KERNEL_DATA, STACK)),),
    "LFS": (_selector("0fb408", {}, "FS", _pointer(KERNEL_DATA, 0)),),
    "LGS": (_selector("0fb508", {}, "GS", _pointer(KERNEL_DATA, 0)),),
    "LAR": (Case(bytes.fromhex("0f02c1"), _done(ZF=1, RAX=0xC0_9B00), _done(ZF=0, RAX=DATA), {r.RCX: KERNEL_CODE}),),
    "LSL": (Case(bytes.fromhex("0f03c1"), _done(ZF=1, RAX=0xFFFF_FFFF), _done(ZF=0, RAX=DATA), {r.RCX: KERNEL_DATA}),),
    "VERR": (Case(bytes.fromhex("0f00e0"), _done(ZF=1), _done(ZF=0), {r.RAX: KERNEL_DATA}),),
    "VERW": (Case(bytes.fromhex("0f00e8"), _done(ZF=1), _done(ZF=0), {r.RAX: KERNEL_DATA}),),
    "far CALL": (*_far("ff18"), _direct("9a")),
    "far JMP": (*_far("ff28"), _direct("ea")),
    "far RET": (
        Case(
            bytes.fromhex("cb"),
            Claim(ARRIVES, {"CS": KERNEL_CODE}),
            _gp(KERNEL_CODE),
            kernel_stack=(LAND, KERNEL_CODE),
            user_stack=(LAND, KERNEL_CODE),
        ),
        Case(
            bytes.fromhex("cb"),
            Claim(ARRIVES, {"CS": USER_CODE, "CPL": 3}),
            Claim(ARRIVES, {"CS": USER_CODE, "CPL": 3}),
            kernel_stack=(LAND, USER_CODE, STACK, USER_DATA),
            user_stack=(LAND, USER_CODE),
        ),
    ),
    "INTO": (
        replace(
            Case(bytes.fromhex("ce"), Claim(software(4)), _gp(4 * 8 | r.ERROR_IDT)),
            rflags=_ON | r.FLAG_OF,
        ),
        _both("ce", Claim(COMPLETES)),
    ),
    "SYSCALL": (_both("0f05", Claim(_UD)),),
    "SYSENTER": (_both("0f34", _gp()),),
}

_PRIVILEGED: Final[dict[str, tuple[Case, ...]]] = {
    "MOV DR, r": (_trap("0f23c0", _done(DR0=_BASE), {r.RAX: _BASE}),),
    "RDMSR": (
        replace(
            _trap("0f32", _done(RAX=KERNEL_CODE, RDX=0), {r.RCX: IA32_SYSENTER_CS}),
            kernel_prelude=_write_msr(IA32_SYSENTER_CS, KERNEL_CODE),
        ),
    ),
    "WRMSR": (_trap("0f30", Claim(COMPLETES), {r.RCX: IA32_SYSENTER_CS, r.RAX: KERNEL_CODE, r.RDX: 0}),),
    "LGDT": (_trap("0f0110", _seen({"GDTR.base": _BASE, "GDTR.limit": 0x77}), data=_TABLE),),
    "LIDT": (_trap("0f0118", _seen({"IDTR.base": _BASE, "IDTR.limit": 0x77}), data=_TABLE),),
    "LLDT": (
        _trap("0f00d0", _done(LDTR=0), {r.RAX: 0}),
        _trap("0f00d0", _done(LDTR=LDT_SELECTOR), {r.RAX: LDT_SELECTOR}),
    ),
    "LTR": (_trap("0f00d8", _done(TR=TSS_SELECTOR), {r.RAX: TSS_SELECTOR}),),
    "SYSRET": (_both("0f07", Claim(_UD), {r.RCX: LAND}),),
    "SYSEXIT": (
        replace(
            _trap("0f35", Claim(ARRIVES, {"CPL": 3, "RSP": STACK, "CS": USER_CODE, "SS": USER_DATA})),
            kernel_prelude=_write_msr(IA32_SYSENTER_CS, KERNEL_CODE) + _move(r.RDX, LAND) + _move(r.RCX, STACK),
        ),
    ),
}

_ELSEWHERE: Final = frozenset(
    {"SEAMCALL", "SEAMOPS", "SEAMRET", "PSMASH", "RMPADJUST", "RMPQUERY", "RMPUPDATE", "PBNDKB", "WRUSS"}
)
"""Extensions of 64-bit mode alone, or with another encoding here."""

CASES: Final[dict[str, tuple[Case, ...]]] = {
    **_UNPRIVILEGED,
    **_PRIVILEGED,
    **{name: wide.CASES[name] for name in _SAME},
    **{name: cases for name, cases in EXTENSION_CASES.items() if name not in _ELSEWHERE},
    "WRUSS": (replace(_both("660f38f508", Claim(_UD)), absent=True),),
}
"""The cases of every row, by the row's name."""

_EVERY_MODE: Final = "the engine has SYSCALL and SYSRET in every mode, as AMD's processors do"
_REPORTED: Final = "the engine reports SYSENTER, whatever IA32_SYSENTER_CS holds; whoever drives the CPU looks at it"
_GATE: Final = wide.DEPARTURES["INT n", Mode.USER, 1].reason


def _departures() -> dict[tuple[str, Mode, int], Departure]:
    found = {key: departure for key, departure in wide.DEPARTURES.items() if key[0] in _SAME}
    found["INTO", Mode.USER, 0] = Departure(software(4), _GATE)
    found["SYSRET", Mode.KERNEL, 0] = Departure(ARRIVES, _EVERY_MODE, {"CPL": 3})
    found["SYSRET", Mode.USER, 0] = Departure(exception(r.VECTOR_GP), _EVERY_MODE)
    for mode in Mode:
        found["SYSCALL", mode, 0] = Departure(exits(ExitKind.SYSTEM_CALL), _EVERY_MODE)
        found["SYSENTER", mode, 0] = Departure(exits(ExitKind.SYSTEM_CALL), _REPORTED)
    return found


DEPARTURES: Final[dict[tuple[str, Mode, int], Departure]] = _departures()
"""What the embedded engine does instead, by row, mode and number of the case."""
