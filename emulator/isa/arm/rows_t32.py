"""Rows of T32 that are no coprocessor instructions. 32-bit instructions are words with the first halfword high.

Room: `emulator/isa/arm`, data. T32 has no LDM with ^, and of the data processing into PC only SUBS PC, LR.
"""

from __future__ import annotations

from typing import Final

from emulator.isa.arm.row import (
    BEHAVIOUR,
    BOTH,
    CALL,
    CONTROL,
    DIFFERS,
    IGNORED,
    INLINE,
    LEAKS,
    T32,
    TRAP,
    TRAPS,
    UNPREDICTABLE,
    row,
)
from emulator.isa.arm.rows_a32 import AS_USER, BAD_MODES, CONDITION_AS_USER, MANUAL_OF_ACCESS
from emulator.isa.operation import Operation
from emulator.isa.sensitive import Pattern, SensitiveInstruction

_NO_PC_BASE: Final = (0x000F_0000, 0x000F_0000)
_NO_SOURCE: Final = ((0x000F_0000, 0x000F_0000), (0x000F_0000, 0x000D_0000))
"""Exceptions: SP or PC as the register written from."""
_NO_DESTINATION: Final = ((0xF00, 0xF00), (0xF00, 0xD00))
_NO_TARGET: Final = ((0xF000, 0xF000), (0xF000, 0xD000))

UNPRIVILEGED_ACCESSES: Final[tuple[tuple[str, bool, int, int], ...]] = (
    ("LDRT", True, 0xF850_0E00, 32),
    ("LDRBT", True, 0xF810_0E00, 8),
    ("STRT", False, 0xF840_0E00, 32),
    ("STRBT", False, 0xF800_0E00, 8),
    ("LDRHT", True, 0xF830_0E00, 16),
    ("LDRSBT", True, 0xF910_0E00, 8),
    ("LDRSHT", True, 0xF930_0E00, 16),
    ("STRHT", False, 0xF820_0E00, 16),
)
"""Name, whether it loads, value, bits of the access."""


def _short(mask: int, value: int, unless: tuple[tuple[int, int], ...] = ()) -> Pattern:
    return Pattern(mask, value, unless, size=2)


def _cps() -> tuple[SensitiveInstruction, ...]:
    none, wide_none = (0x7, 0), (0xE0, 0)

    def flags(imod: int) -> tuple[Pattern, ...]:
        base = 0xF3AF_8000 | imod << 9
        return (
            _short(0xFFF8, 0xB660 | (imod & 1) << 4, (none,)),
            Pattern(0xFFFF_FF1F, base, (wide_none,)),
            Pattern(0xFFFF_FF10, base | 0x110, (wide_none, *BAD_MODES)),
        )

    return (
        row("CPSIE", flags(2), T32, IGNORED, CONTROL, Operation.ENABLE_INTERRUPTS, INLINE, "cpsie i", "B9.3.2"),
        row("CPSID", flags(3), T32, IGNORED, CONTROL, Operation.DISABLE_INTERRUPTS, INLINE, "cpsid i", "B9.3.2"),
        row(
            "CPS",
            (Pattern(0xFFFF_FFF0, 0xF3AF_8110, BAD_MODES),),
            T32,
            IGNORED,
            CONTROL,
            Operation.CHANGE_MODE,
            CALL,
            "cps #31",
            "B9.3.2",
            note="The mode alone.",
        ),
    )


def _status() -> tuple[SensitiveInstruction, ...]:
    return (
        row(
            "MRS CPSR",
            (Pattern(0xFFFF_F0FF, 0xF3EF_8000, _NO_DESTINATION),),
            T32,
            LEAKS,
            BEHAVIOUR,
            Operation.READ_FLAGS,
            INLINE,
            "mrs r0, cpsr",
            "B9.3.8",
            note="Shows mode and masks; the manual has them UNKNOWN in user mode.",
        ),
        row(
            "MRS SPSR",
            (Pattern(0xFFFF_F0FF, 0xF3FF_8000, _NO_DESTINATION),),
            T32,
            DIFFERS,
            BEHAVIOUR,
            Operation.READ_SAVED_STATUS,
            CALL,
            "mrs r0, spsr",
            "B9.3.8",
            note=UNPREDICTABLE,
        ),
        row(
            "MSR CPSR",
            (
                Pattern(0xFFF0_F1FF, 0xF380_8100, _NO_SOURCE),
                Pattern(0xFFF0_F3FF, 0xF380_8200, _NO_SOURCE),
            ),
            T32,
            IGNORED,
            CONTROL,
            Operation.WRITE_FLAGS,
            INLINE,
            "msr cpsr_c, r0",
            "B9.3.12",
            note="In user mode, mode and masks are dropped. MSR APSR, which writes the flags alone, is innocuous.",
        ),
        row(
            "MSR SPSR",
            (Pattern(0xFFF0_F0FF, 0xF390_8000, (*_NO_SOURCE, (0xF00, 0))),),
            T32,
            DIFFERS,
            CONTROL,
            Operation.WRITE_SAVED_STATUS,
            CALL,
            "msr spsr_fsxc, r0",
            "B9.3.12",
            note=UNPREDICTABLE,
        ),
        row(
            "MRS banked",
            (Pattern(0xFFE0_F0EF, 0xF3E0_8020, _NO_DESTINATION),),
            T32,
            DIFFERS,
            BEHAVIOUR,
            Operation.READ_BANKED_REGISTER,
            CALL,
            ".inst 0xf3e58020",
            "B9.3.9",
            note=f"With the virtualisation extensions. {UNPREDICTABLE}",
        ),
        row(
            "MSR banked",
            (Pattern(0xFFE0_F0EF, 0xF380_8020, _NO_SOURCE),),
            T32,
            DIFFERS,
            CONTROL,
            Operation.WRITE_BANKED_REGISTER,
            CALL,
            ".inst 0xf3808520",
            "B9.3.10",
            note=f"With the virtualisation extensions. {UNPREDICTABLE}",
        ),
    )


def _state_transfers() -> tuple[SensitiveInstruction, ...]:
    return (
        row(
            "RFE",
            (
                Pattern(0xFFD0_FFFF, 0xE810_C000, (_NO_PC_BASE,)),
                Pattern(0xFFD0_FFFF, 0xE990_C000, (_NO_PC_BASE,)),
            ),
            T32,
            DIFFERS,
            BOTH,
            Operation.RETURN_FROM_EXCEPTION,
            CALL,
            "rfeia r0",
            "B9.3.13",
            note=UNPREDICTABLE,
        ),
        row(
            "SRS",
            (
                Pattern(0xFFDF_FFF0, 0xE80D_C010, BAD_MODES),
                Pattern(0xFFDF_FFF0, 0xE98D_C010, BAD_MODES),
            ),
            T32,
            DIFFERS,
            BEHAVIOUR,
            Operation.SAVE_EXCEPTION_STATE,
            CALL,
            "srsia sp!, #19",
            "B9.3.15",
            note=UNPREDICTABLE,
        ),
        row(
            "SUBS PC",
            (Pattern(0xFFFF_FF00, 0xF3DE_8F00),),
            T32,
            DIFFERS,
            CONTROL,
            Operation.RETURN_FROM_EXCEPTION,
            CALL,
            "subs pc, lr, #4",
            "B9.3.19",
            note=f"SUBS PC, LR, #0 is also ERET. {UNPREDICTABLE}",
        ),
    )


def _unprivileged_accesses() -> tuple[SensitiveInstruction, ...]:
    return tuple(
        row(
            name,
            (Pattern(0xFFF0_0F00, value, (_NO_PC_BASE, *_NO_TARGET)),),
            T32,
            DIFFERS,
            BEHAVIOUR,
            Operation.ACCESS_AS_USER,
            INLINE,
            f"{name.lower()} r0, [r1, #4]",
            MANUAL_OF_ACCESS[name],
            CONDITION_AS_USER,
            AS_USER,
        )
        for name, _, value, _ in UNPRIVILEGED_ACCESSES
    )


def _entering() -> tuple[SensitiveInstruction, ...]:
    def hint(number: int) -> tuple[Pattern, ...]:
        return (_short(0xFFFF, 0xBF00 | number << 4), Pattern(0xFFFF_FFFF, 0xF3AF_8000 | number))

    return (
        row(
            "SVC",
            (_short(0xFF00, 0xDF00),),
            T32,
            TRAPS,
            BOTH,
            Operation.SYSTEM_CALL,
            TRAP,
            "svc #0",
            "A8.8.228",
            note="In every mode it enters Supervisor mode.",
        ),
        row(
            "HVC",
            (Pattern(0xFFF0_F000, 0xF7E0_8000),),
            T32,
            TRAPS,
            BOTH,
            Operation.ENTER_HYPERVISOR,
            TRAP,
            ".inst 0xf7e08000",
            "B9.3.4",
            note="Undefined in user mode; a call of PSCI in a guest kernel.",
        ),
        row(
            "SMC",
            (Pattern(0xFFF0_FFFF, 0xF7F0_8000),),
            T32,
            TRAPS,
            BOTH,
            Operation.CALL_SECURE_MONITOR,
            TRAP,
            ".inst 0xf7f08000",
            "B9.3.14",
            note="Undefined in user mode.",
        ),
        row(
            "BKPT",
            (_short(0xFF00, 0xBE00),),
            T32,
            TRAPS,
            BOTH,
            Operation.BREAKPOINT,
            TRAP,
            "bkpt #0",
            "A8.8.24",
            note="A prefetch abort with the status of a debug event. Unconditional in an IT block.",
        ),
        row(
            "UDF",
            (_short(0xFF00, 0xDE00), Pattern(0xFFF0_F000, 0xF7F0_A000)),
            T32,
            TRAPS,
            CONTROL,
            Operation.RAISE_UNDEFINED,
            TRAP,
            "udf #0",
            "A8.8.247",
            note="The guest's own; the trap that a hypervisor plants is of this form too.",
        ),
        row("WFI", hint(3), T32, LEAKS, CONTROL, Operation.HALT, CALL, "wfi", "A8.8.425", note="Waits without asking."),
        row(
            "WFE",
            hint(2),
            T32,
            LEAKS,
            CONTROL,
            Operation.WAIT_FOR_EVENT,
            CALL,
            "wfe",
            "A8.8.424",
            note="Waits without asking.",
        ),
        row(
            "SETEND",
            (_short(0xFFF7, 0xB650),),
            T32,
            LEAKS,
            CONTROL,
            Operation.SET_ENDIANNESS,
            INLINE,
            "setend le",
            "A8.8.165",
            note="Changes CPSR.E in every mode; a virtual processor must take the bit from the real one.",
        ),
    )


T32_ROWS: Final[tuple[SensitiveInstruction, ...]] = (
    _cps() + _status() + _state_transfers() + _unprivileged_accesses() + _entering()
)
