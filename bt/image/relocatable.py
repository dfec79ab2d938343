"""Relocatable objects (kernel modules): addresses for their sections, and what their relocations lead to.

Room: `bt/image`. System V ABI, chapter 4, "Relocation". A module gets its addresses when a kernel loads it, so those
given here are for reports and for finding what leads where; nothing may be written into the file that depends on them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image.elf import (
    MAXIMUM_SIZE,
    PF_R,
    PF_W,
    PF_X,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_REL,
    SHT_RELA,
    Section,
    Segment,
    bad,
    moved,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image

START: Final = 0x1000
"""Address of the first section."""
_LARGEST_ALIGNMENT: Final = 1 << 16


def lay_out(sections: Sequence[Section], path: str) -> tuple[tuple[Section, ...], list[Segment]]:
    """The sections at addresses one behind the other, and a segment for each that occupies memory."""
    placed: list[Section] = []
    segments: list[Segment] = []
    at = START
    for section in sections:
        if not section.flags & SHF_ALLOC or not section.size:
            placed.append(section)
            continue
        if section.alignment & section.alignment - 1 or section.alignment > _LARGEST_ALIGNMENT:
            bad(
                path,
                f"section {section.name} wants to be aligned to {section.alignment}; it is damaged: build it again",
            )
        at = (at + section.alignment - 1) & -section.alignment
        if at + section.size > MAXIMUM_SIZE:
            bad(path, f"its sections take more than {MAXIMUM_SIZE:#x} bytes of memory; strip it or build it again")
        one = moved(section, at)
        flags = PF_R | PF_W * bool(one.flags & SHF_WRITE) | PF_X * bool(one.flags & SHF_EXECINSTR)
        segments.append(Segment(at, at, one.size, flags, one.data, one.file_offset))
        placed.append(one)
        at += one.size
    if not any(segment.executable for segment in segments):
        bad(path, "is an object file without code; give a kernel, or a kernel module")
    return tuple(placed), segments


def targets(image: Image) -> list[NDArray[np.uint64]]:
    """Addresses to which the relocations of an object may lead, as laid out; too many rather than too few.

    A relocation of a relative field counts from behind it or from within it, by instruction set and type, so the four
    bytes behind what it names count as well.
    """
    if not image.relocatable:
        return []
    found: list[int] = []
    values = _symbol_values(image)
    order = ">" if image.byte_order == "big" else "<"
    wide = image.isa.bits == 64
    for section in image.sections:
        if section.type == SHT_RELA:
            size, form = (24, f"{order}QQq") if wide else (12, f"{order}IIi")
        elif section.type == SHT_REL:
            size, form = (16, f"{order}QQ") if wide else (8, f"{order}II")
        else:
            continue
        for _, info, *rest in struct.iter_unpack(form, section.data[: len(section.data) // size * size]):
            index = info >> 32 if wide else info >> 8
            if index < len(values) and values[index]:
                base = values[index] + (rest[0] if rest else 0)
                found += [base, base + 4, values[index]]
    mask = (1 << image.isa.bits) - 1
    return [np.array([one & mask for one in found], np.uint64)]


def _symbol_values(image: Image) -> list[int]:
    """Address of every entry of .symtab by its index; 0 for what is not defined here."""
    from bt.image.elf import FORMS, SHT_SYMTAB

    table = next((section for section in image.sections if section.type == SHT_SYMTAB), None)
    if table is None:
        return []
    form = FORMS[image.isa.bits, image.byte_order]
    size = form.symbol.size
    values = []
    for entry in form.symbol.iter_unpack(table.data[: len(table.data) // size * size]):
        index, value = (entry[3], entry[4]) if image.isa.bits == 64 else (entry[5], entry[1])
        known = 0 < index < len(image.sections) and image.sections[index].flags & SHF_ALLOC
        values.append(image.sections[index].vaddr + value if known else 0)
    return values
