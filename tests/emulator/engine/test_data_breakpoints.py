"""Data breakpoints of the Unicorn engine: which accesses are told of, and where."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn.engine import UnicornEngine

BASE, CODE, DATA = 0x10_0000, 0x7000_0000, 0x7000_1000
AT_CODE, AT_DATA = 0x4000, 0x5000
UD2 = "0f0b"
LOAD = "8a042510100070"  # mov al, [DATA + 10h]
LOAD_8 = "488b042510100070"  # mov rax, [DATA + 10h]
STORE = "c604251010007001"  # mov byte [DATA + 10h], 1
LOAD_SS = "8e142510100070"  # mov ss, [DATA + 10h]


class Bench:
    """A CPU at level 3 with a page of code and a page of data."""

    def __init__(self) -> None:
        self.engine = UnicornEngine()
        self.memory = memoryview(mmap.mmap(-1, 1 << 20))
        self.engine.map_memory(BASE, self.memory)
        words = self.memory.cast("Q")
        words[0] = BASE + 0x1000 | 7
        words[512 + 1] = BASE + 0x2000 | 7
        words[1024 + (CODE >> 21 & 511)] = BASE + 0x3000 | 7
        words[1536] = BASE + AT_CODE | 7
        words[1537] = BASE + AT_DATA | 7
        self.engine.set_root(BASE)
        self.engine.set_control(0x8005_0033, 0x620, 0xD01)
        registers = self.engine.registers
        for index in (0, 2, 3, 4, 5):
            registers.set_segment(index, 0x2B, 0, 0xFFFF_FFFF, 0xCF_F300)
        registers.set_segment(1, 0x33, 0, 0xFFFF_FFFF, 0xAF_FB00)
        registers.privilege = 3
        registers.set_table(0, DATA + 0x800, 0x2F)
        words[(AT_DATA + 0x828) // 8] = 0x00CF_F300_0000_FFFF

    def run(self, code: str) -> list[tuple[int, int, int]]:
        """Vector, error and RIP behind the first byte of each exit of `code`; the last is that of the UD2 behind it."""
        contents = bytes.fromhex(code + UD2)
        self.memory[AT_CODE : AT_CODE + len(contents)] = contents
        self.engine.flush_code()
        self.engine.registers.rip, self.engine.registers.rflags = CODE, 0x202
        seen = []

        def handle(exit_: Exit) -> None:
            assert exit_.kind is ExitKind.FAULT
            seen.append((exit_.vector, exit_.error, self.engine.registers.rip - CODE))
            if exit_.vector != 1:
                self.engine.stop()

        self.engine.run(handle)
        return seen


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.engine.close()


PLACE = BASE + AT_DATA + 0x10


def test_a_store_is_told_of_behind_its_instruction(bench: Bench) -> None:
    bench.engine.break_on_data([(PLACE, 1, False)])
    assert bench.run(STORE + "9090") == [(1, 1, 8), (6, 0, 10)]
    assert bench.memory[AT_DATA + 0x10] == 1


def test_a_load_counts_only_where_loads_do(bench: Bench) -> None:
    bench.engine.break_on_data([(PLACE, 1, False), (PLACE, 4, True)])
    assert bench.run(LOAD + "90") == [(1, 2, 7), (6, 0, 8)]


def test_an_access_that_begins_before_a_place_meets_it(bench: Bench) -> None:
    bench.engine.break_on_data([(PLACE + 7, 1, True)])
    assert bench.run(LOAD_8) == [(1, 1, 8), (6, 0, 8)]
    bench.engine.break_on_data([(PLACE + 8, 1, True)])
    assert bench.run(LOAD_8) == [(6, 0, 8)]


def test_a_load_of_ss_holds_it_back_for_one_instruction(bench: Bench) -> None:
    bench.memory[AT_DATA + 0x10 : AT_DATA + 0x12] = b"\x2b\x00"
    bench.engine.break_on_data([(PLACE, 2, True)])
    assert bench.run(LOAD_SS + "9090") == [(1, 1, 8), (6, 0, 9)]


def test_what_was_forgotten_is_not_told_of(bench: Bench) -> None:
    bench.memory[AT_DATA + 0x10 : AT_DATA + 0x12] = b"\x2b\x00"
    bench.engine.break_on_data([(PLACE, 2, True)])
    seen = []

    def handle(exit_: Exit) -> None:  # of the instruction behind the load of SS
        seen.append(exit_.vector)
        bench.engine.forget_accesses()
        if len(seen) == 2:
            bench.engine.stop()
        bench.engine.registers.advance(2)

    contents = bytes.fromhex(LOAD_SS + UD2 + "90" + UD2)
    bench.memory[AT_CODE : AT_CODE + len(contents)] = contents
    bench.engine.registers.rip = CODE
    bench.engine.run(handle)
    assert seen == [6, 6]


def test_no_places_are_no_breakpoints(bench: Bench) -> None:
    bench.engine.break_on_data([(PLACE, 1, True)])
    bench.engine.break_on_data([])
    assert bench.run(STORE + LOAD) == [(6, 0, 15)]


def test_blocks_are_counted_as_without(bench: Bench) -> None:
    code = "eb00" + STORE + "eb00" + LOAD + "eb00"
    before = bench.engine.progress
    bench.run(code)
    plain = bench.engine.progress - before
    bench.engine.break_on_data([(PLACE, 1, True)])
    before = bench.engine.progress
    assert [vector for vector, _error, _rip in bench.run(code)] == [1, 1, 6]
    assert bench.engine.progress - before == plain
