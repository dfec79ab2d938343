"""A Xen guest's page tables: the core of direct paging, with its hottest path in one piece, and an eye on code.

Room: `paravirt/xen`. What is allowed is `paravirt.mmu.direct_tables`; here is what an engine needs besides: it may
keep what it made of code whose frame is then written through a mapping that cannot be executed. `CodeWatch` compares
contents where that can matter, and only then has translated code forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from paravirt.mmu.direct_tables import DirectTables
from paravirt.mmu.frame_types import TABLE_1, TABLE_4, WRITABLE, Domain, FrameTable, Refusal, Refused
from paravirt.xen.access import GuestAccess
from paravirt.xen.host import FORMAT

_FRAME: Final = 0x000F_FFFF_FFFF_F000
_MARKS: Final = 0x60
_KEYS: Final = FORMAT.levels[0].forbidden
_NO_EXECUTE: Final = 1 << 63


class CodeWatch:
    """Contents of frames that may have been executed, as they were when translated code was last sure to be theirs."""

    def __init__(self, view: memoryview, forget: Callable[[int], None]) -> None:
        """`forget` has the engine forget the translated code of a frame."""
        self._view = view
        self._forget = forget
        self.contents: dict[int, bytes] = {}
        """By machine frame."""
        self.forgotten = 0
        """How often code was forgotten."""

    def look(self, frames: Iterable[int]) -> None:
        """These frames are about to be executed, or were written by another way: forget code that is not theirs."""
        view, contents = self._view, self.contents
        for frame in frames:
            now = bytes(view[frame << 12 : frame + 1 << 12])
            before = contents.get(frame)
            if before != now:
                contents[frame] = now
                if before is not None:
                    self.forgotten += 1
                    self._forget(frame)


class XenTables(DirectTables):
    """One domain's tables."""

    def __init__(self, frames: FrameTable, domain: Domain, watch: CodeWatch, access: GuestAccess) -> None:
        super().__init__(frames, domain, FORMAT, translates=False, large=False)
        self._access = access
        self._leaves = access.leaves
        self._watch = watch
        self._seen = watch.contents
        self.suspects: set[int] = set()
        """Frames that became executable, or were code and lost a writable mapping that could not be executed."""
        self.new_code = self.suspects
        self.updates = 0
        """Entries that were changed, in tables of pages."""

    def settle(self) -> None:
        """After changes: look at the code that they are about."""
        if self.suspects:
            self._watch.look(sorted(self.suspects))
            self.suspects.clear()

    def switch_root(self, frame: int, old: int) -> None:
        """As `use_root` of one and `leave_root` of the other, which of two roots in use is only counting. Raises
        `Refused`."""
        frames = self.frames
        at, left = frame - frames.first, old - frames.first
        if not (
            0 <= at < frames.count
            and frames.owner[at] == self.domain.number
            and frames.kind[at] == TABLE_4
            and frames.uses[at]
            and frames.valid[at]
            and frames.uses[left] > 1
        ):
            self.use_root(frame)
            self.leave_root(old)
            return
        frames.uses[at] += 1
        frames.refs[at] += 1
        frames.uses[left] -= 1
        frames.refs[left] -= 1
        frames.left[left] = frames.flushes

    def store(self, frame: int, index: int, entry: int, keep_marks: bool = False) -> None:
        """As `DirectTables.store`; the case of a table of pages is done here."""
        frames, number = self.frames, self.domain.number
        at = frame - frames.first
        if (
            not 0 <= at < frames.count
            or frames.kind[at] != TABLE_1
            or not frames.uses[at]
            or frames.owner[at] != number
        ):
            self._access.forget()
            super().store(frame, index, entry, keep_marks)
            return
        self.updates += 1
        place = (at - self._ahead) * 512 + index
        words = self.words
        old = words[place]
        if entry & 1:
            if entry & _KEYS:
                raise Refused(Refusal.MALFORMED, frame, entry)
            if keep_marks:
                entry |= old & _MARKS
            entry |= 4
            if not (entry ^ old) & ~_MARKS:
                words[place] = entry
                return
            target = ((entry & _FRAME) >> 12) - frames.first
            if not 0 <= target < frames.count or frames.owner[target] != number:
                frames.place(self.domain, target + frames.first, entry)
            if entry & 2:
                if frames.kind[target] != WRITABLE:
                    frames.use_writable(target, entry)
                else:
                    frames.uses[target] += 1
                    frames.refs[target] += 1
            else:
                frames.refs[target] += 1
            if not entry >> 63:
                self.suspects.add(target + frames.first)
        words[place] = entry
        if old & 1:
            if frame << 9 | index in self._leaves:
                self._access.forget()
            target = ((old & _FRAME) >> 12) - frames.first
            if old & 2:
                frames.uses[target] -= 1
                if old >> 63 and target + frames.first in self._seen:
                    self.suspects.add(target + frames.first)
            frames.refs[target] -= 1
            frames.left[target] = frames.flushes

    def store_granted(self, frame: int, index: int, entry: int, taken: bool = False) -> None:
        """Store an entry that leads to a frame of another domain, which is held, into a table of pages in use.

        `taken`: the references that the entry stands for are counted already. Raises `Refused`.
        """
        frames = self.frames
        if entry & 1 and not taken:
            target = ((entry & _FRAME) >> 12) - frames.first
            if entry & 2:
                frames.use_writable(target, entry)
            else:
                frames.refs[target] += 1
        place = (frame - frames.first - self._ahead) * 512 + index
        old = self.words[place]
        self.words[place] = entry
        self._access.forget()
        if old & 1:
            self._put(1, old, frame - frames.first)
