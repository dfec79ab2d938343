"""The reference: a guest at full privilege meets its own gates, ports and clock, and its runs repeat and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from emulator.isa.x86 import registers as r
from emulator.isa.x86.identity import identify
from emulator.isa.x86.processor import Processor
from emulator.machine import EndKind, Machine
from tests.emulator.guest_image import (
    DATA,
    HALT,
    KERNEL,
    KERNEL_STACK,
    PROGRAM,
    TO_USER,
    USER_CODE,
    USER_TABLE,
    GuestImage,
)
from tests.emulator.native_guest import NativeGuest

Make = Callable[..., NativeGuest]
COUNT, ACKNOWLEDGE = "48ff0425 00000700", "b020e620"
TIMER = "b011e620 b020e621 b004e621 b001e621 b0fee621 b030e643 b004e640 b000e640"
"""The first interrupt controller from vector 0x20, and the timer once, after four ticks."""
LONG_LOOP = "b900040000 ffc9 75fc"
TICK = KERNEL + 0x800


@pytest.fixture
def make() -> Iterator[Make]:
    opened: list[NativeGuest] = []

    def build(kernel: str, program: str = "", seconds: float = 0.05) -> NativeGuest:
        guest = NativeGuest(kernel, program, seconds)
        opened.append(guest)
        return guest

    yield build
    for guest in opened:
        guest.close()


def ticking(guest: NativeGuest) -> NativeGuest:
    guest.put(TICK, COUNT + ACKNOWLEDGE + "48cf")
    guest.gate(0x20, TICK)
    return guest


def test_it_is_a_processor_of_the_semantics(make: Make) -> None:
    processor: Processor = make("90").cpu
    assert (processor.cpl, processor.cr4, processor.efer & 0x400) == (0, 0x20, 0x400)


def test_a_waiting_interrupt_comes_once_when_it_is_enabled(make: Make) -> None:
    guest = ticking(make(TIMER + LONG_LOOP + "fb" + LONG_LOOP * 2 + HALT))
    assert guest.run().kind is EndKind.HALTED
    assert guest.words[DATA >> 3] == 1
    assert [event[:2] for event in guest.events] == [("interrupt", 0x20)]


@pytest.mark.parametrize(("behind", "count"), [("48ffc3", 1), ("fa", 0)])
def test_the_instruction_behind_sti_runs_first(make: Make, behind: str, count: int) -> None:
    before = TIMER + LONG_LOOP
    guest = ticking(make(before + "fb" + behind + LONG_LOOP + HALT))
    guest.run()
    assert guest.words[DATA >> 3] == count


def test_an_interrupt_between_a_comparison_and_its_branch_changes_neither(make: Make) -> None:
    """The flags survive wherever the interrupt comes: an odd count would show a branch gone wrong."""
    guest = ticking(make(TIMER + "fb" + "b900080000 31db 39c9 7502 ffc3 ffc9 75f6" + HALT, seconds=1))
    guest.run()
    assert guest.words[DATA >> 3] == 1
    assert guest.cpu.gpr[3] == 0x800


def test_a_halt_lets_time_pass_to_the_interrupt(make: Make) -> None:
    guest = ticking(make(TIMER + "fb f4 48ffc3" + HALT))
    assert guest.run().kind is EndKind.HALTED
    assert (guest.words[DATA >> 3], guest.cpu.gpr[3]) == (1, 1)


def test_halts_that_nothing_ends_are_told_apart(make: Make) -> None:
    assert make("f4").run().detail == "halted with interrupts disabled"
    assert make("fb f4").run().detail == "halted with no interrupt to come"


def test_user_code_is_entered_and_its_faults_are_delivered(make: Make) -> None:
    guest = make(TO_USER, "90 fa")
    guest.run()
    assert guest.halted_in == 13
    top = guest.cpu.gpr[4] >> 3
    assert list(guest.words[top : top + 3]) == [0, PROGRAM + 1, USER_CODE]


@pytest.mark.parametrize("instruction", ["e480", "e680", "6c", "6e"], ids=["in", "out", "ins", "outs"])
@pytest.mark.parametrize("opened", [False, True])
def test_ports_at_user_level_go_by_the_bitmap(make: Make, instruction: str, opened: bool) -> None:
    guest = make(TO_USER, "66ba8000 bf00000700 be00000700" + instruction + "c6042508000700 07 0f0b")
    if opened:
        guest.allow_port(0x80)
    guest.run()
    assert guest.halted_in == (6 if opened else 13)
    assert guest.memory[DATA + 8] == (7 if opened else 0), "nothing behind a refused access runs"


@pytest.mark.parametrize(("level", "ends"), [(3, -1), (0, 13)])
def test_int_at_user_level_obeys_the_gates_privilege(make: Make, level: int, ends: int) -> None:
    guest = make(TO_USER, "90 cd80")
    guest.put(TICK, HALT)
    guest.gate(0x80, TICK, level=level)
    guest.run()
    assert guest.halted_in == ends
    if ends == 13:
        top = guest.cpu.gpr[4] >> 3
        assert list(guest.words[top : top + 2]) == [0x80 * 8 + 2, PROGRAM + 1]


@pytest.mark.parametrize(("code", "vector"), [("f1", 1), ("0f33", 13), ("0f01f9", 6), ("0f0b", 6)])
def test_what_the_engine_takes_for_invalid_is_what_the_manual_says(make: Make, code: str, vector: int) -> None:
    guest = make(code)
    guest.run()
    assert guest.halted_in == vector


def test_rdtsc_shows_the_virtual_time(make: Make) -> None:
    seen = []
    for _ in range(2):
        guest = make(LONG_LOOP + "0f31 4889c3" + LONG_LOOP + "0f31 f4")
        guest.run()
        seen.append((guest.cpu.gpr[3], guest.cpu.gpr[0]))
        assert guest.cpu.gpr[0] > guest.cpu.gpr[3] > 0
    assert seen[0] == seen[1]


def test_cpuid_shows_the_processor_that_a_deprivileged_guest_sees_too(make: Make) -> None:
    guest = make("31c0 0fa2 f4")
    guest.run()
    eax, ebx, ecx, edx = identify(0, 0)
    assert (guest.cpu.gpr[0], guest.cpu.gpr[3], guest.cpu.gpr[1], guest.cpu.gpr[2]) == (eax, ebx, ecx, edx)


def test_code_written_through_another_mapping_is_seen_after_cpuid(make: Make) -> None:
    store, run = "c604250100b000", "bf0000a000"
    assert store
    assert run
    function, alias = 0xB_0000, 0xC_0000
    call = "e8" + (function - (KERNEL + 5)).to_bytes(4, "little", signed=True).hex()
    code = call + "c6042501000c0002" * 2 + "31c0 0fa2"
    at = KERNEL + len(bytes.fromhex(code))
    code += "e8" + (function - (at + 5)).to_bytes(4, "little", signed=True).hex() + "f4"
    guest = make(code)
    guest.put(function, "b801000000c3")
    guest.tables.map(alias, function | 3 | 1 << 63)
    guest.run()
    assert guest.cpu.gpr[0] == 2


def test_memory_that_is_not_there_reads_as_ones_and_its_code_is_undefined(make: Make) -> None:
    for physical in (0x4000_0000, 0x1_4000_0000, 0xF_FFFF_F000):
        guest = make("48a10000c00000000000 f4")
        guest.tables.map(0xC0_0000, physical | 3)
        guest.run()
        assert guest.cpu.gpr[0] == 0xFFFF_FFFF_FFFF_FFFF
        guest = make("b80000c000 ffe0")
        guest.tables.map(0xC0_0000, physical | 3)
        guest.run()
        assert guest.halted_in == 6


def test_a_fault_that_cannot_be_delivered_is_a_triple_fault(make: Make) -> None:
    guest = make("0f0b")
    guest.machine.engine.registers.set_table(1, 0x7FFF_0000_0000, 0xFFF)
    outcome = guest.run()
    assert outcome.kind is EndKind.TRIPLE_FAULT
    assert outcome.detail


def test_a_guest_without_end_is_stopped_by_its_time(make: Make) -> None:
    assert make("ebfe", seconds=0.005).run().kind is EndKind.GUEST_TIMEOUT


def test_a_guest_that_exits_all_the_time_is_stopped_by_its_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "EXITS", 50)
    looks: list[int] = []
    guest = make("e680 ebfc", seconds=0.002)

    def enough() -> bool:
        looks.append(1)
        return len(looks) > 3

    guest.machine.stop_when = enough
    assert guest.run().kind is EndKind.STOPPED
    assert guest.cpu.exits["PORT_WRITE"] >= 150


def test_two_runs_make_the_same_exits_and_leave_the_same_state(make: Make) -> None:
    results = []
    for _ in range(2):
        guest = ticking(make(TIMER + "fb" + (LONG_LOOP + "9c 58 0fa2 0f31 e461") * 4 + HALT))
        lines: list[str] = []
        guest.cpu.trace = lines.append
        outcome = guest.run()
        results.append((outcome, lines, guest.events, guest.cpu.state, guest.machine.memory.digest()))
    assert results[0] == results[1]
    assert any("port_read" in line for line in results[0][1])


def test_a_system_call_goes_where_lstar_says_and_sysret_returns(make: Make) -> None:
    guest = make(TO_USER, "0f05 48ffc3 0f0b")
    engine = guest.machine.engine
    engine.write_msr(0xC000_0081, 0x0020_0010 << 32)
    engine.write_msr(0xC000_0082, TICK)
    engine.write_msr(0xC000_0084, r.FLAG_IF)
    guest.put(TICK, "9c 415c 480f07")
    guest.words[(KERNEL_STACK - 0x100 >> 3) + 2] = 0x202
    guest.run()
    assert guest.halted_in == 6
    assert (guest.cpu.gpr[3], guest.cpu.gpr[12] & r.FLAG_IF) == (1, 0)
    assert isinstance(guest, GuestImage)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("bit", [36, 39, 40, 51])
def test_an_entry_with_an_address_that_the_processor_lacks_is_a_page_fault(bit: int, write: bool) -> None:
    code = "893c2500000040" if write else "8b3c2500000040"  # mov [0x40000000], edi; mov edi, [0x40000000]
    guest = NativeGuest(code)
    guest.tables.map(0x4000_0000, 1 << bit | USER_TABLE)
    addresses: list[int] = []
    events: list[tuple[str, int, int]] = []

    def observe(kind: str, number: int, error: int, _rip: int, address: int) -> None:
        events.append((kind, number, error))
        addresses.append(address)

    guest.cpu.observe = observe
    outcome = guest.run()
    guest.close()
    assert outcome.kind is EndKind.HALTED
    assert events == [("exception", 14, 0xB if write else 9)]
    assert addresses == [0x4000_0000]


@pytest.mark.parametrize("frame", [0xC000_0000, 0x1_0000_0000, 0xF_FFFF_F000])
def test_what_no_device_answers_reads_as_ones_above_4_gib_as_well(frame: int) -> None:
    guest = NativeGuest("488b3c2500000040 893c2500000040 8b342500000040" + HALT)
    guest.tables.map(0x4000_0000, frame | USER_TABLE)
    outcome = guest.run()
    assert (outcome.kind, guest.cpu.gpr[7], guest.cpu.gpr[6]) == (EndKind.HALTED, (1 << 64) - 1, 0xFFFF_FFFF)
    guest.close()


def test_a_fetch_from_an_address_that_the_processor_lacks_is_a_page_fault() -> None:
    guest = NativeGuest("ff242500000700")  # jmp [DATA]
    guest.words[DATA >> 3] = 0x4000_0000
    guest.tables.map(0x4000_0000, 1 << 36 | USER_TABLE)
    outcome = guest.run()
    assert (outcome.kind, guest.events) == (EndKind.HALTED, [("exception", 14, 0x19, 0x4000_0000)])
    guest.close()
