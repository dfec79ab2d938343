"""Hardware breakpoints of an AArch64 guest: what its debug registers ask for, and whether one of them fires.

Room: `paravirt/modes/aarch64`. By DDI 0487, D2.8 (breakpoints) and D2.4 (which debug exceptions are enabled where).
The engine asks at the addresses in DBGBVR<n>_EL1; what level and masks say is looked at then. Breakpoints that match a
context or are linked to one never fire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from emulator.engine.aarch64 import AArch64Engine
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.registers import BY_NAME
from paravirt.modes.aarch64.vcpu import MDSCR, MDSCR_KDE, AArch64VirtualCpu

BREAKPOINTS: Final = 6
"""As ID_AA64DFR0_EL1 says."""
_MDE: Final = 1 << 15
_LOCKED: Final = 1 << 1
_OS_LOCK: Final = BY_NAME["OSLSR_EL1"].encoding
_VALUES: Final = tuple(BY_NAME[f"DBGBVR{n}_EL1"].encoding for n in range(BREAKPOINTS))
_CONTROLS: Final = tuple(BY_NAME[f"DBGBCR{n}_EL1"].encoding for n in range(BREAKPOINTS))
_ENABLED, _TYPE = 1, 0xF << 20
_SIGN: Final = 1 << 48
ISS: Final = 0x22
"""Of a breakpoint's syndrome: a debug event."""


class DebugEvents:
    """The breakpoints of one virtual CPU."""

    def __init__(self, engine: AArch64Engine, vcpu: AArch64VirtualCpu) -> None:
        self._engine, self._vcpu = engine, vcpu
        self._known: tuple[int, ...] = ()

    def changed(self) -> None:
        """A debug register was written: have the engine ask where a breakpoint may fire."""
        addresses = tuple(sorted({address for address, _ in self._breakpoints()}))
        if addresses != self._known:
            self._known = addresses
            self._engine.break_at(addresses, self._fires)

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

    def _fires(self, address: int) -> bool:
        """Whether a breakpoint at `address` fires at the guest's level, with its masks."""
        vcpu = self._vcpu
        level = vcpu.level
        if level and (not vcpu.system.get(MDSCR, 0) & MDSCR_KDE or vcpu.registers.daif & x.MASK_D):
            return False
        # PMC: bit 0 is EL1, bit 1 is EL0 (table D2-12, of a processor without EL2 and EL3).
        return any(at == address and how >> 1 & (1 if level else 2) for at, how in self._breakpoints())
