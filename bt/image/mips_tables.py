"""The patch tables of Linux on MIPS32, found by their structure: a raw image has neither sections nor data symbols.

Room: `bt/image`. The exception table (struct exception_table_entry) and the jump labels (struct jump_entry) hold
addresses; the relocation table that a relocatable kernel carries for itself (arch/mips/boot/tools/relocs.c) has a type
and a distance from the kernel's beginning in each word. Each is the longest run of entries whose every field makes
sense. Nothing is trusted, and nothing but planning and moving depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, cast

import numpy as np

from bt.image.mips_self_extractor import SelfExtractor
from bt.image.patch_tables import CommonTables
from bt.image.runs import longest_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image

    Addresses = NDArray[np.uint64]
    Flags = NDArray[np.bool_]
    Words = NDArray[np.uint32]

_EXCEPTION, _JUMP_LABEL = 2, 3
"""Words of an entry."""
ADDRESS, JUMP, UPPER = 2, 4, 5
"""R_MIPS_32, R_MIPS_26, R_MIPS_HI16: the types of relocation that the kernel's own table has."""
_LUI, _NOP = 0x0F, 0
_FIRST_ACCESS: Final = 0x20
"""Major opcodes from here on are loads, stores and CACHE."""


@dataclass(frozen=True, slots=True, eq=False)
class MipsTables(CommonTables):
    """All tables."""

    COUNTED: ClassVar = {**CommonTables.COUNTED, "relocations": "relocation_places"}

    relocation_types: NDArray[np.uint8]
    relocation_places: Addresses
    """What a move of the kernel changes; both are empty where it cannot be moved."""


def read(image: Image) -> MipsTables | None:
    """The tables of a self-extractor's kernel; None for anything else."""
    header = image.header
    if not isinstance(header, SelfExtractor):
        return None
    kind = ">u4" if image.byte_order == "big" else "<u4"
    words = np.frombuffer(image.elf[: len(image.elf) & -4], kind).astype(np.uint32)
    code = _in_text(image, words)
    data = ~_in_text(image, np.arange(len(words), dtype=np.int64) * 4 + header.load_address)
    standing = words[np.where(code, words.astype(np.int64) - header.load_address >> 2, 0)]
    accesses = code & (standing >> np.uint32(26) >= _FIRST_ACCESS)
    pairs = accesses[:-1] & code[1:] & data[:-1]
    faulting, landings = _fields(words, longest_run(pairs, _EXCEPTION), _EXCEPTION)[:2]
    sites, targets = _jump_labels(words, code, data, header.load_address)
    types, places = relocations(words, header.load_address)
    return MipsTables(_version(image.elf), faulting, landings, sites, targets, types, places)


def _jump_labels(words: Words, code: Flags, data: Flags, base: int) -> tuple[Addresses, Addresses]:
    """Sites at which a NOP or a branch stands, and targets; keys are data and may be marked by their low bits."""
    at = np.where(code, words.astype(np.int64) - base >> 2, 0)
    standing = words[at]
    branch = (standing == _NOP) | (standing >> np.uint32(26) == 4) | (standing >> np.uint32(26) == 2)
    keys = (words & np.uint32(~3 & 0xFFFF_FFFF)).astype(np.int64)
    own = (keys >= base) & (keys < base + 8 * len(words)) & ~code
    run = longest_run(code[:-2] & branch[:-2] & code[1:-1] & own[2:] & data[:-2], _JUMP_LABEL)
    sites, targets, _keys = _fields(words, run, _JUMP_LABEL)
    return sites, targets


def _fields(words: Words, run: tuple[int, int], step: int) -> list[Addresses]:
    first, count = run
    return [words[first + field : first + field + count * step : step].astype(np.uint64) for field in range(step)]


def _in_text(image: Image, addresses: NDArray[np.uint32] | NDArray[np.int64]) -> Flags:
    """Which addresses are whole words of code."""
    inside = np.zeros(len(addresses), bool)
    for start, end in image.text_ranges:
        inside |= (addresses >= start) & (addresses < end)
    return cast("Flags", inside & (addresses & 3 == 0))


def relocations(words: Words, base: int) -> tuple[NDArray[np.uint8], Addresses]:
    """Types and places of the kernel's own relocation table: the longest run of entries that fit what they change."""
    types = words >> np.uint32(24)
    place = (words & np.uint32(0xFF_FFFF)).astype(np.int64)
    inside = place < len(words)
    there = words[np.where(inside, place, 0)]
    major = there >> np.uint32(26)
    fits = ((types == ADDRESS) & (there >= base) & (there < base + 8 * len(words))) | (
        ((types == JUMP) & ((major == 2) | (major == 3))) | ((types == UPPER) & (major == _LUI))
    )
    first, count = longest_run(inside & fits, 1)
    found = slice(first, first + count)
    return types[found].astype(np.uint8), (place[found] * 4 + base).astype(np.uint64)


def _version(memory: memoryview) -> str:
    data = bytes(memory)
    at = data.find(b"Linux version ")
    while at >= 0:
        parts = data[at : at + 256].split(b"\0", 1)[0].decode("utf-8", "replace").split(" ")
        if len(parts) > 3 and parts[2][:1].isdigit():
            return parts[2]
        at = data.find(b"Linux version ", at + 1)
    return ""
