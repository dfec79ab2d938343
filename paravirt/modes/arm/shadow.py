"""Shadow tables of an ARMv7-A guest: two views in two worlds, domains, and code that is executed and not read.

Room: `paravirt/modes/arm`. The real DACR is the guest's, world by world, so that it is written without a change of any
table; but never Manager, under which a page without the right to execute would execute. Only what was changed is
forgotten: a page, a world, or both. Kernel code executes from copies, which the TLB has and no table.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from emulator.engine.arm import FULL, OTHER, ArmEngine, CopiedPages
from emulator.isa.arm.paging import SCTLR_AFE, SCTLR_M, TranslationContext
from emulator.isa.arm.tables import APART, DOMAIN_SHIFT, OWN_DOMAIN, READ_ONLY, USER_TABLES, ArmTables
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import EXECUTE, GLOBAL, KERNEL_SHIFT, READ, USER_SHIFT, WRITE, PageWalk
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.views import KERNEL_VIEW, MAY_BE_CODE, USER_VIEW

WORLD: Final = {KERNEL_VIEW: OTHER, USER_VIEW: FULL}
"""The kernel runs in the engine's other world, so that a switch needs no flush."""
PAGE_MASK: Final = 0xFFFF_F000
_WINDOW: Final = abi.ARMV7
_LOADS_OF_PC: Final = np.array([0xE51F_F004, 0xF000_F8DF], np.uint32)
"""LDR PC, [PC, #-4], and T32's LDR.W PC, [PC]: the next word is where they lead."""
_CLIENTS: Final = 0x5555_5555
_OWN_ACCESS: Final = 3 << 2 * OWN_DOMAIN
_ABOVE_SHIFT: Final = 16
"""Where a role has `ArmTables.above`."""
_MIB: Final = 20
_UNIT: Final = USER_TABLES.unit
_TABLE_MASK: Final = USER_TABLES.table_mask
_SUPERSECTION: Final = 1 << 18 | 2
_ROOT_MASK: Final = 0xFFFF_C000
"""Of TTBR1."""


class ArmShadow(ShadowPaging):
    """The shadow tables of one virtual CPU."""

    DEVICE_END = layout.ARMV7.tables
    guest: ArmTables

    def __init__(self, engine: ArmEngine, memory: GuestMemory, context: TranslationContext) -> None:
        self._cpu = engine
        self.context = context
        self._guest_words = np.frombuffer(memory.view, dtype=np.uint32)
        self._entered: list[tuple[int, ...]] = [(), ()]
        """Root tables that each view's world walks."""
        self._split = [0, 0]
        """The real TTBCR.N of each view's world."""
        self._domains = [0, 0]
        """The real DACR of each view's world."""
        self._shape = self._shape_now()
        self._above = 0
        """Of the walk whose tables are made: see `ArmTables.above`."""
        self._unflushed = 0
        """Entries in use that were changed, which the engine has not been told."""
        self._executing: dict[int, tuple[int, int]] = {}
        """By the place of the entry of a page of kernel code that cannot be read where it executes: its address, and
        the copy that it executes from."""
        self._alone_runs = False
        """One instruction runs alone: no other code is entered by the engine itself."""
        self._alone: set[int] = set()
        """Tables of pages in the kernel's view that have one which user code may not touch in the same way."""
        self._limits: dict[int, int] = {}
        """By root table of the kernel's view: below, there is no such table, to the MiB."""
        self.watched: frozenset[int] = frozenset()
        """Pages (address >> 12) that are mapped for one access alone (`ArmHypervisor.debug_changed`)."""
        self.passing: set[int] = set()
        """Those of them that are mapped now."""
        self.exposed = -1, -1
        """Page and frame of code that is read and written in its own frame, while one instruction runs alone."""
        self._guarded = False
        """The shared page is read-only, so that a fixup that stores into it exits."""
        self.on_limit: Callable[[int], None] = lambda _address: None
        """Called with the limit of the kernel's current address space when it changes."""
        super().__init__(
            engine,
            memory,
            ArmTables(memory.view, memory.base, context),
            USER_TABLES,
            layout.ARMV7,
            _WINDOW,
            eager=True,
        )
        self._copies = memoryview(mmap.mmap(-1, self.pool.size)).cast("I")
        """The copies of `_executing`, where the engine looks them up by itself."""
        engine.keep_copies(CopiedPages(memoryview(self.pool.memory), self.pool.physical, self._copies.cast("B")))
        self.blocks.whole = False
        self.frames.exclusive = self.frames.expectant = True
        self.pool.on_removed = self._removed

    # -- address spaces -------------------------------------------------------------------------

    def _shape_now(self) -> tuple[int, int]:
        return self.context.sctlr & (SCTLR_M | SCTLR_AFE), self.context.ttbcr & 7

    def load_root(self) -> None:
        """TTBR0, TTBR1, TTBCR, the ASID or SCTLR were written: other tables, or all is translated otherwise."""
        shape = self._shape_now()
        if shape == self._shape:
            super().load_root()
        else:
            self._shape = shape
            self.change_guest(self.guest)

    def domains_changed(self, old: int) -> None:
        """DACR was written: the world that runs has it at once, and what loses access is forgotten there."""
        new = self.context.dacr
        managers = (old & old >> 1 ^ new & new >> 1) & _CLIENTS
        if managers or (old ^ new) & _OWN_ACCESS:
            self.change_guest(self.guest)  # the tables were made for them
        else:
            self._load_domains(self.view)

    def _load_domains(self, view: int) -> None:
        new = _CLIENTS
        if self.context.sctlr & SCTLR_M:
            value = self.context.dacr
            new = value & ~((value & value >> 1 & _CLIENTS) << 1) & ~_OWN_ACCESS | 1 << 2 * OWN_DOMAIN
        old = self._domains[view]
        if new != old:
            self._domains[view] = new
            self._cpu.set_domains(new, WORLD[view])
            if old & ~new:
                self._flush_view(view)

    def _enter(self, roots: tuple[int, ...]) -> None:
        """Go on in a view's world; what is cached of either stays unless something was changed."""
        view = self.view
        world = WORLD[view]
        self._tell_root()
        if roots != self._entered[view]:
            self._entered[view] = roots
            split = self.context.ttbcr & 7 if len(roots) > 1 else 0
            if split or self._split[view]:
                self._split[view] = split
                self._cpu.split_roots(split, self.pool.address_of(roots[-1]), world)
            self._cpu.set_root(self.pool.address_of(roots[0]), world)
            if view == KERNEL_VIEW:
                self._tell_limit()
        if self._unflushed:
            self.flush_tlb()
        self._load_domains(view)
        self._cpu.use_world(world)

    def _forget(self) -> None:
        self._unflushed += 1
        self._entered = [(), ()]
        self.set_executing({})
        self._cpu.execute_copies(-1)
        self._alone.clear()
        self._limits.clear()
        super()._forget()

    def forget_root(self, root: int) -> None:
        """As the base; what an address space's kernel has mapped is not known any more."""
        super().forget_root(root)
        self._entered = [(), ()]

    # -- what the engine is told ----------------------------------------------------------------

    def _removed(self, places: list[int]) -> None:
        self._unflushed += len(places)

    def replace(self, at: int, level: int, entry: int) -> None:
        """As the base, counting changes of what may be in use."""
        old = self._words[at]
        if old & 3 and old != entry:
            self._unflushed += 1
        self._words[at] = entry

    def flush_tlb(self) -> None:
        """Let the engine forget what it has cached, of both worlds."""
        self._unflushed = 0
        self._cpu.flush_tlb()

    def flush_page(self, address: int, entries: int = 1) -> None:
        """The same of one page."""
        self._unflushed = max(0, self._unflushed - entries)
        self._cpu.flush_page(OTHER, address)
        self._flush_user_page(address)

    def _flush_view(self, view: int) -> None:
        self._cpu.flush_world(WORLD[view])

    def forget_code(self, number: int) -> None:
        """Let the engine forget what it made of a frame's code."""
        self._cpu.frame_changed(self.frames.base + (number << 12), 4096)

    def _make_probe(self) -> None:
        """Not needed: the engine forgets code by its physical address."""

    # -- invalidation ---------------------------------------------------------------------------

    def invalidate(self, address: int) -> None:
        """As the base. A table may be at two places in the user's view, of which the other was perhaps seen to have
        changed before: what the engine has of this one goes in any case."""
        self.technique.invalidated(address)
        self._flush_user_page(address)
        if self.view == KERNEL_VIEW and self.technique.ahead:
            self._enter_invalidated(address)

    def _enter_invalidated(self, address: int) -> None:
        """A page that the guest has mapped before it invalidates it, as kernels do that borrow an address for a moment,
        is used next: it is entered now, if it is a small page of memory that does not execute, and its table is linked.
        What may be code is mapped by an address of the kernel's to be written (`patch_text`), or not yet."""
        pool, frames, words = self.pool, self.frames, self._words
        root = self._current[self.guest.region(address) if len(self._current) > 1 else 0]
        at = (root << self._unit) + (address >> _MIB)
        link = words[at]
        if not link:
            return
        leaf = (link & _TABLE_MASK) - pool.physical >> _UNIT
        source, index = pool.source[leaf], address >> 12 & 0xFF
        if source < 0 or words[(leaf << self._unit) + index]:
            return
        entry = pool.guest_entries[(source >> 2) + index]
        number = (entry & PAGE_MASK) - frames.base >> 12
        if not entry & 2 or not 0 <= number < frames.count or frames.guard is not None:
            return
        kind = frames.kinds[number]
        write = kind == MAY_BE_CODE
        if (kind and not write) or (write and entry & READ_ONLY):
            return
        try:
            walk = self.guest.walk(address, write, False, False)
        except ArchitecturalException:
            return
        if pool.seen[at] == walk.entries[2]:
            self._install(walk, write, False)
            self.prefilled += 1

    def _flush_user_page(self, address: int) -> None:
        for root in self._entered[USER_VIEW]:
            if self._words[(root << self._unit) + (address >> _MIB)]:
                self._cpu.flush_page(FULL, address)

    def roots_of(self, address: int) -> tuple[int, ...]:
        """As the base, written out."""
        context, known = self.context, self._roots
        if not context.sctlr & SCTLR_M:
            return super().roots_of(address)
        split, region = context.ttbcr & 7, 0
        name = context.ttbr0 & 0xFFFF_FFFF << 14 - split & 0xFFFF_FFFF
        if split and address >> 32 - split:
            region, name = 1, context.ttbr1 & _ROOT_MASK
        kernel, user = known.get((region, name, KERNEL_VIEW)), known.get((region, name, USER_VIEW))
        if kernel is None:
            return () if user is None else (user,)
        return (kernel,) if user is None else (kernel, user)

    def invalidate_in(self, table: int, address: int) -> int:
        """As the base, written out for two levels: kernels invalidate page by page. Sixteen entries may be one large
        page, or one supersection."""
        pool, words, seen = self.pool, self._words, self.pool.seen
        index = address >> _MIB
        at = (table << self._unit) + index
        known, entry = seen[at], words[at]
        if known & _SUPERSECTION == _SUPERSECTION:
            return 2 * pool.revalidate(table)
        if not entry:
            return 0
        source, guest = pool.source, pool.guest_entries
        if (guest[(source[table] >> 2) + index] if source[table] >= 0 else 0) != known:
            self.replace(at, 2, 0)
            return 2
        leaf = (entry & _TABLE_MASK) - pool.physical >> _UNIT
        if source[leaf] < 0:
            return 0
        index = address >> 12 & 0xFF
        at = (leaf << self._unit) + index
        known = seen[at]
        if known & 3 == 1:
            return 2 * pool.revalidate(leaf)
        if not words[at] or guest[(source[leaf] >> 2) + index] == known:
            return 0
        self.replace(at, 1, 0)
        return 1

    # -- filling --------------------------------------------------------------------------------

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """As the base; code that cannot be read is executed from the TLB alone."""
        super().fill(address, write, fetch)
        if fetch and self.view == KERNEL_VIEW:
            self.execute_again(address)

    def _install(self, walk: PageWalk, write: bool, fetch: bool) -> None:
        """As the base, written out for what is linked as the guest has it, a table or the pieces of a section: that is
        nearly every miss."""
        pool, root = self.pool, self._current[walk.region]
        self.technique.walked(walk)
        at = (root << self._unit) + (walk.address >> _MIB)
        entry = self._words[at]
        if entry & 3 and pool.seen[at] == walk.entries[2]:
            table = (entry & _TABLE_MASK) - pool.physical >> _UNIT
            if walk.level == 1 and not walk.attributes & GLOBAL:
                pool.below[root].add(table)
            self._map(table, walk, write, fetch)
        else:
            self._above = self.guest.above(walk.entries[2]) if walk.level == 1 else 0
            super()._install(walk, write, fetch)
        if self.watched:
            self._unmap_watched(walk.address >> _MIB)

    def _unmap_watched(self, mib: int) -> None:
        """No watched page of a MiB stays mapped for data but those that are passed, whatever mapped them. A table entry
        that executes can be read as well."""
        for page in self.watched - self.passing:
            at = self._leaf_of(page << 12) if page >> _MIB - 12 == mib else -1
            entry = self._words[at] if at >= 0 else 0
            if entry & 3 == 3:
                self.replace(at, 1, entry & PAGE_MASK | self.form.pages[0] | APART if entry & APART else 0)

    def drop_page(self, address: int) -> None:
        """Unmap a page in both views."""
        for root in self.roots_of(address):
            at = self._leaf_in(root, address)
            if at >= 0:
                self.drop(at)
        self.flush_tlb()

    def fill_ahead(self, table: int) -> None:
        """As the base, while no page is watched."""
        if not self.watched:
            super().fill_ahead(table)

    def _table(self, guest: int, level: int, role: int, address: int) -> int:
        if level > 1:
            return super()._table(guest, level, role, address)
        table = super()._table(guest, level, role | self._above << _ABOVE_SHIFT, address)
        if table in self._alone:
            self._lower(self._current[self.guest.region(address)], address)
        return table

    def _map(self, table: int, walk: PageWalk, write: bool, fetch: bool) -> None:
        if self.view == KERNEL_VIEW and (walk.rights ^ walk.rights >> USER_SHIFT) & (READ | WRITE):
            limit = self._limits.get(self._current[walk.region], _WINDOW.base)
            if table not in self._alone or walk.address >> _MIB << _MIB < limit:
                self._reaches_more(table, walk)
        super()._map(table, walk, write, fetch)

    def device_rights(self, walk: PageWalk) -> int:
        """As the guest's tables have them: there is nothing above that would take the right to write away."""
        return walk.rights >> (USER_SHIFT if self.view == USER_VIEW else KERNEL_SHIFT) & (READ | WRITE)

    # -- the kernel's own pages -----------------------------------------------------------------

    def _reaches_more(self, table: int, walk: PageWalk) -> None:
        """A page that the kernel alone may touch is entered: in every address space that links its table."""
        if table not in self._alone:
            self._alone.add(table)
            index = walk.address >> _MIB
            for root in tuple(self._limits):
                if self.pool.table_in(self._words[(root << self._unit) + index]) == table:
                    self._lower(root, walk.address)
        self._lower(self._current[walk.region], walk.address)

    def _lower(self, root: int, address: int) -> None:
        first = address >> _MIB << _MIB
        if first < self._limits.get(root, _WINDOW.base):
            self._limits[root] = first
            if root in self._current and self.view == KERNEL_VIEW:
                self._tell_limit()

    def _root(self, key: tuple[int, int, int], guest: int) -> int:
        root = super()._root(key, guest)
        if key[2] & 1 == KERNEL_VIEW:
            self._limits.setdefault(root, _WINDOW.base)
        return root

    def _tell_limit(self) -> None:
        self.on_limit(min(self._limits.get(root, 0) for root in self._current))

    def for_user_too(self, table: int) -> bool:
        """In a table that has no page of the kernel's own yet, so that none comes there unseen."""
        return table not in self._alone

    # -- code -----------------------------------------------------------------------------------

    def code_entry(self, walk: PageWalk, at: int, entry: int) -> int:
        """The guest's own frame, to be read, unless a copy must be readable where it executes."""
        copy, number = entry & PAGE_MASK, walk.frame - self.frames.base >> 12
        if self._reads_itself(number, copy, walk.address >> 12 in self.watched):
            self._not_executing(at)
            return entry
        self._executing[at] = walk.address & PAGE_MASK, copy
        self._copies[at] = copy
        return walk.frame | self.form.pages[READ] | APART

    def _reads_itself(self, number: int, copy: int, watched: bool) -> bool:
        """Whether nothing was rewritten (and nobody watches), or by a load of an address that stands beside it: so is a
        far fixup reached."""
        words = np.frombuffer(self.frames.code.copy_at(copy), np.uint32)
        changed = words[words != self._guest_words[number << 10 : number + 1 << 10]]
        return not (len(changed) or watched) or bool(np.isin(changed, _LOADS_OF_PC).any())

    def execute_again(self, address: int) -> bool:
        """Enter a page of kernel code that has a copy into the TLB, to be executed and not read; whether it is one.

        No table entry could say so: what is in the tables lets the guest read its own frame there. Where the TLB has
        lost it, the engine mostly does the same by itself (`_tell_root`). How often a page is missed depends on the
        size of the engine's TLB, which follows the host's time: so this is no exit, but a part of the engine's walk.
        """
        words, current = self._words, self._current
        root = current[self.guest.region(address) if len(current) > 1 else 0]
        link = words[(root << self._unit) + (address >> _MIB)]
        if not link:
            return False
        at = ((link & _TABLE_MASK) - self.pool.physical >> _UNIT << self._unit) + (address >> 12 & 0xFF)
        known = self._executing.get(at)
        if known is None or not words[at] & APART:
            return False
        self._cpu.map_execute_only(OTHER, address & PAGE_MASK, known[1])
        return True

    def _tell_root(self) -> None:
        """Where the engine finds by itself what executes from a copy: in the kernel's view."""
        roots = self._current
        if self.view == KERNEL_VIEW and roots and not self._alone_runs:
            split = self.context.ttbcr & 7 if len(roots) > 1 else 0
            self._cpu.execute_copies(roots[0] << _UNIT, roots[-1] << _UNIT, split)
        else:
            self._cpu.execute_copies(-1)

    def run_alone(self, alone: bool) -> None:
        """One instruction runs alone from now on, or none does: a fetch of any other is an exit."""
        self._alone_runs = alone
        self._tell_root()

    def set_executing(self, executing: Mapping[int, tuple[int, int]]) -> None:
        """All pages that execute from copies which cannot be read: address and copy, by the places of their entries."""
        for at in self._executing:
            self._copies[at] = 0
        self._executing = dict(executing)
        for at, (_, copy) in self._executing.items():
            self._copies[at] = copy

    def _not_executing(self, at: int) -> None:
        if self._executing.pop(at, None) is not None:
            self._copies[at] = 0

    def expose(self, address: int, frame: int, writable: bool) -> int:
        """As the base, for data alone: what executes there is in the TLB (`single`)."""
        at = super().expose(address, frame, writable)
        self.replace(at, 1, self.frames.base + (frame << 12) | self.form.pages[READ | (WRITE if writable else 0)])
        self.flush_tlb()
        self.exposed = address & PAGE_MASK, frame
        return at

    def executed(self, page: int) -> int:
        """Engine-physical address of what executes in a page of the view in use, or -1."""
        if self.exposed[0] == page:
            return self.frames.base + (self.exposed[1] << 12)
        at = self._leaf_of(page)
        entry = self._words[at] if at >= 0 else 0
        if entry & 3 == 3:
            return self._executing[at][1] if entry & APART and at in self._executing else -1
        return entry & PAGE_MASK if entry else -1

    def drop(self, at: int) -> None:
        """Remove one mapping; `flush_tlb` must follow."""
        super().drop(at)
        self._not_executing(at)

    # -- the hypervisor's own mappings ----------------------------------------------------------

    def _install_window(self) -> None:
        if self._window < 0:
            self._window = self._window_table()
        address = _WINDOW.base
        root = self._current[self.guest.region(address)]
        bits = self.form.tables[READ | WRITE | EXECUTE] | OWN_DOMAIN << DOMAIN_SHIFT
        for part in range(_WINDOW.size >> _MIB):
            self.link(root, 2, address + (part << _MIB), self.pool.address_of(self._window + part) | bits)
        self._flush_view(KERNEL_VIEW)

    def is_window(self, table: int) -> bool:
        """Whether a table is one of the two of the hypervisor's window."""
        return self._window >= 0 and table - self._window in range(_WINDOW.size >> _MIB)

    def _window_table(self) -> int:
        """Units of a page of fixups, read-execute, and the shared page, read-write or read-only."""
        first = self.pool.take(1)
        for _ in range((_WINDOW.size >> _MIB) - 1):
            self.pool.take(1)
        self._fill_window(first)
        return first

    def _fill_window(self, table: int) -> None:
        first, pages, shared = table << self._unit, self.form.pages, layout.ARMV7.window + _WINDOW.fixup_size
        rights = READ if self._guarded else READ | WRITE
        for page in range(_WINDOW.fixup_size + 4096 >> 12):
            if page & 1 or page == _WINDOW.fixup_size >> 12:
                self._words[first + page] = shared | pages[rights]
            else:
                self._words[first + page] = layout.ARMV7.window + (page << 12) | pages[READ | EXECUTE]

    def guard_shared(self, guarded: bool) -> None:
        """Whether stores of fixups into the shared page exit: while an interrupt waits for the guest's mask."""
        if guarded == self._guarded:
            return
        self._guarded = guarded
        if self._window >= 0:
            self._fill_window(self._window)
            if guarded:
                self._flush_view(KERNEL_VIEW)

    @property
    def guarded(self) -> bool:
        """Whether stores into the shared page exit."""
        return self._guarded
