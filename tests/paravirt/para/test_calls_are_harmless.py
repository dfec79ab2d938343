"""Whatever a para-virtual guest asks for, it gets an answer and the hypervisor stays as it was."""

from __future__ import annotations

import struct
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt.image import load
from bt.session import Options, Session
from emulator.isa.exceptions import ProcessorShutdown
from emulator.machine import Limits
from paravirt.abi.calls import MOST_BYTES, MOST_ELEMENTS, Call, Status
from paravirt.abi.guests import CONVENTIONS, FPU_OFFSET, TAIL, Trap
from paravirt.para.guest import ParaGuest
from tests.paravirt.para.para_tiny import FORMS, assemble, file_of

SAMPLES = Path(__file__).parents[3] / "samples"
PORTS = {row["isa"]: row for row in tomllib.loads((SAMPLES / "portable/manifest.toml").read_text())["para"]}
WORST = max(Status)


def ended(isa: str) -> Session:
    """The sample's port of an instruction set after its first check: a kernel with tables, handlers and a stack."""
    options = Options(mode="para", memory=64 << 20, command_line="only=numbers", limits=Limits(host_seconds=60))
    session = Session(load(SAMPLES / "portable" / PORTS[isa]["file"]), options, lambda _data: None)
    assert session.run().clean
    return session


@pytest.fixture(scope="module", params=list(PORTS))
def victim(request: pytest.FixtureRequest) -> Iterator[ParaGuest]:
    """One that random calls may change."""
    session = ended(request.param)
    assert isinstance(session.driver, ParaGuest)
    yield session.driver
    session.close()


@pytest.fixture(scope="module", params=list(PORTS))
def guest(request: pytest.FixtureRequest) -> Iterator[ParaGuest]:
    session = ended(request.param)
    assert isinstance(session.driver, ParaGuest)
    yield session.driver
    session.close()


def own_memory(driver: ParaGuest) -> list[bytes]:
    """What belongs to the hypervisor: the window but the shared page."""
    window = bytes(driver.code.window_bytes())
    shared = driver.WINDOW.shared_page - driver.WINDOW.base
    return [window[:shared], window[shared + 4096 :]]


def signed(result: int, word: int) -> int:
    return result - (1 << 8 * word) if result >> 8 * word - 1 else result


def interesting(driver: ParaGuest) -> st.SearchStrategy[int]:
    """Words that mean something to a guest or nearly do, and any."""
    window, memory = driver.WINDOW, driver.machine.memory
    near = [0, 1, 4095, 4096, window.base, window.shared_page, window.end, window.last_address, memory.base, memory.end]
    near += [driver.kernel_stack - 64, driver.kernel_stack, driver.traps[0], driver.vcpu.pc, MOST_BYTES, MOST_ELEMENTS]
    known = st.sampled_from([value & window.last_address for value in near])
    moved = st.builds(lambda at, by: at + by & window.last_address, known, st.integers(-8, 8))
    return st.one_of(known, moved, st.integers(0, 64), st.integers(0, window.last_address))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_calls_are_answered_and_harm_nothing(victim: ParaGuest, data: st.DataObject) -> None:
    words = interesting(victim)
    number = data.draw(st.one_of(st.sampled_from(list(Call)), st.integers(0, 1 << 32)))
    arguments = tuple(data.draw(st.tuples(words, words, words, words)))
    before = own_memory(victim)
    try:
        result = victim.call(number, arguments)
    except ProcessorShutdown:  # RETURN to what cannot go on is the guest's own end
        assert number == Call.RETURN
        result = None
    assert result is None or result >= -WORST
    if number not in list(Call):
        assert result == -Status.UNKNOWN_CALL
    assert own_memory(victim) == before
    assert victim.code.intact()


def test_pointers_to_nothing_to_the_window_and_across_the_end_are_refused(guest: ParaGuest) -> None:
    window = guest.WINDOW
    for pointer in (window.base, window.shared_page, window.last_address - 3):
        for call in (Call.CONSOLE_WRITE, Call.CONSOLE_READ, Call.MULTICALL, Call.PTE_UPDATE, Call.PTE_READ):
            assert guest.call(call, (pointer, 8, 0, 0)) == -Status.BAD_ADDRESS, call
        assert guest.call(Call.TIME, (pointer, 0, 0, 0)) == -Status.BAD_ADDRESS
        assert guest.call(Call.RETURN, (pointer, 0, 0, 0)) in (-Status.BAD_ADDRESS, -Status.INVALID)


def test_too_much_is_refused_before_anything_is_read(guest: ParaGuest) -> None:
    for call, most in (
        (Call.CONSOLE_WRITE, MOST_BYTES),
        (Call.CONSOLE_READ, MOST_BYTES),
        (Call.MULTICALL, MOST_ELEMENTS),
        (Call.PTE_UPDATE, MOST_ELEMENTS),
        (Call.PTE_READ, MOST_ELEMENTS),
        (Call.SET_TRAP_TABLE, len(Trap)),
    ):
        assert guest.call(call, (0, most + 1, 0, 0)) == -Status.TOO_MUCH


def test_entries_outside_of_the_guests_memory_are_not_stored(guest: ParaGuest) -> None:
    memory = guest.machine.memory
    at = stack_room(guest)
    for pointer in (memory.end, memory.end + 8, guest.LAYOUT.window, guest.LAYOUT.tables, guest.LAYOUT.code):
        guest._poke(at, struct.pack("<QQ", pointer, 3))
        assert guest.call(Call.PTE_UPDATE, (at, 1, 0, 0)) == -Status.BAD_ADDRESS


def stack_room(driver: ParaGuest) -> int:
    """Memory of the kernel's that nothing else needs now: the bottom of its stack for entries from user code."""
    return driver.kernel_stack - 8192


def element(driver: ParaGuest, number: int, *arguments: int) -> bytes:
    filled = [number, 0x5A, *arguments, *[0] * (4 - len(arguments))]
    return struct.pack("<6" + ("Q" if driver.CONVENTION.word == 8 else "I"), *filled)


def test_a_multicall_stores_every_result_and_goes_on_behind_a_failure(guest: ParaGuest) -> None:
    word, at = guest.CONVENTION.word, stack_room(guest)
    numbers = [Call.VERSION, 4711, Call.MULTICALL, Call.RETURN, Call.EVENT_SEND, Call.YIELD]
    guest._poke(at, b"".join(element(guest, number) for number in numbers))
    assert guest.call(Call.MULTICALL, (at, len(numbers), 0, 0)) == len(numbers)
    stored = guest._peek(at, 6 * word * len(numbers))
    results = [
        signed(int.from_bytes(stored[(6 * n + 1) * word : (6 * n + 2) * word], "little"), word)
        for n in range(len(numbers))
    ]
    invalid = -Status.INVALID
    assert results == [guest.call(Call.VERSION, ()), -Status.UNKNOWN_CALL, invalid, invalid, invalid, 0]


def floating_point(driver: Any) -> bool:
    """Whether the real processor lets user code have floating point."""
    isa = driver.CONVENTION.isa
    if isa in ("x86-64", "i386"):
        return not driver.engine.registers.control(0) & 8
    if isa == "armv7":
        return bool(driver.vcpu.fpexc)
    if isa == "aarch64":
        return bool(driver.vcpu.cpacr)
    return bool(driver.vcpu.status & 1 << 29)


def frame_in(driver: ParaGuest, state: int) -> int:
    """A frame that goes on where the guest is, in the kernel or in user code."""
    convention, at = driver.CONVENTION, stack_room(driver)
    words = [0] * len(convention.frame) + [driver.vcpu.pc, 0, state, *[0] * (len(TAIL) - 3)]
    driver._poke(at, driver._frame.pack(*words))
    return at


def test_floating_point_follows_its_word_at_the_next_return_and_not_before(guest: ParaGuest) -> None:
    word = FPU_OFFSET // guest.CONVENTION.word
    for enabled in (True, False, True, False):
        before = floating_point(guest)
        guest.shared[word] = int(enabled)
        assert floating_point(guest) == before
        assert guest.call(Call.RETURN, (frame_in(guest, 0),)) is None
        assert floating_point(guest) == enabled


HOSTILE = {
    "x86-64": "mov rsp, 0x1008000; mov r11, {CALL}; mov ecx, 300; mov ebx, 0x9e3779b9; again: push rcx; mov rax, rbx;"
    "shr rax, 27; and eax, 31; cmp eax, {SHUTDOWN}; je skip; cmp eax, {BLOCK}; je skip; cmp eax, {RETURN}; je skip;"
    "cmp eax, {NEW_BASE}; je skip; mov rdi, rbx; mov rsi, rbx; and esi, 0xfff; mov rdx, rbx; mov r10, rbx; call r11;"
    "skip: pop rcx; imul rbx, rbx, 0x5851f42d; add rbx, 0x14057b7; dec ecx; jnz again; mov eax, {SHUTDOWN};"
    "xor edi, edi; call r11",
    "aarch64": "ldr x20, ={CALL}; mov x21, #300; ldr x22, =0x9e3779b97f4a7c15; again: lsr x8, x22, #59;"
    "cmp x8, #{SHUTDOWN}; b.eq skip; cmp x8, #{BLOCK}; b.eq skip; cmp x8, #{RETURN}; b.eq skip;"
    "cmp x8, #{NEW_BASE}; b.eq skip; mov x0, x22;"
    "and x1, x22, #0xfff; mov x2, x22; mov x3, x22; blr x20; skip: ldr x0, =6364136223846793005; mul x22, x22, x0;"
    "add x22, x22, #1365; subs x21, x21, #1; b.ne again; mov x8, #{SHUTDOWN}; mov x0, #0; blr x20; here: b here",
}


@pytest.mark.parametrize("isa", HOSTILE)
def test_three_hundred_wild_calls_by_the_guest_itself_end_in_its_own_shutdown(isa: str, tmp_path: Path) -> None:
    path = file_of(isa, assemble(isa, HOSTILE[isa]), tmp_path)
    options = Options(mode="para", memory=64 << 20, cache=False, limits=Limits(host_seconds=60))
    session = Session(load(path), options, lambda _data: None)
    try:
        outcome = session.run()
        assert (outcome.clean, outcome.status) == (True, 0), outcome
        assert isinstance(session.driver, ParaGuest)
        counts = session.driver.exits.counts
        assert sum(count for (_, route), count in counts.items() if route == "call") > 200
        assert session.driver.code.intact()
    finally:
        session.close()


def test_every_instruction_set_has_a_tiny_guest_and_a_port() -> None:
    assert set(FORMS) == set(PORTS) == set(CONVENTIONS)
