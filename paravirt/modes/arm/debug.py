"""Hardware breakpoints and watchpoints of an ARMv7 guest: what its debug registers ask for, and whether one fires.

Room: `paravirt/modes/arm`. By DDI 0406, C3.3 and C3.4, C11.11.2 (DBGBCR) and C11.11.44 (DBGWCR). Monitor debug mode: a
match is a Prefetch Abort, or a Data Abort before the access is made. Mismatches, by which Linux steps, are asked about
at every instruction while there are any. What matches a context or is linked to one never fires.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from emulator.engine.arm import ArmEngine
from emulator.isa.arm import exceptions as x
from paravirt.modes.arm.vcpu import ArmVirtualCpu

BREAKPOINTS, WATCHPOINTS = 6, 4
_MONITOR: Final = 1 << 15
_ENABLED: Final = 1
_MATCH, _MISMATCH = 0, 4
_STATUS: Final = "DBGDSCRext"
_METHOD: Final = 0xF << 2
BREAKPOINT, INSTRUCTION, WATCHPOINT = 1 << 2, 3 << 2, 10 << 2
"""DBGDSCR.MOE, the method of entry: a breakpoint, BKPT, a watchpoint before its access."""
_LINKED: Final = 1 << 20
_LARGEST_MASK: Final = 12
"""Larger watchpoints than a page are watched in their first page only."""
_OF_KERNEL: Final = (frozenset({x.SYS, x.SVC}), None, frozenset[int](), None)
"""Modes but User by DBGBCR.PMC; None: all of them."""
_OF_USER: Final = (True, False, True, True)


class DebugEvents:
    """The breakpoints and watchpoints of one virtual CPU."""

    def __init__(self, engine: ArmEngine, vcpu: ArmVirtualCpu) -> None:
        self._engine, self._vcpu = engine, vcpu
        self._known: tuple[tuple[int, ...], bool] = (), False
        self.watched: frozenset[int] = frozenset()
        """Pages (address >> 12) with a watchpoint that can fire in some mode."""

    def changed(self) -> bool:
        """A debug register was written: have the engine ask where a breakpoint may fire. Whether other pages than
        before are watched."""
        found = list(self._breakpoints())
        everywhere = any(how >> 20 & 0xF == _MISMATCH for _, how in found)
        addresses = () if everywhere else tuple(sorted({at for address, how in found for at in _places(address, how)}))
        if (addresses, everywhere) != self._known:
            self._known = addresses, everywhere
            self._engine.break_at(addresses, self._fires, everywhere)
        before, self.watched = self.watched, frozenset(first >> 12 for first, _, _ in self._watchpoints())
        return self.watched != before

    def _watchpoints(self) -> Iterator[tuple[int, int, int]]:
        """First byte, first byte behind and DBGWCR of each run of bytes that is watched in some mode."""
        system = self._vcpu.system
        if not system.get(_STATUS, 0) & _MONITOR:
            return
        for number in range(WATCHPOINTS):
            how = system.get(f"DBGWCR{number}", 0)
            if not how & _ENABLED or how & _LINKED:
                continue
            address, mask = system.get(f"DBGWVR{number}", 0) & ~3, how >> 24 & 0x1F
            if mask > 2:
                first = address & -1 << mask
                yield first, first + (1 << min(mask, _LARGEST_MASK)), how
            else:
                for byte in range(8):
                    if how >> 5 + byte & 1:
                        yield address + byte, address + byte + 1, how

    def touches(self, address: int, size: int, write: bool, user: bool) -> bool:
        """Whether a watchpoint fires for an access, made with the rights of user code or of the kernel."""
        return any(
            address < end
            and first < address + size
            and how >> 1 & (2 if user else 1)
            and how >> 3 & (2 if write else 1)
            for first, end, how in self._watchpoints()
        )

    def note(self, method: int) -> None:
        """A debug event came, by `method`."""
        system = self._vcpu.system
        system[_STATUS] = system.get(_STATUS, 0) & ~_METHOD | method

    def _breakpoints(self) -> Iterator[tuple[int, int]]:
        """DBGBVR and DBGBCR of each breakpoint that can fire in some mode."""
        system = self._vcpu.system
        if not system.get(_STATUS, 0) & _MONITOR:
            return
        for number in range(BREAKPOINTS):
            how = system.get(f"DBGBCR{number}", 0)
            if how & _ENABLED and how >> 20 & 0xF in (_MATCH, _MISMATCH):
                yield system.get(f"DBGBVR{number}", 0) & ~3, how

    def _fires(self, address: int) -> bool:
        """Whether a breakpoint fires at an instruction, in the guest's mode."""
        vcpu = self._vcpu
        for value, how in self._breakpoints():
            modes = how >> 1 & 3
            if vcpu.user:
                if not _OF_USER[modes]:
                    continue
            else:
                kernel = _OF_KERNEL[modes]
                if kernel is not None and vcpu.mode not in kernel:
                    continue
            if (address in _places(value, how)) == (how >> 20 & 0xF == _MATCH):
                return True
        return False


def _places(address: int, how: int) -> tuple[int, ...]:
    """Where an instruction begins that a breakpoint matches, by its byte address select."""
    select = how >> 5 & 0xF
    return tuple(address + 2 * half for half in (0, 1) if select >> 2 * half & 3)
