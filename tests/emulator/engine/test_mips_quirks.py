"""Unicorn's departures from MIPS32, each shown raw: a test that fails here says that upstream mended one."""

import ast
import contextlib
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emulator.engine.unicorn.mips_quirks import MIPS_QUIRKS

unicorn: Any = importlib.import_module("unicorn")
names: Any = importlib.import_module("unicorn.mips_const")

CODE, USER, NOWHERE = 0x8000_1000, 0x10, 0x8000_0FF1
BREAK, ADDIU, SYSCALL = 0xD, 0x2484_0001, 0xC


def machine(*words: int, model: bool = False) -> Any:
    """A little-endian MIPS32 with code at physical 1000H."""
    uc = unicorn.Uc(unicorn.UC_ARCH_MIPS, unicorn.UC_MODE_MIPS32)
    if model:
        uc.ctl_set_cpu_model(names.UC_CPU_MIPS32_24KF)
    uc.mem_map(0, 0x10000)
    uc.mem_write(0x1000, b"".join(word.to_bytes(4, "little") for word in words))
    return uc


def translated(uc: Any, asked: list[int] | None = None) -> None:
    """Have a hook translate every address to its low bits, in user mode."""

    def fill(_uc: Any, address: int, _kind: int, entry: Any, _data: object) -> bool:
        if asked is not None:
            asked.append(address & 0xFFFF_FFFF)
        entry.paddr = address & 0xF000
        entry.perms = unicorn.UC_PROT_ALL
        return True

    uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
    uc.hook_add(unicorn.UC_HOOK_TLB_FILL, fill)
    uc.reg_write(names.UC_MIPS_REG_CP0_STATUS, USER)


def test_every_quirk_has_a_test_and_every_test_a_quirk() -> None:
    module = ast.parse(Path(__file__).read_text())
    tests = {node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    tests.discard("test_every_quirk_has_a_test_and_every_test_a_quirk")
    assert sorted(tests) == sorted(quirk.test for quirk in MIPS_QUIRKS)


def test_pc_of_a_break_is_stale_in_a_hook_of_exceptions() -> None:
    seen: list[int] = []

    def hook(uc: Any, _number: int, _data: object) -> None:
        seen.append(uc.reg_read(names.UC_MIPS_REG_PC))
        uc.emu_stop()

    uc = machine(ADDIU, ADDIU, BREAK, SYSCALL)
    uc.hook_add(unicorn.UC_HOOK_INTR, hook)
    uc.emu_start(CODE, NOWHERE)
    assert seen[0] != CODE + 8


def test_376_instructions_without_a_branch_kill_the_process() -> None:
    program = (
        "from tests.emulator.engine.test_mips_quirks import *\n"
        "uc = machine(*[ADDIU] * {}, BREAK)\nuc.hook_add(unicorn.UC_HOOK_INTR, lambda uc, n, d: uc.emu_stop())\n"
        "uc.emu_start(CODE, NOWHERE)\n"
    )
    codes = []
    for count in (360, 380):
        done = subprocess.run(
            [sys.executable, "-c", program.format(count)], capture_output=True, timeout=60, check=False
        )
        codes.append(done.returncode)
    assert codes == [0, -11]


def test_a_filled_delay_slot_leaves_its_branch_behind() -> None:
    # lui a1, 0x10; b over; lw a2, 0(a1) misses in the slot; nop; over: addiu a0, a0, 1
    uc = machine(0x3C05_0010, 0x1000_0002, 0x8CA6_0000, 0, ADDIU, SYSCALL)
    translated(uc)
    uc.hook_add(unicorn.UC_HOOK_INTR, lambda uc, _number, _data: uc.emu_stop())
    uc.emu_start(0x1000, NOWHERE)
    assert uc.reg_read(names.UC_MIPS_REG_4) == 2  # executed as the branch's delay slot, and again as its target


def test_ll_in_a_mapped_segment_fails_though_a_hook_translates() -> None:
    seen: list[int] = []

    def hook(uc: Any, number: int, _data: object) -> None:
        seen.append(number)
        uc.emu_stop()

    uc = machine(0x3C05_0040, 0xC0A6_0000, SYSCALL)
    translated(uc)
    uc.hook_add(unicorn.UC_HOOK_INTR, hook)
    with contextlib.suppress(unicorn.UcError):
        uc.emu_start(0x1000, NOWHERE)
    assert seen[:1] != [17]


def test_a_run_ends_with_the_error_of_a_tlb_exception_long_ago() -> None:
    def hook(uc: Any, number: int, _data: object) -> None:
        if number == 17:
            uc.emu_stop()
        else:
            uc.reg_write(names.UC_MIPS_REG_PC, CODE + 8)

    uc = machine(0x3C05_0040, 0x8CA6_0000, ADDIU, SYSCALL, model=True)  # lui a1, 0x40; lw a2, 0(a1): nothing matches
    uc.hook_add(unicorn.UC_HOOK_INTR, hook)
    with pytest.raises(unicorn.UcError) as error:
        uc.emu_start(CODE, NOWHERE)
    assert error.value.errno == unicorn.UC_ERR_READ_UNMAPPED


def test_the_page_of_until_is_looked_up_at_the_end() -> None:
    asked: list[int] = []
    uc = machine(SYSCALL)
    translated(uc, asked)
    uc.hook_add(unicorn.UC_HOOK_INTR, lambda uc, _number, _data: uc.emu_stop())
    uc.emu_start(0x1000, 0x0070_0001)
    assert asked[-1] == 0x0070_0000


def test_the_processor_is_number_3ff() -> None:
    uc = machine(0x4002_7801, 0x3042_03FF, SYSCALL, model=True)
    uc.hook_add(unicorn.UC_HOOK_INTR, lambda uc, _number, _data: uc.emu_stop())
    uc.emu_start(CODE, NOWHERE)
    assert uc.reg_read(names.UC_MIPS_REG_2) == 0x3FF
