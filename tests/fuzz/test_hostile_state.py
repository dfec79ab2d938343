"""A deprivileged guest made of random page tables, descriptors and instructions harms nothing but itself.

Bounded: every example runs a few ten thousand basic blocks. What is asserted is the hypervisor's promise, not what the
guest does: no Python exception, the real privilege level is 3 at every exit, and memory of the hypervisor's that the
guest must not write is unchanged.
"""

from __future__ import annotations

import random
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt.loadtime import LoadTimeTranslator
from emulator.board.linux_boot import EntryState
from emulator.engine.exit import Exit
from emulator.machine import Limits, Machine, Outcome
from paravirt import abi
from paravirt.modes.x86.hypervisor import X86Hypervisor

MEMORY = 4 << 20
TABLES, CODE, GDT, IDT, STACK, TSS = 0x10000, 0x40000, 0x60000, 0x61000, 0x80000, 0x90000
_HEX = (
    "90 f4 fa fb 9c 9d cf 48cf cb 48cb 0f01d8 0f01f8 0f05 0f07 480f07 0f20c0 0f22d8 0f22c0 0f22e0 0f20e0 0f30 0f32 "
    "0f31 0fa2 cd80 cd0d cc f1 8ed8 8ed0 8ee8 8cc8 0f00d8 0f00d0 0f0113 0f011b 0f013b ec ee 6e 6c f3a4 f3ab 488903 "
    "488b03 ff23 ff6b10 50 58 c3 0f0b 66cf 0f0306 0f0206 0f08 0f09 0fae38 31c0 ffc3 48ffc0 ebfe eb02 75f0 e800000000"
)
PIECES = [bytes.fromhex(piece) for piece in re.split(" ", _HEX)]
"""Instructions with a privileged meaning, and some that get on."""


def build(seed: int, memory: memoryview) -> EntryState:
    """Fill memory with a guest of random state, biased towards what gets somewhere."""
    chance = random.Random(seed)
    words = memory.cast("Q")

    def entry(level: int) -> int:
        kind = chance.random()
        if kind < 0.55:
            target = chance.randrange(0x10, 0x18) << 12 if level > 1 else chance.randrange(MEMORY >> 12) << 12
            return target | 7 | chance.choice((0, 0, 0x60, 0x80, 0x100, 1 << 63))
        if kind < 0.7:
            return chance.getrandbits(64)
        if kind < 0.8:
            return chance.getrandbits(40) << 12 & 0x000F_FFFF_FFFF_F000 | 7
        return 0

    for table in range(8):
        level = 4 - table // 2
        for index in range(512):
            words[(TABLES >> 3) + table * 512 + index] = entry(level)
    # A path that lets the first instructions run: the low 4 MiB at 0 and at the top of the address space.
    root = TABLES >> 3
    words[root] = words[root + 511] = TABLES + 0x2000 | 7
    words[root + 1024] = words[root + 1024 + 511] = TABLES + 0x4000 | 7
    words[root + 2048] = 0x87 | chance.choice((0, 0, 1 << 63))
    words[root + 2049] = TABLES + 0x6000 | 7
    code = b"".join(
        chance.choice(PIECES) if chance.random() < 0.8 else chance.randbytes(chance.randrange(1, 6))
        for _ in range(2000)
    )
    memory[CODE : CODE + len(code[:0x8000])] = code[:0x8000]
    memory[GDT : GDT + 0x1000] = chance.randbytes(0x1000)
    for index, value in (
        (2, 0x00AF9B000000FFFF),
        (3, 0x00CF93000000FFFF),
        (5, 0x00CFF3000000FFFF),
        (6, 0x00AFFB000000FFFF),
    ):
        words[(GDT >> 3) + index] = value
    for vector in range(256):
        target = CODE + chance.randrange(0x8000) if chance.random() < 0.9 else chance.getrandbits(64)
        low = target & 0xFFFF | 0x10 << 16 | chance.choice((0x8E, 0x8F, 0xEE, 0xEF, 0x85)) << 40
        words[(IDT >> 3) + 2 * vector] = low | chance.choice((0, 0, 1)) << 32 | (target >> 16 & 0xFFFF) << 48
        words[(IDT >> 3) + 2 * vector + 1] = target >> 32
    memory[TSS : TSS + 0x68] = chance.randbytes(0x68)
    return EntryState(
        rip=CODE + chance.randrange(256),
        rsi=STACK,
        rsp=STACK,
        cr3=TABLES,
        gdt_base=chance.choice((GDT, GDT, GDT, chance.getrandbits(47))),
        gdt_limit=chance.choice((0x7F, 0xFFFF, 0)),
    )


class Watched(X86Hypervisor):
    """Looks at the real privilege level at every exit, before and after it is handled."""

    levels: set[int]

    def _handle(self, exit_: Exit) -> None:
        self.levels.add(self.engine.registers.privilege)
        super()._handle(exit_)
        self.levels.add(self.engine.registers.privilege)


def run(seed: int, mode: str) -> tuple[Watched, Outcome, bytes, bytes]:
    machine = Machine(MEMORY, lambda _data: None, limits=Limits(guest_seconds=0.0005, host_seconds=20))
    hypervisor = Watched(machine, LoadTimeTranslator(mode))
    hypervisor.levels = set()
    chance = random.Random(seed ^ 0x5EED)
    hypervisor.enter(build(seed, machine.memory.view))
    vcpu = hypervisor.vcpu
    vcpu.idt_base, vcpu.idt_limit = chance.choice((IDT, IDT, chance.getrandbits(48))), chance.choice((0xFFF, 0x1F))
    for number in (0, 1, 2, 3, 6, 7, 8):
        pool = (STACK, abi.SHARED_PAGE, abi.FIXUP_BASE, chance.getrandbits(64), CODE, TABLES, 0xC0000080, 0x3F8)
        vcpu.gpr[number] = chance.choice(pool)
    unused = bytes(hypervisor.code.window_bytes()[-0x10000:])
    outcome = hypervisor.run()
    after = bytes(hypervisor.code.window_bytes()[-0x10000:])
    return hypervisor, outcome, unused, after


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), mode=st.sampled_from(["trap", "inline"]))
def test_no_guest_state_harms_the_hypervisor(seed: int, mode: str) -> None:
    hypervisor, outcome, unused, after = run(seed, mode)
    try:
        assert outcome is not None
        assert hypervisor.levels == {3}
        assert unused == after
        assert hypervisor.code.intact()
    finally:
        hypervisor.machine.close()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_a_random_guest_runs_the_same_twice(seed: int) -> None:
    results = []
    for _ in range(2):
        hypervisor, outcome, _, _ = run(seed, "inline")
        results.append((outcome, hypervisor.exits.counts, hypervisor.vcpu.state, hypervisor.machine.memory.digest()))
        hypervisor.machine.close()
    assert results[0] == results[1]
