"""Linux's kernel for ARMv7: a zImage, which holds a compressed `Image`, or that `Image` itself.

Room: `bt/image`. By arch/arm/boot/compressed/{head.S,vmlinux.lds.S} of Linux 6.1 and Documentation/arch/arm/booting:
a magic word with start and end, and a table with the place of the payload's unpacked size, the size of .bss and the
kernel's offset from the beginning of memory. What they claim is checked against the file.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

from bt.image.elf import PF_R, PF_W, PF_X, Segment
from emulator.board.virt import MEMORY_BASE
from emulator.errors import BadImage
from emulator.isa.isas import ARMV7

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image, Range

MAGIC: Final = b"\x18\x28\x6f\x01"
MAGIC_AT: Final = 0x24
IMAGE_SIGNATURE: Final = b"\x00\x90\x0f\xe1\x1a\x90\x29\xe2"
"""mrs r9, cpsr; eor r9, r9, #0x1a: what head.S of every kernel for ARMv7 begins with, behind a branch."""
IMAGE_SIGNATURE_AT: Final = 4
_TABLE_MARK, _TABLE_MAGIC = 0x4545_4545, 0x5A53_4C4B
_LITTLE = 0x0403_0201
_LARGEST: Final = 128 << 20
_OFFSET: Final = 0x8000
"""A kernel's offset from the beginning of memory where nothing says another (TEXT_OFFSET)."""
_OFFSETS: Final = (_OFFSET, 0x20_8000, 0x30_8000)
"""Offsets that kernels are known to have."""
_FURTHEST: Final = 32 << 20
_POINTERS: Final = 1 << 14
"""Pointers that are looked at."""
_CLEAR: Final = 64
"""Pointers to functions that leave no doubt."""
_BASES: Final = (0xC000_0000, 0x8000_0000, 0xB000_0000, 0x4000_0000)
"""Where a kernel may have linked its memory (PAGE_OFFSET), the usual one first."""
_MARKS: Final = (("_stext", "_etext"), ("_sinittext", "_einittext"))
_STREAMS: Final = (
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x89LZO\x00", "lzo"),
)


@dataclass(frozen=True, slots=True)
class ArmHeader:
    """What is known of a kernel besides its memory."""

    text_offset: int
    """Bytes from the beginning of memory at which it wants to lie."""
    bss_size: int
    """Bytes of zeros behind it."""
    base: int
    """Guest-virtual address at which it is linked."""
    size: int
    """Bytes of the image."""

    def text_ranges(self, image: Image) -> tuple[Range, ...]:
        """Executable ranges, by the kernel's own symbols; all of it where there are none."""
        from bt.image.image import Range

        address_of = image.symbols.address_of
        end = self.base + self.size
        found = []
        for first, last in _MARKS:
            start, stop = address_of(first), address_of(last)
            if start is not None and stop is not None and self.base <= start < stop <= end:
                found.append(Range(start, stop))
        head = address_of("_text") or self.base
        if not found:
            return (Range(self.base, end & -4),)
        if head == self.base < found[0].start <= self.base + 0x1000:
            found[0] = Range(self.base, found[0].end)
        return tuple(sorted(found))


def recognise(contents: memoryview) -> bool:
    """Whether the file is a zImage or an ARM kernel's `Image`."""
    if bytes(contents[MAGIC_AT : MAGIC_AT + 4]) == MAGIC:
        return True
    at = IMAGE_SIGNATURE_AT
    return bytes(contents[at : at + len(IMAGE_SIGNATURE)]) == IMAGE_SIGNATURE


def read(contents: memoryview, path: str, digest: str) -> Image:
    """The image of either. Raises `BadImage`."""
    if bytes(contents[MAGIC_AT : MAGIC_AT + 4]) != MAGIC:
        return _image(contents.toreadonly(), path, digest, "arm-image", "none", _OFFSET_UNKNOWN, 0)
    if len(contents) < 0x40 or struct.unpack_from("<I", contents, 0x30)[0] != _LITTLE:
        _bad(path, "is a zImage for a big-endian processor, or is truncated")
    start, end = struct.unpack_from("<II", contents, MAGIC_AT + 4)
    if not 0x40 < end - start <= len(contents):
        _bad(path, f"says that it has {end - start} bytes, and has {len(contents)}: it is truncated")
    offset, bss, size_at = _table(contents, path)
    compression, memory = _payload(contents, size_at, path, digest)
    return _image(memory.toreadonly(), path, digest, "zimage", compression, offset, bss)


_OFFSET_UNKNOWN: Final = -1


def _bad(path: str, what: str) -> NoReturn:
    raise BadImage(f"{path}: {what}; give the arch/arm/boot/zImage or Image of a kernel for ARMv7")


def _table(contents: memoryview, path: str) -> tuple[int, int, int]:
    """Offset in memory, size of .bss and place of the unpacked size; the last -1 where there is no table."""
    mark, at = struct.unpack_from("<II", contents, 0x34)
    if mark != _TABLE_MARK:
        return _OFFSET, 0, -1
    if at % 4 or at + 20 > len(contents):
        _bad(path, f"has its table at {at:#x}, outside the file")
    count, magic, size_at, bss_at, offset = struct.unpack_from("<5I", contents, at)
    if magic != _TABLE_MAGIC or count < 4:
        return _OFFSET, 0, -1
    if size_at + 4 > len(contents) or offset % 4096 or offset > _LARGEST or bss_at > _LARGEST:
        _bad(path, f"has a table that wants {bss_at} bytes of .bss at {offset:#x}, sizes at {size_at:#x}")
    return offset, bss_at, size_at


def _payload(contents: memoryview, size_at: int, path: str, digest: str) -> tuple[str, memoryview]:
    """Compression and contents of the payload: the stream that gives as much as the zImage says."""
    from bt.image import payload

    said = struct.unpack_from("<I", contents, size_at)[0] if size_at >= 0 else 0
    if said > _LARGEST:
        _bad(path, f"says that its kernel has {said} bytes unpacked, at most 128 MiB are read")
    stop = size_at + 4 if size_at >= 0 else len(contents)
    begins = sorted(match.start() for magic, _ in _STREAMS for match in re.finditer(re.escape(magic), contents[:stop]))
    failure: BadImage | None = None
    for begin in begins:
        try:
            name, memory = payload.unpack(contents[begin:stop], path, f"{digest}-{begin:x}", _LARGEST, whole=False)
        except BadImage as error:
            failure = failure or error
            continue
        if (not said or len(memory) == said) and len(memory) >= 0x1000:
            return name, memory
    if failure is not None and len(begins) == 1:
        raise failure
    _bad(path, f"has no payload that unpacks to the {said} bytes that it says")


def _image(
    memory: memoryview, path: str, digest: str, container: str, compression: str, offset: int, bss: int
) -> Image:
    from bt.image.image import Image

    if not 0x1000 <= len(memory) <= _LARGEST:
        _bad(path, f"holds a kernel of {len(memory)} bytes")
    base, found = _base(memory, offset)
    if found < 0:
        raise BadImage(
            f"{path}: does not show at which address it is linked; give the zImage or the vmlinux of this kernel"
        )
    header = ArmHeader(found, bss, base, len(memory))
    segment = Segment(
        vaddr=base,
        paddr=MEMORY_BASE + found,
        memory_size=len(memory) + bss,
        flags=PF_R | PF_W | PF_X,
        data=memory,
        file_offset=0,
    )
    return Image(
        path=path,
        container=container,
        compression=compression,
        sha256=digest,
        elf=memory,
        appended=memoryview(b""),
        segments=(segment,),
        sections=(),
        entry=base,
        header=header,
        isa=ARMV7,
        raw=True,
    )


def _base(memory: memoryview, offset: int) -> tuple[int, int]:
    """Guest-virtual address and offset at which a kernel is linked: the ones to which most of its words point.

    The offset is -1 where it is neither known nor to be found.
    """
    words = np.frombuffer(memory[: len(memory) & -4], "<u4")
    span = np.uint32(len(memory) + max(offset, max(_OFFSETS)))
    base = max(_BASES, key=lambda base: int(((words - np.uint32(base)) < span).sum()))
    if offset < 0:
        offset = _offset(words, base)
    return base + offset, offset


def _offset(words: NDArray[np.uint32], base: int) -> int:
    """The offset at which most pointers to code lead to where a function begins; -1 where none stands out.

    Where pointers are few it is the one whose very address is named most often, as `_text`.
    """
    named = np.unique(
        words[(words - np.uint32(base) < np.uint32(4 * len(words) + _FURTHEST)) & (words & np.uint32(3) == 0)]
    )
    pointers = (named[:: max(1, len(named) // _POINTERS)].astype(np.int64) - base) >> 2
    begins = (words & np.uint32(0xFFFF_4000) == np.uint32(0xE92D_4000)) | (words == np.uint32(0xE1A0_C00D))
    scores = {}
    for offset in range(_OFFSET, _FURTHEST, _OFFSET):
        at = pointers - (offset >> 2)
        scores[offset] = int(begins[at[(at >= 0) & (at < len(words))]].sum())
    best, second = sorted(scores, key=lambda offset: -scores[offset])[:2]
    if scores[best] >= max(_CLEAR, 2 * scores[second]):
        return best
    places = {place: int((words == np.uint32(base + place)).sum()) for place in _OFFSETS}
    best = max(places, key=lambda place: places[place])
    return best if places[best] else -1
