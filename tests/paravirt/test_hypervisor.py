"""The hypervisor as a guest meets it: interrupts once and in time, ports and gates by privilege, runs that repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.engine.exit import ExitKind
from emulator.isa.x86 import registers as r
from emulator.machine import EndKind
from paravirt import abi
from tests.emulator.guest_image import (
    DATA,
    HALT,
    IDT,
    KERNEL,
    KERNEL_CODE,
    KERNEL_STACK,
    PROGRAM,
    TO_USER,
    USER_CODE,
)
from tests.paravirt.tiny_guest import TinyGuest

Make = Callable[..., TinyGuest]
COUNT = "48ff0425 00000700"
"""inc qword [DATA]"""
TICK = KERNEL + 0x800
IRQ0 = 0x20
SET_UP = "b011e620 b020e621 b004e621 b001e621 b0fee621"
"""The first interrupt controller: vectors from 0x20, all lines but IRQ 0 masked."""
TIMER = "b030e643 b0{low:02x}e640 b0{high:02x}e640"
"""The timer, one-shot, from a 16-bit count."""
ACKNOWLEDGE = "b020e620"


@pytest.fixture
def make() -> Iterator[Make]:
    opened: list[TinyGuest] = []

    def build(kernel: str, program: str = "", mode: str = "trap", seconds: float = 0.05) -> TinyGuest:
        guest = TinyGuest(kernel, program, LoadTimeTranslator(mode), seconds)
        opened.append(guest)
        return guest

    yield build
    for guest in opened:
        guest.close()


def timer(count: int) -> str:
    """Start the timer."""
    return SET_UP + TIMER.format(low=count & 0xFF, high=count >> 8)


def handled(guest: TinyGuest, handler: str = COUNT + ACKNOWLEDGE + "48cf", vector: int = IRQ0) -> TinyGuest:
    """Give a vector a handler."""
    guest.put(TICK, handler)
    guest.gate(vector, TICK, level=3)
    return guest


def counted(guest: TinyGuest) -> int:
    """How often the handler ran."""
    return guest.words[DATA >> 3]


LONG_LOOP = "b900040000 ffc9 75fc"
"""mov ecx, 1024; dec ecx; jnz: longer than the timer runs."""


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_an_interrupt_that_waits_while_disabled_comes_exactly_once_when_enabled(make: Make, mode: str) -> None:
    guest = handled(make(timer(4) + LONG_LOOP + "90 fb" + LONG_LOOP * 2 + HALT, mode=mode))
    outcome = guest.run()
    assert outcome.kind is EndKind.HALTED
    assert counted(guest) == 1
    (interrupt,) = [event for event in guest.events if event[0] == "interrupt"]
    assert interrupt[1] == IRQ0


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_no_interrupt_comes_while_the_flag_is_clear(make: Make, mode: str) -> None:
    guest = handled(make(timer(4) + LONG_LOOP * 3 + HALT, mode=mode))
    guest.run()
    assert counted(guest) == 0
    assert guest.machine.board.intr


@pytest.mark.parametrize("mode", ["trap", "inline"])
@pytest.mark.parametrize(
    ("behind", "length"),
    [("48ffc3", 3), ("fa", 1), ("90", 1)],
    ids=["inc", "cli", "nop"],
)
def test_the_instruction_behind_sti_runs_before_a_waiting_interrupt(
    make: Make, mode: str, behind: str, length: int
) -> None:
    before = timer(4) + LONG_LOOP
    guest = handled(make(before + "fb" + behind + "90" * 4 + HALT, mode=mode))
    guest.run()
    came = [event for event in guest.events if event[0] == "interrupt"]
    if behind == "fa":
        assert came == [], "STI; CLI lets nothing in"
    else:
        at = KERNEL + len(bytes.fromhex(before)) + 1 + length
        (rip,) = [event[3] for event in came]
        assert rip == at if mode == "trap" else at <= rip <= at + 4, "a fixup may hold more instructions than one"
        assert counted(guest) == 1


def test_a_halt_waits_for_the_timer_and_goes_on_behind_it(make: Make) -> None:
    guest = handled(make(timer(0xFFFF) + "fb f4" + HALT, seconds=1))
    outcome = guest.run()
    assert outcome.kind is EndKind.HALTED
    assert counted(guest) == 1


def test_a_halt_that_nothing_ends_is_an_outcome(make: Make) -> None:
    outcome = make("fb f4").run()
    assert (outcome.kind, outcome.detail) == (EndKind.HALTED, "halted with no interrupt to come")


def test_user_code_is_interrupted_and_resumed(make: Make) -> None:
    guest = handled(make(timer(4) + "48bc" + (KERNEL_STACK - 0x100).to_bytes(8, "little").hex() + TO_USER, "ebfe"))
    guest.put(TICK, COUNT + HALT)
    guest.run()
    assert counted(guest) == 1
    rip, cs, flags, _, _ = guest.pushed()
    assert (rip, cs, flags & r.FLAG_IF) == (PROGRAM, USER_CODE, r.FLAG_IF)


@pytest.mark.parametrize("wait", [True, False])
def test_pushf_shows_the_virtual_flag(make: Make, wait: bool) -> None:
    guest = make(("fb 90" if wait else "fa 90") + "9c 5b" + HALT)
    guest.run()
    assert guest.vcpu.gpr[3] & r.FLAG_IF == (r.FLAG_IF if wait else 0)
    assert guest.levels == {3}


# -- ports --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", ["e480", "e680", "6c", "6e"], ids=["in", "out", "ins", "outs"])
def test_a_port_that_the_bitmap_closes_is_a_protection_fault_at_the_instruction(make: Make, instruction: str) -> None:
    guest = make(TO_USER, "66ba8000 bf00000700 be00000700" + instruction + "c6042508000700 07 cd80")
    guest.run()
    assert guest.halted_in == 13
    error, rip = guest.words[guest.vcpu.gpr[4] >> 3], guest.words[(guest.vcpu.gpr[4] >> 3) + 1]
    assert (error, rip) == (0, PROGRAM + 14)
    assert guest.memory[DATA + 8] == 0, "nothing behind it ran"


@pytest.mark.parametrize("instruction", ["e480", "e680", "6c", "6e"], ids=["in", "out", "ins", "outs"])
def test_a_port_that_the_bitmap_opens_is_reached_from_user_level(make: Make, instruction: str) -> None:
    guest = make(TO_USER, "66ba8000 bf00000700 be00000700" + instruction + "cd80")
    handled(guest, HALT, 0x80)
    guest.allow_port(0x80)
    guest.run()
    assert guest.vcpu.rip == TICK + 2
    assert {ExitKind.PORT_READ, ExitKind.PORT_WRITE} & set(guest.kinds)


def test_io_privilege_opens_all_ports_and_the_interrupt_flag(make: Make) -> None:
    guest = make(TO_USER, "e480 fa 9c 58 fb 9c 5b cd80")
    handled(guest, HALT, 0x80)
    guest.words[(KERNEL_STACK - 0x100 >> 3) + 2] |= 3 << 12
    guest.run()
    assert guest.vcpu.rip == TICK + 2
    assert (guest.vcpu.gpr[0] & r.FLAG_IF, guest.vcpu.gpr[3] & r.FLAG_IF) == (0, r.FLAG_IF)


def test_without_io_privilege_cli_is_a_protection_fault(make: Make) -> None:
    guest = make(TO_USER, "fa cd80")
    guest.run()
    assert guest.halted_in == 13


def test_a_wide_access_needs_all_its_ports(make: Make) -> None:
    guest = make(TO_USER, "e580 cd80")
    for port in (0x80, 0x81, 0x82):
        guest.allow_port(port)
    guest.run()
    assert guest.halted_in == 13


# -- gates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "ends"), [(3, -1), (0, 13)])
def test_int_at_user_level_obeys_the_gates_privilege(make: Make, level: int, ends: int) -> None:
    guest = make(TO_USER, "90 cd80")
    guest.put(TICK, HALT)
    guest.gate(0x80, TICK, level=level)
    guest.run()
    assert guest.halted_in == ends
    if ends == 13:
        assert guest.words[guest.vcpu.gpr[4] >> 3] == 0x80 * 8 + 2
        assert guest.words[(guest.vcpu.gpr[4] >> 3) + 1] == PROGRAM + 1, "the fault is at the instruction"
    else:
        assert guest.pushed()[:2] == (PROGRAM + 3, USER_CODE)


def test_int_at_kernel_level_takes_any_gate(make: Make) -> None:
    guest = make("cd80")
    guest.gate(0x80, TICK)
    guest.put(TICK, HALT)
    guest.run()
    assert guest.pushed()[:2] == (KERNEL + 2, KERNEL_CODE)


@pytest.mark.parametrize(("code", "length"), [("cc", 1), ("cd03", 2)])
def test_int3_leaves_the_address_behind_it(make: Make, code: str, length: int) -> None:
    guest = make(TO_USER, "90" + code)
    guest.gate(3, TICK, level=3)
    guest.put(TICK, HALT)
    guest.run()
    assert guest.pushed()[0] == PROGRAM + 1 + length


def test_a_vector_behind_the_tables_end_is_a_protection_fault(make: Make) -> None:
    guest = make("cdff")
    guest.vcpu.idt_limit = 0x7FF
    guest.run()
    assert guest.halted_in == 13
    assert guest.words[guest.vcpu.gpr[4] >> 3] == 0xFF * 8 + 2


# -- exceptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "vector"),
    [("0f0b", 6), ("31c9 f7f1", 0), ("f4", 13), ("0f20c0", 13), ("0f05", 6), ("48a10000c00000000000", 14), ("f1", 1)],
    ids=["ud2", "divide", "hlt", "mov cr", "syscall without LSTAR's flag", "page fault", "int1"],
)
def test_a_user_exception_reaches_the_guests_handler(make: Make, program: str, vector: int) -> None:
    guest = make(TO_USER, program)
    if program == "0f05":
        guest.vcpu.efer &= ~1
    guest.run()
    assert guest.halted_in == vector
    assert guest.levels == {3}


def test_a_page_fault_shows_address_and_error_code(make: Make) -> None:
    guest = make(TO_USER, "48a30000c00000000000")
    guest.run()
    assert guest.vcpu.cr2 == 0xC0_0000
    assert guest.words[guest.vcpu.gpr[4] >> 3] == 6


def test_a_fault_that_cannot_be_delivered_ends_as_a_triple_fault(make: Make) -> None:
    guest = make("0f0b")
    guest.tables.map(IDT, 0)
    outcome = guest.run()
    assert outcome.kind is EndKind.TRIPLE_FAULT
    assert outcome.detail


def test_a_system_call_enters_the_kernel_and_sysret_returns(make: Make) -> None:
    kernel = (
        "b9810000c0 31c0 ba10002000 0f30"  # STAR: SYSCALL to 0x10, SYSRET to 0x33 and 0x2b
        "b9820000c0 b800080400 31d2 0f30"  # LSTAR = TICK
        "b9840000c0 b800020000 31d2 0f30" + TO_USER  # FMASK = IF
    )
    guest = make(kernel, "0f05 48ffc3 0f0b")
    guest.put(TICK, "9c 415c 480f07")  # pushf; pop r12; sysretq
    guest.run()
    assert guest.halted_in == 6
    assert guest.vcpu.gpr[3] == 1
    assert guest.vcpu.gpr[12] & r.FLAG_IF == 0
    assert guest.pushed()[:2] == (PROGRAM + 5, USER_CODE)


# -- the hypervisor's own memory ----------------------------------------------------------------------


@pytest.mark.parametrize("address", [abi.FIXUP_BASE, abi.SHARED_PAGE, abi.SHARED_PAGE + 4096, abi.SHARED_PAGE + 8])
@pytest.mark.parametrize("write", [False, True])
def test_user_code_reaches_nothing_of_the_hypervisors(make: Make, address: int, write: bool) -> None:
    guest = make(TO_USER, ("48a3" if write else "48a1") + address.to_bytes(8, "little").hex())
    guest.run()
    assert guest.halted_in == 14
    assert guest.vcpu.cr2 == address


def test_the_kernel_cannot_change_a_fixup_and_nonsense_in_the_shared_page_means_disabled(make: Make) -> None:
    guest = make("48b800000000000000ff" + "48a3" + abi.FIXUP_BASE.to_bytes(8, "little").hex())
    guest.run()
    assert guest.halted_in == 14
    guest = handled(
        make(timer(4) + "48c7c0ff7f0000 48a3" + abi.SHARED_PAGE.to_bytes(8, "little").hex() + LONG_LOOP * 2 + HALT)
    )
    guest.run()
    assert counted(guest) == 0
    assert guest.levels == {3}


@pytest.mark.parametrize("code", ["0f01ee", "0f01ef"], ids=["rdpkru", "wrpkru"])
def test_user_code_finds_no_protection_keys(make: Make, code: str) -> None:
    guest = make(TO_USER, "31c0 31c9 31d2" + code + "cd80")
    guest.run()
    assert guest.halted_in == 6


# -- runs repeat --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["trap", "inline"])
def test_two_runs_make_the_same_exits_and_leave_the_same_state(make: Make, mode: str) -> None:
    results = []
    for _ in range(2):
        guest = handled(make(timer(40) + "fb" + (LONG_LOOP + "90 9c 58 0fa2 0f31 e461") * 4 + HALT, mode=mode))
        outcome = guest.run()
        results.append((outcome, guest.kinds, guest.events, guest.vcpu.state, guest.machine.memory.digest()))
        assert counted(guest) == 1
    assert results[0] == results[1]


def test_a_guest_without_end_is_stopped_by_its_time(make: Make) -> None:
    assert make("ebfe", seconds=0.005).run().kind is EndKind.GUEST_TIMEOUT
    assert make("fa ebfd", seconds=0.005).run().kind is EndKind.GUEST_TIMEOUT
