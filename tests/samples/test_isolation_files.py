"""The guests that try to get at what is not their own are built from their source byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
PORTABLE: dict[str, Any] = tomllib.loads((SAMPLES / "portable" / "manifest.toml").read_text())
WALKED = {path.name for path in (SAMPLES / "memory/para").iterdir() if path.is_dir()}
"""Those whose own page tables can be walked."""
COMPILERS = {row["folder"]: row["compiler"] for row in PORTABLE["architecture"]}


@pytest.mark.parametrize("folder", COMPILERS)
def test_the_checked_in_files_are_what_the_source_gives(folder: str, tmp_path: Path) -> None:
    flags = (SAMPLES / folder / "portable" / "flags.mk").read_text()
    compiler = next(line.removeprefix("CC := ") for line in flags.splitlines() if line.startswith("CC := "))
    if shutil.which(compiler) is None or shutil.which("make") is None:
        pytest.skip(f"{compiler} or make is not installed")
    here = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    if here != COMPILERS[folder]:
        pytest.skip(f"the checked-in file is by {COMPILERS[folder]}, here is {here}")
    command = ["make", "-s", "-C", str(SAMPLES / "isolation"), f"ISA={folder}", f"OUT={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    built = sorted(path.name for path in tmp_path.glob("*.elf"))
    assert built == ["isolation-walked.elf", "isolation.elf"][folder not in WALKED :]
    for name in built:
        assert (tmp_path / name).read_bytes() == (SAMPLES / folder / name).read_bytes()
