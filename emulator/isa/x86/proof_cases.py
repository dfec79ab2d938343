"""What must be seen when the examples of the x86-64 table are run: the manual's word, as data.

Room: `emulator/isa/x86`. `CASES` has at least one case for every row, the first with the row's
example; the cases of the extensions stand in `proof_extensions`. `DEPARTURES` lists where the embedded
engine does not do what the manual says, and why that is harmless or where it is mended.
"""

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from emulator.engine.exit import ExitKind
from emulator.isa.x86 import registers as r
from emulator.isa.x86.msr import IA32_FS_BASE, IA32_SYSENTER_CS
from emulator.isa.x86.proof import ARRIVES, COMPLETES, Case, Claim, Departure, Event, Mode, exception, exits, software
from emulator.isa.x86.proof_extensions import EXTENSION_CASES
from emulator.isa.x86.room import (
    DATA,
    GDT,
    GDT_LIMIT,
    IDT,
    IDT_LIMIT,
    KERNEL_CODE,
    KERNEL_DATA,
    LAND,
    LDT_SELECTOR,
    ROOT,
    STACK,
    TSS_SELECTOR,
    USER_CODE,
    USER_DATA,
)

_FIXED: Final = r.FLAG_FIXED
_ON: Final = r.FLAG_FIXED | r.FLAG_IF
_UD: Final = exception(r.VECTOR_UD)
_BASE: Final = 0x1234_5678_9000
_CR0: Final = r.CR0_PE | r.CR0_MP | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_AM | r.CR0_PG
_CR4: Final = r.CR4_PAE | r.CR4_OSFXSR | r.CR4_OSXMMEXCPT | r.CR4_TSD


def _done(**shows: int) -> Claim:
    """Completes, and then shows these values."""
    return Claim(COMPLETES, shows)


def _seen(shows: Mapping[str, int], event: Event = COMPLETES) -> Claim:
    return Claim(event, shows)


def _gp(error: int = 0) -> Claim:
    return Claim(exception(r.VECTOR_GP, error))


def _move(number: int, value: int) -> bytes:
    """MOV r32, imm32 for one of the eight old registers."""
    return bytes([0xB8 + number]) + struct.pack("<I", value)


def _write_msr(number: int, value: int) -> bytes:
    return _move(r.RCX, number) + _move(r.RAX, value) + _move(r.RDX, 0) + b"\x0f\x30"


def _both(code: str, claim: Claim, cr4: int = _CR4, gpr: Mapping[int, int] | None = None, data: bytes = b"") -> Case:
    """The same in both modes."""
    return Case(bytes.fromhex(code), claim, claim, gpr or {}, data, cr4=cr4)


def _absent(code: str) -> Case:
    """An instruction that the engine's processor does not have."""
    return replace(_both(code, Claim(_UD)), absent=True)


def _trap(code: str, kernel: Claim, gpr: Mapping[int, int] | None = None, data: bytes = b"", vector: int = 13) -> Case:
    """Does its work in kernel mode, raises an exception in user mode."""
    return Case(bytes.fromhex(code), kernel, Claim(exception(vector)), gpr or {}, data)


def _pointer(selector: int) -> bytes:
    """A far pointer m16:32 to the landing place."""
    return struct.pack("<IH", LAND, selector)


def _frame(code: int, data: int, rflags: int) -> tuple[int, ...]:
    """What IRETQ pops."""
    return (LAND, code, rflags, STACK, data)


def _selector(code: str, gpr: Mapping[int, int], shows: str, data: bytes = b"", stack: int = 0) -> Case:
    """A load of a kernel's data selector."""
    return Case(
        bytes.fromhex(code),
        _seen({shows: KERNEL_DATA}),
        _gp(KERNEL_DATA),
        gpr,
        data,
        kernel_stack=(stack,) if stack else (),
        user_stack=(stack,) if stack else (),
    )


_IRET_OFF: Final = _FIXED | r.FLAG_IOPL | r.FLAG_CF
"""Flags to return to: interrupts off, IOPL 3."""

_UNPRIVILEGED: Final[dict[str, tuple[Case, ...]]] = {
    "PUSHF": (
        _both("9c", _seen({"TOP": _ON})),
        replace(_both("9c", _seen({"TOP": _FIXED})), rflags=_FIXED),
        replace(_both("669c", Claim(COMPLETES)), rflags=_FIXED),
    ),
    "POPF": (
        Case(
            bytes.fromhex("9d"),
            _done(IF=0, IOPL=3, CF=1),
            _done(IF=1, IOPL=0, CF=1),
            kernel_stack=(_FIXED | r.FLAG_IOPL | r.FLAG_CF,),
            user_stack=(_FIXED | r.FLAG_IOPL | r.FLAG_CF,),
        ),
    ),
    "IRET": (
        Case(
            bytes.fromhex("48cf"),
            Claim(ARRIVES, {"IF": 0, "IOPL": 3, "CF": 1, "CS": KERNEL_CODE}),
            Claim(ARRIVES, {"IF": 1, "IOPL": 0, "CF": 1, "CS": USER_CODE}),
            kernel_stack=_frame(KERNEL_CODE, KERNEL_DATA, _IRET_OFF),
            user_stack=_frame(USER_CODE, USER_DATA, _IRET_OFF),
        ),
        Case(
            bytes.fromhex("48cf"),
            Claim(ARRIVES, {"CPL": 3, "CS": USER_CODE}),
            _gp(KERNEL_CODE),
            kernel_stack=_frame(USER_CODE, USER_DATA, _ON),
            user_stack=_frame(KERNEL_CODE, KERNEL_DATA, _ON),
        ),
    ),
    "SGDT": (_both("0f0100", _seen({"DATA:2": GDT_LIMIT, "DATA+2:8": GDT})),),
    "SIDT": (_both("0f0108", _seen({"DATA:2": IDT_LIMIT, "DATA+2:8": IDT})),),
    "SLDT": (_both("0f00c0", _done(RAX=LDT_SELECTOR)),),
    "STR": (_both("0f00c8", _done(RAX=TSS_SELECTOR)),),
    "SMSW": (_both("0f01e0", _done(RAX=_CR0)),),
    "MOV r, Sreg": (Case(bytes.fromhex("8cc8"), _done(RAX=KERNEL_CODE), _done(RAX=USER_CODE)),),
    "MOV Sreg, r": (
        _selector("8ed8", {r.RAX: KERNEL_DATA}, "DS"),
        _both("8ed8", _done(DS=USER_DATA), gpr={r.RAX: USER_DATA}),
        Case(bytes.fromhex("8ed0"), _done(SS=0), _gp(), {r.RAX: 0}),
    ),
    "PUSH FS, PUSH GS": (
        Case(bytes.fromhex("0fa0"), _done(TOP=KERNEL_DATA), _done(TOP=USER_DATA)),
        Case(bytes.fromhex("0fa8"), _done(TOP=KERNEL_DATA), _done(TOP=USER_DATA)),
    ),
    "POP FS, POP GS": (
        _selector("0fa1", {}, "FS", stack=KERNEL_DATA),
        _selector("0fa9", {}, "GS", stack=KERNEL_DATA),
    ),
    "LSS": (
        _selector("0fb220", {}, "SS", struct.pack("<IH", STACK, KERNEL_DATA)),
        _selector("480fb220", {}, "SS", struct.pack("<QH", STACK, KERNEL_DATA)),
    ),
    "LFS": (_selector("0fb408", {}, "FS", struct.pack("<IH", 0, KERNEL_DATA)),),
    "LGS": (_selector("0fb508", {}, "GS", struct.pack("<IH", 0, KERNEL_DATA)),),
    "LAR": (Case(bytes.fromhex("0f02c1"), _done(ZF=1, RAX=0xA0_9B00), _done(ZF=0, RAX=DATA), {r.RCX: KERNEL_CODE}),),
    "LSL": (Case(bytes.fromhex("0f03c1"), _done(ZF=1, RAX=0xFFFF_FFFF), _done(ZF=0, RAX=DATA), {r.RCX: KERNEL_DATA}),),
    "VERR": (Case(bytes.fromhex("0f00e0"), _done(ZF=1), _done(ZF=0), {r.RAX: KERNEL_DATA}),),
    "VERW": (Case(bytes.fromhex("0f00e8"), _done(ZF=1), _done(ZF=0), {r.RAX: KERNEL_DATA}),),
    "far CALL": (
        Case(bytes.fromhex("ff18"), Claim(ARRIVES, {"CS": KERNEL_CODE}), _gp(KERNEL_CODE), data=_pointer(KERNEL_CODE)),
        Case(bytes.fromhex("ff18"), _gp(USER_CODE & ~3), Claim(ARRIVES, {"CS": USER_CODE}), data=_pointer(USER_CODE)),
    ),
    "far JMP": (
        Case(bytes.fromhex("ff28"), Claim(ARRIVES, {"CS": KERNEL_CODE}), _gp(KERNEL_CODE), data=_pointer(KERNEL_CODE)),
        Case(bytes.fromhex("ff28"), _gp(USER_CODE & ~3), Claim(ARRIVES, {"CS": USER_CODE}), data=_pointer(USER_CODE)),
    ),
    "far RET": (
        Case(
            bytes.fromhex("48cb"),
            Claim(ARRIVES, {"CS": KERNEL_CODE}),
            _gp(KERNEL_CODE),
            kernel_stack=(LAND, KERNEL_CODE),
            user_stack=(LAND, KERNEL_CODE),
        ),
        Case(
            bytes.fromhex("48cb"),
            Claim(ARRIVES, {"CS": USER_CODE, "CPL": 3}),
            Claim(ARRIVES, {"CS": USER_CODE, "CPL": 3}),
            kernel_stack=(LAND, USER_CODE, STACK, USER_DATA),
            user_stack=(LAND, USER_CODE),
        ),
    ),
    "INT n": (
        _both("cd30", _seen({}, software(0x30))),
        Case(bytes.fromhex("cd21"), Claim(software(0x21)), _gp(0x21 * 8 | r.ERROR_IDT)),
    ),
    "INT3": (Case(bytes.fromhex("cc"), Claim(software(3)), _gp(3 * 8 | r.ERROR_IDT)),),
    "INT1": (_both("f1", _seen({}, software(1))),),
    "SYSCALL": (_both("0f05", Claim(exits(ExitKind.SYSTEM_CALL))),),
    "SYSENTER": (_both("0f34", _gp()),),
    "CPUID": (_both("0fa2", Claim(COMPLETES), gpr={r.RAX: 1}),),
    "RDPID": (_absent("f30fc7f8"),),
    "XGETBV": (
        _both("0f01d0", _done(RAX=r.XCR0_X87 | r.XCR0_SSE, RDX=0), cr4=_CR4 | r.CR4_OSXSAVE, gpr={r.RCX: 0}),
        _both("0f01d0", Claim(_UD), gpr={r.RCX: 0}),
    ),
    "RDPKRU": (_absent("0f01ee"),),
    "WRPKRU": (_absent("0f01ef"),),
    "RDFSBASE": (
        replace(_both("f3480faec0", _done(RAX=_BASE), cr4=_CR4 | r.CR4_FSGSBASE), base=_BASE),
        _both("f3480faec0", Claim(_UD)),
    ),
    "RDGSBASE": (
        replace(_both("f3480faec8", _done(RAX=_BASE), cr4=_CR4 | r.CR4_FSGSBASE), base=_BASE),
        _both("f3480faec8", Claim(_UD)),
    ),
    "WRFSBASE": (
        _both("f3480faed0", _seen({"FS.base": _BASE}), cr4=_CR4 | r.CR4_FSGSBASE, gpr={r.RAX: _BASE}),
        _both("f3480faed0", Claim(_UD), gpr={r.RAX: _BASE}),
    ),
    "WRGSBASE": (
        _both("f3480faed8", _seen({"GS.base": _BASE}), cr4=_CR4 | r.CR4_FSGSBASE, gpr={r.RAX: _BASE}),
        _both("f3480faed8", Claim(_UD), gpr={r.RAX: _BASE}),
    ),
    "ENCLU": (_absent("0f01d7"),),
}

_DESCRIPTOR_TABLE: Final = struct.pack("<HQ", 0x77, _BASE)
_NO_FLUSH: Final = ROOT | r.CR3_PWT

_PRIVILEGED: Final[dict[str, tuple[Case, ...]]] = {
    "CLI": (_trap("fa", _done(IF=0)),),
    "STI": (replace(_trap("fb", _done(IF=1)), rflags=_FIXED),),
    "HLT": (_trap("f4", Claim(exits(ExitKind.HALT))),),
    "MONITOR": (_absent("0f01c8"),),
    "MWAIT": (_absent("0f01c9"),),
    "UMWAIT": (_absent("f20faef0"),),
    "TPAUSE": (_absent("660faef0"),),
    "MOV r, CR": (_trap("0f20d8", _done(RAX=ROOT)), _trap("0f20c0", _done(RAX=_CR0))),
    "MOV CR, r": (_trap("0f22d8", _done(CR3=_NO_FLUSH), {r.RAX: _NO_FLUSH}),),
    "LMSW": (_trap("0f01f0", _done(CR0=_CR0 | r.CR0_TS), {r.RAX: _CR0 & 0xFFFF | r.CR0_TS}),),
    "CLTS": (replace(_trap("0f06", _done(CR0=_CR0)), cr0=_CR0 | r.CR0_TS),),
    "MOV r, DR": (_trap("0f21f8", _done(RAX=r.DR7_FIXED)),),
    "MOV DR, r": (_trap("0f23c0", _done(DR0=_BASE), {r.RAX: _BASE}),),
    "RDMSR": (
        replace(
            _trap("0f32", _done(RAX=0x1234_5000, RDX=0), {r.RCX: IA32_FS_BASE}),
            kernel_prelude=_write_msr(IA32_FS_BASE, 0x1234_5000),
        ),
    ),
    "WRMSR": (
        _trap("0f30", _seen({"FS.base": _BASE}), {r.RCX: IA32_FS_BASE, r.RAX: _BASE & 0xFFFF_FFFF, r.RDX: _BASE >> 32}),
    ),
    "WRMSRNS": (_absent("0f01c6"),),
    "RDMSRLIST": (_absent("f20f01c6"),),
    "WRMSRLIST": (_absent("f30f01c6"),),
    "XSETBV": (
        replace(_trap("0f01d1", Claim(COMPLETES), {r.RCX: 0, r.RAX: 3, r.RDX: 0}), cr4=_CR4 | r.CR4_OSXSAVE),
        _both("0f01d1", Claim(_UD), gpr={r.RCX: 0, r.RAX: 3, r.RDX: 0}),
    ),
    "XSAVES": (_absent("0fc728"),),
    "XRSTORS": (_absent("0fc718"),),
    "RDTSC": (_trap("0f31", Claim(COMPLETES)),),
    "RDTSCP": (_trap("0f01f9", Claim(COMPLETES)),),
    "RDPMC": (_trap("0f33", Claim(COMPLETES), {r.RCX: 0}),),
    "RDPRU": (_absent("0f01fd"),),
    "LGDT": (_trap("0f0110", _seen({"GDTR.base": _BASE, "GDTR.limit": 0x77}), data=_DESCRIPTOR_TABLE),),
    "LIDT": (_trap("0f0118", _seen({"IDTR.base": _BASE, "IDTR.limit": 0x77}), data=_DESCRIPTOR_TABLE),),
    "LLDT": (_trap("0f00d0", _done(LDTR=0), {r.RAX: 0}), _trap("0f00d0", _done(LDTR=0x48), {r.RAX: 0x48})),
    "LTR": (_trap("0f00d8", _done(TR=TSS_SELECTOR), {r.RAX: TSS_SELECTOR}),),
    "SWAPGS": (
        replace(
            _trap("0f01f8", _seen({"GS.base": 0x5000_0000})),
            kernel_prelude=_write_msr(0xC000_0102, 0x5000_0000),
        ),
    ),
    "LKGS": (_absent("f20f00f0"),),
    "SYSRET": (_trap("480f07", Claim(ARRIVES, {"CPL": 3, "IF": 0}), {r.RCX: LAND, r.R11: _FIXED}),),
    "SYSEXIT": (
        replace(
            _trap("480f35", Claim(ARRIVES, {"CPL": 3, "RSP": STACK})),
            kernel_prelude=_write_msr(IA32_SYSENTER_CS, KERNEL_CODE) + _move(r.RDX, LAND) + _move(r.RCX, STACK),
        ),
    ),
    "ERETS": (_absent("f20f01ca"),),
    "ERETU": (_absent("f30f01ca"),),
    "INVLPG": (_trap("0f0138", Claim(COMPLETES)),),
    "INVPCID": (_absent("660f388208"),),
    "INVD": (_trap("0f08", Claim(COMPLETES)),),
    "WBINVD": (_trap("0f09", Claim(COMPLETES)),),
    "WBNOINVD": (_trap("f30f09", Claim(COMPLETES)),),
    "CLAC": (_absent("0f01ca"),),
    "STAC": (_absent("0f01cb"),),
    "IN": (
        _trap("ec", Claim(exits(ExitKind.PORT_READ)), {r.RDX: 0x60}),
        _trap("e560", Claim(exits(ExitKind.PORT_READ))),
    ),
    "OUT": (
        _trap("ee", Claim(exits(ExitKind.PORT_WRITE)), {r.RDX: 0x60}),
        _trap("e760", Claim(exits(ExitKind.PORT_WRITE))),
    ),
    "INS": (_trap("6c", Claim(exits(ExitKind.PORT_READ)), {r.RDX: 0x60, r.RDI: DATA}),),
    "OUTS": (_trap("6e", Claim(exits(ExitKind.PORT_WRITE)), {r.RDX: 0x60, r.RSI: DATA}),),
    "RSM": (_both("0faa", Claim(_UD)),),
}

CASES: Final[dict[str, tuple[Case, ...]]] = {**_UNPRIVILEGED, **_PRIVILEGED, **EXTENSION_CASES}
"""The cases of every row, by the row's name."""

_GATE: Final = "the engine does not look at the gate: whoever delivers the interrupt checks its privilege level"
_NO_INT1: Final = "the engine cannot tell INT1 from an invalid opcode: whoever delivers the exception looks at the byte"
_PORTS: Final = "the engine asks its caller at every level, who refuses by IOPL and I/O bitmap and so raises the #GP"
_NO_SYSENTER: Final = "the processor shown to guests has no SYSENTER in 64-bit mode, as AMD's"
_IDENTITY: Final = "the engine reports CPUID, so that the processor shown can be a virtual one"
_TIME: Final = "the engine reports RDTSC at full privilege, so that time can be a virtual one"
_NO_RDTSCP: Final = "the processor shown to guests has no RDTSCP, as CPUID says: it would show the host's time"
_NO_COUNTERS: Final = "the engine has no performance counters and takes RDPMC for an invalid opcode"
_FENCE: Final = "the engine takes the encoding for MFENCE: it does not wait, which a wait may always do"
_LEVEL_FIRST: Final = "the engine looks at the privilege level before CR4.OSXSAVE: #GP where the manual has #UD"
_SHORT_POINTER: Final = "the engine ignores REX.W and loads m16:32, as AMD's processors do: it finds a null selector"


def _departures() -> dict[tuple[str, Mode, int], Departure]:
    found: dict[tuple[str, Mode, int], Departure] = {
        ("LSS", Mode.KERNEL, 1): Departure(COMPLETES, _SHORT_POINTER, {"SS": 0}),
        ("LSS", Mode.USER, 1): Departure(exception(r.VECTOR_GP), _SHORT_POINTER),
        ("INT n", Mode.USER, 1): Departure(software(0x21), _GATE),
        ("INT3", Mode.USER, 0): Departure(software(3), _GATE),
        ("XSETBV", Mode.USER, 1): Departure(exception(r.VECTOR_GP), _LEVEL_FIRST),
        ("RDTSC", Mode.KERNEL, 0): Departure(exits(ExitKind.TIME_STAMP), _TIME),
        ("RDTSCP", Mode.KERNEL, 0): Departure(_UD, _NO_RDTSCP),
    }
    for number in (0, 1):
        found["IN", Mode.USER, number] = Departure(exits(ExitKind.PORT_READ), _PORTS)
        found["OUT", Mode.USER, number] = Departure(exits(ExitKind.PORT_WRITE), _PORTS)
    found["INS", Mode.USER, 0] = Departure(exits(ExitKind.PORT_READ), _PORTS)
    found["OUTS", Mode.USER, 0] = Departure(exits(ExitKind.PORT_WRITE), _PORTS)
    for mode in Mode:
        found["INT1", mode, 0] = Departure(_UD, _NO_INT1)
        found["SYSENTER", mode, 0] = Departure(_UD, _NO_SYSENTER)
        found["CPUID", mode, 0] = Departure(exits(ExitKind.IDENTIFY), _IDENTITY)
        found["RDPMC", mode, 0] = Departure(_UD, _NO_COUNTERS)
        found["UMWAIT", mode, 0] = Departure(COMPLETES, _FENCE)
        found["TPAUSE", mode, 0] = Departure(COMPLETES, _FENCE)
    return found


DEPARTURES: Final[dict[tuple[str, Mode, int], Departure]] = _departures()
"""What the embedded engine does instead, by row, mode and number of the case."""
