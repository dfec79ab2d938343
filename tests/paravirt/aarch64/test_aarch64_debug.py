"""AArch64's debug exceptions in a deprivileged guest: breakpoints and steps, trapped and with fixups."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.encoding import NOP, SVC, mrs, msr
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.aarch64.room import CODE, DATA
from paravirt.translator import Translator
from tests.paravirt.aarch64.aarch64_tiny import KERNEL_VECTOR, OFF, USER, USER_VECTOR, Guest, load, to_user, trapping

E = {name: one.encoding for name, one in BY_NAME.items()}
MDE, KDE = 1 << 15, 1 << 13
EL1, EL0 = 1 << 1, 2 << 1
ON = 1 | 0xF << 5
EVENT = 0x22
UNMASK = 0xD503_48FF
"""msr daifclr, #8: debug exceptions."""


def inlining() -> Translator:
    return LoadTimeTranslator("inline", isa="aarch64")


WAYS = pytest.mark.parametrize("translator", [trapping, inlining])
Make = Callable[[], Translator]


def put(name: str, value: int) -> list[int]:
    return [*load(9, value), msr(E[name], 9)]


def breakpoint_at(address: int, control: int, mdscr: int = MDE | KDE, number: int = 0) -> list[int]:
    return [
        *put(f"DBGBVR{number}_EL1", address),
        *put(f"DBGBCR{number}_EL1", control),
        *put("MDSCR_EL1", mdscr),
    ]


@WAYS
@pytest.mark.parametrize("number", [0, 5])
def test_a_breakpoint_of_user_code_fires_before_its_instruction(translator: Make, number: int) -> None:
    words = [*breakpoint_at(USER + 8, ON | EL0, MDE, number), *to_user()]
    guest = Guest(words, {USER: [NOP, *load(3, 7), SVC]}, translator)
    gpr = guest.run()
    assert guest.caught == (x.BREAKPOINT_LOWER, EVENT, USER + 8)
    assert gpr[3] == 7  # movz is done, movk is not, and would not change it
    assert guest.hypervisor.vcpu.spsr & 0xF == x.EL0T


@WAYS
def test_a_breakpoint_of_the_kernel_fires_with_debug_exceptions_unmasked(translator: Make) -> None:
    words = [*breakpoint_at(CODE + 4 * 15, ON | EL1), UNMASK, *load(5, 1), *load(6, 2)]
    guest = Guest(words, translator=translator)
    at = CODE + 4 * 15
    gpr = guest.run()
    assert guest.caught == (x.BREAKPOINT_SAME, EVENT, at)
    assert (gpr[5], gpr[6]) == (1, 0)
    assert guest.hypervisor.vcpu.spsr & x.MASK_D == 0


@pytest.mark.parametrize(
    "words",
    [
        breakpoint_at(USER + 4, EL0 | ON & ~1, MDE),
        breakpoint_at(USER + 4, ON | EL1, MDE),
        breakpoint_at(USER + 4, ON | EL0, KDE),
        breakpoint_at(USER + 8, ON | EL0, MDE),
        [*breakpoint_at(USER + 4, ON | EL0, MDE), *put("OSLAR_EL1", 1)],
        [*breakpoint_at(USER + 4, ON | EL0, MDE), *put("DBGBCR0_EL1", 0)],
    ],
    ids=["disabled", "of EL1", "without MDE", "behind", "locked", "taken back"],
)
def test_a_breakpoint_that_is_not_enabled_there_does_not_fire(words: list[int]) -> None:
    guest = Guest([*words, *to_user()], {USER: [NOP, SVC]}, trapping)
    guest.run()
    assert guest.caught[0] == x.SVC


@pytest.mark.parametrize("words", [breakpoint_at(CODE + 4 * 14, ON | EL1), breakpoint_at(CODE + 4 * 14, ON | EL1, MDE)])
def test_a_breakpoint_of_the_kernel_does_not_fire_where_it_is_masked(words: list[int]) -> None:
    masked = words == breakpoint_at(CODE + 4 * 14, ON | EL1)
    guest = Guest([*words, NOP if masked else UNMASK, NOP, *load(5, 1)], translator=trapping)
    assert guest.run()[5] == 1
    assert guest.caught[0] != x.BREAKPOINT_SAME


def test_a_handler_steps_over_a_breakpoint_as_linux_does() -> None:
    """The breakpoint is taken back and a step is asked for; the step's exception sets it again, until the loop ends."""
    loop = [0xD100_0442, 0xB5FF_FFE2, SVC]  # sub x2, x2, #1; cbnz x2, loop
    handler = [
        mrs(E["ESR_EL1"], 10),
        0xD35A_FD4A,  # lsr x10, x10, #26
        0xF100_C15F,  # cmp x10, #30H: a breakpoint
        0x5400_0140,  # b.eq hit
        0xF100_C95F,  # cmp x10, #32H: a step
        0x5400_01E0,  # b.eq stepped
        *OFF,
        NOP,
        # hit: x20 counts; DBGBCR0 = 0, a step of user code
        0x9100_0694,
    ]
    del handler[-2]
    hit = [0xD280_0009, msr(E["DBGBCR0_EL1"], 9), *put("MDSCR_EL1", MDE | 1), *put("SPSR_EL1", x.SS), 0xD69F_03E0]
    stepped = [*put("DBGBCR0_EL1", ON | EL0), *put("MDSCR_EL1", MDE), *put("SPSR_EL1", 0), 0xD69F_03E0]
    at_hit = handler.index(0x9100_0694)
    handler += hit
    at_stepped = len(handler)
    handler += stepped
    handler[3] = 0x5400_0000 | (at_hit - 3) << 5
    handler[5] = 0x5400_0000 | (at_stepped - 5) << 5
    words = [*load(2, 5), *breakpoint_at(USER, ON | EL0, MDE), *to_user()]
    guest = Guest(words, {USER: loop, USER_VECTOR: handler}, trapping)
    gpr = guest.run()
    assert guest.caught[0] == x.SVC
    assert (gpr[2], gpr[20]) == (0, 5)


@pytest.mark.parametrize("word", [NOP, mrs(E["DAIF"], 3)], ids=["plain", "with a fixup"])
@WAYS
def test_a_step_of_the_kernel_ends_behind_one_instruction(word: int, translator: Make) -> None:
    behind = CODE + 4 * (4 + 4 + 4 + 1)
    words = [*put("MDSCR_EL1", KDE | 1), *put("ELR_EL1", behind), *put("SPSR_EL1", x.SS | x.EL1H), 0xD69F_03E0]
    guest = Guest([*words, word, *load(5, 1)], translator=translator)
    assert guest.run()[5] == 0
    assert (guest.caught[0], guest.caught[2]) == (x.STEP_SAME, behind + 4)


def test_the_vector_of_a_kernels_breakpoint_is_its_own_levels() -> None:
    words = [*breakpoint_at(CODE + 4 * 13, ON | EL1), UNMASK, NOP]
    guest = Guest(words, {KERNEL_VECTOR: [*load(7, 0x77), *OFF]}, trapping)
    assert guest.run()[7] == 0x77


STORE, LOAD, STORE_BYTE, STORE_EXCLUSIVE = 0xF900_0020, 0xF940_0020, 0x3900_0020, 0xC803_7C20  # x0 at [x1]
LOADS, STORES = 1 << 3, 2 << 3
BYTES = 0xFF << 5


def watchpoint_at(address: int, control: int, mdscr: int = MDE | KDE, number: int = 0) -> list[int]:
    return [
        *put(f"DBGWVR{number}_EL1", address),
        *put(f"DBGWCR{number}_EL1", control | 1),
        *put("MDSCR_EL1", mdscr),
    ]


@WAYS
@pytest.mark.parametrize(("word", "write"), [(STORE, 1), (LOAD, 0), (STORE_BYTE, 1)])
def test_a_watchpoint_of_user_code_fires_before_the_access(translator: Make, word: int, write: int) -> None:
    words = [*load(0, 0x55), *load(1, DATA + 16), STORE, LOAD, *load(0, 0x99)]
    words += [*watchpoint_at(DATA + 16, BYTES | LOADS | STORES | EL0, number=3), *to_user()]
    guest = Guest(words, {USER: [NOP, word, SVC]}, translator)
    guest.run()
    assert guest.caught == (x.WATCHPOINT_LOWER, EVENT | write << 6, USER + 4)
    assert guest.hypervisor.vcpu.far == DATA + 16
    assert guest.machine.memory.read(DATA + 16, 8) == 0x55


@WAYS
def test_a_watchpoint_of_the_kernel_fires_with_debug_exceptions_unmasked(translator: Make) -> None:
    words = [*load(1, DATA), STORE, *watchpoint_at(DATA, BYTES | STORES | EL1), LOAD, STORE, UNMASK, LOAD, STORE, NOP]
    guest = Guest(words, translator=translator)
    guest.run()
    assert guest.caught == (x.WATCHPOINT_SAME, EVENT | 1 << 6, CODE + 4 * (len(words) - 2))


@pytest.mark.parametrize(
    ("control", "word", "at"),
    [
        (BYTES | LOADS | EL0, STORE, 0),
        (BYTES | STORES | EL0, LOAD, 0),
        (BYTES | STORES | EL1, STORE, 0),
        (BYTES | STORES | EL0, STORE, 8),
        (0xF0 << 5 | STORES | EL0, STORE_BYTE, 3),
        (BYTES | STORES | EL0, STORE_EXCLUSIVE, 64),
    ],
    ids=["load", "store", "EL1", "behind", "other bytes", "undecoded"],
)
def test_other_accesses_to_a_watched_page_are_done_as_ever(control: int, word: int, at: int) -> None:
    words = [*load(0, 0x77), *load(1, DATA + at), *watchpoint_at(DATA, control), *to_user()]
    before = [0xC85F_7C22] if word == STORE_EXCLUSIVE else []  # ldxr x2, [x1]
    guest = Guest(words, {USER: [NOP, *before, word, *load(5, 3), SVC]}, trapping)
    gpr = guest.run()
    assert guest.caught[0] == x.SVC
    assert gpr[5] == 3
    if word in (STORE, STORE_BYTE):
        assert guest.machine.memory.read(DATA + at, 1) == 0x77


@pytest.mark.parametrize(("select", "at", "fires"), [(0x10, 4, True), (0x10, 3, False), (0x0F, 0, True)])
def test_a_watchpoint_selects_bytes(select: int, at: int, fires: bool) -> None:
    words = [*load(1, DATA + at), *watchpoint_at(DATA, select << 5 | STORES | EL0), *to_user()]
    guest = Guest(words, {USER: [NOP, STORE_BYTE, SVC]}, trapping)
    guest.run()
    assert (guest.caught[0] == x.WATCHPOINT_LOWER) == fires
