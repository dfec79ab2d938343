"""Write protection of the guest's page tables: which frames are closed, and which are open and dirty.

Room: `paravirt/mmu`. A frame is closed while shadow tables mirror something in it. A store into a closed one comes here
first and opens it; `follow` brings the shadow up to date and closes it again. A frame that nothing leads to any more is
let go: its shadow tables sleep, empty, until they are linked again, so that a page table that was freed and became data
does not exit at every store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emulator.isa.paging import READ, WRITE
from paravirt.mmu.views import USER_CODE

if TYPE_CHECKING:
    from paravirt.mmu.shadow import ShadowPaging


@dataclass(slots=True)
class _Whole:
    """A frame of which one shadow table mirrors all, an entry for each of the guest's."""

    table: int
    own: int
    """What to add to the number of a guest's entry in memory for that of the table's among all entries, and"""
    seen: int
    """for that of the snapshot's."""
    guest: memoryview
    """The guest's bytes, and"""
    start: int
    """where they begin where snapshots are held."""
    link: int
    """The place of an entry, or -1;"""
    leads: int
    """while it is this, it leads to the table."""
    writable: int
    """The entry that maps the frame to be written, and"""
    read_only: int
    """what it is without that right; -1 where somebody must be told."""


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
        self._words = pool.words
        self._entries = pool.words, form.table_mask, form.present, pool.physical, form.unit
        """All entries; what in one leads to a table, and says that it is there; where tables begin; bits of a size."""
        self._links: dict[int, set[int]] = {}
        """By shadow table, places of entries that led to it when they were written."""
        self._wholes: dict[int, _Whole] = {}
        """By frame, what `follow` needs, where it was followed and is the one table of the guest's that most are."""
        self._revalidate, self._held, self._misses = pool.revalidate, pool.held, pool.misses
        self._frames, self._kinds = shadow.frames, shadow.frames.kinds

    def forget(self) -> None:
        """All shadow tables are gone."""
        self.closed[:] = 0
        self.mirrors[:] = 0
        self.dirty.clear()
        self._tables.clear()
        self._wholes.clear()
        self._asleep.clear()
        self._links.clear()

    # -- shadow tables --------------------------------------------------------------------------

    def mirrored(self, table: int) -> None:
        """A shadow table mirrors what lies in a frame of the guest's memory now, or in several."""
        for frame in self._shadow.pool.frames_of(table):
            tables = self._tables.setdefault(frame, [])
            if table not in tables:
                tables.append(table)
                self._wholes.pop(frame, None)
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

    def _link_to(self, table: int) -> int:
        """The place of an entry that leads to a table, or -1; then those are forgotten that did."""
        links = self._links.get(table)
        if links:
            words, mask, present, physical, unit = self._entries
            address = physical + (table << unit)
            for at in links:
                if words[at] & mask == address and words[at] & present and self._may_be_walked(at):
                    return at
            if not any(words[at] & mask == address for at in links):
                links.clear()
        return -1

    def _may_be_walked(self, at: int) -> bool:
        """Whether an entry is in a table that is in use as far as is known: one that mirrors something is let go when
        that is written; one that mirrors nothing, above the guest's own root, is in use with its root."""
        pool = self._shadow.pool
        unit = at >> pool.shift
        table = unit & -pool.units_of(int(pool.level_of[unit]))
        return pool.source[table] >= 0 or self._is_root((table,)) or self._link_to(table) >= 0

    def _is_root(self, tables: Sequence[int]) -> bool:
        """Whether one of these tables is for the guest's root in use."""
        names = self._shadow.guest.roots
        roots = self._shadow.roots_named().items()
        return any(root in tables and names[region] == name for (region, name, _), root in roots)

    def _in_use(self, tables: Sequence[int]) -> bool:
        """Whether any entry leads to one of these tables, or the guest's root in use is what it mirrors."""
        return any(self._link_to(table) >= 0 for table in tables) or self._is_root(tables)

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
        such tables or not. It is done at every flush, mostly for one frame that is one table of the guest's, in which
        one entry was written: for that, what could be a call is written out."""
        self.on_close()
        self.followed += len(frames)
        changed: list[int] = []
        words = self._words
        for frame in frames:
            whole, offset = self._wholes.get(frame), self.dirty.pop(frame)
            if (
                whole is None
                or offset < 0
                or not (in_use or words[whole.link] == whole.leads)
                or self._kinds[frame] == USER_CODE
            ):
                self._follow_any(frame, offset, in_use, changed)
                continue
            number = offset >> self._entry_shift
            entry, at = self._guest[number], whole.seen + number
            if self._seen[at] == entry:
                if self._revalidate(whole.table):
                    changed.append(whole.table)
            else:
                self._seen[at] = entry
                at = whole.own + number
                if words[at]:
                    if self._tell is not None:
                        self._tell([at])
                    words[at] = 0
                self._misses[whole.table] = 0
                changed.append(whole.table)
                if not self._held.startswith(whole.guest, whole.start):
                    self._revalidate(whole.table)
            writers = self._frames.writers.pop(frame, None)
            if writers is not None:
                if len(writers) == 1 and words[writers[0]] == whole.writable:
                    words[writers[0]] = whole.read_only
                else:
                    self._shadow.make_read_only(writers, frame)
            self.is_closed[frame] = 1
        return changed

    def _follow_any(self, frame: int, offset: int, in_use: bool, changed: list[int]) -> None:
        """`follow` for one frame, whatever it is; if it is what most are, that is noted for the next time."""
        tables = self._tables.get(frame, [])
        if not in_use and not self._in_use(tables):
            self._release(frame)
            return
        bring = self._shadow.pool.follow
        changed += [table for table in tables if bring(table, offset)]
        self._shadow.frames.close_again(frame)
        self.is_closed[frame] = 1
        if len(tables) == 1:
            self._note_whole(frame, tables[0])

    def _note_whole(self, frame: int, table: int) -> None:
        """Keep what `follow` needs of a frame that only one table mirrors, if that mirrors all of it one to one."""
        shadow, pool, form = self._shadow, self._shadow.pool, self._shadow.form
        first, end, own, seen, guest, start = pool.places(table)
        if (first, end) != (frame << 12, (frame + 1) << 12):
            return
        link = self._link_to(table)
        writable = shadow.frames.base + first | form.pages[READ | WRITE]
        read_only = shadow.frames.base + first | form.pages[READ]
        if not shadow.plain:
            writable = read_only = -1
        leads = self._words[link] if link >= 0 else -1
        self._wholes[frame] = _Whole(table, own, seen, guest, start, link, leads, writable, read_only)
        self._seen, self._guest, self._entry_shift = pool.seen, pool.guest_entries, 3 if pool.seen.itemsize == 8 else 2
        self._tell = pool.on_removed

    def follow_all(self) -> list[int]:
        """`follow` for every dirty frame."""
        return self.follow(tuple(self.dirty)) if self.dirty else []

    def _release(self, frame: int) -> None:
        """Nothing leads to what mirrors a frame: let it sleep, and let the guest do there what it likes."""
        shadow, pool = self._shadow, self._shadow.pool
        self.released += 1
        self.mirrors[frame] = 0
        self._wholes.pop(frame, None)
        for table in self._tables.pop(frame, ()):
            pool.sleep(table)
            self._asleep.add(table)
            for at in self._links.pop(table, ()):
                if self._words[at] and pool.table_in(self._words[at]) == table:
                    shadow.replace(at, int(pool.level_of[at >> pool.shift]), 0)  # in what mirrors nothing
            shadow.forget_root(table)
