"""Code of the engine's own at level 0, put together from bytes.

Room: `emulator/engine/kvm`, for `gates` and `returning`.
"""

import struct
from typing import Final

from emulator.engine.kvm import room
from emulator.isa.x86 import registers as r

FRAME_RSP: Final = room.STACK_TOP - 16
"""Where the RSP is that was pushed last: RSP itself serves as a scratch register meanwhile."""
ENTRY_FLAGS: Final = r.FLAG_IF | r.FLAG_FIXED
"""With which code of level 3 begins."""


class Level0:
    """Machine code at a place of the engine's room."""

    def __init__(self, at: int, vector: int) -> None:
        self._at, self._slow = at, room.HANDLERS + vector * room.SPACING
        self.code = b""
        self.roots: list[int] = []
        """Offsets of the roots in it, which are to be filled in."""

    def plain(self, text: str, *operands: bytes) -> None:
        """Bytes as they are."""
        self.code += bytes.fromhex(text) + b"".join(operands)

    def unless_equal(self, target: int) -> None:
        """JNE."""
        self.code += b"\x0f\x85" + relative(target - (self._at + len(self.code) + 6))

    def unless_equal_ahead(self) -> int:
        """JNE to where `arrive` is called with what this returns."""
        self.code += b"\x0f\x85" + bytes(4)
        return len(self.code)

    def arrive(self, jump: int) -> None:
        """The jump leads here."""
        self.code = self.code[: jump - 4] + relative(len(self.code) - jump) + self.code[jump:]

    def unless_equal_slowly(self) -> None:
        """JNE to the handler's HLT, with the frame as it was pushed."""
        self.unless_equal(self._slow)

    def word(self, text: str, address: int, behind: bytes = b"") -> None:
        """An instruction with a word of the engine's as its operand; `behind` is its immediate."""
        code = bytes.fromhex(text)
        end = self._at + len(self.code) + len(code) + 4 + len(behind)
        self.code += code + relative(address - end) + behind

    def load_root(self) -> None:
        """The operand is filled in when the gates are opened. It is RSP that is lost."""
        self.roots.append(len(self.code) + 2)
        self.plain("48bc", bytes(8), b"\x0f\x22\xdc")  # mov rsp, ...; mov cr3, rsp

    def go(self) -> None:
        """To level 3, at RCX with the flags in R11."""
        self.plain("480f07")  # sysretq


def relative(distance: int) -> bytes:
    return struct.pack("<i", distance)


def low(address: int) -> bytes:
    """An address of the top or the bottom 2 GiB as a sign-extended operand. Raises `ValueError` for others."""
    if (address + (1 << 31)) >> 32 & 0xFFFF_FFFF:
        raise ValueError(f"{address:#x} cannot be an operand of 32 bits")
    return struct.pack("<I", address & 0xFFFF_FFFF)
