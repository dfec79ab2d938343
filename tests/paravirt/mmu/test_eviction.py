"""A pool of shadow tables that is too small for its guest: all is forgotten again and again, and nothing differs."""

from __future__ import annotations

from typing import Any

import pytest

from bt.bench import memory
from paravirt.mmu.pool import TablePool
from paravirt.mmu.shadow import ShadowPaging

FEW = 40
"""Tables: fewer than a process of 64 MiB needs."""


@pytest.mark.parametrize("technique", ["snapshot", "lazy", "two-stage"])
def test_a_guest_that_needs_more_tables_than_there_are_leaves_the_same_memory_behind(
    technique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, wanted = memory.measure(memory.workload(), technique)
    evictions = 0
    make, reset = TablePool.__init__, ShadowPaging.reset

    def small(self: TablePool, *arguments: Any) -> None:
        make(self, *arguments)
        self.units = FEW

    def counted(self: ShadowPaging) -> None:
        nonlocal evictions
        reset(self)
        evictions = self.evictions

    monkeypatch.setattr(TablePool, "__init__", small)
    monkeypatch.setattr(ShadowPaging, "reset", counted)
    _, room = memory.measure(memory.workload(), technique)
    assert evictions > 3
    assert room.bytes <= 2 * FEW << 12
    assert room.share <= 0.02
    assert (room.digest, room.tables) == (wanted.digest, wanted.tables)
