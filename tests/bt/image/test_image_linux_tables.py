"""A Linux kernel's patch tables, by section and by boundary symbol."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from bt.image import Image, from_bytes, linux_tables
from bt.image.linux_tables import PLACES
from emulator.errors import BadImage
from tests.bt.image.image_files import BASE, DATA, TEXT, Part, make_elf, make_symtab

REPLACEMENTS = Part(".altinstr_replacement", b"\x0f\x01\xca\x90" * 8, BASE + 0x30_0000, 0x130_0000, 5)
TABLES_AT = BASE + 0x40_0000
TABLES_PADDR = 0x140_0000
KEY = DATA.vaddr or 0


@dataclass
class Table:
    """Entries of one table, laid out at `vaddr`; `relative` counts from the place it fills."""

    vaddr: int
    data: bytearray = field(default_factory=bytearray)

    def relative(self, target: int, kind: str = "<i") -> "Table":
        self.data += struct.pack(kind, target - (self.vaddr + len(self.data)))
        return self

    def plain(self, kind: str, *values: int) -> "Table":
        self.data += struct.pack(kind, *values)
        return self


def _tables() -> dict[str, Table]:
    """Two entries of every kind."""
    tables = {name: Table(TABLES_AT + index * 0x1000) for index, name in enumerate(PLACES)}
    replacement = REPLACEMENTS.vaddr or 0
    for index in range(2):
        site = BASE + 16 * index
        tables["alternatives"].relative(site).relative(replacement + 4 * index)
        tables["alternatives"].plain("<HBB", (9 * 32 + 20) | index << 15, 3, 3)
        tables["paravirt"].plain("<QBB6x", site, 44 + index, 6)
        tables["jump_labels"].relative(site).relative(site + 5).relative(KEY + 16 * index + 3 * index, "<q")
        tables["exceptions"].relative(site).relative(site + 8).plain("<I", 3 | index << 8)
        tables["static_calls"].relative(site).relative(KEY + 16 * index + index)
        tables["mcount"].plain("<Q", site)
        for name in ("smp_locks", "retpolines", "returns"):
            tables[name].relative(site)
    return tables


BANNER = b"Linux version 6.1.0-test (somebody@somewhere) #1\0"


def _image(tables: dict[str, Table], by: str = "section", extra: Sequence[Part] = ()) -> Image:
    named = by == "section"
    parts = [TEXT, replace(DATA, data=DATA.data + BANNER, extra=0), REPLACEMENTS]
    symbols = [(KEY + 256, "linux_banner", 0x11, 2)]
    for name, table in tables.items():
        place = PLACES[name]
        section = place.section if named else f".other.{name}"
        parts.append(Part(section, bytes(table.data), table.vaddr, table.vaddr - TABLES_AT + TABLES_PADDR))
        if not named:
            symbols += [(table.vaddr, place.start, 0x10, 1), (table.vaddr + len(table.data), place.end, 0x10, 1)]
    # Section 0 is empty, .symtab stands behind the parts, its names behind it.
    return from_bytes(make_elf((*parts, *make_symtab(symbols, len(parts) + 2), *extra)), "kernel")


@pytest.mark.parametrize("by", ["section", "symbol"])
def test_every_table_is_resolved_to_addresses(by: str) -> None:
    linux = linux_tables.of(_image(_tables(), by))
    assert linux is not None
    assert linux.counts() == dict.fromkeys(PLACES, 2)
    sites, replacement = [BASE, BASE + 16], REPLACEMENTS.vaddr or 0
    alternatives = linux.alternatives
    assert alternatives.sites.tolist() == sites
    assert alternatives.replacements.tolist() == [replacement, replacement + 4]
    assert alternatives.lengths.tolist() == alternatives.replacement_lengths.tolist() == [3, 3]
    assert alternatives.features.tolist() == [9 * 32 + 20] * 2
    assert alternatives.inverted.tolist() == [False, True]
    assert (linux.paravirt.sites.tolist(), linux.paravirt.types.tolist()) == (sites, [44, 45])
    assert linux.paravirt.lengths.tolist() == [6, 6]
    jumps = linux.jump_labels
    assert (jumps.sites.tolist(), jumps.targets.tolist()) == (sites, [BASE + 5, BASE + 21])
    assert (jumps.keys.tolist(), jumps.flags.tolist()) == ([KEY, KEY + 16], [0, 3])
    assert (linux.exceptions.instructions.tolist(), linux.exceptions.fixups.tolist()) == (sites, [BASE + 8, BASE + 24])
    assert linux.exceptions.types.tolist() == [3, 3 | 1 << 8]
    calls = linux.static_calls
    assert (calls.sites.tolist(), calls.keys.tolist(), calls.flags.tolist()) == (sites, [KEY, KEY + 16], [0, 1])
    for addresses in (linux.smp_locks, linux.retpolines, linux.returns, linux.mcount):
        assert addresses.tolist() == sites
    assert linux.version == "6.1.0-test"


@pytest.mark.parametrize("missing", PLACES)
def test_an_absent_table_is_empty(missing: str) -> None:
    tables = _tables()
    del tables[missing]
    linux = linux_tables.of(_image(tables))
    assert linux is not None
    assert linux.counts() == {name: 0 if name == missing else 2 for name in PLACES}


def test_the_zeros_that_fill_the_lock_table_are_no_locks() -> None:
    tables = _tables()
    tables["smp_locks"].data += bytes(64)
    linux = linux_tables.of(_image(tables))
    assert linux is not None
    assert linux.smp_locks.tolist() == [BASE, BASE + 16]


def test_alternatives_of_newer_kernels_carry_their_flags_apart() -> None:
    tables = _tables()
    table = tables["alternatives"] = Table(TABLES_AT)
    for index in range(3):
        table.relative(BASE + 16 * index).relative(REPLACEMENTS.vaddr or 0)
        table.plain("<HHBB", 5, index & 1, 4, 2)
    linux = linux_tables.of(_image(tables))
    assert linux is not None
    assert linux.alternatives.sites.tolist() == [BASE, BASE + 16, BASE + 32]
    assert linux.alternatives.features.tolist() == [5, 5, 5]
    assert linux.alternatives.inverted.tolist() == [False, True, False]
    assert linux.alternatives.lengths.tolist() == [4, 4, 4]


def test_alternatives_of_older_kernels_carry_their_padding() -> None:
    tables = _tables()
    table = tables["alternatives"] = Table(TABLES_AT)
    for index in range(3):
        table.relative(BASE + 16 * index).relative(REPLACEMENTS.vaddr or 0).plain("<HBBB", 5, 4, 2, 1)
    linux = linux_tables.of(_image(tables))
    assert linux is not None
    assert linux.alternatives.sites.tolist() == [BASE, BASE + 16, BASE + 32]
    assert linux.alternatives.replacement_lengths.tolist() == [2, 2, 2]


def test_a_kernel_that_is_no_linux_has_no_tables() -> None:
    assert from_bytes(make_elf(), "kernel").linux is None


@pytest.mark.parametrize("name", PLACES)
def test_a_table_that_names_no_text_is_refused(name: str) -> None:
    tables = _tables()
    tables[name].data[:8] = bytes([0, 0, 0, 0x40]) * 2
    with pytest.raises(BadImage, match=rf"its table {PLACES[name].section} .* is damaged"):
        _ = linux_tables.of(_image(tables))


@pytest.mark.parametrize("name", PLACES)
def test_a_table_cut_inside_an_entry_is_refused(name: str) -> None:
    tables = _tables()
    tables[name].data.pop()
    with pytest.raises(BadImage, match=rf"its table {PLACES[name].section} .* is damaged"):
        _ = linux_tables.of(_image(tables))


def test_boundary_symbols_that_point_nowhere_are_refused() -> None:
    symbols = [(KEY, "linux_banner", 0x11, 2)]
    symbols += [(KEY + (1 << 24), "__smp_locks", 0x10, 2), (KEY + (1 << 25), "__smp_locks_end", 0x10, 2)]
    image = from_bytes(make_elf((TEXT, DATA, *make_symtab(symbols, 4))), "kernel")
    with pytest.raises(BadImage, match="are not in the file"):
        _ = image.linux
