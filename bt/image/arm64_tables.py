"""The patch tables of Linux on AArch64, found by their structure: the image has neither sections nor data symbols.

Room: `bt/image`. Alternatives (struct alt_instr), jump labels (struct jump_entry) and the exception table (struct
exception_table_entry) hold distances relative to themselves; each is the longest run of entries whose every field makes
sense. `__mcount_loc` holds addresses, known by their relocations. Nothing is trusted, and nothing but planning depends
on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, cast

import numpy as np

from bt.image.arm64_image import Arm64Header
from bt.image.patch_tables import CommonTables
from bt.image.runs import FEWEST, longest_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image

    Addresses = NDArray[np.uint64]
    Flags = NDArray[np.bool_]

_ALTERNATIVE, _JUMP_LABEL, _EXCEPTION = 3, 4, 3
"""Words of an entry."""
_LONGEST_ALTERNATIVE: Final = 252
_CAPABILITIES: Final = 512
_EXCEPTION_TYPES: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class Arm64Tables(CommonTables):
    """All tables."""

    COUNTED: ClassVar = {
        "alternatives": "alternative_sites",
        "jump labels": "jump_sites",
        "exceptions": "faulting",
        "function tracing": "mcount",
    }

    alternative_sites: Addresses
    alternative_lengths: NDArray[np.int64]
    """Bytes of the site, and of its replacement."""
    replacements: Addresses
    capabilities: NDArray[np.int64]
    """The processor feature that a replacement is for; bit 15 marks one that a function makes, which `replacements`
    names then."""
    mcount: Addresses
    """Calls of the function tracer."""

    def places(self) -> list[Addresses]:
        """Places that the kernel looks at or patches itself: every word of an alternative and of a tracer's call."""
        # A class with slots is another than the one that `super` without arguments knows.
        words = [*CommonTables.places(self), self.mcount, self.mcount + np.uint64(4)]
        words += [
            self.alternative_sites[self.alternative_lengths > offset] + np.uint64(offset)
            for offset in range(0, int(self.alternative_lengths.max(initial=0)), 4)
        ]
        return words


def read(image: Image) -> Arm64Tables | None:
    """The tables of a raw Image; None for anything else."""
    header = image.header
    if not isinstance(header, Arm64Header):
        return None
    memory = header.linked(image.elf)
    words = np.frombuffer(memory[: len(memory) & -4], "<i4")
    base = np.uint64(header.base)
    own = np.arange(len(words), dtype=np.int64) * 4
    leads = own + words
    text = _in_text(image, header, leads)
    pairs = text[:-3] & text[1:-2] & ~_in_text(image, header, own)[:-3]
    third = words[2:-1].astype(np.int64) & 0xFFFF_FFFF

    def addresses(first: int, count: int, step: int, field: int) -> Addresses:
        found: Addresses = leads[first + field : first + field + count * step : step].astype(np.uint64) + base
        return found

    old, new = third >> 16 & 0xFF, third >> 24
    sized = ((old == new) | (new == 0)) & (old > 0) & (old <= _LONGEST_ALTERNATIVE) & (old & 3 == 0)
    alternatives = longest_run(pairs & sized & (third & 0x7FFF < _CAPABILITIES), _ALTERNATIVE)
    exceptions = longest_run(pairs & (third & 0xFFFF <= _EXCEPTION_TYPES) & (third >> 16 < 0x400), _EXCEPTION)
    # The key's distance is 64 bits wide, from its own place; it is data, within reach of 32 bits.
    key = leads[2:-1] & -4
    keys = (key >= 0) & (key < header.image_size) & (words[3:] == words[2:-1] >> 31)
    jumps = longest_run(pairs & keys & ~text[2:-1], _JUMP_LABEL)
    at, count = alternatives
    kinds = third[at : at + count * _ALTERNATIVE : _ALTERNATIVE]
    return Arm64Tables(
        version=_version(memory),
        alternative_sites=addresses(*alternatives, _ALTERNATIVE, 0),
        alternative_lengths=kinds >> 16 & 0xFF,
        replacements=addresses(*alternatives, _ALTERNATIVE, 1),
        capabilities=kinds & 0xFFFF,
        jump_sites=addresses(*jumps, _JUMP_LABEL, 0),
        jump_targets=addresses(*jumps, _JUMP_LABEL, 1),
        faulting=addresses(*exceptions, _EXCEPTION, 0),
        landings=addresses(*exceptions, _EXCEPTION, 1),
        mcount=_mcount(image, header, memory),
    )


def _in_text(image: Image, header: Arm64Header, offsets: NDArray[np.int64]) -> Flags:
    """Which offsets into the image are whole words of its code."""
    inside = np.zeros(len(offsets), bool)
    for start, end in image.text_ranges:
        inside |= (offsets >= start - header.base) & (offsets < end - header.base)
    return cast("Flags", inside & (offsets & 3 == 0))


def _mcount(image: Image, header: Arm64Header, memory: memoryview) -> Addresses:
    """The longest run of relocated words beside each other that all name code at which two NOPs stand."""
    order = np.argsort(header.places, kind="stable")
    places, addends = header.places[order], header.addends[order]
    offsets = (addends - np.uint64(header.base)).astype(np.int64)
    text = _in_text(image, header, offsets)
    words = np.frombuffer(memory[: len(memory) & -4], "<u4")
    nop = np.uint32(0xD503_201F)
    at = np.where(text, offsets >> 2, 0)
    calls = text & (words[at] == nop) & (words[at + 1] == nop)
    starts = calls & np.append(False, ~calls[:-1] | (np.diff(places) != 8))
    if not calls.any():
        return np.empty(0, np.uint64)
    starts[0] |= calls[0]
    run = np.cumsum(starts) * calls
    longest = int(np.argmax(np.bincount(run)[1:])) + 1
    found = addends[run == longest]
    return found if len(found) >= FEWEST else np.empty(0, np.uint64)


def _version(memory: memoryview) -> str:
    data = bytes(memory)
    at = data.find(b"Linux version ")
    while at >= 0:
        words = data[at : at + 256].split(b"\0", 1)[0].decode("utf-8", "replace").split(" ")
        if len(words) > 3 and words[2][:1].isdigit():
            return words[2]
        at = data.find(b"Linux version ", at + 1)
    return ""
