"""Shadow page tables, filled on demand.

Room: `paravirt/mmu`. The engine walks tables made here; each shadow table mirrors one guest table in one *role* (view,
and what else the kernel's rights depend on) and is shared by every address space that links it. How they follow when
the guest edits its tables is a `Technique` (`techniques`). Permissions accumulate in the engine's own walk, so a shadow
table does not depend on where it is linked. Both forms of tables, the guest's and the engine's, are data.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import EXECUTE, GLOBAL, READ, WRITE, GuestTables, PageWalk, TableFormat
from emulator.memory import GuestMemory
from paravirt.abi import Window
from paravirt.layout import Layout
from paravirt.mmu.blocks import Blocks
from paravirt.mmu.entries import MappingEngine, ShadowEntries
from paravirt.mmu.pool import ShadowPoolExhausted
from paravirt.mmu.snapshot import Snapshot
from paravirt.mmu.techniques import Technique
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW

_ANYTHING = READ | WRITE | EXECUTE
_Found = TypeVar("_Found")
_MOST_IN_VAIN = 16
"""Times that the pool may be full with the guest at one place: an instruction needs fewer pages."""


class ShadowPaging(ShadowEntries):
    """The shadow page tables of one virtual CPU."""

    DEVICE_END = 1 << 32
    """Guest-physical addresses of devices are below this; what is beyond them and no memory is the open bus."""

    def __init__(
        self,
        engine: MappingEngine,
        memory: GuestMemory,
        guest: GuestTables,
        form: TableFormat,
        layout: Layout,
        window: Window,
        *,
        name_changes: bool = False,
        eager: bool = False,
    ) -> None:
        """`name_changes`: tell the engine which entries were changed or removed (its capability `names_changes`).
        `eager`: fill tables as far as they can be at their first miss, since exits are dear.
        """
        super().__init__(engine, memory, form, layout, name_changes)
        self._window_at = window
        self.blocks = Blocks(self)
        self.fills = 0
        self.prefilled = 0
        self.evictions = 0
        """How often the pool was full, and all tables were forgotten."""
        self.guest_state: Callable[[], object] = object
        """Gives what is equal while the guest has done nothing."""
        self._state: object = None
        self._in_vain = 0
        """How often the pool was full again and the guest was where it had been."""
        self.outside = 0
        """Pages entered that the guest maps and that are none of its memory: a device's, or nothing's."""
        self._reach = (1 << form.levels[-1].shift + form.levels[-1].bits) - 1
        self._roots: dict[tuple[int, int, int], int] = {}
        """Root table by region, what names the guest's root, and role."""
        self._first_miss = 1 if eager else 2
        """Misses of a table from which on it is filled ahead."""
        self._window = -1
        self.technique: Technique = Snapshot(self)
        """How these tables follow the guest's."""
        self._speak(guest)

    def _speak(self, guest: GuestTables) -> None:
        self.guest = guest
        self.pool.speak(guest)
        self._ratios = (0, *(level.ratio for level in guest.levels))
        self._make_probe()

    def change_guest(self, guest: GuestTables) -> None:
        """The guest's tables have another form from now on: nothing that was made of the old ones is used again."""
        self._forget()
        self._speak(guest)
        self.use(self.view)

    # -- address spaces -------------------------------------------------------------------------

    @property
    def role(self) -> int:
        """Of the tables in use: the view, and in the kernel's the variant of its rights."""
        return USER_VIEW if self.view == USER_VIEW else KERNEL_VIEW | self.guest.variant << 1

    def use(self, view: int) -> None:
        """Make the current guest root's tables in `view` the ones the engine walks."""
        self.view = view
        self._use(self._with_room(self._find_roots))

    def _use(self, roots: tuple[int, ...]) -> None:
        self._current = roots
        self.technique.entered(self.view, roots)
        if self._changes:
            self.flush_tlb()
        self._enter(self._current)

    def load_root(self) -> None:
        """The guest loaded another root and flushed by it: drop what it has changed, and switch."""
        self.technique.root_loaded()
        self.use(self.view)

    def flush_all(self) -> None:
        """The guest flushed global translations too, or changed what every translation depends on."""
        self.technique.flushed_all()
        self.use(self.view)

    def invalidate(self, address: int) -> None:
        """Drop the translations of one page in both views: here now, and in any other address space before it runs."""
        self.technique.invalidated(address)

    def roots_of(self, address: int) -> tuple[int, ...]:
        """The root tables that there are of the current address space for `address`: the kernel's, and user code's."""
        region = self.guest.region(address)
        name, known = self.guest.roots[region], self._roots
        kernel = known.get((region, name, self.role if self.view == KERNEL_VIEW else KERNEL_VIEW))
        user = known.get((region, name, USER_VIEW))
        return tuple(root for root in (kernel, user) if root is not None)

    def forget_root(self, root: int) -> None:
        """A root table that is not in use: it is looked for by its key when its address space runs next."""
        self._roots = {key: table for key, table in self._roots.items() if table != root}

    def roots_named(self) -> dict[tuple[int, int, int], int]:
        """Root tables by region, what names the guest's root, and role."""
        return self._roots

    def _find_roots(self) -> tuple[int, ...]:
        role, names = self.role, self.guest.roots
        return tuple(
            self._root((region, name, role), table)
            for region, (name, table) in enumerate(zip(names, self.guest.root_tables, strict=True))
        )

    def _root(self, key: tuple[int, int, int], guest: int) -> int:
        root = self._roots.get(key)
        if root is None:
            root = self._roots[key] = self._table(guest, self._top, key[2], 0)
        return root

    def invalidate_in(self, table: int, address: int) -> int:
        """From a root table on, drop the first entry on the way to `address` that differs from its snapshot; the level
        of its table, or 0 where there is none."""
        words, pool = self._words, self.pool
        for level in range(self._top, 0, -1):
            index = (address >> self._shifts[level]) & self._masks[level]
            at = (table << self._unit) + index
            entry = words[at]
            if not entry & self.form.present:
                return 0
            if pool.source[table] >= 0 and pool.guest_entry(table, index) != pool.seen[self._seen(table, level, index)]:
                self.replace(at, level, 0)
                return level
            table = pool.table_in(entry)
            if table < 0:
                return 0
        return 0

    def drop_path(self, table: int, address: int) -> None:
        """From a root table on, drop the entry that maps `address`, or the first on the way that the guest changed."""
        if not self.invalidate_in(table, address):
            at = self._leaf_in(table, address)
            if at >= 0:
                self.drop(at)

    def is_window(self, table: int) -> bool:
        """Whether a table is the one of the hypervisor's window."""
        return table == self._window

    def _seen(self, table: int, level: int, index: int) -> int:
        """Where the snapshot is of the guest's entry that an entry mirrors."""
        return (table << self.pool.seen_shift) + (index >> self._ratios[level])

    # -- tables ---------------------------------------------------------------------------------

    def place(self, address: int, level: int, role: int) -> int:
        """The virtual place of the table of a level on the way to `address`, as the pool's keys have it."""
        return 0 if role & 1 == USER_VIEW or level == self._top else (address & self._reach) >> self._shifts[level + 1]

    def _table(self, guest: int, level: int, role: int, address: int) -> int:
        """The shadow table for what lies at guest-physical address `guest`, on the way to `address`."""
        pool, key = self.pool, (guest, level, role, self.place(address, level, role))
        table = pool.find(key)
        if table is None:
            table = pool.mirror(key)
            self._made(table, level, role)
            self.technique.mirrored(table)
        else:
            self.technique.found(table)
            if self._changes:  # an engine that keeps what it read of a table knows it as it was when it was last linked
                self.flush_tlb()
        return table

    def _made(self, _table: int, _level: int, _role: int) -> None:
        """A table is new."""

    def reset(self) -> None:
        """Forget every shadow table (the pool is full), and make the roots anew. Raises `ShadowPoolExhausted` when even
        these have no room, or not all that one instruction of the guest's needs at once: it would begin for ever."""
        self.evictions += 1
        before, self._state = self._state, self.guest_state()
        self._in_vain = self._in_vain + 1 if self._state == before else 0
        if self._in_vain == _MOST_IN_VAIN:
            raise self.pool.exhausted()
        self._forget()
        self._make_probe()
        self._use(self._find_roots())

    def _forget(self) -> None:
        if self._track:
            self._changes.clear()
            self._engine.flush_tlb()
        self.pool.clear()
        self._roots.clear()
        self.technique.forget()
        self.blocks.clear()
        self.frames.forget()
        self._window = -1

    def _with_room(self, install: Callable[[], _Found]) -> _Found:
        """Do what takes tables of the pool; when none is left forget them all, and do it again."""
        try:
            return install()
        except ShadowPoolExhausted:
            self.reset()
            return install()

    # -- filling --------------------------------------------------------------------------------

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Make `address` accessible as the guest's tables allow; raises the guest's own exception."""
        walk = self.guest.walk(address, write, self.view == USER_VIEW, fetch)
        if fetch and not self.frames.base <= walk.frame < self.frames.end:
            raise self.guest.no_code(address)
        self.fills += 1
        try:
            self._install(walk, write, fetch)
        except ShadowPoolExhausted:
            self.reset()
            self._install(walk, write, fetch)

    def _install(self, walk: PageWalk, write: bool, fetch: bool) -> None:
        """The hottest path under shadow tables: what could be a call is written out."""
        self.technique.walked(walk)
        pool, present, ratios = self.pool, self.form.present, self._ratios
        words, seen, entries, leaf, address = self._words, pool.seen, walk.entries, walk.level, walk.address
        unit, seen_shift, inside, size = self._unit, pool.seen_shift, self.form.table_mask, pool.size
        first, shifts, masks, bits_of_unit = pool.physical, self._shifts, self._masks, self.form.unit
        links = None if walk.attributes & GLOBAL else pool.below
        table = self._current[walk.region]
        level = self._top
        while level > leaf:
            index = address >> shifts[level] & masks[level]
            at = (table << unit) + index
            entry, guest = words[at], entries[level]
            mirrored = (table << seen_shift) + (index >> ratios[level])
            if entry & present and seen[mirrored] == guest and 0 <= (offset := (entry & inside) - first) < size:
                below = offset >> bits_of_unit
            else:
                role = self.role
                below = self._table(walk.tables[level - 1], level - 1, role, address)
                through = self.guest.through(guest, role & 1 == USER_VIEW)
                bits = self.form.tables[through] | self.guest.carried(guest, level)
                self.replace(at, level, self.pool.address_of(below) | bits)
                self.technique.linked(at, below)
                seen[mirrored] = guest
                if entry & present:
                    self.flush_tlb()
            if links is not None:
                links[table].add(below)
            table = below
            level -= 1
        if leaf > 1:
            table = self.blocks.install(table, walk, write, fetch)
        if table >= 0:
            self._map(table, walk, write, fetch)

    def _map(self, table: int, walk: PageWalk, write: bool, fetch: bool) -> None:
        """Enter one 4 KiB page into a table of level 1."""
        pool, frames, form = self.pool, self.frames, self.form
        index = (walk.address >> self._shifts[1]) & self._masks[1]
        at = (table << self._unit) + index
        old = self._words[at]
        if frames.base <= walk.frame < frames.end:
            physical, rights = frames.place(walk, at, self.view, write, fetch)
        else:
            physical, rights = self.device_page(walk.frame), self.device_rights(walk)
            self.outside += 1
        new = physical | form.pages[rights]
        if fetch and self.view == KERNEL_VIEW:
            new = self.code_entry(walk, at, new)
        self.replace(at, 1, new)
        if walk.level == 1:
            pool.seen[(table << pool.seen_shift) + (index >> self._ratios[1])] = walk.entries[1]
            misses = pool.misses[table] = pool.misses[table] + 1
            if misses & (misses - 1) == 0:
                self._note_misses(table, misses)
        if old & form.present and old != new:
            self.flush_page(walk.address)

    def code_entry(self, _walk: PageWalk, _at: int, entry: int) -> int:
        """The entry by which a page of kernel code is executed: as it is, where entries can say what is meant."""
        return entry

    def device_rights(self, _walk: PageWalk) -> int:
        """Those by which a page of a device is entered."""
        return READ | WRITE

    def device_page(self, frame: int) -> int:
        """Engine-physical address of what is not memory."""
        return frame if frame < self.DEVICE_END else self._layout.open_bus

    def _note_misses(self, table: int, misses: int) -> None:
        """A table that misses again and again is filled as far as its accessed bits allow."""
        if misses >= self._first_miss and self.technique.ahead:
            self.fill_ahead(table)

    def fill_ahead(self, table: int) -> None:
        """Enter all accessed, plain pages of the guest table that a shadow table mirrors."""
        pool, form, frames = self.pool, self.form, self.frames
        if pool.source[table] < 0:
            return
        guest, shadow, seen = pool.mirrored(table)
        user = pool.role_of(table) & 1 == USER_VIEW  # eagerly, a table of the view that is not in use is filled as well
        ready, physical, writable = self.guest.ahead(guest, user or self.for_user_too(table))
        inside = (physical >= frames.base) & (physical < frames.end)
        places = np.flatnonzero((shadow == 0) & ready & inside)
        if not len(places):
            return
        chosen = physical[places]
        numbers = (chosen - np.uint64(frames.base) >> np.uint64(12)).astype(np.int64)
        plain = writable[places] & (frames.kind[numbers] == 0)
        bits = np.where(plain, np.uint64(form.pages[READ | WRITE]), np.uint64(form.pages[READ]))
        if frames.coherent and user:  # otherwise user code is entered at its first execution
            bits = self.executable_ahead(guest[places], bits)
        shadow[places] = (chosen | bits).astype(pool.dtype)
        seen[places] = guest[places]
        self.prefilled += len(places)

    def for_user_too(self, _table: int) -> bool:
        """Whether only what user code may reach is mapped ahead in a table of the kernel's view."""
        return False

    def executable_ahead(self, _guest: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Of pages that are mapped ahead for user code, the bits by which those can be executed that the guest lets
        execute: for tables in which that is one bit of an entry."""
        return bits

    # -- code in its own frame ------------------------------------------------------------------

    def frame_of(self, address: int) -> int:
        """Number of the guest frame that the guest kernel has mapped at `address`, or -1."""
        try:
            frame = self.guest.walk(address, False, False, False).frame
        except ArchitecturalException:
            return -1
        return frame - self.frames.base >> 12 if self.frames.base <= frame < self.frames.end else -1

    def expose(self, address: int, frame: int, writable: bool) -> int:
        """Overwrite the leaf entry of a page of kernel code; returns the pool word index.

        Raises the guest's exception when the page is not mapped any more and may not be.
        """
        at = self._leaf_of(address)
        if at < 0:
            self.fill(address, False, True)
            at = self._leaf_of(address)
        rights = READ | EXECUTE | (WRITE if writable else 0)
        self.replace(at, 1, self.frames.base + (frame << 12) | self.form.pages[rights])
        self.flush_tlb()
        return at

    def _leaf_of(self, address: int) -> int:
        """Pool word index of the last-level entry for `address` in the current view, or -1."""
        return self._leaf_in(self._current[self.guest.region(address)], address)

    def _leaf_in(self, table: int, address: int) -> int:
        """The same, from a root table on."""
        for level in range(self._top, 1, -1):
            entry = self._words[(table << self._unit) + ((address >> self._shifts[level]) & self._masks[level])]
            table = self.pool.table_in(entry) if entry & self.form.present else -1
            if table < 0:
                return -1
        return (table << self._unit) + ((address >> self._shifts[1]) & self._masks[1])

    # -- the hypervisor's own mappings ----------------------------------------------------------

    def install_window(self) -> None:
        """Map the hypervisor window in the current (kernel) view."""
        self._with_room(self._install_window)

    def _install_window(self) -> None:
        if self._window < 0:
            self._window = self._window_table()
        address = self._window_at.base
        table, role = self._current[self.guest.region(address)], self.role
        for level in range(self._top, 2, -1):
            table = self.descend(table, level, address, role, self.form.tables[_ANYTHING])
        self.link(table, 2, address, self.pool.address_of(self._window) | self.form.tables[_ANYTHING])
        self.flush_tlb()

    def descend(self, table: int, level: int, address: int, role: int, bits: int) -> int:
        """The table below on the way to `address`, linked with `bits` if there is none; -1 where a block is mapped."""
        index = (address >> self._shifts[level]) & self._masks[level]
        entry = self._words[(table << self._unit) + index]
        if entry & self.form.present:
            return self.pool.table_in(entry)
        guest = self.guest.below(self.pool.guest_entry(table, index), level, address)
        known = self.frames.base <= guest < self.frames.end
        child = self._table(guest, level - 1, role, address) if known else self.pool.take(level - 1)
        self.link(table, level, address, self.pool.address_of(child) | bits)
        self.technique.linked((table << self._unit) + index, child)
        return child

    def link(self, table: int, level: int, address: int, entry: int) -> None:
        """Write an entry of the hypervisor's own, which holds until the guest changes its entry at that place."""
        index = (address >> self._shifts[level]) & self._masks[level]
        self.replace((table << self._unit) + index, level, entry)
        self.pool.seen[self._seen(table, level, index)] = self.pool.guest_entry(table, index)

    def _window_table(self) -> int:
        """The last-level table of the window: fixups read-execute, the shared page read-write."""
        table, window = self.pool.take(1), self._window_at
        first = (table << self._unit) + ((window.base >> self._shifts[1]) & self._masks[1])
        fixups = window.fixup_size >> 12
        for index in range(fixups):
            self._words[first + index] = self._layout.window + (index << 12) | self.form.pages[READ | EXECUTE]
        self._words[first + fixups] = self._layout.window + (fixups << 12) | self.form.pages[READ | WRITE]
        return table


__all__ = ["MappingEngine", "ShadowPaging"]
