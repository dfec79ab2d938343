"""Shadow tables of an AArch64 guest: both halves of its addresses, in two views that need no flush between them.

Room: `paravirt/modes/aarch64`. Devices are never mapped: every access exits and is done in the guest's place. No
mapping is both writable and executable, since the engine misses stores to its code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from emulator.engine.aarch64 import AArch64Engine
from emulator.isa.aarch64.paging import EL0_TABLES, AArch64Tables, TranslationContext
from emulator.isa.paging import PageWalk
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.views import USER_VIEW

_FEW: Final = 8
"""Pages that are forgotten one by one."""
_UPPER: Final = 0xFFFF_0000_0000_0000
_REMEMBERED: Final = 4096
"""Pages whose invalidations are counted."""


class AArch64Shadow(ShadowPaging):
    """The shadow tables of one virtual CPU."""

    def __init__(self, engine: AArch64Engine, memory: GuestMemory, context: TranslationContext) -> None:
        self._cpu = engine
        self._whole = False
        """Entries in use were changed, the engine has not been told, and not all are in `_changed`."""
        self._changed: list[int] = []
        """Places of entries of pages that were changed without the engine being told."""
        self._below: set[int] = set()
        """Tables of pages of the lower half, in the kernel's view."""
        super().__init__(
            engine,  # type: ignore[arg-type]
            memory,
            AArch64Tables(memory.view, memory.base, context),
            EL0_TABLES,
            layout.AARCH64,
            abi.AARCH64,
        )
        self.blocks.whole = False  # so that the engine can forget page by page
        self.frames.exclusive = self.frames.expectant = True
        self.frames.execute_only = engine.capabilities.execute_only
        self.pool.on_removed = self._removed
        self.watched = False
        """Some pages must not be mapped but by a miss of their own (`AArch64Hypervisor.debug_changed`)."""
        self.clean_page = -1
        """The page that was invalidated last and not mapped since, or -1."""
        self.invalidations: dict[int, int] = {}
        """Pages of the kernel's that were invalidated by themselves, and how often."""
        self.on_mapped: Callable[[], None] = lambda: None
        """Called before a page is mapped."""

    def _install(self, walk: PageWalk, write: bool, fetch: bool) -> None:
        self.clean_page = -1
        self.on_mapped()
        super()._install(walk, write, fetch)

    def _table(self, guest: int, level: int, role: int, address: int) -> int:
        table = super()._table(guest, level, role, address)
        if level == 1 and role != USER_VIEW and not address >> 63:
            self._below.add(table)
        return table

    def for_user_too(self, table: int) -> bool:
        """In the lower half: a page of the kernel's there is never mapped for data (`AArch64Hypervisor`)."""
        return table in self._below

    def fill_walked(self, walk: PageWalk, write: bool) -> None:
        """`fill` for data, by a walk that was just made."""
        self.fills += 1
        self._with_room(lambda: self._install(walk, write, False))

    def invalidate(self, address: int) -> None:
        """As the base; the kernel's pages that are invalidated again and again are remembered."""
        super().invalidate(address)
        if address >> 63:
            page = address >> 12
            self.clean_page = page
            counts = self.invalidations
            if len(counts) > _REMEMBERED:
                counts.clear()
            counts[page] = counts.get(page, 0) + 1

    def _removed(self, _places: list[int]) -> None:
        self._whole = True

    def replace(self, at: int, level: int, entry: int) -> None:
        """As the base, noting a change of what may be in use."""
        old = self._words[at]
        if old & 1 and old != entry:
            if level == 1:
                self._changed.append(at)
            else:
                self._whole = True
        self._words[at] = entry

    def make_all_read_only(self, number: int) -> bool:
        """As the base."""
        changed = super().make_all_read_only(number)
        self._whole |= changed
        return changed

    def _forget(self) -> None:
        self._whole = True
        self._below.clear()
        super()._forget()

    def flush_tlb(self) -> None:
        """Let the engine forget what was changed, in both views: page by page where it is known and little."""
        changed = self._changed
        if not self._whole and 0 < len(changed) <= _FEW:
            addresses = [self._address_of(at) for at in changed]
            if -1 not in addresses:
                forget = self._cpu.forget_page
                for address in addresses:
                    forget(address)
                    forget(address | _UPPER)
                changed.clear()
                return
        self._whole = False
        changed.clear()
        self._cpu.flush_tlb()

    def _address_of(self, at: int) -> int:
        """What an entry of level 1 maps, less the bits that say which half; -1 where it may be in several places."""
        key = self.pool.key_of(at >> self._unit)
        if key is None or key[2] == USER_VIEW:
            return -1
        return key[3] << self._shifts[2] | (at & self._masks[1]) << self._shifts[1]

    def _enter(self, roots: tuple[int, ...]) -> None:
        """Switch views; what is cached of either stays unless something was changed."""
        lower, upper = map(self.pool.address_of, roots)
        self._cpu.set_roots(lower, upper, self.view)
        if self._whole or self._changed:
            self.flush_tlb()

    def drop_page(self, address: int) -> None:
        """Unmap a page in both views, whether or not the guest has changed its entry."""
        for root in tuple(self.roots_of(address)):
            self.drop_path(root, address)
        self.flush_tlb()

    def fill_ahead(self, table: int) -> None:
        """As the base, while no page is watched."""
        if not self.watched:
            super().fill_ahead(table)

    def executable_ahead(self, guest: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Never: code is entered at its first execution."""
        return bits
