"""A bare ARM engine with a little memory, for tests: code runs at CODE, sections are mapped flat."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from emulator.engine.arm import SVC, USR
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn.arm import UnicornArmEngine

BASE = 0x4000_0000
ROOT, CODE, DATA = BASE + 0x4000, BASE + 0x8000, BASE + 0x9000
MMU_ON = 0x00C5_0079
SVC0 = 0xEF00_0000
Seen = tuple[ExitKind, int, int, int]
"""Kind, vector, status and PC of an exit."""


class Room:
    """An engine, its memory as words, and what it reported."""

    def __init__(self) -> None:
        self.engine = UnicornArmEngine()
        self.registers = self.engine.registers
        self.memory = memoryview(mmap.mmap(-1, 4 << 20))
        self.words = self.memory.cast("I")
        self.engine.map_memory(BASE, self.memory)

    def put(self, address: int, words: Sequence[int]) -> None:
        """Store words at a physical address."""
        for number, word in enumerate(words):
            self.words[(address - BASE) // 4 + number] = word

    def section(self, virtual: int, descriptor: int) -> None:
        """Set a first-level descriptor."""
        self.words[(ROOT - BASE) // 4 + (virtual >> 20)] = descriptor

    def translate(self, world: int = 0) -> None:
        """Switch the MMU on, the memory mapped flat for everybody."""
        self.section(BASE, BASE | 0xC02)
        self.engine.enable_translation(world, MMU_ON)
        self.engine.set_domains(1, world)
        self.engine.set_root(ROOT, world)
        self.engine.use_world(world)

    def run(
        self, words: Sequence[int], *, user: bool = True, most: int = 8, on_exit: Callable[[Exit], bool] | None = None
    ) -> list[Seen]:
        """Run words from CODE to an SVC, stepping over faults; `on_exit` says whether it has handled one."""
        self.put(CODE, (*words, SVC0))
        self.engine.flush_code()
        registers, seen = self.registers, []
        registers.cpsr = USR if user else 0xC0 | SVC

        def handler(exit_: Exit) -> None:
            seen.append((ExitKind(exit_.kind), exit_.vector, exit_.error, registers.pc))
            if exit_.kind is ExitKind.SYSTEM_CALL or len(seen) == most:
                self.engine.stop()
            elif on_exit is None or not on_exit(exit_):
                registers.pc += 4 if exit_.kind is ExitKind.FAULT else 0

        registers.pc = CODE
        self.engine.run(handler)
        return seen


@contextmanager
def room() -> Iterator[Room]:
    """A room that is closed afterwards."""
    made = Room()
    try:
        yield made
    finally:
        made.engine.close()
