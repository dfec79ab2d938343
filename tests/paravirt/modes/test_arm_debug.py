"""ARMv7's breakpoints in a deprivileged guest: trapped and with fixups, in both states."""

from __future__ import annotations

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.board.arm_boot import ArmEntry
from emulator.isa.arm import exceptions as x
from emulator.machine import EndKind, Limits, Machine
from emulator.platforms import PLATFORMS
from paravirt.modes.arm.hypervisor import ArmHypervisor

BASE = 0x4000_0000
CODE, VECTORS, USER = BASE + 0x1000, BASE + 0x2000, BASE + 0x3000
NOP, SVC, MOVS_PC = 0xE1A0_0000, 0xEF00_0000, 0xE1B0_F00E
DBGBVR, DBGBCR, DBGDSCR, VBAR = 0xEE00_0E90, 0xEE00_0EB0, 0xEE00_0E52, 0xEE0C_0F10
READ = 1 << 20
MONITOR = 1 << 15
ON, ANY, KERNEL, ONLY_USER = 1 | 0xF << 5, 3 << 1, 1 << 1, 2 << 1
MISMATCH = 4 << 20
WAYS = pytest.mark.parametrize("mode", ["trap", "inline"])


def load(register: int, value: int) -> list[int]:
    """movw and movt."""
    return [
        base | (half >> 12) << 16 | register << 12 | half & 0xFFF
        for base, half in ((0xE300_0000, value & 0xFFFF), (0xE340_0000, value >> 16))
    ]


def put(word: int, value: int) -> list[int]:
    return [*load(9, value), word | 9 << 12]


OFF = (*load(0, 0x8400_0008), 0xE140_0070)


def breakpoint_at(address: int, control: int, status: int = MONITOR, number: int = 0) -> list[int]:
    return [*put(DBGBVR | number, address), *put(DBGBCR | number, control), *put(DBGDSCR, status)]


def to_user(address: int = USER, status: int = x.USR) -> list[int]:
    return [*load(9, status), 0xE16F_F009, *load(14, address), MOVS_PC]


class Guest:
    """`code` in Supervisor mode with the MMU off, and `user` in User mode; every exception ends the run, its vector's
    number in R12, but for one that `aborted` handles."""

    def __init__(self, code: list[int], user: list[int], mode: str, aborted: list[int] | None = None) -> None:
        self.machine = Machine(
            4 << 20, lambda _data: None, platform=PLATFORMS["armv7"], limits=Limits(guest_seconds=1.0)
        )
        places = {CODE: [*put(VBAR, VECTORS), *code, *OFF], USER: user}
        for number in range(8):
            handler = VECTORS + 0x100 + 0x80 * number
            places[VECTORS + 4 * number] = [0xEA00_0000 | (handler - VECTORS - 4 * number - 8) >> 2 & 0xFF_FFFF]
            places[handler] = aborted if number == 3 and aborted else [*load(12, number), *OFF]
        for address, words in places.items():
            for number, word in enumerate(words):
                self.machine.memory.write(address + 4 * number, 4, word)
        self.hypervisor = ArmHypervisor(self.machine, LoadTimeTranslator(mode, isa="armv7"))
        self.hypervisor.enter(ArmEntry(CODE, 0))

    def run(self) -> list[int]:
        """The general registers at the end."""
        outcome = self.hypervisor.run()
        assert outcome.kind is EndKind.POWER_OFF, outcome
        return list(self.hypervisor.vcpu.gpr)

    @property
    def caught(self) -> tuple[int, int, int, int]:
        """Vector, fault status, LR of Abort mode less 4, and the method of entry."""
        vcpu = self.hypervisor.vcpu
        system = vcpu.system
        return vcpu.gpr[12], system.get("IFSR", 0), vcpu.gpr[14] - 4, system.get("DBGDSCRext", 0) >> 2 & 0xF


@WAYS
@pytest.mark.parametrize("number", [0, 5])
def test_a_breakpoint_of_user_code_is_a_prefetch_abort_at_its_instruction(mode: str, number: int) -> None:
    words = [*breakpoint_at(USER + 8, ON | ONLY_USER, number=number), *to_user()]
    guest = Guest(words, [*load(3, 7), *load(4, 8), SVC], mode)
    gpr = guest.run()
    assert guest.caught == (3, x.DEBUG_EVENT, USER + 8, 1)
    assert (gpr[3], gpr[4]) == (7, 0)


@WAYS
def test_a_breakpoint_of_the_kernel_fires_in_the_kernel(mode: str) -> None:
    at = CODE + 4 * (3 + 9 + 2)
    guest = Guest([*breakpoint_at(at, ON | KERNEL), *load(3, 7), *load(4, 8)], [], mode)
    gpr = guest.run()
    assert guest.caught == (3, x.DEBUG_EVENT, at, 1)
    assert (gpr[3], gpr[4]) == (7, 0)


@pytest.mark.parametrize(
    "words",
    [
        breakpoint_at(USER + 8, ON & ~1 | ANY),
        breakpoint_at(USER + 8, ON | KERNEL),
        breakpoint_at(USER + 8, ON | ANY, 0),
        breakpoint_at(USER + 16, ON | ANY),
        [*breakpoint_at(USER + 8, ON | ANY), *put(DBGBCR, 0)],
    ],
    ids=["disabled", "of the kernel", "without monitor mode", "behind", "taken back"],
)
def test_a_breakpoint_that_is_not_enabled_there_does_not_fire(words: list[int]) -> None:
    guest = Guest([*words, *to_user()], [*load(3, 7), NOP, SVC, NOP, NOP], "trap")
    guest.run()
    assert guest.caught[0] == 2


@pytest.mark.parametrize(("select", "at"), [(3, USER), (0xC, USER + 2)])
def test_a_breakpoint_of_thumb_code_fires_at_the_halfword_that_is_selected(select: int, at: int) -> None:
    words = [*breakpoint_at(USER, 1 | ONLY_USER | select << 5), *to_user(USER, x.USR | 1 << 5)]
    guest = Guest(words, [0xBF00_BF00, 0xDF00_BF00], "trap")
    guest.run()
    assert guest.caught == (3, x.DEBUG_EVENT, at, 1)


def test_a_mismatch_steps_over_a_breakpoint_as_linux_does() -> None:
    """The abort's handler turns a match into a mismatch and back; R11 counts the matches, R10 the steps."""
    handler = [
        DBGBCR | READ | 8 << 12,
        0xE318_0501,  # tst r8, #1 << 22: a mismatch
        0x028B_B001,  # addeq r11, r11, #1
        0x128A_A001,  # addne r10, r10, #1
        0xE228_8501,  # eor r8, r8, #1 << 22
        DBGBCR | 8 << 12,
        0xE25E_F004,  # subs pc, lr, #4
    ]
    loop = [0xE252_2001, 0x1AFF_FFFD, SVC]  # subs r2, r2, #1; bne loop; svc
    words = [*load(2, 5), *load(10, 0), *load(11, 0), *breakpoint_at(USER, ON | ONLY_USER), *to_user()]
    guest = Guest(words, loop, "trap", handler)
    gpr = guest.run()
    assert guest.caught[0] == 2
    assert (gpr[2], gpr[10], gpr[11]) == (0, 5, 5)


def test_bkpt_says_that_it_is_the_method_of_entry() -> None:
    guest = Guest(to_user(), [NOP, 0xE120_0070], "trap")
    guest.run()
    assert guest.caught == (3, x.DEBUG_EVENT, USER + 4, 3)
