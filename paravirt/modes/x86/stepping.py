"""One instruction at a time by the real trap flag: behind STI, for a store of the guest's own, and as the guest asks.

Room: `paravirt/modes/x86`, a part of the hypervisor. To a guest that steps, a fixup is one instruction.
"""

from typing import Final

from iced_x86 import FlowControl, Mnemonic

from emulator.engine.exit import Exit
from emulator.isa.x86 import registers as r
from emulator.isa.x86.decode import instruction_at
from emulator.isa.x86.delivery import raise_exception
from emulator.isa.x86.processor import Fault
from paravirt.modes.x86.requests import X86Requests

_DB: Final = 1
"""The debug exception."""
_TF: Final = r.FLAG_TF
_BS: Final = 1 << 14
"""Of DR6: a single step."""

_SHOW_FLAGS: Final = frozenset(
    {Mnemonic.PUSHF, Mnemonic.PUSHFD, Mnemonic.PUSHFQ, Mnemonic.POPF, Mnemonic.POPFD, Mnemonic.POPFQ}
)
_BRANCHES: Final = frozenset({FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH})
_LONGEST_WAY: Final = 64
"""Instructions of a fixup that are looked at."""


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

    def _step_out(self) -> bool:
        """An interrupt waits, and the guest stands within a fixup: have its rest run an instruction at a time. Whether
        that is done: not where the trap flag would be seen, or lost on the way to user code."""
        if self._in_shadow or self._registers.trap_flag or not self._ends_plainly(self.vcpu.rip):
            return False
        self.shadow_begins()
        return self._in_shadow

    def _ends_plainly(self, pc: int) -> bool:
        """Whether a fixup goes from here back to the guest's code, or to the hypervisor, and does nothing with the
        flags as a whole before."""
        furthest = pc
        for _ in range(_LONGEST_WAY):
            instruction = instruction_at(bytes(self.code.fixup_byte(at) for at in range(pc, pc + 15)), pc)
            if instruction is None or instruction.mnemonic in _SHOW_FLAGS:
                return False
            flow = instruction.flow_control
            ends = flow == FlowControl.RETURN or instruction.mnemonic == Mnemonic.HLT
            if flow in _BRANCHES:
                target = int(instruction.near_branch_target)
                if self._in_fixup(target):
                    if target <= pc:
                        return False
                    furthest = max(furthest, target)
                elif flow == FlowControl.UNCONDITIONAL_BRANCH:
                    ends = True
            elif flow != FlowControl.NEXT and not ends:
                return False
            if ends and pc >= furthest:
                return True
            pc = int(instruction.next_ip)
        return False

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
