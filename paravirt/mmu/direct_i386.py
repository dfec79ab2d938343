"""What walking a guest's own tables takes on i386 with PAE, whose code runs in long mode's compatibility mode.

Room: `paravirt/mmu`, a part of `direct_views`. A PAE root is four entries without rights, which a processor keeps a
copy of. So does the hypervisor: in a table of its own, of level 3, below a root of its own. User code has another of
the first three entries: the last GiB is the guest's kernel's, and the hypervisor's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Final

from emulator.errors import UsageError
from emulator.isa.paging import EXECUTE, READ, WRITE
from emulator.isa.x86 import walk as w
from paravirt.mmu.direct_walk import DirectWalker
from paravirt.mmu.direct_x86 import X86DirectViews
from paravirt.mmu.views import KERNEL_VIEW

_NUMBERS: Final = 0xFF00_0000
_MOST_NUMBERS: Final = 512 * 1024
"""That 2 MiB hold."""
_POINTERS: Final = 4


class I386DirectWalker(DirectWalker):
    """Walks the tables in use of one guest."""

    def _beyond(self, address: int) -> bool:
        return address >> 32 != 0


class I386DirectViews(X86DirectViews):
    """Of one i386 guest."""

    USER_SLOTS: ClassVar[int] = 3

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        take, words = self._host.take, self._host.words
        self._pointers = take(), take()
        """The hypervisor's frames of the root's copies, by view."""
        self._tops = take(), take()
        """And of the roots above them."""
        for top, pointers in zip(self._tops, self._pointers, strict=True):
            words(top)[0] = pointers << 12 | self.OWN.tables[READ | WRITE | EXECUTE]
        self._copied = (-1, -1)
        """The root that they were copied of, and the count of changes then."""
        self.three_levels = False
        """User code is in compatibility mode, too."""

    def _place_numbers(self, _reserved: Collection[int]) -> int:
        leaves = self._make_numbers()
        if self.tables.domain.count > _MOST_NUMBERS:
            raise UsageError("the tables of i386 guests are walked for up to 2 GiB of memory; give it less")
        self._lends.append((_NUMBERS, self._leading_to(_NUMBERS, leaves)))
        return _NUMBERS

    def _copy(self) -> None:
        """Bring the copies up to date with the root in use."""
        version = self._roots[0], self.tables.top_changes
        if version == self._copied:
            return
        first = (version[0] - self.tables.domain.first) * 512
        entries = self.tables.words[first : first + _POINTERS].tolist()
        point = self.OWN.tables[READ | WRITE | EXECUTE]
        changed = []
        for pointers, count in zip(self._pointers, (_POINTERS, self.USER_SLOTS), strict=True):
            copy = self._host.words(pointers)
            for index, entry in enumerate(entries[:count]):
                new = entry & w.FRAME_MASK | point if entry & w.PRESENT else 0
                if copy[index] not in (0, new):
                    changed.append(((pointers << 12) + 8 * index, -1))
                copy[index] = new
        self._copied = version
        self._engine.flush_tlb(changed)

    def _root_changed(self) -> None:
        self._copy()

    def _enter(self, view: int) -> None:
        self._copy()
        self._engine.set_root(self._tops[0 if view == KERNEL_VIEW else 1] << 12)

    # -- what the hypervisor of an i386 guest asks for besides ------------------------------------

    def maps(self, _address: int, _size: int) -> bool:
        """The window is lent to tables of the guest's, or they are refused."""
        return False

    def change_format(self) -> None:
        """A guest that wrote CR0 or CR4 by itself."""
        self.load_root()
