"""The walks of a 32-bit guest's page tables: two levels of 4-byte entries, PAE, and no paging at all.

Room: `emulator/isa/x86`. As `walk`: permissions, reserved bits, accessed and dirty bits by Intel SDM 3A 4.3 and 4.4;
tables outside memory read as all ones. Levels are counted as in the four-level tables that shadow these: a table of
1024 entries is two of 512 there, and a directory four, each entry twice.
"""

from __future__ import annotations

from typing import Final

from emulator.isa.paging import GLOBAL, PageWalk
from emulator.isa.x86 import registers as r
from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.walk import GuestContext

MASK32: Final = 0xFFFF_FFFF
LINK: Final = w.PRESENT | w.WRITABLE | w.USER | w.ACCESSED
"""What stands for the entry of a level that the guest's tables do not have: all rights."""
HALF: Final = 0x800
"""Bytes of a page table that one table of 512 entries mirrors."""
QUARTER: Final = 0x400
"""Bytes of a page directory that one table for 1 GiB mirrors."""
LEGACY_ROOT: Final = 0xFFFF_F000
PAE_ROOT: Final = 0xFFFF_FFE0
_PAGE_FAULT: Final = 14
_ALL_ONES: Final = 0xFFFF_FFFF
_ALL_ONES_64: Final = 0xFFFF_FFFF_FFFF_FFFF
_POINTER_RESERVED: Final = 0x1E6
"""Bits of a page-directory-pointer entry that must be 0 besides address bits (SDM 3A table 4-8)."""
_HIGH_4M: Final = 0x1F_E000
"""PSE-36: bits 13 to 20 of an entry for 4 MiB are bits 32 to 39 of the address."""
_RESERVED_4M: Final = (1 << 22) - (1 << w.PHYSICAL_BITS - 19)
_RESERVED_PAE: Final = w.RESERVED | 0x7FF0_0000_0000_0000
_ALL_RIGHTS, _READ_ONLY, _KERNEL, _KERNEL_WRITES, _EXECUTES = 0o77, 0o55, 0o07, 0o02, 0o44
"""Of `PageWalk.rights`: a digit for user code, a digit for the kernel."""


def large_frame(entry: int, address: int) -> int:
    """Guest-physical address of the 4 KiB page at `address` in the 4 MiB page of a directory entry."""
    return entry & 0xFFC0_0000 | (entry & _HIGH_4M) << 19 | address & 0x3F_F000


def _rights(leaf: int, writable: bool, allowed: bool, write_protect: bool) -> int:
    """What may be done without a walk: a page that was never written must be walked for its dirty bit first."""
    if not leaf & w.DIRTY:
        rights = _READ_ONLY
    elif writable:
        rights = _ALL_RIGHTS
    else:
        rights = _READ_ONLY if write_protect else _READ_ONLY | _KERNEL_WRITES
    return rights if allowed else rights & _KERNEL


class LegacyWalker:
    """Two levels, 4 KiB pages and with CR4.PSE pages of 4 MiB (PSE-36 included)."""

    def __init__(self, memory: memoryview, context: GuestContext, large_pages: bool = True) -> None:
        self._words = memory.cast("I")
        self._size = memory.nbytes
        self._context = context
        self.large_pages = large_pages
        """CR4.PSE: without it bit 7 of a directory entry is ignored."""
        self.result = PageWalk()

    def walk(self, address: int, write: bool, user: bool, _fetch: bool) -> PageWalk:
        """Translate a 32-bit `address`; see `walk.Walker.walk`."""
        words, size, context, result = self._words, self._size, self._context, self.result
        address &= MASK32
        entries, tables = result.entries, result.tables
        directory = context.root & LEGACY_ROOT
        at = (directory >> 2) + (address >> 22)
        upper = words[at] if directory < size else _ALL_ONES
        if not upper & 1:
            raise _fault(address, 0, write, user, False)
        large = upper & w.LARGE != 0 and self.large_pages
        writable, allowed = upper & 2 != 0, upper & 4 != 0
        leaf, below = upper, at
        if large:
            if upper & _RESERVED_4M:
                raise _fault(address, w.ERROR_PRESENT | w.ERROR_RESERVED, write, user, False)
        else:
            table = upper & LEGACY_ROOT
            below = (table >> 2) + (address >> 12 & 1023)
            leaf = words[below] if table < size else _ALL_ONES
            if not leaf & 1:
                raise _fault(address, 0, write, user, False)
            writable, allowed = writable and leaf & 2 != 0, allowed and leaf & 4 != 0
            tables[1] = table | (address >> 21 & 1) * HALF
            if not upper & w.ACCESSED:
                words[at] = upper = upper | w.ACCESSED
        if (user and not allowed) or (write and not writable and (user or context.write_protect)):
            raise _fault(address, w.ERROR_PRESENT, write, user, False)
        wanted = leaf | w.ACCESSED | (w.DIRTY if write else 0)
        if wanted != leaf:
            words[below] = leaf = wanted
        entries[4] = entries[3] = LINK
        entries[2], entries[1] = (leaf, 0) if large else (upper, leaf)
        tables[4] = tables[3] = directory
        tables[2] = directory | (address >> 30) * QUARTER
        result.level, result.size = (2, 22) if large else (1, 12)
        result.frame = large_frame(leaf, address) if large else leaf & LEGACY_ROOT
        result.rights = _rights(leaf, writable, allowed, context.write_protect)
        result.attributes = GLOBAL if leaf & w.GLOBAL else 0
        result.address = address
        return result


class PaeWalker:
    """Three levels of 8-byte entries below four pointers at CR3; pages of 4 KiB and 2 MiB."""

    def __init__(self, memory: memoryview, context: GuestContext) -> None:
        self._words = memory.cast("Q")
        self._size = memory.nbytes
        self._context = context
        self.result = PageWalk()

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        """Translate a 32-bit `address`; see `walk.Walker.walk`.

        The pointers are read from memory, as AMD's processors do, and not when CR3 is loaded.
        """
        words, size, context, result = self._words, self._size, self._context, self.result
        address &= MASK32
        shown = fetch and context.no_execute
        entries, tables = result.entries, result.tables
        reserved = _RESERVED_PAE if context.no_execute else _RESERVED_PAE | w.NO_EXECUTE
        root = context.root & PAE_ROOT
        pointer = words[(root >> 3) + (address >> 30)] if root < size else _ALL_ONES_64
        if not pointer & 1:
            raise _fault(address, 0, write, user, shown)
        if pointer & (reserved | w.NO_EXECUTE | _POINTER_RESERVED):
            raise _fault(address, w.ERROR_PRESENT | w.ERROR_RESERVED, write, user, shown)
        writable = allowed = True
        no_execute = False
        table, level, shift = pointer & w.FRAME_MASK, 2, 21
        while True:
            tables[level] = table
            at = (table >> 3) + (address >> shift & 511)
            entry = words[at] if table < size else _ALL_ONES_64
            if not entry & 1:
                raise _fault(address, 0, write, user, shown)
            leaf = level == 1 or entry & w.LARGE != 0
            if entry & reserved or (leaf and level == 2 and entry & 0x1F_E000):
                raise _fault(address, w.ERROR_PRESENT | w.ERROR_RESERVED, write, user, shown)
            writable = writable and entry & 2 != 0
            allowed = allowed and entry & 4 != 0
            no_execute = no_execute or entry >> 63 != 0
            entries[level] = entry
            if leaf:
                break
            table, level, shift = entry & w.FRAME_MASK, 1, 12
        if (
            (user and not allowed)
            or (write and not writable and (user or context.write_protect))
            or (fetch and no_execute)
        ):
            raise _fault(address, w.ERROR_PRESENT, write, user, shown)
        for one in range(2, level - 1, -1):
            entry = entries[one]
            wanted = entry | (w.ACCESSED | w.DIRTY if write and one == level else w.ACCESSED)
            if wanted != entry:
                words[(tables[one] >> 3) + (address >> one * 9 + 3 & 511)] = wanted
                entries[one] = entry = wanted
        entries[4], entries[3] = LINK, pointer
        tables[4] = tables[3] = root
        mask = (1 << shift) - 1
        result.frame = entry & w.FRAME_MASK & ~mask | address & mask & ~0xFFF
        result.level, result.size = level, shift
        rights = _rights(entry, writable, allowed, context.write_protect)
        result.rights = rights & ~_EXECUTES if no_execute else rights
        result.attributes = GLOBAL if entry & w.GLOBAL else 0
        result.address = address
        return result


class Unpaged:
    """CR0.PG = 0: linear addresses are physical ones, and everything is allowed."""

    def __init__(self) -> None:
        self.result = PageWalk()
        self.result.entries = [0, 0, 0, LINK, LINK]
        self.result.rights = _ALL_RIGHTS
        self.result.level, self.result.size = 2, 21
        self.result.attributes = GLOBAL

    def walk(self, address: int, _write: bool, _user: bool, _fetch: bool) -> PageWalk:
        """Translate a 32-bit `address`: by pages of 2 MiB that map what they are."""
        result = self.result
        address &= MASK32
        result.entries[2] = address & ~0x1F_FFFF | LINK | w.DIRTY | w.LARGE
        result.tables = [-1, -1, unpaged_table(2, address), unpaged_table(3, address), unpaged_table(4, address)]
        result.frame = address & ~0xFFF
        result.address = address
        return result


def unpaged_table(level: int, address: int) -> int:
    """What names a table that mirrors none, on the way to `address`: negative, so that it is in no memory."""
    return -(level << 8) - (address >> 30 if level == 2 else 0)


def _fault(address: int, code: int, write: bool, user: bool, fetch: bool) -> Fault:
    if write:
        code |= w.ERROR_WRITE
    if user:
        code |= w.ERROR_USER
    if fetch:
        code |= w.ERROR_FETCH
    return Fault(_PAGE_FAULT, code, address)


def look_up(memory: memoryview, cr0: int, cr4: int, cr3: int, address: int) -> int:
    """The physical address of a 32-bit linear one, -1 where nothing is mapped; no entry is marked, no right asked."""
    address &= MASK32
    if not cr0 & r.CR0_PG:
        return address
    pae = cr4 & r.CR4_PAE != 0
    size, bits, shift, table = (8, 9, 39, cr3 & PAE_ROOT) if pae else (4, 10, 32, cr3 & LEGACY_ROOT)
    while shift > 12:
        shift -= bits
        at = table + size * (address >> shift & (1 << bits) - 1)
        if at + size > len(memory):
            return -1
        entry = int.from_bytes(memory[at : at + size], "little")
        if not entry & w.PRESENT:
            return -1
        if entry & w.LARGE and shift == 21:
            return entry & w.FRAME_MASK & ~0x1F_FFFF | address & 0x1F_FFFF
        if entry & w.LARGE and shift == 22 and cr4 & r.CR4_PSE:
            return large_frame(entry, address) | address & 0xFFF
        table = entry & w.FRAME_MASK
    return table | address & 0xFFF
