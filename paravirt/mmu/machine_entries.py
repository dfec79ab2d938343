"""Entries of page tables that are walked as they are, between the guest's numbers of frames and the machine's.

Room: `paravirt/mmu`. A table in use leads to machine frames, with the bits that are imposed on it; what a guest writes
may name its own frames (`translates`), and what it reads does. What an entry is, is the format's; whether it may be had
is `direct_tables`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from emulator.isa.entries import EntryFormat, EntryLevel
from paravirt.mmu.frame_types import NOWHERE, Domain, FrameTable, Refusal, Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MachineEntries:
    """The memory of one domain as entries of its tables."""

    def __init__(self, frames: FrameTable, domain: Domain, form: EntryFormat, translates: bool) -> None:
        self.frames = frames
        self.domain = domain
        self.form = form
        self.translates = translates
        self.words = domain.memory.cast("Q" if form.entry_size == 8 else "I")
        """The entries of all frames of the domain, in the order of its machine frames."""
        self._dtype = np.dtype(np.uint64 if form.entry_size == 8 else np.uint32)
        self._array = np.frombuffer(domain.memory, dtype=self._dtype).reshape(domain.count, -1)
        self._levels = (form.levels[0], *form.levels)
        self._taken = (0, *(form.taken(level) for level in range(1, form.top + 1)))
        self._per_frame = form.words
        self._ahead = domain.first - frames.first
        """Place of the domain's first frame."""

    def _entries(self, at: int) -> NDArray[Any]:
        entries: NDArray[Any] = self._array[at - self._ahead]
        return entries

    def _not(self, bits: int) -> Any:
        """The other bits of a word."""
        return self._dtype.type(~bits & (1 << 8 * self.form.entry_size) - 1)

    def machine_frame(self, number: int) -> int:
        """The machine frame behind a guest frame. Raises `Refused`."""
        domain = self.domain
        at = number - domain.base
        frame = domain.machine[at] if 0 <= at < domain.count else NOWHERE
        if frame == NOWHERE:
            raise Refused(Refusal.NO_FRAME, number)
        return frame

    def stored(self, level: int, entry: int) -> int:
        """What is stored in a table in use for a present entry that a guest asks for: the machine's frame, and the bits
        that are imposed. Raises `Refused`; that the frame may be had so is not looked at yet."""
        form = self._levels[level]
        kind = entry & form.kind_mask
        if entry & (form.forbidden | self._taken[level]) or kind not in (form.memory, form.table):
            raise Refused(Refusal.MALFORMED, 0, entry)
        if self.translates:
            mask = form.memory_address if kind == form.memory else form.table_address
            number = ((entry & mask) >> 12) - self.domain.base
            if 0 <= number < self.domain.count:
                frame = self.domain.machine[number]
                if frame == NOWHERE:
                    raise Refused(Refusal.NO_FRAME, number, entry)
                if level > 1 and kind == form.memory:
                    self._check_run(form, number, frame, entry)
                entry = entry & ~mask | frame << 12 | entry & mask & 0xFFF
        return self.form.impose(level, entry)

    def _check_run(self, form: EntryLevel, number: int, frame: int, entry: int) -> None:
        """A large page needs machine frames that lie as the guest's do."""
        count = 1 << form.shift - 12
        run = self.domain.machine_array[number : number + count]
        if frame % count or len(run) < count or (run != np.arange(frame, frame + count, dtype=np.uint32)).any():
            raise Refused(Refusal.LARGE, frame, entry)

    def to_guest(self, level: int, entry: int) -> int:
        """A present entry of a table in use as the guest would have written it: its own frame, its own bits; 0 for the
        hypervisor's."""
        form = self._levels[level]
        if self.translates:
            mask = form.memory_address if entry & form.kind_mask == form.memory else form.table_address
            at = ((entry & mask) >> 12) - self.domain.first
            if not 0 <= at < self.domain.count:
                return 0
            entry = entry & ~mask | self.domain.guest[at] + self.domain.base << 12 | entry & mask & 0xFFF
        return self.form.restore(level, entry)

    def read(self, frame: int, index: int) -> int:
        """Word `index` of one of the domain's frames, as the guest would have written it. Raises `Refused`."""
        frames = self.frames
        at = frames.place(self.domain, frame)
        if not 0 <= index < self._per_frame:
            raise Refused(Refusal.UNALIGNED, frame)
        entry = self.words[(at - self._ahead) * self._per_frame + index]
        level = frames.kind[at]
        if 1 <= level <= 4 and frames.uses[at] and entry & self._levels[level].present:
            return self.to_guest(level, entry)
        return entry

    def _to_machine_frames(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Machine frames of frames that are named by the guest's numbers; others stay."""
        domain = self.domain
        places = numbers - domain.base
        own = (places >= 0) & (places < domain.count)
        if own.all():
            return domain.machine_array[places].astype(np.int64)
        return np.where(own, domain.machine_array[np.where(own, places, 0)].astype(np.int64), numbers)

    def impose_on_pages(self, entries: NDArray[Any], numbers: NDArray[np.int64]) -> NDArray[Any]:
        """What is stored in a table of pages in use for present entries, which lead to machine frames `numbers`."""
        form, kind = self._levels[1], self._dtype.type
        for mask, value, bits in form.exchanged:
            entries = np.where(entries & kind(mask) == kind(value), entries ^ kind(bits), entries)
        changed = form.imposed | form.stripped
        stored: NDArray[Any] = entries & self._not(changed | form.memory_address)
        stored |= numbers.astype(self._dtype) << kind(12) | kind(form.imposed)
        if self.form.kept:
            stored |= (entries & kind(changed)) << kind(self.form.kept)
        return stored

    def pages_to_guest(self, entries: NDArray[Any]) -> NDArray[Any]:
        """`to_guest` of present entries of a table of pages in use."""
        form, kind = self._levels[1], self._dtype.type
        if self.translates:
            numbers = ((entries & kind(form.memory_address)) >> kind(12)).astype(np.int64) - self.domain.first
            own = self.domain.guest_array[numbers].astype(self._dtype) + kind(self.domain.base) << kind(12)
            entries = entries & self._not(form.memory_address) | own
        changed = form.imposed | form.stripped
        if not self.form.kept or not changed:
            return entries
        for mask, _, flipped in form.exchanged:
            entries = np.where(entries & kind(flipped & ~mask) != kind(0), entries ^ kind(flipped), entries)
        bits = entries >> kind(self.form.kept) & kind(changed)
        restored: NDArray[Any] = entries & self._not(changed | changed << self.form.kept) | bits
        return restored
