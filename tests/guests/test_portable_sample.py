"""The portable sample kernel on every instruction set: one program, one console, whoever runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from emulator.native import NATIVES

PORTABLE = Path(__file__).parents[2] / "samples" / "portable"
MANIFEST: dict[str, Any] = tomllib.loads((PORTABLE / "manifest.toml").read_text())
ARCHITECTURES: dict[str, dict[str, Any]] = {row["isa"]: row for row in MANIFEST["architecture"]}
PORTS: dict[str, dict[str, Any]] = {row["isa"]: row for row in MANIFEST["para"]}
EXPECTED = (PORTABLE / MANIFEST["console"]).read_bytes()
PATIENCE = 600
"""Seconds for a run beside other work; the manifest's time is an idle machine's."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE + 30)]


def run(isa: str, mode: str) -> subprocess.CompletedProcess[bytes]:
    """The finished `retrap run` of an instruction set's kernel, or of its para-virtual port."""
    row = (PORTS if mode == "para" else ARCHITECTURES)[isa]
    command = [sys.executable, "-m", "bt", "run", str(PORTABLE / row["file"]), "--virt", mode]
    command += ["--memory", f"{MANIFEST['memory']}M", "--timeout", str(PATIENCE)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


@pytest.mark.parametrize("mode", ["native", "trap", "inline"])
@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_every_instruction_set_prints_the_same(isa: str, mode: str) -> None:
    if mode == "native" and isa not in NATIVES:
        pytest.skip(f"no engine runs whole {isa} guests at full privilege")
    done = run(isa, mode)
    assert done.stdout == EXPECTED
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.parametrize("isa", PORTS)
def test_the_para_virtual_port_prints_the_same(isa: str) -> None:
    done = run(isa, "para")
    assert done.stdout == EXPECTED
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_not_virtualised_the_controls_fail(isa: str) -> None:
    done = run(isa, "none")
    if not ARCHITECTURES[isa]["controls"]:  # every sensitive instruction of it traps by itself
        assert (done.stdout, done.returncode) == (EXPECTED, 0)
        return
    failed = set(re.findall(r"^FAIL ([\w.-]+)", done.stdout.decode(), re.MULTILINE))
    assert failed >= set(ARCHITECTURES[isa]["controls"])
    assert done.returncode != 0 or b"the guest reset the machine" in done.stderr  # a board without an exit status


@pytest.mark.qemu
@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_qemu_prints_the_same(isa: str) -> None:
    row = ARCHITECTURES[isa]
    if shutil.which(row["qemu"][0]) is None:
        pytest.skip(f"{row['qemu'][0]} is not installed")
    command = [*row["qemu"], "-kernel", str(PORTABLE / row["file"])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE)
    assert done.stdout == EXPECTED
    assert done.returncode == row["qemu_status"]
