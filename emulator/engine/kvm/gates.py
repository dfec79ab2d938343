"""The engine's level-0 part: a guest's user code and its kernel change places inside the virtual machine.

Room: `emulator/engine/kvm`. A SYSCALL of user code and the instruction by which the kernel leaves both fault, through
gates that lead to a handler's HLT, and out of KVM_RUN, as any other. An open gate leads to code here first: it loads
the other page table and goes on at level 3. All else goes to the HLT. It is short, since a host may interpret it (half
a microsecond an instruction, one where memory is read), and trusts nothing: the roots are in a page that level 3 cannot
reach, and what else it takes from the guest goes back to the guest.
"""

import struct
from typing import Final

from emulator.engine.crossing import NOWHERE, Crossing
from emulator.engine.kvm import api, room
from emulator.engine.kvm.device import Vm
from emulator.engine.kvm.room import Room
from emulator.isa.x86 import registers as r

_GP, _PF = 13, 14
_LEAVE: Final = 512
"""Offset of the code for leaving; that for entering is at the beginning."""
_FAULT: Final = 1024
"""Offset of the code for page faults."""
_KERNEL, _USER = 0, 8
"""Offsets in the page of words: the roots."""
_FRAME_RIP: Final = 8
"""Offset in the frame of a trap with an error code."""
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

    def go(self) -> None:
        """To level 3, at RCX with the flags in R11 and the RSP of the frame."""
        self.word("488b25", _FRAME_RSP)  # mov rsp, [...]
        self.plain("480f07")  # sysretq


class Gates:
    """The gates of one processor; closed at first."""

    def __init__(self, vm: Vm, own: Room) -> None:
        self._vm, self._room = vm, own
        self._words = own.page(room.GATE_WORDS).cast("Q")
        self._code = own.page(room.GATES)
        self._crossing = NOWHERE
        self.pair = (-1, -1)
        """The roots of kernel and user code between which the gates lead; -1 where they are closed."""

    def lead(self, crossing: Crossing) -> None:
        """From now on open gates lead as this says."""
        if crossing == self._crossing:
            return
        self.close()
        self._crossing = crossing
        if crossing == NOWHERE:
            return
        self._vm.set_msrs({api.MSR_STAR: room.CODE_SELECTOR << 32 | (crossing.user_code & 0xFFFC) - 16 << 48})
        parts = {0: _entering(crossing), _LEAVE: _leaving(crossing)}
        if crossing.fault:
            parts[_FAULT] = _faulting(crossing)
        for at, code in parts.items():
            self._code[at : at + len(code)] = code

    def open(self, kernel: int, user: int) -> None:
        """Lead from one of these roots to the other."""
        if (kernel, user) != self.pair:
            self._words[_KERNEL >> 3], self._words[_USER >> 3] = kernel, user
            self.pair = (kernel, user)
            self._room.lead(_PF, room.GATES)
            self._room.lead(_GP, room.GATES + _LEAVE)

    def close(self) -> None:
        """Everything exits."""
        if self.pair[0] >= 0:
            self.pair = (-1, -1)
            self._room.lead(_PF, None)
            self._room.lead(_GP, None)


def _entering(crossing: Crossing) -> bytes:
    """SYSCALL that did not leave level 3: a page fault at its target, which is alone in 64 KiB."""
    code = _Code(room.GATES, _PF)
    code.plain("817c24", bytes((_FRAME_RIP + 2,)), struct.pack("<I", room.SYSTEM_CALL >> 16 & 0xFFFF_FFFF))
    if crossing.fault:
        code.unless_equal(room.GATES + _FAULT)
    else:
        code.unless_equal_slowly()
    code.word("488b25", room.GATE_WORDS + _KERNEL)  # mov rsp, [...]
    code.plain("0f22dc")  # mov cr3, rsp
    code.plain("48890c25", _low(crossing.saved))  # mov [saved], rcx
    code.plain("4c891c25", _low(crossing.saved + 8))  # mov [saved + 8], r11
    code.plain("48c7c1", _low(crossing.enter))  # mov rcx, enter
    code.plain("41bb", struct.pack("<I", _ENTRY_FLAGS))  # mov r11d, ...
    code.go()
    return code.code


def _faulting(crossing: Crossing) -> bytes:
    """Any other page fault: user code's goes to the kernel's tables, where code of level 3 sees whose it is."""
    code = _Code(room.GATES + _FAULT, _PF)
    code.plain("66817c24", bytes((_FRAME_RIP + 8,)), struct.pack("<H", crossing.user_code))
    code.unless_equal_slowly()
    code.plain("0f20dc")  # mov rsp, cr3: the kernel, once it was entered here, has that selector as well
    code.word("483b25", room.GATE_WORDS + _USER)  # cmp rsp, [...]
    code.unless_equal_slowly()
    code.word("488b25", room.GATE_WORDS + _KERNEL)
    code.plain("0f22dc")
    code.plain("48890c25", _low(crossing.saved))
    code.plain("4c891c25", _low(crossing.saved + 8))
    code.plain("0f20d1")  # mov rcx, cr2
    code.plain("48890c25", _low(crossing.fault_address))
    code.plain("48c7c1", _low(crossing.fault))
    code.plain("41bb", struct.pack("<I", _ENTRY_FLAGS))
    code.go()
    return code.code


def _leaving(crossing: Crossing) -> bytes:
    """The kernel's HLT in the place of its last SYSRET."""
    code = _Code(room.GATES + _LEAVE, _GP)
    code.plain("48817c24", bytes((_FRAME_RIP,)), _low(crossing.leave))
    code.unless_equal_slowly()
    code.word("488b25", room.GATE_WORDS + _USER)
    code.plain("0f22dc")
    code.word("66c705", room.PORTS_WORD, struct.pack("<H", room.PORTS_CLOSED))
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
