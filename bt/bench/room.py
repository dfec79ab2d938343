"""A place to run a few instructions at level 3 on any x86-64 engine, without a hypervisor.

Room: measurements. Identity-mapped pages: code, data, a stack; the code ends in UD2, by which the time is taken.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from typing import Final

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.x86 import X86Engine
from emulator.errors import GuestFault
from emulator.isa.x86 import registers as r

CODE: Final = 0x10_0000
DATA: Final = 0x20_0000
"""Two MiB of data, all of it mapped."""
DATA_SIZE: Final = 0x20_0000
STACK: Final = 0x11_0000
_ROOT: Final = 0x1000
_SIZE: Final = 0x40_0000
_UD2: Final = b"\x0f\x0b"
_UNDEFINED: Final = 6
_CR0: Final = r.CR0_PE | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_PG
_CR4: Final = r.CR4_PAE | r.CR4_OSFXSR
_EFER: Final = r.EFER_LME | r.EFER_LMA | r.EFER_NXE | r.EFER_SCE


class Room:
    """Runs code on an engine, which it closes in the end."""

    def __init__(self, engine: X86Engine) -> None:
        self.engine = engine
        self.memory = memoryview(mmap.mmap(-1, _SIZE))
        words = self.memory.cast("Q")
        for level in range(2):
            words[_ROOT + level * 4096 >> 3] = _ROOT + (level + 1) * 4096 | 7
        for block in range(2):
            table = _ROOT + (3 + block) * 4096
            words[(_ROOT + 2 * 4096 >> 3) + block] = table | 7
            for page in range(512):
                words[(table >> 3) + page] = (block << 21) + (page << 12) | 0x67
        engine.map_memory(0, self.memory)
        engine.set_root(_ROOT)
        engine.set_control(_CR0, _CR4, _EFER)

    def start(self, code: bytes) -> None:
        """Put code there and the registers in order; RDI leads to the data."""
        self.memory[CODE : CODE + len(code) + 2] = code + _UD2
        self.engine.code_changed(CODE, 4096)
        state = self.engine.registers
        state.set_segment(r.CS, 0x33, 0, 0xFFFF_FFFF, 0xA0FB00)
        for index in (r.ES, r.SS, r.DS, r.FS, r.GS):
            state.set_segment(index, 0x2B, 0, 0xFFFF_FFFF, 0xC0F300)
        state.gpr[r.RSP], state.gpr[r.RDI] = STACK, DATA
        state.rip, state.rflags, state.privilege = CODE, r.FLAG_FIXED | r.FLAG_IF, 3

    def run(self, handler: Callable[[Exit], None]) -> None:
        """Run until the handler stops the engine."""
        self.engine.run(handler)

    def seconds(self, code: bytes) -> float:
        """Processor time of this thread for running code to its end. Raises `GuestFault` if it ends otherwise."""
        self.start(code)
        ends: list[tuple[ExitKind, int]] = []

        def handler(exit_: Exit) -> None:
            if exit_.kind is ExitKind.BUDGET:
                return
            ends.append((ExitKind(exit_.kind), exit_.vector))
            self.engine.stop()

        begin = time.thread_time_ns()
        self.engine.run(handler)
        taken = (time.thread_time_ns() - begin) / 1e9
        if ends != [(ExitKind.FAULT, _UNDEFINED)]:
            raise GuestFault(f"the code that is timed ended by {ends} and not by UD2")
        return taken

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()
