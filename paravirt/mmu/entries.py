"""Entries of shadow tables that are in use: every way to change one, and how the engine is made to forget what it was.

Room: `paravirt/mmu`. It is the `Mappings` of `Frames`: an entry is named by its place among the pool's words. Where
entries belong, and what they mirror, is `shadow`'s.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from emulator.engine.protocol import WHOLE_TABLE
from emulator.isa.paging import EXECUTE, READ, WRITE, TableFormat
from emulator.memory import GuestMemory
from paravirt.layout import Layout
from paravirt.mmu.blocks import Blocks
from paravirt.mmu.frames import Frames
from paravirt.mmu.pool import TablePool
from paravirt.mmu.views import KERNEL_VIEW, CodeSource

_ANYTHING = READ | WRITE | EXECUTE
_MOST_NAMED = 6
"""Entries changed at once that the engine is told one by one."""


class MappingEngine(Protocol):
    """What shadow paging needs of an engine."""

    @property
    def set_root(self) -> Callable[..., None]:
        """Takes the engine-physical address of the root table of each region of the guest's addresses."""
        ...

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None: ...

    def code_changed(self, address: int, size: int) -> None: ...


class ShadowEntries:
    """The entries of one virtual CPU's shadow tables."""

    blocks: Blocks

    def __init__(
        self, engine: MappingEngine, memory: GuestMemory, form: TableFormat, layout: Layout, name_changes: bool
    ) -> None:
        self._engine = engine
        self._layout = layout
        self.form = form
        self.pool = TablePool(form, layout.tables, layout.tables_size, memory.view, memory.base)
        self.frames = Frames(memory.base, memory.size, self)
        self.view = KERNEL_VIEW
        self._words = self.pool.words
        self._shifts = (0, *(level.shift for level in form.levels))
        self._masks = (0, *((1 << level.bits) - 1 for level in form.levels))
        self._top = len(form.levels)
        self._unit = self.pool.shift
        self._base = memory.base >> 12
        mask, value = form.page_write
        self.plain = not name_changes and type(self).replace is ShadowEntries.replace
        """Nobody is told which entries were changed."""
        self._page_and_right = form.page_mask | mask, value, ~mask, mask & ~value, form.present
        """What is compared of an entry that may map a page writable, what it is besides the page's address, and how the
        right is taken away: what stays, and what is added; what is there."""
        self._all = (1 << 8 * form.entry_size) - 1
        self._right_to_write = form.pages[READ] ^ form.pages[READ | WRITE]
        """Bits in which an entry that may be written through differs from one of the same page that may not."""
        self._current: tuple[int, ...] = ()
        """Root table in use of every region."""
        self._probe: list[int] = []
        self._changes: list[tuple[int, int]] = []
        """Entries that were changed since the last flush, where the engine must be told: engine-physical address, and
        that of the page that it mapped, or -1 for a block or a table."""
        self.names_gained = False
        """The engine must be told of entries that only gained the right to write, too."""
        self._track = name_changes
        if name_changes:
            self.pool.on_removed = self._note_all

    def attach(self, code: CodeSource) -> None:
        """Connect to the code pages."""
        self.frames.code = code

    def set_kind(self, number: int, kind: int) -> None:
        """Note what a frame is."""
        self.frames.kind[number] = kind

    def mark_code(self, first: int, last: int) -> None:
        """Frames `first`..`last` may hold kernel code: map them read-only until they are written."""
        self.frames.mark_code(first, last)

    def revoke_writers(self, number: int) -> None:
        """Take every writable mapping of a frame away, since it is about to execute."""
        self.frames.revoke_writers(number)

    def written(self, number: int) -> None:
        """The hypervisor is about to write to a frame for the guest: code in it leaves use."""
        self.frames.written(number)

    def _enter(self, roots: tuple[int, ...]) -> None:
        self._engine.set_root(*map(self.pool.address_of, roots))

    # -- changes of entries in use --------------------------------------------------------------

    def replace(self, at: int, level: int, entry: int) -> None:
        """Write an entry of a table of `level`: the only way to change a single one that may be in use."""
        if self._track:
            old = self._words[at]
            if old & self.form.present and old != entry and not (level == 1 and self._gained(old, entry)):
                self._note(at, level, old)
        self._words[at] = entry

    def _gained(self, old: int, entry: int) -> bool:
        """Whether an entry of a page only gained the right to write, and the engine looks at the tables again before it
        refuses a store by the old one, as a processor does."""
        mask, value = self.form.page_write
        return old ^ entry == self._right_to_write and entry & mask == value and not self.names_gained

    def _note(self, at: int, level: int, old: int) -> None:
        page = old & self.form.page_mask if level == 1 else -1
        self._changes.append((self.pool.physical + at * self.form.entry_size, page))

    def _note_all(self, places: Sequence[int]) -> None:
        """Entries that are about to be changed or removed, wherever they are: many of a table by its address alone."""
        if len(places) > _MOST_NAMED:
            self._changes += (
                (self.pool.address_of(table), WHOLE_TABLE) for table in {at >> self._unit for at in places}
            )
            return
        for at in places:
            if self._words[at] & self.form.present:
                self._note(at, int(self.pool.level_of[at >> self._unit]), self._words[at])

    def flush_tlb(self) -> None:
        """Let the engine forget what it has cached."""
        if self._track:
            changes, self._changes = self._changes, []
            self._engine.flush_tlb(changes)
        else:
            self._engine.flush_tlb()

    def flush_page(self, _address: int, _entries: int = 1) -> None:
        """The same of one page, of which as many entries of level 1 were just changed, where an engine can do that."""
        self.flush_tlb()

    def drop(self, at: int) -> None:
        """Remove one entry of level 1 (an index of the pool's words)."""
        self.replace(at, 1, 0)

    # -- what `Frames` asks ---------------------------------------------------------------------

    def remove(self, at: int, number: int) -> None:
        """Remove an entry if it still maps a frame."""
        if self._maps(self._words[at], number):
            self.replace(at, 1, 0)

    def make_read_only(self, places: Sequence[int], number: int) -> bool:
        """Take the right to write from entries that still map a frame."""
        words, changed = self._words, False
        (check, writable, keep, read_only, present), plain = self._page_and_right, self.plain
        writable |= self._base + number << 12
        for at in places:
            entry = words[at]
            if entry & check == writable and entry & present:
                if plain:
                    words[at] = entry & keep | read_only
                else:
                    self.replace(at, 1, entry & keep | read_only)
                changed = True
        return changed

    def _maps(self, entry: int, number: int) -> bool:
        return entry & self.form.page_mask == self.frames.base + (number << 12)

    def make_pieces_read_only(self, number: int) -> bool:
        """The entries of split large pages."""
        return self.make_read_only(self.blocks.pieces(self._base + number << 12), number)

    def make_all_read_only(self, number: int) -> bool:
        """Look through all tables for writable mappings of a frame not known to hold code; blocks of it go."""
        pool, form, used = self.pool, self.form, self.pool.used
        kind = pool.dtype.type
        physical = self.frames.base + (number << 12)
        words, level = pool.entries[:used], pool.level_of[:used, None]
        present = words & kind(form.present) != 0
        mask, value = form.page_write
        small = (words & kind(form.page_mask | mask)) == kind(physical | value)
        small &= present & (level == 1)
        large = (words & kind(form.block_mask)) == kind(physical & form.block_mask)
        large &= present & (level == 2)
        if not (small.any() or large.any()):
            return False
        if self._track:
            self._note_all(np.flatnonzero(small | large).tolist())
        words[small] = words[small] & kind(~mask & self._all) | kind(mask & ~value)
        words[large] = 0
        return True

    # -- what the engine made of code -----------------------------------------------------------

    def _make_probe(self) -> None:
        """Take the tables of `forget_code` beforehand, since it may not fail: they map one frame at address 0."""
        self._probe = [self.pool.take(level) for level in range(self._top, 0, -1)]
        for upper, lower in pairwise(self._probe):
            self._words[upper << self._unit] = self.pool.address_of(lower) | self.form.tables[_ANYTHING]

    def forget_code(self, number: int) -> None:
        """Let the engine forget what it made of a frame's code: it asks for an address that maps the frame."""
        root, leaf = self._probe[0], self._probe[-1]
        page = self.frames.base + (number << 12)
        self.replace(leaf << self._unit, 1, page | self.form.pages[READ | EXECUTE])
        self._enter((root, *self._current[1:]))
        self._engine.code_changed(0, 4096)
        self._enter(self._current)
