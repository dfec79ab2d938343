"""Guest-physical memory: one contiguous run of bytes.

Room: `emulator`. Memory knows nothing of CPUs, page tables or devices; an address outside it is
an `UnbackedAddress`, which the caller turns into whatever the guest would see. The bytes live in
an anonymous, page-aligned mapping that the host commits at the first touch, so that an engine can
map them directly and a large guest costs only what it uses.
"""

import ctypes
import hashlib
import mmap
import sys
from collections.abc import Iterable, Iterator

PAGE_SIZE = 4096
"""Bytes in a page of guest-physical memory."""

_ZERO_PAGE = bytes(PAGE_SIZE)

_POPULATE_WRITE = 23
"""Linux's MADV_POPULATE_WRITE, from 5.14 on."""

_SCAN_PAGES = 256
"""Pages searched for contents at a time by `GuestMemory.digest`: what the processor's cache holds."""
_TELLING = 4
"""Words at the beginning of a page that mostly tell that it is not zero."""


class UnbackedAddress(LookupError):
    """An access to guest-physical memory that is not there."""

    def __init__(self, physical: int, size: int, limit: int) -> None:
        super().__init__(f"guest-physical {physical:#x} (+{size:#x} bytes) is outside memory, which ends at {limit:#x}")
        self.physical = physical
        """First guest-physical address of the access."""
        self.size = size
        """Bytes of the access."""
        self.limit = limit
        """First address behind memory."""

    def __reduce__(self) -> tuple[type["UnbackedAddress"], tuple[int, int, int]]:
        return (UnbackedAddress, (self.physical, self.size, self.limit))


class GuestMemory:
    """Guest-physical memory from address `base` on, all of it zero at first."""

    def __init__(self, size: int, base: int = 0) -> None:
        """`size` in bytes, a positive multiple of 4096; `base` a multiple of 4096. Raises ValueError otherwise."""
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"guest memory of {size} bytes: give a positive multiple of {PAGE_SIZE}")
        if base < 0 or base % PAGE_SIZE:
            raise ValueError(f"guest memory from {base:#x} on: give a multiple of {PAGE_SIZE}")
        self.size = size
        """Bytes of memory."""
        self.base = base
        """Guest-physical address of the first byte."""
        self.end = base + size
        """The first guest-physical address behind it."""
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)  # fewer faults and fewer TLB misses of the host
        self.view = memoryview(self._map)
        """All of memory as bytes, writable, page-aligned on the host; index 0 is the byte at `base`."""
        self.words = self.view.cast("Q")
        """All of memory as 64-bit words in host order (index = (address - base) / 8)."""

    def _span(self, physical: int, size: int) -> tuple[int, int]:
        """First index and the one behind the last of `size` bytes at `physical`. Raises UnbackedAddress."""
        start = physical - self.base
        if start < 0 or size < 0 or start + size > self.size:
            raise UnbackedAddress(physical, size, self.end)
        return start, start + size

    def read(self, physical: int, size: int) -> int:
        """The little-endian number of `size` bytes at `physical`. Raises UnbackedAddress."""
        start, end = self._span(physical, size)
        return int.from_bytes(self.view[start:end], "little")

    def write(self, physical: int, size: int, value: int) -> None:
        """Store the low `size` bytes of `value` at `physical`, little-endian. Raises UnbackedAddress."""
        start, end = self._span(physical, size)
        self.view[start:end] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def read_bytes(self, physical: int, size: int) -> bytes:
        """A copy of `size` bytes at `physical`. Raises UnbackedAddress."""
        start, end = self._span(physical, size)
        return bytes(self.view[start:end])

    def write_bytes(self, physical: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `physical`; nothing is stored when part of it does not fit. Raises UnbackedAddress."""
        if isinstance(data, memoryview):
            data = data.cast("B")
        size = len(data)
        start, end = self._span(physical, size)
        self.view[start:end] = data

    def clear(self, physical: int, size: int) -> None:
        """Store `size` zero bytes at `physical`, giving whole pages back to the host: not while somebody is told which
        pages are written (`emulator.written`). Raises UnbackedAddress."""
        start, end = self._span(physical, size)
        first = -(-start // PAGE_SIZE) * PAGE_SIZE
        last = end // PAGE_SIZE * PAGE_SIZE
        if first >= last:
            self.view[start:end] = bytes(size)
            return
        self.view[start:first] = bytes(first - start)
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        self.view[last:end] = bytes(end - last)

    def commit(self, physical: int, size: int) -> None:
        """Have the host give some memory now that is about to be written, while other threads go on; nothing where it
        does not do that. Raises UnbackedAddress."""
        start, end = self._span(physical, size)
        if sys.platform == "linux" and start < end:
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            place = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + first
            ctypes.CDLL(None).madvise(ctypes.c_void_p(place), ctypes.c_size_t(end - first), _POPULATE_WRITE)

    def digest(self, excluding: Iterable[tuple[int, int]] = ()) -> str:
        """SHA-256, in hexadecimal, of memory's size, and of each run of pages that are not zero: number of the first,
        how many, contents.

        `excluding` names (physical, size) ranges that count as zero; what lies outside memory is ignored.
        """
        patched = {page: self._without(page, holes) for page, holes in self._holes_by_page(excluding).items()}
        sha = hashlib.sha256(self.size.to_bytes(8, "little"))
        pages = [page for page in self._pages_in_use() if patched.get(page) != _ZERO_PAGE]
        for first, behind in _runs(pages):
            sha.update(first.to_bytes(8, "little") + (behind - first).to_bytes(8, "little"))
            start = first
            for page in sorted(page for page in patched if first <= page < behind) if patched else ():
                sha.update(self.view[start * PAGE_SIZE : page * PAGE_SIZE])
                sha.update(patched[page])
                start = page + 1
            sha.update(self.view[start * PAGE_SIZE : behind * PAGE_SIZE])
        return sha.hexdigest()

    def _without(self, page: int, holes: list[tuple[int, int]]) -> bytes:
        """A page's contents with some bytes zero."""
        contents = bytearray(self.view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])
        for low, high in holes:
            contents[low:high] = bytes(high - low)
        return bytes(contents)

    def _pages_in_use(self) -> list[int]:
        """Numbers of the pages that are not zero throughout, ascending."""
        import numpy

        from emulator.written import populated_pages

        words = numpy.frombuffer(self.view, dtype=numpy.uint64).reshape(-1, PAGE_SIZE // 8)
        known = populated_pages(self.view)
        pages = numpy.arange(len(words)) if known is None else known
        used = numpy.any(words[pages, :_TELLING], axis=1)
        rest = numpy.flatnonzero(~used)
        for first in range(0, len(rest), _SCAN_PAGES):
            some = rest[first : first + _SCAN_PAGES]
            used[some] = words[pages[some]].any(axis=1)
        found: list[int] = pages[used].tolist()
        return found

    def _holes_by_page(self, ranges: Iterable[tuple[int, int]]) -> dict[int, list[tuple[int, int]]]:
        """The ranges cut at page boundaries: page number to [low, high) offsets within the page."""
        holes: dict[int, list[tuple[int, int]]] = {}
        for physical, size in ranges:
            start, end = max(physical - self.base, 0), min(physical - self.base + size, self.size)
            while start < end:
                page, low = divmod(start, PAGE_SIZE)
                high = min(end - page * PAGE_SIZE, PAGE_SIZE)
                holes.setdefault(page, []).append((low, high))
                start = page * PAGE_SIZE + high
        return holes


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """Stretches of ascending numbers without a gap: the first, and the one behind the last."""
    first = behind = -1
    for page in pages:
        if page != behind:
            if first >= 0:
                yield first, behind
            first = page
        behind = page + 1
    if first >= 0:
        yield first, behind
