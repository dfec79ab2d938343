"""A pool of shadow tables that is too small for its guest: all is forgotten again and again, and nothing differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bt.bench import memory
from bt.image import load
from bt.session import Options, Session
from emulator.errors import RetrapError
from emulator.machine import EndKind
from paravirt.mmu import pool
from paravirt.mmu.pool import TablePool
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.techniques import TECHNIQUES

SAMPLES = Path(__file__).parents[3] / "samples"
FEW = 40
"""Tables: fewer than a process of 64 MiB needs."""
FEWEST = {"x86_64": 12, "i386": 12, "aarch64": 12, "armv7": 72}
"""Fewer than a small kernel needs that maps all sorts of things; ARMv7's are of 1 KiB, and its roots of 16."""
MEBIBYTE = 1 << 20


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
    assert room.bytes <= FEW * ((2 << 12) + pool.NOTES)
    assert room.share <= 0.02
    assert (room.digest, room.tables) == (wanted.digest, wanted.tables)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("isa", FEWEST)
def test_kernels_of_every_instruction_set_do_with_few_tables(isa: str, technique: str) -> None:
    printed = []
    for units in (0, FEWEST[isa]):
        text = bytearray()
        options = Options(memory=63 * MEBIBYTE, technique=technique)
        session = Session(load(SAMPLES / isa / "isolation.elf"), options, text.extend)
        try:
            driver: Any = session.driver
            if units:
                driver.shadow.pool.units = units
            assert session.run().kind in (EndKind.DEBUG_EXIT, EndKind.POWER_OFF)
            assert (driver.shadow.evictions > 0) == bool(units)
        finally:
            session.close()
        printed.append(bytes(text))
    assert printed[0] == printed[1]
    assert printed[0].endswith(b"\n0 failed\n")


@pytest.mark.parametrize("units", [1, 4, 6])
@pytest.mark.parametrize("isa", FEWEST)
def test_fewer_tables_than_one_address_space_needs_are_refused_in_a_sentence(isa: str, units: int) -> None:
    assert evictions_until_refused(isa, units, "snapshot") < 20


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize(("isa", "units"), [("x86_64", 10), ("i386", 9), ("aarch64", 11)])
def test_fewer_tables_than_one_instruction_needs_at_once_are_refused_and_always_at_the_same_one(
    isa: str, units: int, technique: str
) -> None:
    first, second = (evictions_until_refused(isa, units, technique) for _ in range(2))
    assert 16 <= first == second < 100


def evictions_until_refused(isa: str, units: int, technique: str) -> int:
    """Run a small kernel with so few units, until the sentence about them."""
    options = Options(memory=63 * MEBIBYTE, technique=technique)
    session = Session(load(SAMPLES / isa / "isolation.elf"), options, lambda _: None)
    try:
        driver: Any = session.driver
        driver.shadow.pool.units = units
        with pytest.raises(RetrapError, match=rf"^{units} units .* give the guest more memory$"):
            session.run()
        return int(driver.shadow.evictions)
    finally:
        session.close()


@pytest.mark.parametrize("unit", [12, 10])
def test_the_pool_is_bounded_by_two_hundredths_of_the_guests_memory_and_by_a_floor(unit: int) -> None:
    for mebibytes in (1, 16, 32, 64, 128, 256, 1024, 3072):
        most = pool.most_units(unit, mebibytes * MEBIBYTE) * ((2 << unit) + pool.NOTES)
        assert most <= max(mebibytes * MEBIBYTE * 0.02, 2 * pool.FLOOR)
    assert pool.most_units(unit, 16 * MEBIBYTE) == pool.FLOOR >> unit + 1
    assert pool.most_units(unit, 3072 * MEBIBYTE) > 32 * pool.FLOOR >> unit + 1


def test_what_python_keeps_of_a_table_is_within_what_the_bound_takes_it_for() -> None:
    import gc
    import tracemalloc

    options = Options(memory=63 * MEBIBYTE, technique="lazy")
    tracemalloc.start()
    try:
        session = Session(load(SAMPLES / "x86_64/isolation.elf"), options, lambda _: None)
        driver: Any = session.driver
        shadow = driver.shadow
        assert session.run().kind is EndKind.DEBUG_EXIT
        tables = shadow.pool.used
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
        shadow.pool.clear()
        shadow.technique.forget()
        shadow.frames.writers.clear()
        shadow._roots.clear()
        gc.collect()
        kept -= tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        session.close()
    assert tables > 30
    assert kept / tables <= pool.NOTES
