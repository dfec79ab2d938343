"""Debian's 64-bit kernel, deprivileged by `retrap run`: its console is QEMU's, and every difference has a rule."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from bt import guests, qemu
from bt.console_compare import compare, kernel_lines
from bt.guests import Guest
from emulator.errors import Unavailable

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(qemu.PROGRAM) is None, reason=f"needs {qemu.PROGRAM}"),
]


def fetched(name: str) -> Guest:
    try:
        return guests.find(name)
    except Unavailable as error:
        pytest.skip(str(error))


def ours(guest: Guest, mode: str) -> bytes:
    command = [sys.executable, "-m", "bt", "run", "--virt", mode, "--initrd", str(guest.initrd)]
    command += ["--append", guest.command_line, str(guest.kernel)]
    result = subprocess.run(command, capture_output=True, timeout=240, check=False, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@pytest.fixture(scope="module")
def stock() -> tuple[Guest, bytes]:
    guest = fetched("debian-amd64")
    return guest, qemu.console(guest)


@pytest.mark.parametrize("mode", ["inline", "trap"])
def test_a_deprivileged_stock_kernel_prints_what_it_prints_on_qemu(mode: str, stock: tuple[Guest, bytes]) -> None:
    guest, theirs = stock
    console = ours(guest, mode)
    assert guest.marker in kernel_lines(console)
    assert kernel_lines(console)[-1] == qemu.HALTED
    comparison = compare(console, theirs)
    assert comparison.passed, comparison.report()
    assert comparison.equal > 180
