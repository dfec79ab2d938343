"""The pristine image's code as a map: where instructions begin, where branches lead, what is sensitive.

Room: `bt`, between the image and everything that patches it. One linear sweep of all executable ranges makes it; it
is the authority on instruction boundaries for as long as the guest runs, and is kept on disk by the code's hash.
Addresses are those at which the image is linked, guest-virtual.
"""

from __future__ import annotations

import hashlib
import operator
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from iced_x86 import Code, Decoder

from bt.pagescan import LONGEST, PAGE, Found, branch_targets
from emulator.isa.x86.decode import REPORTED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.pagecache import PageCache

_CODE: Final = operator.attrgetter("code")
_FILL: Final = re.compile(rb"\xcc{16,}")
_CHUNK: Final = 1 << 16
_IS_REPORTED: Final = np.zeros(1 << 13, bool)
_IS_REPORTED[[*REPORTED, int(Code.INVALID)]] = True


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
    """Rows of (offset from `start`, length, iced-x86 `Code`), ascending."""
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


def sweep(image: Image, cache: PageCache | None = None) -> TextMap:
    """Sweep an image's code, or take the result from `cache`."""
    began = time.perf_counter()
    pieces = _pieces(image)
    digest = _digest(image, pieces)
    if cache is not None:
        stretches = cache.load_text(digest)
        if stretches is not None:
            return TextMap(stretches, digest, time.perf_counter() - began, True)
    stretches = tuple(_sweep_stretch(start, end, parts) for start, end, parts in pieces)
    if stretches:
        _add_leads(image, stretches)
        _add_taken(image, stretches)
    if cache is not None:
        cache.store_text(digest, stretches)
    return TextMap(stretches, digest, time.perf_counter() - began, False)


def _pieces(image: Image) -> list[tuple[int, int, list[tuple[int, bytes]]]]:
    """Whole-page stretches with the code ranges inside each."""
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


def _digest(image: Image, pieces: list[tuple[int, int, list[tuple[int, bytes]]]]) -> bytes:
    """Of all that the map is made from. The file's own hash stands for what leads into the code."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(image.sha256.encode())
    for start, end, parts in pieces:
        digest.update(start.to_bytes(8, "little") + end.to_bytes(8, "little"))
        for at, data in parts:
            digest.update(at.to_bytes(8, "little") + len(data).to_bytes(8, "little"))
    return digest.digest()


def _sweep_stretch(start: int, end: int, parts: list[tuple[int, bytes]]) -> Stretch:
    begins = np.zeros(end - start, bool)
    targets = np.zeros(end - start, bool)
    sites: list[tuple[int, int, int]] = []
    invalid: list[int] = []
    for address, data in parts:
        base = address - start
        part = begins[base : base + len(data)]
        position = 0
        for run in [*_FILL.finditer(data), None]:
            limit = run.start() if run else len(data)
            for at, length, code in _sweep_part(data, position, limit, part):
                if code == Code.INVALID:
                    invalid.append(base + at)
                else:
                    sites.append((base + at, length, code))
            if run:
                part[run.start() : run.end()] = True
                position = run.end()
        places = np.append(np.flatnonzero(part), len(data))
        leads = branch_targets(np.frombuffer(data, np.uint8), places) + base
        targets[leads[(leads >= 0) & (leads < end - start)]] = True
    return Stretch(
        start,
        _pack(begins),
        _pack(targets),
        _pack(np.zeros_like(begins)),
        np.array(sites, np.int64).reshape(-1, 3),
        np.array(invalid, np.int64),
    )


def _pack(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(flags, bitorder="little")


def _sweep_part(data: bytes, start: int, end: int, begins: NDArray[np.bool_]) -> list[Found]:
    """Sweep [start, end) of `data`, mark where instructions begin, return the sensitive and invalid ones."""
    sites: list[Found] = []
    while start < end:
        chunk = data[start : min(start + _CHUNK, end)]
        instructions = list(Decoder(64, chunk, ip=0))
        lengths = np.fromiter(map(len, instructions), np.int64, len(instructions))
        codes = np.fromiter(map(_CODE, instructions), np.int64, len(instructions))
        count = len(instructions)
        if start + len(chunk) < end:  # the last ones may have been cut
            while count > 1 and int(lengths[:count].sum()) > len(chunk) - LONGEST:
                count -= 1
        offsets = np.cumsum(lengths[:count]) - lengths[:count] + start
        begins[offsets] = True
        sites += [
            Found(int(offsets[i]), int(lengths[i]), int(codes[i])) for i in np.flatnonzero(_IS_REPORTED[codes[:count]])
        ]
        start = int(offsets[-1] + lengths[count - 1])
    return sites


def _mark(stretches: tuple[Stretch, ...], addresses: list[NDArray[np.uint64]], taken: bool) -> None:
    """Set the bits of those addresses that lie in a stretch."""
    every = np.concatenate(addresses)
    for stretch in stretches:
        inside = every[(every >= np.uint64(stretch.start)) & (every <= np.uint64(stretch.end - 1))]
        places = (inside - np.uint64(stretch.start)).astype(np.intp)
        bits = stretch.taken if taken else stretch.targets
        np.bitwise_or.at(bits, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))


def _add_leads(image: Image, stretches: tuple[Stretch, ...]) -> None:
    """Mark what leads into the code without being a branch in it: symbols, pointers, exception fixups, jump labels."""
    leads = [np.fromiter((symbol.address for symbol in image.symbols), np.uint64)]
    lowest = np.uint64(min(stretch.start for stretch in stretches))
    for segment in image.segments:
        words = np.frombuffer(segment.data[: len(segment.data) & -8], "<u8")
        leads.append(words[words >= lowest])
    for start, end in image.text_ranges:
        leads += _constants(start, bytes(image.view(start, end - start)), stretches)
    if image.linux is not None:
        leads += [image.linux.exceptions.fixups, image.linux.jump_labels.targets]
    _mark(stretches, leads, taken=False)


def _constants(
    start: int, code: bytes, stretches: tuple[Stretch, ...]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Addresses that instructions of `code` may hold: as 32-bit constants, or as LEA of a RIP-relative operand.

    Every four bytes count as a constant, every 8D as an LEA: a lead too many costs a fixup, one too few a guest.
    """
    if len(code) < 8:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    words = np.ndarray((len(code) - 3,), "<u4", code, strides=(1,))
    low, high = min(stretch.start for stretch in stretches), max(stretch.end for stretch in stretches)
    upper = low & ~0xFFFF_FFFF
    found = words[(words >= np.uint32(low - upper)) & (words < np.uint32(min(high - upper, 0xFFFF_FFFF)))]
    octets = np.frombuffer(code, np.uint8)
    at = np.flatnonzero(octets[:-5] == 0x8D)
    at = at[octets[at + 1] & 0xC7 == 0x05]
    far = words[at + 2].view(np.int32).astype(np.int64).view(np.uint64)
    ends = np.uint64(start) + at.astype(np.uint64) + np.uint64(6)
    return found.astype(np.uint64) + np.uint64(upper), ends + far


def _add_taken(image: Image, stretches: tuple[Stretch, ...]) -> None:
    """Mark the places of the kernel's own patch tables."""
    tables = image.linux
    if tables is None:
        return
    places = [
        tables.alternatives.sites,
        tables.paravirt.sites,
        tables.smp_locks,
        tables.jump_labels.sites,
        tables.retpolines,
        tables.returns,
        tables.static_calls.sites,
        tables.mcount,
        tables.exceptions.instructions,
    ]
    _mark(stretches, places, taken=True)
