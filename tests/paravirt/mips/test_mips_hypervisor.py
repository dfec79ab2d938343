"""Small MIPS32 guests under the hypervisor: exceptions, delay slots, TLB, interrupts, and what they cannot reach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bt.loadtime import LoadTimeTranslator
from emulator.board.malta_boot import EntryState
from emulator.isa.mips import registers as r
from emulator.machine import EndKind, Limits, Machine
from emulator.platforms import PLATFORMS
from paravirt import abi, layout
from paravirt.modes.mips.hypervisor import MipsHypervisor
from paravirt.translator import Translator, Untouched

CODE, HANDLER, DATA, USER, STACK = 0x1000, 0x180, 0x8000, 0x9000, 0xA000
KSEG0 = 0x8000_0000
NOP, EHB, ERET, BREAK, SYSCALL, DI, EI, WAIT, TLBWI = (
    0, 0xC0, 0x4200_0018, 0xD, 0xC, 0x4160_6000, 0x4160_6020, 0x4200_0020, 0x4200_0002,
)  # fmt: skip
V0, A0, A1, T0, S0, K0 = 2, 4, 5, 8, 16, 26
END = (DI, WAIT)
"""Halts with interrupts off, which ends a run."""


def lui(register: int, value: int) -> int:
    return 0x0F << 26 | register << 16 | value


def ori(target: int, source: int, value: int) -> int:
    return 0x0D << 26 | source << 21 | target << 16 | value


def addiu(target: int, source: int, value: int) -> int:
    return 0x09 << 26 | source << 21 | target << 16 | value & 0xFFFF


def load(target: int, base: int, offset: int = 0) -> int:
    return 0x23 << 26 | base << 21 | target << 16 | offset & 0xFFFF


def store(source: int, base: int, offset: int = 0) -> int:
    return 0x2B << 26 | base << 21 | source << 16 | offset & 0xFFFF


def mfc0(target: int, register: int) -> int:
    return 0x4000_0000 | target << 16 | register << 11


def mtc0(source: int, register: int) -> int:
    return 0x4080_0000 | source << 16 | register << 11


def address(register: int, value: int) -> tuple[int, int]:
    return lui(register, value >> 16), ori(register, register, value & 0xFFFF)


class Guest:
    """One guest of a few words."""

    def __init__(self, translator: Translator) -> None:
        limits = Limits(guest_seconds=2.0, host_seconds=30)
        self.machine = Machine(16 << 20, lambda _: None, platform=PLATFORMS["mips32"], limits=limits)
        self.hypervisor = MipsHypervisor(self.machine, translator)
        self.vcpu = self.hypervisor.vcpu
        self.events: list[tuple[str, int, int, int, int]] = []
        self.hypervisor.observe = lambda *event: self.events.append(event)
        self.put(HANDLER, *END)
        self.put(0, *END)

    def put(self, at: int, *words: int) -> None:
        self.hypervisor.shadow.written(at >> 12)
        self.machine.memory.write_bytes(at, b"".join(word.to_bytes(4, "little") for word in words))

    def run(self, *words: int) -> tuple[int, ...]:
        """Run from CODE to the end; the general registers."""
        self.put(CODE, *words, *END)
        self.hypervisor.enter(EntryState(KSEG0 + CODE, ((29, KSEG0 + STACK),)))
        outcome = self.hypervisor.run()
        assert outcome.kind is EndKind.HALTED, outcome
        return tuple(self.vcpu.gpr)

    @property
    def exceptions(self) -> list[tuple[int, int, int]]:
        """Code, place and address of every exception so far."""
        return [(number, pc, where) for name, number, _error, pc, where in self.events if name == "exception"]


@pytest.fixture(params=["none", "trap", "inline"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    translator: Translator = Untouched()
    if request.param != "none":
        translator = LoadTimeTranslator(request.param, isa="mips32")
    made = Guest(translator)
    yield made
    made.machine.close()


def test_a_system_call_of_the_kernel_enters_its_handler(guest: Guest) -> None:
    guest.put(HANDLER, mfc0(V0, 14), mfc0(A0, 13), *END)
    seen = guest.run(NOP, SYSCALL)
    assert (seen[V0], seen[A0] >> 2 & 31) == (KSEG0 + CODE + 4, r.SYS)


def test_an_exception_in_a_delay_slot_restarts_at_its_branch(guest: Guest) -> None:
    guest.put(HANDLER, mfc0(V0, 14), mfc0(A0, 13), *END)
    seen = guest.run(NOP, 0x1000_0004, BREAK)
    assert (seen[V0], seen[A0] >> 31) == (KSEG0 + CODE + 4, 1)


@pytest.mark.parametrize(("branch", "taken"), [(0x1000_0004, True), (0x1400_0004, False)])
def test_a_privileged_instruction_in_a_delay_slot_lets_the_branch_go_on(guest: Guest, branch: int, taken: bool) -> None:
    seen = guest.run(branch, mfc0(V0, 15), addiu(A0, 0, 1), *END, addiu(A0, A0, 2))
    assert (seen[V0], seen[A0]) == (0x0001_9300, 2 if taken else 1)


def test_a_load_that_no_entry_matches_is_refilled_and_done_again(guest: Guest) -> None:
    low = (DATA >> 6 | 7) & 0xFFFF
    guest.put(0, lui(K0, 0), ori(K0, 0, low), mtc0(K0, 2), mtc0(K0, 3), EHB, 0x4200_0006, ERET)
    guest.put(DATA + 0x44, 0xBEEF)
    seen = guest.run(lui(A0, 0x0040), load(V0, A0, 0x44))
    assert seen[V0] == 0xBEEF
    assert guest.exceptions == [(r.TLBL, KSEG0 + CODE + 4, 0x0040_0044)]


def test_a_store_to_a_clean_page_is_modified_and_a_store_to_an_invalid_one_is_not(guest: Guest) -> None:
    setup = (lui(T0, 0x0040), mtc0(T0, 10), ori(T0, 0, DATA >> 6 | 2), mtc0(T0, 2), mtc0(0, 3), mtc0(0, 0), EHB, TLBWI)
    guest.put(HANDLER, mfc0(V0, 13), *END)
    assert guest.run(*setup, lui(A0, 0x0040), store(T0, A0))[V0] >> 2 & 31 == r.MOD
    assert guest.run(*setup, lui(A0, 0x0040), store(T0, A0, 0x1008))[V0] >> 2 & 31 == r.TLBS
    assert [where for _code, _pc, where in guest.exceptions] == [0x0040_0000, 0x0040_1008]


def test_another_address_space_sees_nothing_of_the_first(guest: Guest) -> None:
    setup = (lui(T0, 0x0040), ori(T0, T0, 5), mtc0(T0, 10), ori(T0, 0, DATA >> 6 | 6), mtc0(T0, 2), mtc0(0, 3))
    guest.put(HANDLER, *END)
    guest.put(0, addiu(S0, S0, 1), *END)
    seen = guest.run(
        *setup, mtc0(0, 0), EHB, TLBWI, lui(A0, 0x0040), load(V0, A0), addiu(T0, 0, 6), mtc0(T0, 10), EHB, load(V0, A0)
    )
    assert seen[S0] == 1
    assert guest.exceptions == [(r.TLBL, KSEG0 + CODE + 4 * 14, 0x0040_0000)]


def test_a_return_from_an_exception_breaks_the_link(guest: Guest) -> None:
    guest.put(HANDLER, mfc0(K0, 14), addiu(K0, K0, 4), mtc0(K0, 14), EHB, ERET)
    at = (lui(A0, 0x8000), ori(A0, A0, DATA))
    kept = guest.run(*at, 0xC080_0000 | V0 << 16, addiu(V0, 0, 9), 0xE080_0000 | V0 << 16)
    broken = guest.run(*at, 0xC080_0000 | V0 << 16, SYSCALL, addiu(V0, 0, 9), 0xE080_0000 | V0 << 16)
    assert (kept[V0], broken[V0]) == (1, 0)


def user(guest: Guest, *words: int) -> tuple[int, ...]:
    """Run words in user mode at 400000H; the handler leaves Cause in v0, BadVAddr in a0 and EPC in a1."""
    guest.put(USER, *words)
    guest.put(HANDLER, mfc0(V0, 13), mfc0(A0, 8), mfc0(A1, 14), *END)
    setup = (lui(T0, 0x0040), mtc0(T0, 10), ori(T0, 0, USER >> 6 | 6), mtc0(T0, 2), mtc0(T0, 3), mtc0(0, 0), EHB, TLBWI)
    enter = (lui(T0, 0x0040), mtc0(T0, 14), addiu(T0, 0, r.STATUS_UM | r.STATUS_EXL), mtc0(T0, 12), EHB, ERET)
    return guest.run(*setup, *enter)


@pytest.mark.parametrize("word", [mfc0(V0, 12), mtc0(0, 12), DI, EI, WAIT, TLBWI, ERET, 0xBC80_0000])
def test_user_code_may_not_use_coprocessor_0(guest: Guest, word: int) -> None:
    seen = user(guest, NOP, word, SYSCALL)
    assert (seen[V0] >> 2 & 31, seen[V0] >> 28 & 3, seen[A1]) == (r.CPU, 0, 0x0040_0004)


@pytest.mark.parametrize(
    "target", [KSEG0 + DATA + 4, 0xA000_0000, 0xC000_0000, abi.MIPS32.shared_page, abi.MIPS_REGISTERS, 0xFFFF_FFFC]
)
def test_user_code_reaches_neither_the_kernel_nor_the_hypervisor(guest: Guest, target: int) -> None:
    seen = user(guest, *address(A0, target), load(V0, A0), SYSCALL)
    assert (seen[V0] >> 2 & 31, seen[A0]) == (r.ADEL, target)
    seen = user(guest, *address(A0, target), store(V0, A0), SYSCALL)
    assert (seen[V0] >> 2 & 31, seen[A0]) == (r.ADES, target)
    seen = user(guest, *address(A0, target), 0x0080_0008, NOP)
    assert (seen[V0] >> 2 & 31, seen[A0]) == (r.ADEL, target)


@pytest.mark.parametrize(
    "physical", [layout.MIPS32.code, layout.MIPS32.window + abi.MIPS32.fixup_size, layout.MIPS32.tables]
)
def test_an_entry_that_points_at_the_hypervisors_memory_reaches_nothing(guest: Guest, physical: int) -> None:
    low = physical >> 6 | 6
    setup = (lui(T0, 0x0040), mtc0(T0, 10), *address(T0, low), mtc0(T0, 2), mtc0(T0, 3), mtc0(0, 0), EHB, TLBWI)
    seen = guest.run(*setup, lui(A0, 0x0040), addiu(A1, 0, 0x123), store(A1, A0), load(V0, A0))
    assert seen[V0] == 0xFFFF_FFFF
    assert guest.hypervisor.code.intact()


def test_a_store_to_executed_code_is_seen_after_synci(guest: Guest) -> None:
    at = KSEG0 + CODE + 4 * 9
    seen = guest.run(
        *address(A0, at),
        *address(A1, addiu(S0, S0, 16)),
        addiu(T0, 0, 0),
        store(A1, A0),
        0x049F_0000,
        0x0000_000F,
        NOP,
        addiu(S0, S0, 1),
    )
    assert seen[S0] == 16


def test_what_is_read_of_rewritten_code_is_what_was_written(guest: Guest) -> None:
    at = KSEG0 + CODE + 4 * 3
    assert guest.run(*address(A0, at), NOP, DI, load(V0, A0))[V0] == DI


@pytest.mark.parametrize("spin", [False, True])
def test_the_processors_timer_interrupts_once_it_may(guest: Guest, spin: bool) -> None:
    guest.put(HANDLER, addiu(S0, S0, 1), mtc0(0, 11), mfc0(V0, 13), mfc0(A0, 14), ERET)
    wait = (addiu(T0, T0, -1 & 0xFFFF), 0x1500_FFFE, NOP) if spin else (WAIT,)
    setup = (ori(T0, 0, 0x8000), mtc0(T0, 12), mtc0(0, 9), addiu(T0, 0, 2000), mtc0(T0, 11), EHB, lui(T0, 1), EI)
    seen = guest.run(*setup, *wait)
    assert seen[S0] == 1
    assert seen[V0] & 0x4000_8000 == 0


def test_an_interrupt_that_waits_comes_when_interrupts_are_enabled_and_once(guest: Guest) -> None:
    guest.put(HANDLER, addiu(S0, S0, 1), mfc0(V0, 13), mtc0(0, 11), EHB, ERET)
    setup = (ori(T0, 0, 0x8000), mtc0(T0, 12), mtc0(0, 9), addiu(T0, 0, 50), mtc0(T0, 11))
    delay = (addiu(T0, 0, 3000), addiu(T0, T0, -1 & 0xFFFF), 0x1500_FFFE, NOP)
    body = (DI, EHB, *delay, ori(A0, S0, 0), EI, EHB, *delay, DI, EHB, EI, EHB)
    seen = guest.run(*setup, *body)
    assert (seen[A0], seen[S0], seen[V0] >> 15 & 1) == (0, 1, 1)


def test_rdhwr_shows_user_code_what_hwrena_allows(guest: Guest) -> None:
    assert user(guest, 0x7C02_083B, SYSCALL)[V0] >> 2 & 31 == r.RI
    guest.put(USER, 0x7C10_083B, SYSCALL)
    allowed = (addiu(T0, 0, 2), mtc0(T0, 7))
    setup = (lui(T0, 0x0040), mtc0(T0, 10), ori(T0, 0, USER >> 6 | 6), mtc0(T0, 2), mtc0(T0, 3), mtc0(0, 0), EHB, TLBWI)
    enter = (lui(T0, 0x0040), mtc0(T0, 14), addiu(T0, 0, r.STATUS_UM | r.STATUS_EXL), mtc0(T0, 12), EHB, ERET)
    assert guest.run(*allowed, *setup, *enter)[S0] == 32


def test_every_operation_of_the_table_has_a_handler() -> None:
    from emulator.isa.mips.table import ROWS
    from paravirt.operations.mips import PREPARE

    assert {row.operation for row in ROWS} <= set(PREPARE)
