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

from bt.image import load
from bt.session import Options, Session
from emulator.errors import EngineMissing
from emulator.machine import Limits
from emulator.native import NATIVES

PORTABLE = Path(__file__).parents[2] / "samples" / "portable"
MANIFEST: dict[str, Any] = tomllib.loads((PORTABLE / "manifest.toml").read_text())
ARCHITECTURES: dict[str, dict[str, Any]] = {row["isa"]: row for row in MANIFEST["architecture"]}
PORTS: dict[str, dict[str, Any]] = {row["isa"]: row for row in MANIFEST["para"]}
EXPECTED = (PORTABLE / MANIFEST["console"]).read_bytes()
PATIENCE = 600
"""Seconds for a run beside other work; the manifest's time is an idle machine's."""
FEWER = "rounds=500"
"""Of each form of self-modifying code. All ten thousand are tried on each instruction set by rewritten code, which has
the most fast paths."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE + 30)]


def run(isa: str, mode: str, command_line: str = FEWER) -> subprocess.CompletedProcess[bytes]:
    """The finished `retrap run` of an instruction set's kernel, or of its para-virtual port."""
    row = (PORTS if mode == "para" else ARCHITECTURES)[isa]
    command = [sys.executable, "-m", "bt", "run", str(PORTABLE / row["file"]), "--virt", mode]
    command += ["--memory", f"{MANIFEST['memory']}M", "--timeout", str(PATIENCE), "--append", command_line]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


@pytest.mark.parametrize("mode", ["native", "trap", "inline"])
@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_every_instruction_set_prints_the_same(isa: str, mode: str) -> None:
    if mode == "native" and isa not in NATIVES:
        pytest.skip(f"no engine runs whole {isa} guests at full privilege")
    done = run(isa, mode, FEWER if mode != "inline" else "")
    assert done.stdout == EXPECTED
    assert done.returncode == 0
    assert done.stderr == b""


def test_the_para_virtual_port_prints_the_same() -> None:
    done = run("x86-64", "para")
    assert done.stdout == EXPECTED
    assert (done.returncode, done.stderr) == (0, b"")


PORTED = (
    *((isa, "") for isa in sorted(set(PORTS) - {"x86-64"})),
    *(("x86-64", technique) for technique in ("lazy", "eager", "two-stage", "direct", "batched")),
    *((isa, technique) for isa in ("aarch64", "i386") for technique in ("direct", "batched")),
)


@pytest.mark.parametrize(("isa", "technique"), PORTED)
def test_every_other_port_prints_the_same_whatever_virtualises_memory(isa: str, technique: str) -> None:
    printed = bytearray()
    options = Options(mode="para", memory=MANIFEST["memory"] << 20, command_line="rounds=200", technique=technique)
    session = Session(load(PORTABLE / PORTS[isa]["file"]), options, printed.extend)
    try:
        assert session.run().status == 0
    finally:
        session.close()
    assert bytes(printed) == EXPECTED


@pytest.mark.kvm
@pytest.mark.parametrize("technique", ["snapshot", "direct", "batched"])
def test_the_port_runs_on_the_second_engine_whatever_virtualises_memory(technique: str) -> None:
    image = load(PORTABLE / PORTS["x86-64"]["file"])
    for group in ("exceptions.", "paging.", "user.", "processes.", "memory."):
        printed = bytearray()
        options = Options(
            mode="para",
            memory=MANIFEST["memory"] << 20,
            command_line=f"only={group}",
            technique=technique,
            engine="kvm",
            limits=Limits(host_seconds=PATIENCE / 5),
        )
        try:
            session = Session(image, options, printed.extend)
        except EngineMissing as error:
            pytest.skip(str(error))
        try:
            assert session.run().status == 0
        finally:
            session.close()
        assert b"FAIL" not in printed
        assert printed.count(b"\nok ") == EXPECTED.count(b"\nok " + group.encode())


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
