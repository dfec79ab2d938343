"""ARMv7's short descriptors as shadow paging asks for them: the guest's own, and those that a real processor walks.

Room: `emulator/isa/arm` (ARM B3.5). The first level has a domain and no rights, so what a page allows is in its own
entry alone. Where the real processor cannot say something of the guest's (a manager's rights, PXN of a whole table), it
is part of what a table of pages is made for: `ArmTables.above`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.arm.paging import (
    CLIENT,
    EXECUTE,
    MANAGER,
    READ,
    SCTLR_AFE,
    SCTLR_M,
    WRITE,
    TranslationContext,
    Walker,
    section_rights,
    small_rights,
)
from emulator.isa.paging import GLOBAL, KERNEL_SHIFT, USER_SHIFT, Level, PageWalk, TableFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emulator.isa.exceptions import ArchitecturalException

_ANYTHING: Final = READ | WRITE | EXECUTE
_SMALL: Final = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 10
"""A small page of normal, cacheable memory (TEX 001, C, B), shareable."""
_NEVER: Final = 1
_NOT_GLOBAL: Final = 1 << 11
APART: Final = _NOT_GLOBAL
"""Marks the entry of a page that may be executed and not read: it leads to what may be read, and executes nothing."""
DOMAIN_SHIFT: Final = 5
OWN_DOMAIN: Final = 15
"""The domain that is always a client's in the real tables. A guest's own pages of that domain need not be told apart
from the hypervisor's: their access is looked at when they are entered."""
_FLAT: Final = 2
"""Stands for the guest's entry while its MMU is off: a section."""
READ_ONLY: Final = 1 << 9
"""AP[2] of a page: whatever the rest of AP says, nobody writes it."""
_PXN: Final = 1 << 2
_SUPERSECTION: Final = 1 << 18 | 2
"""Both bits: a section that is one of sixteen, always of domain 0."""
ABOVE_MANAGER, ABOVE_PXN = 1, 2
"""Bits of `ArmTables.above`."""


def _pages() -> tuple[int, ...]:
    """Bits of a page's entry by READ | WRITE | EXECUTE of User mode."""
    return tuple(
        _SMALL | (0x30 if rights & WRITE else 0x20 if rights & READ else 0x10) | (0 if rights & EXECUTE else _NEVER)
        for rights in range(8)
    )


LEVELS: Final[tuple[Level, ...]] = (Level(12, 8, mirrored=1024), Level(20, 12, mirrored=16384))
USER_TABLES: Final = TableFormat(
    entry_size=4,
    unit=10,
    levels=LEVELS,
    present=3,
    page_mask=0xFFFF_F000,
    table_mask=0xFFFF_FC00,
    block_mask=0xFFF0_0000,
    pages=_pages(),
    blocks=(),
    tables=(1,) * 8,
    page_write=(0x10, 0x10),
    block_write=(1 << 10, 1 << 10),
    limits=False,
)
"""The tables of a real processor whose code runs in User mode. There are no sections: a translation that came from one
could not be forgotten by itself."""


def _lookup(simple: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """For the 12 low bits of a second-level descriptor: the rights of kernel and user where it is a small page that is
    mapped without more ado, else 0."""
    kernel, user = np.zeros(4096, np.uint8), np.zeros(4096, np.uint8)
    for low in range(4096):
        if low & 2 and not (simple and not low & 1 << 4):
            kernel[low], user[low] = small_rights(low, simple)
    return kernel, user


class ArmTables:
    """A guest's tables (`emulator.isa.paging.GuestTables`)."""

    entry_size = 4
    levels = LEVELS
    variant = 0

    def __init__(self, memory: memoryview, base: int, context: TranslationContext) -> None:
        """`memory` begins at guest-physical `base`."""
        self._context = context
        self.walker = Walker(memory.cast("I"), base, context)
        self.result = PageWalk(2)
        self._lookups = {simple: _lookup(simple) for simple in (False, True)}
        self._small = tuple(rights.tobytes() for rights in self._lookups[False])
        """The rights of kernel and user without an access flag, by a descriptor's 12 low bits."""

    @property
    def roots(self) -> tuple[int, ...]:
        """The tables that TTBR0 and TTBR1 point to, the second where TTBCR has it used; -1 without translation."""
        context = self._context
        if not context.sctlr & SCTLR_M:
            return (-1,)
        split = context.ttbcr & 7
        lower = context.ttbr0 & 0xFFFF_FFFF << 14 - split & 0xFFFF_FFFF
        return (lower, context.ttbr1 & 0xFFFF_C000) if split else (lower,)

    @property
    def root_tables(self) -> tuple[int, ...]:
        """The same: each is mirrored as if it had 4096 entries."""
        return self.roots

    def region(self, address: int) -> int:
        """TTBCR.N says where the second table begins."""
        split = self._context.ttbcr & 7
        return 1 if split and self._context.sctlr & SCTLR_M and address >> 32 - split else 0

    def below(self, entry: int, level: int, _address: int) -> int:
        """The table of pages that a first-level entry points to."""
        return entry & 0xFFFF_FC00 if level == 2 and entry & 3 == 1 and self._context.sctlr & SCTLR_M else -1

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        """Translate for an access. Raises the guest's abort."""
        if self._is_small(address, EXECUTE if fetch else WRITE if write else READ, user):
            return self.result
        found = self.walker.walk(address, write, user, fetch)
        walk = self.result
        walk.address, walk.frame = address, found.physical
        rights = (_ANYTHING, _ANYTHING) if found.manager else (found.kernel, found.user)
        walk.rights = rights[0] << KERNEL_SHIFT | rights[1] << USER_SHIFT
        context = self._context
        if context.ttbcr & 7:
            walk.region = self.region(address)
            walk.tables[2] = self.roots[walk.region]
        else:
            walk.region = 0
            walk.tables[2] = context.ttbr0 & 0xFFFF_C000 if context.sctlr & SCTLR_M else -1
        if found.second >= 0:
            walk.level, walk.size = 1, 12 if found.second & 2 else 16
            walk.entries[1], walk.entries[2] = found.second, found.descriptor
            walk.tables[1] = found.descriptor & 0xFFFF_FC00
            walk.attributes = 0 if found.second & _NOT_GLOBAL else GLOBAL
        else:
            walk.level, walk.size = 2, 20
            walk.entries[2] = _FLAT if found.descriptor < 0 else found.descriptor
            walk.attributes = 0 if found.descriptor & 1 << 17 and found.descriptor >= 0 else GLOBAL
        return walk

    def _is_small(self, address: int, wanted: int, user: bool) -> bool:
        """Whether it is nearly every access: to a small page, by a table and a client's domain, and allowed. The
        translation is in `result` then."""
        context, words, base = self._context, self.walker.words, self.walker.base
        split, count, region = context.ttbcr & 7, len(words), 0
        if context.sctlr & (SCTLR_M | SCTLR_AFE) != SCTLR_M:
            return False
        root = context.ttbr0 & 0xFFFF_FFFF << 14 - split & 0xFFFF_FFFF
        if split and address >> 32 - split:
            region, root = 1, context.ttbr1 & 0xFFFF_C000
        at = (root - base >> 2) + (address >> 20)
        if not 0 <= at < count:
            return False
        first = words[at]
        if first & 3 != 1 or context.dacr >> 2 * (first >> DOMAIN_SHIFT & 15) & 3 != CLIENT:
            return False
        at = ((first & 0xFFFF_FC00) - base >> 2) + (address >> 12 & 0xFF)
        if not 0 <= at < count:
            return False
        second = words[at]
        kernel, other = self._small[0][second & 0xFFF], self._small[1][second & 0xFFF]
        if first & _PXN:
            kernel &= ~EXECUTE
        if not (other if user else kernel) & wanted:
            return False
        walk = self.result
        walk.address, walk.frame, walk.region = address, second & 0xFFFF_F000, region
        walk.rights = kernel << KERNEL_SHIFT | other << USER_SHIFT
        walk.level, walk.size = 1, 12
        walk.entries[1], walk.entries[2] = second, first
        walk.tables[1], walk.tables[2] = first & 0xFFFF_FC00, root
        walk.attributes = 0 if second & _NOT_GLOBAL else GLOBAL
        return True

    def above(self, entry: int) -> int:
        """Of a first-level entry that points to a table: what the kernel's and user code's rights to the pages below
        depend on, and the real processor's do not."""
        manager = self._context.dacr >> 2 * (entry >> DOMAIN_SHIFT & 15) & 3 == MANAGER
        return (ABOVE_MANAGER if manager else 0) | (ABOVE_PXN if entry & _PXN else 0)

    def through(self, _entry: int, _user: bool) -> int:
        """All of them."""
        return _ANYTHING

    def carried(self, entry: int, level: int) -> int:
        """The domain."""
        return entry & 15 << DOMAIN_SHIFT if level == 2 and entry & _SUPERSECTION != _SUPERSECTION else 0

    def own_rights(self, entry: int, user: bool) -> int:
        """A section's rights, those of a manager included."""
        context = self._context
        domain = 0 if entry & _SUPERSECTION == _SUPERSECTION else entry >> DOMAIN_SHIFT & 15
        if not context.sctlr & SCTLR_M or context.dacr >> 2 * domain & 3 == MANAGER:
            return _ANYTHING
        return section_rights(entry, bool(context.sctlr & SCTLR_AFE))[1 if user else 0]

    def ahead(
        self, entries: NDArray[np.generic], user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        """Small pages that may be read, with the access flag set where there is one."""
        words = entries.view(np.uint32)
        kernel, other = self._lookups[self._context.sctlr & SCTLR_AFE != 0]
        rights = (other if user else kernel)[words & np.uint32(0xFFF)]
        return rights & READ != 0, (words & np.uint32(0xFFFF_F000)).astype(np.uint64), rights & WRITE != 0

    def no_code(self, address: int) -> ArchitecturalException:
        """A fetch from a device or from nothing: a synchronous external abort."""
        return ArmException(x.PREFETCH_ABORT, x.EXTERNAL, address)
