"""Shadow translation tables of ARMv7-A: short descriptors, filled on demand, one root a world and guest address space.

Room: `paravirt/modes/arm`. It is the `MemoryViews` of ARM guests. A second-level shadow table belongs to one guest
table (or section) in one view and is shared by all roots that link it. As with a TLB, nothing is noticed when the guest
edits its tables, until it invalidates. W^X: in the kernel view no page is writable and executable.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from emulator.engine.arm import FULL, OTHER, ArmEngine
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.arm.paging import EXECUTE, SCTLR_AFE, SCTLR_M, WRITE, TranslationContext, Walk, Walker, small_rights
from paravirt import abi, layout
from paravirt.mmu.views import ACTIVE_CODE, KERNEL_VIEW, MAY_BE_CODE, PLAIN, USER_CODE, USER_VIEW

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from paravirt.mmu.views import CodeSource

WORLD: Final = {KERNEL_VIEW: OTHER, USER_VIEW: FULL}
"""The kernel runs in the engine's other world, so that a switch needs no flush."""

_ROOTS: Final = 192
_SECOND: Final = (layout.ARMV7.tables_size - (_ROOTS << 14)) >> 10
_SECOND_BASE: Final = layout.ARMV7.tables + (_ROOTS << 14)
_WINDOW: Final = abi.ARMV7
_PAGE_MASK: Final = 0xFFFF_F000

# A small page of normal, cacheable memory (TEX 001, C, B), shareable; every access flag set.
_SMALL: Final = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 10
_NEVER: Final = 1
"""XN of a small page."""
_READ_ONLY: Final = 2 << 4
"""AP for user mode: read only."""
_READ_WRITE: Final = 3 << 4
_AP: Final = 3 << 4
_TABLE: Final = 1
_LINK_DOMAIN: Final = 0xF << 5


def _prefill_lookup(simple: bool, user: bool) -> NDArray[np.uint32]:
    """For the 12 low bits of a guest's small-page descriptor: the low bits of the shadow's data mapping, or 0."""
    table = np.zeros(4096, dtype=np.uint32)
    for low in range(4096):
        if not low & 2 or (simple and not low & 1 << 4):
            continue
        kernel, other = small_rights(low, simple)
        rights = other if user else kernel
        if rights & 1:
            table[low] = _SMALL | _NEVER | (_READ_WRITE if rights & WRITE else _READ_ONLY)
    return table


class _Root:
    """One guest address space in one view."""

    __slots__ = ("epoch", "first", "index", "limit", "links")

    def __init__(self, index: int) -> None:
        self.index = index
        self.first = index << 12
        """Its first word in the pool."""
        self.links: dict[int, tuple[int, int]] = {}
        """First-level index -> (guest's descriptor when it was linked, second-level shadow table)."""
        self.epoch = 0
        self.limit = _WINDOW.base
        """Below, every page that the kernel may touch, user code may touch in the same way, as far as is known."""


class ArmViews:
    """The shadow tables of one virtual CPU; see `paravirt.mmu.views.MemoryViews`."""

    code: CodeSource

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
        self._second_words = self._shadow[_ROOTS << 12 :].reshape(-1, 256)
        self._seen = np.zeros((_SECOND, 256), dtype=np.uint32)
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
        self.writers: dict[int, list[int]] = {}
        """Writable shadow entries (pool word indices) of frames that may be code."""
        self.images: list[range] = []
        """Frames that held the image's code at the beginning."""
        self.rewritten: set[int] = set()
        """Frames that were executed from a copy and then written: code that the guest makes, and may read."""
        self._execute_only = 0
        """Engine-physical address of the copy that the page being filled is to execute from unreadably, or 0."""
        self.executors: dict[int, set[int]] = {}
        """Executable shadow entries of frames that user code runs from."""
        self.view = KERNEL_VIEW
        self.asid = 0
        self.fills = 0
        self.prefilled = 0
        self.epoch = 0
        """Counts invalidations that other address spaces have not looked at."""
        self._roots: dict[tuple[int, ...], _Root] = {}
        self._tables: dict[tuple[int, int], int] = {}
        self._sources: list[int] = []
        """Of every second-level table: guest-physical address of the guest's, or -1."""
        self._limits: list[int] = []
        """Of every second-level table: offset of the first page that the kernel alone may touch, or its span."""
        self.on_limit: Callable[[int], None] = lambda _address: None
        """Called with the limit of the kernel's current address space when it changes."""
        self._window = -1
        self._current: list[_Root | None] = [None, None]
        self._domains = [0, 0]
        """The real DACR of each view's world."""
        self._data_read_only = False
        """The shared page is read-only, so that a fixup that stores into it exits."""

    def attach(self, code: CodeSource) -> None:
        """Connect to the code pages."""
        self.code = code

    # -- address spaces -------------------------------------------------------------------------

    def _key(self, view: int) -> tuple[int, ...]:
        context = self.context
        if not context.sctlr & SCTLR_M:
            return (view,)
        return view, context.ttbr0 & 0xFFFF_FF80, context.ttbr1 & 0xFFFF_C000, context.ttbcr & 7, self.asid

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

    def _load(self, view: int) -> None:
        key = self._key(view)
        root = self._roots.get(key)
        if root is None:
            if len(self._roots) == _ROOTS:
                self._start_over()
            root = _Root(len(self._roots))
            self._shadow[root.first : root.first + 4096] = 0
            self._roots[key] = root
            root.epoch = self.epoch
        elif root.epoch != self.epoch:
            self._revalidate(root)
        self._current[view] = root
        self._load_domains(view)
        if view == KERNEL_VIEW:
            self.on_limit(root.limit)
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
                self._engine.flush_world(world)

    @staticmethod
    def _real_domains(value: int) -> int:
        """The real DACR: as the guest's, but never Manager, under which XN would not hold; the shadow's rights are
        those of a manager then. The hypervisor's window is of domain 15 in the kernel's tables only."""
        managers = value & value >> 1 & 0x5555_5555
        return (value & ~(managers << 1)) & 0x3FFF_FFFF | 1 << 30

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
                    self._engine.flush_world(WORLD[view])
                    continue
                self._seen[table, place] = now
                self._words[(_ROOTS << 12) + (table << 8) + place] = 0
                self._engine.flush_page(WORLD[view], address)

    def invalidate_all(self) -> None:
        """TLBIALL and TLBIASID: look at all that the current address space has."""
        self.epoch += 1
        for view in (KERNEL_VIEW, USER_VIEW):
            root = self._current[view]
            if root is not None:
                self._revalidate(root)
                self._engine.flush_world(WORLD[view])

    def _unlink(self, root: _Root, index: int, view: int) -> None:
        del root.links[index]
        self._words[root.first + index] = 0
        self._engine.flush_world(WORLD[view])

    def _revalidate(self, root: _Root) -> None:
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

    def _revalidate_second(self, table: int) -> None:
        source = self._sources[table]
        at = source - self._base
        if self._compare(self._guest_address + at, self._seen_address + (table << 10), 1024):
            guest, seen = self._guest[at >> 2 : (at >> 2) + 256], self._seen[table]
            self._second_words[table][guest != seen] = 0
            seen[:] = guest

    def _start_over(self) -> None:
        """Forget every shadow table: the pool is full."""
        self._shadow[:] = 0
        self._roots.clear()
        self._tables.clear()
        self._sources.clear()
        self._limits.clear()
        self.writers.clear()
        self.executors.clear()
        self._window = -1
        self._current = [None, None]
        self.kind[self.kind == ACTIVE_CODE] = MAY_BE_CODE
        self.code.forget_mappings()
        self._engine.flush_tlb()

    def _restart(self) -> None:
        """Start over, and load the roots again."""
        self._start_over()
        self._load(self.view)

    # -- filling --------------------------------------------------------------------------------

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Make `address` accessible as the guest's tables allow; raises the guest's own abort."""
        walk = self.walker.walk(address, write, self.view == USER_VIEW, fetch)
        if fetch and not 0 <= walk.physical - self._base >> 12 < self._frames:
            raise ArmException(x.PREFETCH_ABORT, x.EXTERNAL, address)
        self.fills += 1
        table = self._linked(walk)
        at = (_ROOTS << 12) + (table << 8) + (address >> 12 & 0xFF)
        old = self._words[at]
        if self.view == KERNEL_VIEW and (walk.user ^ walk.kernel) & 3 and not walk.manager:
            current = self._current[KERNEL_VIEW]
            assert current is not None
            self._lower(current, address)
        new = self._leaf(walk, at, write, fetch)
        self._words[at] = new
        if walk.second >= 0 and self._sources[table] >= 0:
            self._seen[table, address >> 12 & 0xFF] = walk.second
        if old and old != new:
            self._engine.flush_page(WORLD[self.view], address)
        if self._execute_only:
            self._engine.map_execute_only(WORLD[self.view], address, self._execute_only)
            self._execute_only = 0

    def reads_exit(self, address: int) -> bool:
        """Whether the page of kernel code at `address` executes from a copy that cannot be read."""
        number = self.frame_of(address)
        return number in self.rewritten and bool(self.kind[number] == ACTIVE_CODE)

    def _linked(self, walk: Walk) -> int:
        """The second-level shadow table for a page, linked into the current root."""
        view, index = self.view, walk.address >> 20
        root = self._current[view]
        assert root is not None
        link = root.links.get(index)
        if link is not None and link[0] == walk.descriptor:
            return link[1]
        if len(self._sources) >= _SECOND - 2:
            self._restart()
            root = self._current[view]
            assert root is not None
        table = self._second(walk, view)
        domain = walk.domain if walk.domain != 15 else 14
        self._words[root.first + index] = _SECOND_BASE + (table << 10) | _TABLE | domain << 5
        root.links[index] = walk.descriptor, table
        if view == KERNEL_VIEW:
            self._lower(root, (index << 20) + self._limits[table])
        if link is not None:
            self._engine.flush_world(WORLD[view])
        return table

    def _lower(self, root: _Root, address: int) -> None:
        """A page that the kernel alone may touch becomes reachable."""
        if address < root.limit:
            root.limit = address & _PAGE_MASK
            self.on_limit(root.limit)

    def _second(self, walk: Walk, view: int) -> int:
        """The second-level shadow table for what a first-level descriptor says."""
        if walk.descriptor < 0:
            key = (-1 - (walk.address >> 20), view)
        elif walk.second >= 0:
            key = (walk.descriptor & 0xFFFF_FFFC | (1 if self.context.sctlr & SCTLR_AFE else 0) | 2, view)
        else:
            key = (walk.descriptor << 32 | walk.physical & 0xFFF0_0000, view)
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
        entries = (guest & np.uint32(_PAGE_MASK))[places] | low[places]
        code = self.kind[frames[places]] != PLAIN
        entries[code] = entries[code] & np.uint32(0xFFFF_FFFF ^ _AP) | np.uint32(_READ_ONLY)
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
        low = _SMALL | _NEVER | (_READ_WRITE if rights & WRITE else _READ_ONLY)
        row[:count] = (self._offsets[:count] + np.uint32(walk.physical & 0xFFF0_0000)) | np.uint32(low)
        code = np.flatnonzero(self.kind[first : first + count] != PLAIN)
        row[code] = row[code] & np.uint32(0xFFFF_FFFF ^ _AP) | np.uint32(_READ_ONLY)
        self.prefilled += count

    def _leaf(self, walk: Walk, at: int, write: bool, fetch: bool) -> int:
        """The shadow entry for one page."""
        number = walk.physical - self._base >> 12
        kernel = self.view == KERNEL_VIEW
        rights = 7 if walk.manager else walk.kernel if kernel else walk.user
        if not 0 <= number < self._frames:
            page = walk.physical if walk.physical < layout.ARMV7.tables else layout.ARMV7.open_bus
            return page | _SMALL | _NEVER | (_READ_WRITE if rights & WRITE else _READ_ONLY)
        if fetch and kernel:
            if self.kind[number] == USER_CODE:
                self._retire_user_code(number)
            copy = self.code.activate(walk.address & _PAGE_MASK, number, at)
            if number in self.rewritten:
                self._execute_only = copy
                return 0
            return copy | _SMALL | _READ_ONLY
        kind = self.kind[number]
        if not kernel and rights & EXECUTE and (fetch or (kind == USER_CODE and not write)):
            return self._user_code(number, at) | (_READ_ONLY if not write else _READ_WRITE)
        writable = bool(rights & WRITE)
        if kind and writable:
            if write:
                if kind == ACTIVE_CODE:
                    self._note_written(number)
                    self.code.deactivate(number)
                elif kind == USER_CODE:
                    self._retire_user_code(number)
                self.writers.setdefault(number, []).append(at)
            else:
                writable = False
        return walk.physical & _PAGE_MASK | _SMALL | _NEVER | (_READ_WRITE if writable else _READ_ONLY)

    # -- code -----------------------------------------------------------------------------------

    def _user_code(self, number: int, at: int) -> int:
        """The executable entry for a frame that user code runs from, untouched. A store through any mapping is seen
        from now on, since the engine may keep what it made of the code."""
        if self.kind[number] != USER_CODE:
            self.revoke_writers(number)
            if self.kind[number] == ACTIVE_CODE:
                self.code.deactivate(number)
            self.kind[number] = USER_CODE
        self.executors.setdefault(number, set()).add(at)
        return self._base + (number << 12) | _SMALL

    def _retire_user_code(self, number: int) -> None:
        """A frame that user code ran from is about to be written: no mapping executes it any more."""
        for at in self.executors.pop(number, ()):
            entry = self._words[at]
            if entry and entry & _PAGE_MASK == self._base + (number << 12):
                self._words[at] = entry | _NEVER
        self.kind[number] = MAY_BE_CODE
        self.flush_tlb()
        self._engine.frame_changed(self._base + (number << 12), 4096)

    def mark_code(self, first: int, last: int) -> None:
        """Frames `first`..`last` may hold kernel code: map them read-only until they are written."""
        region = self.kind[max(0, first) : min(self._frames, last + 1)]
        region[region == PLAIN] = MAY_BE_CODE
        self.images.append(range(first, last + 1))

    def revoke_writers(self, number: int) -> None:
        """Take every writable mapping of a frame away, since it is about to execute."""
        changed = False
        page = self._base + (number << 12)
        if self.kind[number] == PLAIN:
            used = self._second_words[: len(self._sources)].reshape(-1)
            wanted = np.uint32(page | _READ_WRITE)
            found = np.flatnonzero((used & np.uint32(_PAGE_MASK | _AP)) == wanted)
            if len(found):
                used[found] ^= np.uint32(_READ_WRITE ^ _READ_ONLY)
                changed = True
            self.kind[number] = MAY_BE_CODE
        for at in self.writers.pop(number, ()):
            entry = self._words[at]
            if entry & (_PAGE_MASK | _AP) == page | _READ_WRITE:
                self._words[at] = entry ^ _READ_WRITE ^ _READ_ONLY
                changed = True
        if changed:
            self.flush_tlb()

    def set_kind(self, number: int, kind: int) -> None:
        """Note what a frame is."""
        self.kind[number] = kind

    def written(self, number: int) -> None:
        """The hypervisor is about to write to a frame for the guest: code in it leaves use."""
        kind = self.kind[number]
        if kind == ACTIVE_CODE:
            self._note_written(number)
            self.code.deactivate(number)
        elif kind == USER_CODE:
            self._retire_user_code(number)

    def _note_written(self, number: int) -> None:
        """Code is written: from now on its frame executes unreadably. The image's own code, which the kernel patches
        at a few places, stays readable: its pages hold much that is read, and every miss would cost an exit."""
        if not any(number in frames for frames in self.images):
            self.rewritten.add(number)

    def drop(self, at: Any) -> None:
        """Remove one mapping; `flush_tlb` must follow."""
        self._words[at] = 0

    def flush_tlb(self) -> None:
        """Let the engine forget mappings that were removed."""
        self._engine.flush_tlb()

    def frame_of(self, address: int) -> int:
        """The frame that the guest's kernel has mapped at `address`, or -1."""
        try:
            number = self.walker.translate(address).physical - self._base >> 12
        except ArmException:
            return -1
        return number if 0 <= number < self._frames else -1

    def expose(self, address: int, frame: int, writable: bool) -> Any:
        """Map the guest's own frame, executable, for the page of kernel code at `address`."""
        walk = self.walker.walk(address, False, False, True)
        at = (_ROOTS << 12) + (self._linked(walk) << 8) + (address >> 12 & 0xFF)
        self._words[at] = self._base + (frame << 12) | _SMALL | (_READ_WRITE if writable else _READ_ONLY)
        self.flush_tlb()
        return at

    # -- the hypervisor's own mappings ----------------------------------------------------------

    def install_window(self) -> None:
        """Map the hypervisor window in the kernel view of the current address space."""
        root = self._current[KERNEL_VIEW]
        assert root is not None
        if self._window < 0:
            if len(self._sources) >= _SECOND - 2:
                self._restart()
                root = self._current[KERNEL_VIEW]
                assert root is not None
            self._window = len(self._sources)
            self._sources += [-1, -1]
            self._limits += [0x10_0000, 0x10_0000]
            self._fill_window()
        for part in range(2):
            index = (_WINDOW.base >> 20) + part
            table = self._window + part
            self._words[root.first + index] = _SECOND_BASE + (table << 10) | _TABLE | _LINK_DOMAIN
            root.links[index] = -2, table
        self._engine.flush_world(OTHER)

    def _fill_window(self) -> None:
        """Units of a page of fixups, read-execute, and the shared page, read-write or read-only."""
        first = (_ROOTS << 12) + (self._window << 8)
        shared = layout.ARMV7.window + _WINDOW.fixup_size
        rights = _READ_ONLY if self._data_read_only else _READ_WRITE
        for page in range(_WINDOW.fixup_size + 4096 >> 12):
            if page & 1 or page == _WINDOW.fixup_size >> 12:
                self._words[first + page] = shared | _SMALL | _NEVER | rights
            else:
                self._words[first + page] = layout.ARMV7.window + (page << 12) | _SMALL | _READ_ONLY

    def guard_shared(self, guarded: bool) -> None:
        """Whether stores of fixups into the shared page exit: while an interrupt waits for the guest's mask."""
        if guarded == self._data_read_only:
            return
        self._data_read_only = guarded
        if self._window >= 0:
            first = (_ROOTS << 12) + (self._window << 8)
            flip = _READ_WRITE ^ _READ_ONLY
            for page in (*range(1, _WINDOW.fixup_size >> 12, 2), _WINDOW.fixup_size >> 12):
                self._words[first + page] ^= flip
            if guarded:
                self._engine.flush_world(OTHER)

    @property
    def guarded(self) -> bool:
        """Whether stores into the shared page exit."""
        return self._data_read_only
