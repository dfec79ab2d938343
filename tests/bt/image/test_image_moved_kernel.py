"""Debian's kernel, moved, boots on QEMU: virtual and physical offset together and each by itself."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bt.image import Image, to_boot
from emulator.board.linux_boot import place
from emulator.memory import GuestMemory
from tests.bt.image import qemu_memory

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(200)]

_LOADFLAGS = 0x211 - 0x1F1
_KASLR_FLAG = 2
"""Tells the kernel that it was moved, so that a panic says by how much it finds itself moved."""


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
@pytest.mark.parametrize(("delta", "physical_delta"), [(0x960_0000, 0x400_0000), (0x20_0000, 0), (0, 0x600_0000)])
def test_a_moved_kernel_boots_up_to_the_search_for_its_root(
    delta: int,
    physical_delta: int,
    debian: Image,
    tmp_path: Path,
) -> None:
    boot = to_boot(
        debian,
        command_line="console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1 acpi=off noapic nolapic pci=off",
        delta=delta,
        physical_delta=physical_delta,
    )
    header = bytearray(boot.setup_header)
    header[_LOADFLAGS] |= _KASLR_FLAG
    memory = GuestMemory(256 << 20)
    entry = place(memory, replace(boot, setup_header=bytes(header)))
    console = qemu_memory.run(memory, entry, tmp_path, timeout=120)
    assert "Unable to mount root fs" in console
    assert f"Kernel Offset: {delta:#x} from 0xffffffff81000000" in console
