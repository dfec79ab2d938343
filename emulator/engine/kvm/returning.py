"""The engine's level-0 part that goes back to user code by IRETQ: it stores one entry of user code's tables before.

Room: `emulator/engine/kvm`, code for `gates`. A guest's kernel names the place and what belongs there; both are its
own to choose as far as that can only be a page of its memory, in a table that maps pages for user code. So the place
is taken within the tables, a byte for each of which says whether it is such a one, and of the entry what leads to
memory of the guest's. In tables of the kernel's own view it may have entries cleared. A frame for level 3 is made of
the one by which level 0 was entered.
"""

import struct
from typing import Final

from emulator.engine.crossing import Crossing
from emulator.engine.kvm import room
from emulator.engine.kvm.level_0 import ENTRY_FLAGS, FRAME_RSP, Level0, low

CHOSEN: Final = room.GATES + 3072
"""256 bytes: whether a trap at an address with such a last byte arrives at level 3."""
CONSTANTS: Final = struct.pack("<4Q", room.MARKS, (1 << 47) - 1, 1 << 63 | 0xF_FFFF_F07F, CHOSEN)
"""The last bytes of the gates' page: where the bytes of tables are; what an address of the lower half and an entry may
have; and where the bytes of addresses are."""
_MARKS, _LOWEST, _LEADING, _CHOSEN = (room.GATES_END - len(CONSTANTS) + 8 * number for number in range(4))
USERS, KERNELS = 1, 2
"""Marks of tables of pages: user code's, and the kernel's own, in which entries may be cleared."""
MOST_TABLES: Final = 2 * 4096
TOGETHER: Final = 16
"""Entries of a block."""
BLOCKS_SIZE: Final = 32 << 10
_RIP: Final = 8
"""Offset in the frame of a trap with an error code."""
_FRAME: Final = room.STACK_TOP - 48


def returning(code: Level0, crossing: Crossing, window: int) -> None:
    """Code for a general-protection fault; `window` is where it reaches the tables."""
    code.plain("48817c24", bytes((_RIP,)), low(crossing.back))  # cmp qword [rsp + 8], back
    other = code.unless_equal_ahead()
    _place(code, crossing, 8)
    code.word("482305", _LEADING)  # and rax, [...]
    code.plain("48ba", struct.pack("<Q", window))  # mov rdx, ...
    code.plain("4889040a")  # mov [rdx + rcx], rax
    _leave(code, crossing.back_saved[:3])
    code.arrive(other)
    code.plain("48817c24", bytes((_RIP,)), low(crossing.back_together))
    other = code.unless_equal_ahead()
    _place(code, crossing, 8 * TOGETHER)
    code.plain("25", struct.pack("<I", BLOCKS_SIZE - 8 * TOGETHER))  # and eax, ...
    code.plain("48be", struct.pack("<Q", crossing.blocks))  # mov rsi, ...
    code.plain("48bf", struct.pack("<Q", window))  # mov rdi, ...
    code.plain("4801c6 4801cf b9", struct.pack("<I", TOGETHER))  # add rsi, rax; add rdi, rcx; mov ecx, ...
    code.plain("fc f348a5")  # cld; rep movsq
    _leave(code, crossing.back_saved)
    code.arrive(other)
    code.plain("48817c24", bytes((_RIP,)), low(crossing.clear))
    if crossing.trapped:
        other = code.unless_equal_ahead()
    else:
        code.unless_equal_slowly()
    _marked(code, crossing, 8, KERNELS)
    # mov r11, ...; mov qword [r11 + rcx], 0
    code.plain("49bb", struct.pack("<Q", window), bytes.fromhex("49c7040b00000000"))
    code.word("488b25", FRAME_RSP)  # mov rsp, [...]
    code.plain("48c7c1", low(crossing.clear + 1))  # mov rcx, ...
    code.plain("41bb", struct.pack("<I", ENTRY_FLAGS))  # mov r11d, ...
    code.go()
    if crossing.trapped:
        code.arrive(other)
        _trapped(code, crossing)


def _place(code: Level0, crossing: Crossing, size: int) -> None:
    """Whether RCX is in a table of user code's, made a multiple of `size`; and the frame of level 3."""
    _marked(code, crossing, size, USERS)
    code.word("482315", _LOWEST)  # and rdx, [...]
    code.plain("4889542408")  # mov [rsp + 8], rdx
    code.plain("c7442410", struct.pack("<I", crossing.user_code))  # mov dword [rsp + 16], ...
    code.plain("c7442428", struct.pack("<I", crossing.user_code - 8))


def _trapped(code: Level0, crossing: Crossing) -> None:
    """To level 3 with a trap of the kernel's own, if it may be one that is known there."""
    code.plain("0fb6642408")  # movzx esp, byte [rsp + 8]
    code.word("480325", _CHOSEN)  # add rsp, [...]
    code.plain("803c2401")  # cmp byte [rsp], 1
    code.word("488d25", _FRAME)  # lea rsp, [...]
    code.unless_equal_slowly()
    code.plain("833c2400")  # cmp dword [rsp], 0: INT n has another error code
    code.unless_equal_slowly()
    code.plain("48890c25", low(crossing.saved))  # mov [saved], rcx
    code.plain("4c891c25", low(crossing.saved + 8))  # mov [saved + 8], r11
    code.plain("48c7c1", low(crossing.trapped))  # mov rcx, ...
    code.plain("41bb", struct.pack("<I", ENTRY_FLAGS))  # mov r11d, ...
    code.go()


def _marked(code: Level0, crossing: Crossing, size: int, mark: int) -> None:
    """Whether RCX is in a table that has a mark."""
    # and ecx, ...; mov esp, ecx; shr esp, 12
    code.plain("81e1", struct.pack("<I", crossing.tables_size - size), bytes.fromhex("89cc c1ec0c"))
    code.word("480325", _MARKS)  # add rsp, [...]
    code.plain("803c24", bytes((mark,)))  # cmp byte [rsp], ...
    code.word("488d25", _FRAME)  # lea rsp, [...]
    code.unless_equal_slowly()


def _leave(code: Level0, saved: tuple[int, ...]) -> None:
    """Registers, user code's tables, and IRETQ."""
    for load, at in zip(("488b0425", "488b0c25", "488b1425", "488b3425", "488b3c25"), saved, strict=False):
        code.plain(load, low(at))  # mov rax, [...]; mov rcx, [...]; ...
    code.load_root()
    code.word("488d25", _FRAME + _RIP)  # lea rsp, [...]
    code.plain("48cf")  # iretq


__all__ = ["CHOSEN", "CONSTANTS", "MOST_TABLES", "returning"]
