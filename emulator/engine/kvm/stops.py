"""Stopping a guest on KVM where it does not exit: at planted traps, by signals, and over one instruction.

Room: `emulator/engine/kvm`. What this knows of a guest is where it stands; who wants that, and why, is told in
`choosing` (a run that is recorded) and `refinding` (one that is done again).
"""

import fcntl
from collections.abc import Sequence
from typing import Final

from emulator.engine.kvm import api, room
from emulator.engine.kvm.engine import KvmEngine
from emulator.engine.kvm.planted import Planted, landing_at
from emulator.engine.kvm.processor import HANDLERS, HANDLERS_END
from emulator.engine.kvm.stub import LEVEL_0_CODE, LEVEL_0_DATA
from emulator.engine.landing import Landing
from emulator.errors import GuestFault
from emulator.isa.x86 import registers as r

SOON: Final = 200_000
"""Nanoseconds to the next look where the guest could not be stopped at the last."""
USUAL: Final = 25_000
"""Nanoseconds of an alarm that a guest does not run, on a slow host."""
CAME_NOT, EXITED = -1, -2
"""Of `run_to`: a signal came before the guest did; it exited by itself."""
_COUNTING, _TRIED_AT = b"\x48\xff\xc0\xeb\xfb", 1024
"""inc rax; jmp, and where it is put in the stub's page."""
_TRIALS: Final = (100_000, 200_000, 400_000, 800_000)
"""Nanoseconds that it runs, until it does at all."""
_INTERPRETED: Final = 0.02
"""Rounds in a nanosecond that no processor is so slow as to do."""
_DB, _GP = 1, 13
_CS, _SS = api.SEGMENT_WORDS[r.CS], api.SEGMENT_WORDS[r.SS]
_OWN_FLAGS: Final = r.FLAGS_VALID & ~(r.FLAG_TF | r.FLAG_RF | r.FLAG_IOPL)
_NOT_TF: Final = ~r.FLAG_TF & 0xFFFF_FFFF_FFFF_FFFF


class Stops(KvmEngine):
    """A processor that can be had to stand at chosen instructions. While it does, `registers` are the guest's, and
    KVM has the same."""

    def _run_guest(self) -> bool:
        """Enter the guest; whether it exited, and was not only interrupted by a signal."""
        self.entered += 1
        try:
            fcntl.ioctl(self._vm.cpu, api.RUN, 0)
        except InterruptedError:
            self._words[api.W_DIRTY] = 0
            self._bytes[api.IMMEDIATE_EXIT] = 0
            return False
        except OSError as error:
            raise GuestFault(
                f"the engine lost the guest at {self.registers.rip:#x}: KVM does not enter it ({error.strerror})"
            ) from None
        self._words[api.W_DIRTY] = 0
        return self._halves[api.H_EXIT_REASON] != api.EXIT_INTR

    def _stands(self) -> bool:
        """A signal came: whether the guest stands at an instruction of its own. Else what is under way must end."""
        self._interrupted()
        self._dirty = False
        if self._midway:
            self._alarm.set(SOON)
        return not self._midway

    def _here(self) -> Landing:
        """The guest as it stands."""
        registers = self.registers
        return landing_at(self._vm, self._words[api.W_CR3], registers.rip, registers.rflags, tuple(registers.gpr))

    def _run_to(self, places: Sequence[int], *, for_ever: bool = False) -> int:
        """Run until the guest is at one of `places`: which; or `EXITED`, or `CAME_NOT` unless it is `for_ever`.
        Raises `LookupError` where no memory is mapped at one."""
        planted = Planted(self._vm, self._words[api.W_CR3], places)
        try:
            while not self._run_guest():
                if for_ever:
                    self._alarm.take()
                elif self._stands():
                    return CAME_NOT
        finally:
            planted.undo()
        self._midway = self._incomplete = False
        if not self._at_one(places):
            return EXITED
        self._traps.read()
        self._put()
        return self.registers.rip

    def _at_one(self, places: Sequence[int]) -> bool:
        """Whether the guest has exited by a trap that was planted at one of `places`."""
        frame, top = self._room.words, self._room.frame
        return self._vector() == _GP and frame[top - 5] in places and not frame[top - 6]

    def _pass_by(self) -> bool:
        """Over the instruction at which the guest has trapped, whose trap is undone; whether it exited instead. As
        `_step`, without a look at its registers."""
        self._back(r.FLAG_TF)
        while not self._run_guest():
            self._alarm.take()
        if self._vector() != _DB:
            return True
        self._back(0)
        return False

    def _back(self, flags: int) -> None:
        """Have KVM go on where the last trap came from, with these flags set."""
        words, frame, top, registers = self._words, self._room.words, self._room.frame, self.registers
        words[api.W_RIP], words[api.W_RSP] = frame[top - 5], frame[top - 2]
        words[api.W_RFLAGS] = frame[top - 3] & _OWN_FLAGS | registers.rflags & r.FLAG_IOPL | r.FLAG_FIXED | flags
        words[_CS], words[_CS + 1], words[_CS + 2] = registers.code
        words[_SS], words[_SS + 1], words[_SS + 2] = registers.stack
        words[api.W_DIRTY] = api.SYNC_REGISTERS | api.SYNC_SPECIAL

    def _step(self) -> bool:
        """Over the instruction at which the guest stands; whether it exited by itself instead."""
        self.registers.rflags |= r.FLAG_TF
        self._put()
        while not self._run_guest():
            self._alarm.take()
        vector = self._vector()
        if vector >= 0:
            self._room.words[self._room.frame - 3] &= _NOT_TF
            if vector == _DB:
                self._traps.read()
                self._put()
                return False
        self._words[api.W_RFLAGS] &= _NOT_TF
        return True

    def _vector(self) -> int:
        """Of the trap by which the guest exited; -1 for none."""
        rip = self._words[api.W_RIP]
        halted = self._halves[api.H_EXIT_REASON] == api.EXIT_HLT and HANDLERS <= rip < HANDLERS_END
        return rip - HANDLERS >> 4 if halted else -1

    def _at_level(self, kernel: bool) -> None:
        """Have KVM run the guest's code at level 0, as far as it traps nowhere, or at level 3 again."""
        words, registers = self._words, self.registers
        code, stack = (LEVEL_0_CODE, LEVEL_0_DATA) if kernel else (registers.code, registers.stack)
        words[_CS], words[_CS + 1], words[_CS + 2] = code
        words[_SS], words[_SS + 1], words[_SS + 2] = stack
        words[api.W_DIRTY] = api.SYNC_REGISTERS | api.SYNC_SPECIAL

    def _interprets(self) -> bool:
        """Whether the host interprets level 0, so that code is slow there. The guest stands, and does so again."""
        code = self._room.page(room.STUB)
        code[_TRIED_AT : _TRIED_AT + len(_COUNTING)] = _COUNTING
        words, rounds = self._words, 0
        for alarm in _TRIALS:
            words[api.W_RIP], words[api.W_REGISTERS], words[api.W_RFLAGS] = room.STUB + _TRIED_AT, 0, r.FLAG_FIXED
            self._at_level(True)
            self._alarm.set(alarm)
            if self._run_guest():
                break
            self._alarm.take()
            rounds = words[api.W_REGISTERS]
            if rounds:
                break
        self._put()
        return 0 < rounds < alarm * _INTERPRETED
