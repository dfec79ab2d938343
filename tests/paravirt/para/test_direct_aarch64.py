"""A few instructions of AArch64 whose own tables the processor walks: what costs no exit, how code is made known, and
what a kernel may not do by itself."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.machine import EndKind, Limits, Outcome
from paravirt.mmu.direct_aarch64 import AArch64DirectViews
from paravirt.mmu.techniques import PARA_TECHNIQUES
from tests.bt.image.image_files import Part, make_elf
from tests.paravirt.para.para_tiny import NOTE, assemble, run_walked

CODE, TABLES, DATA = 0x4010_0000, 0x4010_4000, 0x4011_0000
UP = 0xFFFF_7FFF_C800_0000
"""Guest-virtual less guest-physical addresses."""
LOWER, UPPER = TABLES, TABLES + 0x1000
MILLION = 1_000_000
PAGE, READ_ONLY, USER_NO_EXECUTE = 0x703, 0x80, 1 << 54


def tables() -> Part:
    """An empty lower root, and an upper one that maps 2 MiB: all of it may be executed by the kernel, and all written
    but the tables."""
    words = [0] * 5 * 512
    words[512 + 256], words[1024], words[1536 + 64] = (TABLES + 0x1000 * level | 3 for level in (2, 3, 4))
    for index in range(512):
        page = 0x4000_0000 + index * 4096
        table = TABLES <= page < TABLES + 0x5000
        words[2048 + index] = page | PAGE | USER_NO_EXECUTE | (READ_ONLY if table else 0)
    return Part(".tables", struct.pack("<2560Q", *words), UP + TABLES, TABLES, 6)


BEGIN = (
    f"ldr x9, ={{CALL}}; mov x8, #{{NEW_BASE}}; ldr x0, ={LOWER}; mov x1, #0; blr x9;"
    f"ldr x9, ={{CALL}}; mov x8, #{{NEW_BASE}}; ldr x0, ={UPPER}; mov x1, #1; adr x30, high; ldr x6, ={UP};"
    f"add x30, x30, x6; br x9; high: cbnz x0, bad; mov x19, #0; ldr x20, ={UP + DATA};"
)
END = "b over; bad: mov x19, #1; over: mov x8, #{SHUTDOWN}; mov x0, x19; ldr x9, ={CALL}; blr x9; here: b here"


def run(source: str, technique: str, directory: Path, **names: int) -> tuple[Outcome, Any]:
    code = assemble("aarch64", BEGIN + source + END, **names)
    return run_walked("aarch64", code, tables(), UP, technique, directory)


@pytest.mark.parametrize("technique", PARA_TECHNIQUES)
def test_a_million_pairs_cost_no_exit_where_aarch64_tables_are_walked(technique: str, tmp_path: Path) -> None:
    source = (
        "ldr x1, ={count}; ldr x2, ={INTERRUPTS}; ldr x3, ={EVENTS}; mov x4, #{INTERRUPTS_OFF};"
        "again: str x4, [x2]; str xzr, [x2]; ldr x5, [x3]; cbnz x5, bad; subs x1, x1, #1; b.ne again;"
    )
    counts = []
    for count in (10, MILLION):
        outcome, driver = run(source, technique, tmp_path, count=count)
        assert outcome.clean
        assert isinstance(driver.shadow, AArch64DirectViews)
        counts.append({key: number for key, number in driver.exits.counts.items() if key[1] != "budget"})
    assert counts[0] == counts[1]
    assert driver.engine.registers.level == 0


def test_code_is_known_by_the_maintenance_of_caches(tmp_path: Path) -> None:
    """As a processor's manual asks for it: what was written is what runs."""
    source = "".join(
        f"ldr x1, ={0xD65F03C0 << 32 | 0x52800000 | value << 5}; str x1, [x20];"  # mov w0, #value; ret
        "dc cvau, x20; dsb ish; ic ivau, x20; dsb ish; isb; blr x20;"
        f"cmp x0, #{value}; b.ne bad;"
        for value in range(1, 6)
    )
    outcome, driver = run(source, "direct", tmp_path)
    assert outcome.clean
    assert driver.exits.counts["cache maintenance", "trap"] == 10


def test_maintenance_of_what_is_not_mapped_is_a_fault_of_the_guest(tmp_path: Path) -> None:
    outcome, _ = run("ic ivau, xzr;", "direct", tmp_path)
    assert outcome.kind is EndKind.TRIPLE_FAULT
    assert "PAGE_FAULT" in outcome.detail


def test_a_store_into_a_table_in_use_is_the_guests_own_fault(tmp_path: Path) -> None:
    outcome, _ = run(f"ldr x1, ={UP + UPPER}; ldr x2, [x1]; str x2, [x1];", "direct", tmp_path)
    assert outcome.kind is EndKind.TRIPLE_FAULT
    assert "PAGE_FAULT" in outcome.detail


@pytest.mark.parametrize("instruction", ["msr ttbr0_el1, x20", "msr ttbr1_el1, x20", "msr tcr_el1, x20"])
def test_a_kernel_that_changes_translation_by_itself_is_ended_by_a_sentence(instruction: str, tmp_path: Path) -> None:
    outcome, _ = run(instruction + ";", "direct", tmp_path)
    assert outcome.kind is EndKind.TRIPLE_FAULT
    assert "roots are called" in outcome.detail


def test_a_root_that_leads_to_another_frame_is_refused_and_the_guest_stays_under_shadow_tables(tmp_path: Path) -> None:
    source = (
        f"ldr x9, ={{CALL}}; mov x8, #{{NEW_BASE}}; ldr x0, ={UPPER}; mov x1, #1; blr x9;"
        "cbz x0, bad; mov x8, #{VERSION}; blr x9; cbz x0, bad;"
    )
    code = f"ldr x1, ={LOWER}; ldr x2, ={1 << 40 | 3}; str x2, [x1];"
    full = code + BEGIN[: BEGIN.index("ldr x9", 10)] + source + "mov x19, #0;" + END
    text = Part(".text", assemble("aarch64", full), UP + CODE, CODE, 7, 0x2000)
    path = tmp_path / "refused.elf"
    path.write_bytes(make_elf([text, Part(".retrap.note", NOTE, type=7), tables()], CODE, machine=183, bits=64))
    options = Options(mode="para", memory=64 << 20, cache=False, technique="direct", limits=Limits(host_seconds=60))
    session = Session(load(path), options, lambda _data: None)
    try:
        outcome = session.run()
        driver: Any = session.driver
        assert outcome.clean
        assert not isinstance(driver.shadow, AArch64DirectViews)
        assert driver.shared[0xC20 // 8] == 1
    finally:
        session.close()
