"""YAMON's boot protocol on Malta: arguments and environment in memory, and the registers at the kernel's entry.

Room: `emulator/board`. The kernel gets a count and pointers to its command line and to pairs of names and values, all
in KSEG0 (YAMON User's Manual, MD00008; Linux's arch/mips/fw). The initial file system is named on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulator.board.boot import BootError, BootImage
from emulator.isa.mips.registers import KSEG0, KSEG2, UNMAPPED
from emulator.memory import GuestMemory

ENVIRONMENT, ENVIRONMENT_END = 0x2000, 0x4000
LARGEST_MEMORY = 256 << 20
"""Devices begin behind it."""
_ALIGNMENT = 0x1_0000
_LONGEST = 4096
_STACK = 64


@dataclass(frozen=True, slots=True)
class EntryState:
    """The processor at the kernel's entry."""

    pc: int
    gpr: tuple[tuple[int, int], ...]
    """Number and value of the general registers that are not 0."""
    mapped: tuple[tuple[int, int, int], ...] = ()
    """What a kernel that was moved into mapped space wants there before it can fill the TLB itself: virtual address,
    bytes, and physical address."""


def place(memory: GuestMemory, image: BootImage, *, big_endian: bool = False) -> EntryState:
    """Put kernel, initial file system, arguments and environment into memory. Raises `BootError`."""
    if memory.size > LARGEST_MEMORY:
        raise BootError(
            f"{memory.size >> 20} MiB of memory: a Malta board has at most {LARGEST_MEMORY >> 20} below its devices"
        )
    end = ENVIRONMENT_END
    for segment in image.segments:
        physical = segment.physical & UNMAPPED if segment.physical >= KSEG0 else segment.physical
        last = physical + segment.memory_size
        if physical < ENVIRONMENT_END or last > memory.size:
            raise BootError(
                f"the kernel wants {physical:#x}..{last:#x}, but memory ends at {memory.size:#x} and begins "
                f"with {ENVIRONMENT_END:#x} bytes of arguments; give the guest more memory"
            )
        memory.write_bytes(physical, segment.data)
        end = max(end, last)
    command_line = image.command_line.encode()
    if image.initrd:
        at = memory.size - len(image.initrd) - _ALIGNMENT & ~(_ALIGNMENT - 1)
        if at < end:
            raise BootError(
                f"an initramfs of {len(image.initrd)} bytes does not fit behind the kernel, which ends at {end:#x}, "
                f"in {memory.size >> 20} MiB; give the guest more memory"
            )
        memory.write_bytes(at, image.initrd)
        words = f"rd_start=0xffffffff{KSEG0 + at:x} rd_size={len(image.initrd)}"
        command_line = words.encode() + (b" " + command_line if command_line else b"")
    if len(command_line) >= _LONGEST:
        raise BootError(f"the command line is {len(command_line)} bytes long; at most {_LONGEST - 1} are read")
    environment = (("memsize", str(memory.size)), ("ememsize", str(memory.size)), ("modetty0", "38400n8r"))
    _write_environment(memory, command_line, environment, "big" if big_endian else "little")
    mapped = tuple((s.virtual, s.memory_size, s.physical) for s in image.segments if s.virtual >= KSEG2)
    return EntryState(
        pc=KSEG0 | image.entry,
        gpr=(
            (4, 2),
            (5, KSEG0 + ENVIRONMENT),
            (6, KSEG0 + ENVIRONMENT + 12),
            (7, memory.size),
            (29, KSEG0 + ENVIRONMENT - _STACK),
        ),
        mapped=mapped,
    )


def _write_environment(
    memory: GuestMemory, command_line: bytes, environment: tuple[tuple[str, str], ...], order: str
) -> None:
    """Pointers first (two arguments, the pairs, each list ended by NULL), then the strings behind them."""
    strings = [b"kernel", command_line, *(text.encode() for pair in environment for text in pair)]
    at = ENVIRONMENT + 4 * (len(strings) + 2)
    pointers: list[int] = []
    for text in strings:
        memory.write_bytes(at, text + b"\0")
        pointers.append(KSEG0 + at)
        at += len(text) + 1
    words = [*pointers[:2], 0, *pointers[2:], 0]
    packed = b"".join(word.to_bytes(4, "big" if order == "big" else "little") for word in words)
    memory.write_bytes(ENVIRONMENT, packed)
