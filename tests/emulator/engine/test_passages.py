"""Accesses to a page that is never mapped, done in memory where an entry says: what passes by, and what exits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from emulator.engine.aarch64 import Passage, PassingAccess
from emulator.engine.exit import Exit
from emulator.engine.unicorn import aarch64_state, passages
from emulator.engine.unicorn.aarch64 import UnicornAArch64Engine
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.room import BASE, CODE, DATA, KERNEL_DATA, READ_ONLY, UNMAPPED
from tests.emulator.engine.aarch64_guest import Guest

LOADS = {1: 0x3940_0022, 2: 0x7940_0022, 4: 0xB940_0022, 8: 0xF940_0022}
"""Of w2 or x2 from [x1], by size."""
STORES = {size: word - 0x40_0000 + 1 for size, word in LOADS.items()}
"""Of w3 or x3 to [x1]."""
ENTRY, RIGHTS = DATA + 0x800, 0xE8_0000_0000_0703
PAGE, OPEN = UNMAPPED >> 12, 0x1234
VALUE = 0x8182_8384_8586_8788


@pytest.fixture
def engine() -> Iterator[UnicornAArch64Engine]:
    opened = UnicornAArch64Engine()
    yield opened
    opened.close()


@dataclass
class Passing:
    """Code whose accesses to UNMAPPED lead to KERNEL_DATA."""

    engine: UnicornAArch64Engine
    words: Sequence[int]
    kinds: bytearray = field(default_factory=lambda: bytearray(16))
    word: bytearray = field(default_factory=lambda: bytearray(OPEN.to_bytes(8, "little")))
    at: int = UNMAPPED + 0x10
    most: int = 100

    def __post_init__(self) -> None:
        self.guest = Guest(self.engine, [*self.words, 0])
        self.lead(KERNEL_DATA)
        self.engine.registers.gpr[1], self.engine.registers.gpr[3] = self.at, VALUE
        self.engine.prepare_passages(BASE, self.guest.memory, memoryview(self.kinds), memoryview(self.word))
        rows = [PassingAccess(CODE + 4 * n, word & 31, 1 << (word >> 30), not word >> 22 & 1) for n, word in self.rows]
        self.engine.let_pass(Passage(PAGE, OPEN, ENTRY, KERNEL_DATA | RIGHTS, self.most), rows)

    @property
    def rows(self) -> list[tuple[int, int]]:
        return [(n, word) for n, word in enumerate(self.words) if word in {*LOADS.values(), *STORES.values()}]

    def lead(self, entry: int) -> None:
        self.guest.memory[ENTRY - BASE : ENTRY - BASE + 8] = (entry | RIGHTS).to_bytes(8, "little")

    def exits(self) -> list[int]:
        """Classes of the exits up to the undefined instruction, which is the last."""

        def handler(exit_: Exit) -> bool:
            self.engine.registers.advance()
            return exit_.vector == x.UNKNOWN

        return [seen.vector for seen in self.guest.run(handler)]

    def found(self, page: int = KERNEL_DATA) -> bytes:
        return bytes(self.guest.memory[page - BASE + 0x10 : page - BASE + 0x18])


def test_the_places_in_the_machine_code_are_those_that_are_confirmed() -> None:
    places = 8 * aarch64_state.W_PC, 8 * aarch64_state.W_FAULT_ADDRESS, 4 * aarch64_state.H_SYNDROME
    assert places == passages.PLACES


@pytest.mark.parametrize("size", STORES)
def test_a_store_of_any_size_reaches_memory_without_an_exit(size: int, engine: UnicornAArch64Engine) -> None:
    passing = Passing(engine, [STORES[size]])
    assert passing.exits() == [x.UNKNOWN]
    assert passing.found() == VALUE.to_bytes(8, "little")[:size].ljust(8, b"\0")
    assert (engine.take_passed(), engine.take_passed()) == (1, 0)


@pytest.mark.parametrize("size", LOADS)
def test_a_load_of_any_size_fills_up_with_zeros(size: int, engine: UnicornAArch64Engine) -> None:
    passing = Passing(engine, [LOADS[size]])
    passing.guest.memory[KERNEL_DATA - BASE + 0x10 : KERNEL_DATA - BASE + 0x18] = VALUE.to_bytes(8, "little")
    engine.registers.gpr[2] = (1 << 64) - 1
    assert passing.exits() == [x.UNKNOWN]
    assert engine.registers.gpr[2] == VALUE & (1 << 8 * size) - 1


def test_the_entry_is_looked_at_when_the_access_comes(engine: UnicornAArch64Engine) -> None:
    passing = Passing(engine, [STORES[8]])
    passing.lead(READ_ONLY)
    assert passing.exits() == [x.UNKNOWN]
    assert (passing.found(), passing.found(READ_ONLY)) == (bytes(8), VALUE.to_bytes(8, "little"))


@pytest.mark.parametrize(
    "entry", [KERNEL_DATA | 1 << 7, KERNEL_DATA ^ 1, BASE + 0x1_0000, BASE - 0x1000, 0xF000_0000_0000]
)
def test_an_entry_that_is_another_or_leads_nowhere_exits(entry: int, engine: UnicornAArch64Engine) -> None:
    passing = Passing(engine, [STORES[4]])
    if entry == KERNEL_DATA ^ 1:
        passing.guest.memory[ENTRY - BASE] ^= 1  # not valid
    else:
        passing.lead(entry)
    assert passing.exits() == [x.DATA_LOWER, x.UNKNOWN]
    assert (passing.found(), engine.take_passed()) == (bytes(8), 0)


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_frames_in_use_as_code_are_read_and_not_stored_into(kind: int, engine: UnicornAArch64Engine) -> None:
    passing = Passing(engine, [LOADS[4], STORES[4]])
    passing.kinds[KERNEL_DATA - BASE >> 12] = kind
    assert passing.exits() == ([x.UNKNOWN] if kind < 2 else [x.DATA_LOWER, x.UNKNOWN])


def test_a_page_that_is_not_open_exits(engine: UnicornAArch64Engine) -> None:
    passing = Passing(engine, [STORES[4]])
    passing.word[:] = bytes(8)
    assert passing.exits() == [x.DATA_LOWER, x.UNKNOWN]


@pytest.mark.parametrize("at", [UNMAPPED + 0x11, UNMAPPED + 0xFFE, UNMAPPED + 0x1010])
def test_an_access_that_is_not_aligned_or_elsewhere_exits(at: int, engine: UnicornAArch64Engine) -> None:
    assert Passing(engine, [LOADS[4]], at=at).exits() == [x.DATA_LOWER, x.UNKNOWN]


def test_by_one_entry_no_more_than_so_many_pass_in_a_row(engine: UnicornAArch64Engine) -> None:
    passing = Passing(engine, [STORES[4]] * 6, most=3)
    assert passing.exits() == [x.DATA_LOWER] * 2 + [x.UNKNOWN]  # the first, and three more by the same entry
    assert engine.passing == (KERNEL_DATA | RIGHTS, 3)
    engine.passing = KERNEL_DATA | RIGHTS, 1
    engine.registers.pc = CODE
    del passing.guest.exits[:]
    assert passing.exits() == [x.DATA_LOWER] * 4 + [x.UNKNOWN]


def test_what_is_taken_back_exits(engine: UnicornAArch64Engine) -> None:
    passing = Passing(engine, [STORES[4]])
    engine.let_pass(None)
    assert passing.exits() == [x.DATA_LOWER, x.UNKNOWN]


def test_an_entry_outside_memory_is_refused(engine: UnicornAArch64Engine) -> None:
    Passing(engine, [])
    with pytest.raises(ValueError, match="not in the memory"):
        engine.let_pass(Passage(PAGE, OPEN, BASE - 8, 0, 1))
