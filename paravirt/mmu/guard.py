"""Write protection of the guest's page tables: which frames are closed, and which are open and dirty.

Room: `paravirt/mmu`. A frame is closed while shadow tables mirror something in it. A store into a closed one comes here
first and opens it; `follow` brings the shadow up to date and closes it again. A frame that nothing leads to any more is
let go: its shadow tables sleep, empty, until they are linked again, so that a page table that was freed and became data
does not exit at every store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from paravirt.mmu.shadow import ShadowPaging


class TableGuard:
    """The frames of one guest that hold page tables in use."""

    def __init__(self, shadow: ShadowPaging) -> None:
        self._shadow = shadow
        self.is_closed = memoryview(bytearray(shadow.frames.count))
        self.closed = np.frombuffer(self.is_closed, dtype=np.uint8)
        """By frame, 1 while a store into it must come here first."""
        self.mirrors = np.zeros(shadow.frames.count, dtype=np.uint8)
        """By frame, 1 while shadow tables mirror some of it, be it closed or open."""
        self.dirty: dict[int, int] = {}
        """Frames that are open and may differ from their snapshots, in the order in which they were written; where the
        first store goes, an offset in memory, or -1 where nobody knows."""
        self.opened = 0
        """Stores that found a frame closed."""
        self.followed = 0
        """Frames of which the shadow was brought up to date."""
        self.released = 0
        """Frames that were let go."""
        self.on_close: Callable[[], None] = lambda: None
        """Called before a frame is closed: whoever stores for the guest asks again."""
        self._tables: dict[int, list[int]] = {}
        """By frame, the shadow tables that mirror some of it and do not sleep."""
        self._asleep: set[int] = set()
        pool, form = shadow.pool, shadow.form
        self._entries = pool.words, form.table_mask, form.present, pool.physical, form.unit
        """All entries; what in one leads to a table, and says that it is there; where tables begin; bits of a size."""
        self._links: dict[int, set[int]] = {}
        """By shadow table, places of entries that led to it when they were written."""

    def forget(self) -> None:
        """All shadow tables are gone."""
        self.closed[:] = 0
        self.mirrors[:] = 0
        self.dirty.clear()
        self._tables.clear()
        self._asleep.clear()
        self._links.clear()

    # -- shadow tables --------------------------------------------------------------------------

    def mirrored(self, table: int) -> None:
        """A shadow table mirrors what lies in a frame of the guest's memory now, or in several."""
        for frame in self._shadow.pool.frames_of(table):
            tables = self._tables.setdefault(frame, [])
            if table not in tables:
                tables.append(table)
            self.mirrors[frame] = 1
            if frame not in self.dirty and not self.is_closed[frame]:
                self.on_close()
                if self._close(frame):
                    self._shadow.flush_tlb()

    def wake(self, table: int) -> None:
        """A table is about to be linked: if it sleeps, it mirrors its frame again."""
        if table in self._asleep:
            self._asleep.discard(table)
            self._shadow.pool.wake(table)
            self.mirrored(table)

    def linked(self, at: int, below: int) -> None:
        """An entry leads to a table."""
        self._links.setdefault(below, set()).add(at)

    def _in_use(self, tables: Sequence[int]) -> bool:
        """Whether any entry leads to one of these tables, or the guest's root in use is what it mirrors."""
        shadow = self._shadow
        words, mask, present, physical, unit = self._entries
        for table in tables:
            links = self._links.get(table)
            if links:
                address = physical + (table << unit)
                for at in links:
                    if words[at] & mask == address and words[at] & present:
                        return True
                links.clear()
        names = shadow.guest.roots
        return any(root in tables and names[region] == name for (region, name, _), root in shadow.roots_named().items())

    # -- frames ---------------------------------------------------------------------------------

    def written(self, frame: int, offset: int = -1) -> None:
        """A frame is about to be written to, at an offset in memory if that is known."""
        if self.is_closed[frame]:
            self.is_closed[frame] = 0
            self.dirty[frame] = offset
            self.opened += 1

    def _close(self, frame: int) -> bool:
        """Close a frame, of which `on_close` has told; whether translations must be flushed."""
        changed = self._shadow.frames.close(frame)
        self.is_closed[frame] = 1
        return changed

    def follow(self, frames: Sequence[int], *, in_use: bool = False) -> list[int]:
        """Bring the shadow of dirty frames up to date and close them; returns the tables that have lost entries.

        `in_use`: something is known to lead to them. The caller flushes the engine's translations, whether there are
        such tables or not."""
        bring, close = self._shadow.pool.follow, self._shadow.frames.close_again
        mirroring, is_closed, dirty = self._tables, self.is_closed, self.dirty
        changed: list[int] = []
        self.on_close()
        self.followed += len(frames)
        for frame in frames:
            offset = dirty.pop(frame)
            tables = mirroring.get(frame, ())
            if not in_use and not self._in_use(tables):
                self._release(frame)
                continue
            for table in tables:
                if bring(table, offset):
                    changed.append(table)  # noqa: PERF401 -- there is one, and a comprehension is a call
            close(frame)
            is_closed[frame] = 1
        return changed

    def follow_all(self) -> list[int]:
        """`follow` for every dirty frame."""
        return self.follow(tuple(self.dirty)) if self.dirty else []

    def _release(self, frame: int) -> None:
        """Nothing leads to what mirrors a frame: let it sleep, and let the guest do there what it likes."""
        shadow = self._shadow
        self.released += 1
        self.mirrors[frame] = 0
        for table in self._tables.pop(frame, ()):
            shadow.pool.sleep(table)
            self._asleep.add(table)
            self._links.pop(table, None)
            shadow.forget_root(table)
