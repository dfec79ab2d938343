"""Debian's kernel for 64-bit Arm: deprivileged it runs to power-off, twice the same, and prints what QEMU prints."""

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

QEMU = "qemu-system-aarch64"
MOST_EXITS = {"inline": 18_000, "trap": 2_400_000}
FLAGS = ("DISABLE_INTERRUPTS", "ENABLE_INTERRUPTS", "READ_FLAGS", "WRITE_FLAGS")


@pytest.fixture(scope="module")
def guest() -> Guest:
    try:
        return guests.find("debian-arm64")
    except Unavailable as error:
        pytest.skip(str(error))


def run(guest: Guest, mode: str) -> tuple[bytes, dict[tuple[str, str], int], int, str, str]:
    """Console, the table of exits and their number, and the digests of memory and of the board, of a whole run."""
    printed = bytearray()
    options = Options(mode=mode, initrd=guest.initrd.read_bytes(), command_line=guest.command_line)
    session = Session(load(guest.kernel), options, printed.extend)
    try:
        outcome = session.run()
        assert outcome.kind is EndKind.POWER_OFF
        assert guest.marker.encode() in printed
        machine, driver = session.machine, session.driver
        exits = dict(driver.exits.counts) if isinstance(driver, Hypervisor) else {}
        total = driver.exits.total if isinstance(driver, Hypervisor) else 0
        return bytes(printed), exits, total, machine.memory.digest(), machine.board.digest()
    finally:
        session.close()


def test_it_boots_inline_within_its_exits_and_does_so_twice_the_same(guest: Guest) -> None:
    first, second = run(guest, "inline"), run(guest, "inline")
    assert first == second
    exits, total = first[1:3]
    assert total <= MOST_EXITS["inline"]
    # Only while an interrupt waits do the kernel's own masks exit.
    delivered = exits["interrupt delivered", "injection"]
    assert sum(count for (operation, _route), count in exits.items() if operation in FLAGS) <= 8 * delivered


def test_it_boots_with_traps_alone(guest: Guest) -> None:
    assert run(guest, "trap")[2] <= MOST_EXITS["trap"]


def test_it_boots_at_full_privilege_as_the_reference(guest: Guest) -> None:
    assert compare(run(guest, "inline")[0], run(guest, "native")[0]).passed


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"needs {QEMU}")
def test_its_console_is_qemus(guest: Guest) -> None:
    # Without a seed the kernel stays where it is linked, as on our board.
    command = [QEMU, "-M", "virt,gic-version=2,dtb-randomness=off", "-cpu", "cortex-a53", "-accel", "tcg", "-m", "256"]
    command += ["-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"]
    command += ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.command_line]
    theirs = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=True)
    comparison = compare(run(guest, "inline")[0], theirs.stdout)
    assert comparison.passed, comparison.report()
    assert comparison.equal > 180
