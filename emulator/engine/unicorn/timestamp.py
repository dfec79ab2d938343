"""RDTSC answered by native code: the guest's progress, scaled, without an exit.

Room: `emulator/engine/unicorn`. Virtual time is a linear function of progress as long as no idle time is skipped; a
guest that reads the counter in a loop to wait costs an exit a round otherwise. Whoever keeps the clock says the
function.
"""

import ctypes
import mmap
from typing import Any, Final

_ENABLED, _DEADLINE, _SCALE, _OFFSET, _ANSWERED = 0, 2, 3, 4, 7

# Called as callback(engine, words) in RDI RSI (System V AMD64); returns 1: the engine steps over the instruction.
# `words`: enabled (32 bits); where the remaining blocks are; the deadline; scale; offset; where RAX is, with RDX two
# words behind it; Python's callback; how many were answered.
#   cmp dword [rsi], 0 ; je other ; mov rax, [rsi+8] ; mov rdx, [rsi+16] ; sub rdx, [rax] ; imul rdx, [rsi+24]
#   add rdx, [rsi+32] ; mov rcx, [rsi+40] ; mov eax, edx ; mov [rcx], rax ; shr rdx, 32 ; mov [rcx+16], rdx
#   inc qword [rsi+56] ; mov eax, 1 ; ret ; other: jmp [rsi+48]
_CODE: Final = bytes.fromhex(
    "833e00 742f 488b4608 488b5610 482b10 480faf5618 48035620 488b4e28 89d0 488901 48c1ea20 48895110 48ff4638"
    "b801000000 c3 ff6630"
)


class TimeStamp:
    """The native callback of RDTSC."""

    def __init__(self, remaining: memoryview, registers: memoryview, otherwise: Any) -> None:
        """`remaining` holds the blocks that are left to the deadline, `registers` the guest's general registers;
        `otherwise` is the ctypes callback while there is no function."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page[: len(_CODE)] = _CODE
        self.callback = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._otherwise = otherwise
        self._words = (ctypes.c_int64 * 8)(
            0,
            ctypes.addressof(ctypes.c_char.from_buffer(remaining)),
            0,
            0,
            0,
            ctypes.addressof(ctypes.c_char.from_buffer(registers)),
            ctypes.cast(otherwise, ctypes.c_void_p).value or 0,
            0,
        )
        self.argument = ctypes.addressof(self._words)
        self._values = memoryview(self._words).cast("B").cast("q")
        self.deadline = self._values[_DEADLINE : _DEADLINE + 1]
        """`deadline[0]` is the progress at which nothing remains; the engine keeps it."""

    def answer(self, scale: int, offset: int) -> None:
        """RDTSC reads progress * `scale` + `offset` from now on; a scale of 0 hands it up again."""
        self._values[_SCALE], self._values[_OFFSET] = scale, offset
        self._values[_ENABLED] = 1 if scale else 0

    @property
    def answered(self) -> int:
        """How many RDTSC were answered."""
        return self._values[_ANSWERED]
