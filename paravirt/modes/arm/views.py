"""What each page of an ARMv7-A guest leads to, and with which rights, in the kernel's view and in the user's.

Room: `paravirt/modes/arm`. It is the `MemoryViews` of ARM guests, on the tables of `tables` and `spaces`. W^X: in the
kernel's view no page is writable and executable, and code executes from copies that cannot be read.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from emulator.engine.arm import OTHER, ArmEngine
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.arm.paging import EXECUTE, WRITE, TranslationContext, Walk
from paravirt import abi, layout
from paravirt.mmu.views import ACTIVE_CODE, KERNEL_VIEW, MAY_BE_CODE, PLAIN, USER_CODE, USER_VIEW
from paravirt.modes.arm.spaces import SECOND_BASE, TABLE, WORLD, ArmSpaces, Root
from paravirt.modes.arm.tables import AP, NEVER, PAGE_MASK, READ_ONLY, READ_WRITE, SECOND, SMALL

if TYPE_CHECKING:
    from paravirt.mmu.views import CodeSource

_WINDOW: Final = abi.ARMV7
_LINK_DOMAIN: Final = 0xF << 5
_LOADS_OF_PC: Final = np.array([0xE51F_F004, 0xF000_F8DF], np.uint32)
"""LDR PC, [PC, #-4], and T32's LDR.W PC, [PC]: the next word is where they lead."""
_TOGETHER: Final = 128
"""Pages of kernel code that are entered into the TLB with one that is missed."""


class ArmViews(ArmSpaces):
    """The shadow tables of one virtual CPU; see `paravirt.mmu.views.MemoryViews`."""

    code: CodeSource

    def __init__(self, engine: ArmEngine, memory: memoryview, base: int, context: TranslationContext) -> None:
        """`memory` begins at guest-physical `base`."""
        super().__init__(engine, memory, base, context)
        self.writers: dict[int, list[int]] = {}
        """Writable shadow entries (pool word indices) of frames that may be code."""
        self._executing: dict[int, tuple[int, int, int]] = {}
        """Shadow entry of a page of kernel code -> its address, the copy it executes from, and the entry itself, by
        which the guest's own frame is read. The last that was missed comes last."""
        self.executors: dict[int, set[int]] = {}
        """Executable shadow entries of frames that user code runs from."""
        self.fills = 0
        self._data_read_only = False
        """The shared page is read-only, so that a fixup that stores into it exits."""

    def attach(self, code: CodeSource) -> None:
        """Connect to the code pages."""
        self.code = code

    def _mappings_gone(self) -> None:
        self.writers.clear()
        self.executors.clear()
        self._executing.clear()
        self.kind[self.kind == ACTIVE_CODE] = MAY_BE_CODE
        self.code.forget_mappings()

    # -- filling --------------------------------------------------------------------------------

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        """Make `address` accessible as the guest's tables allow; raises the guest's own abort."""
        walk = self.walker.walk(address, write, self.view == USER_VIEW, fetch)
        if fetch and not 0 <= walk.physical - self._base >> 12 < self._frames:
            raise ArmException(x.PREFETCH_ABORT, x.EXTERNAL, address)
        self.fills += 1
        table = self._linked(walk)
        at = self.place_of(table, address)
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
        if fetch and self.view == KERNEL_VIEW:
            self.execute_again(address)

    def execute_again(self, address: int) -> bool:
        """Enter a page of kernel code that has a copy into the TLB, to be executed and not read; whether it is one.

        No table entry could say so: what is in the tables lets the guest read its own frame there. With it come those
        that were executed last, where the engine has forgotten everything. How often a page is missed depends on the
        size of the engine's TLB, which follows the host's time: so this is no exit, but a part of the engine's walk.
        """
        root = self._current[KERNEL_VIEW]
        assert root is not None
        at = self._place(root, address)
        known = self._executing.pop(at, None)
        if known is None or self._words[at] != known[2]:
            return False
        self._executing[at] = known
        enter = self._engine.map_execute_only
        if self._forgotten:
            self._forgotten = False
            for place, (other, copy, entry) in islice(reversed(self._executing.items()), _TOGETHER):
                if self._words[place] == entry and self._place(root, other) == place:
                    enter(OTHER, other, copy)
        enter(OTHER, address & PAGE_MASK, known[1])
        return True

    def _place(self, root: Root, address: int) -> int:
        """Pool word of the shadow entry for a page, by the tables that are linked now; -1 where none is."""
        link = root.links.get(address >> 20)
        return self.place_of(link[1], address) if link is not None else -1

    def _leaf(self, walk: Walk, at: int, write: bool, fetch: bool) -> int:
        """The shadow entry for one page."""
        number = walk.physical - self._base >> 12
        kernel = self.view == KERNEL_VIEW
        rights = 7 if walk.manager else walk.kernel if kernel else walk.user
        if not 0 <= number < self._frames:
            page = walk.physical if walk.physical < layout.ARMV7.tables else layout.ARMV7.open_bus
            return page | SMALL | NEVER | (READ_WRITE if rights & WRITE else READ_ONLY)
        if fetch and kernel:
            if self.kind[number] == USER_CODE:
                self._retire_user_code(number)
            page = walk.address & PAGE_MASK
            copy = self.code.activate(page, number, at)
            if self._reads_itself(number, copy):
                return copy | SMALL | READ_ONLY
            entry = walk.physical & PAGE_MASK | SMALL | NEVER | READ_ONLY
            self._executing[at] = page, copy, entry
            return entry
        kind = self.kind[number]
        if not kernel and rights & EXECUTE and (fetch or (kind == USER_CODE and not write)):
            return self._user_code(number, at) | (READ_ONLY if not write else READ_WRITE)
        writable = bool(rights & WRITE)
        if kind and writable:
            if write:
                if kind == ACTIVE_CODE:
                    self.code.deactivate(number)
                elif kind == USER_CODE:
                    self._retire_user_code(number)
                self.writers.setdefault(number, []).append(at)
            else:
                writable = False
        return walk.physical & PAGE_MASK | SMALL | NEVER | (READ_WRITE if writable else READ_ONLY)

    # -- code -----------------------------------------------------------------------------------

    def _reads_itself(self, number: int, copy: int) -> bool:
        """Whether a copy must be readable where it executes: nothing was rewritten, or by a load of an address that
        stands beside it, which is how a far fixup is reached."""
        words = np.frombuffer(self.code.copy_at(copy), np.uint32)
        changed = words[words != self._guest[number << 10 : number + 1 << 10]]
        return not len(changed) or bool(np.isin(changed, _LOADS_OF_PC).any())

    def _user_code(self, number: int, at: int) -> int:
        """The executable entry for a frame that user code runs from, untouched. A store through any mapping is seen
        from now on, since the engine may keep what it made of the code."""
        if self.kind[number] != USER_CODE:
            self.revoke_writers(number)
            if self.kind[number] == ACTIVE_CODE:
                self.code.deactivate(number)
            self.kind[number] = USER_CODE
        self.executors.setdefault(number, set()).add(at)
        return self._base + (number << 12) | SMALL

    def _retire_user_code(self, number: int) -> None:
        """A frame that user code ran from is about to be written: no mapping executes it any more."""
        for at in self.executors.pop(number, ()):
            entry = self._words[at]
            if entry and entry & PAGE_MASK == self._base + (number << 12):
                self._words[at] = entry | NEVER
        self.kind[number] = MAY_BE_CODE
        self.flush_tlb()
        self._engine.frame_changed(self._base + (number << 12), 4096)

    def mark_code(self, first: int, last: int) -> None:
        """Frames `first`..`last` may hold kernel code: map them read-only until they are written."""
        region = self.kind[max(0, first) : min(self._frames, last + 1)]
        region[region == PLAIN] = MAY_BE_CODE

    def revoke_writers(self, number: int) -> None:
        """Take every writable mapping of a frame away, since it is about to execute."""
        changed = False
        page = self._base + (number << 12)
        if self.kind[number] == PLAIN:
            used = self._second_words[: len(self._sources)].reshape(-1)
            wanted = np.uint32(page | READ_WRITE)
            found = np.flatnonzero((used & np.uint32(PAGE_MASK | AP)) == wanted)
            if len(found):
                used[found] ^= np.uint32(READ_WRITE ^ READ_ONLY)
                changed = True
            self.kind[number] = MAY_BE_CODE
        for at in self.writers.pop(number, ()):
            entry = self._words[at]
            if entry & (PAGE_MASK | AP) == page | READ_WRITE:
                self._words[at] = entry ^ READ_WRITE ^ READ_ONLY
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
            self.code.deactivate(number)
        elif kind == USER_CODE:
            self._retire_user_code(number)

    def drop(self, at: Any) -> None:
        """Remove one mapping; `flush_tlb` must follow."""
        self._words[at] = 0
        self._executing.pop(at, None)

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
        at = self.place_of(self._linked(walk), address)
        self._words[at] = self._base + (frame << 12) | SMALL | (READ_WRITE if writable else READ_ONLY)
        self.flush_tlb()
        return at

    # -- the hypervisor's own mappings ----------------------------------------------------------

    def install_window(self) -> None:
        """Map the hypervisor window in the kernel view of the current address space."""
        root = self._current[KERNEL_VIEW]
        assert root is not None
        if self._window < 0:
            if len(self._sources) >= SECOND - 2:
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
            self._words[root.first + index] = SECOND_BASE + (table << 10) | TABLE | _LINK_DOMAIN
            root.links[index] = -2, table
        self._flush(KERNEL_VIEW)

    def _fill_window(self) -> None:
        """Units of a page of fixups, read-execute, and the shared page, read-write or read-only."""
        first = self.place_of(self._window, 0)
        shared = layout.ARMV7.window + _WINDOW.fixup_size
        rights = READ_ONLY if self._data_read_only else READ_WRITE
        for page in range(_WINDOW.fixup_size + 4096 >> 12):
            if page & 1 or page == _WINDOW.fixup_size >> 12:
                self._words[first + page] = shared | SMALL | NEVER | rights
            else:
                self._words[first + page] = layout.ARMV7.window + (page << 12) | SMALL | READ_ONLY

    def guard_shared(self, guarded: bool) -> None:
        """Whether stores of fixups into the shared page exit: while an interrupt waits for the guest's mask."""
        if guarded == self._data_read_only:
            return
        self._data_read_only = guarded
        if self._window >= 0:
            first = self.place_of(self._window, 0)
            flip = READ_WRITE ^ READ_ONLY
            for page in (*range(1, _WINDOW.fixup_size >> 12, 2), _WINDOW.fixup_size >> 12):
                self._words[first + page] ^= flip
            if guarded:
                self._flush(KERNEL_VIEW)

    @property
    def guarded(self) -> bool:
        """Whether stores into the shared page exit."""
        return self._data_read_only
