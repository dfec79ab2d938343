"""What walking a guest's own tables takes on AArch64: two roots, both open to EL0, the upper for its kernel alone.

Room: `paravirt/mmu`, a part of `direct_views`. In the kernel's view TTBR0 and TTBR1 are the guest's roots. In user
code's TTBR0 is a copy of the first without what the guest hides from user code, and TTBR1 is empty: no upper half is
copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64 import paging as p
from emulator.isa.aarch64.exceptions import AArch64Exception
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import EXECUTE, KERNEL_SHIFT, READ, USER_SHIFT, WRITE, PageWalk, TableFormat
from paravirt.mmu.direct_views import DirectViews
from paravirt.mmu.views import KERNEL_VIEW

if TYPE_CHECKING:
    from paravirt.mmu.direct_tables import DirectTables

_LEVELS: Final = ((4, 39), (3, 30), (2, 21), (1, 12))
_HALVES: Final = (0, 0xFFFF)


class AArch64DirectWalker:
    """Walks the tables in use of one guest, which lead to machine frames."""

    def __init__(self, tables: DirectTables, roots: list[int] | None = None) -> None:
        """`roots` are another walker's."""
        self._tables = tables
        self._domain = tables.domain
        self.roots = [0, 0] if roots is None else roots
        """Machine frames of the roots of the lower half and of the upper."""
        self.result = PageWalk()

    def find(self, address: int) -> tuple[int, int] | None:
        """Machine frame and index of the last-level entry for an address, None where there is no table."""
        words, domain = self._tables.words, self._domain
        if address >> 48 not in _HALVES:
            return None
        place = self.roots[address >> 63] - domain.first
        for _, shift in _LEVELS[:-1]:
            entry = words[place * 512 + (address >> shift & 511)]
            place = ((entry & p.FRAME_MASK) >> 12) - domain.first
            if entry & 3 != 3 or not 0 <= place < domain.count:
                return None
        return place + domain.first, address >> 12 & 511

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        """Translate for an access of the guest's kernel, or of user code. Raises the abort of EL1."""
        words, domain, result, form = self._tables.words, self._domain, self.result, self._tables.form
        wanted = EXECUTE if fetch else WRITE if write else READ
        if address >> 48 not in _HALVES:
            raise _abort(address, x.TRANSLATION_FAULT, write, fetch)
        place, limits = self.roots[address >> 63] - domain.first, 0
        for level, shift in _LEVELS:
            entry = words[place * 512 + (address >> shift & 511)]
            kind = entry & 3
            place = ((entry & p.FRAME_MASK) >> 12) - domain.first
            if not kind & p.VALID or not 0 <= place < domain.count:  # the latter are the hypervisor's
                raise _abort(address, x.TRANSLATION_FAULT | 4 - level, write, fetch)
            entry = form.restore(level, entry)  # but for the frame as the guest has written it
            result.entries[level] = entry
            if level == 1 or kind == p.VALID:
                break
            limits |= entry
        if not entry & p.ACCESSED:
            raise _abort(address, x.ACCESS_FLAG_FAULT | 4 - level, write, fetch)
        rights = p.rights_of(entry, limits)
        if not rights >> (USER_SHIFT if user else KERNEL_SHIFT) & wanted:
            raise _abort(address, x.PERMISSION_FAULT | 4 - level, write, fetch)
        inside = (1 << shift) - 1
        result.frame = (domain.guest[place] + domain.base << 12) & ~inside | address & inside & ~0xFFF
        result.level, result.size, result.address, result.rights = level, shift, address, rights
        return result


def _abort(address: int, status: int, write: bool, fetch: bool) -> AArch64Exception:
    if fetch:
        return AArch64Exception(x.FETCH_SAME, status, address)
    return AArch64Exception(x.DATA_SAME, status | (x.WNR if write else 0), address)


class AArch64DirectViews(DirectViews):
    """Of one AArch64 guest."""

    OWN: ClassVar[TableFormat] = p.EL0_TABLES
    ROOTS: ClassVar[int] = 2
    WINDOW_ROOT: ClassVar[int] = 1
    USER_SLOTS: ClassVar[int] = 512
    NUMBERS_AT: ClassVar[int] = 0xFFFF_0000_0000_0000

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._empty = self._host.take()
        """The hypervisor's frame of a root that leads nowhere."""
        self.clean_page = -1
        """No stores pass by (`AArch64Shadow`)."""
        self.invalidations: dict[int, int] = {}
        self._below: set[int] = set()
        """Nothing is remembered of what was flushed, or of tables (`AArch64Shadow`)."""

    def _enter(self, view: int) -> None:
        if view == KERNEL_VIEW:
            self._engine.set_roots(self._roots[0] << 12, self._roots[1] << 12, view)
        else:
            self._engine.set_roots(self._user_root(), self._empty << 12, view)

    def _enter_probe(self) -> None:
        self._engine.set_roots(self._probe << 12, self._empty << 12, self.view)

    def _stale(self, address: int, write: bool) -> ArchitecturalException:
        return _abort(address, x.PERMISSION_FAULT | 3, write, False)

    # -- instructions that a ported kernel has left ----------------------------------------------

    @property
    def watched(self) -> bool:
        """No pages are kept unmapped for the sake of watchpoints."""
        return False

    @watched.setter
    def watched(self, value: bool) -> None:
        if value:
            self.load_root()

    def reset(self) -> None:
        """Nothing is made of the guest's tables that could be forgotten."""

    @property
    def guest(self) -> None:
        """The guest's tables are the processor's."""

    def change_guest(self, _guest: object) -> None:
        """A guest that wrote SCTLR_EL1 or TCR_EL1 by itself."""
        self.load_root()
