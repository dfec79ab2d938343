"""Loads and stores of a device's registers that need no exit: done in place; stores are handed up before the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.engine.aarch64 import QuietAccess
from emulator.engine.exit import Exit
from emulator.engine.unicorn import aarch64_state, quiet
from emulator.engine.unicorn.aarch64 import UnicornAArch64Engine
from emulator.engine.unicorn.kept import KEPT, MOST_ANSWERS
from emulator.engine.unicorn.quiet import ROWS
from emulator.isa.aarch64 import encoding as e
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.room import CODE, UNMAPPED
from tests.emulator.engine.aarch64_guest import Guest

LOAD, STORE, OTHER_STORE = 0xB940_0022, 0x3900_0023, 0x3900_1023
"""ldr w2, [x1]; strb w3, [x1]; strb w3, [x1, #4]."""
ADD = 0x9100_0463
"""add x3, x3, #1"""
BACK_2 = 0x17FF_FFFE
"""b .-8"""
END = 0

Event = tuple[str, int, int]


@pytest.fixture
def engine() -> Iterator[UnicornAArch64Engine]:
    opened = UnicornAArch64Engine()
    yield opened
    opened.close()


def seen(engine: UnicornAArch64Engine, words: list[int], rows: list[QuietAccess], most: int = 10**6) -> list[Event]:
    """What is handed up of some code, up to an undefined instruction: late stores (tag, byte), exits (place, class)."""
    events: list[Event] = []
    guest = Guest(engine, [*words, END])
    engine.registers.gpr[1] = UNMAPPED
    engine.hand_up_stores(lambda tag, data: events.extend(("late", tag, value) for value in data))
    engine.be_quiet(rows)

    def handler(exit_: Exit) -> bool:
        events.append(("exit", engine.registers.pc - CODE, exit_.vector))
        engine.registers.advance()
        return exit_.vector == x.UNKNOWN or len(events) >= most

    guest.run(handler)
    return events


def store(at: int, tag: int = 7, address: int = UNMAPPED) -> QuietAccess:
    return QuietAccess(CODE + at, address, 3, tag=tag)


def test_the_places_in_the_machine_code_are_those_that_are_confirmed() -> None:
    places = 8 * aarch64_state.W_PC, 8 * aarch64_state.W_FAULT_ADDRESS, 4 * aarch64_state.H_SYNDROME
    assert places == quiet.PLACES


def test_stores_are_handed_up_in_order_before_what_is_behind_them(engine: UnicornAArch64Engine) -> None:
    rows = [store(0), store(8, 9)]
    events = seen(engine, [STORE, ADD, STORE, OTHER_STORE, e.NOP], rows)
    assert events == [("late", 7, 0), ("late", 9, 1), ("exit", 12, x.DATA_LOWER), ("exit", 20, x.UNKNOWN)]


@pytest.mark.parametrize("row", [store(4), store(0, address=UNMAPPED + 1)])
def test_place_and_address_must_both_be_those_that_are_known(row: QuietAccess, engine: UnicornAArch64Engine) -> None:
    assert seen(engine, [STORE], [row])[0] == ("exit", 0, x.DATA_LOWER)


def test_a_load_is_answered_until_the_guest_seems_to_wait(engine: UnicornAArch64Engine) -> None:
    rows = [QuietAccess(CODE + 4, UNMAPPED, 2, 0x90)]
    events = seen(engine, [ADD, LOAD, BACK_2], rows, most=1)
    assert events == [("exit", 4, x.DATA_LOWER)]
    assert (engine.registers.gpr[2], engine.registers.gpr[3]) == (0x90, MOST_ANSWERS + 1)


def test_a_store_shows_that_nobody_waits(engine: UnicornAArch64Engine) -> None:
    rows = [QuietAccess(CODE + 4, UNMAPPED, 2, 0x90), store(8)]
    loop = [ADD, LOAD, STORE, 0xF10F_A07F, 0x54FF_FF81]  # cmp x3, #1000; b.ne the first
    events = seen(engine, loop, rows)
    assert events == [("late", 7, number & 0xFF) for number in range(1, 1001)] + [("exit", 20, x.UNKNOWN)]


def test_nothing_is_lost_when_more_is_written_than_is_kept(engine: UnicornAArch64Engine) -> None:
    loop = [ADD, STORE, 0xF120_047F, 0x54FF_FFA1]  # cmp x3, #2049; b.ne
    values: list[int] = []
    exits = 0
    for kind, place, value in seen(engine, loop, [store(4)]):
        if kind == "late":
            values.append(value)
        elif place == 4:
            exits += 1
            values.append(len(values) + 1 & 0xFF)  # the one that does exit
    assert values == [number & 0xFF for number in range(1, 2050)]
    assert exits == 2049 // (KEPT + 1)


def test_what_is_taken_back_exits(engine: UnicornAArch64Engine) -> None:
    events: list[int] = []
    guest = Guest(engine, [STORE, e.SVC, STORE, END])
    engine.registers.gpr[1] = UNMAPPED
    engine.hand_up_stores(lambda _tag, data: events.extend(-1 - value for value in data))
    engine.be_quiet([store(0), store(8)])

    def handler(exit_: Exit) -> bool:
        events.append(exit_.vector)
        engine.be_quiet(())
        return exit_.vector != x.SVC

    guest.run(handler)
    assert events == [-1, x.SVC, x.DATA_LOWER]


def test_an_exception_of_another_kind_at_a_known_place_exits(engine: UnicornAArch64Engine) -> None:
    """The faulting address is of the last abort: an undefined instruction that stands there now is none."""
    guest = Guest(engine, [STORE, e.NOP, e.NOP, END])
    engine.registers.gpr[1] = UNMAPPED
    engine.be_quiet([])
    guest.run(lambda _exit: True)
    engine.be_quiet([QuietAccess(CODE + 12, UNMAPPED, 3, tag=1)])
    engine.registers.pc = CODE + 4
    [*_, last] = guest.run(lambda _exit: True)
    assert (last.vector, last.at) == (x.UNKNOWN, 12)


def test_of_too_many_the_first_are_taken(engine: UnicornAArch64Engine) -> None:
    rows = [store(4 * number, number) for number in range(ROWS + 2)]
    events = seen(engine, [STORE] * (ROWS + 2), rows)
    assert [kind for kind, *_ in events] == ["late"] * ROWS + ["exit"] * 3
