"""The walks of a 32-bit guest's page tables: two levels of 4-byte entries, PAE, and no paging at all.

Room: `emulator/isa/x86`. As `walk`: permissions, reserved bits, accessed and dirty bits by Intel SDM 3A 4.3 and 4.4;
tables outside memory read as all ones. Results have the form of the four-level walk, entries widened to 64 bits, so
that one shadow core serves every mode: a 4 MiB page is two of 2 MiB, a page table of 1024 entries two of 512.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.walk import GuestContext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MASK32: Final = 0xFFFF_FFFF
_PAGE_FAULT: Final = 14
_ALL_ONES: Final = 0xFFFF_FFFF
_LINK: Final = w.PRESENT | w.WRITABLE | w.USER | w.ACCESSED
"""What stands for an entry of a level that the guest's format does not have."""
_LEAF: Final = _LINK | w.DIRTY
_HALF: Final = 0x800
"""In the source of a last-level table: its second half."""
_QUARTER: Final = 0x400
_ROOT_PAE: Final = 0xFFFF_FFE0
_ROOT_LEGACY: Final = 0xFFFF_F000
_POINTER_RESERVED: Final = 0x1E6
"""Bits of a page-directory-pointer entry that must be 0 besides address bits (SDM 3A table 4-8)."""
_HIGH_4M: Final = 0x1FE000
"""PSE-36: bits 13 to 20 of an entry for 4 MiB are bits 32 to 39 of the address."""


class Walk:
    """Result of a walk, reused: the entries of each level, widened, and where they lie."""

    __slots__ = ("address", "entries", "frame", "level", "no_execute", "tables", "user", "writable")

    def __init__(self) -> None:
        self.entries = [0, 0, 0, 0, 0]
        """Entry used at levels 4..1 (index = level)."""
        self.tables = [0, 0, 0, 0, 0]
        """Guest-physical address of the part of a table used at levels 4..1."""
        self.level = 1
        """Level of the leaf: 1 (4 KiB) or 2 (2 MiB)."""
        self.frame = 0
        """Guest-physical address of the 4 KiB page."""
        self.writable = self.user = self.no_execute = False
        self.address = 0


def widen_directory(entry: int, half: int) -> int:
    """The 64-bit entry for one 2 MiB half of what a 4-byte page-directory entry maps (with CR4.PSE)."""
    if entry & (w.LARGE | 1) == w.LARGE | 1:
        base = entry & 0xFFC0_0000 | (entry & _HIGH_4M) << 19 | half << 21
        return base | entry & 0x11FF
    return entry & MASK32


class LegacyWalker:
    """Two levels, 4 KiB pages and with CR4.PSE pages of 4 MiB (PSE-36 included)."""

    def __init__(self, memory: memoryview, context: GuestContext, large_pages: bool = True) -> None:
        self._words = memory.cast("I")
        self._size = memory.nbytes
        self._context = context
        self.large_pages = large_pages
        """CR4.PSE: without it bit 7 of a directory entry is ignored."""
        self.result = Walk()

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> Walk:
        """Translate a 32-bit `address`; see `walk.Walker.walk`."""
        words, size, context, result = self._words, self._size, self._context, self.result
        address &= MASK32
        entries, tables = result.entries, result.tables
        directory = context.root & _ROOT_LEGACY
        number = address >> 22
        at = (directory >> 2) + number
        upper = words[at] if directory < size else _ALL_ONES
        if not upper & 1:
            raise _fault(address, 0, write, user, False)
        entries[4] = entries[3] = _LINK
        tables[4] = tables[3] = directory
        tables[2] = directory | (number >> 8) * _QUARTER
        large = upper & w.LARGE != 0 and self.large_pages
        writable, allowed = upper & 2 != 0, upper & 4 != 0
        leaf = upper
        below = 0
        if large:
            if upper & ((1 << 22) - (1 << (w.PHYSICAL_BITS - 19))):
                raise _fault(address, w.ERROR_PRESENT | w.ERROR_RESERVED, write, user, False)
        else:
            table = upper & _ROOT_LEGACY
            below = (table >> 2) + (address >> 12 & 1023)
            leaf = words[below] if table < size else _ALL_ONES
            if not leaf & 1:
                raise _fault(address, 0, write, user, False)
            writable, allowed = writable and leaf & 2 != 0, allowed and leaf & 4 != 0
            tables[1] = table | (address >> 21 & 1) * _HALF
        if (user and not allowed) or (write and not writable and (user or context.write_protect)):
            raise _fault(address, w.ERROR_PRESENT, write, user, False)
        wanted = leaf | w.ACCESSED | (w.DIRTY if write else 0)
        if large:
            if wanted != upper:
                words[at] = upper = wanted
            entries[2] = widen_directory(upper, address >> 21 & 1)
            result.frame = entries[2] & w.FRAME_MASK & ~0x1F_FFFF | address & 0x1F_F000
            result.level = 2
        else:
            if not upper & w.ACCESSED:
                words[at] = upper = upper | w.ACCESSED
            if wanted != leaf:
                words[below] = leaf = wanted
            entries[2] = upper & ~w.LARGE
            entries[1] = leaf
            result.frame = leaf & _ROOT_LEGACY
            result.level = 1
        result.writable, result.user, result.no_execute = writable, allowed, False
        result.address = address
        return result


class PaeWalker:
    """Three levels of 8-byte entries below four pointers at CR3; pages of 4 KiB and 2 MiB."""

    def __init__(self, memory: memoryview, context: GuestContext) -> None:
        self._words = memory.cast("Q")
        self._size = memory.nbytes
        self._context = context
        self.result = Walk()

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> Walk:
        """Translate a 32-bit `address`; see `walk.Walker.walk`.

        The pointers are read from memory, as AMD's processors do, and not when CR3 is loaded.
        """
        words, size, context, result = self._words, self._size, self._context, self.result
        address &= MASK32
        entries, tables = result.entries, result.tables
        reserved = w.RESERVED if context.no_execute else w.RESERVED | w.NO_EXECUTE
        reserved |= 0x7FF0_0000_0000_0000
        root = context.root & _ROOT_PAE
        entries[4], tables[4] = _LINK, root
        tables[3] = root
        pointer = words[(root >> 3) + (address >> 30)] if root < size else 0xFFFF_FFFF_FFFF_FFFF
        if not pointer & 1:
            raise _fault(address, 0, write, user, fetch and context.no_execute)
        if pointer & (reserved | w.NO_EXECUTE | _POINTER_RESERVED):
            raise _fault(address, w.ERROR_PRESENT | w.ERROR_RESERVED, write, user, fetch and context.no_execute)
        entries[3] = pointer & w.FRAME_MASK | _LINK
        writable = allowed = True
        no_execute = False
        table = pointer & w.FRAME_MASK
        level, shift = 2, 21
        while True:
            tables[level] = table
            at = (table >> 3) + (address >> shift & 511)
            entry = words[at] if table < size else 0xFFFF_FFFF_FFFF_FFFF
            if not entry & 1:
                raise _fault(address, 0, write, user, fetch and context.no_execute)
            leaf = level == 1 or entry & w.LARGE != 0
            if entry & reserved or (leaf and level == 2 and entry & 0x1F_E000):
                raise _fault(address, w.ERROR_PRESENT | w.ERROR_RESERVED, write, user, fetch and context.no_execute)
            writable = writable and entry & 2 != 0
            allowed = allowed and entry & 4 != 0
            no_execute = no_execute or entry >> 63 != 0
            entries[level] = entry
            if leaf:
                break
            table = entry & w.FRAME_MASK
            level, shift = 1, 12
        if (
            (user and not allowed)
            or (write and not writable and (user or context.write_protect))
            or (fetch and no_execute)
        ):
            raise _fault(address, w.ERROR_PRESENT, write, user, fetch and context.no_execute)
        for one in range(2, level - 1, -1):
            entry = entries[one]
            wanted = entry | (w.ACCESSED | w.DIRTY if write and one == level else w.ACCESSED)
            if wanted != entry:
                words[(tables[one] >> 3) + (address >> one * 9 + 3 & 511)] = wanted
                entries[one] = wanted
        mask = (1 << shift) - 1
        result.frame = entry & w.FRAME_MASK & ~mask | address & mask & ~0xFFF
        result.level = level
        result.writable, result.user, result.no_execute = writable, allowed, no_execute
        result.address = address
        return result


class Unpaged:
    """CR0.PG = 0: linear addresses are physical ones, and everything is allowed."""

    def __init__(self) -> None:
        self.result = Walk()
        self.result.tables = [-1, -1, -2, -3, -4]

    def walk(self, address: int, _write: bool, _user: bool, _fetch: bool) -> Walk:
        """Translate a 32-bit `address`: by pages of 2 MiB that map what they are."""
        result = self.result
        address &= MASK32
        result.entries[4] = result.entries[3] = _LINK
        result.entries[2] = address & ~0x1F_FFFF | _LEAF | w.LARGE
        result.frame = address & ~0xFFF
        result.level = 2
        result.writable = result.user = True
        result.no_execute = False
        result.address = address
        return result


def _fault(address: int, code: int, write: bool, user: bool, fetch: bool) -> Fault:
    if write:
        code |= w.ERROR_WRITE
    if user:
        code |= w.ERROR_USER
    if fetch:
        code |= w.ERROR_FETCH
    return Fault(_PAGE_FAULT, code, address)


def widen_table(entries: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """512 4-byte page-table entries in the 64-bit form."""
    import numpy as np

    return entries.astype(np.uint64)


def widen_directory_quarter(entries: NDArray[np.uint32], large_pages: bool) -> NDArray[np.uint64]:
    """256 4-byte directory entries as 512 of 64 bits, each for half as much."""
    import numpy as np

    wide = np.repeat(entries.astype(np.uint64), 2)
    large = (wide & np.uint64(w.LARGE | 1)) == np.uint64(w.LARGE | 1) if large_pages else np.zeros(512, bool)
    halves = np.tile(np.array([0, 1 << 21], np.uint64), 256)
    moved = wide & np.uint64(0xFFC0_0000) | (wide & np.uint64(_HIGH_4M)) << np.uint64(19) | wide & np.uint64(0x11FF)
    small = wide & np.uint64(MASK32 & ~w.LARGE)
    return np.where(large, moved | halves, small)
