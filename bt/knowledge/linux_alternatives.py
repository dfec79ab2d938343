"""Where Linux on x86 copies its alternatives, and what will stand there.

Room: `bt/knowledge`. From arch/x86/kernel/alternative.c, Linux 5.12 to 6.7: the replacement is copied over the
original, a branch that it begins with is mended, the rest is filled with the longest no-operations there are.
A copy that turns out otherwise costs nothing but a fixup that is made when it runs.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image import linux_tables
from bt.tactics.tactics import Home

if TYPE_CHECKING:
    from bt.image import Image

_NOPS: Final = {
    64: (
        b"\x90",
        b"\x66\x90",
        b"\x0f\x1f\x00",
        b"\x0f\x1f\x40\x00",
        b"\x0f\x1f\x44\x00\x00",
        b"\x66\x0f\x1f\x44\x00\x00",
        b"\x0f\x1f\x80\x00\x00\x00\x00",
        b"\x0f\x1f\x84\x00\x00\x00\x00\x00",
    ),
    32: (
        b"\x90",
        b"\x89\xf6",
        b"\x8d\x76\x00",
        b"\x8d\x74\x26\x00",
        b"\x3e\x8d\x74\x26\x00",
        b"\x8d\xb6\x00\x00\x00\x00",
        b"\x8d\xb4\x26\x00\x00\x00\x00",
        b"\x3e\x8d\xb4\x26\x00\x00\x00\x00",
    ),
}
"""No-operations of one byte and more (arch/x86/include/asm/nops.h)."""


def padding(size: int, bits: int) -> bytes:
    """`size` bytes of no-operations, the longest first."""
    nops = _NOPS[bits]
    longest, rest = divmod(size, len(nops))
    return nops[-1] * longest + (nops[rest - 1] if rest else b"")


def homes(image: Image) -> tuple[Home, ...]:
    """One for every alternative that fits its original, by ascending address of its replacement."""
    tables = linux_tables.of(image)
    if tables is None:
        return ()
    rows = tables.alternatives
    found = []
    for index in np.argsort(rows.replacements, kind="stable").tolist():
        size, length = int(rows.replacement_lengths[index]), int(rows.lengths[index])
        start, address = int(rows.replacements[index]), int(rows.sites[index])
        if not 0 < size <= length or image.segment_at(start) is None:
            continue
        code = bytearray(image.view(start, size))
        if code[0] in (0xE8, 0xE9) and size >= 5:
            (distance,) = struct.unpack_from("<i", code, 1)
            struct.pack_into("<I", code, 1, distance + start - address & 0xFFFF_FFFF)
        feature = int(rows.features[index])
        what = "lacks" if rows.inverted[index] else "has"
        condition = f"where the processor {what} feature {feature >> 5}*32+{feature & 31}"
        whole = bytes(code) + padding(length - size, image.isa.bits)
        found.append(Home(start, start + size, address, whole, condition))
    return tuple(found)
