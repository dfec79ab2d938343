"""AArch64's translation tables of 4 KiB pages: as data, as a walk of the guest's, and as what shadow paging asks.

Room: `emulator/isa/aarch64` (DDI 0487, D8). Stage 1 of the EL1&0 regime; 16 and 64 KiB pages are not offered. The
access flag is the guest's to manage, so a walk has no side effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.exceptions import AArch64Exception
from emulator.isa.paging import (
    EXECUTE,
    GLOBAL,
    KERNEL_SHIFT,
    READ,
    USER_SHIFT,
    WRITE,
    Level,
    PageWalk,
    TableFormat,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emulator.isa.exceptions import ArchitecturalException

VALID, TABLE, ACCESSED = 1, 2, 1 << 10
USER, READ_ONLY, NOT_GLOBAL = 1 << 6, 1 << 7, 1 << 11
PRIVILEGED_NO_EXECUTE, USER_NO_EXECUTE = 1 << 53, 1 << 54
TABLE_NO_PRIVILEGED_EXECUTE, TABLE_NO_EXECUTE = 1 << 59, 1 << 60
TABLE_NO_USER, TABLE_READ_ONLY = 1 << 61, 1 << 62
FRAME_MASK: Final = 0x0000_FFFF_FFFF_F000
SCTLR_M, SCTLR_WXN = 1 << 0, 1 << 19
TCR_EPD0, TCR_EPD1, TCR_A1, TCR_AS = 1 << 7, 1 << 23, 1 << 22, 1 << 36
TCR_HPD0, TCR_HPD1 = 1 << 41, 1 << 42
TCR_TBI0, TCR_TBI1 = 1 << 37, 1 << 38
PHYSICAL_BITS: Final = 36
_ANYTHING: Final = READ | WRITE | EXECUTE
_UPPER: Final = 1 << 55
_ADDRESS_BITS: Final = 48
_SYNTHETIC: Final = 1
"""Stands for the guest's entry at a level that its tables do not have: all rights."""
_PAGE: Final = VALID | TABLE | ACCESSED | 3 << 8 | PRIVILEGED_NO_EXECUTE
"""A valid page at EL0: accessed, inner shareable, attribute 0, never executed at EL1."""


def _rights(base: int) -> tuple[int, ...]:
    """An entry's bits for code at EL0, for each combination of rights."""
    return tuple(
        base
        | (USER if rights & READ else 0)
        | (0 if rights & WRITE else READ_ONLY)
        | (0 if rights & EXECUTE else USER_NO_EXECUTE)
        for rights in range(8)
    )


LEVELS: Final = tuple(Level(shift, 9, mirrored=4096) for shift in (12, 21, 30, 39))

EL0_TABLES: Final = TableFormat(
    entry_size=8,
    unit=12,
    levels=LEVELS,
    present=VALID,
    page_mask=FRAME_MASK,
    table_mask=FRAME_MASK,
    block_mask=FRAME_MASK & ~0x1F_F000,
    pages=_rights(_PAGE),
    blocks=_rights(_PAGE & ~TABLE),
    tables=tuple(
        VALID
        | TABLE
        | TABLE_NO_PRIVILEGED_EXECUTE
        | (0 if rights & WRITE else TABLE_READ_ONLY)
        | (0 if rights & EXECUTE else TABLE_NO_EXECUTE)
        for rights in range(8)
    ),
    page_write=(READ_ONLY, 0),
    block_write=(READ_ONLY, 0),
)
"""The tables of a real processor whose code runs at EL0: 48-bit addresses, four levels. Whether a page can be read
depends on its own entry alone, so that pages can be executed and not read."""


@dataclass(slots=True)
class TranslationContext:
    """What a walk depends on besides the tables: the guest's registers."""

    sctlr: int = 0
    tcr: int = 0
    ttbr0: int = 0
    ttbr1: int = 0
    generation: int = 0
    """Raised whenever what a walk may have remembered of tables above the last level must not be used any more."""

    @property
    def asid(self) -> int:
        """The address space in use."""
        bits = 0xFFFF if self.tcr & TCR_AS else 0xFF
        return (self.ttbr1 if self.tcr & TCR_A1 else self.ttbr0) >> 48 & bits


Remembered = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]
"""A stretch of 2 MiB, its table of the last level, what those above let through, and all entries and tables on the way
by level."""


class Walker:
    """Walks one guest's tables."""

    def __init__(self, words: memoryview, base: int, context: TranslationContext) -> None:
        """`words` are guest memory's, from guest-physical `base` on."""
        self._words = words
        self._base = base
        self._end = base + len(words) * 8
        self._context = context
        self.result = PageWalk()
        self._generation = -1
        self._last: dict[int, tuple[int, int, list[int], list[int]]] = {}
        """By stretch of 2 MiB: the table of the last level and what those above let through, as a processor remembers
        them until it is told otherwise; with all entries and tables on the way."""

    @property
    def remembered(self) -> tuple[Remembered, ...]:
        """What this walker remembers of upper tables: a walk depends on it until the guest invalidates them."""
        if self._generation != self._context.generation:
            return ()
        return tuple(
            (stretch, table, limits, tuple(entries), tuple(tables))
            for stretch, (table, limits, entries, tables) in self._last.items()
        )

    @remembered.setter
    def remembered(self, known: tuple[Remembered, ...]) -> None:
        """Raises `ValueError` for what no walk can have found."""
        width = len(self.result.entries)
        for _, table, _, entries, tables in known:
            if not self._base <= table <= self._end - 4096 or table & 7 or {len(entries), len(tables)} != {width}:
                raise ValueError(f"a walk cannot have found a table at {table:#x}")
        self._generation = self._context.generation
        self._last = {
            stretch: (table, limits, list(entries), list(tables)) for stretch, table, limits, entries, tables in known
        }

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        """Translate for an access of EL1 or EL0; raises `AArch64Exception` with the syndrome of the abort."""
        context, result = self._context, self.result
        result.address = address
        if context.generation != self._generation:
            self._generation = context.generation
            self._last.clear()
        known = self._last.get(address >> 21)
        if known is not None:
            table, limits, entries, tables = known
            result.entries[:], result.tables[:] = entries, tables
            entry = self._words[table + (address >> 9 & 0xFF8) - self._base >> 3]
            result.entries[1] = entry
            if entry & 3 != 3:
                raise _abort(address, x.TRANSLATION_FAULT | 3, write, fetch)
            return self._found(address, entry, 1, limits, address >> 55 & 1, write, user, fetch)
        if not context.sctlr & SCTLR_M:
            return self._flat(address, write, fetch)
        upper = address >> 55 & 1
        region = context.tcr >> 16 if upper else context.tcr
        size = 64 - (region & 63)
        ignored = TCR_TBI1 if upper else TCR_TBI0
        plain = address & (1 << 56) - 1 if context.tcr & ignored and not fetch else address
        expected = (1 << (56 if plain != address else 64) - size) - 1 if upper else 0
        if not 16 <= 64 - size <= 39 or plain >> size != expected or region & TCR_EPD0:
            raise _abort(address, x.TRANSLATION_FAULT, write, fetch)
        table = (context.ttbr1 if upper else context.ttbr0) & 0xFFFF_FFFF_FFFE
        return self._descend(address, table, size, upper, write, user, fetch)

    def _descend(
        self, address: int, table: int, size: int, upper: int, write: bool, user: bool, fetch: bool
    ) -> PageWalk:
        context, result, words = self._context, self.result, self._words
        entries, tables = result.entries, result.tables
        level = (size - 13) // 9 + 1
        for absent in range(4, level, -1):
            entries[absent] = _SYNTHETIC
            tables[absent] = _own_table(table << 1 | upper, absent, address)
        limits = 0
        bits = size - (level * 9 + 3)
        while True:
            shift = level * 9 + 3
            index = address >> shift & (1 << bits) - 1
            at = table + index * 8
            # A root of fewer entries: as if a whole table began where its index would be 0.
            tables[level] = at - (address >> shift & 511) * 8
            if not self._base <= at < self._end:
                raise _abort(address, x.EXTERNAL_ABORT | 4 | 4 - level, write, fetch)
            entry = words[at - self._base >> 3]
            entries[level] = entry
            if not entry & VALID or (not entry & TABLE and level in (1, 4)):
                raise _abort(address, x.TRANSLATION_FAULT | 4 - level, write, fetch)
            if level == 1:
                self._last[address >> 21] = table, limits, list(entries), list(tables)
            if level == 1 or not entry & TABLE:
                break
            if not context.tcr & (TCR_HPD1 if upper else TCR_HPD0):
                limits |= entry
            table = entry & FRAME_MASK
            level -= 1
            bits = 9
        return self._found(address, entry, level, limits, upper, write, user, fetch)

    def _found(
        self, address: int, entry: int, level: int, limits: int, upper: int, write: bool, user: bool, fetch: bool
    ) -> PageWalk:
        """The page or block that an entry maps, if the access may be made."""
        context, result, shift = self._context, self.result, level * 9 + 3
        if entry & FRAME_MASK >> PHYSICAL_BITS << PHYSICAL_BITS:
            raise _abort(address, x.ADDRESS_SIZE_FAULT | 4 - level, write, fetch)
        if not entry & ACCESSED:
            raise _abort(address, x.ACCESS_FLAG_FAULT | 4 - level, write, fetch)
        rights = rights_of(entry, limits, bool(context.sctlr & SCTLR_WXN))
        wanted = EXECUTE if fetch else WRITE if write else READ
        if not rights >> (USER_SHIFT if user else KERNEL_SHIFT) & wanted:
            raise _abort(address, x.PERMISSION_FAULT | 4 - level, write, fetch)
        mask = (1 << shift) - 1
        result.frame = entry & FRAME_MASK & ~mask | address & mask & ~0xFFF
        result.size, result.level, result.rights = shift, level, rights
        result.region = upper
        result.attributes = 0 if entry & NOT_GLOBAL else GLOBAL
        return result

    def _flat(self, address: int, write: bool, fetch: bool) -> PageWalk:
        """The MMU is off: addresses are physical, in blocks of 2 MiB."""
        result = self.result
        if address >> PHYSICAL_BITS:
            raise _abort(address, x.ADDRESS_SIZE_FAULT, write, fetch)
        for level in range(1, 5):
            result.entries[level], result.tables[level] = _SYNTHETIC, _own_table(0, level, address)
        result.frame = address & ~0xFFF
        result.size, result.level, result.region = 21, 2, 0
        result.rights = _ANYTHING << KERNEL_SHIFT | _ANYTHING << USER_SHIFT
        result.attributes = GLOBAL
        return result


def _own_table(space: int, level: int, address: int) -> int:
    """What stands for the address of a table that the guest does not have, and shadows need: one for each stretch of
    addresses of each address space, outside all memory."""
    return -1 - (space << 64 | address >> 9 * level + 12 << 3 | level)


def rights_of(entry: int, limits: int = 0, no_write_execute: bool = False) -> int:
    """The rights of EL1 and EL0 to a page or block, as `PageWalk.rights`; `limits` are the bits of the tables above."""
    read_only = entry & READ_ONLY or limits & TABLE_READ_ONLY
    user = entry & USER and not limits & TABLE_NO_USER
    el1 = READ | (0 if read_only else WRITE)
    el0 = (READ | (0 if read_only else WRITE)) if user else 0
    # What EL0 may write is never executed at EL1 (D8.4.1).
    if not entry & PRIVILEGED_NO_EXECUTE and not limits & TABLE_NO_PRIVILEGED_EXECUTE and not el0 & WRITE:
        el1 |= EXECUTE
    if not entry & USER_NO_EXECUTE and not limits & TABLE_NO_EXECUTE:
        el0 |= EXECUTE
    if no_write_execute:
        el1 &= ~EXECUTE if el1 & WRITE else _ANYTHING
        el0 &= ~EXECUTE if el0 & WRITE else _ANYTHING
    return el1 << KERNEL_SHIFT | el0 << USER_SHIFT


def _abort(address: int, status: int, write: bool, fetch: bool) -> AArch64Exception:
    """An abort as from the same level: who takes it says from where."""
    if fetch:
        return AArch64Exception(x.FETCH_SAME, status, address)
    return AArch64Exception(x.DATA_SAME, status | (x.WNR if write else 0), address)


class AArch64Tables:
    """A guest's tables (`emulator.isa.paging.GuestTables`)."""

    entry_size = 8
    levels = LEVELS
    variant = 0

    def __init__(self, memory: memoryview, base: int, context: TranslationContext) -> None:
        self._context = context
        self.walker = Walker(memory.cast("Q"), base, context)
        self.walk = self.walker.walk

    @property
    def roots(self) -> tuple[int, ...]:
        """Table and address space of the lower half; table of the upper half. -1 without translation, -2 where walks
        are disabled."""
        context = self._context
        if not context.sctlr & SCTLR_M:
            return -1, -1
        lower = -2 if context.tcr & TCR_EPD0 else context.ttbr0 & FRAME_MASK | context.asid << 48
        return lower, -2 if context.tcr & TCR_EPD1 else context.ttbr1 & FRAME_MASK

    @property
    def root_tables(self) -> tuple[int, ...]:
        """Guest-physical address of what the tables of the top level mirror."""
        lower, upper = self.roots
        tcr = self._context.tcr
        return self._top(lower, tcr & 63, 0), self._top(upper, tcr >> 16 & 63, 1)

    def _top(self, name: int, unused: int, upper: int) -> int:
        """What a table of the top level mirrors: a root of fewer entries stands where its indices belong."""
        bits = 64 - unused - 39
        if name < 0 or not 1 <= bits <= 9:
            return _own_table((name + 3) << 1 | upper, 4, 0)
        context = self._context
        table = (context.ttbr1 if upper else context.ttbr0) & 0xFFFF_FFFF_FFFE
        return table - ((511 if upper else 0) & ~((1 << bits) - 1)) * 8

    def region(self, address: int) -> int:
        """Bit 55 says which of the two tables."""
        return address >> 55 & 1

    def below(self, entry: int, level: int, address: int) -> int:
        """The table that an entry points to; -1 where it points to none, or the guest's begin below that level."""
        if entry & (VALID | TABLE) == VALID | TABLE and level > 1 and entry != _SYNTHETIC:
            return entry & FRAME_MASK
        return -1

    def through(self, entry: int, user: bool) -> int:
        """APTable and the no-execute bits of an entry that points to a table."""
        if entry == _SYNTHETIC or self._context.tcr & (TCR_HPD0 | TCR_HPD1):
            return _ANYTHING
        no_execute = TABLE_NO_EXECUTE if user else TABLE_NO_PRIVILEGED_EXECUTE
        write = 0 if entry & TABLE_READ_ONLY else WRITE
        return READ | write | (0 if entry & no_execute else EXECUTE)

    def carried(self, _entry: int, _level: int) -> int:
        """Nothing: rights are all there is."""
        return 0

    def own_rights(self, entry: int, user: bool) -> int:
        """A block's rights by its own entry."""
        if entry == _SYNTHETIC:
            return _ANYTHING
        rights = rights_of(entry, 0, bool(self._context.sctlr & SCTLR_WXN))
        return rights >> (USER_SHIFT if user else KERNEL_SHIFT) & _ANYTHING

    def ahead(
        self, entries: NDArray[np.generic], user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        """Valid pages whose access flag is set; writable where they are not read-only."""
        words = entries.view(np.uint64)
        wanted = np.uint64(VALID | TABLE | ACCESSED | (USER if user else 0))
        return (words & wanted) == wanted, words & np.uint64(FRAME_MASK), (words & np.uint64(READ_ONLY)) == 0

    def no_code(self, address: int) -> ArchitecturalException:
        """A fetch from a device or from nothing: a synchronous external abort."""
        return _abort(address, x.EXTERNAL_ABORT, False, True)
