"""What walking a guest's own tables takes on x86-64: one root for both halves, of which user code has the lower.

Room: `paravirt/mmu`, a part of `direct_views`.
"""

from __future__ import annotations

from typing import ClassVar, Final

from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import TableFormat
from emulator.isa.x86 import walk as w
from emulator.isa.x86.paging import LONG_MODE
from emulator.isa.x86.processor import Fault
from paravirt.mmu.direct_views import DirectViews
from paravirt.mmu.views import KERNEL_VIEW

_PAGE_FAULT: Final = 14


class X86DirectViews(DirectViews):
    """Of one x86-64 guest."""

    OWN: ClassVar[TableFormat] = LONG_MODE
    USER_SLOTS: ClassVar[int] = 256
    NUMBERS_AT: ClassVar[int] = 0xFFFF_0000_0000_0000

    def _enter(self, view: int) -> None:
        self._engine.set_root(self._roots[0] << 12 if view == KERNEL_VIEW else self._user_root())

    def _enter_probe(self) -> None:
        self._engine.set_root(self._probe << 12)

    def _stale(self, address: int, write: bool) -> ArchitecturalException:
        return Fault(_PAGE_FAULT, w.ERROR_PRESENT | (w.ERROR_WRITE if write else 0), address)

    def install_descriptors(self, _address: int) -> bool:
        """There are no descriptors."""
        return False
