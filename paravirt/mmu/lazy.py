"""Shadow tables that follow lazily: the guest's tables are write-protected, and written freely once one was touched.

Room: `paravirt/mmu`, a technique. The state machine: a table that is mirrored is write-protected; the first store into
it exits, takes the protection away and marks it dirty; at a miss that goes through it, or a flush, its shadow is
brought up to date and it is protected again. Between the store and the flush translations may be stale, as a TLB's are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.isa.paging import PageWalk
from paravirt.mmu.guard import TableGuard

if TYPE_CHECKING:
    from paravirt.mmu.shadow import ShadowPaging


class Lazy:
    """One exit for a table's first store; the rest waits for a miss or a flush."""

    name = "lazy"
    ahead = True

    def __init__(self, shadow: ShadowPaging) -> None:
        self._shadow = shadow
        self.guard = shadow.frames.guard = TableGuard(shadow)
        self._wide = [
            (number, level.shift - 2) for number, level in enumerate(shadow.guest.levels, 1) if level.mirrored > 4096
        ]
        """Levels whose tables fill several frames, and the shift that gives an entry's offset there."""

    def mirrored(self, table: int) -> None:
        """Write-protect it."""
        self.guard.mirrored(table)

    def found(self, table: int) -> None:
        """What it links may have been written while nothing led there."""
        self.guard.wake(table)
        self._follow_all()

    def linked(self, at: int, below: int) -> None:
        """Noted, so that a table to which nothing leads is known."""
        self.guard.linked(at, below)

    def walked(self, walk: PageWalk) -> None:
        """A miss: the tables on the way are brought up to date."""
        dirty = self.guard.dirty
        if not dirty:
            return
        base, on_the_way = self._shadow.frames.base, []
        for table in walk.tables[walk.level :]:
            frame = table - base >> 12
            if frame in dirty and frame not in on_the_way:
                on_the_way.append(frame)
        for level, shift in self._wide:
            if level >= walk.level:
                frame = walk.tables[level] - base + (walk.address >> shift & ~3) >> 12
                if frame in dirty and frame not in on_the_way:
                    on_the_way.append(frame)
        if on_the_way:
            self.guard.follow(on_the_way, in_use=True)
            self._shadow.flush_tlb()

    def _follow_all(self) -> None:
        if self.guard.dirty:
            self.guard.follow_all()
            self._shadow.flush_tlb()

    def entered(self, view: int, roots: tuple[int, ...]) -> None:
        """All was done at the flush."""

    def root_loaded(self) -> None:
        """Every dirty table, whosever it is: translations of the kernel's may lie anywhere. The root is entered next,
        which flushes."""
        self.guard.follow_all()

    def flushed_all(self) -> None:
        """Every dirty table."""
        self.guard.follow_all()

    def invalidated(self, address: int) -> None:
        """Every dirty table: a TLB may forget more than it is asked to."""
        self._follow_all()

    def forget(self) -> None:
        """All shadow tables are gone."""
        self.guard.forget()
