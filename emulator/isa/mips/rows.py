"""The rows of the MIPS32 table: what is privileged, what is not and yet shows privileged state, what context makes so.

Room: `emulator/isa/mips`, data about the instruction set; knows of no engine and no hypervisor. "PRA" is MD00090,
"ISA" is MD00086. `table` joins, checks and indexes the rows.
"""

from typing import Final

from emulator.isa.mips.registers import REGISTERS, Register
from emulator.isa.operation import Operation as O
from emulator.isa.sensitive import (
    ContextSensitive,
    Pattern,
    Patterns,
    Route,
    SensitiveInstruction,
    Sensitivity,
    UserBehaviour,
)

_TRAPS, _LEAKS, _DIFFERS = UserBehaviour.TRAPS, UserBehaviour.LEAKS, UserBehaviour.DIFFERS
_CONTROL, _BEHAVIOUR = Sensitivity.CONTROL, Sensitivity.BEHAVIOUR
_BOTH = _CONTROL | _BEHAVIOUR
_INLINE = (Route.INLINE, Route.HYPERCALL, Route.TRAP)
_CALL = (Route.HYPERCALL, Route.TRAP)
_TRAP = (Route.TRAP,)
_CU0 = "Status.CU0 = 0"

_REGISTER = 0xFFE0_FFFF
"""Opcode, function, register number and select: all but rt."""
_MFC0, _MTC0, _DI, _EI = 0x4000_0000, 0x4080_0000, 0x4160_6000, 0x4160_6020
_RDPGPR, _WRPGPR = 0x4140_0000, 0x41C0_0000
_READ_INLINE = frozenset({"Status", "EntryHi", "Context", "BadVAddr", "EPC", "Cause", "Index", "PageMask"})
"""Registers whose virtual value the shared pages have."""
_WRITE_INLINE = frozenset({"Status", "EPC", "EntryLo0", "EntryLo1"})
"""Registers that are words of the shared pages: a store there is a write."""


def _row(
    name: str,
    pattern: Pattern | tuple[Pattern, ...],
    at_user_level: UserBehaviour,
    sensitivity: Sensitivity,
    operation: O,
    routes: tuple[Route, ...],
    example: str,
    manual: str,
    condition: str = "",
    note: str = "",
) -> SensitiveInstruction:
    patterns = pattern if isinstance(pattern, tuple) else (pattern,)
    return SensitiveInstruction(
        name, Patterns(patterns), at_user_level, sensitivity, operation, routes, example, manual, condition, note
    )


def _word(value: int) -> str:
    return f".inst {value:#010x}"


def _place(register: Register) -> int:
    return register.number << 11 | register.select


def _read(register: Register) -> SensitiveInstruction:
    return _row(
        f"MFC0 {register.name}",
        Pattern(_REGISTER, _MFC0 | _place(register)),
        _TRAPS,
        _BEHAVIOUR,
        O.READ_SYSTEM_REGISTER,
        _INLINE if register.name in _READ_INLINE else _CALL,
        f"mfc0 $v0, ${register.number}, {register.select}",
        "ISA, MFC0; PRA, 9",
        _CU0,
        register.purpose,
    )


def _write(register: Register) -> SensitiveInstruction:
    return _row(
        f"MTC0 {register.name}",
        Pattern(_REGISTER, _MTC0 | _place(register)),
        _TRAPS,
        _CONTROL,
        O.WRITE_SYSTEM_REGISTER,
        _INLINE if register.name in _WRITE_INLINE else _CALL,
        f"mtc0 $v0, ${register.number}, {register.select}",
        "ISA, MTC0; PRA, 9",
        _CU0,
        register.purpose,
    )


_KNOWN: Final = tuple((_REGISTER, _place(register)) for register in REGISTERS)


def _others(base: int) -> Pattern:
    """A move of any register that has no row of its own."""
    return Pattern(0xFFE0_0000, base, tuple((_REGISTER, base | place) for _mask, place in _KNOWN))


MOVES: Final = (
    *(_read(register) for register in REGISTERS),
    *(_write(register) for register in REGISTERS),
    _row(
        "MFC0 (other)",
        _others(_MFC0),
        _TRAPS,
        _BEHAVIOUR,
        O.READ_SYSTEM_REGISTER,
        _CALL,
        "mfc0 $v0, $22, 0",
        "ISA, MFC0",
        _CU0,
        "a register that is not implemented, or the implementation's own",
    ),
    _row(
        "MTC0 (other)",
        _others(_MTC0),
        _TRAPS,
        _CONTROL,
        O.WRITE_SYSTEM_REGISTER,
        _CALL,
        "mtc0 $v0, $22, 0",
        "ISA, MTC0",
        _CU0,
        "a register that is not implemented, or the implementation's own",
    ),
    _row(
        "RDPGPR",
        Pattern(0xFFE0_07FF, _RDPGPR),
        _TRAPS,
        _BEHAVIOUR,
        O.READ_BANKED_REGISTER,
        _CALL,
        _word(0x4142_2000),
        "ISA, RDPGPR",
        _CU0,
        "a register of the previous shadow set",
    ),
    _row(
        "WRPGPR",
        Pattern(0xFFE0_07FF, _WRPGPR),
        _TRAPS,
        _CONTROL,
        O.WRITE_BANKED_REGISTER,
        _CALL,
        _word(0x41C2_2000),
        "ISA, WRPGPR",
        _CU0,
        "a register of the previous shadow set",
    ),
    _row(
        "DI",
        Pattern(_REGISTER, _DI),
        _TRAPS,
        _BOTH,
        O.DISABLE_INTERRUPTS,
        _INLINE,
        _word(_DI | 2 << 16),
        "ISA, DI",
        _CU0,
        "gives the old Status in rt",
    ),
    _row(
        "EI",
        Pattern(_REGISTER, _EI),
        _TRAPS,
        _BOTH,
        O.ENABLE_INTERRUPTS,
        _INLINE,
        _word(_EI | 2 << 16),
        "ISA, EI",
        _CU0,
        "gives the old Status in rt",
    ),
)
"""Moves between general registers and coprocessor 0."""

_ALL = 0xFFFF_FFFF
_WAIT = Pattern(0xFE00_003F, 0x4200_0020)
_ACTS = {"TLBR": 0x4200_0001, "TLBWI": 0x4200_0002, "TLBWR": 0x4200_0006, "TLBP": 0x4200_0008}
_ERET, _DERET = 0x4200_0018, 0x4200_001F

CONTROL: Final = (
    _row(
        "TLBR",
        Pattern(_ALL, _ACTS["TLBR"]),
        _TRAPS,
        _BEHAVIOUR,
        O.READ_TRANSLATION,
        _CALL,
        "tlbr",
        "ISA, TLBR",
        _CU0,
    ),
    _row(
        "TLBWI",
        Pattern(_ALL, _ACTS["TLBWI"]),
        _TRAPS,
        _CONTROL,
        O.WRITE_TRANSLATION,
        _CALL,
        "tlbwi",
        "ISA, TLBWI",
        _CU0,
    ),
    _row(
        "TLBWR",
        Pattern(_ALL, _ACTS["TLBWR"]),
        _TRAPS,
        _CONTROL,
        O.WRITE_TRANSLATION,
        _CALL,
        "tlbwr",
        "ISA, TLBWR",
        _CU0,
        "which entry it replaces is the processor's choice",
    ),
    _row(
        "TLBP",
        Pattern(_ALL, _ACTS["TLBP"]),
        _TRAPS,
        _BOTH,
        O.PROBE_TRANSLATION,
        _CALL,
        "tlbp",
        "ISA, TLBP",
        _CU0,
    ),
    _row(
        "ERET",
        Pattern(_ALL, _ERET),
        _TRAPS,
        _CONTROL,
        O.RETURN_FROM_EXCEPTION,
        _TRAP,
        "eret",
        "ISA, ERET",
        _CU0,
        "has no delay slot, and clears LLbit",
    ),
    _row(
        "DERET",
        Pattern(_ALL, _DERET),
        _TRAPS,
        _CONTROL,
        O.RETURN_FROM_DEBUG,
        _TRAP,
        "deret",
        "ISA, DERET",
        _CU0,
        "reserved outside of Debug Mode",
    ),
    _row("WAIT", _WAIT, _TRAPS, _CONTROL, O.HALT, _CALL, "wait", "ISA, WAIT", _CU0),
    _row(
        "CACHE",
        Pattern(0xFC00_0000, 0xBC00_0000),
        _TRAPS,
        _CONTROL,
        O.MAINTAIN_CACHES,
        _INLINE,
        "cache 1, 0($v0)",
        "ISA, CACHE",
        _CU0,
    ),
    _row(
        "COP0 (other)",
        (
            Pattern(
                0xFE00_0000,
                0x4200_0000,
                (*((_ALL, word) for word in (*_ACTS.values(), _ERET, _DERET)), (_WAIT.mask, _WAIT.value)),
            ),
            Pattern(
                0xFE00_0000,
                0x4000_0000,
                (
                    (0xFFE0_0000, _MFC0),
                    (0xFFE0_0000, _MTC0),
                    (0xFFE0_07FF, _RDPGPR),
                    (0xFFE0_07FF, _WRPGPR),
                    (_REGISTER, _DI),
                    (_REGISTER, _EI),
                ),
            ),
        ),
        _TRAPS,
        _BOTH,
        O.RAISE_UNDEFINED,
        _TRAP,
        _word(0x4200_0011),
        "ISA, table A.16",
        _CU0,
        "reserved, or of a part that MIPS32r2 makes optional; in kernel mode RI",
    ),
)
"""What coprocessor 0 is told to do."""


def _rdhwr(name: str, number: int, note: str) -> SensitiveInstruction:
    return _row(
        f"RDHWR {name}",
        Pattern(_REGISTER, 0x7C00_003B | number << 11),
        _TRAPS,
        _BEHAVIOUR,
        O.READ_HARDWARE_REGISTER,
        _INLINE if name == "UserLocal" else _CALL,
        _word(0x7C02_003B | number << 11),
        "ISA, RDHWR",
        f"HWREna[{number}] = 0 and Status.CU0 = 0",
        note,
    )


_HARDWARE = {"CPUNum": 0, "SYNCI_Step": 1, "CC": 2, "CCRes": 3, "UserLocal": 29}

_COP1 = (0x4400_0000, 0x4C00_0000, 0xC400_0000, 0xD400_0000, 0xE400_0000, 0xF400_0000)
_COP2 = (0x4800_0000, 0xC800_0000, 0xD800_0000, 0xE800_0000, 0xF800_0000)
_SHOWN = "which mode it is executed in shows in Status"

UNPRIVILEGED: Final = (
    _rdhwr("CPUNum", _HARDWARE["CPUNum"], "number of the CPU"),
    _rdhwr("SYNCI_Step", _HARDWARE["SYNCI_Step"], "size of a cache line"),
    _rdhwr("CC", _HARDWARE["CC"], "the timer"),
    _rdhwr("CCRes", _HARDWARE["CCRes"], "cycles in a unit of the timer"),
    _rdhwr("UserLocal", _HARDWARE["UserLocal"], "the thread pointer"),
    _row(
        "RDHWR (other)",
        Pattern(
            0xFFE0_003F, 0x7C00_003B, tuple((_REGISTER, 0x7C00_003B | number << 11) for number in _HARDWARE.values())
        ),
        _TRAPS,
        _BEHAVIOUR,
        O.READ_HARDWARE_REGISTER,
        _CALL,
        _word(0x7C02_283B),
        "ISA, RDHWR",
        "",
        "no such register: RI in every mode",
    ),
    _row(
        "SYNCI",
        Pattern(0xFC1F_0000, 0x041F_0000),
        _DIFFERS,
        _BEHAVIOUR,
        O.MAINTAIN_CACHES,
        _INLINE,
        _word(0x045F_0000),
        "ISA, SYNCI",
        "at an address of a kernel segment",
        "AdEL there in user mode",
    ),
    _row(
        "LL",
        Pattern(0xFC00_0000, 0xC000_0000),
        _LEAKS,
        _CONTROL,
        O.LOAD_LINKED,
        _INLINE,
        "ll $v0, 0($a0)",
        "ISA, LL",
        "",
        "sets LLbit, which an exception return clears",
    ),
    _row(
        "SC",
        Pattern(0xFC00_0000, 0xE000_0000),
        _LEAKS,
        _BEHAVIOUR,
        O.STORE_CONDITIONAL,
        _INLINE,
        "sc $v0, 0($a0)",
        "ISA, SC",
        "",
        "shows LLbit: whether an ERET came in between",
    ),
    _row(
        "COP1",
        (
            *(Pattern(0xFC00_0000, value) for value in _COP1),
            Pattern(0xFC00_003F, 0x0000_0001),
        ),
        _TRAPS,
        _BEHAVIOUR,
        O.USE_COPROCESSOR,
        _INLINE,
        "mfc1 $v0, $f0",
        "PRA, 3.4",
        "Status.CU1 = 0",
        "every floating-point instruction, in kernel mode too",
    ),
    _row(
        "COP2",
        tuple(Pattern(0xFC00_0000, value) for value in _COP2),
        _TRAPS,
        _BEHAVIOUR,
        O.USE_COPROCESSOR,
        _TRAP,
        "mfc2 $v0, $0, 0",
        "PRA, 3.4",
        "Status.CU2 = 0",
    ),
    _row(
        "SYSCALL",
        Pattern(0xFC00_003F, 0x0000_000C),
        _TRAPS,
        _CONTROL,
        O.SYSTEM_CALL,
        _TRAP,
        "syscall",
        "ISA, SYSCALL",
        "",
        _SHOWN,
    ),
    _row("BREAK", Pattern(0xFC00_003F, 0xD), _TRAPS, _CONTROL, O.BREAKPOINT, _TRAP, "break", "ISA, BREAK", "", _SHOWN),
    _row(
        "SDBBP",
        Pattern(0xFC00_003F, 0x7000_003F),
        _TRAPS,
        _CONTROL,
        O.BREAKPOINT,
        _TRAP,
        _word(0x7000_003F),
        "ISA, SDBBP",
        "",
        "enters Debug Mode, whose vector only a probe or a debugger serves",
    ),
    _row(
        "Txx",
        (
            *(Pattern(0xFC00_003F, function) for function in (0x30, 0x31, 0x32, 0x33, 0x34, 0x36)),
            *(Pattern(0xFC1F_0000, 0x0400_0000 | code << 16) for code in (8, 9, 10, 11, 12, 14)),
        ),
        _TRAPS,
        _CONTROL,
        O.CONDITIONAL_TRAP,
        _TRAP,
        "teq $zero, $zero",
        "ISA, TEQ and the like",
        "the condition is true",
        _SHOWN,
    ),
)
"""What user code may execute, sometimes or always."""

CONTEXTS: Final = (
    ContextSensitive(
        "an address in a kernel segment",
        "every load, store and branch",
        "the address is 0x80000000 or above: unmapped or mapped memory in kernel mode, AdEL or AdES in user mode",
        "the virtual kernel runs in a view of its own in which KSEG0 to KSEG3 are ordinary pages, filled on demand",
        "PRA, 4.3 to 4.7",
    ),
    ContextSensitive(
        "an unmapped segment",
        "every load, store and branch",
        "the address is in KSEG0 or KSEG1: no entry of the TLB is looked at, not even in kernel mode",
        "filled by address; or the kernel is moved to mapped space by its relocation table",
        "PRA, 4.6 and 4.7",
    ),
    ContextSensitive(
        "a use of k0 or k1",
        "every instruction that reads or writes $26 or $27",
        "an exception handler may change them at any time, so that user code sees the kernel's leavings",
        "they are real registers, and only the virtual kernel's own handlers run between: nothing shows more than on "
        "the bare processor",
        "PRA, 5; ABI",
    ),
    ContextSensitive(
        "a store to a page table",
        "SB, SH, SW, SC, SWL, SWR, SWC1, SDC1",
        "software refills the TLB from its own tables, so the store is ordinary memory until TLBWR or TLBWI",
        "nothing is needed: TLBWI and TLBWR trap, and tell which entry is replaced",
        "PRA, 4.11",
    ),
    ContextSensitive(
        "a store to code",
        "SB, SH, SW, SC, SWL, SWR, SWC1, SDC1",
        "the instruction was executed before, and SYNCI or CACHE must follow",
        "no page is writable and executable in any view; a page that is written loses its translations",
        "ISA, SYNCI",
    ),
    ContextSensitive(
        "an instruction in a branch delay slot",
        "every sensitive instruction",
        "its exception restarts at the branch (Cause.BD), and it has no place of its own for a jump",
        "the branch under way is finished by whoever emulates the instruction; it is never replaced by SYSCALL or a "
        "branch",
        "PRA, 5.2; ISA, 4.1",
    ),
)
"""What no scan can find."""
