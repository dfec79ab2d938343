"""The native block counter: preemption by guest progress, exact and repeatable.

Room: `emulator/engine/unicorn`. Unicorn's own `count=` costs a factor of seven, a Python block hook
a factor of eighty. A dozen bytes of machine code, called by the engine at every basic block, count
down a word and ask the engine to stop when it reaches zero; that costs a few per cent.
"""

import ctypes
import mmap
import platform
from typing import Any

from emulator.errors import EngineMissing

# Called as callback(engine, address, size, user): System V AMD64 passes them in RDI RSI RDX RCX.
#   sub qword [rcx], 1 ; jle stop ; ret ; stop: jmp qword [rcx + 8]
_CODE = {"x86_64": bytes.fromhex("48832901 7e01 c3 ff6108")}


class BlockCounter:
    """A word that counts down by one a basic block; `uc_emu_stop` is called when it is used up."""

    def __init__(self, library: Any) -> None:
        machine = platform.machine()
        code = _CODE.get(machine)
        if code is None:
            raise EngineMissing(
                f"the unicorn engine needs a native block counter, written for x86_64 only, not {machine}"
            )
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(code)
        self.callback = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        self._words = (ctypes.c_int64 * 2)(0, ctypes.cast(library.uc_emu_stop, ctypes.c_void_p).value or 0)
        self.argument = ctypes.addressof(self._words)
        self.remaining = memoryview(self._words).cast("B").cast("q")
        """`remaining[0]` is the number of blocks left."""
