"""Debian's kernel for MIPS Malta: deprivileged it runs to power-off, twice the same, and prints what QEMU prints."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bt import guests
from bt.console_compare import compare
from bt.guests import Guest
from bt.image import load
from bt.session import Options, Session
from emulator.errors import Unavailable
from emulator.machine import EndKind
from paravirt.hypervisor import Hypervisor

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(600)]

QEMU = "qemu-system-mipsel"
MOST_EXITS = {"inline": 70_000, "trap": 650_000}
FLAGS = ("DISABLE_INTERRUPTS", "ENABLE_INTERRUPTS")


@pytest.fixture(scope="module")
def guest() -> Guest:
    try:
        return guests.find("debian-mipsel")
    except Unavailable as error:
        pytest.skip(str(error))


def run(guest: Guest, mode: str, fixed: bool = True) -> tuple[bytes, dict[tuple[str, str], int], str, str]:
    """Console, exits, and the digests of memory and of the board, of a whole run."""
    printed = bytearray()
    line = guest.command_line if fixed else guest.command_line.replace(" nokaslr", "")
    options = Options(mode=mode, initrd=guest.initrd.read_bytes(), command_line=line)
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        outcome = session.run()
        assert outcome.kind is EndKind.POWER_OFF
        assert guest.marker.encode() in printed
        assert isinstance(session.driver, Hypervisor)
        machine = session.machine
        return bytes(printed), dict(session.driver.exits.counts), machine.memory.digest(), machine.board.digest()
    finally:
        session.close()


def test_it_boots_inline_within_its_exits_and_does_so_twice_the_same(guest: Guest) -> None:
    first, second = run(guest, "inline"), run(guest, "inline")
    assert first == second
    exits = first[1]
    assert sum(exits.values()) <= MOST_EXITS["inline"]
    assert sum(count for (operation, _route), count in exits.items() if operation in FLAGS) <= 400


def test_it_boots_with_traps_alone(guest: Guest) -> None:
    assert sum(run(guest, "trap")[1].values()) <= MOST_EXITS["trap"]


def test_a_kernel_that_moves_itself_runs_too(guest: Guest) -> None:
    assert guest.command_line.endswith(" nokaslr")
    console, exits, _memory, _board = run(guest, "inline", fixed=False)
    assert guest.marker.encode() in console
    # Its pages are no image's: what needs its neighbours stays a trap.
    assert exits["DISABLE_INTERRUPTS", "trap"] > 100_000


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"needs {QEMU}")
def test_its_console_is_qemus(guest: Guest) -> None:
    command = [QEMU, "-M", "malta", "-cpu", "24Kf", "-accel", "tcg", "-m", "256", "-net", "none", "-vga", "none"]
    command += ["-nographic", "-no-reboot", "-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
    theirs = subprocess.run(
        [*command, "-append", guest.command_line],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=True,
    )
    comparison = compare(run(guest, "inline")[0], theirs.stdout)
    assert comparison.passed, comparison.report()
    assert comparison.equal > 160


def test_a_kernel_moved_into_mapped_space_runs_with_as_many_exits(guest: Guest) -> None:
    """KSEG0 costs nothing here; the usercopy check alone knows that kernel text is not where it should be."""
    printed = bytearray()
    line = guest.command_line + " hardened_usercopy=off"
    options = Options(mode="inline", initrd=guest.initrd.read_bytes(), command_line=line, delta=0x6000_0000)
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        assert session.run().kind is EndKind.POWER_OFF
        assert guest.marker.encode() in printed
        assert isinstance(session.driver, Hypervisor)
        assert sum(session.driver.exits.counts.values()) <= MOST_EXITS["inline"] + 5_000
    finally:
        session.close()
