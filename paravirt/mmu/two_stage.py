"""Two-stage translation, modelled as ARM's and x86's extensions have it: the walker goes through both tables.

Room: `paravirt/mmu`. `StageTwo` is the hypervisor's table of guest-physical addresses, `TwoStageWalker` the hardware's
walk through it and the guest's own tables, every load counted. `TwoStage` is the technique: shadow tables stand for the
TLB, which keeps combined entries and loses them at each flush; a miss is a walk of both stages by software.
No store to a guest's table exits, and none is looked at.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from emulator.isa.paging import PageWalk
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW

if TYPE_CHECKING:
    from paravirt.mmu.shadow import ShadowPaging

_PRESENT: Final = 1
_LARGE: Final = 0x80
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_EMPTY: Final = (0,) * 512
_LINE: Final = 6
"""Bits of an address inside a line of the processor's cache."""


def loads_of_a_cold_walk(guest_levels: int, levels: int) -> int:
    """Loads to translate one address where nothing is cached: each of the guest's entries is itself at an address that
    must be translated, and so is the page: (n + 1)(m + 1) - 1, which is 24 for four levels each."""
    return (guest_levels + 1) * (levels + 1) - 1


class StageTwoFault(Exception):
    """A guest-physical address that stage 2 does not map: an exit to the hypervisor."""

    def __init__(self, address: int) -> None:
        super().__init__(f"stage 2 maps nothing at guest-physical {address:#x}")
        self.address = address


class StageTwo:
    """Tables of 512 entries each, from guest-physical to engine-physical addresses, in pages of 4 KiB."""

    def __init__(self, levels: int = 4) -> None:
        """`levels`: 1..5."""
        if not 1 <= levels <= 5:
            raise ValueError(f"a second stage of {levels} levels: give 1 to 5")
        self.levels = levels
        self.loads = 0
        """Entries read, since the beginning."""
        self.lines: set[int] = set()
        """Cache lines of the tables that were read since this was cleared."""
        self._words = array("Q", bytes(4096))

    @property
    def size(self) -> int:
        """Bytes of all tables."""
        return len(self._words) * 8

    def map(self, guest: int, physical: int) -> None:
        """Let the 4 KiB at a guest-physical address be those at an engine-physical one."""
        table, words = 0, self._words
        for level in range(self.levels, 1, -1):
            at = table * 512 + (guest >> 3 + 9 * level & 511)
            if not words[at]:
                words[at] = len(words) // 512 << 12 | _PRESENT
                words.extend(_EMPTY)
            table = words[at] >> 12
        words[table * 512 + (guest >> 12 & 511)] = physical & _ADDRESS | _PRESENT

    def translate(self, guest: int) -> int:
        """Engine-physical address of a guest-physical one. Raises `StageTwoFault`."""
        table, words = 0, self._words
        for level in range(self.levels, 0, -1):
            at = table * 512 + (guest >> 3 + 9 * level & 511)
            self.loads += 1
            self.lines.add(at << 3 >> _LINE)
            entry = words[at]
            if not entry & _PRESENT:
                raise StageTwoFault(guest)
            table = entry >> 12
        return table << 12 | guest & 0xFFF


@dataclass(frozen=True, slots=True)
class Walked:
    """One translation by both stages."""

    physical: int
    """Engine-physical address."""
    loads: int
    lines: int
    """Different cache lines among them: each may be a miss."""


class TwoStageWalker:
    """The hardware's walk, over a guest's tables of the form that long mode has, with any number of levels."""

    def __init__(self, words: memoryview, stage_two: StageTwo, guest_levels: int = 4) -> None:
        """`words`: engine-physical memory."""
        self._words = words
        self._stage_two = stage_two
        self._levels = guest_levels
        self.cache: dict[int, int] = {}
        """Combined entries: guest-virtual page to engine-physical page. They know nothing of either stage's tables."""
        self.loads = 0

    def walk(self, root: int, address: int) -> Walked | None:
        """Translate a guest-virtual address from a guest-physical root; None where the guest maps nothing.

        Raises `StageTwoFault`. What is found is cached, and costs no load until `flush`.
        """
        known = self.cache.get(address >> 12)
        if known is not None:
            return Walked(known | address & 0xFFF, 0, 0)
        stage, own = self._stage_two, 0
        before, lines = stage.loads, set[int]()
        stage.lines.clear()
        table = root
        try:
            for level in range(self._levels, 0, -1):
                at = stage.translate(table + (address >> 3 + 9 * level & 511) * 8)
                own += 1
                lines.add(at >> _LINE)
                entry = self._words[at >> 3]
                if not entry & _PRESENT:
                    return None
                table = entry & _ADDRESS
                if level > 1 and entry & _LARGE:
                    below = (1 << 3 + 9 * level) - 1
                    table = table & ~below | address & below & ~0xFFF
                    break
            physical = stage.translate(table)
        finally:
            self.loads += own + stage.loads - before
        self.cache[address >> 12] = physical
        return Walked(physical | address & 0xFFF, own + stage.loads - before, len(lines) + len(stage.lines))

    def flush(self) -> None:
        """Forget combined entries."""
        self.cache.clear()


@dataclass(slots=True)
class Misses:
    """What one access costs where stage 2 maps nothing yet: every page that the walk meets is missed once."""

    faults: int = 0
    loads: int = 0


def page_misses(walker: TwoStageWalker, stage_two: StageTwo, root: int, address: int) -> Misses:
    """Do an access as a processor does, again and again from the root, each missing page being mapped to itself."""
    missed, before = Misses(), walker.loads
    while True:
        try:
            walker.walk(root, address)
        except StageTwoFault as fault:
            missed.faults += 1
            stage_two.map(fault.address, fault.address)
        else:
            missed.loads = walker.loads - before
            return missed


class TwoStage:
    """Combined entries in the shadow tables, walked for at each miss and dropped at each flush."""

    name = "two-stage"
    ahead = False

    def __init__(self, shadow: ShadowPaging) -> None:
        self._shadow = shadow
        self.stage_two = StageTwo()
        self.walks = 0
        self.loads = 0
        """Of both stages, in all walks; a processor makes them without an exit."""
        self.faults = 0
        """Pages that stage 2 did not map yet: the exits that a processor with this would make."""
        self._stale: set[int] = set()

    # -- walks ----------------------------------------------------------------------------------

    def walked(self, walk: PageWalk) -> None:
        """A miss: go through both stages, and count."""
        self.walks += 1
        before, own = self.stage_two.loads, 0
        for table in walk.tables[walk.level :]:
            if table >= 0:
                self._through(table)
                own += 1
        self._through(walk.frame)
        self.loads += own + self.stage_two.loads - before

    def _through(self, guest: int) -> None:
        frames, stage = self._shadow.frames, self.stage_two
        if not frames.base <= guest < frames.end:
            return  # a device, or nothing
        try:
            stage.translate(guest)
        except StageTwoFault:
            self.faults += 1
            stage.map(guest, guest)
            stage.translate(guest)

    # -- flushes --------------------------------------------------------------------------------

    def root_loaded(self) -> None:
        """Both views lose what is not global when they are entered."""
        self._stale = {KERNEL_VIEW, USER_VIEW}

    def entered(self, view: int, roots: tuple[int, ...]) -> None:
        """Drop what a load of the root flushed."""
        if view not in self._stale:
            return
        self._stale.discard(view)
        below = self._shadow.pool.below
        reached, waiting = set(roots), list(roots)
        while waiting:
            table = waiting.pop()
            self._drop(table)
            fresh = below[table] - reached
            reached |= fresh
            waiting.extend(fresh)
        self._shadow.flush_tlb()

    def flushed_all(self) -> None:
        """Everything goes."""
        pool = self._shadow.pool
        for table in range(pool.used):
            if pool.source[table] >= 0:
                self._drop(table)
        self._stale = set()
        self._shadow.flush_tlb()

    def invalidated(self, address: int) -> None:
        """One page goes, in every address space: it may have been global."""
        shadow = self._shadow
        region = shadow.guest.region(address)
        for (of, _name, _role), root in shadow.roots_named().items():
            if of == region:
                shadow.drop_path(root, address)
        shadow.flush_tlb()

    def _drop(self, table: int) -> None:
        """Drop the translations in a table, and the links that the guest has changed. Above level 2 there are links
        only, and entries of the engine's own."""
        pool = self._shadow.pool
        pool.revalidate(table)
        if pool.level_of[table] > 2:
            return
        own = pool.own(table)
        places = np.flatnonzero(own)
        if pool.level_of[table] > 1:
            places = np.array([at for at in places if not self._is_link(int(own[at]))], dtype=np.int64)
        if len(places):
            if pool.on_removed is not None:
                pool.on_removed((places + (table << pool.shift)).tolist())
            own[places] = 0

    def _is_link(self, entry: int) -> bool:
        """Whether an entry leads to another table of the guest's, or to the hypervisor's window."""
        pool = self._shadow.pool
        below = pool.table_in(entry)
        return below >= 0 and (pool.source[below] >= 0 or self._shadow.is_window(below))

    # -- of no interest -------------------------------------------------------------------------

    def mirrored(self, table: int) -> None:
        """Nothing is protected."""

    def found(self, table: int) -> None:
        """What a table holds since it was last in reach may be stale."""
        self.flushed_all()

    def linked(self, at: int, below: int) -> None:
        """Links are not followed back."""

    def forget(self) -> None:
        """All tables are gone."""
        self._stale = set()
