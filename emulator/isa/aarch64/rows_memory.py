"""Rows of the unprivileged loads and stores, and what is sensitive only by what it touches.

Room: `emulator/isa/aarch64`, data about the instruction set. LDTR and STTR at EL1 are checked as EL0's accesses; at
EL0 they are plain accesses, so a kernel that runs there loses its check of user pointers.
"""

from typing import Final

from emulator.isa.aarch64 import row as r
from emulator.isa.operation import Operation
from emulator.isa.sensitive import ContextSensitive, Pattern, SensitiveInstruction

UNPRIVILEGED_MASK: Final = 0xFFE0_0C00


def _row(name: str, values: tuple[int, ...], example: str) -> SensitiveInstruction:
    return r.row(
        name,
        tuple(Pattern(UNPRIVILEGED_MASK, value) for value in values),
        r.DIFFERS,
        r.BEHAVIOUR,
        Operation.ACCESS_AS_USER,
        r.INLINE,
        example,
        f"C6.2 ({name})",
        "PSTATE.UAO = 0 at EL1",
        "at EL1 checked as an access of EL0; at EL0 a plain access",
    )


UNPRIVILEGED_ROWS: Final[tuple[SensitiveInstruction, ...]] = (
    _row("LDTR", (0xB840_0800, 0xF840_0800), "ldtr x0, [x1]"),
    _row("LDTRB", (0x3840_0800,), "ldtrb w0, [x1]"),
    _row("LDTRH", (0x7840_0800,), "ldtrh w0, [x1]"),
    _row("LDTRSB", (0x3880_0800, 0x38C0_0800), "ldtrsb x0, [x1]"),
    _row("LDTRSH", (0x7880_0800, 0x78C0_0800), "ldtrsh x0, [x1]"),
    _row("LDTRSW", (0xB880_0800,), "ldtrsw x0, [x1]"),
    _row("STTR", (0xB800_0800, 0xF800_0800), "sttr x0, [x1]"),
    _row("STTRB", (0x3800_0800,), "sttrb w0, [x1]"),
    _row("STTRH", (0x7800_0800,), "sttrh w0, [x1]"),
)

CONTEXTS: Final[tuple[ContextSensitive, ...]] = (
    ContextSensitive(
        "a store to a translation table",
        "any store, and DC ZVA",
        "its address is in a table that TTBR0_EL1 or TTBR1_EL1 leads to",
        "shadow tables follow at the guest's TLBI, which the architecture requires after a change",
        "DDI 0487, D8.13",
    ),
    ContextSensitive(
        "a store to code",
        "any store",
        "its bytes have been or will be executed at EL1",
        "an executed page is not writable; a page that was written is scanned again",
        "DDI 0487, B2.4.4",
    ),
    ContextSensitive(
        "a load from rewritten code",
        "any load, LDR (literal) included",
        "its bytes were patched",
        "pages that hold patches can be executed and not read at EL0; the load is given the guest's own bytes",
        "DDI 0487, D8.4",
    ),
    ContextSensitive(
        "an access to a device",
        "any load or store",
        "its address is no memory",
        "device pages are never mapped: each access exits",
        "DDI 0487, B2.10",
    ),
    ContextSensitive(
        "floating point and SIMD",
        "every instruction on V registers, FPCR or FPSR",
        "CPACR_EL1.FPEN traps them",
        "the registers are the guest's own; the engine asks the guest's CPACR_EL1, a word of the shared page",
        "DDI 0487, D19.2 (CPACR_EL1)",
    ),
    ContextSensitive(
        "an exclusive access",
        "STXR and its like",
        "an exception was taken or returned from since its load",
        "ERET clears the local monitor: the hypervisor does the same when it returns to the guest",
        "DDI 0487, B2.12",
    ),
)
