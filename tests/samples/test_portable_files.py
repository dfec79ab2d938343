"""The portable sample kernel as files: its manifest tells the truth, and the sources give the same bytes."""

import hashlib
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

PORTABLE = Path(__file__).parents[2] / "samples" / "portable"
MANIFEST: dict[str, Any] = tomllib.loads((PORTABLE / "manifest.toml").read_text())
ARCHITECTURES: dict[str, dict[str, Any]] = {row["folder"]: row for row in MANIFEST["architecture"]}
PORTS: dict[str, dict[str, Any]] = {row["folder"]: row for row in MANIFEST["para"]}


def compiler_of(folder: str) -> str:
    """The C compiler that the architecture's `flags.mk` names."""
    flags = (PORTABLE.parent / folder / "portable" / "flags.mk").read_text()
    return next(line.removeprefix("CC := ") for line in flags.splitlines() if line.startswith("CC := "))


def test_every_architecture_in_the_tree_is_in_the_manifest() -> None:
    assert {path.parent.name for path in PORTABLE.parent.glob("*/portable.elf")} == set(ARCHITECTURES)


def test_every_para_virtual_port_in_the_tree_is_in_the_manifest() -> None:
    assert {path.parent.name for path in PORTABLE.parent.glob("*/pv.elf")} == set(PORTS)


ROWS = [*ARCHITECTURES.values(), *PORTS.values(), *MANIFEST["big_endian"]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_the_manifest_has_the_hash_of_each_portable_kernel(row: dict[str, Any]) -> None:
    data = (PORTABLE / row["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == row["sha256"]
    for trace in (b"/samples", b"/work", b"/tmp", b"GCC: "):
        assert trace not in data


def rebuilt(row: dict[str, Any], port: str, directory: Path) -> bytes:
    """What the sources give elsewhere."""
    folder: str = row["folder"]
    compiler = compiler_of(folder)
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed, so the kernel cannot be rebuilt")
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    if version != row["compiler"]:
        pytest.skip(f"{compiler} is {version!r}, the kernel was built with {row['compiler']!r}")
    for part in ("portable", "include", f"{folder}/portable", *([f"{folder}/{port}"] if port != "portable" else [])):
        shutil.copytree(PORTABLE.parent / part, directory / part)
    command = ["make", "-s", "-C", str(directory / "portable"), f"ISA={folder}", f"PORT={port}"]
    subprocess.run(command, check=True, timeout=120)
    return (directory / folder / f"{port}.elf").read_bytes()


@pytest.mark.parametrize("folder", ARCHITECTURES)
def test_the_portable_sources_give_the_same_bytes(folder: str, tmp_path: Path) -> None:
    row = ARCHITECTURES[folder]
    assert rebuilt(row, "portable", tmp_path / "elsewhere") == (PORTABLE / row["file"]).read_bytes()


@pytest.mark.parametrize("folder", PORTS)
def test_the_ports_sources_give_the_same_bytes(folder: str, tmp_path: Path) -> None:
    row = PORTS[folder]
    assert rebuilt(row, "pv", tmp_path / "elsewhere") == (PORTABLE / row["file"]).read_bytes()


def test_the_expected_console_has_every_portable_check_passing() -> None:
    lines = (PORTABLE / MANIFEST["console"]).read_text().splitlines()
    passed = [line.removeprefix("ok ") for line in lines if line.startswith("ok ")]
    assert len(passed) == len(set(passed)) == MANIFEST["checks"]
    assert lines[-1] == f"retrap sample: {MANIFEST['checks']} checks, 0 failed"
    for row in ARCHITECTURES.values():
        assert set(row["controls"]) <= set(passed)
