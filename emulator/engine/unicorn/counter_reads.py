"""Reads of AArch64's virtual counter answered by native code: the guest's progress, scaled, without an exit.

Room: `emulator/engine/unicorn`. Virtual time is a linear function of progress as long as no idle time is skipped, and
whoever keeps the clock says which. This comes before `passages` in the chain of what is called for an exception.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

SYNDROME: Final = 0x18 << 26 | 1 << 25 | 3 << 20 | 2 << 17 | 3 << 14 | 14 << 10 | 1
"""Of MRS X0, CNTVCT_EL0 that is trapped (DDI 0487, ISS of EC 18H); another register differs in bits 9 to 5."""
PLACES: Final = (0x40, 0x140, 0xBD0, 0x488)
"""Of X0, PC, the syndrome and PMUSERENR_EL0 in the CPU state, as the code has them."""
_STATE, _ENABLED, _SYNDROME, _REMAINING, _DEADLINE, _SCALE, _OFFSET, _SHIFT, _NEXT, _NEXT_ARGUMENT, _DONE = range(11)

# Called as callback(engine, number, words) in RDI RSI RDX (System V AMD64). `words`, by eights: the CPU state; enabled;
# the syndrome; where the blocks left are, and where the deadline is; scale, offset and shift; who is called for others,
# with what; how many were answered.
#   mov rax, [rdx] ; cmp qword [rdx+ENABLED], 0 ; je other ; test byte [rax+PMUSERENR], 1 ; je other
#   mov ecx, [rax+SYNDROME] ; mov r8d, ecx ; and r8d, FFFFFC1FH ; cmp r8d, [rdx+SYNDROME] ; jne other
#   mov r9, [rdx+REMAINING] ; mov r8, [rdx+DEADLINE] ; mov r8, [r8] ; sub r8, [r9] ; imul r8, [rdx+SCALE]
#   add r8, [rdx+OFFSET] ; mov r9d, ecx ; mov rcx, [rdx+SHIFT] ; shr r8, cl ; shr r9d, 5 ; and r9d, 31 ; cmp r9d, 31
#   je skip ; mov [rax+r9*8+X0], r8 ; skip: add qword [rax+PC], 4 ; add qword [rdx+DONE], 1 ; ret
#   other: mov rax, [rdx+NEXT] ; mov rdx, [rdx+NEXT_ARGUMENT] ; jmp rax
_CODE = bytes.fromhex(
    "488b0248837a08007461f680880400000174588b88d00b00004189c84181e01ffcffff443b421075424c8b4a184c8b42204d8b00"
    "4d2b014c0faf42284c0342304189c9488b4a3849d3e841c1e9054183e11f4183f91f74054e8944c8404883804001000004488342"
    "5001c3488b4240488b5248ffe0"
)


class CounterReads:
    """The native callback that comes first for an exception."""

    def __init__(self, state: int, remaining: memoryview, deadline: memoryview, following: int, argument: int) -> None:
        """`state` is the host address of the CPU state; progress is `deadline` less `remaining`, a word each."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page[: len(_CODE)] = _CODE
        self.on_exception = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._kept = tuple(ctypes.c_char.from_buffer(view) for view in (remaining, deadline))
        places = map(ctypes.addressof, self._kept)
        self._buffer = (ctypes.c_int64 * 11)(state, 0, SYNDROME, *places, 0, 0, 0, following, argument, 0)
        self.argument = ctypes.addressof(self._buffer)
        self._words = memoryview(self._buffer).cast("B").cast("q")

    def answer(self, scale: int, offset: int, shift: int) -> None:
        """See `AArch64Engine.answer_counter`."""
        words = self._words
        words[_SCALE], words[_OFFSET], words[_SHIFT] = scale, offset, shift
        words[_ENABLED] = 1 if scale else 0

    def take(self) -> int:
        """How many reads were answered since this was asked last."""
        done = self._words[_DONE]
        self._words[_DONE] = 0
        return done
