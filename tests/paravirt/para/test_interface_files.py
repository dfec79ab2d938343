"""The para-virtual interface as printed: the files for guests are what the code says, and compilers take them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from bt.cli.main import cli
from paravirt.abi import calls, guests, printing
from paravirt.abi.guests import CONVENTIONS

INCLUDES = Path(__file__).parents[3] / "samples" / "include"
COMPILERS = {
    "x86-64": ("gcc",),
    "i386": ("gcc", "-m32"),
    "aarch64": ("aarch64-linux-gnu-gcc",),
    "armv7": ("arm-linux-gnueabihf-gcc",),
    "mips32": ("mipsel-linux-gnu-gcc", "-mno-abicalls", "-msoft-float"),
}
CHECKS = """
#include "retrap.h"
_Static_assert(sizeof(struct retrap_frame) == RETRAP_FRAME_BYTES, "frame");
_Static_assert(sizeof(retrap_word) == RETRAP_WORD, "word");
_Static_assert(sizeof(struct retrap_update) == 16, "update");
_Static_assert(sizeof(struct retrap_element) == 6 * RETRAP_WORD, "element");
_Static_assert(__builtin_offsetof(struct retrap_frame, pc) == RETRAP_FRAME_PC, "pc");
_Static_assert(__builtin_offsetof(struct retrap_frame, address) == RETRAP_FRAME_ADDRESS, "address");
void use(retrap_word at) { retrap_interrupts_off(); retrap_pte_update(at, 1); retrap_interrupts_on(); }
"""


@pytest.mark.parametrize("name", printing.FILES)
def test_what_guests_include_is_what_the_code_prints(name: str) -> None:
    assert (INCLUDES / name).read_text() == printing.FILES[name](), "run `python -m bt.docs`"


def test_no_file_in_there_is_printed_by_nothing() -> None:
    assert {path.name for path in INCLUDES.iterdir()} == set(printing.FILES)


@pytest.mark.parametrize("isa", CONVENTIONS)
def test_the_header_says_of_every_frame_what_the_hypervisor_writes(isa: str, tmp_path: Path) -> None:
    compiler, *flags = COMPILERS[isa]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    source = tmp_path / "use.c"
    source.write_text(CHECKS)
    command = [compiler, *flags, "-O2", "-ffreestanding", "-fno-pic", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [*command, f"-I{INCLUDES}", "-c", str(source), "-o", str(tmp_path / "use.o")], check=False, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_call_has_one_row_a_number_of_its_own_and_no_more_arguments_than_registers() -> None:
    assert [row.call for row in calls.CALLS] == sorted(row.call for row in calls.CALLS)
    assert {row.call for row in calls.CALLS} == set(calls.Call)
    for convention in CONVENTIONS.values():
        assert len(convention.arguments) == calls.MOST_ARGUMENTS
        assert all(len(row.arguments) <= len(convention.arguments) for row in calls.CALLS)
        assert len({convention.number, *convention.arguments}) == 1 + calls.MOST_ARGUMENTS


@pytest.mark.parametrize("isa", CONVENTIONS)
def test_entry_points_and_shared_words_do_not_meet(isa: str) -> None:
    convention = CONVENTIONS[isa]
    window = convention.window
    assert guests.CALL_ENTRY + len(convention.trap) <= guests.RETURN_ENTRY
    assert guests.RETURN_ENTRY + len(convention.trap) <= 0x40 <= window.fixup_size
    words = [guests.MASK_OFFSET, guests.FPU_OFFSET, guests.VERSION_OFFSET]
    assert all(window.scratch + window.scratch_words * window.word <= word < guests.MACHINE_OFFSET for word in words)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["abi", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_each_form() -> None:
    assert run() == run("--version") == f"{calls.ABI_MAJOR}.{calls.ABI_MINOR}\n"
    assert run("--header") == (INCLUDES / "retrap.h").read_text()
    assert run("--asm") == (INCLUDES / "retrap_asm.h").read_text()


def test_the_json_and_the_assembler_file_give_the_same_numbers() -> None:
    value = json.loads(run("--json"))
    defined = dict(re.findall(r"^#define RETRAP_(\w+) (\w+)", (INCLUDES / "retrap_asm.h").read_text(), re.MULTILINE))
    assert {name: int(defined[name], 0) for name in value["constants"]} == value["constants"]
    for row in value["calls"]:
        assert value["constants"][f"CALL_{row['name']}"] == row["number"]
