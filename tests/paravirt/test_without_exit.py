"""Operations done without an exit where exits are dear: what the guest sees is what a trap would have shown it.

Skipped, with the reason that the engine gives, where KVM cannot be had; the time that is shown is tested without it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.board.boot import BootImage, LoadSegment
from emulator.engine.engines import open_kvm
from emulator.errors import EngineMissing
from emulator.isa.operation import Operation
from emulator.machine import EndKind, Limits, Machine
from paravirt import abi
from paravirt.modes import must_trap, without_exit
from paravirt.modes.x86.copies import ShownTime
from paravirt.modes.x86.hypervisor import X86Hypervisor

AT = 0x100_0000
END = "31c0 e7f4 f4"  # xor eax, eax; out 0xf4, eax; hlt
NOPS = "90" * 5


def run(code: str, *, inline: bool = True) -> tuple[list[int], dict[tuple[str, str], int], frozenset[Operation]]:
    """RBX, RSI, RDI and RBP when the guest ended, its exits, and what the engine does without."""
    try:
        machine = Machine(64 << 20, lambda _: None, engine=open_kvm, limits=Limits(None, 60.0))
    except EngineMissing as error:
        pytest.skip(str(error))
    able = machine.engine.capabilities
    inlined = without_exit(able) if inline else frozenset()
    try:
        hypervisor = X86Hypervisor(machine, LoadTimeTranslator("inline", trapped=must_trap(able), inlined=inlined))
        raw = bytes.fromhex(code + END)
        hypervisor.enter(machine.place(BootImage((LoadSegment(AT, raw, 4096),), AT)))
        assert hypervisor.run().kind is EndKind.DEBUG_EXIT
        gpr = machine.engine.registers.gpr
        return [int(gpr[index]) for index in (3, 6, 7, 5)], hypervisor.exits.counts, inlined
    finally:
        machine.close()


def exits_of(counts: dict[tuple[str, str], int], operation: Operation) -> int:
    return sum(count for (name, _), count in counts.items() if name == operation.name)


@pytest.mark.kvm
def test_time_never_goes_back_and_costs_no_exit() -> None:
    # mov ecx, 20000; xor ebx, ebx; xor esi, esi; round: rdtsc; shl rdx, 32; or rax, rdx; cmp rax, rbx; jae ok;
    # inc esi; ok: mov rbx, rax; dec ecx; jnz round
    body = f"0f31 {NOPS} 48c1e220 4809d0 4839d8 7302 ffc6 4889c3 ffc9"
    back = -(len(bytes.fromhex(body)) + 2)
    code = f"b9204e0000 31db 31f6 {body} 75{back & 0xFF:02x}"
    (last, went_back, *_), counts, without = run(code)
    assert went_back == 0
    assert last > 0
    if Operation.READ_TIME_STAMP in without:
        assert exits_of(counts, Operation.READ_TIME_STAMP) == 0
    assert exits_of(run(code, inline=False)[1], Operation.READ_TIME_STAMP) == 20000


BASES = (
    # the FS base to 0x123456789a, the other GS base to 0x5000, the GS base to 0x7000; SWAPGS; all read again
    f"b9000100c0 b89a785634 ba12000000 0f30 {NOPS}"
    f"b9020100c0 b800500000 31d2 0f30 {NOPS}"
    f"b9010100c0 b800700000 31d2 0f30 {NOPS}"
    f"0f01f8 {NOPS}"
    "b9000100c0 0f32 89c3 89d6 b9010100c0 0f32 89c7 b9020100c0 0f32 89c5"
)


@pytest.mark.kvm
def test_bases_are_the_same_by_fixup_and_by_trap() -> None:
    seen = [run(BASES, inline=inline)[0] for inline in (True, False)]
    assert seen[0] == seen[1] == [0x3456789A, 0x12, 0x5000, 0x7000]


@pytest.mark.kvm
def test_swapgs_costs_no_exit_where_bases_are_open() -> None:
    _, counts, without = run(BASES)
    if Operation.SWAP_GS in without:
        assert exits_of(counts, Operation.SWAP_GS) == 0
        assert counts["WRITE_MODEL_SPECIFIC_REGISTER", "hypercall"] == 2  # of three: the FS base needs none


@pytest.mark.kvm
@pytest.mark.parametrize("base", [0x0000_8000_0000_0000, 0xFFFF_0000_0000_0000, 0x8000_0000_0000_0000])
def test_a_base_that_is_no_address_is_refused(base: int) -> None:
    # Without an IDT its #GP ends the guest by a triple fault; a write that was taken would have it end by itself.
    low, high = (base & 0xFFFF_FFFF).to_bytes(4, "little").hex(), (base >> 32).to_bytes(4, "little").hex()
    with pytest.raises(AssertionError, match="TRIPLE_FAULT"):
        run(f"b9000100c0 b8{low} ba{high} 0f30 {NOPS}")


@pytest.mark.kvm
def test_the_quiet_port_is_read_without_an_exit_and_others_with_one() -> None:
    # mov edx, 0x3fd; mov ecx, 1000; round: in al, dx; dec ecx; jnz round; movzx ebx, al; mov edx, 0x3fc; in al, dx
    code = f"bafd030000 b9e8030000 ec {NOPS} ffc9 75f6 0fb6d8 bafc030000 ec {NOPS} 0fb6f0"
    values, counts, without = run(code)
    assert values[:2] == run(code, inline=False)[0][:2] == [0x60, 0]
    if Operation.READ_PORT in without:
        assert counts["READ_PORT", "exit"] == 1


@pytest.mark.kvm
def test_selectors_are_the_guests_own() -> None:
    # mov eax, 0x18; mov ds, eax; xor eax, eax; mov fs, eax; mov ebx, ds; mov esi, cs; mov edi, ss; mov ebp, fs
    code = "b818000000 8ed8 31c0 8ee0 " + "".join(f"{read} {NOPS} " for read in ("8cdb", "8cce", "8cd7", "8ce5"))
    selectors, counts, without = run(code)
    assert selectors == run(code, inline=False)[0] == [0x18, 0x10, 0x18, 0]
    if Operation.READ_SEGMENT_SELECTOR in without:
        assert exits_of(counts, Operation.READ_SEGMENT_SELECTOR) == 0


class Counter:
    """A counter of two a nanosecond, and a clock that has the processor half of the time."""

    def __init__(self) -> None:
        self.count, self.clock = 0, 0

    def counter(self) -> tuple[int, float]:
        return self.count, 2.0

    def now(self) -> int:
        return self.clock


def shown(shared: memoryview, count: int) -> int:
    """What the fixup gives."""
    base, word, scale = (shared[offset >> 3] for offset in (abi.TIME_BASE, abi.TIME_COUNTER, abi.TIME_SCALE))
    value = base + ((count + word & (1 << 64) - 1) * scale >> 32)
    shared[abi.TIME_SEEN >> 3] = value
    return value


def test_the_time_that_is_shown_waits_for_the_clock_and_never_goes_back() -> None:
    world, shared = Counter(), memoryview(bytearray(4096)).cast("Q")
    time = ShownTime(cast(Any, world), cast(Any, SimpleNamespace(now=world.now)), shared)
    time.look()
    seen = []
    for _ in range(200):
        world.count += 2_000_000  # a millisecond of the host's, half of which is the guest's
        world.clock += 500_000
        seen.append(shown(shared, world.count))
        time.look()
    assert seen == sorted(seen)
    assert 0 <= seen[-1] - world.clock <= 1_000_000


def test_a_time_that_only_a_guest_can_have_written_is_not_believed() -> None:
    world, shared = Counter(), memoryview(bytearray(4096)).cast("Q")
    time = ShownTime(cast(Any, world), cast(Any, SimpleNamespace(now=world.now)), shared)
    shared[abi.TIME_SEEN >> 3] = 1 << 63
    assert time.look() == 0
