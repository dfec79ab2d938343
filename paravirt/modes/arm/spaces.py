"""The address spaces of an ARMv7-A guest in its two views: first-level shadow tables, domains, and invalidation.

Room: `paravirt/modes/arm`. A root is made for what names a guest's address space (TTBR0, TTBR1, TTBCR and ASID) in one
view; what the guest has changed since is looked for where it invalidates, and when an address space runs again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.engine.arm import FULL, OTHER, ArmEngine
from emulator.isa.arm.paging import SCTLR_M, TranslationContext, Walk
from paravirt import abi, layout
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.arm.tables import PAGE_MASK, ROOTS, SECOND, ArmTables

if TYPE_CHECKING:
    from collections.abc import Callable

WORLD: Final = {KERNEL_VIEW: OTHER, USER_VIEW: FULL}
"""The kernel runs in the engine's other world, so that a switch needs no flush."""

SECOND_BASE: Final = layout.ARMV7.tables + (ROOTS << 14)
"""Engine-physical address of the first second-level table."""
TABLE: Final = 1
"""A first-level entry that is a table's."""


class Root:
    """One guest address space in one view."""

    __slots__ = ("epoch", "first", "index", "limit", "links")

    def __init__(self, index: int) -> None:
        self.index = index
        self.first = index << 12
        """Its first word in the pool."""
        self.links: dict[int, tuple[int, int]] = {}
        """First-level index -> (guest's descriptor when it was linked, second-level shadow table)."""
        self.epoch = 0
        self.limit = abi.ARMV7.base
        """Below, every page that the kernel may touch, user code may touch in the same way, as far as is known."""


class ArmSpaces(ArmTables):
    """Both views of every address space of one virtual CPU."""

    def __init__(self, engine: ArmEngine, memory: memoryview, base: int, context: TranslationContext) -> None:
        """`memory` begins at guest-physical `base`."""
        super().__init__(engine, memory, base, context)
        self.view = KERNEL_VIEW
        self.asid = 0
        self.epoch = 0
        """Counts invalidations that other address spaces have not looked at."""
        self._forgotten = False
        """The engine has forgotten all of the kernel's translations since code was entered last."""
        self._roots: dict[tuple[int, ...], Root] = {}
        self.on_limit: Callable[[int], None] = lambda _address: None
        """Called with the limit of the kernel's current address space when it changes."""
        self._window = -1
        self._current: list[Root | None] = [None, None]
        self._domains = [0, 0]
        """The real DACR of each view's world."""

    # -- address spaces -------------------------------------------------------------------------

    def use(self, view: int) -> None:
        """Make `view` of the current guest address space the one that the engine runs in."""
        self.view = view
        if self._current[view] is None:
            self._load(view)
        self._load_domains(view)
        self._engine.use_world(WORLD[view])

    def load_root(self) -> None:
        """TTBR0, TTBR1, TTBCR, the ASID or SCTLR.M were written: another address space."""
        self._current = [None, None]
        self._load(self.view)

    def _key(self, view: int) -> tuple[int, ...]:
        context = self.context
        if not context.sctlr & SCTLR_M:
            return (view,)
        return view, context.ttbr0 & 0xFFFF_FF80, context.ttbr1 & 0xFFFF_C000, context.ttbcr & 7, self.asid

    def _load(self, view: int) -> None:
        key = self._key(view)
        root = self._roots.get(key)
        if root is None:
            if len(self._roots) == ROOTS:
                self._start_over()
            root = Root(len(self._roots))
            self._shadow[root.first : root.first + 4096] = 0
            self._roots[key] = root
            root.epoch = self.epoch
        elif root.epoch != self.epoch:
            self._revalidate(root)
        self._current[view] = root
        self._load_domains(view)
        if view == KERNEL_VIEW:
            self.on_limit(root.limit)
        self._forgotten |= view == KERNEL_VIEW
        self._engine.set_root(layout.ARMV7.tables + (root.index << 14), WORLD[view])

    def domains_changed(self, old: int) -> None:
        """DACR was written: the world that runs has it at once, and what loses access is forgotten there."""
        if (old ^ self.context.dacr) & (old & old >> 1 | self.context.dacr & self.context.dacr >> 1) & 0x5555_5555:
            self._start_over()  # a manager's rights are in the shadow's entries
            self._load(self.view)
        self._load_domains(self.view)

    def _load_domains(self, view: int) -> None:
        world = WORLD[view]
        context = self.context
        new = self._real_domains(context.dacr) if context.sctlr & SCTLR_M else 0x5555_5555
        old = self._domains[view]
        if new != old:
            self._domains[view] = new
            self._engine.set_domains(new, world)
            if old & ~new:
                self._flush(view)

    @staticmethod
    def _real_domains(value: int) -> int:
        """The real DACR: as the guest's, but never Manager, under which XN would not hold; the shadow's rights are
        those of a manager then. The hypervisor's window is of domain 15 in the kernel's tables only."""
        managers = value & value >> 1 & 0x5555_5555
        return (value & ~(managers << 1)) & 0x3FFF_FFFF | 1 << 30

    def _linked(self, walk: Walk) -> int:
        """The second-level shadow table for a page, linked into the current root."""
        view, index = self.view, walk.address >> 20
        root = self._current[view]
        assert root is not None
        link = root.links.get(index)
        if link is not None and link[0] == walk.descriptor:
            return link[1]
        if len(self._sources) >= SECOND - 2:
            self._restart()
            root = self._current[view]
            assert root is not None
        table = self._second(walk, view)
        domain = walk.domain if walk.domain != 15 else 14
        self._words[root.first + index] = SECOND_BASE + (table << 10) | TABLE | domain << 5
        root.links[index] = walk.descriptor, table
        if view == KERNEL_VIEW:
            self._lower(root, (index << 20) + self._limits[table])
        if link is not None:
            self._flush(view)
        return table

    def _lower(self, root: Root, address: int) -> None:
        """A page that the kernel alone may touch becomes reachable."""
        if address < root.limit:
            root.limit = address & PAGE_MASK
            self.on_limit(root.limit)

    # -- invalidation ---------------------------------------------------------------------------

    def invalidate(self, address: int) -> None:
        """TLBIMVA and its kin: drop one page's translation in the current address space; others look when loaded."""
        self.epoch += 1
        index = address >> 20
        for view in (KERNEL_VIEW, USER_VIEW):
            root = self._current[view]
            if root is None:
                root = self._roots.get(self._key(view))
                if root is None or root.epoch != self.epoch - 1:
                    continue
            root.epoch = self.epoch
            link = root.links.get(index)
            if link is None:
                continue
            if self.walker.word(self.context.first_level(address)) != link[0]:
                self._unlink(root, index, view)
                continue
            table = link[1]
            source = self._sources[table]
            if source < 0:
                continue
            place = address >> 12 & 0xFF
            now = self.walker.word(source + 4 * place) & 0xFFFF_FFFF
            if now != int(self._seen[table, place]):
                if now & 3 == 1 or int(self._seen[table, place]) & 3 == 1:
                    self._revalidate_second(table)  # sixteen entries are one large page
                    self._flush(view)
                    continue
                self._seen[table, place] = now
                self._words[self.place_of(table, address)] = 0
                self._engine.flush_page(WORLD[view], address)

    def invalidate_all(self) -> None:
        """TLBIALL and TLBIASID: look at all that the current address space has."""
        self.epoch += 1
        for view in (KERNEL_VIEW, USER_VIEW):
            root = self._current[view]
            if root is not None:
                self._revalidate(root)
                self._flush(view)

    def _unlink(self, root: Root, index: int, view: int) -> None:
        del root.links[index]
        self._words[root.first + index] = 0
        self._flush(view)

    def _revalidate(self, root: Root) -> None:
        """Drop what is no longer as the guest's tables say; the caller flushes."""
        root.epoch = self.epoch
        context = self.context
        if not context.sctlr & SCTLR_M:
            return
        word, words = self.walker.word, self._words
        gone = []
        for index, (seen, table) in root.links.items():
            if seen >= -1 and word(context.first_level(index << 20)) != seen:
                words[root.first + index] = 0
                gone.append(index)
            elif self._sources[table] >= 0:
                self._revalidate_second(table)
        for index in gone:
            del root.links[index]

    def _start_over(self) -> None:
        """Forget every shadow table: the pool is full."""
        self._shadow[:] = 0
        self._roots.clear()
        self._tables.clear()
        self._sources.clear()
        self._limits.clear()
        self._window = -1
        self._current = [None, None]
        self._mappings_gone()
        self._engine.flush_tlb()

    def _mappings_gone(self) -> None:
        """All mappings of frames are gone."""
        raise NotImplementedError

    def _restart(self) -> None:
        """Start over, and load the roots again."""
        self._start_over()
        self._load(self.view)

    def _flush(self, view: int) -> None:
        """Have the engine forget all translations of a view."""
        self._forgotten |= view == KERNEL_VIEW
        self._engine.flush_world(WORLD[view])

    def flush_tlb(self) -> None:
        """Let the engine forget mappings that were removed."""
        self._forgotten = True
        self._engine.flush_tlb()
