"""A guest whose own tables are walked, as a value: which frames are tables, which are pinned, and which roots are used.

Room: `paravirt/mmu`, beside `direct`. The words of the tables are the guest's memory, and saved as such. What is put
back is believed in nothing: types and counts are made anew of the tables (`direct_audit`), the hypervisor's own entries
are written anew, and every entry of a guest's must be one that it could have had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paravirt.mmu.direct_audit import adopt, check_size, count
from paravirt.mmu.frame_types import DESCRIPTORS, Refusal, Refused

if TYPE_CHECKING:
    from paravirt.mmu.direct import Direct
    from paravirt.mmu.direct_tables import DirectTables
    from paravirt.mmu.direct_views import DirectViews

Link = tuple[int, int, int]
"""Of an entry that was unhooked: machine frame, index, and what it was."""


@dataclass(frozen=True, slots=True)
class DirectState:
    """Of direct paging, from the guest's first NEW_BASE on."""

    first: int
    """The guest's first machine frame."""
    numbers: int
    """Guest-virtual address of its frame numbers."""
    roots: tuple[int, ...]
    """Machine frames of the roots in use."""
    levels: bytes
    """Of each frame, the level of the page table in use that it is, or 0."""
    pinned: bytes
    lent: tuple[tuple[int, int], ...]
    """Places of the entries of the hypervisor's in tables below its own slots: frame, and index."""
    opened: tuple[tuple[int, bool, tuple[Link, ...]], ...]
    """Tables that the guest edits as memory: machine frame, whether it was pinned, what led to it."""
    refused: tuple[tuple[int, int], ...]
    """Requests refused, by reason."""
    counts: tuple[int, int, int]
    """Faults of translations that were stale, tables validated and entries stored so far."""
    last: tuple[int, int]
    """The last such fault: see `DirectViews.fill`."""


def capture_direct(technique: Direct) -> DirectState | None:
    """The state of a guest's tables; None where it never asked for that."""
    views, tables = technique.calls.views, technique.calls.tables
    if views is None or tables is None:
        return None
    frames, domain = tables.frames, tables.domain
    own = slice(tables._ahead, tables._ahead + domain.count)
    kinds = frames.kind_array[own]
    in_use = (frames.uses_array[own] != 0) & (kinds < DESCRIPTORS)
    return DirectState(
        first=domain.first,
        numbers=views.numbers,
        roots=tuple(views._roots) if technique.views is not None else (),
        levels=np.where(in_use, kinds, np.uint8(0)).tobytes(),
        pinned=bytes(frames.pinned[own]),
        lent=tuple(sorted((at - tables._ahead, index) for at, lent in tables._lent.items() for index in lent)),
        opened=tuple((frame, pinned, tuple(links)) for frame, (links, pinned) in technique.calls.opened.items()),
        refused=tuple((int(reason), number) for reason, number in domain.refused.items()),
        counts=(views.fills, tables.validated, tables.stores),
        last=views._last,
    )


def reinstate_direct(technique: Direct, hypervisor: Any, state: DirectState | None) -> None:
    """Put a state back, which must be followed by the processor's; memory is that of the state already. Raises
    `ValueError` for one that cannot be this machine's."""
    if state is None and technique.calls.tables is None:
        return
    tables, views = technique.make(hypervisor)
    if state is None:
        blank = bytes(tables.domain.count)
        state = DirectState(tables.domain.first, views.numbers, (), blank, blank, (), (), (), (0, 0, 0), (-1, -1))
    _put(technique, tables, views, state)
    if state.roots:
        technique.enter(hypervisor)
        try:
            views.put_back(state.roots)
        except Refused as refused:
            raise ValueError(f"the hypervisor's window has no room: {refused}") from None
    else:
        technique.leave(hypervisor)


def _put(technique: Direct, tables: DirectTables, views: DirectViews, state: DirectState) -> None:
    """Have the guest's frames be used as the state says, where its tables agree. Raises `ValueError`."""
    domain = tables.domain
    if (state.first, state.numbers) != (domain.first, views.numbers):
        raise ValueError("its machine frames, or their numbers, are not where this machine has them")
    if state.roots and len(state.roots) != len(views._roots):
        raise ValueError(f"it has {len(state.roots)} roots, and the processor {len(views._roots)}")
    levels = np.frombuffer(state.levels, dtype=np.uint8)
    pinned = np.frombuffer(state.pinned, dtype=np.uint8)
    check_size(tables, levels, pinned)
    _own_entries(tables, views, levels, state)
    counted = count(tables, levels, pinned, state.roots)
    adopt(tables, counted)
    technique.calls.opened = _opened(tables, state)
    views.known_code(counted.executable.tolist())
    views.fills, tables.validated, tables.stores = state.counts
    views._last = state.last
    domain.refused.clear()
    domain.refused.update({Refusal(reason): number for reason, number in state.refused})


def _own_entries(tables: DirectTables, views: DirectViews, levels: np.ndarray, state: DirectState) -> None:
    """Write the hypervisor's own entries into tables, whatever lies there. Raises `ValueError`."""
    form = tables.form
    for number in np.flatnonzero(levels == form.top).tolist():
        words = tables._entries(number + tables._ahead)
        words[form.reserved.start : form.reserved.stop] = 0
        for index, entry in tables.window.items():
            words[index] = entry
    tables._lent.clear()
    for number, index in state.lent:
        if not 0 <= number < len(levels):
            raise ValueError(f"something is lent to frame {number:#x}, which there is not")
        entry = views.leading_there(int(levels[number]), index)
        place = number + tables._ahead
        tables._lent.setdefault(place, {})[index] = entry
        tables._entries(place)[index] = entry


def _opened(tables: DirectTables, state: DirectState) -> dict[int, tuple[list[Link], bool]]:
    """What was opened; each entry is looked at when its table is closed. Raises `ValueError` for what is no entry."""
    domain, per_frame = tables.domain, tables.form.words
    frames = range(domain.first, domain.first + domain.count)
    limit = 1 << 8 * tables.form.entry_size
    for frame, _, links in state.opened:
        if frame not in frames or not all(
            holder in frames and 0 <= index < per_frame and 0 <= entry < limit for holder, index, entry in links
        ):
            raise ValueError(f"the table in machine frame {frame:#x} cannot have been opened")
    return {frame: (list(links), pinned) for frame, pinned, links in state.opened}
