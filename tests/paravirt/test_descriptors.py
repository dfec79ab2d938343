"""What descriptor tables user code meets: ring 3's segments, the guest's own addresses, never a gate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paravirt.modes.x86.descriptors import sanitise
from tests.emulator.guest_image import (
    DATA,
    GDT,
    HALT,
    IDT,
    KERNEL,
    KERNEL_CODE,
    KERNEL_DATA,
    TO_USER,
    USER_CODE,
    USER_DATA,
)
from tests.paravirt.tiny_guest import TinyGuest

SYSTEM = "cd80"
"""int 0x80: back to the kernel, which halts."""
STORE_TABLES = "0f010425 00000700 0f010c25 10000700"
"""sgdt [DATA]; sidt [DATA + 16]"""


@pytest.fixture
def guests() -> Iterator[list[TinyGuest]]:
    opened: list[TinyGuest] = []
    yield opened
    for guest in opened:
        guest.close()


def user(guests: list[TinyGuest], program: str, hidden: bool = True) -> TinyGuest:
    """A guest whose program runs and ends by INT 0x80; `hidden`: user code cannot reach its GDT."""
    guest = TinyGuest(TO_USER, program + SYSTEM)
    guest.gate(0x80, KERNEL + 0x800, level=3)
    guest.put(KERNEL + 0x800, HALT)
    if hidden:
        guest.tables.map(GDT, GDT | 3)
    guests.append(guest)
    return guest


def test_only_code_and_data_of_ring_three_are_kept() -> None:
    kept = (0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_FB00_0000_FFFF)
    dropped = (
        0x00AF_9B00_0000_FFFF,  # ring 0 code
        0x00CF_9300_0000_FFFF,  # ring 0 data
        0x00CF_FF00_0000_FFFF,  # conforming code
        0x0000_EC00_0010_0000,  # call gate of level 3
        0x0000_E900_0000_0067,  # TSS
        0x0000_E200_0000_0067,  # LDT
        0x0000_EE00_0010_0000,  # interrupt gate
    )
    words = (0x00CF_F300_0000_FFFF, *kept, *dropped)
    table = b"".join(word.to_bytes(8, "little") for word in words) + b"\1\2\3"
    clean = sanitise(table)
    assert len(clean) == len(table)
    found = tuple(int.from_bytes(clean[at : at + 8], "little") for at in range(0, 8 * len(words), 8))
    assert found == (0, *kept, *(0 for _ in dropped))
    assert clean[-3:] == bytes(3)


def test_sgdt_and_sidt_at_user_level_show_the_guests_tables(guests: list[TinyGuest]) -> None:
    guest = user(guests, STORE_TABLES)
    guest.run()
    assert guest.vcpu.rip == KERNEL + 0x802
    assert guest.memory[DATA : DATA + 10] == (0xFF).to_bytes(2, "little") + GDT.to_bytes(8, "little")
    assert guest.memory[DATA + 16 : DATA + 26] == (0xFFF).to_bytes(2, "little") + IDT.to_bytes(8, "little")


def test_str_and_sldt_at_user_level_show_the_guests_selectors(guests: list[TinyGuest]) -> None:
    guest = user(guests, "0f00c8 89c3 0f00c0")  # str eax; mov ebx, eax; sldt eax
    guest.run()
    assert (guest.vcpu.gpr[3], guest.vcpu.gpr[0]) == (0x38, 0)


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("selector", [USER_DATA, USER_DATA & ~3, 0])
def test_user_code_loads_the_segments_of_its_own_level(guests: list[TinyGuest], hidden: bool, selector: int) -> None:
    guest = user(guests, f"66b8{selector.to_bytes(2, 'little').hex()} 8ed8", hidden)
    guest.run()
    assert guest.vcpu.rip == KERNEL + 0x802
    assert guest.vcpu.segment(3)[0] == selector


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("selector", [KERNEL_DATA, KERNEL_CODE, 0x40, 0x1F8])
def test_segments_of_the_kernel_are_a_protection_fault_with_their_selector(
    guests: list[TinyGuest], hidden: bool, selector: int
) -> None:
    guest = user(guests, f"66b8{selector.to_bytes(2, 'little').hex()} 8ed8", hidden)
    guest.words[GDT + 0x40 >> 3] = 0x0000_E900_0000_0067
    guest.run()
    assert guest.halted_in == 13
    assert guest.words[guest.vcpu.gpr[4] >> 3] == selector


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("hidden", [True, False])
def test_a_call_gate_leads_to_the_virtual_kernel_and_not_to_ring_zero(
    guests: list[TinyGuest], hidden: bool, touched: bool
) -> None:
    program = ("48a10000060000000000" if touched and not hidden else "") + "ff1c25 00000700"  # call far [DATA]
    guest = user(guests, program, hidden)
    target = KERNEL + 0x900
    guest.put(target, HALT)
    guest.words[GDT + 0x40 >> 3] = target & 0xFFFF | KERNEL_CODE << 16 | 0xEC << 40 | (target >> 16) << 48
    guest.words[GDT + 0x48 >> 3] = 0
    guest.memory[DATA + 4 : DATA + 6] = (0x43).to_bytes(2, "little")
    guest.run()
    assert guest.vcpu.rip == target + 2
    assert guest.vcpu.level == 0
    assert guest.levels == {3}


def test_user_code_may_read_the_table_where_the_guest_lets_it(guests: list[TinyGuest]) -> None:
    read = "48a1" + (GDT + USER_CODE & ~7).to_bytes(8, "little").hex()  # mov rax, [its descriptor]
    guest = user(guests, "66b82b00 8ed8" + read, hidden=False)
    guest.run()
    assert guest.vcpu.gpr[0] == 0x00AF_FB00_0000_FFFF
    guest = user(guests, "66b82b00 8ed8" + read)
    guest.run()
    assert guest.halted_in == 14
    assert guest.vcpu.cr2 == GDT + USER_CODE & ~7


def test_user_code_writes_the_table_only_where_the_guest_lets_it(guests: list[TinyGuest]) -> None:
    guest = user(guests, "66b82b00 8ed8 48c70425 00000600 ffffffff")  # mov qword [GDT], -1
    guest.run()
    assert guest.halted_in == 14
    guest = user(guests, "66b82b00 8ed8 48c70425 40000600 ffffffff 66b84300 8ed8", hidden=False)
    guest.run()
    assert guest.vcpu.segment(3)[0] == 0x43, "readable conforming code of ring 3, as the guest's own table says"
    assert guest.levels == {3}


def test_a_table_that_is_not_mapped_is_empty(guests: list[TinyGuest]) -> None:
    guest = user(guests, STORE_TABLES + "66b82b00 8ed8")
    guest.vcpu.gdt_base = 0x7FFF_0000_0000
    guest.hypervisor.descriptors_changed()
    outcome = guest.run()
    assert outcome.kind.value == "triple-fault", "IRETQ finds no segment, and no gate's either"
    assert guest.levels == {3}


def test_a_changed_table_is_seen_at_the_next_entry_of_user_code(guests: list[TinyGuest]) -> None:
    guest = user(guests, "66b84300 8ed8")
    guest.words[GDT + 0x40 >> 3] = 0x00CF_F300_0000_FFFF
    guest.run()
    assert guest.vcpu.segment(3)[0] == 0x43


def test_the_kernel_loads_its_own_segments_and_sees_its_own_selectors(guests: list[TinyGuest]) -> None:
    guest = TinyGuest("66b81800 8ed8 8ec0 8cdb 8cc9" + HALT)  # mov ds, ax; mov es, ax; mov ebx, ds; mov ecx, cs
    guests.append(guest)
    guest.run()
    assert guest.vcpu.segment(3)[0] == guest.vcpu.gpr[3] == KERNEL_DATA
    assert guest.vcpu.segment(1)[0] == KERNEL_CODE
    assert guest.vcpu.gpr[1] == KERNEL_CODE | 3, "the ring shows where nothing rewrites the code"
    assert guest.levels == {3}
