"""A Xen guest's debug registers at work: breakpoints of data and of code, where the engine can watch both.

Room: `paravirt/xen`. DR7 says which of the addresses in DR0 to DR3 are watched, for writes or for reads as well (SDM
3B, 18.2). The engine watches memory, so an address is looked up when it is armed, and again with another root and after
a flush. Breakpoints of code are the engine's by their address, and come before the instruction; the flag RF of a return
lets it run. Those of ports are kept and not armed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from emulator.engine.accesses import AccessEngine
from emulator.engine.x86 import X86Engine
from paravirt.xen.access import GuestAccess, NotMapped

_ENABLED: Final = 0xFF
_SIZES: Final = (1, 2, 8, 4)
"""By the two bits of a length in DR7."""
_CODE, _WRITES, _PORTS, _READS = range(4)
_GENERAL_DETECT: Final = 1 << 13
_CR4_DE: Final = 8


def _kind(control: int, number: int) -> int | None:
    """What a breakpoint of DR7 is of; None where it is off."""
    return control >> 16 + 4 * number & 3 if control >> 2 * number & 3 else None


def control_allowed(control: int, cr4: int) -> bool:
    """Whether DR7 may become this: no trap for accesses to debug registers, breakpoints of ports only where CR4.DE
    gives them a meaning, and those of code one byte long."""
    if control & _GENERAL_DETECT:
        return False
    if control & _ENABLED:
        for number in range(4):
            kind, size = control >> 16 + 4 * number & 3, control >> 18 + 4 * number & 3
            if (kind == _PORTS and not cr4 & _CR4_DE) or (kind == _CODE and size):
                return False
    return True


class Breakpoints:
    """Those of one virtual CPU."""

    def __init__(self, engine: X86Engine, view: memoryview) -> None:
        self._engine = cast(AccessEngine, engine) if engine.capabilities.data_breakpoints else None
        self._access = GuestAccess(view)
        self._places: list[tuple[int, int, bool]] = []
        self._code: list[int] = []
        self._passing = -1
        """Address of a breakpoint of code that lets the guest pass the next time."""
        self.passed_at = -1
        """Address of the last that it has passed."""
        self.armed = False
        """There are some of data, wherever they lead."""

    def arm(self, debug: Sequence[int], root: int) -> None:
        """Have the breakpoints of these debug registers, in the address space of machine frame `root`."""
        if self._engine is None:
            return
        control = debug[7]
        if not control & _ENABLED and not self.armed and not self._code:
            return
        code = [debug[number] for number in range(4) if _kind(control, number) == _CODE]
        if code != self._code:
            self._code = code
            self._engine.break_at(code, self._asked)
        wanted = [self._place(debug[number], control, number) for number in range(4)]
        self.armed = any(wanted)
        places: list[tuple[int, int, bool]] = []
        if self.armed and root:
            self._access.use_root(root << 12)
            places = [self._found(place) if place else (0, 0, False) for place in wanted]
        if places != self._places:
            self._places = places
            self._engine.break_on_data(places)

    @staticmethod
    def _place(address: int, control: int, number: int) -> tuple[int, int, bool] | None:
        """Guest-virtual address, size and whether reads count; None for what is no breakpoint of data."""
        kind, size = _kind(control, number), _SIZES[control >> 18 + 4 * number & 3]
        if kind not in (_WRITES, _READS):
            return None
        return address & -size, size, kind == _READS

    def _found(self, place: tuple[int, int, bool]) -> tuple[int, int, bool]:
        """The same by its machine address; nothing, where nothing is mapped."""
        address, size, reads = place
        try:
            return self._access.translate(address), size, reads
        except NotMapped:
            return 0, 0, False

    def forget(self) -> None:
        """The kernel is entered: what was met just before is dropped, as by Xen."""
        if self._engine is not None:
            self._engine.forget_accesses()

    # -- of code --------------------------------------------------------------------------------

    def _asked(self, address: int) -> bool:
        """Whether the guest stops before the instruction at `address`, of which there is a breakpoint."""
        if address != self._passing:
            return True
        self._passing, self.passed_at = -1, address
        return False

    def let_pass(self, address: int) -> None:
        """The instruction at `address` is run although there may be a breakpoint of it."""
        self._passing = address

    def interrupted(self, address: int) -> None:
        """The instruction at `address` has not come to its end: if it was let pass, it is once more."""
        if address == self.passed_at:
            self._passing = address

    def met(self, debug: Sequence[int], address: int) -> int:
        """Bits of the breakpoints of code at `address`, as DR6 has them."""
        return sum(1 << number for number in range(4) if debug[number] == address and _kind(debug[7], number) == _CODE)
