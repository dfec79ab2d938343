"""One instruction at a time by the real trap flag: behind STI, for a store of the guest's own, and as the guest asks.

Room: `paravirt/modes/x86`, a part of the hypervisor. To a guest that steps, a fixup is one instruction.
"""

from typing import Final

from emulator.engine.exit import Exit
from emulator.isa.x86 import registers as r
from emulator.isa.x86.delivery import raise_exception
from emulator.isa.x86.processor import Fault
from paravirt.modes.x86.requests import X86Requests

_DB: Final = 1
"""The debug exception."""
_TF: Final = r.FLAG_TF
_BS: Final = 1 << 14
"""Of DR6: a single step."""


class X86Stepping(X86Requests):
    """Of the hypervisor of an x86 guest, what has one instruction run alone."""

    def _make_steps(self) -> None:
        self._first_step = -1
        self._in_shadow = False

    def _debug(self, _exit: Exit) -> None:
        self._hold_crossings()
        if self._stepping is not None:
            self._end_own_store()
            return
        in_fixup = self._in_fixup(self.vcpu.rip)
        if self._in_shadow and not in_fixup:
            self._end_shadow()
            return
        if in_fixup:
            return  # the guest steps: a fixup is one instruction to it
        first, self._first_step = self._first_step, -1
        if self.vcpu.rip == first:
            return
        self.exits.count("exception to the guest", "fault")
        self._single_stepped()

    def _end_shadow(self) -> None:
        self._in_shadow = False
        self._registers.rflags &= ~_TF

    def _single_stepped(self) -> None:
        """An instruction that began with TF set is done: the guest's debug exception follows."""
        self.vcpu.debug[6] |= _BS
        self._event("exception", _DB, 0, self.vcpu.rip)
        raise_exception(self.vcpu, Fault(_DB))

    def _begin_step(self) -> int:
        self._hold_crossings()
        guest = 0 if self._in_shadow else self._registers.rflags & _TF  # behind STI the flag is not the guest's
        self._registers.rflags |= _TF
        return guest

    def _end_step(self) -> None:
        self._in_shadow = False
        self._registers.rflags &= ~_TF

    def _guest_step(self) -> None:
        self._raise(Fault(_DB))
