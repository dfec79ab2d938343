"""The guest kernels as files: the manifest tells the truth, and the sources give the same bytes."""

import hashlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section, SymbolTableSection

from paravirt import abi

SAMPLES = Path(__file__).parents[2] / "samples"
MANIFEST: dict[str, Any] = tomllib.loads((SAMPLES / "manifest.toml").read_text())
GUESTS: dict[str, dict[str, Any]] = {guest["name"]: guest for guest in MANIFEST["guest"]}
SAMPLE = GUESTS["sample"]
OUTCOMES = {
    "power-off",
    "reset",
    "debug-exit",
    "halted",
    "triple-fault",
    "guest-timeout",
    "host-timeout",
    "guest-fault",
}


def section(elf: ELFFile, name: str) -> Section:
    found = elf.get_section_by_name(name)
    assert found is not None, name
    return found


def first_line(tool: str) -> str:
    return subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


@pytest.mark.parametrize("name", GUESTS)
def test_the_manifest_has_the_hash_of_each_guest(name: str) -> None:
    guest = GUESTS[name]
    assert hashlib.sha256((SAMPLES / guest["file"]).read_bytes()).hexdigest() == guest["sha256"]


def test_every_guest_in_the_tree_is_in_the_manifest() -> None:
    sources = {f"x86_64/hostile/{path.stem}.elf" for path in (SAMPLES / "x86_64" / "hostile").glob("*.S")}
    assert {guest["file"] for guest in GUESTS.values()} == sources | {"x86_64/sample.elf"}


@pytest.mark.parametrize("name", GUESTS)
def test_every_guest_says_how_it_may_end(name: str) -> None:
    guest = GUESTS[name]
    assert guest["outcome"]
    assert set(guest["outcome"]) <= OUTCOMES
    assert guest["timeout"] > 0
    assert guest["memory"] >= 32


def test_the_sources_give_the_same_bytes(tmp_path: Path) -> None:
    for tool, key in (("gcc", "compiler"), ("ld", "linker")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, so the guests cannot be rebuilt")
        if first_line(tool) != MANIFEST["tools"][key]:
            pytest.skip(f"{tool} is {first_line(tool)!r}, the guests were built with {MANIFEST['tools'][key]!r}")
    for part in ("x86_64", "include"):
        shutil.copytree(SAMPLES / part, tmp_path / "elsewhere" / part, ignore=shutil.ignore_patterns("*.elf", ".build"))
    shutil.copy(SAMPLES / "Makefile", tmp_path / "elsewhere")
    subprocess.run(["make", "-s", "-C", str(tmp_path / "elsewhere"), "sample"], check=True, timeout=120)
    for guest in GUESTS.values():
        rebuilt = tmp_path / "elsewhere" / guest["file"]
        assert rebuilt.read_bytes() == (SAMPLES / guest["file"]).read_bytes(), guest["file"]


def test_no_guest_carries_a_path_or_a_build_identifier() -> None:
    for guest in GUESTS.values():
        data = (SAMPLES / guest["file"]).read_bytes()
        for trace in (b"/samples", b"/work", b"/tmp", b"GCC: "):
            assert trace not in data
        with (SAMPLES / guest["file"]).open("rb") as file:
            assert ELFFile(file).get_section_by_name(".note.gnu.build-id") is None


@pytest.mark.parametrize("name", GUESTS)
def test_each_guest_is_linked_and_entered_like_vmlinux(name: str) -> None:
    with (SAMPLES / GUESTS[name]["file"]).open("rb") as file:
        elf = ELFFile(file)
        loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        assert elf["e_entry"] == 0x1000000 == loads[0]["p_paddr"]
        for segment in loads:
            assert segment["p_vaddr"] - segment["p_paddr"] == 0xFFFF_FFFF_8000_0000
        note = section(elf, ".note.pvh").data()
        assert note[:16] == bytes.fromhex("04000000 04000000 12000000") + b"Xen\0"


def symbols() -> dict[str, int]:
    with (SAMPLES / SAMPLE["file"]).open("rb") as file:
        table = section(ELFFile(file), ".symtab")
        assert isinstance(table, SymbolTableSection)
        return {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}


def test_the_volatile_section_is_whole_pages_between_its_symbols() -> None:
    names = symbols()
    start, end = names[SAMPLE["volatile"]["start"]], names[SAMPLE["volatile"]["end"]]
    with (SAMPLES / SAMPLE["file"]).open("rb") as file:
        volatile = section(ELFFile(file), SAMPLE["volatile"]["section"])
    assert start % 4096 == end % 4096 == 0
    assert (volatile["sh_addr"], volatile["sh_addr"] + volatile["sh_size"]) == (start, end)
    assert volatile["sh_type"] == "SHT_NOBITS"
    assert start < names["boot_stack_top"] <= end


def test_the_expected_console_has_every_check_passing() -> None:
    lines = (SAMPLES / SAMPLE["console"]).read_text().splitlines()
    passed = [line.removeprefix("ok ") for line in lines if line.startswith("ok ")]
    assert len(passed) == len(set(passed)) == SAMPLE["checks"]
    assert lines[-1] == f"retrap sample: {SAMPLE['checks']} checks, 0 failed"
    assert not [line for line in lines if line.startswith("FAIL")]


def test_every_negative_control_is_a_check_that_runs_before_anything_needs_iretq() -> None:
    lines = (SAMPLES / SAMPLE["console"]).read_text().splitlines()
    controls = {check for checks in SAMPLE["negative_controls"].values() for check in checks}
    assert {"POPF", "PUSHF", "SGDT", "MOV from CS", "IRETQ"} <= set(SAMPLE["negative_controls"])
    for checks in SAMPLE["watches"].values():
        assert all(f"ok {check}" in lines for check in checks)
    positions = [lines.index(f"ok {check}") for check in controls]
    assert max(positions) < lines.index("ok returns.iretq-selectors")


def test_the_hostile_guests_attack_the_addresses_of_the_interface() -> None:
    text = (SAMPLES / "x86_64" / "hostile" / "hostile.inc").read_text()
    values = {name: int(value, 0) for name, value in re.findall(r"#define (\w+) (0x[0-9a-f]+|\d+)\n", text)}
    assert values["HYPERVISOR_BASE"] == abi.HYPERVISOR_BASE
    assert values["SHARED_PAGE"] == abi.SHARED_PAGE
    assert values["HYPERVISOR_BASE"] + values["HYPERVISOR_PAGES"] * 4096 == 1 << 64


def test_the_system_call_table_and_the_kernel_agree() -> None:
    header = (SAMPLES / "x86_64" / "system_calls.h").read_text()
    kernel = (SAMPLES / "x86_64" / "process.c").read_text()
    for name in re.findall(r"#define (SYS_\w+) ", header):
        assert f"case {name}:" in kernel, name
