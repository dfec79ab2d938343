"""Linux's kernel for AArch64: a raw `Image`, plain or in gzip.

Room: `bt/image`. By Documentation/arm64/booting.rst: 64 bytes of header, the first two words of them code, then the
kernel's memory as it is linked. The header does not say where that is: a relocatable kernel's own relocation table
does. What a header, PE header or table claims is checked against the file.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

from bt.image.elf import PF_R, PF_W, PF_X, Segment
from emulator.board.virt import MEMORY_BASE
from emulator.errors import BadImage
from emulator.isa.isas import AARCH64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image, Range

MAGIC: Final = b"ARM\x64"
MAGIC_AT: Final = 56
HEADER_SIZE: Final = 64
GZIP: Final = b"\x1f\x8b\x08"
DEFAULT_BASE: Final = 0xFFFF_8000_0800_0000
"""Where a kernel of 48-bit addresses is linked (KIMAGE_VADDR), for one that carries no relocations."""
LOAD_ADDRESS: Final = MEMORY_BASE + 0x20_0000
"""Where the kernel is put, but for its text offset: the first 2 MiB boundary behind where firmware would be."""
_BIG_ENDIAN, _PAGE_SIZE = 1, 6
_PAGES = {2: "4 KiB", 4: "16 KiB", 6: "64 KiB"}
_SMALLEST, _LARGEST = 4096, 256 << 20
_RELATIVE = 0x403
"""Type of a relocation that stores a moved address (R_AARCH64_RELATIVE), without a symbol."""
_FEWEST = 64
"""Relocations below which a run of them is no table."""
_GRANULE = 0x20_0000
_CODE = 0x20
"""IMAGE_SCN_CNT_CODE of a PE section."""
_SPAN = 1 << 40
"""A kernel's addresses are in a space of this size."""


@dataclass(frozen=True, slots=True, eq=False)
class Arm64Header:
    """What is known of an `Image` besides its memory."""

    text_offset: int
    """Bytes from a 2 MiB boundary at which it wants to lie."""
    image_size: int
    """Bytes of memory that it takes, its zeroed data included."""
    flags: int
    base: int
    """Guest-virtual address at which it is linked."""
    places: NDArray[np.int64]
    """Offsets of the words that hold a relocated address."""
    addends: NDArray[np.uint64]
    """What they hold where the kernel runs where it is linked."""
    code_end: int
    """Offset behind everything that may be executed."""

    def linked(self, memory: memoryview) -> memoryview:
        """A copy of the kernel's memory as it is after the kernel has relocated itself to where it is linked."""
        words = np.frombuffer(memory[: len(memory) & -8], "<u8").copy()
        words[self.places >> 3] = self.addends
        return memoryview(words.tobytes() + bytes(memory[len(memory) & -8 :]))

    def text_ranges(self, image: Image) -> tuple[Range, ...]:
        """Executable ranges: between the kernel's own marks, or everything that is not data."""
        from bt.image.image import Range
        from bt.pagecache import PageCache

        # Reading all symbols takes a quarter of a second: what they say of this file is kept.
        cache, key = PageCache(isa="aarch64"), hashlib.sha256(f"arm64 text 1 {image.sha256}".encode()).hexdigest()
        kept = cache.load_notes(key)
        if kept is not None:
            return tuple(Range(start, end) for start, end in kept["ranges"])
        found = self._find_text(image)
        cache.store_notes(key, {"ranges": [list(one) for one in found]})
        return found

    def _find_text(self, image: Image) -> tuple[Range, ...]:
        from bt.image.image import Range

        address_of = image.symbols.address_of
        marks = [address_of(name) for name in ("_stext", "_etext", "__inittext_begin")]
        whole = Range(self.base, self.base + self.code_end)
        if None in marks:
            return (whole,)
        start, end, init = (mark or 0 for mark in marks)
        last = _end_of_init_text(image, init, whole.end)
        if not whole.start <= start < end <= init < last <= whole.end:
            return (whole,)
        return Range(self.base, self.base + 0x1000), Range(start, end), Range(init, last)


def recognise(contents: memoryview) -> bool:
    """Whether the file has the header, or is gzip (of which the header is known only when it is unpacked)."""
    if bytes(contents[: len(GZIP)]) == GZIP:
        return bytes(_first(contents)[MAGIC_AT : MAGIC_AT + 4]) == MAGIC
    return bytes(contents[MAGIC_AT : MAGIC_AT + 4]) == MAGIC


def _first(contents: memoryview) -> bytes:
    """The first unpacked bytes of a gzip stream."""
    import zlib

    try:
        return zlib.decompressobj(31).decompress(contents[: 1 << 16], HEADER_SIZE)
    except zlib.error:
        return b""


def read(contents: memoryview, path: str, digest: str) -> Image:
    """The image of an arm64 `Image`. Raises `BadImage`."""
    from bt.image import payload
    from bt.image.image import Image

    compression, memory = "none", contents
    if bytes(contents[: len(GZIP)]) == GZIP:
        compression, memory = payload.unpack(contents, path, digest, _LARGEST, whole=False)
    memory = memory.toreadonly()
    header = parse(memory, path)
    code = Segment(
        vaddr=header.base,
        paddr=LOAD_ADDRESS + header.text_offset,
        memory_size=header.code_end,
        flags=PF_R | PF_X,
        data=memory[: header.code_end],
        file_offset=0,
    )
    data = Segment(
        vaddr=header.base + header.code_end,
        paddr=LOAD_ADDRESS + header.text_offset + header.code_end,
        memory_size=header.image_size - header.code_end,
        flags=PF_R | PF_W,
        data=memory[header.code_end :],
        file_offset=header.code_end,
    )
    return Image(
        path=path,
        container="arm64-image",
        compression=compression,
        sha256=digest,
        elf=memory,
        appended=memoryview(b""),
        segments=(code, data) if data.memory_size else (code,),
        sections=(),
        entry=header.base,
        header=header,
        isa=AARCH64,
        raw=True,
    )


def parse(memory: memoryview, path: str) -> Arm64Header:
    """What the header, the PE header and the relocation table say. Raises `BadImage`."""
    if len(memory) < _SMALLEST or bytes(memory[MAGIC_AT : MAGIC_AT + 4]) != MAGIC:
        _bad(path, "has no arm64 Image header, or nothing behind it")
    text_offset, image_size, flags = struct.unpack_from("<QQQ", memory, 8)
    if flags & _BIG_ENDIAN:
        _bad(path, "is a big-endian kernel, which is not supported")
    if flags & _PAGE_SIZE not in (0, 2):
        _bad(path, f"is a kernel for pages of {_PAGES[flags & _PAGE_SIZE]}; only 4 KiB are supported")
    if not len(memory) <= image_size <= _LARGEST or text_offset >= _GRANULE or text_offset % 4096:
        _bad(path, f"says that its {len(memory)} bytes take {image_size} bytes of memory at {text_offset:#x}")
    places, addends = _relocations(memory)
    base = DEFAULT_BASE
    if len(places):
        base = int(addends.min()) & -_GRANULE
        places, addends = _checked(places, addends, base, len(memory), path)
    return Arm64Header(text_offset, image_size, flags, base, places, addends, _code_end(memory, path))


def _bad(path: str, what: str) -> NoReturn:
    raise BadImage(f"{path}: {what}; give the arch/arm64/boot/Image of a kernel for 4 KiB pages")


def _relocations(memory: memoryview) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Places (as addresses) and addends of the longest run of relative relocations."""
    words = np.frombuffer(memory[: len(memory) & -8], "<u8")
    types = np.flatnonzero(words == _RELATIVE)
    empty = np.empty(0, np.int64), np.empty(0, np.uint64)
    if len(types) < _FEWEST:
        return empty
    breaks = np.flatnonzero(np.diff(types) != 3)
    starts, ends = np.append(0, breaks + 1), np.append(breaks, len(types) - 1)
    longest = int(np.argmax(ends - starts))
    first, count = int(types[starts[longest]]) - 1, int(ends[longest] - starts[longest] + 1)
    if count < _FEWEST or first < 0 or first + 3 * count > len(words):
        return empty
    table = words[first : first + 3 * count].reshape(-1, 3)
    return table[:, 0].astype(np.int64), table[:, 2].copy()


def _checked(
    places: NDArray[np.int64], addends: NDArray[np.uint64], base: int, size: int, path: str
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    offsets = places - np.int64(base - (1 << 64) if base >> 63 else base)
    wrong = (offsets < 0) | (offsets > size - 8) | (offsets & 7 != 0) | (addends - np.uint64(base) >= np.uint64(_SPAN))
    if wrong.any():
        _bad(path, f"has a relocation at {int(places[wrong][0]) & (1 << 64) - 1:#x}, outside its memory")
    return offsets, addends


def _code_end(memory: memoryview, path: str) -> int:
    """Offset behind the PE section that holds code; the whole file where there is no PE header."""
    at = struct.unpack_from("<I", memory, 60)[0]
    if bytes(memory[:2]) != b"MZ" or bytes(memory[at : at + 4]) != b"PE\0\0" or at + 24 > len(memory):
        return len(memory)
    count, optional = struct.unpack_from("<H12xH", memory, at + 6)
    table = at + 24 + optional
    if table + 40 * count > len(memory):
        _bad(path, f"has a PE header of {count} sections that the file is too short for")
    for number in range(count):
        size, start, kind = struct.unpack_from("<8xII20xI", memory, table + 40 * number)
        if kind & _CODE:
            end = int(start) + int(size)
            if not 0 < end <= len(memory) or end % 4096:
                _bad(path, f"has code up to {end:#x}, which is not in the file")
            return end
    return len(memory)


def _end_of_init_text(image: Image, start: int, limit: int) -> int:
    """The end of the last text symbol behind `start`, in whole pages."""
    symbols = image.symbols
    types = np.frombuffer(symbols.types.encode("latin-1", "replace"), np.uint8)
    inside = (symbols.addresses >= np.uint64(start)) & (symbols.addresses < np.uint64(limit))
    text = symbols.addresses[inside & ((types == ord("t")) | (types == ord("T")))]
    last = int(text[-1]) if len(text) else start
    return min(limit, (last + 0x1000 + 0xFFF) & -0x1000)
