"""QEMU as the independent reference: its command lines for our guests.

Room: comparisons and measurements. QEMU's TCG runs the same kernel at full privilege on a machine that is as near to
the `pc` board as QEMU has one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bt.bench.process import time_to_marker
from bt.guests import RECIPES, Guest
from emulator.errors import Unavailable

HALTED = "reboot: System halted"
"""What a Linux without ACPI prints when it powers off; QEMU goes on for ever after it."""

PROGRAM = "qemu-system-x86_64"

PLAIN = "console=ttyS0 panic=-1"
"""What a guest needs on QEMU's own machines, where firmware and ACPI describe the rest."""

NEAREST = "pc,acpi=off,hpet=off,i8042=off"
"""QEMU's machine nearest to the `pc` board: 16550, 8259 pair, 8254, CMOS; the guest's `pci=off` hides its PCI bus."""

VIRT = "virt,gic-version=2,dtb-randomness=off"
"""QEMU's machine nearest to the `virt` board; without a seed the kernel stays where it is linked, as on ours."""

OTHERS: dict[str, tuple[str, ...]] = {
    "i386": ("qemu-system-i386", "-machine", NEAREST, "-cpu", "qemu64"),
    "arm64": ("qemu-system-aarch64", "-machine", VIRT, "-cpu", "cortex-a53"),
    "armhf": ("qemu-system-arm", "-machine", VIRT, "-cpu", "cortex-a7"),
    "mipsel": ("qemu-system-mipsel", "-machine", "malta", "-cpu", "24Kf", "-vga", "none"),
}
"""Program and machine for guests of other architectures, by Debian's names; these boot the kernel as packaged, with the
command line that is ours as well."""


def other_command(architecture: str, kernel: Path, initrd: Path, append: str, memory: int = 256) -> list[str]:
    """QEMU's command line for a guest of one of `OTHERS`, by TCG, its serial port on stdout."""
    return [
        *OTHERS[architecture],
        *("-accel", "tcg"),
        *("-m", str(memory)),
        *("-net", "none"),
        "-nographic",
        "-no-reboot",
        *("-kernel", str(kernel)),
        *("-initrd", str(initrd)),
        *("-append", append),
    ]


def command(
    kernel: Path, initrd: Path, append: str, machine: str, memory: int = 256, reboot: bool = False
) -> list[str]:
    """QEMU's command line to boot `kernel` on `machine` by TCG with `memory` MiB, its serial port on stdout.

    A bzImage boots through firmware; an ELF with a PVH note enters the kernel at once. Without `reboot`, a guest
    that reboots ends QEMU.
    """
    return [
        PROGRAM,
        *("-machine", machine),
        *("-accel", "tcg"),
        *("-cpu", "qemu64"),
        *("-m", str(memory)),
        *("-net", "none"),
        "-nographic",
        *([] if reboot else ["-no-reboot"]),
        *("-kernel", str(kernel)),
        *("-initrd", str(initrd)),
        *("-append", append),
    ]


def console(guest: Guest, timeout: float = 120.0) -> bytes:
    """Boot `guest` on the nearest machine and return its console, up to the end of the run.

    Raises Unavailable when QEMU is not there, or the guest did not come to its end within `timeout` seconds.
    """
    architecture = RECIPES[guest.name].architecture
    with tempfile.TemporaryDirectory(prefix="retrap-qemu.") as scratch:
        if architecture in OTHERS:
            line = other_command(architecture, guest.kernel, guest.initrd, guest.command_line)
        else:
            line = command(_entered_at_once(guest, Path(scratch)), guest.initrd, guest.command_line, NEAREST)
        timing = time_to_marker(line, HALTED, timeout)
    if timing.seconds is None:
        raise Unavailable(
            f"QEMU did not bring {guest.name} to its end within {timeout:g} s; last: {timing.tail[-80:]!r}"
        )
    return timing.console


def _entered_at_once(guest: Guest, scratch: Path) -> Path:
    """The kernel of `guest` as the ELF that its container holds: QEMU enters it without firmware."""
    from bt.image import load

    elf = scratch / "vmlinux"
    elf.write_bytes(load(guest.kernel).elf)
    return elf
