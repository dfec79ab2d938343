"""AArch64 deprivileged: what a guest must not notice, one thing a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.encoding import BRK, HVC, NOP, SVC, mrs, msr
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.aarch64.room import BASE, CODE, DATA, KERNEL_DATA, READ_ONLY, ROOT, UNMAPPED
from paravirt.translator import Translator, Untouched
from tests.paravirt.aarch64.aarch64_tiny import KERNEL_VECTOR, OFF, USER, USER_VECTOR, Guest, load, to_user, trapping

E = {name: one.encoding for name, one in BY_NAME.items()}
LDR, STR, LDTR, STTR = 0xF940_0020, 0xF900_0020, 0xF840_0820, 0xF800_0820
EL1H = x.MASKS | x.EL1H


def test_the_kernel_sees_its_level_and_its_masks() -> None:
    gpr = Guest([mrs(E["CurrentEL"], 1), mrs(E["DAIF"], 2), mrs(E["SPSel"], 3), 0xD503_42FF, mrs(E["DAIF"], 4)]).run()
    assert gpr[1:5] == [4, 0x3C0, 1, 0x340]


@pytest.mark.parametrize(("word", "status"), [(LDTR, 0x00F), (STTR, 0x04F)])
def test_an_access_as_user_is_refused_a_kernel_page_and_a_plain_one_is_not(word: int, status: int) -> None:
    guest = Guest([*load(1, KERNEL_DATA), LDR, STR, word], translator=trapping)
    guest.run()
    assert guest.caught == (x.DATA_SAME, status, CODE + 5 * 4)
    assert guest.hypervisor.vcpu.far == KERNEL_DATA


def test_an_access_as_user_reaches_a_user_page() -> None:
    guest = Guest([*load(1, DATA), *load(0, 0x1234), STTR, *load(0, 0), LDTR, 0xAA00_03E5], translator=trapping)
    assert guest.run()[5] == 0x1234


def test_the_kernel_does_not_execute_a_page_that_only_user_code_may() -> None:
    guest = Guest([*load(1, USER), 0xD61F_0020], {USER: [NOP]})
    guest.run()
    assert guest.caught == (x.FETCH_SAME, 0x00F, USER)


def test_an_exception_return_clears_the_monitor() -> None:
    words = [*load(2, DATA), 0xC85F_7C41]  # ldxr x1, [x2]
    behind = CODE + 4 * (len(words) + 9)
    words += [*to_user(behind, EL1H), 0xC803_7C41]  # stxr w3, x1, [x2]
    assert len(words) == 14
    assert Guest(words).run()[3] == 1


def test_without_a_return_in_between_the_monitor_stays() -> None:
    assert Guest([*load(2, DATA), 0xC85F_7C41, mrs(E["TPIDR_EL1"], 5), 0xC803_7C41]).run()[3] == 0


def test_a_system_call_comes_from_behind_itself_with_its_number() -> None:
    guest = Guest(to_user(), {USER: [NOP, SVC | 0x42 << 5]})
    guest.run()
    assert guest.caught == (x.SVC, 0x42, USER + 8)
    assert guest.hypervisor.vcpu.spsr & 0xF == x.EL0T


@pytest.mark.parametrize(
    "word",
    [
        HVC,
        0xD69F_03E0,
        mrs(E["SP_EL0"], 1),
        mrs(E["DAIF"], 1),
        mrs(E["PMEVCNTR1_EL0"], 1),
        msr(E["PMCCNTR_EL0"], 1),
        msr(E["TPIDRRO_EL0"], 1),
        mrs(E["CNTVCT_EL0"], 1),
        mrs(E["CTR_EL0"], 1),
        0xD508_831F,  # tlbi vmalle1is
        0xD50B_7421,  # dc zva
    ],
)
def test_what_user_code_may_not_is_undefined_to_it(word: int) -> None:
    guest = Guest(to_user(), {USER: [NOP, word]})
    guest.run()
    assert guest.caught[0] in (x.UNKNOWN, x.SYSTEM_REGISTER)
    assert guest.caught[2] == USER + 4


def test_each_thread_register_is_one_of_its_own_at_both_levels() -> None:
    names = ("TPIDR_EL1", "TPIDR_EL0", "TPIDRRO_EL0", "SP_EL0")
    words = [word for number, name in enumerate(names) for word in (*load(9, 0x100 + number), msr(E[name], 9))]
    seen = [mrs(E[name], 20 + number) for number, name in enumerate(names)]
    user = [
        mrs(E["TPIDR_EL0"], 11),
        mrs(E["TPIDRRO_EL0"], 12),
        0x9100_03ED,
        *load(9, 0x777),
        msr(E["TPIDR_EL0"], 9),
        SVC,
    ]
    guest = Guest([*words, *to_user()], {USER: user, USER_VECTOR: [*seen, *OFF]}, trapping)
    gpr = guest.run()
    assert gpr[11:14] == [0x101, 0x102, 0x103]
    assert gpr[20:24] == [0x100, 0x777, 0x102, 0x103]


def test_one_step_of_user_code_ends_in_a_step_exception() -> None:
    words = [*load(9, 1), msr(E["MDSCR_EL1"], 9), *to_user(USER, x.SS)]
    guest = Guest(words, {USER: [NOP, NOP, SVC]})
    guest.run()
    assert guest.caught[0] == x.STEP_LOWER
    assert guest.caught[2] == USER + 4


def test_a_return_to_a_misaligned_address_and_an_illegal_one_are_refused_where_they_lead() -> None:
    guest = Guest(to_user(USER + 2))
    guest.run()
    assert (guest.caught[0], guest.caught[2]) == (x.PC_ALIGNMENT, USER + 2)
    guest = Guest(to_user(USER, 8))
    guest.run()
    assert (guest.caught[0], guest.caught[2]) == (x.ILLEGAL_STATE, USER)


def test_reading_rewritten_code_shows_the_guests_own_words() -> None:
    planted = mrs(E["TPIDR_EL0"], 6)  # a trap stands in its place
    words = [planted, 0x58FF_FFE1, *load(2, CODE), 0xF940_0044, 0xB940_0045]  # ldr x1, .-4; ldr x4, w5, [x2]
    guest = Guest(words, translator=trapping)
    gpr = guest.run()
    assert gpr[1] & 0xFFFF_FFFF == planted
    assert gpr[4] & 0xFFFF_FFFF == gpr[5] == planted
    assert guest.hypervisor.exits.counts["READ_SYSTEM_REGISTER", "trap"] >= 1


def test_code_that_the_kernel_writes_into_its_own_page_is_what_runs() -> None:
    words = [*load(2, CODE), *load(3, 0xD280_0540), 0xB900_2843, *load(5, 0)]  # str w3, [x2, #40]: at the tenth word
    words = [*words, 0xD280_0020]  # mov x0, #1, which becomes mov x0, #42
    words[10:] = [0xD280_0020]
    guest = Guest([*words, 0xAA00_03E6])
    memory = guest.machine.memory
    entry = CODE - 0x4000 + 0x2000 + (CODE >> 12 & 511) * 8
    memory.write(entry, 8, memory.read(entry, 8) & ~(3 << 6))  # writable and executable at EL1 alone
    assert guest.run()[6] == 42


@pytest.mark.parametrize(
    ("address", "word", "status"), [(UNMAPPED, LDR, 0x006), (READ_ONLY, STR, 0x04F), (UNMAPPED, STR, 0x046)]
)
def test_aborts_of_the_kernel_say_what_a_processor_says(address: int, word: int, status: int) -> None:
    guest = Guest([*load(1, address + 8), word])
    guest.run()
    assert guest.caught == (x.DATA_SAME, status, CODE + 12)
    assert guest.hypervisor.vcpu.far == address + 8


def test_a_breakpoint_is_at_itself_with_its_number() -> None:
    guest = Guest([NOP, BRK | 0x55 << 5])
    guest.run()
    assert guest.caught == (x.BREAKPOINT, 0x55, CODE + 4)


def test_address_translation_fills_par() -> None:
    words = [*load(1, DATA + 0x123), 0xD508_7801, mrs(E["PAR_EL1"], 2), *load(1, UNMAPPED), 0xD508_7801]
    gpr = Guest([*words, mrs(E["PAR_EL1"], 3)]).run()
    assert gpr[2] & 0xFFFF_FFFF_F001 == DATA
    assert gpr[3] & 0x7F == 1 | 0x06 << 1


def test_a_device_is_reached_by_every_plain_access_and_its_interrupt_comes_at_once() -> None:
    uart = 0x0900_0000
    guest = Guest(
        [
            *load(1, uart),
            *load(0, 0x301),
            0xB900_3020,  # str w0, [x1, #0x30]
            *load(0, ord("!")),
            0xB900_0020,  # str w0, [x1]
            0x3900_0020,  # strb w0, [x1]
            0xB940_1822,  # ldr w2, [x1, #0x18]
        ]
    )
    memory = guest.machine.memory
    memory.write(CODE - 0x4000, 8, CODE - 0x3000 | 3)  # the first gigabyte by the same table
    memory.write(CODE - 0x3000 + (uart >> 21) * 8, 8, uart | 0x701 | 3 << 53)
    gpr = guest.run()
    assert guest.printed == b"!!"
    assert gpr[2] == 0x90


def rewriting() -> Translator:
    return LoadTimeTranslator("inline", isa="aarch64")


@pytest.mark.parametrize("translator", [Untouched, trapping, rewriting])
def test_waiting_lets_time_pass_to_the_timers_interrupt(translator: Callable[[], Translator]) -> None:
    gic = 0x0800_0000
    words = [*load(1, gic), *load(0, 1), 0xB900_0020]  # the distributor on
    words += [*load(0, 1 << 27), 0xB901_0020, *load(1, gic + 0x1_0000), *load(0, 0xF0), 0xB900_0420]
    words += [*load(0, 1), 0xB900_0020, *load(0, 1000), msr(E["CNTV_TVAL_EL0"], 0), *load(0, 1)]
    words += [msr(E["CNTV_CTL_EL0"], 0), 0xD503_207F, mrs(E["CNTVCT_EL0"], 20), 0xD503_42FF, NOP]
    interrupt = KERNEL_VECTOR + x.IRQ
    guest = Guest(words, {interrupt: [mrs(E["DAIF"], 21), *OFF]}, translator)
    memory = guest.machine.memory
    memory.write(CODE - 0x4000, 8, CODE - 0x3000 | 3)
    memory.write(CODE - 0x3000 + (gic >> 21) * 8, 8, gic | 0x701 | 3 << 53)
    gpr = guest.run()
    assert 1000 <= gpr[20] < 2000
    quiet = guest.hypervisor.exits.counts.get(("READ_TIME_STAMP", "quiet"), 0)
    assert quiet == (translator is rewriting)
    assert gpr[21] == 0x3C0
    assert guest.hypervisor.vcpu.spsr & x.MASK_I == 0


PASSED = "access to a page of passage"
PLACE = BASE + 0xC000
"""Mapped for a moment, in the upper half."""
BOTH_HALVES = 25 | 25 << 16 | 2 << 30 | 1 << 32
FRAMES = BASE + 0xA000, BASE + 0xB000
STORE_ENTRY, STORE_OTHER, CLEAR_ENTRY = 0xF900_0045, 0xF900_0046, 0xF900_005F
FORGET_PAGE = 0xD508_87E7
"""tlbi vaale1, x7"""


def upper(register: int, address: int) -> list[int]:
    """An address of the upper half into a register."""
    return [*load(register, 0xFF80_0000_0000 | address), 0xF2E0_0000 | 0xFFFF << 5 | register]


def passing(tail: list[int], rounds: int = 100, technique: str = "") -> Guest:
    """A kernel that maps one frame and then another one at PLACE, `rounds` times over, each for a single store of what
    is left of the rounds; then `tail`."""
    words = [*upper(1, PLACE), *load(2, ROOT + 0x2000 + 0xC * 8), *load(4, rounds), *upper(7, PLACE)]
    words[-4:] = load(7, (0xFFF_FFFF_FF80_0000_0000 | PLACE) >> 12)
    words += [*load(5, FRAMES[0] | 0x703), 0xF2E0_0000 | 0x60 << 5 | 5]
    words += [*load(6, FRAMES[1] | 0x703), 0xF2E0_0000 | 0x60 << 5 | 6]
    loop = [STORE_ENTRY, FORGET_PAGE, 0xF900_0024, STORE_OTHER, FORGET_PAGE, 0xF900_0424, 0xD100_0484]
    words += [*loop, 0xB500_0004 | (-len(loop) & 0x7FFFF) << 5]
    guest = Guest([*words, *tail], translator=trapping)
    memory, context = guest.machine.memory, guest.hypervisor.vcpu.context
    memory.write(ROOT + 0x2000 + 2 * 8, 8, ROOT + 0x2000 | 0x703 | 3 << 53)
    context.tcr, context.ttbr1 = BOTH_HALVES, ROOT
    if technique:
        guest.hypervisor.choose_technique(technique)
    guest.hypervisor.translation_changed()
    return guest


@pytest.mark.parametrize("technique", ["", "lazy", "eager"])
def test_stores_into_a_page_that_is_mapped_for_a_moment_reach_the_frame_of_that_moment(technique: str) -> None:
    guest = passing([], technique=technique)
    assert guest.run()[4] == 0
    memory = guest.machine.memory
    assert [memory.read(FRAMES[0], 8), memory.read(FRAMES[1] + 8, 8)] == [1, 1]
    counts = guest.hypervisor.exits.counts
    quiet = counts.get((PASSED, "quiet"), 0)
    assert (quiet > 150) if not technique else (quiet == 0)


def test_a_page_that_was_mapped_for_a_moment_is_gone_afterwards() -> None:
    guest = passing([CLEAR_ENTRY, FORGET_PAGE, 0xF900_0024])
    guest.run()
    assert guest.caught[:2] == (x.DATA_SAME, 0x047)
    assert guest.hypervisor.vcpu.far & 0xFFFF_FFFF == PLACE


def test_code_that_is_written_through_a_page_of_a_moment_is_what_runs() -> None:
    behind = CODE + 4 * 60
    tail = [*load(8, behind), 0xD63F_0100]  # blr x8: the frame is code from now on
    tail += [*load(5, behind & ~0xFFF | 0x703), 0xF2E0_0000 | 0x60 << 5 | 5, STORE_ENTRY, FORGET_PAGE]
    tail += [*load(4, 0xD280_0543), 0xB900_0024 | (behind & 0xFFF) // 4 << 10]  # mov x3, #42, in its place
    tail += [0xD63F_0100]
    guest = passing(tail)
    guest.machine.memory.write(behind, 4, 0xD280_0023)  # mov x3, #1
    guest.machine.memory.write(behind + 4, 4, 0xD65F_03C0)  # ret
    assert guest.run()[3] == 42
