"""Every operation of the x86-64 table has one handler, and the handler does what the manual says to the virtual CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.isa.operation import Operation
from emulator.isa.x86 import registers as r
from emulator.isa.x86.table import ROWS
from paravirt.operations.x86 import PREPARE
from paravirt.translator import Untouched
from tests.emulator.guest_image import (
    DATA,
    HALT,
    KERNEL,
    KERNEL_CODE,
)
from tests.paravirt.tiny_guest import TinyGuest


def test_every_operation_of_the_table_has_a_handler() -> None:
    assert {row.operation for row in ROWS} - set(PREPARE) == set()


def test_every_handler_is_of_an_operation_that_some_row_stands_for() -> None:
    assert set(PREPARE) <= set(Operation)
    assert set(PREPARE) - {row.operation for row in ROWS} == set()


@pytest.fixture
def guests() -> Iterator[list[TinyGuest]]:
    opened: list[TinyGuest] = []
    yield opened
    for guest in opened:
        guest.close()


def kernel(guests: list[TinyGuest], code: str, **registers: int) -> TinyGuest:
    """Run kernel code whose sensitive instructions trap by themselves, up to a halt."""
    guest = TinyGuest(code + HALT, translator=Untouched())
    guests.append(guest)
    for name, value in registers.items():
        guest.vcpu.gpr[r.GPR_NAMES.index(name)] = value
    guest.run()
    assert guest.levels == {3}
    return guest


def completes(guest: TinyGuest, code: str) -> bool:
    return guest.vcpu.rip == KERNEL + len(bytes.fromhex(code)) + 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("0f20c0", 0x8001_0011),
        ("0f20d8", None),
        ("0f20e0", 0x20),
        ("440f20c0", 0),
        ("0f20d0", 0),
    ],
    ids=["cr0", "cr3", "cr4", "cr8", "cr2"],
)
def test_control_registers_are_the_virtual_ones(guests: list[TinyGuest], code: str, expected: int | None) -> None:
    guest = kernel(guests, code)
    assert completes(guest, code)
    assert guest.vcpu.gpr[0] == (guest.tables.root if expected is None else expected)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("0f22c0", 0x11),  # paging off
        ("0f22c0", 0x8000_0010),  # protection off
        ("0f22c0", 0x1_8000_0011),  # a reserved bit
        ("0f22c0", 0xA000_0011),  # NW without CD
        ("0f22e0", 0),  # PAE off
        ("0f22e0", 0x20 | 1 << 20),  # SMEP, which CPUID does not show
        ("0f22e0", 0x20 | 1 << 11),  # UMIP
        ("0f22d8", 1 << 36),  # behind the physical addresses
        ("440f22c0", 0x10),
    ],
)
def test_values_that_a_control_register_refuses_are_protection_faults(
    guests: list[TinyGuest], code: str, value: int
) -> None:
    guest = kernel(guests, code, RAX=value)
    assert guest.halted_in == 13
    assert (guest.vcpu.cr0, guest.vcpu.cr4, guest.vcpu.cr8) == (0x8001_0011, 0x20, 0)


def test_task_switched_is_carried_to_the_real_register_and_cleared_by_clts(guests: list[TinyGuest]) -> None:
    guest = kernel(guests, "0f20c0 83c808 0f22c0 d9e8")  # set TS; fld1
    assert guest.halted_in == 7
    guest = kernel(guests, "0f20c0 83c808 0f22c0 0f06 d9e8")
    assert guest.halted_in == -1
    assert guest.vcpu.cr0 & r.CR0_TS == 0


def test_lmsw_sets_and_smsw_reads_the_status_word(guests: list[TinyGuest]) -> None:
    guest = kernel(guests, "b80b000000 0f01f0 0f20c3", RBX=0)  # lmsw ax; mov rbx, cr0
    assert guest.vcpu.gpr[3] == 0x8001_001B
    guest = kernel(guests, "b800000000 0f01f0 0f20c3", RBX=0)
    assert guest.vcpu.gpr[3] & 1, "LMSW does not clear PE"


@pytest.mark.parametrize(
    ("number", "value", "reads"),
    [
        (0xC000_0100, 0x7FFF_1234_5000, 0x7FFF_1234_5000),
        (0xC000_0101, 0xFFFF_8000_0000_1000, 0xFFFF_8000_0000_1000),
        (0xC000_0102, 0x1000, 0x1000),
        (0xC000_0082, 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_0000),
        (0xC000_0084, 0xFFFF_FFFF_0000_4700, 0x4700),
        (0x277, 0x0007_0106_0007_0106, 0x0007_0106_0007_0106),
        (0x174, 0x10, 0x10),
    ],
)
def test_an_msr_reads_back_what_was_written(guests: list[TinyGuest], number: int, value: int, reads: int) -> None:
    code = "0f30 31c0 31d2 0f32"
    guest = kernel(guests, code, RCX=number, RAX=value & 0xFFFF_FFFF, RDX=value >> 32)
    assert completes(guest, code)
    assert guest.vcpu.gpr[2] << 32 | guest.vcpu.gpr[0] == reads


@pytest.mark.parametrize(
    ("number", "value"),
    [(0xC000_0082, 1 << 47), (0xC000_0101, 1 << 63), (0xC000_0080, 1), (0xC000_0080, 0xD01 | 1 << 12), (0xDEAD, 0)],
    ids=["LSTAR not canonical", "GS base not canonical", "LME off", "SVME", "no such register"],
)
def test_an_msr_write_that_a_processor_refuses_is_a_protection_fault(
    guests: list[TinyGuest], number: int, value: int
) -> None:
    guest = kernel(guests, "0f30", RCX=number, RAX=value & 0xFFFF_FFFF, RDX=value >> 32)
    assert guest.halted_in == 13


def test_swapgs_swaps_the_real_base_with_the_virtual_one(guests: list[TinyGuest]) -> None:
    guest = TinyGuest("0f01f8 65488b042500000000" + HALT, translator=Untouched())
    guests.append(guest)
    guest.vcpu.kernel_gs_base = DATA
    guest.words[DATA >> 3] = 0x1234
    guest.run()
    assert guest.vcpu.gpr[0] == 0x1234
    assert guest.vcpu.kernel_gs_base == 0


def test_debug_registers_keep_their_fixed_bits(guests: list[TinyGuest]) -> None:
    guest = kernel(guests, "0f23f0 0f23f8 0f21f3 0f21f9", RAX=0)  # DR6 = DR7 = 0; read them
    assert (guest.vcpu.gpr[3], guest.vcpu.gpr[1]) == (0xFFFF_0FF0, 0x400)


@pytest.mark.parametrize(
    "code",
    ["0f01c8", "0f01c9", "0f01d0", "0f01d1", "0f01ca", "0f01cb", "0f01c1", "0f01d9", "f3480faec0", "0faa"],
    ids=["monitor", "mwait", "xgetbv", "xsetbv", "clac", "stac", "vmcall", "vmmcall", "rdfsbase", "rsm"],
)
def test_what_cpuid_does_not_show_is_undefined(guests: list[TinyGuest], code: str) -> None:
    assert kernel(guests, code).halted_in == 6


@pytest.mark.parametrize("operation", [Operation.MANAGE_SHADOW_STACK, Operation.CONTROL_PLATFORM])
def test_instructions_of_absent_extensions_are_undefined(guests: list[TinyGuest], operation: Operation) -> None:
    rows = [row for row in ROWS if row.operation is operation]
    assert rows
    guest = kernel(guests, "90")
    assert PREPARE[operation] is PREPARE[Operation.MONITOR_WAIT]
    assert guest.halted_in == -1


def test_descriptor_tables_are_loaded_and_stored(guests: list[TinyGuest]) -> None:
    code = "0f0111 0f0119"  # lgdt [rcx]; lidt [rcx]
    guest = TinyGuest(code + HALT, translator=Untouched())
    guests.append(guest)
    guest.vcpu.gpr[1] = DATA
    guest.memory[DATA : DATA + 10] = (0x77).to_bytes(2, "little") + (0xFFFF_8000_0000_0000).to_bytes(8, "little")
    guest.run()
    vcpu = guest.vcpu
    assert (vcpu.gdt_base, vcpu.gdt_limit, vcpu.idt_base, vcpu.idt_limit) == (
        *(0xFFFF_8000_0000_0000, 0x77),
        *(0xFFFF_8000_0000_0000, 0x77),
    )


def test_a_table_at_a_non_canonical_address_is_refused(guests: list[TinyGuest]) -> None:
    guest = TinyGuest("0f0111" + HALT, translator=Untouched())
    guests.append(guest)
    guest.vcpu.gpr[1] = DATA
    guest.memory[DATA : DATA + 10] = (0x77).to_bytes(2, "little") + (1 << 47).to_bytes(8, "little")
    guest.run()
    assert guest.halted_in == 13


def test_far_returns_of_the_kernel_find_its_own_code_segment(guests: list[TinyGuest]) -> None:
    code = "6a10 68 000f0400 48cb"  # push 0x10; push KERNEL + 0xf00; retfq
    guest = TinyGuest(code, translator=Untouched())
    guests.append(guest)
    guest.put(KERNEL + 0xF00, HALT)
    guest.run()
    assert guest.vcpu.rip == KERNEL + 0xF02
    assert guest.vcpu.segment(1)[0] == KERNEL_CODE


@pytest.mark.parametrize(("size", "prefix"), [(1, ""), (2, "66"), (4, "")])
def test_a_port_is_read_into_the_part_that_the_size_says(guests: list[TinyGuest], size: int, prefix: str) -> None:
    code = f"{prefix}{'ec' if size == 1 else 'ed'}"
    guest = kernel(guests, code, RAX=0x1111_2222_3333_4444, RDX=0x777)
    ones = {1: 0x1111_2222_3333_44FF, 2: 0x1111_2222_3333_FFFF, 4: 0xFFFF_FFFF}
    assert guest.vcpu.gpr[0] == ones[size]


def test_repeated_outs_stops_at_the_element_that_faults(guests: list[TinyGuest]) -> None:
    guest = TinyGuest("f36e" + HALT, translator=Untouched())
    guests.append(guest)
    guest.vcpu.gpr[1], guest.vcpu.gpr[6], guest.vcpu.gpr[2] = 8, 0x10_0000 - 3, 0x80
    guest.run()
    assert guest.halted_in == 14
    assert guest.vcpu.cr2 == 0x10_0000
    assert (guest.vcpu.gpr[1], guest.vcpu.gpr[6]) == (5, 0x10_0000)
    assert guest.words[(guest.vcpu.gpr[4] >> 3) + 1] == KERNEL
