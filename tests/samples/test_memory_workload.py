"""The memory workload is built from its source byte for byte, and does its work at full privilege as well."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.machine import EndKind

SAMPLES = Path(__file__).parents[2] / "samples"
BUILT = SAMPLES / "x86_64" / "memory.elf"


@pytest.mark.slow
def test_the_checked_in_file_is_what_the_source_gives(tmp_path: Path) -> None:
    compiler = tomllib.loads((SAMPLES / "manifest.toml").read_text())["tools"]["compiler"]
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc or make is not installed")
    here = subprocess.run(["gcc", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    if here != compiler:
        pytest.skip(f"the checked-in file is by {compiler}, here is {here}")
    subprocess.run(
        ["make", "-s", "-C", str(SAMPLES / "memory"), f"OUT={tmp_path}"], check=True, capture_output=True, timeout=120
    )
    for name in ("memory.elf", "memory-para.elf"):
        assert (tmp_path / name).read_bytes() == (BUILT.parent / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["aarch64"])
def test_the_other_ports_are_what_the_source_gives(isa: str, tmp_path: Path) -> None:
    compiler = "aarch64-linux-gnu-gcc"
    known = {
        row["isa"]: row["compiler"] for row in tomllib.loads((SAMPLES / "portable/manifest.toml").read_text())["para"]
    }
    if shutil.which(compiler) is None or shutil.which("make") is None:
        pytest.skip(f"{compiler} or make is not installed")
    here = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    if here != known[isa]:
        pytest.skip(f"the checked-in file is by {known[isa]}, here is {here}")
    command = ["make", "-s", "-C", str(SAMPLES / "memory"), f"ISA={isa}", f"OUT={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "memory-para.elf").read_bytes() == (SAMPLES / isa / "memory-para.elf").read_bytes()


def test_it_does_all_its_work_at_full_privilege() -> None:
    printed = bytearray()
    session = Session(load(BUILT), Options(mode="native", memory=128 << 20), printed.extend)
    try:
        outcome = session.run()
    finally:
        session.close()
    assert (outcome.kind, outcome.status) == (EndKind.DEBUG_EXIT, 0)
    text = printed.decode()
    assert text.endswith("memory workload: 0 failed\n")
    assert len(re.findall(r"^begin \d+ .+\nend$", text, re.MULTILINE)) == 12
