"""Stops at an exact progress, and observers: none of them changes what the guest does, or when."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.engine.exit import ExitKind
from emulator.engine.pausing import Progress
from emulator.engine.unicorn.engine import UnicornEngine
from emulator.isa.x86.room import CODE
from emulator.machine import EndKind, Outcome
from tests.emulator.engine.bare_engine import BareGuest
from tests.emulator.guest_image import DATA, HALT, KERNEL, USER_TABLE
from tests.paravirt.tiny_guest import TinyGuest

ALIAS = 0x20_0000
LOOP = "48c7c1e8030000 48ff042500000700 48890c2508002000 48ffc9 75eb" + HALT
"""A thousand rounds: inc qword [DATA]; mov [ALIAS + 8], rcx, which is DATA + 8."""
STORE_AT = KERNEL + 15
PAUSED = Outcome(EndKind.STOPPED, detail="paused")


@pytest.fixture
def guest() -> Iterator[TinyGuest]:
    made = TinyGuest(LOOP)
    made.tables.map(ALIAS, DATA | USER_TABLE)
    yield made
    made.close()


def plain() -> tuple[int, bytes]:
    made = TinyGuest(LOOP)
    made.tables.map(ALIAS, DATA | USER_TABLE)
    made.run()
    end = made.machine.engine.progress, bytes(made.memory[DATA : DATA + 16])
    made.close()
    return end


END = plain()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 300), max_size=20))
def test_a_run_that_is_stopped_anywhere_is_the_same_run(steps: list[int]) -> None:
    made = TinyGuest(LOOP)
    made.tables.map(ALIAS, DATA | USER_TABLE)
    engine, driver = made.machine.engine, made.hypervisor
    made.machine.begin()
    made.machine.arm()
    for step in steps:
        wanted = engine.progress_state.done + step
        engine.pause_at(wanted, lambda: driver.end(PAUSED))
        if driver.resume() is not PAUSED:
            break
        assert engine.progress_state.done == engine.progress == wanted
    else:
        driver.resume()
    assert (engine.progress, bytes(made.memory[DATA : DATA + 16])) == END
    made.close()


def test_a_pause_may_ask_for_the_next_without_an_end(guest: TinyGuest) -> None:
    engine = guest.machine.engine
    seen: list[int] = []

    def paused() -> None:
        seen.append(engine.progress)
        if len(seen) < 5:
            engine.pause_at(engine.progress + 7, paused)

    engine.pause_at(100, paused)
    guest.run()
    assert seen == [100, 107, 114, 121, 128]
    assert engine.progress == END[0]


def test_changes_are_seen_at_the_next_block_whoever_stored(guest: TinyGuest) -> None:
    engine = guest.machine.engine
    seen: list[int] = []
    number = engine.observe_change(guest.memory[DATA + 8 : DATA + 16], lambda: seen.append(guest.words[DATA + 8 >> 3]))
    guest.run()
    engine.unobserve(number)
    assert seen == list(range(1000, 0, -1)), "by an alias of the page"
    assert engine.progress == END[0]


def test_an_instruction_is_seen_before_it_is_done_and_can_be_kept_from_it(guest: TinyGuest) -> None:
    engine = guest.machine.engine
    values: list[int] = []

    def seen(address: int) -> None:
        assert address == STORE_AT
        values.append(guest.words[DATA >> 3])
        if len(values) == 10:
            guest.hypervisor.end(PAUSED)

    number = engine.observe_code(STORE_AT, STORE_AT, seen)
    assert guest.run() is PAUSED
    assert guest.vcpu.rip == STORE_AT
    assert guest.words[DATA + 8 >> 3] == 1000 - guest.words[DATA >> 3] + 2
    engine.unobserve(number)
    assert guest.hypervisor.resume().kind is EndKind.HALTED
    assert len(values) == 10
    assert bytes(guest.memory[DATA : DATA + 16]) == END[1]


def test_taking_an_observer_away_leaves_no_fault_behind() -> None:
    engine = UnicornEngine()
    far, absent = 0xB000, 0xC000
    code = "e9fb2f0000" + "488b042500c00000"  # jmp far ; mov rax, [absent]
    bare = BareGuest(engine, code)
    bare.memory[far : far + 2] = b"\x0f\x0b"
    bare.page(absent >> 12, 0)
    number = engine.observe_code(0, (1 << 64) - 1, lambda _: None)
    assert bare.run()[0].vector == 6
    bare.page(far >> 12, 0)  # what was observed there is looked up in vain
    engine.flush_tlb()
    engine.unobserve(number)
    engine.registers.rip = CODE + 5
    (seen,) = bare.run()
    assert (seen.kind, seen.vector, seen.address) == (ExitKind.FAULT, 14, absent), "no double fault"
    bare.close()


def test_an_observer_that_raises_ends_the_run_with_that(guest: TinyGuest) -> None:
    def bad(_address: int) -> None:
        raise KeyError("mine")

    guest.machine.engine.observe_code(STORE_AT, STORE_AT, bad)
    with pytest.raises(KeyError, match="mine"):
        guest.run()


def test_more_than_a_word_cannot_be_looked_at(guest: TinyGuest) -> None:
    with pytest.raises(ValueError, match="9 bytes"):
        guest.machine.engine.observe_change(guest.memory[:9], lambda: None)


def test_progress_can_be_set() -> None:
    engine = UnicornEngine()
    engine.set_progress(Progress(10**9, 10**9 + 5))
    assert engine.progress == 10**9
    assert engine.progress_state == Progress(10**9, 10**9 + 5)
    engine.pause_at(10**9 + 2)
    assert engine.progress_state == Progress(10**9, 10**9 + 5)
    engine.close()


def image() -> bytes:
    """A state as FXSAVE stores it, with something everywhere."""
    made = bytearray(512)
    fields = (0x37F, 0x2800, 0xB5, 0x123, 0x1111_2222_3333_4444, 0x5555_6666_7777_8888, 0x1F80, 0xFFFF)
    struct.pack_into("<HHBxHQQII", made, 0, *fields)
    for place in range(8):
        made[32 + 16 * place : 42 + 16 * place] = os.urandom(10)
    made[160:416] = os.urandom(256)
    return bytes(made)


def test_floating_point_state_goes_out_and_in() -> None:
    engine, state = UnicornEngine(), image()
    engine.set_floating(state)
    assert engine.floating() == state
    with pytest.raises(ValueError, match="511 bytes"):
        engine.set_floating(state[:-1])
    engine.close()


@pytest.mark.kvm
def test_floating_point_state_goes_from_one_engine_to_the_other() -> None:
    from emulator.engine.kvm.engine import KvmEngine
    from emulator.errors import EngineMissing

    try:
        other = KvmEngine()
    except EngineMissing as error:
        pytest.skip(str(error))
    state = image()
    other.set_floating(state)
    assert other.floating() == state
    other.close()
