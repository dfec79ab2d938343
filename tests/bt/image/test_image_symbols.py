"""Symbols: from .symtab, from a stripped kernel's kallsyms, and by address."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt.image import Image, from_bytes, kallsyms
from bt.image.symbols import Symbol
from emulator.errors import BadImage
from tests.bt.image.image_files import BASE, DATA, TEXT, Part, make_elf, make_kallsyms, make_symtab

RODATA_AT = BASE + 0x40_0000
PERCPU = Part(".data..percpu", bytes(64), 0, 0x180_0000, 6)
FUNC, OBJECT, LOCAL, GLOBAL, WEAK = 2, 1, 0 << 4, 1 << 4, 2 << 4


def _kernel_symbols(count: int = 700) -> list[tuple[int, str, str]]:
    """Per-CPU symbols at 0, then text, one with a name that needs two bytes of length."""
    names = [(at, "A", f"percpu_{at}") for at in (0, 8, 16)]
    names += [(BASE + 4 * index, "t", f"tcp_init_{index}__") for index in range(count - 5)]
    names.append((BASE + 4 * count, "T", "x" + "Q" * 300))
    names.append((DATA.vaddr or 0, "D", "pv_ops"))
    return names


def _stripped(table: bytes, before: int = 64, *, sections: bool = True) -> Image:
    """A kernel whose .rodata holds `table` among other things."""
    rubbish = random.Random(1).randbytes(before * 8)
    rodata = Part(".rodata", rubbish + table + rubbish, RODATA_AT, 0x140_0000)
    text = replace(TEXT, extra=0x1000)
    return from_bytes(make_elf((text, DATA, rodata, PERCPU), sections=sections), "kernel")


@pytest.mark.parametrize("offsets_last", [False, True])
@pytest.mark.parametrize("order_table", [False, True])
@pytest.mark.parametrize("sections", [False, True])
def test_kallsyms_of_every_layout_give_all_symbols_back(offsets_last: bool, order_table: bool, sections: bool) -> None:
    expected = _kernel_symbols()
    table = make_kallsyms(expected, offsets_last=offsets_last, order_table=order_table)
    symbols = _stripped(table, sections=sections).symbols
    assert symbols.source == "kallsyms"
    assert list(symbols) == [Symbol(*symbol) for symbol in expected]


def test_kallsyms_without_absolute_percpu_symbols_count_up_from_their_base() -> None:
    expected = _kernel_symbols()[3:]
    table = make_kallsyms(expected, offsets_last=True, order_table=True, absolute_percpu=False)
    assert list(_stripped(table).symbols) == [Symbol(*symbol) for symbol in expected]


@given(
    st.lists(st.text("abcdefgh_.0123456789", min_size=1, max_size=60), min_size=257, max_size=600),
    st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_kallsyms_of_any_names_are_read_as_written(names: list[str], offsets_last: bool) -> None:
    expected = [(BASE + 2 * index, "tTdr"[index % 4], name) for index, name in enumerate(names)]
    found = kallsyms.find([memoryview(bytes(256) + make_kallsyms(expected, offsets_last=offsets_last))])
    assert found is not None
    assert list(zip(found.addresses.tolist(), found.types, found.names, strict=True)) == expected


def test_a_damaged_kallsyms_is_no_kallsyms() -> None:
    whole = make_kallsyms(_kernel_symbols())
    assert kallsyms.find([memoryview(whole)]) is not None
    cut = [whole[:size] for size in (8, len(whole) // 2, len(whole) - 8)] + [whole[4096:], whole[8:]]
    for table in cut:
        assert kallsyms.find([memoryview(table)]) is None
    assert len(_stripped(cut[0]).symbols) == 0


SMALL_TABLE = make_kallsyms(_kernel_symbols(300))


@given(st.integers(0, len(SMALL_TABLE) - 1), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_any_changed_byte_of_kallsyms_is_survived(position: int, value: int) -> None:
    table = bytearray(SMALL_TABLE)
    table[position] = value
    found = kallsyms.find([memoryview(table)])
    assert found is None or len(found.addresses) == len(found.names) == len(found.types) == 300


def _with_symtab() -> Image:
    entries = [
        (BASE, "_text", GLOBAL | FUNC, 1),
        (BASE, "local_alias", LOCAL | FUNC, 1),
        (BASE + 0x10, "middle", LOCAL | FUNC, 1),
        (BASE + 0x20, "weak", WEAK | FUNC, 1),
        (DATA.vaddr or 0, "variable", GLOBAL | OBJECT, 2),
        (0x1234, "constant", GLOBAL, 0xFFF1),
        (0, "undefined", GLOBAL, 0),
        (BASE, "file.c", 4, 0xFFF1),
        (BASE, "", 3, 1),
    ]
    return from_bytes(make_elf((TEXT, DATA, *make_symtab(entries, 4))), "kernel")


def test_symtab_gives_names_with_the_letters_of_nm() -> None:
    symbols = _with_symtab().symbols
    assert symbols.source == "symtab"
    assert [(symbol.name, symbol.type) for symbol in symbols] == [
        ("constant", "A"),
        ("_text", "T"),
        ("local_alias", "t"),
        ("middle", "t"),
        ("weak", "W"),
        ("variable", "D"),
    ]


def test_an_address_is_named_by_the_symbol_before_it_in_its_segment() -> None:
    symbols = _with_symtab().symbols
    assert symbols.name_at(BASE) == "_text"
    assert symbols.name_at(BASE + 0xF) == "_text+0xf"
    assert symbols.name_at(BASE + 0x10) == "middle"
    assert symbols.name_at((DATA.vaddr or 0) + 5) == "variable+0x5"
    assert symbols.name_at(BASE + 0x10_0000) == "0xffffffff81100000"
    assert symbols.name_at(0) == "0x0"
    assert symbols.find(BASE - 1) is None


def test_a_name_gives_its_address_and_an_unknown_name_none() -> None:
    symbols = _with_symtab().symbols
    assert symbols.address_of("middle") == BASE + 0x10
    assert symbols.address_of("nothing") is None


def test_of_several_symbols_with_one_name_the_lowest_counts() -> None:
    entries = [(BASE + at, "same", LOCAL | FUNC, 1) for at in (8, 4, 12)]
    image = from_bytes(make_elf((TEXT, DATA, *make_symtab(entries, 4))), "kernel")
    assert image.symbols.address_of("same") == BASE + 4


def test_a_symbol_ends_at_the_next_or_at_its_segments_end() -> None:
    symbols = _with_symtab().symbols
    assert symbols.end_of(BASE) == BASE + 0x10
    assert symbols.end_of(BASE + 0x21) == BASE + len(TEXT.data)
    assert symbols.end_of(5) is None


def test_an_image_without_names_has_no_symbols() -> None:
    symbols = from_bytes(make_elf(), "kernel").symbols
    assert (len(symbols), symbols.source) == (0, "none")
    assert symbols.name_at(BASE) == "0xffffffff81000000"
    assert symbols.address_of("_text") is None


def test_a_damaged_symbol_table_is_refused_when_it_is_asked_for() -> None:
    table, names = make_symtab([(BASE, "_text", GLOBAL | FUNC, 1)], 99)
    image = from_bytes(make_elf((TEXT, DATA, table, names)), "kernel")
    with pytest.raises(BadImage, match="names in section 99 of 6"):
        _ = image.symbols
