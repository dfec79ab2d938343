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
        self.quick_store = self._make_store()

    def settle(self) -> None:
        """After changes: look at the code that they are about."""
        if self.suspects:
            self._watch.look(sorted(self.suspects))
            self.suspects.clear()

    def use_root(self, frame: int) -> None:
        """As `DirectTables.use_root`; of a root in use only the counts change."""
        frames = self.frames
        at = frame - frames.first
        if (
            0 <= at < frames.count
            and frames.owner[at] == self.domain.number
            and frames.kind[at] == TABLE_4
            and frames.uses[at]
            and frames.valid[at]
        ):
            frames.uses[at] += 1
            frames.refs[at] += 1
        else:
            super().use_root(frame)

    def leave_root(self, frame: int) -> None:
        """As `DirectTables.leave_root`; of a root that is used besides only the counts change."""
        frames = self.frames
        at = frame - frames.first
        if frames.uses[at] > 1:
            frames.uses[at] -= 1
            frames.refs[at] -= 1
            frames.left[at] = frames.flushes
        else:
            super().leave_root(frame)

    def switch_root(self, frame: int, old: int) -> None:
        """`use_root` of one and `leave_root` of the other. Raises `Refused`."""
        self.use_root(frame)
        self.leave_root(old)

    def _validate(self, at: int, level: int) -> None:
        self._access.forget()
        super()._validate(at, level)

    def store(self, frame: int, index: int, entry: int, keep_marks: bool = False) -> None:
        """As `DirectTables.store`."""
        self.quick_store(frame, index, entry, keep_marks)

    def _make_store(self) -> Callable[[int, int, int, bool], None]:
        """`store` as a closure over everything it touches, for the hottest call; a table of pages is done here."""
        frames, number, first, count, ahead = (
            self.frames,
            self.domain.number,
            self.frames.first,
            self.frames.count,
            self._ahead,
        )
        kinds, uses, refs, left, owner = frames.kind, frames.uses, frames.refs, frames.left, frames.owner
        words, access, leaves, seen, suspects = self.words, self._access, self._leaves, self._seen, self.suspects
        slow, domain = super().store, self.domain

        def store(frame: int, index: int, entry: int, keep_marks: bool) -> None:
            at = frame - first
            if not 0 <= at < count or kinds[at] != TABLE_1 or not uses[at] or owner[at] != number:
                access.forget()
                slow(frame, index, entry, keep_marks)
                return
            self.updates += 1
            place = (at - ahead) * 512 + index
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
                target = ((entry & _FRAME) >> 12) - first
                if not 0 <= target < count or owner[target] != number:
                    frames.place(domain, target + first, entry)
                if entry & 2:
                    if kinds[target] != WRITABLE:
                        frames.use_writable(target, entry)
                    else:
                        uses[target] += 1
                        refs[target] += 1
                else:
                    refs[target] += 1
                if not entry >> 63:
                    suspects.add(target + first)
            words[place] = entry
            if old & 1:
                if frame << 9 | index in leaves:
                    access.forget()
                target = ((old & _FRAME) >> 12) - first
                if old & 2:
                    uses[target] -= 1
                    if old >> 63 and target + first in seen:
                        suspects.add(target + first)
                refs[target] -= 1
                left[target] = frames.flushes

        return store

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
