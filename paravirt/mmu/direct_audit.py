"""What frames are used as, counted anew from page tables in use: nothing that a saved machine says of them is believed.

Room: `paravirt/mmu`, beside `direct_tables`. A saved machine says which frames are tables, of which level, which are
pinned, and which are roots. Here every entry of such a table is read again and must be one that the tables would have
stored; who uses and who refers to a frame is counted from that. What does not agree is a `ValueError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emulator.isa.entries import TABLE, EntryLevel
from paravirt.mmu.frame_types import KIND_NAMES, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from paravirt.mmu.direct_tables import DirectTables


@dataclass(frozen=True, slots=True)
class Counted:
    """Of one domain's frames, in the order of its machine frames."""

    levels: NDArray[np.uint8]
    """The level of the table that a frame is, or 0."""
    pinned: NDArray[np.uint8]
    uses: NDArray[np.uint32]
    refs: NDArray[np.uint32]
    linear: Mapping[int, int]
    """By frame, how many tables of its own level lead to it."""
    executable: NDArray[np.int64]
    """Machine frames that an entry maps executable."""


class _Count:
    """One count of all tables in use."""

    def __init__(self, tables: DirectTables, levels: NDArray[np.uint8]) -> None:
        self.tables = tables
        self.levels = levels
        self.first = tables.domain.first
        self.uses = np.zeros(len(levels), dtype=np.uint32)
        self.refs = np.zeros(len(levels), dtype=np.uint32)
        self.writable = np.zeros(len(levels), dtype=np.uint32)
        self.linear: dict[int, int] = {}
        self._leads: set[int] = set()
        """Frames that lead to another table of their own level."""
        self.executable: list[NDArray[np.int64]] = []
        self._ahead = tables._ahead

    def wrong(self, number: int, index: int, entry: int, why: str) -> ValueError:
        """What to raise for an entry."""
        kind = KIND_NAMES[self.levels[number]]
        return ValueError(f"entry {index} of the {kind} in frame {number:#x}, {entry:#x}, {why}")

    # -- tables above the last level ------------------------------------------------------------

    def upper(self, number: int) -> None:
        """Count what one of them leads to."""
        tables, level = self.tables, int(self.levels[number])
        form = tables.form.levels[level - 1]
        words = tables._entries(number + self._ahead)[: form.entries]
        used = tables._present(number + self._ahead, words, level)
        for index, entry in zip(used.tolist(), words[used].tolist(), strict=True):
            self._check(number, index, entry, level, form)
            if form.decode(entry) == TABLE:
                self._to_table(number, index, entry, level, form)
            else:
                self._to_memory(number, index, entry, form)

    def _check(self, number: int, index: int, entry: int, level: int, form: EntryLevel) -> None:
        """Whether the tables would have stored this entry for some entry of a guest's."""
        tables = self.tables
        asked = tables.form.restore(level, entry)
        if (
            asked & (form.forbidden | tables._taken[level])
            or asked & form.kind_mask not in (form.memory, form.table)
            or tables.form.impose(level, asked) != entry
            or form.decode(entry) not in (1, 2)
        ):
            raise self.wrong(number, index, entry, "is none that a guest may have")

    def _to_table(self, number: int, index: int, entry: int, level: int, form: EntryLevel) -> None:
        below = ((entry & form.table_address) >> 12) - self.first
        if not 0 <= below < len(self.levels):
            raise self.wrong(number, index, entry, "leads to a frame that is not the guest's")
        mask, value = form.closed
        if self.levels[below] == level:
            if entry & mask != value:
                raise self.wrong(number, index, entry, "leads to a table of its own level, and can be written through")
            if below == number:
                return
            self.linear[below] = self.linear.get(below, 0) + 1
            self._leads.add(number)
        elif self.levels[below] != level - 1 or level < 2:
            raise self.wrong(number, index, entry, f"leads to what is no page table of level {level - 1}")
        self.uses[below] += 1
        self.refs[below] += 1

    def _to_memory(self, number: int, index: int, entry: int, form: EntryLevel) -> None:
        first = ((entry & form.memory_address) >> 12) - self.first
        end = first + (1 << form.shift - 12)
        if not (self.tables._large and first >= 0 and end <= len(self.levels)):
            raise self.wrong(number, index, entry, "maps more than the guest's memory")
        self.refs[first:end] += 1
        mask, value = form.write
        if entry & mask == value:
            self.writable[first:end] += 1
        mask, value = form.execute
        if entry & mask == value:
            self.executable.append(np.arange(first, end, dtype=np.int64) + self.first)

    # -- tables of pages ------------------------------------------------------------------------

    def pages(self, numbers: NDArray[np.int64]) -> None:
        """Count what all tables of pages lead to."""
        tables, form = self.tables, self.tables.form.levels[0]
        kind = tables._dtype.type
        words = tables._array[numbers, : form.entries]
        present = words & kind(form.present) != 0
        row, column = np.nonzero(present)
        entries = words[row, column]
        frames = ((entries & kind(form.memory_address)) >> kind(12)).astype(np.int64)
        own = (frames >= self.first) & (frames < self.first + len(self.levels))

        def each(right: NDArray[Any], why: str) -> None:
            if not right.all():
                at = int(np.flatnonzero(~right)[0])
                raise self.wrong(int(numbers[row[at]]), int(column[at]), int(entries[at]), why)

        each(own, "maps a frame that is not the guest's")
        asked = tables.pages_to_guest(entries)
        bad = form.forbidden | form.memory_forbidden | tables._taken[1]
        right = (asked & kind(form.kind_mask) == kind(form.memory)) & (asked & kind(bad) == 0)
        each(right & (tables.impose_on_pages(asked, frames) == entries), "is none that a guest may have")
        at = frames - self.first
        np.add.at(self.refs, at, 1)
        mask, value = form.write
        written = entries & kind(mask) == kind(value)
        each(~written | (self.levels[at] == 0), "maps a page table writable")
        np.add.at(self.writable, at[written], 1)
        mask, value = form.execute
        self.executable.append(np.unique(frames[entries & kind(mask) == kind(value)]))

    # -- all together ---------------------------------------------------------------------------

    def finish(self, pinned: NDArray[np.uint8]) -> Counted:
        """The counts. Raises `ValueError` where tables lead to each other as they cannot."""
        for chained in self._leads & self.linear.keys():
            raise ValueError(f"tables of one level lead to each other in a chain, through frame {chained:#x}")
        taken = np.flatnonzero((self.levels != 0) & (self.writable != 0))
        if len(taken):
            raise ValueError(f"the page table in frame {int(taken[0]):#x} is mapped writable")
        unused = np.flatnonzero((self.levels != 0) & (self.uses == 0))
        if len(unused):
            raise ValueError(f"the page table in frame {int(unused[0]):#x} is used by nothing")
        uses = self.uses + self.writable
        executable = np.unique(np.concatenate(self.executable)) if self.executable else np.zeros(0, dtype=np.int64)
        return Counted(self.levels, pinned, uses, self.refs, self.linear, executable)


def check_size(tables: DirectTables, levels: NDArray[np.uint8], pinned: NDArray[np.uint8]) -> None:
    """Raise `ValueError` for tables and pins that are not a domain's."""
    if not len(levels) == len(pinned) == tables.domain.count or levels.max(initial=0) > tables.form.top:
        raise ValueError("its page tables are none of a machine of this size")


def count(tables: DirectTables, levels: NDArray[np.uint8], pinned: NDArray[np.uint8], roots: Iterable[int]) -> Counted:
    """Who uses each frame of a domain as what, where these are its tables and pins, and these machine frames the roots
    in use. Raises `ValueError` where that cannot be."""
    form, domain = tables.form, tables.domain
    check_size(tables, levels, pinned)
    if pinned.max(initial=0) > 1 or (pinned != 0)[levels == 0].any():
        raise ValueError("a frame is pinned that is no page table")
    found = _Count(tables, levels)
    found.uses += pinned
    found.refs += pinned
    for root in roots:
        first = root - domain.first
        if first % form.root_frames or not 0 <= first <= domain.count - form.root_frames:
            raise ValueError(f"its root cannot lie in machine frame {root:#x}")
        for number in range(first, first + form.root_frames):
            if levels[number] != form.top:
                raise ValueError(f"its root in frame {number:#x} is no page table of level {form.top}")
            found.uses[number] += 1
            found.refs[number] += 1
    for number in np.flatnonzero(levels > 1).tolist():
        found.upper(number)
    found.pages(np.flatnonzero(levels == 1))
    return found.finish(pinned)


def adopt(tables: DirectTables, counted: Counted) -> None:
    """Have a domain's frames be what was counted, and nothing else; all translations are to be flushed behind that."""
    frames, domain = tables.frames, tables.domain
    own = slice(tables._ahead, tables._ahead + domain.count)
    written = (counted.levels == 0) & (counted.uses != 0)
    frames.kind_array[own] = np.where(written, np.uint8(WRITABLE), counted.levels)
    frames.uses_array[own], frames.refs_array[own] = counted.uses, counted.refs
    frames.left_array[own] = 0
    frames.valid[own] = (counted.levels != 0).astype(np.uint8).tobytes()
    frames.pinned[own] = counted.pinned.tobytes()
    frames.flush_due = False
    tables._linear_in = {number + tables._ahead: count for number, count in counted.linear.items()}
    tables._holders.clear()
    tables._whole = True
    tables.top_changes += 1
