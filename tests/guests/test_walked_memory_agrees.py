"""A para-virtual kernel leaves the same memory behind whether shadow tables are walked or its own: all but page tables,
and page tables in its own numbers of frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.isa.entries import TABLE, EntryFormat, format_of
from paravirt.mmu.direct_views import DirectViews
from paravirt.mmu.techniques import PARA_TECHNIQUES

SAMPLES = Path(__file__).parents[2] / "samples"
GROUPS = "paging.", "memory."
"""Of the port's checks, those that change tables and are interrupted by nothing."""


@dataclass(frozen=True)
class Walked:
    """What is known of a port."""

    form: str
    kernel_base: int
    """Guest-virtual less guest-physical address of its image."""
    roots: Callable[[Any], list[int]]
    """Of a virtual CPU, guest-physical addresses."""
    kept: str
    """Its root for no process, which is one when others are in use, too."""


PORTS = {
    "x86_64": Walked("x86-64", 0xFFFF_FFFF_8000_0000, lambda vcpu: [vcpu.cr3], "kernel_pml4"),
    "i386": Walked("i386 PAE", 0xC000_0000, lambda vcpu: [vcpu.cr3], "kernel_pdpt"),
    "aarch64": Walked(
        "aarch64",
        0xFFFF_8000_0800_0000 - 0x4000_0000,
        lambda vcpu: [vcpu.context.ttbr0, vcpu.context.ttbr1],
        "empty_table",
    ),
}


def tables_of(session: Session, port: Walked, kept: int) -> dict[int, list[int]]:
    """The tables in reach of the roots in use, by frame number, as the guest has written them: without what a processor
    marks, and without the right to write in the kernel's own pages, which it gives up for tables that are walked."""
    driver: Any = session.driver
    form = format_of(port.form)
    memory, views = session.machine.memory, driver.shadow
    direct = views.tables if isinstance(views, DirectViews) else None
    found: dict[int, list[int]] = {}
    waiting = [(root >> 12, form.top) for root in (kept, *port.roots(driver.vcpu))]
    while waiting:
        frame, level = waiting.pop()
        if frame in found:
            continue
        first = (frame << 12) - memory.base >> 3
        here, entries = form.levels[level - 1], list(memory.words[first : first + form.words])
        if direct is not None:
            machine = direct.machine_frame(frame)
            entries = [direct.read(machine, index) for index in range(form.words)]
        found[frame] = [plain(form, level, entry) for entry in entries]
        waiting += [((entry & here.table_address) >> 12, level - 1) for entry in entries if here.decode(entry) == TABLE]
    return found


def plain(form: EntryFormat, level: int, entry: int) -> int:
    here = form.levels[level - 1]
    if not entry & here.present:
        return entry
    kernels = here.write[0] if not entry & (here.imposed or 1) else 0
    return entry & ~(here.marks | kernels)


def states(isa: str, technique: str, group: str) -> list[tuple[str, str, dict[int, list[int]]]]:
    """Memory and tables after each check that passed."""
    port, image = PORTS[isa], load(SAMPLES / isa / "pv.elf")
    volatile = next(section for section in image.sections if section.name == ".volatile")
    kept = image.symbols.address_of(port.kept)
    assert kept is not None
    found: list[tuple[str, str, dict[int, list[int]]]] = []

    def printed(data: bytes) -> None:
        if data.startswith(b"ok "):
            tables = tables_of(session, port, kept - port.kernel_base)
            holes = [(volatile.vaddr - port.kernel_base, volatile.size), *((frame << 12, 4096) for frame in tables)]
            found.append((data.decode(), session.machine.memory.digest(holes), tables))

    options = Options(mode="para", memory=64 << 20, technique=technique, command_line=f"only={group}")
    session = Session(image, options, printed)
    try:
        assert session.run().status == 0
        assert isinstance(session.driver.shadow, DirectViews) == (technique in PARA_TECHNIQUES)  # type: ignore[union-attr]
    finally:
        session.close()
    return found


@pytest.mark.parametrize(
    "isa", ["i386", "aarch64"]
)  # x86-64's is compared after each operation of the memory benchmark
def test_memory_and_tables_are_the_same_after_each_check_whatever_is_walked(isa: str) -> None:
    for group in GROUPS:
        wanted = states(isa, "snapshot", group)
        assert len(wanted) >= 3
        assert len({digest for _, digest, _ in wanted}) > 1, "most leave something behind"
        for technique in ("eager", *PARA_TECHNIQUES):
            for mine, other in zip(wanted, states(isa, technique, group), strict=True):
                assert mine == other
