"""The virtual PSR: disabling and enabling interrupts costs no exit, on every instruction set.

Trapping alone is left out by nature: there every such instruction is an exit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.paravirt.para.para_tiny import FORMS, pairs

MILLION = 1_000_000


@pytest.mark.parametrize("mode", ["inline", "auto", "para"])
@pytest.mark.parametrize("isa", FORMS)
def test_a_million_pairs_cost_no_exit(isa: str, mode: str, tmp_path: Path) -> None:
    few = pairs(isa, mode, 10, tmp_path)
    assert pairs(isa, mode, MILLION, tmp_path) == few
    assert sum(few.values()) < 20


@pytest.mark.parametrize("mode", ["inline", "para"])
@pytest.mark.parametrize(
    ("isa", "technique"),
    [(isa, name) for isa in ("x86-64", "i386", "aarch64", "armv7") for name in ("lazy", "eager", "two-stage")],
)
def test_a_million_pairs_cost_no_exit_whatever_virtualises_memory(
    isa: str, technique: str, mode: str, tmp_path: Path
) -> None:
    """Beside the default, and what `test_table_calls` has where the guest's own tables are walked. MIPS32's processor
    walks none."""
    assert pairs(isa, mode, MILLION, tmp_path, technique) == pairs(isa, mode, 10, tmp_path, technique)


@pytest.mark.parametrize("isa", FORMS)
def test_where_they_trap_each_pair_is_two_exits(isa: str, tmp_path: Path) -> None:
    few, more = (sum(pairs(isa, "trap", count, tmp_path).values()) for count in (10, 110))
    assert more - few == 200
