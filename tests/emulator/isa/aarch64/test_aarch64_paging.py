"""AArch64's tables: what a walk finds and refuses, and that the engine, walking the same tables, agrees."""

import mmap
from collections.abc import Iterator

import pytest

from emulator.engine.aarch64 import AArch64Engine
from emulator.engine.engines import open_unicorn_aarch64
from emulator.engine.exit import Exit
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64 import paging as p
from emulator.isa.aarch64.encoding import BRK
from emulator.isa.aarch64.exceptions import AArch64Exception
from emulator.isa.aarch64.paging import AArch64Tables, TranslationContext, Walker
from emulator.isa.paging import EXECUTE, GLOBAL, KERNEL_SHIFT, READ, USER_SHIFT, WRITE

BASE = 0x4000_0000
SIZE = 0x10_0000
SCTLR = 0x30D0_0801
TCR = 16 | 16 << 16 | 2 << 30 | 1 << 32
PAGE = p.VALID | p.TABLE | p.ACCESSED
LOWER, UPPER = 0x12_3456_7000, 0xFFFF_8000_0812_3000


class Tables:
    """Guest memory with tables in it, taken page by page; the first two are the roots."""

    def __init__(self, tcr: int = TCR, sctlr: int = SCTLR) -> None:
        self.memory = memoryview(mmap.mmap(-1, SIZE))
        self.words = self.memory.cast("Q")
        self.next = BASE + 0x2000
        self.context = TranslationContext(sctlr, tcr, BASE, BASE + 0x1000)
        self.walker = Walker(self.words, BASE, self.context)

    def put(self, address: int, entry: int, level: int = 1, tables: int = p.VALID | p.TABLE) -> None:
        """Map `address` by an entry of `level`, by new tables with the bits `tables`."""
        table = BASE + 0x1000 * (address >> 55 & 1)
        for above in range(4, level, -1):
            at = (table - BASE >> 3) + (address >> above * 9 + 3 & 511)
            if not self.words[at]:
                self.words[at] = self.next | tables
                self.next += 0x1000
            table = self.words[at] & p.FRAME_MASK
        self.words[(table - BASE >> 3) + (address >> level * 9 + 3 & 511)] = entry

    def rights(self, address: int) -> tuple[int, int]:
        """EL1's and EL0's rights."""
        rights = self.walker.walk(address, False, False, False).rights
        return rights >> KERNEL_SHIFT & 7, rights >> USER_SHIFT & 7


@pytest.mark.parametrize(("address", "region"), [(LOWER, 0), (UPPER, 1)])
def test_a_page_is_found_in_the_half_that_bit_55_names(address: int, region: int) -> None:
    tables = Tables()
    tables.put(address, 0x8_7654_3000 | PAGE)
    walk = tables.walker.walk(address + 0x123, False, False, False)
    assert (walk.frame, walk.size, walk.level, walk.region, walk.attributes) == (0x8_7654_3000, 12, 1, region, GLOBAL)


@pytest.mark.parametrize(("level", "size"), [(2, 21), (3, 30)])
def test_a_block_is_found_with_the_page_inside_it(level: int, size: int) -> None:
    tables = Tables()
    tables.put(LOWER, 0x8_4000_0000 | p.VALID | p.ACCESSED | p.NOT_GLOBAL, level)
    walk = tables.walker.walk(LOWER, True, False, False)
    assert (walk.frame, walk.size, walk.attributes) == (0x8_4000_0000 | LOWER & (1 << size) - 1 & ~0xFFF, size, 0)


RIGHTS = [
    (0, 0, READ | WRITE | EXECUTE, EXECUTE),
    (p.USER, 0, READ | WRITE, READ | WRITE | EXECUTE),  # what EL0 may write EL1 does not execute
    (p.READ_ONLY, 0, READ | EXECUTE, EXECUTE),
    (p.USER | p.READ_ONLY, 0, READ | EXECUTE, READ | EXECUTE),
    (p.USER | p.READ_ONLY | p.PRIVILEGED_NO_EXECUTE, 0, READ, READ | EXECUTE),
    (p.USER | p.USER_NO_EXECUTE, 0, READ | WRITE, READ | WRITE),
    (p.USER, p.TABLE_READ_ONLY, READ | EXECUTE, READ | EXECUTE),
    (p.USER, p.TABLE_NO_USER, READ | WRITE | EXECUTE, EXECUTE),
    (p.USER | p.READ_ONLY, p.TABLE_NO_EXECUTE | p.TABLE_NO_PRIVILEGED_EXECUTE, READ, READ),
]


@pytest.mark.parametrize(("entry", "above", "kernel", "user"), RIGHTS)
def test_rights_are_those_of_the_entry_less_what_tables_above_take(
    entry: int, above: int, kernel: int, user: int
) -> None:
    tables = Tables()
    tables.put(LOWER, BASE | PAGE | entry, tables=p.VALID | p.TABLE | above)
    assert tables.rights(LOWER) == (kernel, user)


def test_with_wxn_what_can_be_written_is_not_executed() -> None:
    tables = Tables(sctlr=SCTLR | p.SCTLR_WXN)
    tables.put(LOWER, BASE | PAGE)
    tables.put(LOWER + 0x1000, BASE | PAGE | p.READ_ONLY)
    assert tables.rights(LOWER)[0] == READ | WRITE
    assert tables.rights(LOWER + 0x1000)[0] == READ | EXECUTE


def refused(tables: Tables, address: int, write: bool = False, user: bool = False, fetch: bool = False) -> int:
    """Fault status of a walk that must fail, and that its class and address are right."""
    with pytest.raises(AArch64Exception) as raised:
        tables.walker.walk(address, write, user, fetch)
    fault = raised.value
    assert (fault.vector, fault.address) == (x.FETCH_SAME if fetch else x.DATA_SAME, address)
    assert bool((fault.error or 0) & x.WNR) == (write and not fetch)
    return (fault.error or 0) & 0x3F


def test_refusals_say_why_and_at_which_level() -> None:
    tables = Tables()
    tables.put(LOWER, BASE | PAGE | p.READ_ONLY | p.USER_NO_EXECUTE)
    tables.put(LOWER + 0x1000, BASE | PAGE & ~p.ACCESSED)
    tables.put(LOWER + 0x2000, 1 << 40 | PAGE)
    tables.put(LOWER + 0x20_0000, 0x7_0000_0000 | p.VALID, 2)
    tables.put(LOWER + 0x40_0000, 0x7_0000_0000 | p.VALID | p.TABLE, 2)
    assert refused(tables, LOWER, write=True) == x.PERMISSION_FAULT | 3
    assert refused(tables, LOWER, user=True) == x.PERMISSION_FAULT | 3
    assert refused(tables, LOWER, user=True, fetch=True) == x.PERMISSION_FAULT | 3
    assert refused(tables, LOWER + 0x1000) == x.ACCESS_FLAG_FAULT | 3
    assert refused(tables, LOWER + 0x2000) == x.ADDRESS_SIZE_FAULT | 3
    assert refused(tables, LOWER + 0x3000) == x.TRANSLATION_FAULT | 3
    assert refused(tables, LOWER + 0x20_0000) == x.ACCESS_FLAG_FAULT | 2
    assert refused(tables, LOWER + 0x40_0000) & ~7 == x.EXTERNAL_ABORT
    assert refused(tables, 0x200_0000_0000) == x.TRANSLATION_FAULT
    assert refused(tables, 0x1_0000_0000_0000) == x.TRANSLATION_FAULT
    assert refused(tables, 0xFF7F_0000_0000_0000) == x.TRANSLATION_FAULT


def test_a_disabled_half_has_no_translations_and_a_smaller_one_fewer_levels() -> None:
    tables = Tables(TCR | p.TCR_EPD1)
    tables.put(UPPER, BASE | PAGE)
    assert refused(tables, UPPER) == x.TRANSLATION_FAULT
    smaller = Tables(25 | 16 << 16 | 2 << 30)
    smaller.words[0x12] = BASE + 0x2000 | 3  # 39 bits: the root is of the third level
    smaller.words[0x400] = BASE + 0x3000 | 3
    smaller.words[0x600] = BASE + 0x5000 | PAGE
    assert smaller.walker.walk(0x12 << 30, False, False, False).frame == BASE + 0x5000
    assert refused(smaller, 1 << 39) == x.TRANSLATION_FAULT


def test_without_translation_addresses_are_physical() -> None:
    tables = Tables(sctlr=SCTLR & ~1)
    walk = tables.walker.walk(0x4012_3000, True, False, False)
    assert (walk.frame, walk.level, walk.rights) == (0x4012_3000, 2, 0x3F)
    assert refused(tables, 1 << 40) == x.ADDRESS_SIZE_FAULT


def test_a_changed_entry_is_seen_at_once_and_a_changed_table_when_it_was_said() -> None:
    tables = Tables()
    tables.put(LOWER, BASE | PAGE)
    assert tables.walker.walk(LOWER, False, False, False).frame == BASE
    tables.put(LOWER, BASE + 0x1000 | PAGE)
    assert tables.walker.walk(LOWER, False, False, False).frame == BASE + 0x1000
    tables.words[LOWER >> 39] = 0
    tables.context.generation += 1
    assert refused(tables, LOWER) == x.TRANSLATION_FAULT


def test_tables_that_a_guest_does_not_have_are_told_apart() -> None:
    tables = Tables(25 | 25 << 16 | 2 << 30)
    guest = AArch64Tables(tables.memory, BASE, tables.context)
    off = TranslationContext(SCTLR & ~1)
    without = AArch64Tables(tables.memory, BASE, off)
    names = [*guest.root_tables, *without.root_tables]
    assert len(set(names)) == 4
    assert all(name < 0 for name in names)
    walked = {without.walk(address, False, False, False).tables[2] for address in (0, 1 << 30, 1 << 35)}
    assert len(walked) == 3


@pytest.fixture
def engine() -> Iterator[AArch64Engine]:
    opened = open_unicorn_aarch64()
    yield opened
    opened.close()


@pytest.mark.parametrize(("entry", "above", "kernel", "user"), RIGHTS)
def test_the_engine_agrees_with_the_walk(engine: AArch64Engine, entry: int, above: int, kernel: int, user: int) -> None:
    tables = Tables()
    tables.put(LOWER, BASE + 0x8_0000 | PAGE | entry, tables=p.VALID | p.TABLE | above)
    other = 0x100_0000_0000
    tables.put(other, BASE + 0x9_0000 | PAGE | p.USER | p.READ_ONLY)
    done = BRK | 5 << 5
    for at, words in ((0x8_0000, (done,)), (0x9_0000, (0xF940_0020, done, 0xF900_0020, done, 0xD61F_0020))):
        for number, word in enumerate(words):
            tables.words[at + 4 * number >> 3] |= word << 32 * (number & 1)
    engine.map_memory(BASE, tables.memory)
    engine.set_roots(BASE, BASE + 0x1000)
    engine.set_control(SCTLR, TCR, 0xFF)
    state = engine.registers
    for level, granted in ((1, kernel), (0, user)):
        for right, start in ((READ, 0), (WRITE, 8), (EXECUTE, 16)):
            if right is EXECUTE and not kernel | user:
                continue
            seen: list[int] = []

            def handler(exit_: Exit, seen: list[int] = seen) -> None:
                seen.append(exit_.vector)
                engine.stop()

            state.level, state.gpr[1], state.pc = level, LOWER, other + start
            engine.run(handler)
            assert (seen[0] == x.BREAKPOINT) == bool(granted & right), (level, right)
            tables.words[0x8_0000 >> 3] = done
