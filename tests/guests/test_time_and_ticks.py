"""A guest that its timer interrupts and that looks at its counter all the while: no tick is lost, time never goes back.

The same guest on both engines; that of KVM is skipped, with the reason that the engine gives, where KVM cannot be had.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.engine import engines
from emulator.errors import EngineMissing
from emulator.isa.operation import Operation
from emulator.machine import EndKind, Limits, Machine
from paravirt.modes import must_trap, without_exit
from paravirt.modes.x86.hypervisor import X86Hypervisor
from tests.emulator.guest_image import ENTRY, IDT, KERNEL, MEMORY, GuestImage

COUNT = 4772
"""Of the timer between two ticks: four milliseconds, as a Linux has them that asks for 250 a second."""
PERIOD = COUNT * 1_000_000_000 / 1_193_182
TICKS = {"unicorn": 3, "kvm": 150}
"""In a guest's run: looking at the counter is an exit on the one, and a fixup on the other."""
CPUID = "0fa2"
HANDLER = KERNEL + 0x400
NOPS = "90" * 5
NOW = f"0f31 {NOPS} 48c1e220 4809d0"
"""rdtsc, with room for a fixup; shl rdx, 32; or rax, rdx"""
CONTROLLER = "b011e620 b020e621 b004e621 b001e621 b0fee621"
TIMER = f"b034e643 b0{COUNT & 255:02x}e640 b0{COUNT >> 8:02x}e640"
"""mov al, ..; out: the first controller with vectors from 32 on, the timer alone unmasked; its periodic mode."""


def _b(value: int) -> str:
    return value.to_bytes(4, "little").hex()


def kernel(ticks: int, work: str) -> str:
    """R9: what the counter was last; R10: how often it went back; R11: ticks. `work` is done in each round."""
    body = (
        NOW
        + "4c39c8 7303 49ffc2"  # cmp rax, r9; jae on; inc r10
        + "4989c1"  # on: mov r9, rax
        + work
        + f"4981fb{_b(ticks)}"  # cmp r11, ticks
    )
    back = -(len(bytes.fromhex(body)) + 6)
    return f"{CONTROLLER} {NOW} 4989c1 {TIMER} fb {NOPS} {body} 0f82{_b(back & 0xFFFF_FFFF)} fa {NOPS} 31c0 e7f4 f4"


HANDLE = (
    f"50 52 49ffc3 {NOW}"  # push rax; push rdx; inc r11; ...
    + "4c39c8 7303 49ffc2"  # cmp rax, r9; jae on; inc r10
    + "b020e620 5a 58 48cf"  # on: the end of the interrupt; pop rdx; pop rax; iretq
)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Python collects no garbage meanwhile: that takes the guest's time where the guest's time is the host's."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("work", ["", CPUID], ids=["few-exits", "exits"])
@pytest.mark.parametrize("engine", ["unicorn", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_no_tick_is_lost_or_doubled_and_time_never_goes_back(engine: str, work: str) -> None:
    try:
        machine = Machine(MEMORY, lambda _: None, engine=engines.X86_ENGINES[engine], limits=Limits(host_seconds=120.0))
    except EngineMissing as error:
        pytest.skip(str(error))
    try:
        guest = GuestImage(machine.memory.view, kernel(TICKS[engine], work), "")
        guest.put(HANDLER, HANDLE)
        guest.gate(0x20, HANDLER)
        able = machine.engine.capabilities
        translator = LoadTimeTranslator("inline", trapped=must_trap(able), inlined=without_exit(able))
        hypervisor = X86Hypervisor(machine, translator)
        hypervisor.enter(ENTRY)
        hypervisor.vcpu.idt_base, hypervisor.vcpu.idt_limit = IDT, 0xFFF
        hypervisor.descriptors_changed()
        assert hypervisor.run().kind is EndKind.DEBUG_EXIT
        last, back, ticks = [int(machine.engine.registers.gpr[index]) for index in range(9, 12)]
        assert back == 0
        assert ticks >= TICKS[engine]
        # It takes a moment until the timer is set; and a host that is away for a whole period has two ticks become one.
        assert 0 <= machine.clock.now() / PERIOD - ticks < 3 + TICKS[engine] // 5
        assert last <= hypervisor.time_stamp()
        if Operation.READ_TIME_STAMP in without_exit(able):
            assert not [name for name, _ in hypervisor.exits.counts if name == Operation.READ_TIME_STAMP.name]
    finally:
        machine.close()
