"""Direct paging of which the guest does a part itself (the lecture's "optimised guest page table").

Room: `paravirt/mmu`, a technique for para-virtual guests. A guest translates what it reads by a table of its frame
numbers, mapped read-only; it queues stores and makes many in one call; and a table in which much changes it opens: that
is unhooked, edited as memory, and validated as a whole when it is closed.
"""

from __future__ import annotations

from typing import Any, ClassVar

from emulator.isa.x86 import walk as w
from paravirt.abi.calls import Status
from paravirt.mmu.direct import Direct, DirectCalls
from paravirt.mmu.frame_types import Refused

_HOLDER_LEVEL = 2


class Batched(Direct):
    """The technique."""

    name = "batched"
    way: ClassVar[int] = 2
    translated: ClassVar[bool] = False

    def _make_calls(self, hypervisor: Any) -> DirectCalls:
        return BatchedCalls(self, hypervisor)


class BatchedCalls(DirectCalls):
    """`TableCalls` of a guest that batches."""

    def open_table(self, table: int) -> int:
        """Unhook a table of pages: it is data then, in the guest's own numbers."""
        tables = self._ready
        if tables is None or table & 0xFFF:
            return self._before.open_table(table)
        frames = tables.frames
        try:
            frame = self._frame(table)
            at = frames.place(tables.domain, frame)
            if frame in self.opened or frames.kind[at] != 1 or not frames.uses[at]:
                return -Status.INVALID
            pinned = bool(frames.pinned[at])
            links = []
            for holder, index in tables.holders(frame):
                links.append((holder, index, tables.read(holder, index)))
                tables.store(holder, index, links[-1][2] & ~w.PRESENT)
            if pinned:
                tables.unpin(frame)
        except Refused as refused:
            return self._refuse(refused)
        self.opened[frame] = links, pinned
        self._settle()
        return 0

    def close_table(self, table: int) -> int:
        """Validate an opened table and hook it in again where nothing else was put since; refused, it stays open."""
        tables = self._ready
        if tables is None or table & 0xFFF:
            return self._before.close_table(table)
        frames = tables.frames
        try:
            frame = self._frame(table)
            if frame not in self.opened:
                return -Status.INVALID
            links, pinned = self.opened[frame]
            tables.use(frame, 1)  # validated once, whatever follows
            try:
                for holder, index, entry in links:
                    if self._still(holder, index, entry):
                        tables.store(holder, index, entry)
                if pinned and not frames.pinned[frame - frames.first]:
                    tables.pin(frame, 1)
            finally:
                tables.leave(frame)
        except Refused as refused:
            return self._refuse(refused)
        del self.opened[frame]
        self._settle()
        return 0

    def _still(self, holder: int, index: int, entry: int) -> bool:
        """Whether an unhooked entry is still in a table in use, as it was left."""
        tables = self.tables
        assert tables is not None
        at = holder - tables.frames.first
        in_use = tables.frames.kind[at] == _HOLDER_LEVEL and tables.frames.valid[at]
        return bool(in_use) and tables.read(holder, index) == entry & ~w.PRESENT
