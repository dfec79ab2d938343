"""Kernel code of an ARMv7-A guest that executes from copies, and the hypervisor's own window.

Room: `paravirt/modes/arm`. `ArmCode` is the part of `paravirt.modes.arm.shadow` that says what executes: a copy that
the TLB has and no table, so that the guest reads its own code; and fixups with the shared page, in tables of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from emulator.engine.arm import FULL, OTHER, ArmEngine
from emulator.isa.arm.paging import TranslationContext
from emulator.isa.arm.tables import APART, DOMAIN_SHIFT, OWN_DOMAIN, USER_TABLES, ArmTables
from emulator.isa.paging import EXECUTE, READ, WRITE, PageWalk
from paravirt import abi, layout
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW

WORLD: Final = {KERNEL_VIEW: OTHER, USER_VIEW: FULL}
"""The kernel runs in the engine's other world, so that a switch needs no flush."""
PAGE_MASK: Final = 0xFFFF_F000
_WINDOW: Final = abi.ARMV7
_LOADS_OF_PC: Final = np.array([0xE51F_F004, 0xF000_F8DF], np.uint32)
"""LDR PC, [PC, #-4], and T32's LDR.W PC, [PC]: the next word is where they lead."""
_MIB: Final = 20
_UNIT: Final = USER_TABLES.unit
_TABLE_MASK: Final = USER_TABLES.table_mask


class ArmCode(ShadowPaging):
    """What executes, of the shadow tables of one virtual CPU."""

    guest: ArmTables
    context: TranslationContext
    watched: frozenset[int]
    exposed: tuple[int, int]
    _cpu: ArmEngine
    _guest_words: NDArray[np.uint32]
    _copies: memoryview
    _executing: dict[int, tuple[int, int]]
    _alone_runs: bool
    _guarded: bool

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

    def _flush_view(self, view: int) -> None:
        self._cpu.flush_world(WORLD[view])

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
