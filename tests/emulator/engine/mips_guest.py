"""A few words of MIPS32 on an engine behind the `MipsEngine` protocol, and the exits that they make.

Room: `tests`. Memory lies at physical 0; in views, supervisor mode sees it at 80000000H and user mode at 400000H.
Nothing here knows which engine it is.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass

from emulator.engine.engines import MIPS_ENGINES
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.mips import EXECUTE, READ, SUPERVISOR, WRITE, MipsEngine

BASE = {0: 0x8000_0000, 1: 0x8000_0000, 2: 0x40_0000}
SIZE = 0x40000
END = 0x0000_000D
"""BREAK."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A copy of an exit, with what the registers showed then."""

    kind: ExitKind
    vector: int
    error: int
    address: int
    pc: int
    slot: bool
    progress: int


class MipsGuest:
    """Memory, an engine, and every exit in order. BREAK ends a run, unless `handle` says otherwise."""

    def __init__(self, order: str = "little", mode: int = SUPERVISOR) -> None:
        self.engine: MipsEngine = MIPS_ENGINES["unicorn"](order)
        self.registers = self.engine.registers
        self.memory = memoryview(mmap.mmap(-1, SIZE))
        self.engine.map_memory(0, self.memory)
        self.mode = mode
        self.exits: list[Seen] = []
        self.rights = READ | WRITE | EXECUTE
        self.engine.use_views(mode != 0)
        if mode:
            self.registers.mode = mode
        else:
            self.registers.set_cp0("Status", 0)

    def put(self, offset: int, *words: int) -> None:
        """Write words in the guest's byte order."""
        order = "big" if self.engine.byte_order == "big" else "little"
        for index, word in enumerate(words):
            self.memory[offset + 4 * index : offset + 4 * index + 4] = word.to_bytes(4, order)  # type: ignore[arg-type]

    def word(self, offset: int) -> int:
        """A word in the guest's byte order."""
        order = "big" if self.engine.byte_order == "big" else "little"
        return int.from_bytes(self.memory[offset : offset + 4], order)  # type: ignore[arg-type]

    def run(
        self, *words: int, at: int = 0x1000, handle: Callable[[Exit], bool] | None = None, go: int | None = None
    ) -> list[Seen]:
        """Put `words` and a BREAK at `at` and run from `go` (or there) until BREAK, or until `handle` says False."""
        if words:
            self.put(at, *words, END)
            self.engine.frame_changed(at, 4 * len(words) + 4)
            if self.mode:
                first, end = BASE[self.mode] + at & ~0xFFF, BASE[self.mode] + at + 4 * len(words) + 0x1000 & ~0xFFF
                self.engine.clear_view(self.mode, first, end)
        base = BASE[self.mode]
        self.registers.jump(base + at if go is None else go)
        first = len(self.exits)

        def handler(exit_: Exit) -> None:
            registers = self.registers
            self.exits.append(
                Seen(
                    ExitKind(exit_.kind),
                    exit_.vector,
                    exit_.error,
                    exit_.address,
                    registers.pc,
                    registers.in_delay_slot,
                    self.engine.progress,
                )
            )
            if handle is not None and exit_.kind != ExitKind.MISS:
                if not handle(exit_):
                    self.engine.stop()
            elif handle is not None and handle(exit_):
                pass
            elif exit_.kind == ExitKind.MISS:
                self.fill(exit_)
            else:
                self.engine.stop()

        self.engine.run(handler)
        return [seen for seen in self.exits[first:] if seen.kind != ExitKind.MISS]

    def fill(self, exit_: Exit) -> None:
        """Map a page of the room, or refuse as an address that no entry matches."""
        offset = exit_.address - BASE[self.mode]
        if 0 <= offset < SIZE:
            self.engine.map_page(self.mode, exit_.address, offset, self.rights)
        else:
            exit_.refused, exit_.vector, exit_.error = True, 2 + (exit_.error == 1), 1
