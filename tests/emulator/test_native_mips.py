"""The MIPS32 reference: Count, Compare and Random are the board's, and interrupts come where they are enabled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.board.malta_boot import EntryState
from emulator.engine.engines import open_engine
from emulator.machine import EndKind, Limits, Machine, Outcome
from emulator.native.mips import MipsNativeCpu
from emulator.platforms import platform_of

ENTRY = 0x8000_1000
GENERAL = 0x180
WAIT = 0x4200_0020
TIMER_INTERRUPT = (
    0x4080_4800,  # mtc0 zero, Count
    0x2402_2000,  # li   v0, 0x2000
    0x4082_5800,  # mtc0 v0, Compare
    0x2403_8000,  # li   v1, 0xffff8000
    0x3063_8000,  # andi v1, v1, 0x8000    IM7
    0x4083_6000,  # mtc0 v1, Status
    0x4004_4800,  # mfc0 a0, Count
    0x2405_0000,  # li   a1, 0
    0x24A5_0001,  # addiu a1, a1, 1
    0x1000_FFFE,  # b    -1                interrupts are disabled: this is left by no interrupt
    0x0000_0000,
)
ENABLED_LATE = (
    *TIMER_INTERRUPT[:8],
    0x4008_6800,  # mfc0 t0, Cause
    0x3108_8000,  # andi t0, t0, 0x8000
    0x1100_FFFD,  # beqz t0, -2
    0x0000_0000,
    0x4160_6020,  # ei
    0x2405_0001,  # li   a1, 1             never executed: the interrupt comes before
    WAIT,
)
HANDLER = (0x4160_6000, 0x4006_4800, 0x4007_7000, WAIT)  # di; mfc0 a2, Count; mfc0 a3, EPC; wait


@pytest.fixture
def machine() -> Iterator[Machine]:
    limits = Limits(guest_seconds=0.01, host_seconds=20)
    platform = platform_of("mips32")
    made = Machine(8 << 20, lambda _: None, platform=platform, engine=lambda: open_engine("mips32"), limits=limits)
    yield made
    made.close()


def run(machine: Machine, code: tuple[int, ...]) -> tuple[MipsNativeCpu, list[tuple[str, int]], Outcome]:
    events: list[tuple[str, int]] = []
    for at, words in ((ENTRY & 0xFFFF, code), (GENERAL, HANDLER)):
        machine.memory.write_bytes(at, b"".join(word.to_bytes(4, "little") for word in words))
    cpu = MipsNativeCpu(machine)
    cpu.observe = lambda kind, number, *_: events.append((kind, number))
    cpu.enter(EntryState(ENTRY, ()))
    return cpu, events, cpu.run()


def test_an_interrupt_that_waits_is_taken_behind_the_ei_that_lets_it_in(machine: Machine) -> None:
    cpu, events, outcome = run(machine, ENABLED_LATE)
    assert outcome.kind is EndKind.HALTED
    assert events == [("interrupt", 0x80)]
    assert cpu.gpr[5] == 0
    assert cpu.gpr[7] == ENTRY + 4 * ENABLED_LATE.index(0x2405_0001)
    assert 0x2000 <= cpu.gpr[6] < 0x4000


def test_no_interrupt_comes_while_they_are_disabled(machine: Machine) -> None:
    cpu, events, outcome = run(machine, TIMER_INTERRUPT)
    assert outcome.kind is EndKind.GUEST_TIMEOUT
    assert events == []
    assert cpu.cause & 0x8000
    assert cpu.gpr[5] > 1000


def test_random_goes_down_to_wired_with_every_tlbwr_and_never_below() -> None:
    limits = Limits(guest_seconds=0.01, host_seconds=20)
    seen = []
    for _ in range(2):  # the second run does not go on where the first ended
        machine = Machine(
            8 << 20, lambda _: None, platform=platform_of("mips32"), engine=lambda: open_engine("mips32"), limits=limits
        )
        try:
            step = (0x4200_0006, 0x4002_0800)  # tlbwr; mfc0 v0, Random
            wired = (0x2402_003E, 0x4082_3000)  # li v0, 62; mtc0 v0, Wired
            code = (*wired, 0x4003_0800, *step, 0x0040_2025, *step, WAIT)  # mfc0 v1, Random; ...; move a0, v0; ...
            cpu = run(machine, code)[0]
            seen.append((cpu.gpr[3], cpu.gpr[4], cpu.gpr[2]))
        finally:
            machine.close()
    assert seen == [(63, 62, 63)] * 2
