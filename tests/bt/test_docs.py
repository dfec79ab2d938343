"""The printed documentation: it is what the code says, and a stale or stray file is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt import docs
from emulator.errors import KINDS
from emulator.isa.isas import ISAS
from paravirt import abi


def test_the_printed_pages_are_up_to_date() -> None:
    assert docs.differences() == []


def test_a_stale_a_missing_and_a_stray_page_are_each_noticed(tmp_path: Path) -> None:
    docs.write(tmp_path)
    assert docs.differences(tmp_path) == []
    stale, missing, *_ = docs.PAGES
    (tmp_path / stale).write_text("old")
    (tmp_path / missing).unlink()
    (tmp_path / "stray.md").touch()
    found = docs.differences(tmp_path)
    assert [sentence.split(" is ")[1] for sentence in found] == ["out of date", "missing", "made by nothing"]
    docs.write(tmp_path)
    assert docs.differences(tmp_path) == []


@pytest.mark.parametrize("name", ["x86-64", "i386"])
def test_every_row_of_the_instruction_table_is_printed(name: str) -> None:
    page = docs.sensitive_instructions(name)
    assert all(f"| {row.name} | `{row.example}` |" in page for row in ISAS[name].rows)


def test_every_kind_of_error_is_in_the_table_of_statuses() -> None:
    page = docs.exit_statuses()
    assert all(kind.meaning in page for kind in KINDS)


def test_constants_are_found_with_the_text_below_them() -> None:
    constants = {name: (value, text) for name, value, text in docs.documented_constants(abi)}
    assert constants["SHARED_PAGE"][0] == abi.SHARED_PAGE
    assert constants["SHARED_PAGE"][1].startswith("The page of virtual CPU state")
