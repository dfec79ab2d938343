"""How many bytes a load or store of A32 and T32 touches, and where it begins: for watchpoints.

Room: `emulator/isa/arm` (DDI 0406, A5.3, A5.5, A6.2, A6.3, A7.7). An access that faulted tells its own address, but not
how far it goes, and one of several registers may have begun in the page before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_SP = 13


class Extent(NamedTuple):
    """The bytes of a load or store."""

    size: int
    base: int = -1
    """Register that says where it begins, or -1: where it faulted."""
    offset: int = 0

    def begins(self, registers: Sequence[int], faulted: int) -> int:
        """The first address."""
        return faulted if self.base < 0 else registers[self.base] + self.offset & 0xFFFF_FFFF


UNKNOWN = Extent(4)
"""What is taken for an instruction that is none of the known: a word."""


def extent_a32(word: int) -> Extent:
    """Of a load or store of A32."""
    if word >> 28 == 0xF:
        return _advanced(word) if word >> 24 == 0xF4 else UNKNOWN
    kind = word >> 25 & 7
    if kind == 0:
        return Extent(_extra(word))
    if kind in (2, 3):
        return Extent(1 if word & 1 << 22 else 4)
    if kind == 4:
        return _block(word >> 16 & 15, 4 * (word & 0xFFFF).bit_count(), bool(word & 1 << 23), bool(word & 1 << 24))
    return _extension(word) if kind == 6 else UNKNOWN


def _extra(word: int) -> int:
    """Halfwords, doublewords, signed bytes, and what is exclusive."""
    how = word >> 5 & 3
    if how == 0:
        if word & 1 << 23:
            return (4, 8, 1, 2)[word >> 21 & 3]
        return 1 if word & 1 << 22 else 4  # SWP
    if how == 1:
        return 2
    if word & 1 << 20:
        return 1 if how == 2 else 2
    return 8


def _block(base: int, size: int, up: bool, before: bool) -> Extent:
    if up:
        return Extent(size, base, 4 if before else 0)
    return Extent(size, base, -size if before else 4 - size)


def _extension(word: int) -> Extent:
    """VLDR, VSTR, VLDM and VSTM."""
    if word >> 8 & 15 not in (10, 11):
        return UNKNOWN
    if word & 1 << 24 and not word & 1 << 21:
        return Extent(8 if word & 1 << 8 else 4)
    size = 4 * (word & 0xFF)
    return Extent(size, word >> 16 & 15, 0 if word & 1 << 23 else -size)


_REGISTERS = {0b0111: 1, 0b1010: 2, 0b1000: 2, 0b1001: 2, 0b0110: 3, 0b0100: 3, 0b0101: 3}


def _advanced(word: int) -> Extent:
    """VLD1 to VLD4 and VST1 to VST4, whose fields are those of T32's too."""
    if not word & 1 << 23:
        return Extent(8 * _REGISTERS.get(word >> 8 & 15, 4), word >> 16 & 15)
    size = word >> 10 & 3 if word >> 10 & 3 != 3 else min(word >> 6 & 3, 2)
    return Extent((1 << size) * ((word >> 8 & 3) + 1), word >> 16 & 15)


def extent_t32(first: int, second: int) -> Extent:
    """Of a load or store of T32, by its halfwords; the second counts where the first says so."""
    if first >> 11 < 0b11101:
        return _short(first)
    if first >> 9 & 0x7F == 0b1110100:
        return _wide_pair(first, second)
    if first >> 8 & 0xFE == 0xEC:
        return _extension(first << 16 | second)
    if first >> 8 == 0xF9 and not first & 1 << 4:
        return _advanced(first << 16 | second)
    if first >> 9 == 0b1111100:
        return Extent((1, 2, 4, 4)[first >> 5 & 3])
    return UNKNOWN


def _short(code: int) -> Extent:
    top = code >> 12
    if top == 5:
        return Extent((4, 2, 1, 1, 4, 2, 1, 2)[code >> 9 & 7])
    if top in (7, 8):
        return Extent(1 if top == 7 else 2)
    count = (code & 0xFF).bit_count()
    if top == 12:
        return Extent(4 * count, code >> 8 & 7)
    if top == 11 and code >> 9 & 3 == 2:
        count += code >> 8 & 1
        return Extent(4 * count, _SP, 0 if code & 1 << 11 else -4 * count)
    return UNKNOWN


def _wide_pair(first: int, second: int) -> Extent:
    if not first & 1 << 6:
        return _block(first & 15, 4 * second.bit_count(), bool(first & 1 << 7), bool(first & 1 << 8))
    if first >> 7 & 3 == 0 and not first & 1 << 5:
        return Extent(4)  # LDREX, STREX
    if first >> 7 & 3 == 1 and not first & 1 << 5:
        return Extent({0: 1, 1: 2, 4: 1, 5: 2}.get(second >> 4 & 15, 8))
    return Extent(8)
