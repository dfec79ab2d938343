"""What a board is given to boot: plain values, so that the machine never imports the toolchain.

Room: `emulator/board`. `bt.image` turns a file into a `BootImage`; the board places it.
"""

from dataclasses import dataclass

from emulator.errors import BadImage


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """Bytes for guest-physical memory."""

    physical: int
    """Guest-physical address."""
    data: bytes | memoryview
    """Contents."""
    memory_size: int
    """Bytes to occupy; what `data` does not fill is zero."""
    virtual: int = -1
    """Guest-virtual address at which it is linked, where that is known."""


@dataclass(frozen=True, slots=True)
class BootImage:
    """A kernel ready to be placed in memory."""

    segments: tuple[LoadSegment, ...]
    entry: int
    """Guest-physical address of the 64-bit entry point (`startup_64` boot protocol)."""
    initrd: bytes = b""
    command_line: str = ""
    setup_header: bytes = b""
    """The file's own setup header (bytes 0x1f1.. of a bzImage) where there is one."""
    byte_order: str = "little"
    """The kernel's: "little" or "big"."""


class BootError(BadImage, ValueError):
    """The image cannot be placed: one clear sentence."""
