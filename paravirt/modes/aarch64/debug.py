"""Hardware breakpoints and watchpoints of an AArch64 guest: what its debug registers ask for, and whether one fires.

Room: `paravirt/modes/aarch64`. By DDI 0487, D2.8 (breakpoints), D2.9 (watchpoints) and D2.4 (which debug exceptions are
enabled where). The engine asks at the addresses in DBGBVR<n>_EL1; pages with a watchpoint are never mapped for long, so
their accesses exit. What level and masks say is looked at then. What matches a context or is linked never fires.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from emulator.engine.aarch64 import AArch64Engine
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.registers import BY_NAME
from paravirt.modes.aarch64.vcpu import MDSCR, MDSCR_KDE, AArch64VirtualCpu

BREAKPOINTS, WATCHPOINTS = 6, 4
"""As ID_AA64DFR0_EL1 says."""
_MDE: Final = 1 << 15
_LOCKED: Final = 1 << 1
_OS_LOCK: Final = BY_NAME["OSLSR_EL1"].encoding
_VALUES: Final = tuple(BY_NAME[f"DBGBVR{n}_EL1"].encoding for n in range(BREAKPOINTS))
_CONTROLS: Final = tuple(BY_NAME[f"DBGBCR{n}_EL1"].encoding for n in range(BREAKPOINTS))
_WATCHED: Final = tuple(BY_NAME[f"DBGWVR{n}_EL1"].encoding for n in range(WATCHPOINTS))
_WATCHING: Final = tuple(BY_NAME[f"DBGWCR{n}_EL1"].encoding for n in range(WATCHPOINTS))
_ENABLED, _TYPE, _LINKED = 1, 0xF << 20, 1 << 20
_LARGEST_MASK: Final = 12
"""Larger watchpoints than a page are watched in their first page only."""
_SIGN: Final = 1 << 48
ISS: Final = 0x22
"""Of a breakpoint's or watchpoint's syndrome: a debug event."""


class DebugEvents:
    """The breakpoints of one virtual CPU."""

    def __init__(self, engine: AArch64Engine, vcpu: AArch64VirtualCpu) -> None:
        self._engine, self._vcpu = engine, vcpu
        self._known: tuple[int, ...] = ()
        self.watched: frozenset[int] = frozenset()
        """Pages (address >> 12) with a watchpoint that can fire at some level."""
        self.passing = -1
        """The page with a watchpoint that is mapped for one instruction, or -1."""

    def changed(self) -> bool:
        """A debug register was written: have the engine ask where a breakpoint may fire. Whether other pages than
        before are watched."""
        addresses = tuple(sorted({address for address, _ in self._breakpoints()}))
        if addresses != self._known:
            self._known = addresses
            self._engine.break_at(addresses, self._fires)
        watched = frozenset(first >> 12 for first, _, _ in self._watchpoints())
        before, self.watched = self.watched, watched
        return watched != before

    def _breakpoints(self) -> Iterator[tuple[int, int]]:
        """Address and DBGBCR of each breakpoint that can fire at some level."""
        system = self._vcpu.system
        if not system.get(MDSCR, 0) & _MDE or system.get(_OS_LOCK, 0) & _LOCKED:
            return
        for value, control in zip(_VALUES, _CONTROLS, strict=True):
            how = system.get(control, 0)
            if how & _ENABLED and not how & _TYPE:
                address = system.get(value, 0) & 2 * _SIGN - 4
                yield address - 2 * _SIGN & (1 << 64) - 1 if address & _SIGN else address, how

    def _watchpoints(self) -> Iterator[tuple[int, int, int]]:
        """First byte, first byte behind and DBGWCR of each run of bytes that is watched at some level."""
        system = self._vcpu.system
        if not system.get(MDSCR, 0) & _MDE or system.get(_OS_LOCK, 0) & _LOCKED:
            return
        for value, control in zip(_WATCHED, _WATCHING, strict=True):
            how = system.get(control, 0)
            if not how & _ENABLED or how & _LINKED:
                continue
            address = system.get(value, 0) & 2 * _SIGN - 4
            if address & _SIGN:
                address = address - 2 * _SIGN & (1 << 64) - 1
            mask = how >> 24 & 0x1F
            if mask > 2:
                yield address & -1 << mask, address + (1 << min(mask, _LARGEST_MASK)), how
            else:
                select = how >> 5 & 0xFF
                for byte in range(8):
                    if select >> byte & 1:
                        yield address + byte, address + byte + 1, how

    def _masked(self) -> bool:
        """Debug exceptions of EL1 are not taken now."""
        vcpu = self._vcpu
        return not vcpu.system.get(MDSCR, 0) & MDSCR_KDE or bool(vcpu.registers.daif & x.MASK_D)

    def _fires(self, address: int) -> bool:
        """Whether a breakpoint at `address` fires at the guest's level, with its masks."""
        level = self._vcpu.level
        if level and self._masked():
            return False
        # PMC: bit 0 is EL1, bit 1 is EL0 (table D2-12, of a processor without EL2 and EL3).
        return any(at == address and how >> 1 & (1 if level else 2) for at, how in self._breakpoints())

    def touches(self, address: int, size: int, write: bool) -> bool:
        """Whether a watchpoint fires for an access of the guest's, at its level, with its masks."""
        level = self._vcpu.level
        if level and self._masked():
            return False
        return any(
            address < end
            and first < address + size
            and how >> 1 & (1 if level else 2)
            and how >> 3 & (2 if write else 1)
            for first, end, how in self._watchpoints()
        )
