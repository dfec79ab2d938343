"""A few instructions of i386 whose own PAE tables are walked: what costs no exit, and changes of the root's entries."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from emulator.machine import EndKind, Outcome
from paravirt.mmu.direct_i386 import I386DirectViews
from paravirt.mmu.techniques import PARA_TECHNIQUES
from tests.bt.image.image_files import Part
from tests.paravirt.para.para_tiny import assemble, run_walked

CODE, TABLES, DATA = 0x100_0000, 0x100_4000, 0x110_0000
UP = 0xC000_0000
ROOT, DIRECTORY, LAST, OTHER = (TABLES + 0x1000 * number for number in range(4))
"""The last is a directory for the second GiB."""
MILLION = 1_000_000


def tables() -> Part:
    """A root whose last GiB has 2 MiB of the image, with the tables read-only; the other directory is nowhere yet."""
    words = [0] * 4 * 512
    words[3], words[512 + 8] = DIRECTORY | 1, LAST | 0x23
    for index in range(512):
        page = CODE + index * 4096
        words[1024 + index] = page | (0x61 if TABLES <= page < TABLES + 0x4000 else 0x63)
    words[1536] = LAST | 0x23
    return Part(".tables", struct.pack("<2048Q", *words), UP + TABLES, TABLES, 6)


BEGIN = (
    f"mov esp, {CODE + 0x3000}; mov eax, {{NEW_BASE}}; mov ebx, {ROOT}; xor ecx, ecx; mov edx, {{CALL}};"
    f"call next; next: pop edi; add edi, {UP + 24}; push edi; jmp edx; nop; nop; nop; nop; nop; nop; nop; nop;"
    + "nop;" * 24
    + f"mov esp, {UP + CODE + 0x3000}; mov ecx, 1; test eax, eax; jnz over;"
)
END = "mov ecx, 0; over: mov ebx, ecx; mov eax, {SHUTDOWN}; mov edx, {CALL}; call edx"


def call(name: str, *arguments: int) -> str:
    registers = ("ebx", "ecx", "edx")
    moves = "".join(f"mov {register}, {value};" for register, value in zip(registers, arguments, strict=False))
    return f"{moves} mov eax, {{{name}}}; mov edi, {{CALL}}; call edi;"


def run(source: str, technique: str, directory: Path, **names: int) -> tuple[Outcome, Any]:
    code = assemble("i386", BEGIN + source + END, **names)
    return run_walked("i386", code, tables(), UP, technique, directory)


@pytest.mark.parametrize("technique", PARA_TECHNIQUES)
def test_a_million_pairs_cost_no_exit_where_pae_tables_are_walked(technique: str, tmp_path: Path) -> None:
    source = (
        "mov edx, {INTERRUPTS}; mov esi, {EVENTS}; mov ebp, {INTERRUPTS_OFF}; mov ecx, {count};"
        "again: mov dword ptr [edx], ebp; mov dword ptr [edx], 0; cmp dword ptr [esi], 0; jne over; dec ecx; jnz again;"
    )
    counts = []
    for count in (10, MILLION):
        outcome, driver = run(source, technique, tmp_path, count=count)
        assert (outcome.clean, outcome.status) == (True, 0)
        assert isinstance(driver.shadow, I386DirectViews)
        counts.append({key: number for key, number in driver.exits.counts.items() if key[1] != "budget"})
    assert counts[0] == counts[1]
    assert driver.engine.registers.privilege == 3


def store(pointer: int, value: int) -> str:
    """One PTE_UPDATE, made on the stack."""
    return (
        f"push 0; push {value}; push 0; push {pointer}; mov ebx, esp; mov ecx, 1; mov eax, {{PTE_UPDATE}};"
        "mov edi, {CALL}; call edi; add esp, 16;"
    )


def test_an_entry_of_the_root_counts_at_once_and_is_gone_when_it_is_taken_away(tmp_path: Path) -> None:
    """The hypervisor's copy of the four entries follows the guest's."""
    source = (
        f"mov dword ptr [{UP + DATA}], 0x77; {store(ROOT + 8, OTHER | 1)} mov ecx, 2; cmp eax, 1; jne over;"
        f"mov ecx, 3; cmp dword ptr [{0x4000_0000 + DATA - CODE}], 0x77; jne over;"
        f"{store(ROOT + 8, 0)} mov ecx, 4; cmp eax, 1; jne over; mov eax, dword ptr [{0x4000_0000 + DATA - CODE}];"
    )
    outcome, driver = run(source, "direct", tmp_path)
    assert outcome.kind is EndKind.TRIPLE_FAULT
    assert "PAGE_FAULT" in outcome.detail
    assert driver.vcpu.gpr[1] == 4


def test_a_root_that_is_no_page_of_its_own_is_refused(tmp_path: Path) -> None:
    source = call("NEW_BASE", ROOT + 32, 0) + "mov ecx, 2; test eax, eax; jz over;"
    outcome, _ = run(source, "direct", tmp_path)
    assert (outcome.clean, outcome.status) == (True, 0)
