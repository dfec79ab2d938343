"""Tables of fixed-width instruction sets: bad tables are refused by name, and words are found as one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.isa.operation import Operation
from emulator.isa.patterns import PatternTable
from emulator.isa.sensitive import Pattern, Patterns, Route, SensitiveInstruction, Sensitivity, UserBehaviour


def row(name: str, *patterns: Pattern, routes: tuple[Route, ...] = (Route.TRAP,)) -> SensitiveInstruction:
    return SensitiveInstruction(
        name,
        Patterns(patterns),
        UserBehaviour.TRAPS,
        Sensitivity.CONTROL,
        Operation.HALT,
        routes,
        ".inst 0",
        "nowhere",
    )


WIDE = Pattern(0xFF00_0000, 0xD500_0000, unless=((0xFFFF_0000, 0xD501_0000), (0xFFFF_FFFF, 0xD500_0007)))
NARROW = Pattern(0xFFFF_0000, 0xD501_0000)
HALF = Pattern(0xFF00, 0xBE00, size=2)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([row("a", WIDE), row("a", NARROW)], "two rows are named 'a'"),
        ([row("a", Pattern(0xFF00_0000, 0xD500_0000)), row("b", NARROW)], "rows 'a' and 'b' overlap"),
        ([row("a", Pattern(0xF0, 0x10), Pattern(0x0F, 0x01))], "rows 'a' and 'a' overlap"),
        ([row("a", Pattern(0xFF00_0000, 0xD500_0001))], "bits outside mask"),
        ([row("a", Pattern(0xFF00_0000, 0xD500_0000, unless=((0xFF00_0000, 0xD500_0000),)))], "row 'a' is dead"),
        ([row("a")], "matches no word"),
        ([row("a", Pattern(0x1_0000, 0, size=2))], "does not fit 2 bytes"),
        ([row("a", WIDE, routes=(Route.TRAP, Route.INLINE))], "the trap is the last"),
    ],
)
def test_a_bad_table_is_refused(rows: list[SensitiveInstruction], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PatternTable(rows)


def test_patterns_of_different_sizes_do_not_overlap() -> None:
    table = PatternTable([row("a", Pattern(0xFF00, 0xBE00)), row("b", HALF)])
    assert table.index_of(0xBE00) == 0
    assert table.index_of(0xBE00, 2) == 1


@given(st.lists(st.one_of(st.integers(0, 0xFFFF_FFFF), st.integers(0xD500_0000, 0xD501_0010)), max_size=40))
def test_words_are_found_in_bulk_as_one_by_one(words: list[int]) -> None:
    table = PatternTable([row("wide", WIDE), row("narrow", NARROW), row("half", HALF)])
    positions, rows = table.find(np.array(words, dtype=np.uint32))
    expected = [(at, table.index_of(word)) for at, word in enumerate(words) if table.index_of(word) >= 0]
    assert list(zip(positions.tolist(), rows.tolist(), strict=True)) == expected


@given(st.lists(st.integers(0, 0xFFFF), max_size=40))
def test_halfwords_are_found_in_bulk_as_one_by_one(words: list[int]) -> None:
    table = PatternTable([row("wide", WIDE), row("half", HALF)])
    positions, rows = table.find(np.array(words, dtype=np.uint16), 2)
    assert positions.tolist() == [at for at, word in enumerate(words) if word >> 8 == 0xBE]
    assert set(rows.tolist()) <= {1}


def test_sites_far_apart_are_found_where_they_are() -> None:
    table = PatternTable([row("narrow", NARROW)])
    words = np.zeros(600_001, dtype=np.uint32)
    places = [0, 262_143, 262_144, 600_000]
    words[places] = 0xD501_1234
    assert table.find(words)[0].tolist() == places
