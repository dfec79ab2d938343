"""A kernel of one page of code for the tests of scanning, planning and rewriting.

Room: tests. Written byte by byte, so that a test knows every instruction's place.
"""

from __future__ import annotations

from bt.image import Image, from_bytes
from tests.bt.image.image_files import BASE, DATA, PHYSICAL, Part, make_elf

NOP5 = b"\x0f\x1f\x44\x00\x00"
PIECES: dict[str, bytes] = {
    "start": b"\xfa" + NOP5,
    "flags": b"\x9c\x58\x0f\x1f\x40\x00",
    "sgdt": b"\x0f\x01\x00",
    "tight": b"\xfb\xc3",
    "wait": b"\xfb\xf4\xeb\xfc",
    "control": b"\x0f\x20\xda\x48\x89\xd0",
    "write": b"\x0f\x22\xd8",
    "loop": b"\xfa\xff\xc9\x75\xfb\xc3",
}
"""Code by name, in order; each piece is followed by an INT3 up to the next multiple of 16."""


def addresses() -> dict[str, int]:
    """Guest-virtual address of every piece."""
    at, found = BASE, {}
    for name, code in PIECES.items():
        found[name] = at
        at += -(-len(code) // 16) * 16
    return found


def text() -> bytes:
    """The code: the pieces, padded to two pages, with a CPUID across the boundary of the pages."""
    body = b"".join(code.ljust(-(-len(code) // 16) * 16, b"\xcc") for code in PIECES.values())
    first = body.ljust(4095, b"\x90") + b"\x0f"
    return first + b"\xa2\xc3".ljust(4096, b"\xcc")


def kernel(appended: bytes = b"", sections: bool = True) -> bytes:
    """The ELF."""
    return make_elf((Part(".text", text(), BASE, PHYSICAL, 5), DATA), sections=sections) + appended


def image(appended: bytes = b"", sections: bool = True) -> Image:
    """The ELF as an image."""
    return from_bytes(kernel(appended, sections), "small.elf")
