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


def compiler_of(folder: str) -> str:
    """The C compiler that the architecture's `flags.mk` names."""
    flags = (PORTABLE.parent / folder / "portable" / "flags.mk").read_text()
    return next(line.removeprefix("CC := ") for line in flags.splitlines() if line.startswith("CC := "))


def test_every_architecture_in_the_tree_is_in_the_manifest() -> None:
    assert {path.parent.name for path in PORTABLE.parent.glob("*/portable.elf")} == set(ARCHITECTURES)


@pytest.mark.parametrize("folder", ARCHITECTURES)
def test_the_manifest_has_the_hash_of_each_portable_kernel(folder: str) -> None:
    row = ARCHITECTURES[folder]
    data = (PORTABLE / row["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == row["sha256"]
    for trace in (b"/samples", b"/work", b"/tmp", b"GCC: "):
        assert trace not in data


@pytest.mark.parametrize("folder", ARCHITECTURES)
def test_the_portable_sources_give_the_same_bytes(folder: str, tmp_path: Path) -> None:
    compiler = compiler_of(folder)
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed, so the kernel cannot be rebuilt")
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    if version != ARCHITECTURES[folder]["compiler"]:
        pytest.skip(f"{compiler} is {version!r}, the kernel was built with {ARCHITECTURES[folder]['compiler']!r}")
    sources = tmp_path / "elsewhere"
    for part in ("portable", f"{folder}/portable"):
        shutil.copytree(PORTABLE.parent / part, sources / part)
    subprocess.run(["make", "-s", "-C", str(sources / "portable"), f"ISA={folder}"], check=True, timeout=120)
    assert (sources / folder / "portable.elf").read_bytes() == (PORTABLE / ARCHITECTURES[folder]["file"]).read_bytes()


def test_the_expected_console_has_every_portable_check_passing() -> None:
    lines = (PORTABLE / MANIFEST["console"]).read_text().splitlines()
    passed = [line.removeprefix("ok ") for line in lines if line.startswith("ok ")]
    assert len(passed) == len(set(passed)) == MANIFEST["checks"]
    assert lines[-1] == f"retrap sample: {MANIFEST['checks']} checks, 0 failed"
    for row in ARCHITECTURES.values():
        assert set(row["controls"]) <= set(passed)
