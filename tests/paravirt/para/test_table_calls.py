"""The calls that change page tables, made by a guest of a few instructions: over shadow tables, where a table is memory
and the shadow follows, and where the guest's own tables are walked."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.machine import Limits
from paravirt.abi.calls import Status
from paravirt.mmu.direct_views import DirectViews
from paravirt.mmu.techniques import ALL_TECHNIQUES, PARA_TECHNIQUES, TECHNIQUES
from tests.bt.image.image_files import Part, make_elf
from tests.paravirt.para.para_tiny import NOTE, assemble

CODE, TABLES, DATA = 0x100_0000, 0x100_8000, 0x110_0000
ROOT, LAST = TABLES, TABLES + 0x3000
"""A root that maps 2 MiB where they are, and its last-level table."""
MILLION = 1_000_000
WAY = 0xC00 // 8


def guest(tables_writable: bool) -> Part:
    """Four tables; those themselves read-only, or not."""
    words = [0] * 2048
    words[0], words[512], words[1024 + 8] = (TABLES + 0x1000 * level | 0x23 for level in (1, 2, 3))
    for index in range(512):
        page = CODE + index * 4096
        table = TABLES <= page < TABLES + 0x4000
        words[1536 + index] = page | (0x63 if tables_writable or not table else 0x61)
    return Part(".tables", struct.pack("<2048Q", *words), 0xFFFF_FFFF_8000_0000 + TABLES, TABLES, 6)


def call(name: str, *arguments: object) -> str:
    """A call of the interface."""
    registers = ("rdi", "rsi", "rdx")
    moves = "".join(f"mov {register}, {value};" for register, value in zip(registers, arguments, strict=False))
    return f"{moves} mov eax, {{{name}}}; mov r11, {{CALL}}; call r11;"


def wants(number: int, what: str, value: int) -> str:
    """End with status `number` where `what` (RAX, or memory) is not `value`."""
    return f"mov ecx, {number}; mov rbx, {what}; mov rdx, {value & (1 << 64) - 1:#x}; cmp rbx, rdx; jne over;"


BEGIN = (
    "mov rsp, 0x1007000; mov r12, 0x1100000; mov dword ptr [r12], 0x1111; mov dword ptr [r12 + 0x1000], 0x2222;"
    + call("NEW_BASE", ROOT, 0)
    + wants(1, "rax", 0)
)
END = "mov ecx, 0; over: mov edi, ecx; mov eax, {SHUTDOWN}; mov r11, {CALL}; call r11;"


def run(source: str, technique: str, directory: Path, **names: int) -> tuple[int, Any]:
    """The status that a guest ends with, and its hypervisor."""
    code = assemble("x86-64", BEGIN + source + END, **names)
    text = Part(".text", code, 0xFFFF_FFFF_8000_0000 + CODE, CODE, 7, 0x2000)
    parts = [text, Part(".retrap.note", NOTE, type=7), guest(technique in TECHNIQUES)]
    path = directory / "tables.elf"
    path.write_bytes(make_elf(parts, CODE, machine=62, bits=64))
    options = Options(mode="para", memory=64 << 20, cache=False, technique=technique, limits=Limits(host_seconds=60))
    session = Session(load(path), options, lambda _data: None)
    try:
        outcome = session.run()
        assert outcome.clean or outcome.status, outcome
        return outcome.status, session.driver
    finally:
        session.close()


@pytest.mark.parametrize("technique", ALL_TECHNIQUES)
def test_an_updated_page_is_seen_at_once(technique: str, tmp_path: Path) -> None:
    source = (
        wants(2, "[r12]", 0x1111)
        + call("PTE_UPDATE_PAGE", DATA, DATA + 0x1000 | 3)
        + wants(3, "rax", 0)
        + wants(4, "[r12]", 0x2222)
        + call("PTE_UPDATE_PAGE", DATA, DATA | 3)
        + wants(5, "[r12]", 0x1111)
        + call("PTE_UPDATE_PAGE", 0x4000_0000, DATA | 3)  # where no table is
        + wants(6, "rax", -Status.INVALID)
    )
    status, driver = run(source, technique, tmp_path)
    assert status == 0
    assert isinstance(driver.shadow, DirectViews) == (technique in PARA_TECHNIQUES)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_shadowed_table_is_open_to_stores_and_followed_when_it_is_closed_and_flushed(
    technique: str, tmp_path: Path
) -> None:
    entry = LAST + (DATA >> 12 & 511) * 8
    source = (
        wants(2, "[r12]", 0x1111)
        + call("TABLE_OPEN", LAST)
        + wants(3, "rax", 0)
        + f"mov rax, {DATA + 0x1000 | 3}; mov r13, {entry}; mov [r13], rax;"
        + call("TABLE_CLOSE", LAST)
        + wants(4, "rax", 0)
        + call("FLUSH_PAGE", DATA)
        + wants(5, "[r12]", 0x2222)
        + call("TABLE_OPEN", LAST + 8)
        + wants(6, "rax", -Status.INVALID)
        + call("TABLE_CLOSE", 0x1000_0000)  # beyond memory
        + wants(7, "rax", -Status.INVALID)
    )
    assert run(source, technique, tmp_path)[0] == 0


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_pins_of_shadowed_tables_are_checked_and_keep_nothing(technique: str, tmp_path: Path) -> None:
    entry = LAST + (DATA >> 12 & 511) * 8
    source = (
        call("PIN", LAST, 1)
        + wants(2, "rax", 0)
        + call("PIN", ROOT, 4)
        + wants(3, "rax", 0)
        + f"mov rax, {DATA + 0x1000 | 3}; mov r13, {entry}; mov [r13], rax;"  # still memory
        + call("FLUSH_ALL")
        + wants(4, "[r12]", 0x2222)
        + call("UNPIN", LAST)
        + wants(5, "rax", 0)
        + "".join(
            call("PIN", table, level) + wants(6 + number, "rax", -Status.INVALID)
            for number, (table, level) in enumerate([(LAST, 0), (LAST, 5), (LAST + 16, 1), (0x1000_0000, 1)])
        )
    )
    assert run(source, technique, tmp_path)[0] == 0


@pytest.mark.parametrize("told", ["serialised", "called"])
@pytest.mark.parametrize("technique", PARA_TECHNIQUES)
def test_code_that_was_written_is_what_runs_where_it_runs_from_the_guests_own_frames(
    technique: str, told: str, tmp_path: Path
) -> None:
    tell = "mov eax, 0; cpuid;" if told == "serialised" else call("CODE_CHANGED", DATA, 8)
    source = "".join(
        f"mov rax, {0xC3 << 40 | value << 8 | 0xB8:#x}; mov [r12], rax;"  # mov eax, value; ret
        + (tell if value > 1 else "")
        + "mov r14, r12; call r14;"
        + wants(1 + value, "rax", value)
        for value in range(1, 6)
    )
    assert run(source, technique, tmp_path)[0] == 0


@pytest.mark.parametrize("technique", PARA_TECHNIQUES)
def test_a_million_pairs_cost_no_exit_where_the_guests_own_tables_are_walked(technique: str, tmp_path: Path) -> None:
    source = (
        "mov r8, {INTERRUPTS}; mov r9, {EVENTS}; mov r10, {INTERRUPTS_OFF}; mov ecx, {count};"
        "again: mov qword ptr [r8], r10; mov qword ptr [r8], 0; cmp qword ptr [r9], 0; jne over; dec ecx; jnz again;"
    )
    counts = []
    for count in (10, MILLION):
        status, driver = run(source, technique, tmp_path, count=count)
        assert status == 0
        assert driver.shared[WAY] == {"direct": 1, "batched": 2}[technique]
        counts.append({key: number for key, number in driver.exits.counts.items() if key[1] != "budget"})
    assert counts[0] == counts[1]
