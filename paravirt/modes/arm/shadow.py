"""Shadow tables of an ARMv7-A guest: two views in two worlds, domains, and code that is executed and not read.

Room: `paravirt/modes/arm`. The real DACR is the guest's, world by world, so that it is written without a change of any
table; but never Manager, under which a page without the right to execute would execute. Only what was changed is
forgotten: a page, a world, or both. Kernel code executes from copies, which the TLB has and no table.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Final

import numpy as np

from emulator.engine.arm import FULL, OTHER, ArmEngine, CopiedPages
from emulator.isa.arm.paging import SCTLR_AFE, SCTLR_M, TranslationContext
from emulator.isa.arm.tables import APART, OWN_DOMAIN, READ_ONLY, USER_TABLES, ArmTables
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import GLOBAL, KERNEL_SHIFT, READ, USER_SHIFT, WRITE, PageWalk
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.views import KERNEL_VIEW, MAY_BE_CODE, USER_VIEW
from paravirt.modes.arm.code import PAGE_MASK, WORLD, ArmCode

_WINDOW: Final = abi.ARMV7
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


class ArmShadow(ArmCode):
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
