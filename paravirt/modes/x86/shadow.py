"""Shadow tables of an x86-64 guest, in which the processor, and user code not, finds the sanitised descriptor table.

Room: `paravirt/modes/x86`. The processor reads descriptors with supervisor right, which no code of a deprivileged guest
has: entries without the user bit are for it alone.
"""

import mmap
from collections.abc import Collection

import numpy as np

from emulator.isa.paging import READ, WRITE, GuestTables
from emulator.isa.x86 import walk as w
from emulator.isa.x86.paging import LONG_MODE, LongModeTables
from emulator.isa.x86.processor import Fault
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.shadow import MappingEngine, ShadowPaging
from paravirt.mmu.views import KERNEL_VIEW, PLAIN, USER_VIEW

_ROOT_SHIFT = 39
_PAGE_FAULT = 14
_AROUND = 16
_AROUND_OLD = 64
_USED = w.PRESENT | w.ACCESSED | w.USER
_OLD = w.PRESENT | w.USER
_WRITTEN = w.DIRTY | w.WRITABLE
_MOST_BOTH = 64
_MOST_HOT = 4
_ROOM = 4 * _MOST_HOT
"""Tables that pages of so many places take at most."""
_NOTHING = 0xFFFF_FFFF
_USERS, _KERNELS = 1, 2
_NO_GUEST = 1 << 63
"""No present entry of a guest's."""
BLOCKS, BLOCKS_SIZE = 4 * layout.TABLE_COUNT, 32 << 10
_BLOCKS = BLOCKS_SIZE >> 3
_MOST_BY_ONE = 96
_FOR_ITSELF = w.PRESENT | w.WRITABLE | w.ACCESSED


class X86Shadow(ShadowPaging):
    """The shadow page tables of one x86-64 virtual CPU."""

    window_place = abi.X86_64

    def __init__(
        self,
        engine: MappingEngine,
        memory: GuestMemory,
        context: w.GuestContext,
        places: layout.Layout = layout.X86_64,
        *,
        name_changes: bool = False,
        eager: bool = False,
        reserved: Collection[int] = (),
    ) -> None:
        """`reserved` are the engine's entries of a top-level table: no page there is the guest's."""
        super().__init__(
            engine,
            memory,
            self._guest_tables(memory, context),
            LONG_MODE,
            places,
            self.window_place,
            name_changes=name_changes,
            eager=eager,
        )
        self._reserved = frozenset(reserved)
        self._both: dict[tuple[int, int, int], tuple[tuple[int, int], list[int], list[int]]] = {}
        """What `both_roots` found, by root tables and the window's: their addresses, and on the way to the window the
        places of the entries and what is there."""
        self.sources_memory = memoryview(mmap.mmap(-1, BLOCKS + 2 * BLOCKS_SIZE))
        self._sources = self.sources_memory[:BLOCKS].cast("I")
        """By table, the number of the frame that it mirrors, for code of the kernel's view."""
        self._blocks = self.sources_memory[BLOCKS:].cast("Q")
        """Behind that: blocks of sixteen entries of the guest's that map no page writable, and then what is made of
        them, which is the same wherever the guest has them."""
        self._marks: memoryview | None = None
        """Where the engine is told of user code's tables of pages."""
        self._hot: dict[int, dict[int, int]] = {KERNEL_VIEW: {}, USER_VIEW: {}}
        """By view, where pages of user code's were missed lately: an address by 2 MiB."""
        self._cold = {KERNEL_VIEW, USER_VIEW}
        """Views in which they were not filled since a root was loaded."""
        self.descriptor_pages: dict[int, int] = {}
        """User view: guest-virtual page -> physical page of the sanitised descriptor table."""

    def _guest_tables(self, memory: GuestMemory, context: w.GuestContext) -> GuestTables:
        """The guest's tables, in the form that it begins with."""
        return LongModeTables(memory.view, context)

    def load_root(self) -> None:
        """The guest loaded another root and flushed by it: drop what it has changed, and switch."""
        self._cold = {KERNEL_VIEW, USER_VIEW}
        super().load_root()

    def use(self, view: int) -> None:
        """Make the current guest root's tables in `view` the ones the engine walks."""
        names = self.guest.roots
        if len(names) == 1:  # as it is in long mode
            self.view = view
            root = self._roots.get((0, names[0], self.role))
            if root is not None:
                self._use((root,))
                return
        super().use(view)

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Make `address` accessible as the guest's tables allow; raises the guest's own exception."""
        if self._reserved and address >> _ROOT_SHIFT & 511 in self._reserved:
            error = (w.ERROR_WRITE if write else 0) | (w.ERROR_FETCH if fetch else 0)
            raise Fault(_PAGE_FAULT, error | (w.ERROR_USER if self.view == USER_VIEW else 0), address)
        ShadowPaging.fill(self, address, write, fetch)  # of the hottest path: half the price of `super`

    def executable_ahead(self, guest: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Take the bit away that forbids execution where the guest has not set it."""
        forbidden = np.uint64(w.NO_EXECUTE)
        return bits & ~forbidden | guest & forbidden

    # -- entries that are made without an exit ---------------------------------------------------

    def regions(self) -> tuple[tuple[int, int], ...] | None:
        """Engine-physical address and size of the tables, of what each mirrors, and of what each frame is; None where
        there may be more to an entry than that says."""
        frames = self.frames
        if frames.base or not frames.coherent or frames.guard is not None or type(self.guest) is not LongModeTables:
            return None
        tables, sources = self.pool.memory, self.sources_memory
        return (
            (self.pool.physical, len(tables)),
            (layout.SOURCES_BASE, len(sources)),
            (layout.KINDS_BASE, len(frames.kinds_memory)),
        )

    def tell_marks(self, marks: memoryview) -> None:
        """From now on say in these bytes, one for each unit, which tables map pages for user code, 1, and which for the
        kernel, 2."""
        self._marks = marks
        marks[:] = bytes(len(marks))
        for table in range(self.pool.used):
            key = self.pool.key_of(table)
            if key is not None:
                self._made(table, key[1], key[2])

    def _made(self, table: int, level: int, role: int) -> None:
        source = self.pool.source[table]
        self._sources[table] = source >> 12 if source >= 0 else _NOTHING
        if self._marks is not None and level == 1 and source >= 0:
            self._marks[table] = _USERS if role == USER_VIEW else _KERNELS

    def _forget(self) -> None:
        if self._marks is not None:
            self._marks[:] = bytes(len(self._marks))
        super()._forget()

    def made_elsewhere(self, at: int, guest: int) -> None:
        """An entry of user code's, at a place of the pool's words, was made of this entry of the guest's, or so the
        guest says: it goes if that does not fit."""
        table = at >> self._unit
        if self._marks is None or not 0 <= table < self.pool.used or self._marks[table] != _USERS:
            return
        entry = self._words[at]
        if entry and not self._fits(entry, guest):
            self.replace(at, 1, 0)
            self.flush_tlb()
        self.pool.seen[at] = guest
        self.prefilled += 1

    def learn_block(self, address: int) -> None:
        """The guest's handler has mapped several pages around `address`: perhaps it does so for others as well."""
        at = self._leaf_of(address)
        table, own, guests = at >> self._unit, self._blocks, self.pool.guest_entries
        if at < 0 or self._marks is None or self._marks[table] != _USERS:
            return
        first = (self.pool.source[table] >> 3) + (at - (table << self._unit) & -_AROUND)
        block = (address >> 16 & 255) * _AROUND
        for place, guest in enumerate(guests[first : first + _AROUND].tolist(), block):
            entry = 0
            if guest & _USED == _USED:
                frame = guest & w.FRAME_MASK
                if guest & w.WRITABLE or not self.frames.base <= frame < self.frames.end:
                    own[block] = _NO_GUEST
                    return
                entry = (frame | self.form.pages[READ]) & ~w.NO_EXECUTE | guest & w.NO_EXECUTE
            own[place], own[_BLOCKS + place] = guest, entry

    def made_together(self, at: int, block: int) -> None:
        """The same of sixteen entries, made of a block."""
        first, own, at = (block & BLOCKS_SIZE - 1) >> 3 & -_AROUND, self._blocks, at & -_AROUND
        table = at >> self._unit
        if self._marks is None or not 0 <= table < self.pool.used or self._marks[table] != _USERS:
            return
        if self._words[at : at + _AROUND] == own[_BLOCKS + first : _BLOCKS + first + _AROUND]:
            self.pool.seen[at : at + _AROUND] = own[first : first + _AROUND]
            self.prefilled += _AROUND
            return
        for number in range(_AROUND):
            if own[_BLOCKS + first + number]:
                self.made_elsewhere(at + number, own[first + number])

    def _fits(self, entry: int, guest: int) -> bool:
        """Whether an entry is one that may be made of the guest's."""
        frame, frames = guest & w.FRAME_MASK, self.frames
        if guest & _USED != _USED or entry & w.FRAME_MASK != frame or not frames.base <= frame < frames.end:
            return False
        if guest & w.NO_EXECUTE & ~entry:
            return False
        plain = guest & _WRITTEN == _WRITTEN and frames.kinds[frame - frames.base >> 12] == PLAIN
        return plain or not entry & w.WRITABLE

    def user_reaches(self, address: int) -> bool:
        """Whether the tables in use let user code reach `address`."""
        table = self._current[0]
        for level in range(self._top, 0, -1):
            entry = self._words[(table << self._unit) + ((address >> self._shifts[level]) & self._masks[level])]
            if entry & (w.PRESENT | w.USER) != w.PRESENT | w.USER:
                return False
            table = self.pool.table_in(entry)
            if table < 0:
                return True
        return True

    def fill_around(self, address: int, write: bool = False, fetch: bool = False, *, old: bool = False) -> bool:
        """User view, where exits are dear: map what the guest has accessed of the sixteen pages around one, since its
        fault handler maps files by as many; with `old` also what it has not accessed yet, of four times as many, as
        a processor may that looks ahead. Whether the one itself was not mapped and now is, for such an access.
        `fill_ahead` looks at whole tables, now and then."""
        at = self._leaf_of(address)
        table = at >> self._unit
        if at < 0 or self.pool.source[table] < 0 or not self.technique.ahead:
            return False
        around, used = (_AROUND_OLD, _OLD) if old else (_AROUND, _USED)
        index = at - (table << self._unit) & -around
        first, mirrored = (table << self._unit) + index, (self.pool.source[table] >> 3) + index
        words, frames, seen, guests = self._words, self.frames, self.pool.seen, self.pool.guest_entries
        kinds, base, end, coherent = frames.kinds, frames.base, frames.end, frames.coherent
        read, both = self.form.pages[READ], self.form.pages[READ | WRITE]
        missed, filled = not words[at], 0
        for place, guest in enumerate(guests[mirrored : mirrored + around].tolist(), first):
            if guest & used != used or words[place]:
                continue
            frame = guest & w.FRAME_MASK
            if not base <= frame < end or guest & w.RESERVED:
                continue
            if not guest & w.ACCESSED:
                guest |= w.ACCESSED
                guests[mirrored + place - first] = guest
            plain = guest & _WRITTEN == _WRITTEN and kinds[frame - base >> 12] == PLAIN
            entry = frame | (both if plain else read)
            if coherent:
                entry = entry & ~w.NO_EXECUTE | guest & w.NO_EXECUTE
            words[place] = entry
            seen[place] = guest
            filled += 1
        self.prefilled += filled
        entry = words[at]
        return bool(missed and entry and (entry & w.WRITABLE or not write) and not (fetch and entry & w.NO_EXECUTE))

    def fill_elsewhere(self, address: int) -> None:
        """A page of user code's was missed: where it has missed other pages before, or its kernel has, it is likely to
        do so again, also in the address space of a child; fill those as well, after another root was loaded."""
        hot, block = self._hot[self.view], address >> 21
        hot.pop(block, None)
        if self.view in self._cold:
            self._fill_hot()
        hot[block] = address
        if len(hot) > _MOST_HOT:
            del hot[next(iter(hot))]

    def _fill_hot(self) -> None:
        """Fill what was missed lately in the view that there is."""
        view, words = self.view, self._words
        self._cold.discard(view)
        for other in self._hot[view].values():
            at = self._leaf_of(other)
            if at >= 0 and words[at]:
                continue
            if at < 0 or view == KERNEL_VIEW:
                try:
                    self.fill(other, False, False)
                except Fault:
                    continue
            if view == USER_VIEW:
                self.fill_around(other, old=True)

    def fill_user(self) -> None:
        """A root was loaded, and its user code is likely to run next: fill what it has missed lately before it misses
        it again, without an exit for the first of these."""
        if USER_VIEW not in self._cold or self.pool.used + _ROOM > self.pool.units:
            return
        root = self._roots.get((0, self.guest.roots[0], USER_VIEW))
        if root is None:
            return
        before = self.view, self._current
        self.view, self._current = USER_VIEW, (root,)
        try:
            self._fill_hot()
        finally:
            self.view, self._current = before
            if self._changes:
                self.flush_tlb()

    def fill_ahead(self, table: int) -> None:
        """As elsewhere; of a long-mode guest's table, where there are few such pages, one by one, which is quicker."""
        pool, frames = self.pool, self.frames
        source = pool.source[table]
        if source < 0 or type(self.guest) is not LongModeTables:
            super().fill_ahead(table)
            return
        own, for_user = pool.role_of(table) & 1 == USER_VIEW, self.for_user_too(table)
        wanted, written = self.guest.ahead_bits(own or for_user)
        mirrored, shadow, _ = pool.mirrored(table)
        ready = (mirrored & np.uint64(wanted)) == wanted
        ready &= shadow == 0
        places = np.flatnonzero(ready).tolist()
        if len(places) > _MOST_BY_ONE:
            super().fill_ahead(table)
            return
        words, seen, guests = self._words, pool.seen, pool.guest_entries
        kinds, base, end = frames.kinds, frames.base, frames.end
        read, both = self.form.pages[READ], self.form.pages[READ | WRITE]
        first, number, executable = table << self._unit, source >> 3, frames.coherent and own
        for index in places:
            guest = guests[number + index]
            frame = guest & w.FRAME_MASK
            if not base <= frame < end:
                continue
            plain = guest & written == written and kinds[frame - base >> 12] == PLAIN
            entry = frame | (both if plain else read)
            if executable:
                entry = entry & ~w.NO_EXECUTE | guest & w.NO_EXECUTE
            words[first + index] = entry
            seen[first + index] = guest
            self.prefilled += 1

    def enter_again(self) -> None:
        """The engine is to walk the tables in use, whichever it did meanwhile."""
        self._enter(self._current)

    def freshen_user(self) -> None:
        """Have user code's tables of the current address space follow the guest's, as if they were entered."""
        root = self._roots.get((0, self.guest.roots[0], USER_VIEW))
        if root is not None:
            self.technique.entered(USER_VIEW, (root,))
            if self._changes:
                self.flush_tlb()

    def both_roots(self) -> tuple[int, int] | None:
        """Engine-physical addresses of the roots of the current address space, the kernel's and user code's; None where
        there are not both, or the hypervisor's window is not mapped in the kernel's."""
        name = self.guest.roots[0]
        kernel = self._roots.get((0, name, KERNEL_VIEW | self.guest.variant << 1))
        user = self._roots.get((0, name, USER_VIEW))
        if kernel is None or user is None:
            return None
        known = self._both.get((kernel, user, self._window))
        if known is not None and [self._words[at] for at in known[1]] == known[2]:
            return known[0]
        table, address = kernel, self._window_at.base
        places: list[int] = []
        entries: list[int] = []
        for level in range(self._top, 1, -1):
            at = (table << self._unit) + ((address >> self._shifts[level]) & self._masks[level])
            entry = self._words[at]
            places.append(at)
            entries.append(entry)
            table = self.pool.table_in(entry) if entry & w.PRESENT else -1
            if table < 0:
                return None
        if table != self._window:
            return None
        both = self.pool.address_of(kernel), self.pool.address_of(user)
        if len(self._both) == _MOST_BOTH:
            self._both.clear()
        self._both[kernel, user, self._window] = both, places, entries
        return both

    def install_descriptors(self, address: int) -> bool:
        """User view: map the sanitised descriptor table's page at `address` for the CPU alone."""
        physical = self.descriptor_pages.get(address >> 12)
        if physical is None or self.view != USER_VIEW:
            return False
        return self._with_room(lambda: self._install_descriptors(address, physical))

    def _install_descriptors(self, address: int, physical: int) -> bool:
        table = self._current[0]
        for level in range(self._top, 1, -1):
            table = self._towards(table, level, address)
            if table < 0:
                return False
        self.link(table, 1, address, physical | _FOR_ITSELF | w.DIRTY | w.NO_EXECUTE)
        return True

    def _towards(self, table: int, level: int, address: int) -> int:
        """The table below on the way to a descriptor. What the guest lets user code into is linked as for user code,
        and anything else for the processor alone."""
        index = (address >> self._shifts[level]) & self._masks[level]
        entry = self._words[(table << self._unit) + index]
        guest = self.pool.guest_entry(table, index)
        if guest & w.USER and self.frames.base <= self.guest.below(guest, level, address) < self.frames.end:
            return self.descend(table, level, address, USER_VIEW, self.form.tables[self.guest.through(guest, True)])
        if entry & w.PRESENT:
            return self.pool.table_in(entry)
        child = self.pool.take(level - 1)
        self.link(table, level, address, self.pool.address_of(child) | _FOR_ITSELF)
        return child
