"""The engine's level-0 part: a guest's user code and its kernel change places inside the virtual machine.

Room: `emulator/engine/kvm`. A SYSCALL of user code and the instruction by which the kernel leaves both fault, through
gates that lead to a handler's HLT, and out of KVM_RUN, as any other. An open gate leads to code here first: it loads
the other page table and goes on at level 3. It is short, since a host may interpret it (half a microsecond an
instruction, one where memory is read), and trusts nothing: its operands are in code that level 3 cannot reach, and
whose trap it is, is told by the root that is loaded, for user code's and the kernel's have gates of their own.
"""

import struct
from typing import Final

from emulator.engine.crossing import NOWHERE, Crossing
from emulator.engine.kvm import api, room
from emulator.engine.kvm.device import Vm
from emulator.engine.kvm.room import Room
from emulator.isa.x86 import registers as r

_DE, _PF = 0, 14
_LEAVE: Final = 512
"""Offset of the code for leaving; that for entering is at the beginning."""
_FAULT: Final = 1024
"""Offset of the code for page faults."""
_ROOTS: Final = {0: 2, _LEAVE: 16, _FAULT: 2}
"""Offset of the root in each part, an operand of its code."""
_FRAME_RSP: Final = room.STACK_TOP - 16
"""Where the RSP is that was pushed last: RSP itself serves as a scratch register meanwhile."""
_ENTRY_FLAGS: Final = r.FLAG_IF | r.FLAG_FIXED


class _Code:
    """Machine code at a place of the engine's room."""

    def __init__(self, at: int, vector: int) -> None:
        self._at, self._slow = at, room.HANDLERS + vector * room.SPACING
        self.code = b""

    def plain(self, text: str, *operands: bytes) -> None:
        """Bytes as they are."""
        self.code += bytes.fromhex(text) + b"".join(operands)

    def unless_equal(self, target: int) -> None:
        """JNE."""
        self.code += b"\x0f\x85" + _relative(target - (self._at + len(self.code) + 6))

    def unless_equal_slowly(self) -> None:
        """JNE to the handler's HLT, with the frame as it was pushed."""
        self.unless_equal(self._slow)

    def word(self, text: str, address: int, behind: bytes = b"") -> None:
        """An instruction with a word of the engine's as its operand; `behind` is its immediate."""
        code = bytes.fromhex(text)
        end = self._at + len(self.code) + len(code) + 4 + len(behind)
        self.code += code + _relative(address - end) + behind

    def load_root(self) -> None:
        """The operand is filled in when the gates are opened. It is RSP that is lost."""
        self.plain("48bc", bytes(8), b"\x0f\x22\xdc")  # mov rsp, ...; mov cr3, rsp

    def go(self) -> None:
        """To level 3, at RCX with the flags in R11."""
        self.plain("480f07")  # sysretq


class Gates:
    """The gates of one processor; closed at first."""

    def __init__(self, vm: Vm, own: Room) -> None:
        self._vm, self._room = vm, own
        self._code = own.page(room.GATES)
        self._crossing = NOWHERE
        self._paused = False
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
        for at, code in parts.items():
            self._code[at : at + len(code)] = code

    def open(self, kernel: int, user: int) -> None:
        """Lead from one of these roots to the other."""
        if (kernel, user) != self.pair or self._paused:
            for at, operand in _ROOTS.items():
                struct.pack_into("<Q", self._code, at + operand, user if at == _LEAVE else kernel)
            self.pair, self._paused = (kernel, user), False
            self._room.part_ports(True)
            self._lead(True)

    def _lead(self, enabled: bool) -> None:
        lead = self._room.lead
        lead(_DE, room.GATES if enabled else None, kernel=False)
        lead(_DE, room.GATES + _LEAVE if enabled else None, kernel=True)
        if self._crossing.fault:
            lead(_PF, room.GATES + _FAULT if enabled else None, kernel=False)

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


def _entering(crossing: Crossing) -> bytes:
    """SYSCALL that did not leave level 3: a divide error in user code's tables. That it is none of user code's own is
    seen by the code that it leads to, by the frame."""
    code = _Code(room.GATES, _DE)
    code.load_root()
    code.plain("48890c25", _low(crossing.saved))  # mov [saved], rcx
    code.plain("4c89dc")  # mov rsp, r11
    code.plain("48c7c1", _low(crossing.enter))  # mov rcx, enter
    code.plain("41bb", struct.pack("<I", _ENTRY_FLAGS))  # mov r11d, ...
    code.go()
    return code.code


def _faulting(crossing: Crossing) -> bytes:
    """A page fault in user code's tables goes to the kernel's, where code of level 3 sees whose it is."""
    code = _Code(room.GATES + _FAULT, _PF)
    code.load_root()
    code.plain("48890c25", _low(crossing.saved))
    code.plain("4c891c25", _low(crossing.saved + 8))  # mov [saved + 8], r11
    code.plain("0f20d4")  # mov rsp, cr2
    code.plain("48c7c1", _low(crossing.fault))
    code.plain("41bb", struct.pack("<I", _ENTRY_FLAGS))  # mov r11d, ...
    code.go()
    return code.code


def _leaving(crossing: Crossing) -> bytes:
    """The kernel's divide error in the place of its last SYSRET; its others go to the handler."""
    code = _Code(room.GATES + _LEAVE, _DE)
    code.plain("48813c24", _low(crossing.leave))  # cmp [rsp], leave: there is no error code
    code.unless_equal_slowly()
    code.load_root()
    code.word("488b25", _FRAME_RSP)  # mov rsp, [...]
    code.go()
    return code.code


def _relative(distance: int) -> bytes:
    return struct.pack("<i", distance)


def _low(address: int) -> bytes:
    """An address of the top or the bottom 2 GiB as a sign-extended operand. Raises `ValueError` for others."""
    if (address + (1 << 31)) >> 32 & 0xFFFF_FFFF:
        raise ValueError(f"{address:#x} cannot be an operand of 32 bits")
    return struct.pack("<I", address & 0xFFFF_FFFF)


__all__ = ["Gates"]
