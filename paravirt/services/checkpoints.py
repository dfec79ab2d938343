"""Checkpoints of a running guest: its state, and of its memory only the pages that were written since the last one.

Room: `paravirt/services`. All memory that a state depends on is one row of pages. A checkpoint is, for each page, the
number of its contents in a store; what two checkpoints share is there once. Which pages were written tells the host
(`emulator.written`), so a checkpoint costs what was written and not what there is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np

from emulator.written import PAGE, populated_pages, written_pages
from paravirt.services.machine_state import MachineState
from paravirt.services.page_store import ZERO, PageStore, filled
from paravirt.services.positions import Position

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emulator.machine import Outcome

    Ids = NDArray[np.int32]
    Pages = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Checkpoint:
    """A machine at a position."""

    position: Position
    state: MachineState
    contents: Ids
    """Of every page, the number of its contents in the store."""
    console: int
    """Bytes that the guest had printed."""
    inputs: int
    """Inputs that it had got."""
    code: int
    """Copies of code that there were."""
    ended: Outcome | None
    """How the guest has ended, where this is its end."""


class Checkpoints:
    """The checkpoints of one machine, in order of position, and which contents its memory has now."""

    def __init__(self, memories: Sequence[memoryview], budget: int) -> None:
        """`budget`: bytes of contents from which on older checkpoints are thinned out."""
        self._rows = [np.frombuffer(memory, dtype=np.uint64).reshape(-1, PAGE // 8) for memory in memories]
        self._bases = np.cumsum([0, *(len(rows) for rows in self._rows)])
        self._budget = budget
        self._store = PageStore()
        known = [populated_pages(memory) for memory in memories]  # before they are watched
        self._written = written_pages(memories)
        self.kept: list[Checkpoint] = []
        self._loose: WeakSet[Checkpoint] = WeakSet()
        """Those that somebody holds besides."""
        self.current: Ids = np.full(int(self._bases[-1]), ZERO, dtype=np.int32)
        """What the store has of memory as it was when last looked at."""
        self._add(self._in_use(known))

    def _in_use(self, known: Sequence[Pages | None]) -> Pages:
        """The pages that are not zero, of those that may be others."""
        parts = []
        for base, rows, pages in zip(self._bases.tolist(), self._rows, known, strict=False):
            wanted = np.arange(len(rows)) if pages is None else pages
            parts.append(wanted[filled(rows, wanted)] + base)
        return np.concatenate(parts)

    def _add(self, pages: Pages) -> None:
        """Keep the contents that some pages have now. Of a large page that the host has made only now most is zero
        still."""
        for base, rows in zip(self._bases.tolist(), self._rows, strict=False):
            mine = pages[(pages >= base) & (pages < base + len(rows))]
            kept = self.current[mine] != ZERO
            if not kept.all():
                new = np.flatnonzero(~kept)
                kept[new] = filled(rows, mine[new] - base)
                mine = mine[kept]
            if len(mine):
                self.current[mine] = self._store.add(rows, mine - base, self.current[mine])

    def look(self) -> Pages:
        """Note the contents of what was written; which pages those are."""
        pages = self._written.take()
        self._add(pages)
        return pages

    def take(
        self,
        position: Position,
        state: MachineState,
        console: int,
        inputs: int,
        *,
        ended: Outcome | None = None,
        keep: bool = True,
    ) -> Checkpoint:
        """Make a checkpoint of the machine as it is, in place of one at the same position; `keep` it among others."""
        self.look()
        code = state.derived.code.used if state.derived is not None else 0
        new = Checkpoint(position, state, self.current.copy(), console, inputs, code, ended)
        if keep:
            at = bisect_right(self.kept, position, key=lambda one: one.position)
            if at and self.kept[at - 1].position == position:
                self.kept[at - 1] = new
            else:
                self.kept.insert(at, new)
            if self._store.bytes > self._budget:
                self._thin()
        else:
            self._loose.add(new)
        return new

    def put_back(self, checkpoint: Checkpoint) -> Pages:
        """Give memory the contents that it had at a checkpoint; which pages were changed for that."""
        pages = self._written.take()
        changed = self.current != checkpoint.contents
        changed[pages] = True
        places = np.flatnonzero(changed)
        for base, rows in zip(self._bases.tolist(), self._rows, strict=False):
            mine = places[(places >= base) & (places < base + len(rows))]
            self._store.fetch(checkpoint.contents[mine], rows, mine - base)
        self._written.take()
        self.current = checkpoint.contents.copy()
        return places

    def before(self, position: Position) -> Checkpoint:
        """The last checkpoint at or before a position. Raises `LookupError` where there is none."""
        at = bisect_right(self.kept, position, key=lambda one: one.position)
        if not at:
            raise LookupError(position)
        return self.kept[at - 1]

    def forget_after(self, position: Position) -> None:
        """Checkpoints behind a position are of a future that does not come."""
        del self.kept[bisect_right(self.kept, position, key=lambda one: one.position) :]

    def _thin(self) -> None:
        """Forget every second checkpoint of the older half, and contents that no other has."""
        half = len(self.kept) // 2
        self.kept[1:half] = self.kept[1:half:2]
        every = [self.current, *(one.contents for one in {*self.kept, *self._loose})]
        renumbered = self._store.keep_only(np.unique(np.concatenate(every)))
        for contents in every:
            real = contents != ZERO
            contents[real] = renumbered[contents[real]]
        # What is left is what the newest need: thin again only when as much has come once more.
        self._budget = max(self._budget, 2 * self._store.bytes)

    def close(self) -> None:
        """Watch memory no more."""
        self._written.close()
        self._rows.clear()
