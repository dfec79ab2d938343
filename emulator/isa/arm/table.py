"""The sensitive-instruction table of ARMv7-A: every sensitive and privileged instruction of A32 and of T32.

Room: `emulator/isa/arm`, data about the instruction set; knows of no engine and no hypervisor. A table a state,
since a word means one thing in A32 and another in T32; `ROWS` has both, as they are printed.
"""

from __future__ import annotations

from typing import Final

from emulator.isa.arm.row import A32, T32
from emulator.isa.arm.rows_a32 import A32_ROWS
from emulator.isa.arm.rows_coprocessor import coprocessor_rows
from emulator.isa.arm.rows_t32 import T32_ROWS
from emulator.isa.operation import Operation
from emulator.isa.patterns import PatternTable
from emulator.isa.sensitive import ContextSensitive, Patterns, SensitiveInstruction, UserBehaviour

A32_TABLE: Final = PatternTable(A32_ROWS + coprocessor_rows(A32))
"""The rows that A32 words match."""
T32_TABLE: Final = PatternTable(T32_ROWS + coprocessor_rows(T32))
"""The rows that T32 instructions match, of 2 and of 4 bytes."""
TABLES: Final = {A32: A32_TABLE, T32: T32_TABLE}

ROWS: Final[tuple[SensitiveInstruction, ...]] = A32_TABLE.rows + T32_TABLE.rows
"""Both, in the order in which they are printed."""

ROW_OF_NAME: Final[dict[str, SensitiveInstruction]] = {row.name: row for row in ROWS}
"""The row of a name; names of T32 rows end in "(T32)"."""

NATIVE: Final = frozenset({Operation.SET_ENDIANNESS})
"""What may run natively although it does not trap: the virtual processor takes CPSR.E from the real one."""
KEPT: Final = frozenset({"MRC TPIDRURO"})
"""What may run as it stands, since the register holds the guest's own value unless a rewriter has exchanged it."""

CONTEXTS: Final[tuple[ContextSensitive, ...]] = (
    ContextSensitive(
        "a store to a translation table",
        "every store",
        "the address is in a table that TTBR0 or TTBR1 leads to",
        "the hypervisor's own tables are walked; a change is looked for where the architecture wants TLB maintenance",
        "ARM B3.10.1",
    ),
    ContextSensitive(
        "a store to instructions",
        "every store",
        "the address is executed from, now or later",
        "no page is writable and executable in the kernel's view",
        "ARM A3.5.4",
    ),
    ContextSensitive(
        "an access to a device's registers",
        "every load and store",
        "the address is translated to no memory",
        "the page is the machine's device space, where an access exits",
        "ARM A3.5.5",
    ),
    ContextSensitive(
        "an access that is not aligned",
        "every load and store",
        "SCTLR.A is set, or the instruction always demands alignment",
        "the real SCTLR.A is the guest's",
        "ARM A3.2.1",
    ),
    ContextSensitive(
        "a store-exclusive behind an exception",
        "STREX, STREXB, STREXH, STREXD",
        "an exception return came between it and its load",
        "a return from an exception clears the real monitor",
        "ARM A3.4.5",
    ),
    ContextSensitive(
        "floating point while it is switched off",
        "VFP and Advanced SIMD instructions",
        "FPEXC.EN or the rights in CPACR are clear",
        "the engine asks the guest's FPEXC and CPACR, words of the shared page, so it is undefined as it must be",
        "ARM B1.11",
    ),
)
"""What is sensitive by its operands only, so that no pattern shows it."""


def encodings(row: SensitiveInstruction) -> list[str]:
    """The encodings of a row for people: mask and value, exceptions counted."""
    assert isinstance(row.match, Patterns)
    lines = []
    for pattern in row.match.patterns:
        width = 2 * pattern.size
        text = f"{row.match.state}: word & {pattern.mask:0{width}x} = {pattern.value:0{width}x}"
        exceptions = [pair for pair in pattern.unless if pair != (0xF000_0000, 0xF000_0000)]
        if len(exceptions) < len(pattern.unless):
            text += ", condition not 1111"
        if exceptions:
            text += f", {len(exceptions)} exceptions"
        lines.append(text)
    return lines


def planted(row: SensitiveInstruction) -> bool:
    """Whether a row needs a planted trap, because it does not trap by itself in user mode by the manual."""
    name = row.name.removesuffix(" (T32)")
    return row.at_user_level is not UserBehaviour.TRAPS and row.operation not in NATIVE and name not in KEPT


def instruction(halfword: int, second: int) -> tuple[int, int]:
    """A T32 instruction from its first halfword and the one behind it: its word and its size in bytes (ARM A6.1)."""
    if halfword >> 11 in (0b11101, 0b11110, 0b11111):
        return halfword << 16 | second, 4
    return halfword, 2
