"""The rows of the embedded engine's quirks: each gives its reason, names upstream's issues, and has its test."""

from __future__ import annotations

import importlib

import pytest

from emulator.engine.unicorn.aarch64_quirks import QUIRKS as AARCH64_QUIRKS
from emulator.engine.unicorn.arm_quirks import ARM_QUIRKS
from emulator.engine.unicorn.mips_quirks import MIPS_QUIRKS
from emulator.engine.unicorn.quirks import QUIRKS, Quirk
from emulator.engine.unicorn.upstream import ISSUE, NAMES

TABLES = {
    "test_quirks": QUIRKS,
    "test_mips_quirks": MIPS_QUIRKS,
    "test_aarch64_quirks": AARCH64_QUIRKS,
    "test_arm_quirks": ARM_QUIRKS,
}
ROWS = [row for table in TABLES.values() for row in table]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_says_what_why_and_which_issue_or_what_was_searched(row: Quirk) -> None:
    assert all((row.name, row.happens, row.architecture, row.mended, row.test))
    assert bool(row.upstream) != bool(row.searched), "an issue by number, or what was searched for in vain"
    assert set(row.upstream) <= set(NAMES)


@pytest.mark.parametrize("module", TABLES)
def test_every_row_has_a_test_of_its_own(module: str) -> None:
    there = importlib.import_module(f"tests.emulator.engine.{module}")
    tests = [row.test for row in TABLES[module]]
    assert len(set(tests)) == len(tests)
    assert [name for name in tests if not callable(getattr(there, name, None))] == []


def test_every_issue_that_has_a_name_is_named_by_a_row() -> None:
    assert {number for row in ROWS for number in row.upstream} == set(NAMES)
    assert ISSUE.format(2272) == "https://github.com/unicorn-engine/unicorn/issues/2272"
