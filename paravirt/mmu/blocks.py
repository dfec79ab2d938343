"""A guest's large pages in its shadow: one large entry while all of it is plain memory, a table of pieces otherwise.

Room: `paravirt/mmu`. A table of pieces mirrors no table of the guest's: it belongs to the memory that it maps, and is
filled at once. `ShadowPaging` links what is made here, and knows when the guest's entry has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from emulator.isa.paging import EXECUTE, READ, WRITE, PageWalk
from paravirt.mmu.views import USER_VIEW

if TYPE_CHECKING:
    from paravirt.mmu.shadow import ShadowPaging

_ANYTHING = READ | WRITE | EXECUTE
_RIGHTS_SHIFT = 8
_PIECES = 1
"""Of a table's key: its address is that of memory, not of a guest's table."""


class Blocks:
    """The large pages of one guest."""

    def __init__(self, shadow: ShadowPaging) -> None:
        self._shadow = shadow
        form = shadow.form
        self._shifts = (0, *(level.shift for level in form.levels))
        self._masks = (0, *((1 << level.bits) - 1 for level in form.levels))
        self._shift, self._pieces = shadow.pool.shift, self._masks[1]
        self._span = 1 << self._shifts[2] if len(form.levels) > 1 else 0
        self._split: dict[int, list[int]] = {}
        """By guest-physical address of a block, the tables of its pieces."""
        self.whole = True
        """A large page of plain memory is one large entry."""

    def clear(self) -> None:
        """All tables are gone."""
        self._split.clear()

    def install(self, table: int, walk: PageWalk, write: bool, fetch: bool) -> int:
        """Map a guest's large page: by one large entry, or by a table of small ones (returned, or -1)."""
        shadow, pool, form = self._shadow, self._shadow.pool, self._shadow.form
        words, role, level = pool.words, shadow.role, walk.level
        guest = walk.entries[level]
        own = shadow.guest.own_rights(guest, role & 1 == USER_VIEW)
        if not form.limits:
            role |= own << _RIGHTS_SHIFT  # pieces have them, and are others for others
        mirrored = -1
        while True:
            index = (walk.address >> self._shifts[level]) & self._masks[level]
            at = (table << pool.shift) + index
            entry = words[at]
            if level == walk.level:
                mirrored = (table << pool.seen_shift) + (index >> shadow.guest.levels[level - 1].ratio)
            if level == 2:
                break
            table = self._part(walk, walk.frame & ~((1 << self._shifts[level]) - 1), level - 1, role)
            if not entry & form.present or (level == walk.level and pool.seen[mirrored] != guest):
                rights = own if level == walk.level else _ANYTHING
                self._put(at, level, pool.address_of(table) | form.tables[rights | READ])
                if level == walk.level:
                    pool.seen[mirrored] = guest
            level -= 1
        base = walk.frame & ~(self._span - 1)
        if self.whole and not fetch and shadow.frames.plain(base - shadow.frames.base >> 12, self._span >> 12):
            self._put(at, 2, base | form.blocks[READ | (WRITE if write else own & WRITE)])
            small = -1
        else:
            small = self._part(walk, base, 1, role)
            bits = form.tables[_ANYTHING]
            if walk.level == 2:
                bits = form.tables[own | READ] | shadow.guest.carried(guest, 2)
            self._put(at, 2, pool.address_of(small) | bits)
        if walk.level == 2:
            pool.seen[mirrored] = guest
        return small

    def _put(self, at: int, level: int, entry: int) -> None:
        shadow = self._shadow
        old = shadow.pool.words[at]
        shadow.replace(at, level, entry)
        if old & shadow.form.present and old != entry:
            shadow.flush_tlb()

    def _part(self, walk: PageWalk, base: int, level: int, role: int) -> int:
        """The table that splits the guest's large page at `base`; level 1 is filled at once."""
        pool, key = self._shadow.pool, (base | _PIECES, level, role, self._shadow.place(walk.address, level, role))
        table = pool.find(key)
        if table is None:
            table = pool.take(level)
            pool.keep(key, table)
            if level == 1:
                self._split.setdefault(base, []).append(table)
                self._fill(table, base, _ANYTHING if self._shadow.form.limits else role >> _RIGHTS_SHIFT)
        return table

    def _fill(self, table: int, base: int, rights: int) -> None:
        """Map every page of a split large page, code in use read-only; devices wait for their fault."""
        shadow = self._shadow
        pool, form, frames = shadow.pool, shadow.form, shadow.frames
        first = base - frames.base >> 12
        low, high = max(first, 0), min(first + self._masks[1] + 1, frames.count)
        if low >= high:
            return
        numbers = np.arange(low, high, dtype=np.uint64)
        pieces = (numbers << np.uint64(12)) + np.uint64(frames.base) | np.uint64(form.pages[READ | rights & WRITE])
        closed = frames.read_only_ahead(low, high)
        pieces[closed] = pieces[closed] & np.uint64(form.page_mask) | np.uint64(form.pages[READ])
        at = (table << pool.shift) + low - first
        pool.entries.reshape(-1)[at : at + len(pieces)] = pieces.astype(pool.dtype)
        shadow.prefilled += len(pieces)

    def pieces(self, page: int) -> Sequence[int]:
        """Where pieces of split large pages map the page at a guest-physical address."""
        tables = self._split.get(page & -self._span)
        if tables is None:
            return ()
        index = page >> 12 & self._pieces
        return [(table << self._shift) + index for table in tables]
