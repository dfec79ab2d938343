"""Page tables of a guest that the processor walks itself: whole tables validated and every store looked at.

Room: `paravirt/mmu`. A frame becomes a table when all its entries have been found to be allowed, and those below it
with them; if one is not, what was taken for the others is given back. While it is a table nothing maps it writable, and
each store comes here. A table in use leads to machine frames; what a guest writes may name its own (`translates`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from emulator.isa.entries import MALFORMED, NOTHING, TABLE, EntryFormat, EntryLevel
from paravirt.mmu.frame_types import DESCRIPTORS, Domain, FrameTable, Refusal, Refused
from paravirt.mmu.machine_entries import MachineEntries

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

_FEW: Final = 8
"""Entries of a table up to which they are looked at one by one."""
_MOST_CHANGES: Final = 256
"""Changes that an engine is told of one by one."""


class DirectTables(MachineEntries):
    """One domain's page tables."""

    def __init__(
        self, frames: FrameTable, domain: Domain, form: EntryFormat, *, translates: bool = True, large: bool = True
    ) -> None:
        """`translates`: an entry may name a frame by the guest's number, and does in frames that are no tables in use;
        otherwise all entries are the machine's, everywhere. `large`: the guest may map large pages.
        """
        super().__init__(frames, domain, form, translates)
        self._large = large
        self._linear_in: dict[int, int] = {}
        """By place of a table, how many tables of its own level lead to it. Such a table leads to none itself, so that
        no chain of them grows: giving one back gives back what it leads to."""
        self.window: dict[int, int] = {}
        """The hypervisor's own entries in every root, by index (of `EntryFormat.reserved`)."""
        self._lent: dict[int, dict[int, int]] = {}
        """By place of a table in use, entries in it that are the hypervisor's."""
        self._holders: dict[int, tuple[int, int]] = {}
        """By place of a table, that of the last table that was made to lead to it, and the index there."""
        self.top_changes = 0
        """Changes of the lower half of roots, whoever made them."""
        self.new_code: set[int] | None = None
        """Machine frames that an executable mapping was made of since this was last emptied, where an engine keeps what
        it made of code although that was written since; None where nobody asks."""
        self.validated = 0
        """Tables that were looked at as a whole."""
        self.stores = 0
        """Entries of tables in use that were changed one by one."""
        self._changes: list[tuple[int, int]] | None = None
        """Of these, those for `take_changes`, from the first time on that it is asked."""
        self._whole = True

    # -- what entries lead to -------------------------------------------------------------------

    def _get(self, level: int, entry: int, holder: int) -> None:
        """Take what an entry (to be) of the table at place `holder` leads to. Raises `Refused`."""
        form = self._levels[level]
        what = form.decode(entry)
        if what == NOTHING:
            return
        frames = self.frames
        if what == MALFORMED:
            raise Refused(Refusal.MALFORMED, holder + frames.first, entry)
        if what == TABLE:
            frame = (entry & form.table_address) >> 12
            at = frames.place(self.domain, frame, entry)
            if frames.kind[at] == level and self._linear(form, at, holder, entry):
                return
            self._get_table(at, level - 1, entry)
            return
        frame = (entry & form.memory_address) >> 12
        mask, value = form.write
        if level == 1:
            at = frame - frames.first
            if not 0 <= at < frames.count or frames.owner[at] != self.domain.number:
                frames.place(self.domain, frame, entry)
            if entry & mask == value:
                frames.use_writable(at, entry)
            else:
                frames.refs[at] += 1
            if self.new_code is not None and entry & form.execute[0] == form.execute[1]:
                self.new_code.add(frame)
            return
        self._get_large(form, frame, entry, entry & mask == value)

    def _put(self, level: int, entry: int, holder: int) -> None:
        """Give back what an entry of a validated table led to."""
        form = self._levels[level]
        what = form.decode(entry)
        if what == NOTHING:
            return
        frames = self.frames
        if what == TABLE:
            at = ((entry & form.table_address) >> 12) - frames.first
            if at == holder:
                return
            if frames.kind[at] == level:
                self._linear_in[at] -= 1
                if not self._linear_in[at]:
                    del self._linear_in[at]
            self._put_table(at)
            return
        at = ((entry & form.memory_address) >> 12) - frames.first
        mask, value = form.write
        if level > 1:
            places = np.arange(at, at + (1 << form.shift - 12))
            frames.leave_many(places, places if entry & mask == value else places[:0])
            return
        if entry & mask == value:
            frames.uses[at] -= 1
        frames.refs[at] -= 1
        frames.left[at] = frames.flushes

    def _linear(self, form: EntryLevel, at: int, holder: int, entry: int) -> bool:
        """Whether an entry that leads to a table of its own level is a linear mapping, which is taken; False where the
        frame is none in use and may become the table below. Raises `Refused` where it is one and may not be."""
        frames = self.frames
        if at != holder and not frames.uses[at]:
            return False
        mask, value = form.closed
        if entry & mask != value:
            raise Refused(Refusal.LINEAR, at + frames.first, entry)
        if at != holder:
            if not frames.valid[at] or holder in self._linear_in or self._has_linear(at):
                raise Refused(Refusal.LINEAR, at + frames.first, entry)
            frames.uses[at] += 1
            frames.refs[at] += 1
            self._linear_in[at] = self._linear_in.get(at, 0) + 1
        return True

    def _has_linear(self, at: int) -> bool:
        """Whether a table leads to one of its own level."""
        level = self.frames.kind[at]
        form = self._levels[level]
        for entry in self._entries(at)[: form.entries].tolist():
            if form.decode(entry) == TABLE:
                below = ((entry & form.table_address) >> 12) - self.frames.first
                if 0 <= below < self.frames.count and self.frames.kind[below] == level:
                    return True
        return False

    def _get_large(self, form: EntryLevel, frame: int, entry: int, writable: bool) -> None:
        frames = self.frames
        if not self._large:
            raise Refused(Refusal.LARGE, frame, entry)
        numbers = np.arange(frame, frame + (1 << form.shift - 12), dtype=np.int64)
        entries = np.broadcast_to(np.uint64(entry), numbers.shape)
        try:
            at = frames.places(self.domain, numbers, entries)
            if writable:
                frames.check_writable(at, entries)
        except Refused as refused:
            if refused.frame != frame and refused.reason is not Refusal.WRITABLE_TABLE:  # it goes beyond its own
                raise Refused(Refusal.LARGE, refused.frame, entry) from None
            raise
        frames.use_many(at, at if writable else at[:0])
        if self.new_code is not None and entry & form.execute[0] == form.execute[1]:
            self.new_code.update(numbers.tolist())

    # -- tables ---------------------------------------------------------------------------------

    def _get_table(self, at: int, level: int, entry: int = 0) -> None:
        """One use more of a frame as a table of `level`, which it becomes if it is not. Raises `Refused`."""
        frames = self.frames
        if level < 1:
            raise Refused(Refusal.MALFORMED, at + frames.first, entry)
        if frames.uses[at]:
            if frames.kind[at] != level:
                raise Refused(Refusal.OTHER_TYPE, at + frames.first, entry)
            if not frames.valid[at]:
                raise Refused(Refusal.LINEAR, at + frames.first, entry)
            frames.uses[at] += 1
            frames.refs[at] += 1
            return
        before = frames.kind[at]
        frames.become(at, level)
        frames.uses[at] = 1
        frames.refs[at] += 1
        try:
            self._validate(at, level)
        except Refused:
            frames.kind[at] = before
            frames.uses[at] = 0
            frames.refs[at] -= 1
            raise
        frames.valid[at] = 1

    def _put_table(self, at: int) -> None:
        """One use less; the last gives back what its entries led to."""
        frames = self.frames
        frames.refs[at] -= 1
        frames.left[at] = frames.flushes
        if frames.uses[at] > 1:
            frames.uses[at] -= 1
            return
        self._invalidate(at, frames.kind[at])
        frames.valid[at] = 0
        frames.uses[at] = 0

    def _present(self, at: int, words: NDArray[Any], level: int) -> NDArray[np.int64]:
        """Indexes of present entries, but for the hypervisor's own."""
        used = np.flatnonzero(words & words.dtype.type(self._levels[level].present))
        reserved = self.form.reserved
        if level == self.form.top and len(reserved):
            used = used[(used < reserved.start) | (used >= reserved.stop)]
        lent = self._lent.get(at)
        return used if lent is None else used[~np.isin(used, list(lent))]

    def _validate(self, at: int, level: int) -> None:
        """Look at every entry of a table, take what they lead to, and write them as they must be. Raises `Refused`."""
        self.validated += 1
        self._whole = True
        words = self._entries(at)[: self._levels[level].entries]
        used = self._present(at, words, level)
        if level == 1 and len(used) > _FEW:
            self._validate_pages(at, words, used)
        else:
            self._validate_each(at, level, words, used)
        if level == self.form.top:
            self.top_changes += 1
            words[self.form.reserved.start : self.form.reserved.stop] = 0  # an engine may put its own there, too
            for index, entry in self.window.items():
                words[index] = entry

    def _validate_each(self, at: int, level: int, words: NDArray[Any], used: NDArray[np.int64]) -> None:
        taken: list[int] = []
        try:
            for index, entry in zip(used.tolist(), words[used].tolist(), strict=True):
                stored = self.stored(level, entry)
                self._get(level, stored, at)
                taken.append(stored)
                if level > 1:
                    self._note_holder(level, stored, at, index)
        except Refused:
            for stored in taken:
                self._put(level, stored, at)
            raise
        if taken:
            words[used] = taken

    def _note_holder(self, level: int, entry: int, at: int, index: int) -> None:
        form = self._levels[level]
        if entry & form.kind_mask == form.table:
            self._holders[((entry & form.table_address) >> 12) - self.frames.first] = at, index

    def _validate_pages(self, holder: int, words: NDArray[Any], used: NDArray[np.int64]) -> None:
        """A table of pages at once: nothing is taken before all of it has been found right."""
        form, frames, kind = self._levels[1], self.frames, self._dtype.type
        entries = words[used]
        bad = (entries & kind(form.kind_mask) != kind(form.memory)) | (
            entries & kind(form.forbidden | form.memory_forbidden | self._taken[1]) != 0
        )
        if bad.any():
            raise Refused(Refusal.MALFORMED, holder + frames.first, int(entries[bad][0]))
        numbers = ((entries & kind(form.memory_address)) >> kind(12)).astype(np.int64)
        if self.translates:
            numbers = self._to_machine_frames(numbers)
        at = frames.places(self.domain, numbers, entries)
        mask, value = form.write
        writable = entries & kind(mask) == kind(value)
        written = at[writable]
        frames.check_writable(written, entries[writable])
        frames.use_many(at, written)
        stored = self.impose_on_pages(entries, numbers)
        if self.new_code is not None:
            mask, value = form.execute
            self.new_code.update(numbers[stored & kind(mask) == kind(value)].tolist())
        words[used] = stored

    def _invalidate(self, at: int, level: int) -> None:
        """Give back what the entries of a table lead to, and leave in it what the guest would read."""
        form = self._levels[level]
        words = self._entries(at)[: form.entries]
        self._whole = True
        self._holders.pop(at, None)
        for index in self._lent.pop(at, ()):
            words[index] = 0
        if level == self.form.top:
            words[self.form.reserved.start : self.form.reserved.stop] = 0
        used = self._present(at, words, level)
        if level > 1 or len(used) <= _FEW:
            for index, entry in zip(used.tolist(), words[used].tolist(), strict=True):
                self._put(level, entry, at)
                words[index] = self.to_guest(level, entry)
            return
        kind = self._dtype.type
        entries = words[used]
        places = ((entries & kind(form.memory_address)) >> kind(12)).astype(np.int64) - self.frames.first
        mask, value = form.write
        self.frames.leave_many(places, places[entries & kind(mask) == kind(value)])
        words[used] = self.pages_to_guest(entries)

    # -- what is asked for ----------------------------------------------------------------------

    def pin(self, frame: int, level: int) -> None:
        """Make a frame a table of `level`, or keep it one, until it is unpinned. Raises `Refused`."""
        frames = self.frames
        at = frames.place(self.domain, frame)
        if not 1 <= level <= self.form.top:
            raise Refused(Refusal.NOT_A_TABLE, frame)
        if frames.pinned[at]:
            raise Refused(Refusal.PINNED, frame)
        self._get_table(at, level)
        frames.pinned[at] = 1

    def unpin(self, frame: int) -> None:
        """Let a pinned table become something else when nothing uses it. Raises `Refused`."""
        at = self.frames.place(self.domain, frame)
        if not self.frames.pinned[at]:
            raise Refused(Refusal.NOT_PINNED, frame)
        self.frames.pinned[at] = 0
        self._put_table(at)

    def use(self, frame: int, level: int) -> None:
        """Make a frame a table of `level`, or keep it one, until `leave`. Raises `Refused`."""
        self._get_table(self.frames.place(self.domain, frame), level)

    def leave(self, frame: int) -> None:
        """Undo a `use`."""
        self._put_table(frame - self.frames.first)

    def use_root(self, frame: int) -> None:
        """A root is about to be walked: its frames are tables of the top level, and stay so. Raises `Refused`."""
        count = self.form.root_frames
        if frame % count:
            raise Refused(Refusal.UNALIGNED, frame)
        taken = []
        try:
            for number in range(frame, frame + count):
                at = self.frames.place(self.domain, number)
                self._get_table(at, self.form.top)
                taken.append(at)
        except Refused:
            for at in taken:
                self._put_table(at)
            raise

    def leave_root(self, frame: int) -> None:
        """A root that `use_root` took is walked no more."""
        for number in range(frame, frame + self.form.root_frames):
            self._put_table(number - self.frames.first)

    def store(self, frame: int, index: int, entry: int, keep_marks: bool = False) -> None:
        """Store an entry (of machine frames) into word `index` of a frame: a table in use, whose entry is validated, or
        data of the guest's own. `keep_marks`: accessed and dirty stay as the processor has set them. Raises `Refused`.
        """
        frames = self.frames
        at = frame - frames.first
        if not 0 <= at < frames.count or frames.owner[at] != self.domain.number:
            frames.place(self.domain, frame, entry)
        if not 0 <= index < self._per_frame:
            raise Refused(Refusal.UNALIGNED, frame, entry)
        place = (at - self._ahead) * self._per_frame + index
        level = frames.kind[at]
        if level > 4 or not frames.uses[at]:
            if level == DESCRIPTORS and frames.uses[at]:
                raise Refused(Refusal.OTHER_TYPE, frame, entry)
            self.words[place] = entry
            return
        self.stores += 1
        form = self._levels[level]
        if level == self.form.top:
            if index in self.form.reserved:
                raise Refused(Refusal.RESERVED, frame, entry)
            self.top_changes += 1
        if at in self._lent and index in self._lent[at]:
            raise Refused(Refusal.RESERVED, frame, entry)
        if index >= form.entries:
            self.words[place] = entry
            return
        old = self.words[place]
        if entry & form.present:
            entry = self.stored(level, entry)
            if keep_marks:
                entry |= old & form.marks
            if (entry ^ old) & ~form.marks == 0:
                self.words[place] = entry
                self._note_change(frame, index)
                return
            self._get(level, entry, at)
            if level > 1:
                self._note_holder(level, entry, at, index)
        self.words[place] = entry
        if old & form.present:
            self._note_change(frame, index)
            self._put(level, old, at)

    def take_changes(self) -> list[tuple[int, int]] | None:
        """Since this was asked last, entries of tables in use that mapped something and were changed, as an engine is
        told of them (`flush_tlb`); None where whole tables came or went, or too many."""
        changes, whole = self._changes, self._whole
        self._changes, self._whole = [], False
        return None if whole or changes is None else changes

    def _note_change(self, frame: int, index: int) -> None:
        changes = self._changes
        if changes is None:
            return
        if len(changes) < _MOST_CHANGES:
            changes.append(((frame << 12) + index * self.form.entry_size, -1))
        else:
            self._whole = True

    def lend(self, frame: int, index: int, entry: int) -> None:
        """Put an entry of the hypervisor's into a table in use, where the guest has none, for as long as it is one.
        Raises `Refused` where the guest has one."""
        at = frame - self.frames.first
        lent = self._lent.setdefault(at, {})
        place = (at - self._ahead) * self._per_frame + index
        if index not in lent and self.words[place] & self._levels[self.frames.kind[at]].present:
            raise Refused(Refusal.RESERVED, frame, self.words[place])
        lent[index] = self.words[place] = entry

    def lent_in(self, frame: int) -> Collection[int]:
        """Indexes of the entries of a table in use that were put there by `lend`."""
        return self._lent.get(frame - self.frames.first, ())

    def holders(self, frame: int) -> list[tuple[int, int]]:
        """Machine frames and indexes of all entries that lead to a table in use from tables of the level above."""
        frames, first = self.frames, self.frames.first
        at = frame - first
        level = frames.kind[at] + 1
        if level > self.form.top:
            return []
        known = self._holders.get(at)
        if known is not None and frames.uses[at] == 1 + frames.pinned[at] and self._leads(*known, level, frame):
            return [(known[0] + first, known[1])]
        found = []
        for holder in np.flatnonzero((frames.kind_array == level) & (frames.uses_array != 0)).tolist():
            if frames.owner[holder] == self.domain.number:
                words = self._entries(holder)[: self._levels[level].entries]
                found += [
                    (holder + first, index)
                    for index in self._present(holder, words, level).tolist()
                    if self._leads(holder, index, level, frame)
                ]
        return found

    def _leads(self, holder: int, index: int, level: int, frame: int) -> bool:
        if self.frames.kind[holder] != level or not self.frames.valid[holder]:
            return False
        form = self._levels[level]
        entry = self.words[(holder - self._ahead) * self._per_frame + index]
        return form.decode(entry) == TABLE and (entry & form.table_address) >> 12 == frame
