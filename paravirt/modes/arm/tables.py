"""Second-level shadow tables of ARMv7-A: one for each of the guest's (or each section) in one view, filled ahead.

Room: `paravirt/modes/arm`. They lie in one pool, behind the first-level tables of `spaces`, and are shared by all
address spaces that link them. In the kernel's view a table belongs to one place in virtual memory: code executes there
from copies, which hold where they were made for. As with a TLB, nothing is noticed when the guest edits its tables.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Final

import numpy as np

from emulator.engine.arm import ArmEngine
from emulator.isa.arm.paging import SCTLR_AFE, WRITE, TranslationContext, Walk, Walker, small_rights
from paravirt import layout
from paravirt.mmu.views import KERNEL_VIEW, PLAIN, USER_VIEW

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOTS: Final = 192
"""First-level tables that the pool has room for, at its beginning."""
SECOND: Final = (layout.ARMV7.tables_size - (ROOTS << 14)) >> 10
"""Second-level tables, behind them."""
PAGE_MASK: Final = 0xFFFF_F000

# A small page of normal, cacheable memory (TEX 001, C, B), shareable; every access flag set.
SMALL: Final = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 10
NEVER: Final = 1
"""XN of a small page."""
READ_ONLY: Final = 2 << 4
"""AP for user mode: read only."""
READ_WRITE: Final = 3 << 4
AP: Final = 3 << 4


def _prefill_lookup(simple: bool, user: bool) -> NDArray[np.uint32]:
    """For the 12 low bits of a guest's small-page descriptor: the low bits of the shadow's data mapping, or 0."""
    table = np.zeros(4096, dtype=np.uint32)
    for low in range(4096):
        if not low & 2 or (simple and not low & 1 << 4):
            continue
        kernel, other = small_rights(low, simple)
        rights = other if user else kernel
        if rights & 1:
            table[low] = SMALL | NEVER | (READ_WRITE if rights & WRITE else READ_ONLY)
    return table


class ArmTables:
    """The pool of shadow tables, and its second-level tables."""

    def __init__(self, engine: ArmEngine, memory: memoryview, base: int, context: TranslationContext) -> None:
        """`memory` begins at guest-physical `base`."""
        self._engine = engine
        self._base = base
        self._frames = memory.nbytes >> 12
        self.context = context
        self.walker = Walker(memory.cast("I"), base, context)
        self._guest = np.frombuffer(memory, dtype=np.uint32)
        self._guest_address = self._guest.ctypes.data
        self.pool = mmap.mmap(-1, layout.ARMV7.tables_size)
        self._words = memoryview(self.pool).cast("I")
        self._shadow = np.frombuffer(self.pool, dtype=np.uint32)
        self._second_words = self._shadow[ROOTS << 12 :].reshape(-1, 256)
        self._seen = np.zeros((SECOND, 256), dtype=np.uint32)
        """Of every second-level table: the guest's descriptors when they were last looked at."""
        self._seen_address = self._seen.ctypes.data
        self._compare = ctypes.CDLL(None).memcmp
        self._compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._lookup = {
            (simple, view): _prefill_lookup(simple, view == USER_VIEW)
            for simple in (False, True)
            for view in (KERNEL_VIEW, USER_VIEW)
        }
        self._offsets = np.arange(256, dtype=np.uint32) << np.uint32(12)
        self.kind = np.zeros(self._frames, dtype=np.uint8)
        self.prefilled = 0
        self._tables: dict[tuple[int, int, int], int] = {}
        self._sources: list[int] = []
        """Of every second-level table: guest-physical address of the guest's, or -1."""
        self._limits: list[int] = []
        """Of every second-level table: offset of the first page that the kernel alone may touch, or its span."""

    def _second(self, walk: Walk, view: int) -> int:
        """The second-level shadow table for what a first-level descriptor says."""
        # Copies of the kernel's code hold where it lies: two places of one frame have tables of their own.
        place = walk.address >> 20 if view == KERNEL_VIEW else -1
        if walk.descriptor < 0:
            key = (-1 - (walk.address >> 20), view, place)
        elif walk.second >= 0:
            key = (walk.descriptor & 0xFFFF_FFFC | (1 if self.context.sctlr & SCTLR_AFE else 0) | 2, view, place)
        else:
            key = (walk.descriptor << 32 | walk.physical & 0xFFF0_0000, view, place)
        table = self._tables.get(key)
        if table is not None:
            if self._sources[table] >= 0:
                self._revalidate_second(table)
            return table
        table = len(self._sources)
        self._tables[key] = table
        source = walk.descriptor & 0xFFFF_FC00 if walk.second >= 0 else -1
        self._sources.append(source)
        self._limits.append(0x10_0000)
        if source >= 0:
            self._prefill(table, source, view)
        else:
            self._prefill_section(table, walk, view)
        return table

    def _prefill(self, table: int, source: int, view: int) -> None:
        """Enter all plain pages of a guest's second-level table, without the right to execute."""
        at = source - self._base >> 2
        guest = self._guest[at : at + 256]
        self._seen[table] = guest
        simple = self.context.sctlr & SCTLR_AFE != 0
        low = self._lookup[simple, view][guest & np.uint32(0xFFF)]
        if view == KERNEL_VIEW:
            alone = np.flatnonzero(low != self._lookup[simple, USER_VIEW][guest & np.uint32(0xFFF)])
            self._limits[table] = int(alone[0]) << 12 if len(alone) else 0x10_0000
        frames = (guest >> np.uint32(12)).astype(np.int64) - (self._base >> 12)
        usable = (low != 0) & (frames >= 0) & (frames < self._frames)
        places = np.flatnonzero(usable)
        entries = (guest & np.uint32(PAGE_MASK))[places] | low[places]
        code = self.kind[frames[places]] != PLAIN
        entries[code] = entries[code] & np.uint32(0xFFFF_FFFF ^ AP) | np.uint32(READ_ONLY)
        self._second_words[table][:] = 0
        self._second_words[table][places] = entries
        self.prefilled += len(places)

    def _prefill_section(self, table: int, walk: Walk, view: int) -> None:
        """The same of a section's 256 pages."""
        rights = walk.user if view == USER_VIEW else walk.kernel
        if walk.manager:
            rights = 7
        elif (walk.user ^ walk.kernel) & 3:
            self._limits[table] = 0
        first = ((walk.physical & 0xFFF0_0000) - self._base) >> 12
        row = self._second_words[table]
        row[:] = 0
        if not rights & 1 or first < 0 or first >= self._frames:
            return
        count = min(256, self._frames - first)
        low = SMALL | NEVER | (READ_WRITE if rights & WRITE else READ_ONLY)
        row[:count] = (self._offsets[:count] + np.uint32(walk.physical & 0xFFF0_0000)) | np.uint32(low)
        code = np.flatnonzero(self.kind[first : first + count] != PLAIN)
        row[code] = row[code] & np.uint32(0xFFFF_FFFF ^ AP) | np.uint32(READ_ONLY)
        self.prefilled += count

    def _revalidate_second(self, table: int) -> None:
        source = self._sources[table]
        at = source - self._base
        if self._compare(self._guest_address + at, self._seen_address + (table << 10), 1024):
            guest, seen = self._guest[at >> 2 : (at >> 2) + 256], self._seen[table]
            self._second_words[table][guest != seen] = 0
            seen[:] = guest

    def place_of(self, table: int, address: int) -> int:
        """Pool word of the entry for a page in a second-level table."""
        return (ROOTS << 12) + (table << 8) + (address >> 12 & 0xFF)
