"""The walks of 32-bit page tables: what is mapped, who may, what is marked, and which bits are reserved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.isa.paging import GLOBAL, PageWalk
from emulator.isa.x86 import registers as r
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.walk import AnyWalker, GuestContext
from emulator.isa.x86.walk32 import HALF, QUARTER, LegacyWalker, PaeWalker, Unpaged, look_up

ROOT, DIRECTORY, TABLE = 0x1000, 0x2000, 0x3000
SIZE = 0x4000
ADDRESS = 0xC0A0_3456
PRESENT, WRITE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
EVERYTHING = PRESENT | WRITE | USER
NO_EXECUTE = 1 << 63
PAGE_FAULT = 14


class Legacy:
    """Two levels: a directory at `ROOT`, a table at `TABLE`."""

    cr4 = r.CR4_PSE
    upper_at, leaf_at = ROOT + 4 * (ADDRESS >> 22), TABLE + 4 * (ADDRESS >> 12 & 1023)
    width = 4
    large = 22

    def __init__(self, **context: bool) -> None:
        self.memory = memoryview(bytearray(SIZE))
        self.context = GuestContext(root=ROOT, **context)
        self.walker: AnyWalker = LegacyWalker(self.memory, self.context)
        self.put(self.upper_at, TABLE | EVERYTHING)
        self.put(self.leaf_at, 0x5_0000 | EVERYTHING)

    def put(self, at: int, entry: int) -> None:
        self.memory[at : at + self.width] = entry.to_bytes(self.width, "little")

    def get(self, at: int) -> int:
        return int.from_bytes(self.memory[at : at + self.width], "little")

    def walk(self, write: bool = False, user: bool = False, fetch: bool = False) -> PageWalk:
        return self.walker.walk(ADDRESS, write, user, fetch)

    def error(self, write: bool = False, user: bool = False, fetch: bool = False) -> int:
        before = bytes(self.memory)
        with pytest.raises(Fault) as caught:
            self.walk(write, user, fetch)
        assert caught.value.vector == PAGE_FAULT
        assert caught.value.address == ADDRESS
        # What led to a page that may not be used so may be marked as accessed; nothing else may change.
        self.memory[self.upper_at] &= ~ACCESSED | before[self.upper_at]
        assert bytes(self.memory) == before
        assert caught.value.error is not None
        return caught.value.error


class Pae(Legacy):
    """Three levels: pointers at `ROOT`, a directory and a table."""

    cr4 = r.CR4_PAE
    pointer_at = ROOT + 8 * (ADDRESS >> 30)
    upper_at, leaf_at = DIRECTORY + 8 * (ADDRESS >> 21 & 511), TABLE + 8 * (ADDRESS >> 12 & 511)
    width = 8
    large = 21

    def __init__(self, **context: bool) -> None:
        super().__init__(**context)
        self.walker = PaeWalker(self.memory, self.context)
        self.put(self.pointer_at, DIRECTORY | PRESENT)


Make = Callable[..., Legacy]
BOTH = pytest.mark.parametrize("make", [Legacy, Pae])


@BOTH
@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_a_page_is_found_and_marked(make: Make, write: bool, user: bool) -> None:
    tables = make()
    found = tables.walk(write, user)
    assert (found.frame, found.size, found.level) == (0x5_0000, 12, 1)
    assert tables.get(tables.upper_at) == TABLE | EVERYTHING | ACCESSED
    assert tables.get(tables.leaf_at) == 0x5_0000 | EVERYTHING | ACCESSED | (DIRTY if write else 0)
    assert bool(found.rights & 0o22) is write  # not to be written without a walk before it is dirty


@BOTH
@pytest.mark.parametrize("level", ["upper_at", "leaf_at"])
@pytest.mark.parametrize("lacks", [PRESENT, WRITE, USER])
def test_every_level_must_allow_it(make: Make, level: str, lacks: int) -> None:
    tables = make(write_protect=True)
    at = getattr(tables, level)
    tables.put(at, tables.get(at) & ~lacks)
    here = lacks != PRESENT
    assert tables.error(write=True, user=True) == here | 2 | 4
    if lacks == PRESENT:
        assert tables.error() == 0
    elif lacks == WRITE:
        assert tables.error(write=True) == 3
        assert not tables.walk(user=True).rights & 0o22
        tables.context.write_protect = False
        assert tables.walk(write=True).rights & 0o22 == 0o02
    else:
        assert tables.error(user=True) == 5
        assert tables.walk(write=True).rights == 0o07


@BOTH
def test_a_large_page_has_the_address_bits_of_its_place(make: Make) -> None:
    tables = make()
    tables.put(tables.upper_at, 0x80_0000 | 0x100 | LARGE | EVERYTHING)
    found = tables.walk(write=True)
    assert (found.frame, found.size, found.level) == (
        0x80_0000 | ADDRESS & (1 << tables.large) - 0x1000,
        tables.large,
        2,
    )
    assert found.attributes == GLOBAL
    assert tables.get(tables.upper_at) & (ACCESSED | DIRTY) == ACCESSED | DIRTY


def test_four_mebibytes_reach_36_bits_and_no_further() -> None:
    tables = Legacy()
    tables.put(tables.upper_at, 0x80_0000 | 1 << 13 | LARGE | EVERYTHING)  # bit 32 of the address
    assert tables.walk().frame == 0x1_0080_0000 | ADDRESS & 0x3F_F000
    for bit in range(17, 22):
        tables.put(tables.upper_at, 0x80_0000 | 1 << bit | LARGE | EVERYTHING)
        assert tables.error(user=True) == 8 | 4 | 1


def test_without_pse_the_size_bit_means_nothing() -> None:
    tables = Legacy()
    tables.walker = LegacyWalker(tables.memory, tables.context, large_pages=False)
    tables.put(tables.upper_at, TABLE | LARGE | EVERYTHING)
    assert tables.walk().frame == 0x5_0000


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 36, 51, 63])
def test_reserved_bits_of_a_pointer(bit: int) -> None:
    tables = Pae(no_execute=True)
    tables.put(tables.pointer_at, DIRECTORY | PRESENT | 1 << bit)
    assert tables.error() == 8 | 1


@pytest.mark.parametrize("level", ["upper_at", "leaf_at"])
@pytest.mark.parametrize("bit", [36, 51, 52, 62])
def test_reserved_bits_of_an_entry(level: str, bit: int) -> None:
    tables = Pae()
    at = getattr(tables, level)
    tables.put(at, tables.get(at) | 1 << bit)
    assert tables.error(write=True) == 8 | 2 | 1


@pytest.mark.parametrize("level", ["upper_at", "leaf_at"])
def test_a_page_that_is_not_to_be_executed(level: str) -> None:
    tables = Pae(no_execute=True)
    at = getattr(tables, level)
    tables.put(at, tables.get(at) | NO_EXECUTE)
    assert tables.error(user=True, fetch=True) == 16 | 4 | 1
    assert tables.walk(write=True).rights == 0o33
    tables.context.no_execute = False
    assert tables.error() == 8 | 1  # without EFER.NXE the bit is reserved


def test_a_table_is_named_by_what_one_of_512_entries_mirrors() -> None:
    found = Legacy().walk()
    assert found.tables[1:3] == [TABLE | (ADDRESS >> 21 & 1) * HALF, ROOT | (ADDRESS >> 30) * QUARTER]


@BOTH
def test_tables_outside_memory_read_as_ones(make: Make) -> None:
    tables = make()
    tables.put(tables.upper_at, SIZE | EVERYTHING)
    if make is Legacy:
        assert tables.walk().frame == 0xFFFF_F000
    else:
        assert tables.error() == 8 | 1


@given(address=st.integers(0, 2**32 - 1))
def test_without_paging_an_address_is_itself(address: int) -> None:
    found = Unpaged().walk(address, True, True, True)
    assert found.frame == address & ~0xFFF
    assert found.rights == 0o77
    assert look_up(memoryview(b""), 0, 0, 0, address) == address


@BOTH
@given(upper=st.integers(0, 2**32 - 1), leaf=st.integers(0, 2**32 - 1))
def test_a_look_finds_what_a_walk_finds_and_marks_nothing(make: Make, upper: int, leaf: int) -> None:
    tables = make()
    tables.put(tables.upper_at, upper & (LARGE | EVERYTHING | 0x100) | (upper & ~0xFFF if upper & LARGE else TABLE))
    tables.put(tables.leaf_at, leaf)
    before = bytes(tables.memory)
    found = look_up(tables.memory, r.CR0_PG, tables.cr4, ROOT, ADDRESS)
    assert bytes(tables.memory) == before
    error, wanted = 0, -1
    try:
        wanted = tables.walk().frame | ADDRESS & 0xFFF
    except Fault as fault:
        error = fault.error or 0
    assert found == wanted or error & 8  # a look does not ask for reserved bits
