"""A big-endian MIPS32 guest: the portable sample and its para-virtual port, built so, in every way to run them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bt.cli.main import run as retrap
from bt.image import load
from bt.image.boot import to_boot
from bt.session import Options, Session
from emulator.board.boot import BootError
from emulator.engine.engines import open_engine
from emulator.machine import EndKind, Machine
from emulator.platforms import platform_of
from paravirt.hypervisor import Hypervisor

SAMPLES = Path(__file__).parents[2] / "samples"
BIG = SAMPLES / "mips32" / "big"
KERNEL = BIG / "portable.elf"
EXPECTED = (SAMPLES / "portable" / "portable.expected").read_text().splitlines()


def run(file: Path, mode: str, group: str) -> tuple[list[str], dict[tuple[str, str], int]]:
    """What a group of checks printed of each, and the exits by operation and route."""
    printed = bytearray()
    options = Options(mode=mode, memory=64 << 20, command_line=f"only={group}", cache=False)
    session = Session(load(file), options, printed.extend)
    try:
        assert session.run().kind in (EndKind.POWER_OFF, EndKind.RESET, EndKind.DEBUG_EXIT)
        counts = dict(session.driver.exits.counts) if isinstance(session.driver, Hypervisor) else {}
    finally:
        session.close()
    return [line for line in printed.decode().splitlines() if line.startswith(("ok ", "FAIL"))], counts


@pytest.mark.parametrize("mode", ["native", "none", "trap", "hypercall", "inline", "auto", "para"])
def test_it_passes_the_checks_that_a_little_endian_one_passes(mode: str) -> None:
    lines, _ = run(BIG / "pv.elf" if mode == "para" else KERNEL, mode, "sensitive.")
    assert lines == [line for line in EXPECTED if line.startswith("ok sensitive.")] != []


@pytest.mark.parametrize("mode", ["hypercall", "inline", "para"])
def test_every_exit_is_one_that_a_little_endian_guest_takes(mode: str) -> None:
    name = "pv.elf" if mode == "para" else "portable.elf"
    (lines, exits), little = (run(folder / name, mode, "processes.") for folder in (BIG, BIG.parent))
    assert (lines, exits) == little
    assert lines == [line for line in EXPECTED if line.startswith("ok processes.")] != []
    assert sum(exits.values()) > 100


def test_a_plain_run_of_one_gives_its_console_and_its_status(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert retrap(["run", str(KERNEL), "--memory", "64M", "--append", "only=sensitive."]) == 0
    assert b"ok sensitive.return" in capfdbinary.readouterr().out


def test_it_is_verified_against_a_reference_of_its_byte_order(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["verify", str(KERNEL), "--append", "only=sensitive.", "--virt", "trap", "--virt", "inline"]
    assert retrap(command) == 0, capfd.readouterr().out


def test_a_processor_of_the_other_byte_order_gets_no_kernel() -> None:
    machine = Machine(8 << 20, lambda _data: None, platform=platform_of("mips32"), engine=lambda: open_engine("mips32"))
    try:
        with pytest.raises(BootError, match="is big-endian, and the machine's processor was opened little-endian"):
            machine.place(to_boot(load(KERNEL)))
    finally:
        machine.engine.close()


@pytest.mark.parametrize("port", ["portable", "pv"])
def test_the_sources_give_the_same_big_endian_bytes(port: str, tmp_path: Path) -> None:
    if shutil.which("mipsel-linux-gnu-gcc") is None:
        pytest.skip("mipsel-linux-gnu-gcc is not installed, so the kernel cannot be rebuilt")
    for part in ("portable", "include", "mips32/portable", "mips32/pv"):
        shutil.copytree(SAMPLES / part, tmp_path / part)
    command = ["make", "-s", "-C", str(tmp_path / "portable"), "ISA=mips32", "ENDIAN=B", f"PORT={port}"]
    command += [f"OUT={tmp_path / 'out'}"]
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "out" / f"{port}.elf").read_bytes() == (BIG / f"{port}.elf").read_bytes()
