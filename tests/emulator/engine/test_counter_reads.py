"""Reads of the virtual counter without an exit: the same values as with one, in the guest's kernel alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.engine.exit import Exit
from emulator.engine.unicorn import aarch64_state, counter_reads
from emulator.engine.unicorn.aarch64 import UnicornAArch64Engine
from emulator.isa.aarch64 import encoding as e
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.registers import BY_NAME
from tests.emulator.engine.aarch64_guest import Guest

COUNTER = BY_NAME["CNTVCT_EL0"].encoding
SCALE, OFFSET, SHIFT = 10, 12_345, 4
LOOP = [e.mrs(COUNTER, 5), e.mrs(COUNTER, 31), 0x8B05_00C6, 0xD100_0484, 0xB5FF_FF84]
"""mrs x5; mrs xzr; add x6, x6, x5; sub x4, x4, #1; cbnz x4, back to the beginning."""


@pytest.fixture
def engine() -> Iterator[UnicornAArch64Engine]:
    opened = UnicornAArch64Engine()
    yield opened
    opened.close()


def run(engine: UnicornAArch64Engine, words: list[int], native: bool, kernel: bool = True) -> tuple[list[int], int]:
    """Classes of the exits up to an undefined instruction, each read done in the guest's place, and the reads' sum."""
    guest = Guest(engine, [*words, 0])
    engine.allow_user(0, kernel)
    engine.answer_counter(SCALE if native else 0, OFFSET, SHIFT)
    registers = engine.registers
    registers.gpr[4] = 50

    def handler(exit_: Exit) -> bool:
        if exit_.vector == x.SYSTEM_REGISTER and exit_.error >> 5 & 31 != 31:
            registers.gpr[exit_.error >> 5 & 31] = engine.progress * SCALE + OFFSET >> SHIFT
        registers.advance()
        return exit_.vector == x.UNKNOWN

    return [seen.vector for seen in guest.run(handler)], registers.gpr[6]


def test_the_places_in_the_machine_code_are_those_that_are_confirmed() -> None:
    places = aarch64_state.GENERAL, 8 * aarch64_state.W_PC, 4 * aarch64_state.H_SYNDROME
    assert (*places, aarch64_state.IN_PLACE["PMUSERENR_EL0"]) == counter_reads.PLACES


def test_it_reads_what_it_would_read_by_an_exit(engine: UnicornAArch64Engine) -> None:
    exits, by_exits = run(engine, LOOP, native=False)
    assert exits == [x.SYSTEM_REGISTER] * 100 + [x.UNKNOWN]
    other = UnicornAArch64Engine()
    try:
        assert run(other, LOOP, native=True) == ([x.UNKNOWN], by_exits)
        assert (other.take_answered(), other.take_answered()) == (100, 0)
    finally:
        other.close()


@pytest.mark.parametrize(("name", "kernel"), [("CNTVCT_EL0", False), ("CNTPCT_EL0", True)])
def test_user_code_and_other_registers_exit(name: str, kernel: bool, engine: UnicornAArch64Engine) -> None:
    exits, _ = run(engine, [e.mrs(BY_NAME[name].encoding, 5)], native=True, kernel=kernel)
    assert exits == [x.SYSTEM_REGISTER, x.UNKNOWN]
    assert engine.take_answered() == 0
