"""Pages of ARMv7 code that execute from another frame than is read there: entered into the TLB without a handler.

Room: `emulator/engine/unicorn`. No table entry can say so, so a fetch from such a page aborts wherever the TLB has lost
it. The callback for exceptions is a few bytes of machine code that look the page up where the hypervisor keeps what
executes, beside the tables, and go on to Python for everything else.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Final

from emulator.engine.arm import CopiedPages

# Called as callback(engine, number, words) in RDI RSI RDX (System V AMD64). `words`, of 64 bits: host address of the
# root table, or 0; of the tables; their physical address and size (32 bits each); host address of the copies; the CPU;
# tlb_set_page; Python's callback; the CPU state; bits of an address below those that say which root; the other root.
#   cmp esi, PREFETCH ; jne other ; mov r8, [rdx] ; test r8, r8 ; je other ; mov r9, [rdx+56] ; mov eax, [r9+STATUS]
#   and eax, 40FH ; cmp eax, 2 ; je other ; mov r11d, [r9+FAULT_ADDRESS] ; mov ecx, [rdx+64]
#   mov eax, r11d ; shr eax, cl ; cmovne r8, [rdx+72] ; mov eax, r11d ; shr eax, 20
#   mov eax, [r8+rax*4] ; and eax, FFFFFC00H ; sub eax, [rdx+16] ; cmp eax, [rdx+20] ; jae other
#   mov ecx, r11d ; shr ecx, 10 ; and ecx, 3FCH ; add eax, ecx ; mov r10, [rdx+8] ; test dword [r10+rax], MARK
#   je other ; mov r10, [rdx+24] ; mov ecx, [r10+rax] ; test ecx, ecx ; je other ; mov dword [r9+SYNDROME], 0
#   mov esi, r11d ; and esi, FFFFF000H ; mov rdi, [rdx+32] ; mov rax, [rdx+40] ; mov edx, ecx ; mov ecx, EXECUTE
#   mov r8d, 7 (User mode in Secure state) ; mov r9d, 4096 ; sub rsp, 8 ; call rax ; add rsp, 8 ; ret
#   other: jmp [rdx+48]
_CODE: Final = bytes.fromhex(
    "83fe030f85b20000004c8b024d85c00f84a60000004c8b4a38418b81d40b0000250f04000083f8020f848d000000458b99d80b00008b"
    "4a404489d8d3e84c0f4542484489d8c1e814418b04802500fcffff2b42103b421473624489d9c1e90a81e1fc03000001c84c8b520841"
    "f704020008000074464c8b5218418b0c0285c9743a41c781d00b0000000000004489de81e600f0ffff488b7a20488b422889cab90400"
    "000041b80700000041b9001000004883ec08ffd04883c408c3ff6230"
)
PLACES: Final = (0xBD0, 0xBD4, 0xBD8)
"""Of the syndrome, the fault's status and its address in the CPU state, as the code has them."""
MARK: Final = 1 << 11
"""nG, by which an entry says that its page has a copy."""
_LAST: Final = 31


class CopiedCode:
    """The native callback, and what it looks into."""

    def __init__(self, callback: Any, state: int, cpu: int, set_page: Any) -> None:
        """`callback` is Python's, `state` and `cpu` host addresses, `set_page` the engine's function."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page[: len(_CODE)] = _CODE
        self.on_exception = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._callback = callback
        functions = (ctypes.cast(one, ctypes.c_void_p).value or 0 for one in (set_page, callback))
        self._words = (ctypes.c_uint64 * 10)(0, 0, 0, 0, cpu, *functions, state, _LAST, 0)
        self.argument = ctypes.addressof(self._words)
        self._kept: tuple[Any, ...] = ()
        self._tables = 0

    def keep(self, pages: CopiedPages) -> None:
        """Look into these from now on, as soon as a root is told."""
        tables, copies = (ctypes.c_char.from_buffer(one) for one in (pages.tables, pages.copies))
        self._kept = tables, copies
        self._tables = ctypes.addressof(tables)
        size = min(pages.tables.nbytes, pages.copies.nbytes)
        self._words[0], self._words[1] = 0, self._tables
        self._words[2], self._words[3] = pages.physical | size << 32, ctypes.addressof(copies)

    def look(self, root: int, upper: int, split: int) -> None:
        """The root tables begin at these bytes of the tables, the upper one for addresses whose `split` upper bits are
        not all 0; below 0: nothing is looked up."""
        self._words[0] = 0
        if root >= 0:
            self._words[8], self._words[9] = (
                (32 - split, self._tables + upper) if split else (_LAST, self._tables + root)
            )
            self._words[0] = self._tables + root
