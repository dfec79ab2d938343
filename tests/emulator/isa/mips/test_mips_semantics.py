"""Delivery, return, interrupts and the TLB of MIPS32, as the manual has them."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.isa.mips import registers as r
from emulator.isa.mips.exceptions import MipsException, deliver, interrupts_enabled, is_kernel, return_from_exception
from emulator.isa.mips.tlb import Entry, Tlb, entry_of


@dataclass
class Cpu:
    """A processor that is only registers."""

    pc: int = 0x8010_0000
    in_delay_slot: bool = False
    status: int = 1
    cause: int = 0
    epc: int = 0
    error_epc: int = 0x8000_5000
    bad_v_addr: int = 0
    context: int = 0
    entry_hi: int = 0x77
    int_ctl: int = 0
    exception_base: int = 0x8000_0000
    linked: bool = True
    jumps: list[int] = field(default_factory=list)

    @property
    def restart_address(self) -> int:
        return self.pc - 4 if self.in_delay_slot else self.pc

    def jump(self, address: int) -> None:
        self.pc, self.in_delay_slot = address, False

    def break_link(self) -> None:
        self.linked = False


def test_an_exception_keeps_where_it_was_and_enters_the_general_vector() -> None:
    cpu = Cpu()
    deliver(cpu, r.SYS)
    assert (cpu.pc, cpu.epc, cpu.cause & r.CAUSE_EXCCODE, cpu.cause & r.CAUSE_BD) == (0x8000_0180, 0x8010_0000, 32, 0)
    assert cpu.status == 1 | r.STATUS_EXL


def test_an_exception_in_a_delay_slot_restarts_at_the_branch() -> None:
    cpu = Cpu(in_delay_slot=True)
    deliver(cpu, r.OV)
    assert (cpu.epc, bool(cpu.cause & r.CAUSE_BD)) == (0x800F_FFFC, True)


def test_a_refill_has_a_vector_of_its_own_but_not_within_an_exception() -> None:
    cpu = Cpu()
    deliver(cpu, r.TLBL, 1, 0x1234_5678)
    assert cpu.pc == 0x8000_0000
    assert (cpu.bad_v_addr, cpu.entry_hi) == (0x1234_5678, 0x1234_4077)
    assert cpu.context == 0x1234_5678 >> 13 << 4
    nested = Cpu(status=r.STATUS_EXL, epc=0x111, cause=r.CAUSE_BD)
    deliver(nested, r.TLBS, 1, 0x2000)
    assert (nested.pc, nested.epc, bool(nested.cause & r.CAUSE_BD)) == (0x8000_0180, 0x111, True)


def test_an_address_error_changes_neither_context_nor_entry_hi() -> None:
    cpu = Cpu()
    deliver(cpu, r.ADES, 0, 0x9000_0001)
    assert (cpu.bad_v_addr, cpu.context, cpu.entry_hi) == (0x9000_0001, 0, 0x77)


def test_an_unusable_coprocessor_is_named_in_cause() -> None:
    cpu = Cpu()
    deliver(cpu, r.CPU, 1)
    assert cpu.cause >> 28 & 3 == 1


@pytest.mark.parametrize(
    ("cause", "int_ctl", "status", "vector"),
    [
        (0, 0, 1, 0x180),
        (r.CAUSE_IV, 0, 1, 0x200),
        (r.CAUSE_IV | 0x8400, 1 << 5, 0xFF01, 0x200 + 7 * 0x20),
        (r.CAUSE_IV | 0x8400, 1 << 5, 0x0401, 0x200 + 2 * 0x20),
    ],
)
def test_interrupts_go_to_the_vector_that_cause_and_intctl_say(
    cause: int, int_ctl: int, status: int, vector: int
) -> None:
    cpu = Cpu(cause=cause, int_ctl=int_ctl, status=status)
    deliver(cpu, r.INT)
    assert cpu.pc == 0x8000_0000 + vector


def test_bootstrap_vectors_lie_in_the_rom() -> None:
    cpu = Cpu(status=r.STATUS_BEV)
    deliver(cpu, r.BP)
    assert cpu.pc == 0xBFC0_0380


def test_eret_leaves_the_exception_level_and_breaks_the_link() -> None:
    cpu = Cpu(status=1 | r.STATUS_EXL, epc=0x40_0000)
    return_from_exception(cpu)
    assert (cpu.pc, cpu.status, cpu.linked) == (0x40_0000, 1, False)
    error = Cpu(status=r.STATUS_ERL | r.STATUS_EXL)
    return_from_exception(error)
    assert (error.pc, error.status) == (0x8000_5000, r.STATUS_EXL)


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xFFFF_FFFF))
def test_an_interrupt_is_taken_when_enabled_unmasked_and_outside_of_exceptions(status: int, cause: int) -> None:
    wanted = status & 1 and not status & 6 and status >> 8 & cause >> 8 & 0xFF
    assert interrupts_enabled(status, cause) == bool(wanted)


def test_user_mode_is_the_bit_alone_outside_of_exceptions() -> None:
    assert not is_kernel(r.STATUS_UM)
    assert is_kernel(0)
    assert is_kernel(r.STATUS_UM | r.STATUS_EXL)
    assert is_kernel(r.STATUS_UM | r.STATUS_ERL)


def test_a_small_entry_translates_its_two_pages_in_its_address_space() -> None:
    tlb = Tlb(4)
    tlb.write(1, entry_of(0x0040_0005, 0, 0x100 << 6 | 6, 0x200 << 6 | 2))
    assert tlb.translate(0x0040_0123, 5, True) == (0x10_0123, True, False)
    assert tlb.translate(0x0040_1123, 5, False) == (0x20_0123, False, False)
    with pytest.raises(MipsException) as modified:
        tlb.translate(0x0040_1000, 5, True)
    assert modified.value.vector == r.MOD
    with pytest.raises(MipsException) as other:
        tlb.translate(0x0040_0000, 6, False)
    assert (other.value.vector, other.value.error) == (r.TLBL, 1)


def test_a_global_entry_holds_in_every_address_space_only_if_both_halves_say_so() -> None:
    tlb = Tlb(4)
    tlb.write(0, entry_of(0xC000_0001, 0, 0x100 << 6 | 7, 0x200 << 6 | 7))
    assert tlb.translate(0xC000_0000, 9, False)[2]
    assert not entry_of(0xC000_0001, 0, 7, 6).is_global


def test_an_entry_that_is_not_valid_is_no_refill() -> None:
    tlb = Tlb(4)
    tlb.write(0, entry_of(0x0040_0000, 0, 0, 0))
    with pytest.raises(MipsException) as invalid:
        tlb.translate(0x0040_0000, 0, True)
    assert (invalid.value.vector, invalid.value.error) == (r.TLBS, 0)


def test_a_large_entry_translates_by_its_mask() -> None:
    tlb = Tlb(4)
    tlb.write(2, entry_of(0x0040_0000, 0x1F_E000, 0x10_0000 >> 12 << 6 | 6, 0x20_0000 >> 12 << 6 | 6))
    assert tlb.translate(0x004F_FFFC, 0, False)[0] == 0x1F_FFFC
    assert tlb.translate(0x0050_0004, 0, False)[0] == 0x20_0004
    assert tlb.find(0x0060_0000, 0) == -1


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 15), st.integers(0, 3), st.booleans()), max_size=40))
def test_what_is_found_is_what_a_search_of_all_entries_finds(writes: list[tuple[int, int, int, bool]]) -> None:
    tlb = Tlb(8)
    for index, page, asid, everywhere in writes:
        if tlb.find(page << 13, asid) in (-1, index) and not (everywhere and _any(tlb, page << 13, index)):
            tlb.write(index, Entry(page << 13, 0, asid, everywhere, 2, 2))
    for page in range(16):
        for asid in range(4):
            matching = [
                index
                for index, entry in enumerate(tlb.entries)
                if entry is not None and entry.matches(page << 13, asid)
            ]
            assert (tlb.find(page << 13, asid) in matching) if matching else tlb.find(page << 13, asid) == -1


def _any(tlb: Tlb, address: int, but: int) -> bool:
    return any(entry is not None and entry.vpn2 == address and at != but for at, entry in enumerate(tlb.entries))
