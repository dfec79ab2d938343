"""The entries of x86's page tables, where the processor walks the guest's own: long mode, PAE, and 32-bit entries.

Room: `emulator/isa/x86` (Intel SDM 3A 4.3-4.5). Bits 52 to 58 are software's; the two at which the guest's own user and
global bits are kept are the hypervisor's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from emulator.isa.entries import EntryFormat, EntryLevel
from emulator.isa.x86 import walk as w

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KEPT: Final = 50
"""The user bit is kept at 52, the global bit at 58."""
_GIB, _MIB2, _MIB4 = 0x3FFF_E000, 0x1F_E000, 0x3F_E000
"""Address bits inside a large page, but for bit 12, which is a memory type there."""


def descriptors_allowed(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Of 8-byte descriptors: absent ones, and segments of code and data at privilege level 3. No gates, no tasks."""
    import numpy as np

    present = words >> np.uint64(47) & np.uint64(1) == 0
    segment = words >> np.uint64(44) & np.uint64(7) == 7
    allowed: NDArray[np.bool_] = present | segment
    return allowed


def _level(shift: int, large: int, memory: bool, table: bool, forbidden: int = 0) -> EntryLevel:
    """Entries of 64 bits. `large`: reserved address bits of a large page."""
    pages = shift == 12
    return EntryLevel(
        shift=shift,
        entries=512,
        present=w.PRESENT,
        kind_mask=w.PRESENT if pages else w.PRESENT | w.LARGE,
        table=w.PRESENT if table else -1,
        memory=(w.PRESENT if pages else w.PRESENT | w.LARGE) if memory else -1,
        forbidden=forbidden,
        memory_forbidden=large,
        table_address=w.FRAME_MASK,
        memory_address=w.FRAME_MASK & ~(0 if pages else (1 << shift) - 1),
        write=(w.WRITABLE, w.WRITABLE),
        execute=(w.NO_EXECUTE, 0),
        closed=(w.WRITABLE, 0),
        marks=w.ACCESSED | w.DIRTY,
        imposed=w.USER,
        stripped=w.GLOBAL if memory else 0,
    )


_LONG: Final = (
    _level(12, 0, True, False),
    _level(21, _MIB2, True, True),
    _level(30, _GIB, True, True),
    _level(39, 0, False, True),
)
LONG_MODE: Final = EntryFormat(
    "x86-64",
    8,
    _LONG,
    kept=_KEPT,
    reserved=range(256, 272),
    user=(w.USER << _KEPT, w.USER << _KEPT),
    descriptors=descriptors_allowed,
)
"""Four levels. The kernel of a guest whose table is walked runs at level 3, so every page has the user bit; no page is
global, since kernel and user code differ in their roots. The reserved slots are those that Linux leaves to a hypervisor
(ffff800000000000 to ffff87ffffffffff)."""

LONG_MODE_PLAIN: Final = replace(LONG_MODE, kept=0, levels=tuple(replace(level, stripped=0) for level in _LONG))
"""The same for a guest that knows which bits are imposed and has bits 52 to 62 for itself."""

_ABOVE: Final = 0x7FF0_0000_0000_0000 & ~((w.USER | w.GLOBAL) << _KEPT)
"""Bits that are reserved: the two at which the guest's own are kept are refused it all the same."""
PAE: Final = EntryFormat(
    "i386 PAE",
    8,
    (
        _level(12, 0, True, False, _ABOVE),
        _level(21, _MIB2, True, True, _ABOVE),
        EntryLevel(
            shift=30,
            entries=4,
            present=w.PRESENT,
            kind_mask=w.PRESENT,
            table=w.PRESENT,
            memory=-1,
            forbidden=0xFFF0_0000_0000_01E6,
            table_address=w.FRAME_MASK,
        ),
    ),
    kept=_KEPT,
    descriptors=descriptors_allowed,
)
"""Three levels; the four entries of the root have no rights, and no software bits. The lower two are walked in long
mode, for whose processor the reserved bits are software's."""


def _short(shift: int, large: int, table: bool) -> EntryLevel:
    pages = shift == 12
    return EntryLevel(
        shift=shift,
        entries=1024,
        present=w.PRESENT,
        kind_mask=w.PRESENT if pages else w.PRESENT | w.LARGE,
        table=w.PRESENT if table else -1,
        memory=w.PRESENT if pages else w.PRESENT | w.LARGE,
        forbidden=0,
        memory_forbidden=large,
        table_address=0xFFFF_F000,
        memory_address=0xFFFF_F000 if pages else 0xFFC0_0000,
        write=(w.WRITABLE, w.WRITABLE),
        closed=(w.WRITABLE, 0),
        marks=w.ACCESSED | w.DIRTY,
        imposed=w.USER,
        stripped=w.GLOBAL,
    )


LEGACY: Final = EntryFormat("i386", 4, (_short(12, 0, False), _short(22, _MIB4, True)), descriptors=descriptors_allowed)
"""Two levels of 32-bit entries; a large page lies below 4 GiB."""

ENTRY_FORMATS: Final = {form.name: form for form in (LONG_MODE, PAE, LEGACY)}
"""By name."""
