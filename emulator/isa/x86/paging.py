"""x86's page tables as data: the four-level tables that a processor in long mode walks, and a guest's of that form.

Room: `emulator/isa/x86` (Intel SDM 3A 4.5). The walk itself is in `walk`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import EXECUTE, READ, WRITE, Level, TableFormat
from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import INVALID_OPCODE, Fault

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY_1 = 1 << 59
"""Protection key 1: execute-only where the engine can make it so."""

_TABLE = w.PRESENT | w.USER | w.ACCESSED
_PAGE = w.PRESENT | w.USER | w.ACCESSED | w.DIRTY


def _rights(base: int) -> tuple[int, ...]:
    """An entry's bits for each combination of rights; present means readable, unless a key says otherwise."""
    return tuple(
        base
        | (w.WRITABLE if rights & WRITE else 0)
        | (0 if rights & EXECUTE else w.NO_EXECUTE)
        | (KEY_1 if rights == EXECUTE else 0)
        for rights in range(8)
    )


def _through(base: int) -> tuple[int, ...]:
    return tuple(
        base | (w.WRITABLE if rights & WRITE else 0) | (0 if rights & EXECUTE else w.NO_EXECUTE) for rights in range(8)
    )


LEVELS = tuple(Level(shift, 9, mirrored=4096) for shift in (12, 21, 30, 39))
"""A long-mode guest's tables, each mirrored by one of the same size."""

LONG_MODE = TableFormat(
    entry_size=8,
    unit=12,
    levels=LEVELS,
    present=w.PRESENT,
    page_mask=w.FRAME_MASK,
    table_mask=w.FRAME_MASK,
    block_mask=w.FRAME_MASK & ~0x1F_F000,
    pages=_rights(_PAGE),
    blocks=_rights(_PAGE | w.LARGE),
    tables=_through(_TABLE),
    page_write=(w.WRITABLE, w.WRITABLE),
    block_write=(w.WRITABLE, w.WRITABLE),
)
"""The tables of a real processor in long mode, for code at CPL 3."""


class LongModeTables:
    """A long-mode guest's tables."""

    entry_size = 8
    levels = LEVELS

    def __init__(self, memory: memoryview, context: w.GuestContext) -> None:
        self._context = context
        self.walker = w.Walker(memory.cast("Q"), memory.nbytes, context)
        self.walk = self.walker.walk
        """As the processor does; raises `Fault` 14."""

    @property
    def variant(self) -> int:
        """1 while CR0.WP is clear: the kernel writes read-only pages."""
        return 0 if self._context.write_protect else 1

    @property
    def roots(self) -> tuple[int, ...]:
        """CR3's address."""
        return (self._context.root,)

    root_tables = roots

    def region(self, _address: int) -> int:
        """There is one root."""
        return 0

    def below(self, entry: int, level: int, _address: int) -> int:
        """The table that an entry points to."""
        large = entry & w.LARGE and level < 4
        return entry & w.FRAME_MASK if entry & w.PRESENT and not large else -1

    def through(self, entry: int, user: bool) -> int:
        """R/W and XD of an entry that points to a table."""
        writable = entry & w.WRITABLE or not (user or self._context.write_protect)
        return READ | (WRITE if writable else 0) | (0 if entry & w.NO_EXECUTE else EXECUTE)

    def carried(self, _entry: int, _level: int) -> int:
        """Nothing: rights are all there is."""
        return 0

    def own_rights(self, entry: int, user: bool) -> int:
        """A large page that was never written gets no right to write: its dirty bit must be set first."""
        rights = self.through(entry, user)
        return rights if entry & w.DIRTY else rights & ~WRITE

    def ahead(
        self, entries: NDArray[np.generic], user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        """Pages whose accessed bit is set; writable where the dirty bit is, too."""
        words = entries.view(np.uint64)
        wanted, written = map(np.uint64, self.ahead_bits(user))
        return (words & wanted) == wanted, words & np.uint64(w.FRAME_MASK), (words & written) == written

    def ahead_bits(self, user: bool) -> tuple[int, int]:
        """The bits of an entry whose page may be mapped ahead, and those with which it may be written."""
        wanted = w.PRESENT | w.ACCESSED | (w.USER if user else 0)
        return wanted, w.DIRTY | w.WRITABLE if user or self._context.write_protect else w.DIRTY

    def no_code(self, _address: int) -> ArchitecturalException:
        """A bus without a device gives all ones, which is no instruction."""
        return Fault(INVALID_OPCODE)
