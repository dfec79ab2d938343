"""The software walk of x86-64 tables that lead to machine frames, for what the hypervisor does in a guest's name.

Room: `paravirt/mmu`. As `emulator.isa.x86.walk`, but the entries are as direct paging stores them: machine frames, the
user bit imposed and the guest's own kept beside it. What leads to frames that are not the guest's is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.isa.paging import PageWalk
from emulator.isa.x86 import walk as w
from emulator.isa.x86.processor import Fault

if TYPE_CHECKING:
    from paravirt.mmu.direct_tables import DirectTables

_PAGE_FAULT: Final = 14
_ALL: Final = 0o77
_HOLE: Final = 0x8000_0000_0000


class DirectWalker:
    """Walks the tables in use of one guest."""

    def __init__(self, tables: DirectTables) -> None:
        self._tables = tables
        self._domain = tables.domain
        self._first = tables.domain.first
        self._kept = tables.form.kept
        self._levels = [
            (level, level * 9 + 3, tables.form.levels[level - 1]) for level in range(tables.form.top, 0, -1)
        ]
        self.roots = [0]
        """Machine frame of the root."""
        self.result = PageWalk()

    def find(self, address: int) -> tuple[int, int] | None:
        """Machine frame and index of the last-level entry for an address, None where there is no table."""
        frame = self.roots[0]
        if self._beyond(address):
            return None
        for _, shift, form in self._levels[:-1]:
            entry = self._tables.words[(frame - self._first) * 512 + (address >> shift & form.entries - 1)]
            if not entry & w.PRESENT or entry & form.kind_mask != form.table:
                return None
            frame = (entry & w.FRAME_MASK) >> 12
            if not 0 <= frame - self._first < self._domain.count:
                return None
        return frame, address >> 12 & 511

    def _beyond(self, address: int) -> bool:
        """Whether there is no such address."""
        return (address + _HOLE) >> 48 & 0xFFFF != 0

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        """Translate an `address` for the access; sets accessed and dirty bits. Raises `Fault` 14."""
        words, first, count = self._tables.words, self._first, self._domain.count
        result = self.result
        writable, allowed, no_execute = True, True, False
        place = self.roots[0] - first
        if self._beyond(address):
            raise self._fault(address, 0, write, user, fetch)
        for level, shift, form in self._levels:
            at = place * 512 + (address >> shift & form.entries - 1)
            entry = words[at]
            if not entry & w.PRESENT:
                raise self._fault(address, 0, write, user, fetch)
            place = ((entry & w.FRAME_MASK) >> 12) - first
            if not 0 <= place < count:
                raise self._fault(address, w.ERROR_PRESENT, write, user, fetch)
            result.entries[level] = entry
            if not form.imposed:  # it has no rights, and no marks
                continue
            writable = writable and entry & w.WRITABLE != 0
            allowed = allowed and entry >> self._kept & w.USER != 0
            no_execute = no_execute or entry & w.NO_EXECUTE != 0
            leaf = level == 1 or entry & w.LARGE != 0
            if leaf and ((user and not allowed) or (write and not writable) or (fetch and no_execute)):
                raise self._fault(address, w.ERROR_PRESENT, write, user, fetch)
            words[at] = entry | (w.ACCESSED | w.DIRTY if write and leaf else w.ACCESSED)
            if leaf:
                break
        inside = (1 << shift) - 1
        result.frame = (self._domain.guest[place] << 12) & ~inside | address & inside & ~0xFFF
        result.level, result.size, result.address = level, shift, address
        result.rights = _ALL
        return result

    def _fault(self, address: int, code: int, write: bool, user: bool, fetch: bool) -> Fault:
        code |= w.ERROR_WRITE if write else 0
        code |= w.ERROR_USER if user else 0
        return Fault(_PAGE_FAULT, code | (w.ERROR_FETCH if fetch else 0), address)
