"""RDTSC answered by native code: the same value as a handler would give, without an exit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn.engine import UnicornEngine
from emulator.isa.x86 import registers as r
from tests.emulator.engine.bare_engine import BareGuest

# eb00 (jmp +0) ends a block; rdtsc; mov r8, rax; mov r9, rdx; ud2
CODE = "eb00 eb00 0f31 4989c0 4989d1 0f0b"


@pytest.fixture
def engine() -> Iterator[UnicornEngine]:
    opened = UnicornEngine()
    yield opened
    opened.close()


def kinds(engine: UnicornEngine, deadline: int | None = None) -> tuple[list[ExitKind], int]:
    """Kinds of the exits of CODE up to its last instruction, and the progress there."""
    found: list[ExitKind] = []
    BareGuest(engine, CODE)
    if deadline is not None:
        engine.set_deadline(engine.progress + deadline)

    def handler(exit_: Exit) -> None:
        found.append(ExitKind(exit_.kind))
        if exit_.kind is ExitKind.BUDGET:
            engine.set_deadline(engine.progress + 1000)
        elif exit_.kind is ExitKind.FAULT:
            engine.stop()

    engine.run(handler)
    return found, engine.progress


@pytest.mark.parametrize("deadline", [None, 1, 2, 100])
def test_an_answer_is_progress_scaled_whatever_the_deadline(engine: UnicornEngine, deadline: int | None) -> None:
    offset = 0x1_2345_6789
    engine.answer_time_stamp(10, offset)
    found, progress = kinds(engine, deadline)
    assert ExitKind.TIME_STAMP not in found
    gpr = engine.registers.gpr
    assert gpr[8] | gpr[9] << 32 == progress * 10 + offset
    assert gpr[8] < 1 << 32
    assert gpr[r.RDX] == gpr[9]
    assert engine.time_stamps_answered == 1


def test_a_scale_of_zero_hands_the_instruction_up_again(engine: UnicornEngine) -> None:
    engine.answer_time_stamp(10, 0)
    engine.answer_time_stamp(0, 0)
    assert ExitKind.TIME_STAMP in kinds(engine)[0]
    assert engine.time_stamps_answered == 0
