"""A few AArch64 instructions on an engine, and the exits that they make.

Room: `tests`. The guest is `emulator.isa.aarch64.room`; nothing here knows which engine it is.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass

from emulator.engine.aarch64 import SP, AArch64Engine
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.aarch64.exceptions import MASKS
from emulator.isa.aarch64.room import BASE, CODE, MAIR, ROOM_SIZE, ROOT, SCTLR, STACK, TCR, furnish


@dataclass(frozen=True, slots=True)
class Seen:
    """A copy of an exit, with PC (from CODE) and progress then."""

    kind: ExitKind
    vector: int
    error: int
    address: int
    at: int
    progress: int


class Guest:
    """`words` at CODE, at an exception level."""

    def __init__(self, engine: AArch64Engine, words: list[int], level: int = 0, sctlr: int = SCTLR) -> None:
        self.engine = engine
        self.memory = memoryview(mmap.mmap(-1, ROOM_SIZE))
        self.exits: list[Seen] = []
        furnish(self.memory, b"".join(word.to_bytes(4, "little") for word in words))
        engine.map_memory(BASE, self.memory)
        engine.set_roots(ROOT, 0)
        engine.set_control(sctlr, TCR, MAIR)
        state = engine.registers
        for number in range(31):
            state.gpr[number] = 0
        state.gpr[SP] = STACK
        state.nzcv, state.daif, state.level = 0, MASKS, level
        state.pc = CODE

    def write(self, address: int, word: int) -> None:
        self.memory[address - BASE : address - BASE + 4] = word.to_bytes(4, "little")

    def run(self, handler: Callable[[Exit], bool | None]) -> list[Seen]:
        """Run until `handler` returns True."""
        engine = self.engine

        def on_exit(exit_: Exit) -> None:
            pc = engine.registers.pc
            self.exits.append(
                Seen(ExitKind(exit_.kind), exit_.vector, exit_.error, exit_.address, pc - CODE, engine.progress)
            )
            if handler(exit_):
                engine.stop()

        engine.run(on_exit)
        return self.exits
