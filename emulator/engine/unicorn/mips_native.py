"""Machine code that the MIPS engine gives to Unicorn: translation by flat tables, and which events are exceptions.

Room: `emulator/engine/unicorn`. A miss of the emulated TLB is looked up in a table of 2^20 words, one a page, without
any Python; only what is not there is asked for. An access that is refused becomes an exception of the guest by
leaving the emulated instruction the way Unicorn itself does. x86-64 hosts only, like the block counter.
"""

import ctypes
import mmap
import platform
from typing import Any

from emulator.errors import EngineMissing

PAGES = 1 << 20

_STOP = bytes.fromhex("31c0 81fe00000100 0f92c0 c3")
"""stop_interrupt(uc, number in ESI): xor eax,eax; cmp esi,0x10000; setb al; ret."""

_FILL = bytes.fromhex(
    "498b4020"  # mov rax,[r8+32]          the address of hflags
    "8b00"  # mov eax,[rax]
    "83e003"  # and eax,3                  the mode
    "4d8b0cc0"  # mov r9,[r8+rax*8]        its table
    "4189f2"  # mov r10d,esi
    "41c1ea0c"  # shr r10d,12
    "478b1c91"  # mov r11d,[r9+r10*4]      the page's word
    "8d42f0"  # lea eax,[rdx-16]           0 read, 1 write, 2 fetch
    "410fa3c3"  # bt r11d,eax
    "732c"  # jnc slow
    "4489d8"  # mov eax,r11d
    "83e007"  # and eax,7
    "894108"  # mov [rcx+8],eax            its rights
    "4181e300f0ffff"  # and r11d,-4096
    "4c8919"  # mov [rcx],r11              its address
    "49ff4030"  # inc qword [r8+48]
    "83fa12"  # cmp edx,18
    "740a"  # je done                      a fetch: a branch under way stays so
    "498b4020"  # mov rax,[r8+32]
    "8120ff0778ff"  # and dword [rax],~0x87f800
    "b801000000"  # done: mov eax,1
    "c3"  # ret
    "53"  # slow: push rbx
    "4c89c3"  # mov rbx,r8
    "ff5328"  # call [rbx+40]
    "85c0"  # test eax,eax
    "7402"  # jz raise
    "5b"  # pop rbx
    "c3"  # ret
    "488b7b38"  # raise: mov rdi,[rbx+56]  the CPU
    "488b4340"  # mov rax,[rbx+64]         cpu_loop_exit, which does not return
    "5b"  # pop rbx
    "ffe0"  # jmp rax
)
"""tlb_fill(uc, address, access, result, table of addresses in R8)."""

_NOTHING = b"\xc3"
_AT_FILL, _AT_NOTHING = 64, 320
HFLAGS, CALLBACK, FILLS, CPU, LOOP_EXIT = 4, 5, 6, 7, 8
_WORDS = 9


class NativeCode:
    """The machine code, the tables it uses, and a count of what it did."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise EngineMissing(
                f"the unicorn engine needs native callbacks, written for x86_64 only, not {platform.machine()}"
            )
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page[: len(_STOP)] = _STOP
        self._page[_AT_FILL : _AT_FILL + len(_FILL)] = _FILL
        self._page[_AT_NOTHING : _AT_NOTHING + 1] = _NOTHING
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self.stop_interrupt = base
        self.fill = base + _AT_FILL
        self.nothing = base + _AT_NOTHING
        """A callback that does nothing."""
        self._words: Any = (ctypes.c_uint64 * _WORDS)()
        self.words = memoryview(self._words).cast("B").cast("Q")
        self.argument = ctypes.addressof(self._words)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # what is given back reads as zero again
        self._maps = [mmap.mmap(-1, 4 * PAGES, flags=flags) for _ in range(3)]
        self.tables = [memoryview(table).cast("I") for table in self._maps]
        """A table for each mode: a page's word is its physical address and rights, 0 where nothing is."""
        for mode, table in enumerate(self._maps):
            self.words[mode] = ctypes.addressof(ctypes.c_char.from_buffer(table))
        self.words[3] = self.words[0]

    def clear(self, mode: int, first: int, end: int) -> None:
        """Zero a table's words from page `first` up to `end`; whole host pages are given back."""
        table = self._maps[mode]
        low, high = first * 4, end * 4
        inner, outer = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE, high // mmap.PAGESIZE * mmap.PAGESIZE
        if inner < outer:
            table.madvise(mmap.MADV_DONTNEED, inner, outer - inner)
            if low < inner:
                table[low:inner] = bytes(inner - low)
            if outer < high:
                table[outer:high] = bytes(high - outer)
        else:
            table[low:high] = bytes(high - low)
