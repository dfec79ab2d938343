"""A few instructions on an engine behind the `Engine` protocol, and the exits that they make.

Room: `tests`. The guest is `emulator.isa.x86.room`: identity-mapped pages, descriptor tables, code, data and a
stack. Nothing here knows which engine it is.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.x86 import X86Engine
from emulator.isa.x86 import registers as r
from emulator.isa.x86.room import (
    CODE,
    GDT,
    GDT_LIMIT,
    IDT,
    IDT_LIMIT,
    ROOM_SIZE,
    ROOT,
    SELECTORS,
    STACK,
    SYSTEM_DESCRIPTORS,
    attributes_of,
    furnish,
)

CR0 = r.CR0_PE | r.CR0_ET | r.CR0_NE | r.CR0_WP | r.CR0_PG
CR4 = r.CR4_PAE | r.CR4_OSFXSR
EFER = r.EFER_LME | r.EFER_LMA | r.EFER_NXE | r.EFER_SCE
PAGE_TABLE = ROOT + 0x3000


@dataclass(frozen=True, slots=True)
class Seen:
    """A copy of an exit, with what the registers showed then."""

    kind: ExitKind
    vector: int
    error: int
    address: int
    length: int
    port: int
    size: int
    value: int
    rip: int
    rflags: int
    progress: int


class BareGuest:
    """A guest of one engine, at level 3 where nothing else is said, as every engine can. `exits` are all so far."""

    def __init__(self, engine: X86Engine, code: str, level: int = 3) -> None:
        self.engine = engine
        self.memory = memoryview(mmap.mmap(-1, ROOM_SIZE))
        self.words = self.memory.cast("Q")
        self.exits: list[Seen] = []
        furnish(self.memory, bytes.fromhex(code), b"", ())
        engine.map_memory(0, self.memory)
        engine.set_root(ROOT)
        engine.set_control(CR0, CR4, EFER)
        state = engine.registers
        text, data = SELECTORS[level]
        for index in (r.ES, r.SS, r.DS, r.FS, r.GS):
            state.set_segment(index, data, 0, 0xFFFF_FFFF, attributes_of(data))
        state.set_segment(r.CS, text, 0, 0xFFFF_FFFF, attributes_of(text))
        for index, (selector, base, limit) in SYSTEM_DESCRIPTORS.items():
            state.set_segment(index, selector, base, limit, attributes_of(selector))
        state.set_table(0, GDT, GDT_LIMIT)
        state.set_table(1, IDT, IDT_LIMIT)
        for index in range(16):
            state.gpr[index] = 0
        state.gpr[r.RSP] = STACK
        state.rflags = r.FLAG_FIXED
        state.privilege = level
        state.rip = CODE
        engine.open_ports()

    def page(self, number: int, entry: int) -> None:
        """Set the entry of a page, before it is used."""
        self.words[(PAGE_TABLE >> 3) + number] = entry

    def run(self, handle: Callable[[Exit], bool] | None = None) -> list[Seen]:
        """Run; `handle` says whether to go on after an exit (no: after the first). Returns the new exits."""
        engine, state, first = self.engine, self.engine.registers, len(self.exits)

        def handler(exit_: Exit) -> None:
            self.exits.append(
                Seen(
                    ExitKind(exit_.kind),
                    exit_.vector,
                    exit_.error,
                    exit_.address,
                    exit_.length,
                    exit_.port,
                    exit_.size,
                    exit_.value,
                    state.rip,
                    state.rflags,
                    engine.progress,
                )
            )
            if handle is None or not handle(exit_):
                engine.stop()

        engine.run(handler)
        return self.exits[first:]

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()
