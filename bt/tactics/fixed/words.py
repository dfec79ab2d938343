"""Finding sensitive words: in a whole image and in one page, by numpy.

Room: `bt/tactics/fixed`. Every aligned word is an instruction unless the instruction set says that it is data; then it
is none until somebody enters it. Masks and offsets as in `bt.pagescan`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.pagescan import PAGE, Found, PageScan, mask_of
from bt.textmap import Stretch, mark_common, packed, pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from emulator.isa.patterns import PatternTable

    Words = NDArray[np.uint32]
    Offsets = NDArray[np.int64]

SIZE: Final = 4
EVERY: Final = int.from_bytes(b"\x11" * (PAGE // 8), "little")
"""The mask of a page's words."""


def words_of(data: bytes | memoryview, byte_order: str) -> Words:
    """The whole words of some bytes, in the host's byte order."""
    kind = ">u4" if byte_order == "big" else "<u4"
    return np.frombuffer(data[: len(data) & -SIZE], kind).astype(np.uint32, copy=False)


def sweep(
    image: Image,
    table: PatternTable,
    branches: Callable[[Words], Offsets],
    data_words: Callable[[Image, int, Words], NDArray[np.bool_]],
) -> tuple[Stretch, ...]:
    """The stretches of an image.

    `branches` gives the byte offsets, from the first word, to which direct branches lead; they may lie outside.
    `data_words` says which words, of those from a guest-virtual address on, are no instructions.
    """
    stretches = tuple(
        _sweep_stretch(image, start, end, parts, table, branches, data_words) for start, end, parts in pieces(image)
    )
    mark_common(image, stretches)
    return stretches


def _sweep_stretch(
    image: Image,
    start: int,
    end: int,
    parts: list[tuple[int, bytes]],
    table: PatternTable,
    branches: Callable[[Words], Offsets],
    data_words: Callable[[Image, int, Words], NDArray[np.bool_]],
) -> Stretch:
    begins, targets = np.zeros(end - start, bool), np.zeros(end - start, bool)
    sites: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    invalid: list[Offsets] = [np.empty(0, np.int64)]
    for address, data in parts:
        base = address - start
        words = words_of(data, image.byte_order)
        no_code = data_words(image, address, words)
        begins[base : base + SIZE * len(words) : SIZE] = ~no_code
        leads = branches(words) + base
        targets[leads[(leads >= 0) & (leads < end - start)]] = True
        positions, rows = table.find(words)
        kept = ~no_code[positions]
        positions, rows = positions[kept], rows[kept]
        lengths = np.full(len(positions), SIZE, np.int64)
        sites.append(np.stack((positions * SIZE + base, lengths, rows.astype(np.int64)), axis=1))
        invalid.append(np.flatnonzero(no_code).astype(np.int64) * SIZE + base)
    return Stretch(
        start,
        packed(begins),
        packed(targets),
        np.zeros((end - start) // 8, np.uint8),
        np.concatenate(sites),
        np.concatenate(invalid),
    )


def scan_page(code: bytes, start: int, pristine: int, table: PatternTable, byte_order: str) -> PageScan:
    """The sensitive words of a page; where `pristine` is not 0 only of those that the original has as instructions."""
    boundaries = (pristine & EVERY) or EVERY & -(1 << start)
    return PageScan(_sites(code, boundaries, table, byte_order), boundaries, 0)


def with_entry(scan: PageScan, code: bytes, entry: int, table: PatternTable, byte_order: str) -> PageScan:
    """The scan, with the words from `entry` on up to the next known instruction counted as instructions."""
    if scan.boundaries >> entry & 1:
        return scan
    later = scan.boundaries >> entry
    end = entry + ((later & -later).bit_length() - 1) if later else PAGE
    boundaries = scan.boundaries | EVERY & (1 << end) - (1 << entry)
    return PageScan(_sites(code, boundaries, table, byte_order), boundaries, 0)


def _sites(code: bytes, boundaries: int, table: PatternTable, byte_order: str) -> tuple[Found, ...]:
    positions, rows = table.find(words_of(code[:PAGE], byte_order))
    return tuple(
        Found(at * SIZE, SIZE, row)
        for at, row in zip(positions.tolist(), rows.tolist(), strict=True)
        if boundaries >> at * SIZE & 1
    )


def targets_in(code: bytes, branches: Callable[[Words], Offsets], byte_order: str) -> int:
    """Mask of a page's offsets to which its own direct branches lead."""
    flags = np.zeros(PAGE, bool)
    leads = branches(words_of(code[:PAGE], byte_order))
    flags[leads[(leads >= 0) & (leads < PAGE)]] = True
    return mask_of(flags)


def runs_behind(stops: NDArray[np.bool_], idle: NDArray[np.bool_], skip: int = 1) -> list[tuple[int, int]]:
    """Offset and length in bytes of runs of `idle` words that begin `skip` words behind a word that `stops`."""
    edges = np.diff(np.concatenate(([False], idle, [False])).astype(np.int8))
    found = []
    for first, end in zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True):
        for at in range(max(first, skip), min(first + skip, end)):  # a delay slot may be idle, too
            if stops[at - skip]:
                found.append((at * SIZE, (end - at) * SIZE))
                break
    return found
