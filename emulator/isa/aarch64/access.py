"""Loads and stores of A64, taken apart: for accesses that software does in the guest's place.

Room: `emulator/isa/aarch64` (DDI 0487, C4.1.94). General registers only, and none of the exclusive and atomic forms:
what software does in the guest's place is done to devices and to code, where these make no sense.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF


class Access(NamedTuple):
    """One load or store."""

    load: bool
    size: int
    """Bytes of each register that is moved."""
    signed: int
    """0, or the bits (32, 64) that a loaded number is sign-extended to."""
    first: int
    second: int
    """The registers; the second is -1 but for pairs. 31 is the zero register."""
    base: int
    """31 is the stack pointer; -1 for a literal, whose offset is from PC."""
    offset: int
    """Added to the base, unless `indexed` gives it."""
    writeback: int
    """Added to the base register afterwards, or 0."""
    indexed: int
    """Register whose value is added, or -1."""
    extend: int
    """How the index is extended: the option field."""
    shift: int
    """How far it is shifted."""


def _signed(value: int, bits: int) -> int:
    return value - (value >> bits - 1 << bits)


def decode(word: int) -> Access | None:
    """The load or store that a word is; None for anything else, and for forms not offered."""
    if word & 0x3B00_0000 == 0x3900_0000 and not word & 1 << 26:  # unsigned immediate
        found = _simple(word)
        return found and found._replace(offset=(word >> 10 & 0xFFF) * found.size)
    if word & 0x3B20_0000 == 0x3800_0000 and not word & 1 << 26:  # unscaled, post, unprivileged, pre
        found = _simple(word)
        kind, distance = word >> 10 & 3, _signed(word >> 12 & 0x1FF, 9)
        if found is None:
            return None
        return found._replace(offset=0 if kind == 1 else distance, writeback=distance if kind & 1 else 0)
    if word & 0x3B20_0C00 == 0x3820_0800 and not word & 1 << 26:  # register
        found = _simple(word)
        shift = (found.size.bit_length() - 1) if found is not None and word & 1 << 12 else 0
        return found and found._replace(indexed=word >> 16 & 31, extend=word >> 13 & 7, shift=shift)
    if word & 0x3A00_0000 == 0x2800_0000 and not word & 1 << 26:
        return _pair(word)
    if word & 0x3B00_0000 == 0x1800_0000 and word >> 30 < 3:  # literal
        wide, signed = word >> 30 == 1, 64 if word >> 30 == 2 else 0
        offset = _signed(word >> 5 & 0x7FFFF, 19) * 4
        return Access(True, 8 if wide else 4, signed, word & 31, -1, -1, offset, 0, -1, 0, 0)
    return None


def _simple(word: int) -> Access | None:
    size, operation = 1 << (word >> 30), word >> 22 & 3
    signed = 0
    if operation >= 2:
        if size == 8 or (size == 4 and operation == 3):
            return None  # prefetch, or undefined
        signed = 64 if operation == 2 else 32
    return Access(operation != 0, size, signed, word & 31, -1, word >> 5 & 31, 0, 0, -1, 0, 0)


def _pair(word: int) -> Access | None:
    kind, form = word >> 23 & 3, word >> 30
    if form == 3:
        return None
    load = bool(word >> 22 & 1)
    if form == 1 and not load:
        return None  # STGP
    size = 8 if form == 2 else 4
    distance = _signed(word >> 15 & 0x7F, 7) * size
    return Access(
        load,
        size,
        64 if form == 1 else 0,
        word & 31,
        word >> 10 & 31,
        word >> 5 & 31,
        0 if kind == 1 else distance,
        distance if kind & 1 else 0,
        -1,
        0,
        0,
    )


def address_of(access: Access, gpr: memoryview, pc: int) -> int:
    """Guest-virtual address of the first byte."""
    if access.base < 0:
        return pc + access.offset & _MASK
    offset = access.offset
    if access.indexed >= 0:
        value = gpr[access.indexed] if access.indexed != 31 else 0
        bits = 8 << (access.extend & 3)
        value &= (1 << bits) - 1
        if access.extend & 4:
            value = _signed(value, bits)
        offset = value << access.shift
    return gpr[access.base] + offset & _MASK


def loaded(access: Access, value: int) -> int:
    """What a register holds after it was loaded with `value` from memory."""
    if access.signed:
        return _signed(value, 8 * access.size) & (1 << access.signed) - 1
    return value
