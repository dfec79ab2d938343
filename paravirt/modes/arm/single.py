"""One instruction of an ARMv7 guest runs alone: from a page of its own, with a breakpoint instruction behind it.

Room: `paravirt/modes/arm`. There is no trap flag. The page that holds the instruction is executed from a copy that the
TLB alone knows, so that what the instruction itself reads and writes there is the guest's memory, without the trap.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Final

from emulator.engine.arm import ArmEngine
from emulator.isa.arm.table import instruction
from paravirt import layout
from paravirt.modes.arm.code import PAGE_MASK, WORLD
from paravirt.modes.arm.shadow import ArmShadow

PHYSICAL: Final = layout.ARMV7.open_bus + 0x10_0000
"""Engine-physical address of the two pages."""
_PAGE: Final = 4096
_TRAPS: Final = {True: b"\x00\xbe", False: b"\x70\x00\x20\xe1"}
"""BKPT in T32 and A32: executed whatever an IT block says."""

State = tuple[int, int, tuple[tuple[int, bytes], ...]]
"""Where the trap is, the view, and address and contents of each page."""


class SingleInstruction:
    """The instruction that runs alone, if one does."""

    def __init__(self, engine: ArmEngine, shadow: ArmShadow, page: Callable[[int], memoryview | None]) -> None:
        """`page` gives the bytes that execute in the page at an address, if it executes."""
        self._engine, self._shadow, self._page = engine, shadow, page
        self.memory = memoryview(mmap.mmap(-1, 2 * _PAGE))
        self.behind = -1
        """Where the trap is; -1 while no instruction runs alone."""
        self._pages: tuple[int, ...] = ()
        self._view = 0

    def begin(self, pc: int, thumb: bool) -> None:
        """Have the instruction at `pc`, and no other, executed next. Where it cannot be fetched any more it faults."""
        first = pc & PAGE_MASK
        code = self._page(first)
        if code is None:
            return
        at = pc - first
        size = instruction(int.from_bytes(code[at : at + 2], "little"), 0)[1] if thumb else 4
        self.memory[:_PAGE] = code
        last = first
        if at + size >= _PAGE:
            last = first + _PAGE & PAGE_MASK
            code = self._page(last) if at + size > _PAGE else None
            self.memory[_PAGE:] = code if code is not None else bytes(_PAGE)
        trap = _TRAPS[thumb]
        self.memory[at + size : at + size + len(trap)] = trap
        self.restore((pc + size & 0xFFFF_FFFF, self._shadow.view, tuple((page, b"") for page in {first: 0, last: 0})))

    @property
    def state(self) -> State | None:
        """All of it, as a value; None while no instruction runs alone."""
        if self.behind < 0:
            return None
        pages = ((page, bytes(self._contents(number))) for number, page in enumerate(self._pages))
        return self.behind, self._view, tuple(pages)

    def restore(self, state: State) -> None:
        """Go on with what `state` gave; pages without contents have them already."""
        self.behind, self._view, pages = state
        self._shadow.run_alone(True)
        self._pages = tuple(page for page, _ in pages)
        for number, (_, contents) in enumerate(pages):
            if contents:
                self._contents(number)[:] = contents
        self._engine.frame_changed(PHYSICAL, 2 * _PAGE)
        for page in self._pages:
            self._engine.flush_page(WORLD[self._view], page)
            self.enter(page)

    def _contents(self, number: int) -> memoryview:
        return self.memory[number * _PAGE : (number + 1) * _PAGE]

    def enter(self, address: int) -> bool:
        """Enter a page into the TLB, from which it may be lost; whether it is one of these."""
        page = address & PAGE_MASK
        if self.behind < 0 or page not in self._pages:
            return False
        self._engine.map_execute_only(WORLD[self._view], page, PHYSICAL + self._pages.index(page) * _PAGE)
        return True

    def end(self) -> None:
        """It is done, or shall not be: the pages execute as before."""
        for page in self._pages:
            self._engine.flush_page(WORLD[self._view], page)
        if self.behind >= 0:
            self._shadow.run_alone(False)
        self.behind, self._pages = -1, ()
