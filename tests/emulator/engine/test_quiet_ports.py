"""Port accesses that need no handler: writes kept for later, reads answered, as long as ports are open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn.engine import UnicornEngine
from emulator.engine.unicorn.kept import KEPT, MOST_ANSWERS
from emulator.isa.x86 import registers as r
from tests.emulator.engine.bare_engine import BareGuest

OUT, OUT_WORD, OUT_OTHER, IN = "e680", "66e780", "e670", "e481"
WRITE_80, ANSWER_81 = 0x80, 0x81
TRAP = "0f0b"


@pytest.fixture
def engine() -> Iterator[UnicornEngine]:
    opened = UnicornEngine()
    yield opened
    opened.close()


def seen(engine: UnicornEngine, code: str, **registers: int) -> list[tuple[ExitKind, int, int, bool]]:
    """The exits of some code, up to an undefined instruction: kind, port, value, and whether it came late."""
    found: list[tuple[ExitKind, int, int, bool]] = []
    guest = BareGuest(engine, code + TRAP)
    for name, value in registers.items():
        engine.registers.gpr[r.GPR_NAMES.index(name)] = value

    def handler(exit_: Exit) -> None:
        port = exit_.kind in (ExitKind.PORT_READ, ExitKind.PORT_WRITE)
        found.append((exit_.kind, exit_.port if port else 0, exit_.value if port else 0, exit_.late))
        if exit_.kind is ExitKind.PORT_READ:
            exit_.value = 0x99
        if not port:
            engine.stop()

    del guest.exits[:]
    engine.run(handler)
    assert found.pop()[0] is ExitKind.FAULT
    return found


def test_kept_writes_come_in_order_before_what_is_behind_them(engine: UnicornEngine) -> None:
    engine.post_port(WRITE_80, True)
    found = seen(engine, f"b041 {OUT} b042 {OUT} b043 {OUT_OTHER} b044 {OUT}")
    late, now = (ExitKind.PORT_WRITE, WRITE_80), (ExitKind.PORT_WRITE, 0x70)
    assert found == [(*late, 0x41, True), (*late, 0x42, True), (*now, 0x43, False), (*late, 0x44, True)]


def test_only_bytes_are_kept(engine: UnicornEngine) -> None:
    engine.post_port(WRITE_80, True)
    assert [late for *_, late in seen(engine, OUT_WORD + OUT)] == [False, True]


def test_a_port_is_no_longer_posted_when_it_is_taken_back(engine: UnicornEngine) -> None:
    engine.post_port(WRITE_80, True)
    engine.post_port(WRITE_80, False)
    assert [late for *_, late in seen(engine, OUT)] == [False]


def test_nothing_is_lost_when_more_is_written_than_is_kept(engine: UnicornEngine) -> None:
    engine.post_port(WRITE_80, True)
    found = seen(engine, "88c8 e680 ffc1 81f900090000 75f2")  # mov al, cl; out; inc ecx; cmp ecx, 900H; jne
    assert [value & 0xFF for _, _, value, _ in found] == [count & 0xFF for count in range(0x900)]
    assert [index for index, (*_, late) in enumerate(found) if not late] == [KEPT, 2 * KEPT + 1]


def test_ports_that_are_not_open_are_neither_kept_nor_answered(engine: UnicornEngine) -> None:
    engine.post_port(WRITE_80, True)
    engine.answer_port(ANSWER_81, 0x60, WRITE_80)
    guest = BareGuest(engine, OUT + IN + TRAP)
    engine.open_ports(False)
    kinds = [(exit_.kind, exit_.port) for exit_ in guest.run()]
    assert (ExitKind.PORT_WRITE, WRITE_80) in kinds
    assert (ExitKind.PORT_READ, ANSWER_81) in kinds


def test_a_read_is_answered_until_the_guest_seems_to_wait(engine: UnicornEngine) -> None:
    engine.post_port(WRITE_80, True)
    engine.answer_port(ANSWER_81, 0x60, WRITE_80)
    found = seen(engine, IN * (MOST_ANSWERS + 2) + OUT + IN)
    read, late = (ExitKind.PORT_READ, ANSWER_81, 0, False), (ExitKind.PORT_WRITE, WRITE_80, 0x99, True)
    assert found == [read, read, late]
    assert engine.registers.gpr[r.RAX] & 0xFF == 0x60


def test_an_answer_that_is_taken_back_is_asked_for(engine: UnicornEngine) -> None:
    engine.answer_port(ANSWER_81, 0x60, WRITE_80)
    engine.answer_port(ANSWER_81, -1, WRITE_80)
    assert seen(engine, IN) == [(ExitKind.PORT_READ, ANSWER_81, 0, False)]
    assert engine.registers.gpr[r.RAX] & 0xFF == 0x99
