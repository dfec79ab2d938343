"""The descriptors of AArch64's 4 KiB granule, where the processor walks the guest's own tables.

Room: `emulator/isa/aarch64` (DDI 0487, D8.3). Two bits are refused because they give more than an entry says: dirty
bit modifier (the processor itself makes a read-only page writable) and contiguous (one entry stands for sixteen).
"""

from __future__ import annotations

from typing import Final

from emulator.isa.aarch64 import paging as p
from emulator.isa.entries import EntryFormat, EntryLevel

_DIRTY_MODIFIER, _CONTIGUOUS = 1 << 51, 1 << 52
_TOO_FAR: Final = 0x000F_0000_0000_0000 & ~_DIRTY_MODIFIER
"""Address bits that a 48-bit output has not."""


def _level(shift: int, memory: int, table: int) -> EntryLevel:
    inside = ((1 << shift) - 1) & p.FRAME_MASK
    return EntryLevel(
        shift=shift,
        entries=512,
        present=p.VALID,
        kind_mask=p.VALID | p.TABLE,
        table=table,
        memory=memory,
        forbidden=_TOO_FAR,
        memory_forbidden=_DIRTY_MODIFIER | _CONTIGUOUS | inside,
        table_address=p.FRAME_MASK,
        memory_address=p.FRAME_MASK & ~inside,
        write=(p.READ_ONLY, 0),
        execute=(p.USER_NO_EXECUTE, 0),
        closed=(p.TABLE_READ_ONLY, p.TABLE_READ_ONLY),
        marks=p.ACCESSED,
    )


GRANULE_4K: Final = EntryFormat(
    "aarch64",
    8,
    (
        _level(12, p.VALID | p.TABLE, -1),
        _level(21, p.VALID, p.VALID | p.TABLE),
        _level(30, p.VALID, p.VALID | p.TABLE),
        _level(39, -1, p.VALID | p.TABLE),
    ),
)
"""Four levels, for each of the two roots."""
