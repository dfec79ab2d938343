"""QEMU as the independent reference: its command lines for our guests.

Room: comparisons and measurements. QEMU's TCG runs the same kernel at full privilege on a machine that is as near to
the `pc` board as QEMU has one. Nothing here runs it.
"""

from __future__ import annotations

from pathlib import Path

PROGRAM = "qemu-system-x86_64"

PLAIN = "console=ttyS0 panic=-1"
"""What a guest needs on QEMU's own machines, where firmware and ACPI describe the rest."""

NEAREST = "pc,acpi=off,hpet=off,i8042=off"
"""QEMU's machine nearest to the `pc` board: 16550, 8259 pair, 8254, CMOS; the guest's `pci=off` hides its PCI bus."""


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
