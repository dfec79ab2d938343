"""The descriptors of AArch64's 4 KiB granule, where the processor walks the guest's own tables.

Room: `emulator/isa/aarch64` (DDI 0487, D8.3). A guest's kernel runs at EL0, so every page is open to EL0, and what its
kernel may execute EL0 may. Some bits are refused because they give more than an entry says: dirty bit modifier (the
processor itself makes a read-only page writable), contiguous (one entry stands for sixteen), and the other world's.
"""

from __future__ import annotations

from typing import Final

from emulator.isa.aarch64 import paging as p
from emulator.isa.entries import EntryFormat, EntryLevel

_DIRTY_MODIFIER, _CONTIGUOUS = 1 << 51, 1 << 52
_TOO_FAR: Final = 0x000F_0000_0000_0000 & ~_DIRTY_MODIFIER
"""Address bits that a 48-bit output has not."""
_NON_SECURE: Final = 1 << 63 | 1 << 5
"""Of what lies below a table, and of a page."""
_KEPT: Final = 49
"""The user bit is kept at 55; the two below are software's as well."""
_WAS_KERNELS: Final = 1 << 56
"""A page that user code may not execute, and the kernel may."""
_WAS_HIDDEN: Final = 1 << 57
"""A table under which user code may have nothing (APTable); a root alone can say that."""
_NO_EXECUTE: Final = p.PRIVILEGED_NO_EXECUTE | p.USER_NO_EXECUTE


def _level(shift: int, memory: int, table: int) -> EntryLevel:
    inside = ((1 << shift) - 1) & p.FRAME_MASK
    opened = (_NO_EXECUTE, p.USER_NO_EXECUTE, p.USER_NO_EXECUTE | _WAS_KERNELS)
    root = memory < 0
    shown = (p.TABLE_NO_USER, p.TABLE_NO_USER, p.TABLE_NO_USER | _WAS_HIDDEN)
    return EntryLevel(
        shift=shift,
        entries=512,
        present=p.VALID,
        kind_mask=p.VALID | p.TABLE,
        table=table,
        memory=memory,
        forbidden=_TOO_FAR | _NON_SECURE | _DIRTY_MODIFIER | _CONTIGUOUS,
        memory_forbidden=inside,
        table_forbidden=p.TABLE_NO_EXECUTE | p.TABLE_NO_PRIVILEGED_EXECUTE | (0 if root else p.TABLE_NO_USER),
        table_address=p.FRAME_MASK,
        memory_address=p.FRAME_MASK & ~inside,
        write=(p.READ_ONLY, 0),
        execute=(p.USER_NO_EXECUTE, 0),
        closed=(p.TABLE_READ_ONLY, p.TABLE_READ_ONLY),
        marks=p.ACCESSED,
        imposed=p.USER,
        exchanged=(opened, shown) if root else (opened,),
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
    kept=_KEPT,
    reserved=range(448, 456),
    user=(_WAS_HIDDEN, 0),
)
"""Four levels, for each of the two roots. What a root's entry hides from user code the kernel has all the same: the
hypervisor leaves it out of user code's root. In the upper half, the reserved slots are ffffe00000000000 and what
follows, up to ffffe3ffffffffff."""
