"""The engine's level-0 part: a guest's user code and its kernel change places inside the virtual machine.

Room: `emulator/engine/kvm`. A SYSCALL of user code and the instruction by which the kernel leaves both fault, through
gates that lead to a handler's HLT, and out of KVM_RUN, as any other. An open gate leads to code here first: it loads
the other page table and goes on at level 3. It is short, since a host may interpret it (half a microsecond an
instruction, one where memory is read), and trusts nothing: its operands are in code that level 3 cannot reach, and
whose trap it is, is told by the root that is loaded, for user code's and the kernel's have gates of their own.
"""

import struct
from collections.abc import Sequence
from typing import Final

from emulator.engine.crossing import NOWHERE, Crossing
from emulator.engine.kvm import api, room
from emulator.engine.kvm.device import Vm
from emulator.engine.kvm.level_0 import ENTRY_FLAGS, FRAME_RSP, Level0, low
from emulator.engine.kvm.returning import CHOSEN, CONSTANTS, returning
from emulator.engine.kvm.room import Room

_DE, _GP, _PF = 0, 13, 14
_LEAVE: Final = 512
"""Offset of the code for leaving; that for entering is at the beginning."""
_FAULT: Final = 1024
"""Offset of the code for page faults."""
_BACK: Final = 1536
"""Offset of the code for IRETQ."""
_FLAT_DATA, _LONG_CODE = 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF
_TO_USER: Final = (_LEAVE, _BACK)
"""Parts that load user code's root; the others load the kernel's."""


class Gates:
    """The gates of one processor; closed at first."""

    def __init__(self, vm: Vm, own: Room) -> None:
        self._vm, self._room = vm, own
        self._code = own.page(room.GATES)
        self._crossing = NOWHERE
        self._paused = False
        self._roots: dict[int, bool] = {}
        """Where the code has roots as operands, and whether user code's."""
        self.pair = (-1, -1)
        """The roots of kernel and user code between which the gates lead; -1 where they are closed."""

    def lead(self, crossing: Crossing) -> None:
        """From now on open gates lead as this says."""
        if crossing == self._crossing:
            return
        self.close()
        self._crossing = crossing
        if crossing == NOWHERE:
            self._vm.set_msrs({api.MSR_LSTAR: room.SYSTEM_CALL})
            return
        star = room.CODE_SELECTOR << 32 | (crossing.user_code & 0xFFFC) - 16 << 48
        self._vm.set_msrs({api.MSR_STAR: star, api.MSR_LSTAR: room.CALL})
        parts = {0: _entering(crossing), _LEAVE: _leaving(crossing)}
        if crossing.fault:
            parts[_FAULT] = _faulting(crossing)
        if crossing.back:
            parts[_BACK] = self._returning(crossing)
        for at, part in parts.items():
            self._code[at : at + len(part.code)] = part.code
        self._roots = {at + root: at in _TO_USER for at, part in parts.items() for root in part.roots}

    def _returning(self, crossing: Crossing) -> Level0:
        window = self._room.window(crossing.tables)
        assert window is not None, "there are few such regions"
        self._code[-len(CONSTANTS) :] = CONSTANTS
        self._room.keep_descriptors(crossing.user_code - 8, (_FLAT_DATA, _LONG_CODE))
        code = Level0(room.GATES + _BACK, _GP)
        returning(code, crossing, window)
        assert _BACK + len(code.code) <= CHOSEN - room.GATES
        return code

    def lead_traps(self, places: Sequence[int]) -> None:
        """Which traps of the kernel's arrive at level 3, by the last bytes of their addresses."""
        chosen = bytearray(256)
        for place in places:
            chosen[place & 255] = 1
        at = CHOSEN - room.GATES
        self._code[at : at + 256] = chosen

    def open(self, kernel: int, user: int) -> None:
        """Lead from one of these roots to the other."""
        if (kernel, user) != self.pair or self._paused:
            for at, of_user in self._roots.items():
                struct.pack_into("<Q", self._code, at, user if of_user else kernel)
            self.pair, self._paused = (kernel, user), False
            self._room.part_ports(True)
            self._lead(True)

    def _lead(self, enabled: bool) -> None:
        lead = self._room.lead
        lead(_DE, room.GATES if enabled else None, kernel=False)
        lead(_DE, room.GATES + _LEAVE if enabled else None, kernel=True)
        if self._crossing.fault:
            lead(_PF, room.GATES + _FAULT if enabled else None, kernel=False)
        if self._crossing.back:
            lead(_GP, room.GATES + _BACK if enabled else None, kernel=True)

    def close(self) -> None:
        """Everything exits."""
        if self.pair[0] >= 0:
            self._lead(False)
            self.pair, self._paused = (-1, -1), False
            self._room.part_ports(False)

    def pause(self) -> None:
        """The next trap exits, whichever it is; `resume` has the gates lead again."""
        if self.pair[0] >= 0 and not self._paused:
            self._paused = True
            self._lead(False)

    def resume(self) -> None:
        """Go on behind `pause`, if the gates were not closed since."""
        if self._paused:
            self._paused = False
            self._lead(True)


def _entering(crossing: Crossing) -> Level0:
    """SYSCALL that did not leave level 3: a divide error in user code's tables. That it is none of user code's own is
    seen by the code that it leads to, by the frame."""
    code = Level0(room.GATES, _DE)
    code.load_root()
    code.plain("48890c25", low(crossing.saved))  # mov [saved], rcx
    code.plain("4c89dc")  # mov rsp, r11
    code.plain("48c7c1", low(crossing.enter))  # mov rcx, enter
    code.plain("41bb", struct.pack("<I", ENTRY_FLAGS))  # mov r11d, ...
    code.go()
    return code


def _faulting(crossing: Crossing) -> Level0:
    """A page fault in user code's tables goes to the kernel's, where code of level 3 sees whose it is."""
    code = Level0(room.GATES + _FAULT, _PF)
    code.load_root()
    code.plain("48890c25", low(crossing.saved))
    code.plain("4c891c25", low(crossing.saved + 8))  # mov [saved + 8], r11
    code.plain("0f20d4")  # mov rsp, cr2
    code.plain("48c7c1", low(crossing.fault))
    code.plain("41bb", struct.pack("<I", ENTRY_FLAGS))  # mov r11d, ...
    code.go()
    return code


def _leaving(crossing: Crossing) -> Level0:
    """The kernel's divide error in the place of its last SYSRET; its others go to the handler."""
    code = Level0(room.GATES + _LEAVE, _DE)
    code.plain("48813c24", low(crossing.leave))  # cmp [rsp], leave: there is no error code
    code.unless_equal_slowly()
    code.load_root()
    code.word("488b25", FRAME_RSP)  # mov rsp, [...]
    code.go()
    return code


__all__ = ["Gates"]
