"""A furnished room for one instruction: translation tables, code, data and a landing place, by identity.

Room: `emulator/isa/aarch64`. The proofs and the tests of engines run single instructions here, at EL1 and at EL0.
"""

from typing import Final

BASE: Final = 0x4000_0000
"""Physical and virtual address of the room."""
ROOM_SIZE: Final = 0x1_0000
ROOT: Final = BASE
"""The table of TTBR0_EL1: 39-bit addresses, three levels of 4 KiB."""
CODE: Final = BASE + 0x4000
"""Executable at both levels, writable at none."""
DATA: Final = BASE + 0x5000
"""Readable and writable at both levels."""
KERNEL_DATA: Final = BASE + 0x6000
"""Readable and writable at EL1 alone."""
READ_ONLY: Final = BASE + 0x7000
"""Readable at both levels."""
STACK: Final = BASE + 0x8F00
LAND: Final = CODE + 0x800
"""Where an exception return goes."""
UNMAPPED: Final = BASE + 0x20_0000

TCR: Final = 25 | 1 << 23 | 1 << 32
"""T0SZ for 39-bit addresses, EPD1 (no upper half), 36-bit physical addresses."""
MAIR: Final = 0xFF
"""Attribute 0: normal memory, write-back."""
SCTLR: Final = 0x30D0_0801
"""MMU on, and the bits that are one; UMA, UCT, UCI, DZE, nTWI and nTWE clear, so that all of these trap at EL0."""

_PAGE: Final = 0x703
"""Valid page, accessed, inner shareable, attribute 0."""
_USER, _READ_ONLY, _NO_EXECUTE = 1 << 6, 1 << 7, 3 << 53
DONE: Final = 0xD420_0EE0
"""BRK #0x77: execution came here."""


def furnish(memory: memoryview, code: bytes) -> None:
    """Write tables, `code` at CODE with DONE behind it, and DONE at LAND into ROOM_SIZE bytes."""
    words = memory.cast("Q")
    words[(ROOT - BASE >> 3) + (BASE >> 30)] = ROOT + 0x1000 | 3
    words[(ROOT + 0x1000 - BASE >> 3) + (BASE >> 21 & 511)] = ROOT + 0x2000 | 3
    rights = {
        CODE: _USER | _READ_ONLY,
        DATA: _USER | _NO_EXECUTE,
        KERNEL_DATA: _NO_EXECUTE,
        READ_ONLY: _USER | _READ_ONLY | _NO_EXECUTE,
        STACK & ~0xFFF: _USER | _NO_EXECUTE,
    }
    for page, right in rights.items():
        words[(ROOT + 0x2000 - BASE >> 3) + (page >> 12 & 511)] = page | _PAGE | right
    done = DONE.to_bytes(4, "little")
    text = code + done
    memory[CODE - BASE : CODE - BASE + len(text)] = text
    memory[LAND - BASE : LAND - BASE + 4] = done
