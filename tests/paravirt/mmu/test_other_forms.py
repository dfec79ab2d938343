"""The shadow core with other forms of tables than x86-64's: two levels of 4-byte entries, as a guest's and as a
processor's, and memory that does not begin at 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.paging import EXECUTE, READ, WRITE, Level, PageWalk, TableFormat
from emulator.isa.x86.paging import LONG_MODE
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.code import CodePages
from paravirt.mmu.lazy import Lazy
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.translator import Untouched

BASE, MEMORY = 0x4000_0000, 8 << 20
TABLE, PAGE, MAY_WRITE, MAY_EXECUTE, FOR_USER = 1, 2, 4, 8, 16
"""Bits of the toy guest's entries."""
ALL = MAY_WRITE | MAY_EXECUTE | FOR_USER
ROOT, TABLES, FREE = BASE + 0x10_0000, BASE + 0x12_0000, BASE + 0x40_0000
WINDOW = abi.Window("toy", 0xFFE0_0000, 0x8000, 0x10_0000, 4, 0, 0, 1, 4, 8, 4, 64)


def _bits(base: int, kind: int) -> tuple[int, ...]:
    return tuple(
        base | kind | (0 if rights & WRITE else 0x200) | (0 if rights & EXECUTE else 0x800) | (rights & READ) << 5
        for rights in range(8)
    )


SHORT = TableFormat(
    entry_size=4,
    unit=10,
    levels=(Level(12, 8), Level(20, 12)),
    present=3,
    page_mask=0xFFFF_F000,
    table_mask=0xFFFF_FC00,
    block_mask=0xFFF0_0000,
    pages=_bits(0, 2),
    blocks=_bits(0, 2),
    tables=(1,) * 8,
    page_write=(0x200, 0),
    block_write=(0x200, 0),
)
"""A processor's tables of 256 and of 4096 entries, in which a bit forbids to write."""

SAME = (Level(12, 8, mirrored=1024), Level(20, 12, mirrored=16384))
"""Shadowed by tables of the same form."""
HALVED = (
    Level(12, 9, mirrored=2048),
    Level(21, 9, mirrored=1024, ratio=1),
    Level(30, 9),
    Level(39, 9),
)
"""A table of 1024 entries is two of 512, a directory entry of 4 MiB two of 2 MiB, and above there is nothing."""


class Toy:
    """A guest with a directory and tables; entries of 4 bytes."""

    entry_size = 4
    variant = 0

    def __init__(self, memory: GuestMemory, levels: tuple[Level, ...], bits: int) -> None:
        self.levels = levels
        self.memory = memory
        self.shift = 12 + bits
        """Bits of an address below the directory's index."""
        self.root = ROOT
        self.result = PageWalk(len(levels))

    @property
    def roots(self) -> tuple[int, ...]:
        return (self.root,)

    root_tables = roots

    def region(self, address: int) -> int:
        return 0

    def places(self, address: int) -> tuple[int, int]:
        """Guest-physical addresses of the directory's entry, and of the entry in its table."""
        upper = self.root + (address >> self.shift) * 4
        table = self.memory.read(upper, 4) & 0xFFFF_FC00
        return upper, table + (address >> 12 & (1 << self.shift - 12) - 1) * 4

    def walk(self, address: int, write: bool, user: bool, fetch: bool) -> PageWalk:
        walk, memory = self.result, self.memory
        upper, lower = self.places(address)
        entry = walk.entries[2] = memory.read(upper, 4)
        walk.entries[3:] = [1] * len(walk.entries[3:])
        walk.tables[3:] = [self.root] * len(walk.tables[3:])
        walk.tables[2] = self._slice(upper, 2)
        walk.level = 2
        if entry & TABLE:
            walk.tables[1] = self._slice(lower, 1)
            entry = walk.entries[1] = memory.read(lower, 4)
            walk.level = 1
        granted = self.rights(entry)
        wanted = (WRITE if write else READ) | (EXECUTE if fetch else 0)
        if not entry & PAGE or wanted & ~granted or (user and not entry & FOR_USER):
            raise ArchitecturalException(14, 0, address)
        walk.address = address
        span = (1 << (12 if walk.level == 1 else self.shift)) - 1
        walk.frame = entry & 0xFFFF_F000 & ~span | address & span & ~0xFFF
        walk.rights = granted | (granted << 3 if entry & FOR_USER else 0)
        return walk

    def _slice(self, at: int, level: int) -> int:
        return at & ~(self.levels[level - 1].mirrored - 1)

    @staticmethod
    def rights(entry: int) -> int:
        return READ | (WRITE if entry & MAY_WRITE else 0) | (EXECUTE if entry & MAY_EXECUTE else 0)

    def below(self, entry: int, level: int, address: int) -> int:
        if level > 2:
            return -1
        table = entry & 0xFFFF_FC00 | (address >> 12 & (1 << self.shift - 12) - 1) * 4
        return self._slice(table, 1) if entry & TABLE else -1

    def through(self, entry: int, user: bool) -> int:
        return READ | WRITE | EXECUTE

    def carried(self, entry: int, level: int) -> int:
        return 0

    def own_rights(self, entry: int, user: bool) -> int:
        return self.rights(entry)

    def ahead(
        self, entries: NDArray[np.generic], user: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], NDArray[np.bool_]]:
        words = entries.astype(np.uint64)
        ready = (words & np.uint64(PAGE)) != 0
        if user:
            ready &= (words & np.uint64(FOR_USER)) != 0
        return ready, words & np.uint64(0xFFFF_F000), (words & np.uint64(MAY_WRITE)) != 0

    def no_code(self, address: int) -> ArchitecturalException:
        return ArchitecturalException(6)


class Cpu:
    """The toy guest, its shadow, and a processor that walks it and keeps nothing."""

    def __init__(self, form: TableFormat, levels: tuple[Level, ...], bits: int, room: int = 1 << 20) -> None:
        self.memory = GuestMemory(MEMORY, BASE)
        self.guest = Toy(self.memory, levels, bits)
        self.form = form
        self.roots: tuple[int, ...] = (0,)
        self.forgotten: list[int] = []
        places = replace(layout.X86_64, tables=0x1000_0000, tables_size=room, code=0x2000_0000, code_count=16)
        places = replace(places, window=0x3000_0000, window_size=WINDOW.size, open_bus=0x3800_0000)
        self.shadow = ShadowPaging(self, self.memory, self.guest, form, places, WINDOW)
        code, window = (memoryview(bytearray(size)) for size in (16 << 12, WINDOW.size))
        self.code = CodePages(
            self.memory.view, code, window, Untouched(), lambda _: b"", lambda page: page, places, WINDOW
        )
        self.code.attach(self.shadow)
        self.shadow.use(KERNEL_VIEW)
        self.tables = 0

    def set_root(self, *physical: int) -> None:
        self.roots = physical

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Nothing is kept."""

    def code_changed(self, address: int, size: int) -> None:
        self.forgotten.append(self.walk(address)[0])

    def map(self, address: int, entry: int, large: bool = False) -> None:
        """The guest writes its tables."""
        upper, _ = self.guest.places(address)
        if large:
            self.memory.write(upper, 4, entry)
            return
        if not self.memory.read(upper, 4) & TABLE:
            self.memory.write(upper, 4, TABLES + self.tables * 4096 | TABLE)
            self.tables += 1
        self.memory.write(self.guest.places(address)[1], 4, entry)

    def walk(self, address: int) -> tuple[int, int]:
        """Physical address of the page and its rights by the shadow tables; -1 where there is none."""
        form, words, pool = self.form, self.shadow.pool.words, self.shadow.pool
        table = pool.table_in(self.roots[0])
        for level in range(len(form.levels), 0, -1):
            shape = form.levels[level - 1]
            entry = words[(table << pool.shift) + (address >> shape.shift & (1 << shape.bits) - 1)]
            if not entry & form.present:
                return -1, 0
            table = pool.table_in(entry) if level > 1 else -1
            if table < 0:
                mask, bits = (form.page_mask, form.pages) if level == 1 else (form.block_mask, form.blocks)
                rights = max(rights for rights in range(8) if bits[rights] == entry & ~mask)
                return (entry & mask) + (address & (1 << shape.shift) - 1 & ~0xFFF), rights
        return -1, 0

    def access(self, address: int, write: bool = False, fetch: bool = False) -> int:
        """Physical address of the page that is reached, filled if it must be."""
        wanted = WRITE if write else EXECUTE if fetch else READ
        for _ in range(2):
            physical, rights = self.walk(address)
            if physical >= 0 and rights & wanted:
                return physical
            self.shadow.fill(address, write, fetch)
        raise AssertionError(f"the fill of {address:#x} does not help")


FORMS = {"short": (SHORT, SAME, 8), "halved": (LONG_MODE, HALVED, 10)}


@pytest.fixture(params=FORMS)
def cpu(request: pytest.FixtureRequest) -> Cpu:
    return Cpu(*FORMS[request.param])


HIGH = 0xC000_0000
ADDRESSES = (0x1000, 0x1F_F000, 0x20_0000, 0x3F_F000, HIGH, HIGH + 0x7_5000, 0xFFFF_F000)


def faults(cpu: Cpu, address: int, write: bool = False) -> bool:
    try:
        cpu.access(address, write)
    except ArchitecturalException:
        return True
    return False


def test_pages_lead_where_the_guests_tables_say_in_both_views(cpu: Cpu) -> None:
    for number, address in enumerate(ADDRESSES):
        cpu.map(address, FREE + number * 4096 | PAGE | (ALL if number % 2 else MAY_WRITE))
    for view in (KERNEL_VIEW, USER_VIEW, KERNEL_VIEW):
        cpu.shadow.use(view)
        for number, address in enumerate(ADDRESSES):
            if view == USER_VIEW and not number % 2:
                assert faults(cpu, address)
            else:
                assert cpu.access(address, write=True) == FREE + number * 4096


def test_a_changed_entry_counts_after_a_flush_and_its_neighbours_stay(cpu: Cpu) -> None:
    for number, address in enumerate(ADDRESSES):
        cpu.map(address, FREE + number * 4096 | PAGE | ALL)
        cpu.access(address)
    fills = cpu.shadow.fills
    for address in (0x20_0000, HIGH):
        cpu.map(address, FREE + 0x5_0000 | PAGE)
        cpu.shadow.load_root()
        assert cpu.access(address) == FREE + 0x5_0000
        cpu.map(address, FREE + 0x6_0000 | PAGE)
        cpu.shadow.invalidate(address)
        assert cpu.access(address) == FREE + 0x6_0000
        assert faults(cpu, address, write=True)
    assert cpu.access(0x3F_F000) == FREE + 3 * 4096
    assert cpu.shadow.fills - fills <= 4 + 2, "what did not change was not filled again"


def test_a_large_page_is_one_entry_until_code_is_in_it(cpu: Cpu) -> None:
    cpu.map(HIGH, BASE + 0x40_0000 | PAGE | ALL, large=True)
    last = HIGH + (1 << cpu.guest.shift) - 4096
    assert cpu.access(HIGH + 0x3000, write=True) == BASE + 0x40_3000
    assert cpu.access(last, write=True) == BASE + 0x40_0000 + (last - HIGH)
    copy = cpu.access(HIGH + 0x3000, fetch=True)
    assert 0x2000_0000 <= copy < 0x2001_0000
    assert cpu.access(HIGH + 0x4000, write=True) == BASE + 0x40_4000
    physical, rights = cpu.walk(HIGH + 0x3000)
    assert not rights & WRITE
    assert cpu.access(HIGH + 0x3000, write=True) == BASE + 0x40_3000, "a store takes the copy out of use"
    assert physical == copy
    cpu.map(HIGH, 0, large=True)
    cpu.shadow.load_root()
    assert faults(cpu, HIGH + 0x3000)
    assert faults(cpu, last)


def test_a_frame_that_executes_is_writable_nowhere(cpu: Cpu) -> None:
    for address in (0x1000, HIGH):
        cpu.map(address, FREE | PAGE | ALL)
        cpu.access(address, write=True)
    cpu.access(0x1000, fetch=True)
    assert not cpu.walk(HIGH)[1] & WRITE
    cpu.access(HIGH, write=True)
    assert cpu.walk(0x1000)[1] & EXECUTE == 0


def test_user_code_runs_from_its_frame_and_is_forgotten_when_that_is_written(cpu: Cpu) -> None:
    cpu.map(0x1000, FREE | PAGE | MAY_EXECUTE | FOR_USER)
    cpu.map(HIGH, FREE | PAGE | MAY_WRITE | FOR_USER)
    cpu.shadow.use(USER_VIEW)
    assert cpu.access(0x1000, fetch=True) == FREE
    assert cpu.access(HIGH, write=True) == FREE
    assert cpu.forgotten == [FREE]


def test_the_window_is_mapped_for_the_kernel_alone_and_stays_beside_the_guests_pages(cpu: Cpu) -> None:
    near = WINDOW.end + 0x1000
    cpu.shadow.install_window()
    cpu.map(0xFFD0_0000, FREE | PAGE | ALL)
    assert cpu.access(0xFFD0_0000) == FREE
    if cpu.walk(WINDOW.base)[0] < 0:
        cpu.shadow.install_window()  # as the next fault would
    assert cpu.walk(WINDOW.base) == (0x3000_0000, READ | EXECUTE)
    assert cpu.walk(WINDOW.shared_page) == (0x3000_8000, READ | WRITE)
    assert cpu.walk(near) == (-1, 0)
    assert cpu.access(0xFFD0_0000) == FREE
    cpu.shadow.use(USER_VIEW)
    assert cpu.walk(WINDOW.base) == (-1, 0)


def test_a_table_that_misses_often_is_filled_ahead(cpu: Cpu) -> None:
    for number in range(16):
        cpu.map(HIGH + number * 4096, FREE + number * 4096 | PAGE | MAY_WRITE)
    for number in range(3):
        cpu.access(HIGH + number * 4096)
    assert cpu.shadow.prefilled >= 10
    assert cpu.walk(HIGH + 15 * 4096) == (FREE + 15 * 4096, READ | WRITE)


def test_what_is_no_memory_is_a_device_or_the_open_bus(cpu: Cpu) -> None:
    cpu.map(HIGH, 0x1000_0000 | PAGE | ALL)
    assert cpu.access(HIGH, write=True) == 0x1000_0000
    with pytest.raises(ArchitecturalException):
        cpu.shadow.fill(HIGH, False, True)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_pool_starts_anew_and_everything_still_works(form: str) -> None:
    cpu = Cpu(*FORMS[form], room=0x1_4000)
    places = [number << cpu.guest.shift for number in range(40)]
    for number, address in enumerate(places):
        cpu.map(address, FREE + number * 4096 | PAGE | ALL)
    for _ in range(2):
        for number, address in enumerate(places):
            cpu.shadow.use(number % 2)
            assert cpu.access(address) == FREE + number * 4096


def test_a_root_that_was_freed_exits_once_and_then_is_data_and_may_be_a_root_again(cpu: Cpu) -> None:
    shadow = cpu.shadow
    shadow.technique = lazy = Lazy(shadow)
    shadow.reset()  # the root was mirrored before
    cpu.map(0x1000, FREE | PAGE | ALL)
    assert cpu.access(0x1000) == FREE
    cpu.guest.root = ROOT + 0x8000
    cpu.map(HIGH, ROOT | PAGE | ALL)
    for _ in range(3):
        shadow.load_root()
        assert cpu.access(HIGH) == ROOT
        assert cpu.access(HIGH, write=True) == ROOT
    assert (lazy.guard.opened, lazy.guard.released) == (1, 1)
    cpu.guest.root = ROOT
    cpu.map(0x1000, 0, large=True)
    cpu.map(0x1000, FREE + 0x1000 | PAGE | ALL)
    shadow.load_root()
    assert cpu.access(0x1000) == FREE + 0x1000
    assert lazy.guard.closed[ROOT - BASE >> 12]
