"""ARMv7 guests print the same whichever way their memory is virtualised."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.machine import EndKind
from paravirt.mmu.techniques import DEFAULT, TECHNIQUES

SAMPLE = Path(__file__).parents[2] / "samples/armv7/portable.elf"
OTHERS = [name for name in TECHNIQUES if name != DEFAULT]


def printed(technique: str) -> tuple[bytes, int]:
    """Console of the groups about page tables, and how many exits are stores into one."""
    console = bytearray()
    options = Options(memory=64 << 20, technique=technique, command_line="only=paging.")
    session = Session(load(SAMPLE), options, console.extend)
    try:
        assert session.run().kind is EndKind.POWER_OFF
        counts = session.driver.exits.counts  # type: ignore[union-attr]
        stores = sum(count for (what, _), count in counts.items() if what == "store into a page table")
        return bytes(console), stores
    finally:
        session.close()


@pytest.mark.parametrize("technique", OTHERS)
def test_the_portable_sample_prints_the_same(technique: str) -> None:
    expected, none = printed(DEFAULT)
    console, stores = printed(technique)
    assert (console, none) == (expected, 0)
    assert b"paging." in console
    assert bool(stores) == (technique == "eager")
