"""The longest basic block of Unicorn's MIPS: 376 instructions without a branch overrun a table of its translator.

Room: `emulator/engine/unicorn`. The function that translates a block is told how many instructions it may take; it
begins with a jump to a few instructions of ours, which lower that number. What is cut is two blocks, as anything is
that is longer than QEMU likes. x86-64 hosts only, like all native code here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from typing import Any, Final

from emulator.engine.unicorn.state_search import read_memory
from emulator.errors import EngineMissing

LONGEST_BLOCK: Final = 256
"""Instructions."""
_FUNCTION: Final = "gen_intermediate_code"
_BEGINS: Final = bytes.fromhex("4881eca8000000 4989f2 4989f9")
"""sub rsp,168; mov r10,rsi; mov r9,rdi: whole instructions that may stand anywhere; RAX is free behind them."""
_JUMP: Final = 12
"""Bytes of `mov rax,address; jmp rax`."""
_kept: dict[str, Any] = {}
"""Machine code by the suffix of the library's functions: the library jumps to it as long as the process lives."""


def limit_blocks(library: ctypes.CDLL, suffix: str) -> None:
    """Let no block have more than `LONGEST_BLOCK` instructions. Raises `EngineMissing` where the library is another."""
    if suffix in _kept:
        return
    if platform.machine() != "x86_64":
        raise EngineMissing(
            f"the unicorn engine needs native callbacks, written for x86_64 only, not {platform.machine()}"
        )
    function = getattr(library, f"{_FUNCTION}_{suffix}", None)
    place = (ctypes.cast(function, ctypes.c_void_p).value or 0) if function is not None else 0
    descriptor = os.open("/proc/self/mem", os.O_RDWR)
    try:
        if not place or read_memory(descriptor, place, len(_BEGINS)) != _BEGINS:
            raise EngineMissing(
                f"the unicorn engine has no function {_FUNCTION}_{suffix} that retrap knows: install unicorn==2.1.4"
            )
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        number = LONGEST_BLOCK.to_bytes(4, "little")
        # cmp edx,number; jle over; mov edx,number; over: the function's own beginning, and behind it
        page.write(b"\x81\xfa" + number + b"\x7e\x05\xba" + number + _BEGINS + _jump(place + len(_BEGINS)))
        os.pwrite(descriptor, _jump(ctypes.addressof(ctypes.c_char.from_buffer(page))), place)
    finally:
        os.close(descriptor)
    _kept[suffix] = page


def _jump(target: int) -> bytes:
    return b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"
