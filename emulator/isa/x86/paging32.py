"""A 32-bit guest's page tables as what shadow paging asks of them (`emulator.isa.paging.GuestTables`), in three forms.

Room: `emulator/isa/x86` (Intel SDM 3A 4.3 and 4.4). The walks are in `walk32`; the tables that shadow these have four
levels and entries of 8 bytes (`paging.LONG_MODE`), the upper ones without anything of the guest's to mirror.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import EXECUTE, READ, WRITE, Level, PageWalk
from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import INVALID_OPCODE, Fault
from emulator.isa.x86.walk32 import (
    HALF,
    LEGACY_ROOT,
    LINK,
    PAE_ROOT,
    QUARTER,
    LegacyWalker,
    PaeWalker,
    Unpaged,
    unpaged_table,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ANYTHING = READ | WRITE | EXECUTE


class _Tables:
    """What the three forms have in common."""

    def __init__(self, context: w.GuestContext) -> None:
        self._context = context

    @property
    def variant(self) -> int:
        """1 while CR0.WP is clear: the kernel writes read-only pages."""
        return 0 if self._context.write_protect else 1

    def region(self, _address: int) -> int:
        """There is one root."""
        return 0

    def carried(self, _entry: int, _level: int) -> int:
        """Nothing: rights are all there is."""
        return 0

    def through(self, entry: int, user: bool) -> int:
        """R/W and XD of an entry that points to a table. A pointer to a PAE directory, which lets everything through,
        is the one that was used and has no accessed bit."""
        if not entry & w.ACCESSED:
            return _ANYTHING
        writable = entry & w.WRITABLE or not (user or self._context.write_protect)
        return READ | (WRITE if writable else 0) | (0 if entry & w.NO_EXECUTE else EXECUTE)

    def own_rights(self, entry: int, user: bool) -> int:
        """A large page that was never written gets no right to write: its dirty bit must be set first."""
        rights = self.through(entry, user)
        return rights if entry & w.DIRTY else rights & ~WRITE

    def _ahead(
        self, words: NDArray[np.uint64], user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        wanted = np.uint64(w.PRESENT | w.ACCESSED | (w.USER if user else 0))
        written = np.uint64(w.DIRTY | w.WRITABLE if user or self._context.write_protect else w.DIRTY)
        return (words & wanted) == wanted, words & np.uint64(w.FRAME_MASK), (words & written) == written

    def no_code(self, _address: int) -> ArchitecturalException:
        """A bus without a device gives all ones, which is no instruction."""
        return Fault(INVALID_OPCODE)


class LegacyTables(_Tables):
    """Two levels of 4-byte entries."""

    entry_size = 4
    levels: tuple[Level, ...] = (
        Level(12, 9, mirrored=HALF),
        Level(21, 9, mirrored=QUARTER, ratio=1),
        Level(30, 9),
        Level(39, 9),
    )

    def __init__(self, walker: LegacyWalker, memory: memoryview, context: w.GuestContext) -> None:
        super().__init__(context)
        self._walker = walker
        self._words = memory.cast("I")
        self.walk = walker.walk

    @property
    def roots(self) -> tuple[int, ...]:
        """The directory that CR3 names."""
        return (self._context.root & LEGACY_ROOT,)

    root_tables = roots

    def below(self, entry: int, level: int, address: int) -> int:
        """The half of a page table, or the quarter of the directory."""
        directory = self._context.root & LEGACY_ROOT
        if level == 4:
            return directory
        if level == 3:
            return directory | (address >> 30) * QUARTER
        large = entry & w.LARGE and self._walker.large_pages
        return entry & LEGACY_ROOT | (address >> 21 & 1) * HALF if entry & w.PRESENT and not large else -1

    def ahead(
        self, entries: NDArray[np.generic], user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        """Pages whose accessed bit is set; writable where the dirty bit is, too."""
        return self._ahead(entries.astype(np.uint64), user)

    def vacant(self, address: int) -> bool:
        """Whether the guest has no page table for the 2 MiB at `address`."""
        at = (self._context.root & LEGACY_ROOT) + (address >> 22 << 2)
        return at >> 2 >= len(self._words) or not self._words[at >> 2] & w.PRESENT


class PaeTables(_Tables):
    """Three levels of 8-byte entries."""

    entry_size = 8
    levels: tuple[Level, ...] = (
        Level(12, 9, mirrored=4096),
        Level(21, 9, mirrored=4096),
        Level(30, 9, mirrored=32),
        Level(39, 9),
    )

    def __init__(self, walker: PaeWalker, memory: memoryview, context: w.GuestContext) -> None:
        super().__init__(context)
        self._words = memory.cast("Q")
        self.walk = walker.walk

    @property
    def roots(self) -> tuple[int, ...]:
        """The four pointers that CR3 names."""
        return (self._context.root & PAE_ROOT,)

    root_tables = roots

    def below(self, entry: int, level: int, _address: int) -> int:
        """The table that an entry points to; the pointers themselves below the top."""
        if level == 4:
            return self._context.root & PAE_ROOT
        large = entry & w.LARGE and level == 2
        return entry & w.FRAME_MASK if entry & w.PRESENT and not large else -1

    def ahead(
        self, entries: NDArray[np.generic], user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        """Pages whose accessed bit is set; writable where the dirty bit is, too."""
        return self._ahead(entries.view(np.uint64), user)

    def vacant(self, address: int) -> bool:
        """Whether the guest has no page table for the 2 MiB at `address`."""
        at = (self._context.root & PAE_ROOT) >> 3
        pointer = self._words[at + (address >> 30)] if at + 4 <= len(self._words) else 0
        place = ((pointer & w.FRAME_MASK) >> 3) + (address >> 21 & 511)
        return not pointer & w.PRESENT or place >= len(self._words) or not self._words[place] & w.PRESENT


class NoTables(_Tables):
    """Paging is off."""

    entry_size = 8
    levels: tuple[Level, ...] = (Level(12, 9), Level(21, 9), Level(30, 9), Level(39, 9))
    variant = 1
    roots = root_tables = (unpaged_table(4, 0),)

    def __init__(self, walker: Unpaged, context: w.GuestContext) -> None:
        super().__init__(context)
        self.walk = walker.walk

    def below(self, _entry: int, level: int, address: int) -> int:
        """What names the table below."""
        return unpaged_table(level - 1, address) if level > 2 else -1

    def ahead(
        self, entries: NDArray[np.generic], _user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        """There is no table to look ahead in."""
        nothing = np.zeros(len(entries), bool)
        return nothing, np.zeros(len(entries), np.uint64), nothing

    def vacant(self, _address: int) -> bool:
        """No address is mapped by a table."""
        return True


__all__ = ["LINK", "LegacyTables", "NoTables", "PaeTables", "PageWalk"]
