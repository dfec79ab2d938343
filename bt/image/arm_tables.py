"""The patch tables of Linux on ARMv7, by the kernel's own marks where its symbols have them, else by their structure.

Room: `bt/image`. The exception table (struct exception_table_entry) and jump labels (struct jump_entry) hold addresses;
`.alt.smp.init` (asm/assembler.h, ALT_SMP) pairs a place with what stands there on a single processor, `.pv_table`
(asm/memory.h) has places alone, both relative to themselves since Linux 5.11. By structure each is the longest run of
entries whose every field makes sense. Nothing is trusted, and nothing but planning depends on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, cast

import numpy as np

from bt.image.patch_tables import CommonTables
from bt.image.runs import longest_run
from bt.image.zimage import ArmHeader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image

    Addresses = NDArray[np.uint64]
    Flags = NDArray[np.bool_]
    Words = NDArray[np.uint32]

_EXCEPTION, _JUMP_LABEL, _SMP, _PHYSICAL = 2, 3, 2, 1
"""Words of an entry."""
_MARKS: Final = (
    ("__start___ex_table", "__stop___ex_table"),
    ("__start___jump_table", "__stop___jump_table"),
    ("__smpalt_begin", "__smpalt_end"),
    ("__pv_table_begin", "__pv_table_end"),
)
"""Symbols around each table."""
_BEHIND: Final = 0x1_0000
"""Bytes behind the last code that symbols tell of in which there may be more (.exit.text)."""
_NOPS: Final = (0xE320_F000, 0xE1A0_0000)
_BANNER: Final = re.compile(rb"Linux version (\d[^ \0]{0,99}) ")


@dataclass(frozen=True, slots=True, eq=False)
class ArmTables(CommonTables):
    """All tables."""

    COUNTED: ClassVar = {
        **CommonTables.COUNTED,
        "single processor": "single_sites",
        "physical addresses": "physical_sites",
    }
    PATCHED: ClassVar = ("single_sites", "physical_sites")

    single_sites: Addresses
    """What the kernel changes when it finds a single processor."""
    single_code: NDArray[np.uint32]
    """What stands there then."""
    physical_sites: Addresses
    """Where the kernel puts in how far physical addresses are from virtual ones."""


def read(image: Image) -> ArmTables | None:
    """The tables of a zImage, an Image, or a vmlinux with symbols; None for anything else."""
    if isinstance(image.header, ArmHeader):
        return _Raw(image, image.header).tables()
    tables = [_marked(image, *marks) for marks in _MARKS]
    return _tables(image, *tables) if any(len(words) for _, words in tables) else None


_Table = tuple[int, "Words"]
"""Guest-virtual address and words."""


def _marked(image: Image, first: str, last: str) -> _Table:
    """What stands between two symbols; nothing where there are none."""
    start, end = image.symbols.address_of(first), image.symbols.address_of(last)
    segment = image.segment_at(start) if start is not None else None
    if start is None or end is None or segment is None or not start < end <= segment.vaddr + len(segment.data):
        return 0, np.empty(0, np.uint32)
    return start, np.frombuffer(image.view(start, end - start & -4), "<u4")


def _tables(image: Image, *found: _Table) -> ArmTables:
    """Tables of what lies where; entries that name no code are left out."""
    exceptions, jumps, single, physical = found
    faulting, landings = _columns(exceptions[1], _EXCEPTION)
    kept = _in_text(image, faulting) & _in_text(image, landings)
    sites, targets, _ = _columns(jumps[1], _JUMP_LABEL)
    jumping = _in_text(image, sites) & _in_text(image, targets)
    places, code = _columns(single[1], _SMP)
    places = _places(image, single[0], places, 4 * _SMP)
    alone = _in_text(image, places)
    own = _places(image, *physical, 4)
    return ArmTables(
        version=_version(image.elf),
        faulting=faulting[kept].astype(np.uint64),
        landings=landings[kept].astype(np.uint64),
        jump_sites=sites[jumping].astype(np.uint64),
        jump_targets=targets[jumping].astype(np.uint64),
        single_sites=places[alone].astype(np.uint64),
        single_code=code[alone],
        physical_sites=own[_in_text(image, own)].astype(np.uint64),
    )


def _columns(words: Words, step: int) -> list[Words]:
    return list(words[: len(words) // step * step].reshape(-1, step).T)


def _places(image: Image, start: int, words: Words, step: int) -> Words:
    """Addresses that words name, one each `step` bytes: distances from themselves, or (in old kernels) addresses."""
    relative = words + (np.uint32(start) + np.arange(len(words), dtype=np.uint32) * np.uint32(step))
    return relative if _in_text(image, relative).sum() >= _in_text(image, words).sum() else words


def _in_text(image: Image, addresses: NDArray[np.uint32] | NDArray[np.int64]) -> Flags:
    """Which addresses are of code that a table may name."""
    inside = np.zeros(len(addresses), bool)
    ranges = image.text_ranges
    for start, end in ranges:
        inside |= (addresses >= start) & (addresses < end + (_BEHIND if end == ranges[-1].end else 0))
    return cast("Flags", inside & (addresses & 1 == 0))


class _Raw:
    """A raw image's words, and which of them name code."""

    def __init__(self, image: Image, header: ArmHeader) -> None:
        self._image = image
        self._words = np.frombuffer(image.elf[: len(image.elf) & -4], "<u4")
        self._base = header.base
        own = np.arange(len(self._words), dtype=np.int64) * 4 + header.base
        text = np.zeros(len(own), bool)
        for start, end in image.text_ranges:
            text |= (own >= start) & (own < end)
        self._data = ~text
        self._leads = (own + self._words.view("<i4")).astype(np.uint32)
        self._named = _in_text(image, self._words)

    def tables(self) -> ArmTables:
        """All of them."""
        words, base = self._words, self._base
        exceptions = self._table(*longest_run(self._exceptions(), _EXCEPTION), _EXCEPTION)
        jumps = self._table(*longest_run(self._jump_labels(), _JUMP_LABEL), _JUMP_LABEL)
        distances = _in_text(self._image, self._leads) & self._data
        physical, count = longest_run(distances & self._immediate(self._leads, distances), _PHYSICAL)
        distances[physical : physical + count] = False
        pairs = distances[:-1] & ~distances[1:] & (words[1:] != 0) & self._data[1:]
        single = self._table(*longest_run(pairs, _SMP), _SMP)
        found = exceptions, jumps, single, (base + 4 * physical, words[physical : physical + count])
        marked = [_marked(self._image, *marks) for marks in _MARKS]
        return _tables(
            self._image, *(sure if len(sure[1]) else guess for sure, guess in zip(marked, found, strict=True))
        )

    def _table(self, first: int, count: int, step: int) -> _Table:
        return self._base + 4 * first, self._words[first : first + count * step]

    def _standing(self, addresses: Words, where: Flags) -> Words:
        """The words at some addresses; 0 where none of ours is."""
        at = (addresses.astype(np.int64) - self._base) >> 2
        inside = where & (at >= 0) & (at < len(self._words))
        return np.where(inside, self._words[np.where(inside, at, 0)], np.uint32(0))

    def _exceptions(self) -> Flags:
        """Pairs of a load, store or coprocessor access, and code; in ascending order."""
        word = self._standing(self._words, self._named)
        kind = word >> np.uint32(25) & np.uint32(7)
        small = (kind == 0) & (word & np.uint32(0x90) == 0x90)  # LDRH and kin, LDREX
        pushes = word & np.uint32(0xFFFF_0000) == np.uint32(0xE92D_0000)  # how functions begin
        accesses = (kind == 2) | (kind == 3) | (kind == 6) | small | ((kind == 4) & ~pushes)
        accesses |= (kind == 7) & (word >> np.uint32(24) & np.uint32(1) == 0)
        follows = np.concatenate(([True, True], self._words[2:] > self._words[:-2]))
        ascends = follows | np.concatenate((follows[2:], [True, True]))
        return cast("Flags", (accesses & self._named & self._data & ascends)[:-1] & self._named[1:])

    def _jump_labels(self) -> Flags:
        """Sites at which a NOP or a branch stands, targets, and keys, which are data and marked by their low bits."""
        words, named = self._words, self._named
        word = self._standing(words, named)
        branch = np.isin(word, np.array(_NOPS, np.uint32)) | (word >> np.uint32(24) == 0xEA)
        keys = words.astype(np.int64) & -4
        own = (keys >= self._base) & (keys < self._base + 8 * len(words)) & ~named
        return cast("Flags", (named & branch & self._data)[:-2] & named[1:-1] & own[2:])

    def _immediate(self, addresses: Words, where: Flags) -> Flags:
        """Where an instruction with an immediate stands."""
        word = self._standing(addresses, where)
        return cast("Flags", (word >> np.uint32(25) & np.uint32(7)) == 1)


def _version(memory: memoryview) -> str:
    found = _BANNER.search(memory)
    return found[1].decode("ascii", "replace") if found is not None else ""
