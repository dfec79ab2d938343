"""AArch64 guests print the same whichever way their memory is virtualised, and twice the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt import guests
from bt.console_compare import compare
from bt.image import load
from bt.session import Options, Session, read_initrd
from emulator.errors import Unavailable, UsageError
from emulator.machine import EndKind
from paravirt.mmu.techniques import DEFAULT, TECHNIQUES

SAMPLE = Path(__file__).parents[2] / "samples/aarch64/portable.elf"
OTHERS = [name for name in TECHNIQUES if name != DEFAULT]
PORTED = ["direct", "batched"]
"""Of para-virtual guests, whose own tables the processor walks."""
GROUPS = "paging.", "processes."


def printed(technique: str, group: str) -> tuple[bytes, dict[tuple[str, str], int], str]:
    """Console, exits and the digest of memory."""
    console = bytearray()
    options = Options(memory=64 << 20, technique=technique, command_line=f"only={group}")
    session = Session(load(SAMPLE), options, console.extend)
    try:
        assert session.run().kind is EndKind.POWER_OFF
        return bytes(console), dict(session.driver.exits.counts), session.machine.memory.digest()  # type: ignore[union-attr]
    finally:
        session.close()


@pytest.mark.parametrize("technique", [name for name in OTHERS if name not in PORTED])
def test_the_portable_sample_prints_the_same_and_does_so_twice_the_same(technique: str) -> None:
    for group in GROUPS:
        first, second = (printed(technique, group) for _ in range(2))
        assert first == second
        assert first[0] == printed("", group)[0]
        assert b", 0 failed" in first[0]


@pytest.mark.parametrize("technique", PORTED)
def test_the_tables_of_a_guest_that_does_not_ask_are_not_walked(technique: str) -> None:
    with pytest.raises(UsageError, match="for para-virtual guests"):
        printed(technique, GROUPS[0])


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stock_kernel_prints_the_same_where_its_tables_are_write_protected() -> None:
    try:
        guest = guests.find("debian-arm64")
    except Unavailable as error:
        pytest.skip(str(error))
    consoles = []
    for technique in (DEFAULT, "lazy"):
        console = bytearray()
        options = Options(initrd=read_initrd(guest.initrd), command_line=guest.command_line, technique=technique)
        session = Session(load(guest.kernel), options, console.extend)
        try:
            assert session.run().kind is EndKind.POWER_OFF
        finally:
            session.close()
        consoles.append(bytes(console))
    comparison = compare(consoles[0], consoles[1])
    assert comparison.passed, comparison.report()
