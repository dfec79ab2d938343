"""Starts QEMU on memory that the board has prepared: the independent judge of a moved kernel.

QEMU's own loaders know no relocation, so a firmware of a few instructions takes the place of its BIOS: it goes from
reset straight into 64-bit mode with the board's page tables and jumps to the entry point.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from emulator.board.linux_boot import EntryState
from emulator.memory import GuestMemory

_SIZE = 0x1_0000
_CODE64 = 0x80
_GDT_POINTER = 0xF0
_LINEAR = 0xFFFF_0000
"""Where the firmware's 64 KiB lie, and the base of CS after reset."""


def _firmware(entry: EntryState) -> bytes:
    """Machine code for the reset vector of an x86 (AMD64 manual volume 2, section 14.6)."""
    real = b"\xfa"  # cli
    real += b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", _GDT_POINTER)  # lgdt cs:[]
    real += b"\x66\xb8" + struct.pack("<I", entry.cr3) + b"\x0f\x22\xd8"  # mov cr3
    real += b"\x66\xb8" + struct.pack("<I", entry.cr4) + b"\x0f\x22\xe0"  # mov cr4
    real += b"\x66\xb9" + struct.pack("<I", 0xC000_0080)  # EFER: LME; the CPU sets LMA
    real += b"\x66\xb8" + struct.pack("<I", entry.efer & 0x100) + b"\x66\x31\xd2\x0f\x30"  # wrmsr
    real += b"\x66\xb8" + struct.pack("<I", entry.cr0) + b"\x0f\x22\xc0"  # mov cr0
    real += b"\x66\xea" + struct.pack("<IH", _LINEAR + _CODE64, entry.cs)  # jmp far
    long = b"\xb8" + struct.pack("<I", entry.ds) + b"\x8e\xd8\x8e\xc0\x8e\xd0"  # mov ds, es, ss
    long += b"\x48\xbe" + struct.pack("<Q", entry.rsi)
    long += b"\x48\xbc" + struct.pack("<Q", entry.rsp)
    long += b"\x48\xb8" + struct.pack("<Q", entry.rip) + b"\xff\xe0"  # jmp rax
    code = real.ljust(_CODE64, b"\x90") + long
    code = code.ljust(_GDT_POINTER, b"\x90") + struct.pack("<HI", entry.gdt_limit, entry.gdt_base)
    reset = b"\xe9" + struct.pack("<H", _SIZE - 0xFFF3)  # jmp to the start
    return code.ljust(_SIZE - 16, b"\xf4") + reset.ljust(16, b"\xf4")


def run(memory: GuestMemory, entry: EntryState, directory: Path, *, timeout: float) -> str:
    """The serial console of a run of QEMU, until the guest resets or `timeout` seconds are over."""
    ram, firmware = directory / "ram", directory / "firmware"
    ram.write_bytes(memory.read_bytes(0, memory.size))
    firmware.write_bytes(_firmware(entry))
    command = [
        "qemu-system-x86_64",
        *("-machine", "pc,acpi=off,hpet=off,i8042=off,memory-backend=ram"),
        *("-object", f"memory-backend-file,id=ram,mem-path={ram},share=off,size={memory.size}"),
        *("-m", str(memory.size >> 20)),
        *("-accel", "tcg"),
        *("-cpu", "qemu64,apic=off"),  # no firmware lets the 8259's interrupts through the local APIC
        *("-bios", str(firmware)),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        output = done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    finally:
        ram.unlink()
    return output.decode("utf-8", "replace")
