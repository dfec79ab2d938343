"""The pristine image's code as a map: where instructions begin, where branches lead, what is sensitive.

Room: `bt`, between the image and everything that patches it. One sweep of all executable ranges makes it, by the
instruction set's `Tactics`; it is the authority on instruction boundaries for as long as the guest runs, and is kept
on disk by the code's hash. Addresses are those at which the image is linked, guest-virtual.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bt import progress
from bt.pagescan import PAGE, Found
from bt.tactics.registry import tactics_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.pagecache import PageCache


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """An executable range of the image, extended to whole pages."""

    start: int
    """Page-aligned guest-virtual address."""
    begins: NDArray[np.uint8]
    """Packed bits, little-endian: an instruction begins at this byte."""
    targets: NDArray[np.uint8]
    """Packed bits: a branch, a symbol or a pointer leads here."""
    taken: NDArray[np.uint8]
    """Packed bits: a place that the kernel looks at or patches itself begins here."""
    sites: NDArray[np.int64]
    """Rows of (offset from `start`, length, `Found.code`), ascending."""
    invalid: NDArray[np.int64]
    """Offsets of bytes that are no instruction, ascending: there is data near."""

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.start + 8 * len(self.begins)

    def page(self, offset: int) -> PristinePage:
        """The page at `offset`."""
        boundaries, targets, taken = (
            int.from_bytes(bits[offset // 8 : (offset + PAGE) // 8].tobytes(), "little")
            for bits in (self.begins, self.targets, self.taken)
        )
        first, last = np.searchsorted(self.sites[:, 0], (offset, offset + PAGE))
        sites = tuple(Found(at - offset, length, code) for at, length, code in self.sites[first:last].tolist())
        start = (boundaries & -boundaries).bit_length() - 1 if boundaries else PAGE
        return PristinePage(boundaries, targets, taken, sites, start)


@dataclass(frozen=True, slots=True)
class PristinePage:
    """What the image says about one page. Masks as in `pagescan`."""

    boundaries: int
    targets: int
    taken: int
    sites: tuple[Found, ...]
    start: int
    """Offset of the first instruction that begins in the page; PAGE when none does."""


@dataclass(frozen=True, slots=True, eq=False)
class TextMap:
    """The swept image."""

    stretches: tuple[Stretch, ...]
    digest: bytes
    """Of the code and what leads into it, 32 bytes."""
    seconds: float
    """The sweep took, or reading it from the cache."""
    cached: bool
    """Whether it came from the cache."""
    _pages: dict[int, PristinePage] = field(default_factory=dict, repr=False)

    def page(self, address: int) -> PristinePage | None:
        """The page at link-time guest-virtual `address` (page-aligned), or None outside the code."""
        known = self._pages.get(address)
        if known is not None:
            return known
        for stretch in self.stretches:
            if stretch.start <= address < stretch.end:
                page = self._pages[address] = stretch.page(address - stretch.start)
                return page
        return None


def of(image: Image, cache: PageCache | None = None) -> TextMap:
    """The map of an image, swept once and then kept with it. Raises as `sweep`."""
    return image.once("text map", lambda: sweep(image, cache))


def sweep(image: Image, cache: PageCache | None = None) -> TextMap:
    """Sweep an image's code, or take the result from `cache`. Raises `UsageError` where nothing can sweep it."""
    began = time.perf_counter()
    tactics = tactics_of(image.isa.name, image.byte_order)
    digest = _digest(image, tactics.version())
    if cache is not None:
        stretches = cache.load_text(digest)
        if stretches is not None:
            return TextMap(stretches, digest, time.perf_counter() - began, True)
    with progress.stage(f"scanning {image.path}"):
        stretches = tactics.sweep(image)
    if cache is not None:
        cache.store_text(digest, stretches)
    return TextMap(stretches, digest, time.perf_counter() - began, False)


def _digest(image: Image, version: str) -> bytes:
    """Of all that the map is made from: the file's own hash stands for what leads into the code."""
    text = f"{image.isa.name} {image.byte_order} {version} {image.sha256} "
    return hashlib.blake2b((text + " ".join(map(str, image.text_ranges))).encode(), digest_size=32).digest()


# -- what the sweeps of all instruction sets share ------------------------------------------------


def pieces(image: Image) -> list[tuple[int, int, list[tuple[int, bytes]]]]:
    """Whole-page stretches (start, end) with the code ranges (address, bytes) inside each."""
    result: list[tuple[int, int, list[tuple[int, bytes]]]] = []
    for start, end in image.text_ranges:
        data = bytes(image.view(start, end - start))
        low, high = start & -PAGE, (end + PAGE - 1) & -PAGE
        if result and low <= result[-1][1]:
            previous = result[-1]
            result[-1] = (previous[0], max(previous[1], high), [*previous[2], (start, data)])
        else:
            result.append((low, high, [(start, data)]))
    return result


def mark(stretches: Sequence[Stretch], addresses: Sequence[NDArray[np.uint64]], taken: bool) -> None:
    """Set the bits of those guest-virtual addresses that lie in a stretch: in `taken`, or else in `targets`."""
    every = np.concatenate(addresses) if addresses else np.empty(0, np.uint64)
    for stretch in stretches:
        inside = every[(every >= np.uint64(stretch.start)) & (every <= np.uint64(stretch.end - 1))]
        places = (inside - np.uint64(stretch.start)).astype(np.intp)
        bits = stretch.taken if taken else stretch.targets
        np.bitwise_or.at(bits, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))


def mark_common(image: Image, stretches: Sequence[Stretch]) -> None:
    """Mark what any image tells: symbols, aligned words that point into code, the kernel's own tables."""
    if not stretches:
        return
    leads = [image.symbols.addresses]
    lowest = np.uint64(min(stretch.start for stretch in stretches))
    size = image.isa.bits // 8
    word = np.dtype(f"{'>' if image.byte_order == 'big' else '<'}u{size}")
    for segment in image.segments:
        words = np.frombuffer(segment.data[: len(segment.data) & -size], word)
        leads.append(words[words >= lowest].astype(np.uint64))
    tables = image.linux
    if tables is not None:
        leads += tables.leads()
        mark(stretches, tables.places(), taken=True)
    mark(stretches, leads, taken=False)


def packed(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A stretch's flags as `Stretch` keeps them."""
    return np.packbits(flags, bitorder="little")
