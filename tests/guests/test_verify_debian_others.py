"""Debian's other kernels, rewritten, do what they do on the bare machine, and print what they print on QEMU."""

from __future__ import annotations

import shutil

import pytest

from bt import guests, qemu
from bt.session import Options, read_initrd
from bt.verify import verify
from bt.verify.guest import find
from bt.verify.report import as_json, text
from bt.verify.third_party import compare_with_qemu
from emulator.errors import Unavailable
from emulator.machine import Limits

RULES = {
    "debian-i386": "linux-32",
    "debian-arm64": "linux-aarch64",
    "debian-armhf": "linux-armv7",
    "debian-mipsel": "linux-mips32",
}
"""Guest, and the table of rules for it."""

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", RULES)
def test_a_stock_kernel_with_fixups_is_the_reference_and_prints_what_qemu_prints(name: str) -> None:
    try:
        fetched = guests.find(name)
    except Unavailable as error:
        pytest.skip(str(error))
    guest = find(name)
    options = Options(
        memory=guest.memory,
        initrd=read_initrd(fetched.initrd),
        command_line=f"{fetched.command_line} norandmaps",
        limits=Limits(host_seconds=280),
    )
    result = verify(guest, options, ("inline",))
    if shutil.which(qemu.OTHERS[guests.RECIPES[name].architecture][0]):
        compare_with_qemu(result, options, fetched.initrd)
        ((_mode, console),) = result.consoles
        assert console.equal > 160
    assert result.passed, text(result)
    assert as_json(result)["reference"]["full_privilege"]
    comparison = result.comparisons[0]
    assert comparison.profile.name == RULES[name]
    compared = {finding.rule.name for finding in comparison.findings if not finding.result.skipped}
    assert compared >= {"outcome", "console", "device writes", "system calls", "exceptions", "initramfs", "kernel text"}
