"""Shadow tables that follow eagerly: every store into a guest's page table exits, and the shadow follows at once.

Room: `paravirt/mmu`, a technique. The store itself is done by the guest, as one instruction that runs alone; then the
entries that it changed are translated anew. A flush finds nothing to do: no translation is ever stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.isa.paging import PageWalk
from paravirt.mmu.lazy import Lazy

if TYPE_CHECKING:
    from paravirt.mmu.shadow import ShadowPaging


class Eager(Lazy):
    """Exits at every store. What dirties a table without an exit of its own (the hypervisor, when it stores for the
    guest) is followed at the next exit that looks."""

    name = "eager"

    def __init__(self, shadow: ShadowPaging) -> None:
        super().__init__(shadow)
        self.entered_at_once = 0
        """Translations that were entered by a store, before anything missed them."""

    @property
    def waits(self) -> bool:
        """Whether a table is open: the store that opened it must run alone, and `follow` must come behind it."""
        return bool(self.guard.dirty)

    def follow(self) -> None:
        """A store is done."""
        if not self.guard.dirty:
            return
        shadow = self._shadow
        pool, before = shadow.pool, shadow.prefilled
        changed = self.guard.follow_all()
        for table in changed:
            if pool.level_of[table] == 1:
                shadow.fill_ahead(table)
        self.entered_at_once += shadow.prefilled - before
        shadow.flush_tlb()

    def walked(self, walk: PageWalk) -> None:
        """Nothing is dirty but what is being written."""
