"""Rows of A32 that are no coprocessor instructions: Dall and Nieh's twenty-four among them.

Room: `emulator/isa/arm`, data. The twenty-four are those of "KVM/ARM: Experiences Building the Linux ARM Hypervisor"
(2013), table 1: CPS, MRS, MSR, RFE, SRS, LDM (2), LDM (3), STM (2), the T forms, and data processing into PC.
"""

from __future__ import annotations

from typing import Final

from emulator.isa.arm.row import (
    A32,
    BEHAVIOUR,
    BOTH,
    CALL,
    CONTROL,
    DIFFERS,
    IGNORED,
    INLINE,
    LEAKS,
    TRAP,
    TRAPS,
    UNPREDICTABLE,
    conditional,
    row,
)
from emulator.isa.operation import Operation
from emulator.isa.sensitive import Pattern, SensitiveInstruction

BAD_MODES: Final = tuple((0x1F, mode) for mode in (0x14, 0x15, 0x18, 0x19, 0x1C, 0x1D, 0x1E))
"""Exceptions: mode fields with bit 4 set that name no mode."""
_NO_FLAGS: Final = (0x1C0, 0)
"""Exception: CPS that names none of A, I and F."""
_PC_M: Final = 0xF
AS_USER: Final = (
    "The access is checked as one of user mode: a deprivileged kernel's own pages are user pages to the processor."
)
CONDITION_AS_USER: Final = "the page is the guest kernel's own, and mapped for user mode by a hypervisor"

DATA_PROCESSING: Final[tuple[tuple[str, int, bool], ...]] = (
    ("ANDS", 0, True),
    ("EORS", 1, True),
    ("SUBS", 2, True),
    ("RSBS", 3, True),
    ("ADDS", 4, True),
    ("ADCS", 5, True),
    ("SBCS", 6, True),
    ("RSCS", 7, True),
    ("ORRS", 12, True),
    ("MOVS", 13, False),
    ("BICS", 14, True),
    ("MVNS", 15, False),
)
"""Data processing that returns from an exception when its destination is PC: mnemonic, opcode, whether it has Rn."""

UNPRIVILEGED_ACCESSES: Final[tuple[tuple[str, bool, bool, int, int, int], ...]] = (
    # name, load, word or byte, value of the immediate form, of the register form, bits of the access
    ("LDRT", True, True, 0x0430_0000, 0x0630_0000, 32),
    ("LDRBT", True, True, 0x0470_0000, 0x0670_0000, 8),
    ("STRT", False, True, 0x0420_0000, 0x0620_0000, 32),
    ("STRBT", False, True, 0x0460_0000, 0x0660_0000, 8),
    ("LDRHT", True, False, 0x0070_00B0, 0x0030_00B0, 16),
    ("LDRSBT", True, False, 0x0070_00D0, 0x0030_00D0, 8),
    ("LDRSHT", True, False, 0x0070_00F0, 0x0030_00F0, 16),
    ("STRHT", False, False, 0x0060_00B0, 0x0020_00B0, 16),
)
MANUAL_OF_ACCESS: Final = {
    "LDRT": "A8.8.92",
    "LDRBT": "A8.8.71",
    "STRT": "A8.8.220",
    "STRBT": "A8.8.209",
    "LDRHT": "A8.8.84",
    "LDRSBT": "A8.8.88",
    "LDRSHT": "A8.8.91",
    "STRHT": "A8.8.219",
}


def _cps() -> tuple[SensitiveInstruction, ...]:
    manual = "B9.3.2"

    def flags(imod: int) -> tuple[Pattern, ...]:
        base = 0xF100_0000 | imod << 18
        return (
            Pattern(0xFFFF_FE3F, base, (_NO_FLAGS,)),
            Pattern(0xFFFF_FE30, base | 1 << 17 | 0x10, (_NO_FLAGS, *BAD_MODES)),
        )

    return (
        row("CPSIE", flags(2), A32, IGNORED, CONTROL, Operation.ENABLE_INTERRUPTS, INLINE, "cpsie i", manual),
        row("CPSID", flags(3), A32, IGNORED, CONTROL, Operation.DISABLE_INTERRUPTS, INLINE, "cpsid i", manual),
        row(
            "CPS",
            (Pattern(0xFFFF_FFF0, 0xF102_0010, BAD_MODES),),
            A32,
            IGNORED,
            CONTROL,
            Operation.CHANGE_MODE,
            CALL,
            "cps #31",
            manual,
            note="The mode alone.",
        ),
    )


def _status() -> tuple[SensitiveInstruction, ...]:
    """MRS and MSR."""
    no_pc = ((_PC_M, 0xF),)
    ignored = (
        "In user mode the control, mode and mask bits of the written value are dropped. A write of the flags alone, "
        "which is MSR APSR, is innocuous."
    )

    def masked(base: int, mask: int) -> tuple[Pattern, ...]:
        """Patterns for a write whose field mask names c, or x without c."""
        unless = no_pc if mask & 0xFF0 else ()
        return (
            conditional(mask | 1 << 16, base | 1 << 16, unless),
            conditional(mask | 3 << 16, base | 1 << 17, unless),
        )

    banked = "a banked register by its mode"
    return (
        row(
            "MRS CPSR",
            (conditional(0x0FFF_0FFF, 0x010F_0000, ((0xF000, 0xF000),)),),
            A32,
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
            (conditional(0x0FFF_0FFF, 0x014F_0000, ((0xF000, 0xF000),)),),
            A32,
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
            (*masked(0x0120_F000, 0x0FF0_FFF0), *masked(0x0320_F000, 0x0FF0_F000)),
            A32,
            IGNORED,
            CONTROL,
            Operation.WRITE_FLAGS,
            INLINE,
            "msr cpsr_c, r0",
            "B9.3.11, B9.3.12",
            note=ignored,
        ),
        row(
            "MSR SPSR",
            (
                conditional(0x0FF0_FFF0, 0x0160_F000, (*no_pc, (0x000F_0000, 0))),
                conditional(0x0FF0_F000, 0x0360_F000, ((0x000F_0000, 0),)),
            ),
            A32,
            DIFFERS,
            CONTROL,
            Operation.WRITE_SAVED_STATUS,
            CALL,
            "msr spsr_fsxc, r0",
            "B9.3.11, B9.3.12",
            note=UNPREDICTABLE,
        ),
        row(
            "MRS banked",
            (conditional(0x0FB0_0EFF, 0x0100_0200, ((0xF000, 0xF000),)),),
            A32,
            DIFFERS,
            BEHAVIOUR,
            Operation.READ_BANKED_REGISTER,
            CALL,
            ".inst 0xe1050200",
            "B9.3.9",
            note=f"Reads {banked}; with the virtualisation extensions. {UNPREDICTABLE}",
        ),
        row(
            "MSR banked",
            (conditional(0x0FB0_FEF0, 0x0120_F200, no_pc),),
            A32,
            DIFFERS,
            CONTROL,
            Operation.WRITE_BANKED_REGISTER,
            CALL,
            ".inst 0xe125f200",
            "B9.3.10",
            note=f"Writes {banked}; with the virtualisation extensions. {UNPREDICTABLE}",
        ),
    )


def _state_transfers() -> tuple[SensitiveInstruction, ...]:
    """RFE, SRS and the LDM and STM with ^."""
    no_base = (0x000F_0000, 0x000F_0000)
    returns = "Also in a mode without SPSR."
    return (
        row(
            "RFE",
            (Pattern(0xFE50_FFFF, 0xF810_0A00, (no_base,)),),
            A32,
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
            (Pattern(0xFE5F_FFF0, 0xF84D_0510, BAD_MODES),),
            A32,
            DIFFERS,
            BEHAVIOUR,
            Operation.SAVE_EXCEPTION_STATE,
            CALL,
            "srsia sp!, #19",
            "B9.3.16",
            note=UNPREDICTABLE,
        ),
        row(
            "LDM exception return",
            (conditional(0x0E50_8000, 0x0850_8000, (no_base,)),),
            A32,
            DIFFERS,
            BOTH,
            Operation.RETURN_FROM_EXCEPTION,
            CALL,
            "ldm r0, {r1, pc}^",
            "B9.3.5",
            note=f"LDM (3) of Dall and Nieh. {UNPREDICTABLE} {returns}",
        ),
        row(
            "LDM user registers",
            (conditional(0x0E70_8000, 0x0850_0000, (no_base, (0x7FFF, 0))),),
            A32,
            DIFFERS,
            BOTH,
            Operation.LOAD_USER_REGISTERS,
            CALL,
            "ldm r0, {sp, lr}^",
            "B9.3.6",
            note=f"LDM (2) of Dall and Nieh. {UNPREDICTABLE}",
        ),
        row(
            "STM user registers",
            (conditional(0x0E70_0000, 0x0840_0000, (no_base, (0xFFFF, 0))),),
            A32,
            DIFFERS,
            BEHAVIOUR,
            Operation.STORE_USER_REGISTERS,
            CALL,
            "stm r0, {sp, lr}^",
            "B9.3.17",
            note=f"STM (2) of Dall and Nieh. {UNPREDICTABLE}",
        ),
        row(
            "ERET",
            (conditional(0x0FFF_FFFF, 0x0160_006E),),
            A32,
            DIFFERS,
            CONTROL,
            Operation.RETURN_FROM_EXCEPTION,
            CALL,
            ".inst 0xe160006e",
            "B9.3.3",
            note=f"With the virtualisation extensions. {UNPREDICTABLE}",
        ),
    )


def _unprivileged_accesses() -> tuple[SensitiveInstruction, ...]:
    rows = []
    for name, _, plain, immediate, register, _ in UNPRIVILEGED_ACCESSES:
        no_pc = ((0x000F_0000, 0x000F_0000), (0xF000, 0xF000))
        if plain:
            patterns = (
                conditional(0x0F70_0000, immediate, no_pc),
                conditional(0x0F70_0010, register, (*no_pc, (_PC_M, 0xF))),
            )
        else:
            patterns = (
                conditional(0x0F70_00F0, immediate, no_pc),
                conditional(0x0F70_0FF0, register, (*no_pc, (_PC_M, 0xF))),
            )
        rows.append(
            row(
                name,
                patterns,
                A32,
                DIFFERS,
                BEHAVIOUR,
                Operation.ACCESS_AS_USER,
                INLINE,
                f"{name.lower()} r0, [r1], #4" if plain else f"{name.lower()} r0, [r1], #2",
                MANUAL_OF_ACCESS[name],
                CONDITION_AS_USER,
                AS_USER,
            )
        )
    return tuple(rows)


def _example_into_pc(name: str, has_base: bool) -> str:
    if name == "SUBS":
        return "subs pc, lr, #4"
    return f"{name.lower()} pc, r2, r3" if has_base else f"{name.lower()} pc, lr"


def _into_pc() -> tuple[SensitiveInstruction, ...]:
    rows = []
    for name, opcode, has_base in DATA_PROCESSING:
        value = 0x0010_F000 | opcode << 21
        base = 0 if has_base else 0x000F_0000
        rows.append(
            row(
                f"{name} PC",
                (
                    conditional(0x0FF0_F010 | base, value),
                    conditional(0x0FF0_F000 | base, value | 0x0200_0000),
                ),
                A32,
                DIFFERS,
                CONTROL,
                Operation.RETURN_FROM_EXCEPTION,
                CALL,
                _example_into_pc(name, has_base),
                "B9.3.20",
                note=UNPREDICTABLE,
            )
        )
    return tuple(rows)


def _entering() -> tuple[SensitiveInstruction, ...]:
    """Calls, breakpoints, hints."""
    return (
        row(
            "SVC",
            (conditional(0x0F00_0000, 0x0F00_0000),),
            A32,
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
            (conditional(0x0FF0_00F0, 0x0140_0070),),
            A32,
            TRAPS,
            BOTH,
            Operation.ENTER_HYPERVISOR,
            TRAP,
            ".inst 0xe1400070",
            "B9.3.4",
            note="Undefined in user mode; a call of PSCI in a guest kernel.",
        ),
        row(
            "SMC",
            (conditional(0x0FFF_FFF0, 0x0160_0070),),
            A32,
            TRAPS,
            BOTH,
            Operation.CALL_SECURE_MONITOR,
            TRAP,
            ".inst 0xe1600070",
            "B9.3.14",
            note="Undefined in user mode.",
        ),
        row(
            "BKPT",
            (Pattern(0xFFF0_00F0, 0xE120_0070),),
            A32,
            TRAPS,
            BOTH,
            Operation.BREAKPOINT,
            TRAP,
            "bkpt #0",
            "A8.8.24",
            note="A prefetch abort with the status of a debug event.",
        ),
        row(
            "UDF",
            (Pattern(0xFFF0_00F0, 0xE7F0_00F0),),
            A32,
            TRAPS,
            CONTROL,
            Operation.RAISE_UNDEFINED,
            TRAP,
            ".inst 0xe7f000f0",
            "A8.8.247",
            note="The guest's own; the trap that a hypervisor plants is of this form too.",
        ),
        row(
            "WFI",
            (conditional(0x0FFF_FFFF, 0x0320_F003),),
            A32,
            LEAKS,
            CONTROL,
            Operation.HALT,
            CALL,
            "wfi",
            "A8.8.425",
            note="Waits without asking.",
        ),
        row(
            "WFE",
            (conditional(0x0FFF_FFFF, 0x0320_F002),),
            A32,
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
            (Pattern(0xFFFF_FDFF, 0xF101_0000),),
            A32,
            LEAKS,
            CONTROL,
            Operation.SET_ENDIANNESS,
            INLINE,
            "setend le",
            "A8.8.165",
            note="Changes CPSR.E in every mode; a virtual processor must take the bit from the real one.",
        ),
    )


A32_ROWS: Final[tuple[SensitiveInstruction, ...]] = (
    _cps() + _status() + _state_transfers() + _unprivileged_accesses() + _into_pc() + _entering()
)
