"""Accesses of AArch64 code to a page that is never mapped, done by native code in memory, where an entry there says.

Room: `emulator/engine/unicorn`. A kernel that writes its own text a word at a time maps a page for each word. This
comes before `quiet` in the chain of what is called for an exception, looks up page and place, and goes on for others.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Sequence
from typing import Final

from emulator.engine.aarch64 import Passage, PassingAccess

ROWS: Final = 16
"""Accesses known at a time."""
_ROW: Final = struct.Struct("<QII")
_STORE: Final = 1 << 8
_NOWHERE: Final = (1 << 64) - 1
_FRAME: Final = 0x0000_FFFF_FFFF_F000
PLACES: Final = (0x140, 0xBD8, 0xBD0)
"""Of PC, the faulting address and the syndrome in the CPU state, as the code has them."""
_STATE, _PAGE, _WORD, _TAG, _ENTRY, _LIKE, _FIXED, _PASSING, _COUNTS, _BASE, _SIZE, _HOST, _KINDS, _NEXT = range(14)
_NEXT_ARGUMENT, _DONE, _ROW_COUNT, _TABLE = range(14, 18)

# Called as callback(engine, number, words) in RDI RSI RDX (System V AMD64). `words`, by eights: the CPU state; the
# page; where the word is that opens it, and what that must be; where the entry is, what it is like, which of its bits
# must be; the last entry; how often it was passed by in a row, and how often it may be (32 bits each); guest memory:
# base, size, where it is; where the kinds of frames are; who is called for others, with what; accesses done; rows.
# A row: PC, the register's place in the state (32 bits), size less 1, with bit 8 for a store (32 bits).
#   mov rax, [rdx+STATE] ; mov r9, [rax+FAULT_ADDRESS] ; mov r8, r9 ; shr r8, 12 ; cmp r8, [rdx+PAGE] ; jne other
#   mov ecx, [rax+SYNDROME] ; shr ecx, 26 ; cmp ecx, 24H ; jne other ; mov r10, [rdx+WORD] ; mov r10, [r10]
#   cmp r10, [rdx+TAG] ; jne other ; mov r10, [rax+PC] ; mov ecx, [rdx+ROWS] ; lea r11, [rdx+TABLE]
#   next: sub ecx, 1 ; js other ; cmp [r11], r10 ; je found ; add r11, 16 ; jmp next
#   found: mov ecx, [r11+12] ; movzx r8d, cl ; test r9, r8 ; jnz other ; mov r10, [rdx+ENTRY] ; mov r10, [r10]
#   mov r8, r10 ; xor r8, [rdx+LIKE] ; test r8, [rdx+FIXED] ; jnz other ; mov r8, [rdx+FIXED] ; not r8 ; and r8, r10
#   sub r8, [rdx+BASE] ; cmp r8, [rdx+SIZE] ; jae other ; test ecx, STORE ; jz plain
#   push r8 ; shr r8, 12 ; add r8, [rdx+KINDS] ; cmp byte [r8], 1 ; pop r8 ; ja other
#   plain: cmp r10, [rdx+PASSING] ; jne fresh ; mov r10d, [rdx+COUNTS] ; cmp r10d, [rdx+COUNTS+4] ; jae other
#   add dword [rdx+COUNTS], 1 ; jmp go ; fresh: mov [rdx+PASSING], r10 ; mov dword [rdx+COUNTS], 0
#   go: add qword [rdx+DONE], 1 ; and r9d, FFFH ; add r8, r9 ; add r8, [rdx+HOST] ; mov r11d, [r11+8]
#   test ecx, STORE ; jz load ; mov r9, [rax+r11] ; ... mov [r8], r9b/r9w/r9d/r9 by size ... ; jmp done
#   load: ... movzx r9, [r8] by size ... ; mov [rax+r11], r9
#   done: add qword [rax+PC], 4 ; ret ; other: mov rax, [rdx+NEXT] ; mov rdx, [rdx+NEXT_ARGUMENT] ; jmp rax
_CODE = bytes.fromhex(
    "488b024c8b88d80b00004d89c849c1e80c4c3b42080f853e0100008b88d00b0000c1e91a83f9240f852c0100004c8b52104d8b12"
    "4c3b52180f851b0100004c8b90400100008b8a800000004c8d9a8800000083e9010f88fe0000004d391374064983c310ebec418b"
    "4b0c440fb6c14d85c10f85e20000004c8b52204d8b124d89d04c3342284c8542300f85ca0000004c8b423049f7d04d21d04c2b42"
    "484c3b42500f83b2000000f7c1000100007416415049c1e80c4c0342604180380141580f87940000004c3b52387514448b524044"
    "3b52440f838000000083424001eb0b4c895238c742400000000048834278014181e1ff0f00004d01c84c034258458b5b08f7c100"
    "01000074244e8b0c1880f9037411771484c9740666458908eb32458808eb2d458908eb284d8908eb2380f9037412771584c97406"
    "450fb708eb0e450fb608eb08458b08eb034d8b084e890c184883804001000004c3488b4268488b5270ffe0"
)


class Passages:
    """One page at a time, and the native callback that comes first for an exception."""

    def __init__(self, state: int, general: int, following: int, argument: int) -> None:
        """`state` is the host address of the CPU state, in which X0 is at `general`; others go to `following`."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page[: len(_CODE)] = _CODE
        self.on_exception = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._general = general
        self._buffer = (ctypes.c_uint64 * (_TABLE + 2 * ROWS))()
        self.argument = ctypes.addressof(self._buffer)
        self._bytes = memoryview(self._buffer).cast("B")
        self._words = self._bytes.cast("Q")
        self._halves = self._bytes.cast("I")
        words = self._words
        words[_STATE], words[_NEXT], words[_NEXT_ARGUMENT] = state, following, argument
        words[_PAGE], words[_FIXED] = _NOWHERE, _NOWHERE ^ _FRAME
        self._kept: tuple[object, ...] = ()

    def prepare(self, base: int, memory: memoryview, kinds: memoryview, word: memoryview) -> None:
        """See `AArch64Engine.prepare_passages`."""
        views = memory, kinds, word
        self._kept = pinned = tuple((ctypes.c_char * view.nbytes).from_buffer(view) for view in views)
        words = self._words
        words[_HOST], words[_KINDS], words[_WORD] = map(ctypes.addressof, pinned)
        words[_BASE], words[_SIZE] = base, memory.nbytes

    def set(self, passage: Passage | None, accesses: Sequence[PassingAccess]) -> None:
        """See `AArch64Engine.let_pass`."""
        words, halves = self._words, self._halves
        words[_PAGE] = _NOWHERE
        if passage is None:
            return
        for number, row in enumerate(accesses[:ROWS]):
            kind = row.size - 1 | (_STORE if row.store else 0)
            _ROW.pack_into(self._bytes, 8 * _TABLE + number * _ROW.size, row.pc, self._general + 8 * row.register, kind)
        words[_ROW_COUNT] = min(len(accesses), ROWS)
        offset = passage.entry - words[_BASE]
        if offset & 7 or not 0 <= offset < words[_SIZE]:
            raise ValueError(f"an entry at {passage.entry:#x} is not in the memory that passages lead to")
        words[_ENTRY], words[_LIKE], words[_TAG] = words[_HOST] + offset, passage.like, passage.tag
        halves[2 * _COUNTS + 1] = passage.most
        words[_PAGE] = passage.page

    def take(self) -> int:
        """How many accesses were done since this was asked last."""
        done = self._words[_DONE]
        self._words[_DONE] = 0
        return done

    @property
    def passing(self) -> tuple[int, int]:
        """The last entry, and how many accesses more there were by it in a row."""
        return self._words[_PASSING], self._halves[2 * _COUNTS]

    @passing.setter
    def passing(self, value: tuple[int, int]) -> None:
        self._words[_PASSING], self._halves[2 * _COUNTS] = value
