"""Accesses of AArch64 code to device registers that need no handler: stores handed up late, loads answered at once.

Room: `emulator/engine/unicorn`. A device is not mapped, so an access is an exception. The callback for exceptions is a
few bytes of machine code that look place and address up in a short table and go on to Python for all others. A driver
that reads a register forever, waiting for what only the host can bring, comes to Python after `MOST_ANSWERS` loads.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from emulator.engine.aarch64 import QuietAccess
from emulator.engine.unicorn.kept import KEPT, Kept

ROWS: Final = 16
"""Accesses known at a time."""
_ROW: Final = struct.Struct("<QQiIQ")
_COUNT = 0

# Called as callback(engine, number, words) in RDI RSI RDX (System V AMD64). `words`: rows, stores kept, answers given
# (32 bits each); Python's callback at +16, the CPU state at +24, the rows at +32, the stores kept at +40.
# A row: PC, address, tag of a store (32 bits, negative for a load), the register's place in the state (32), answer.
#   cmp dword [rdx], 0 ; je other ; mov rax, [rdx+24] ; mov r8, [rax+PC] ; mov r9, [rax+FAULT_ADDRESS]
#   mov r10, [rdx+32] ; mov ecx, [rdx] ; next: cmp [r10], r8 ; jne skip ; cmp [r10+8], r9 ; je found
#   skip: add r10, 32 ; dec ecx ; jnz next ; other: jmp [rdx+16]
#   found: mov ecx, [rax+SYNDROME] ; shr ecx, 26 ; cmp ecx, 24H ; jne other ; mov r11d, [r10+20] ; mov r8d, [r10+16]
#   cmp r8d, 0 ; jl answer ; mov ecx, [rdx+4] ; cmp ecx, KEPT ; jae other ; shl r8d, 8 ; movzx r9d, byte [rax+r11]
#   or r8d, r9d ; mov r9, [rdx+40] ; mov [r9+rcx*4], r8d ; inc dword [rdx+4] ; mov dword [rdx+8], 0 ; jmp done
#   answer: cmp dword [rdx+8], MOST_ANSWERS ; jae other ; inc dword [rdx+8] ; mov rcx, [r10+24] ; mov [rax+r11], rcx
#   done: add qword [rax+PC], 4 ; ret
_CODE = bytes.fromhex(
    "833a00 742b 488b4218 4c8b8040010000 4c8b88d80b0000 4c8b5220 8b0a 4d3902 7506 4d394a08 740b 4983c220 ffc9 75ed"
    "ff6210 8b88d00b0000 c1e91a 83f924 75ef 458b5a14 458b4210 4183f800 7c2b 8b4a04 81f900040000 73d6 41c1e008"
    "460fb60c18 4509c8 4c8b4a28 45890489 ff4204 c7420800000000 eb11 837a0810 73b0 ff4208 498b4a18 4a890c18"
    "4883804001000004 c3"
)
PLACES: Final = (0x140, 0xBD8, 0xBD0)
"""Of PC, the faulting address and the syndrome in the CPU state, as the code has them."""


class QuietAccesses(Kept):
    """The table, and the native callback that looks into it."""

    WHAT = "stores"

    def __init__(self, callback: Any, state: int, general: int) -> None:
        """`callback` is Python's; `state` the host address of the CPU state, in which X0 is at `general`."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page[: len(_CODE)] = _CODE
        self.on_exception = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._general = general
        self._rows = ctypes.create_string_buffer(ROWS * _ROW.size)
        self._kept = (ctypes.c_uint32 * KEPT)()
        self._callback = callback
        self._words = (ctypes.c_uint64 * 6)(
            0,
            0,
            ctypes.cast(callback, ctypes.c_void_p).value or 0,
            state,
            ctypes.addressof(self._rows),
            ctypes.addressof(self._kept),
        )
        self.argument = ctypes.addressof(self._words)
        self.control = memoryview(self._words).cast("B").cast("I")
        """`control[0]`: rows; `control[1]`: stores kept."""

    def set(self, rows: Sequence[QuietAccess]) -> None:
        """The accesses that need no handler from now on; of more than `ROWS`, the first."""
        rows = rows[:ROWS]
        for number, row in enumerate(rows):
            place = self._general + 8 * row.register
            tag = -1 if row.tag < 0 else row.tag
            _ROW.pack_into(self._rows, number * _ROW.size, row.pc, row.address, tag, place, max(row.answer, 0))
        self.control[_COUNT] = len(rows)

    def take(self) -> list[tuple[int, bytes]]:
        """Tags and bytes of the stores kept, in order, of one tag together; none is kept afterwards."""
        return [
            (tag, bytes(word & 0xFF for word in words)) for tag, words in groupby(self._take(), lambda word: word >> 8)
        ]
