"""The relocation table appended to a Linux payload, and moving a kernel by it.

Room: `bt/image`. Format as arch/x86/tools/relocs.c writes it and arch/x86/boot/compressed/misc.c reads it: 32-bit
words, each the sign-extended kernel virtual address of a place, in lists that each follow a zero word: 64-bit
places, places that hold the negated address (32 bits; absent since Linux 6.15), 32-bit places.
Only the *virtual* offset needs relocation: `startup_64` finds its physical address by itself and adds the difference
to its page tables and to `phys_base`, so virtual and physical offset may differ. Linux picks a virtual offset that is
a multiple of CONFIG_PHYSICAL_ALIGN and keeps the image inside KERNEL_IMAGE_SIZE, and a physical one aligned alike.
A 32-bit kernel has one list, of 32-bit places behind one zero word, and one offset: its direct map ties virtual
addresses to physical ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emulator.errors import BadImage, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.elf import Segment

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""Virtual address that maps the kernel's physical address 0 when it is not moved (__START_KERNEL_map)."""
KERNEL_IMAGE_SIZE = 1 << 30
"""Bytes of virtual space for the image where it can be moved (CONFIG_RANDOMIZE_BASE)."""
ALIGNMENT = 2 << 20
"""CONFIG_PHYSICAL_ALIGN on x86-64, also the least the kernel's page tables allow."""
PHYSICAL_LIMIT = 1 << 46
"""End of physical memory under four-level paging (MAX_PHYSMEM_BITS)."""

PAGE_OFFSET_32 = 0xC000_0000
"""Virtual address that maps physical address 0 in a 32-bit kernel (CONFIG_PAGE_OFFSET, as distributions have it)."""
KERNEL_IMAGE_SIZE_32 = 512 << 20
"""Bytes of virtual space for a 32-bit kernel's image (arch/x86/include/asm/page_32_types.h)."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Relocations:
    """Places that hold an address of the kernel's own, as link-time *load* addresses.

    A load address is `base` plus the place's physical address; that differs from the virtual address only in
    the per-CPU segment, which is linked at 0. Each array is sorted, of dtype uint64.
    """

    words64: NDArray[np.uint64]
    """Places of 8 bytes, to which the offset is added."""
    words32: NDArray[np.uint64]
    """Places of 4 bytes, to which the offset is added."""
    inverse32: NDArray[np.uint64]
    """Places of 4 bytes, from which the offset is subtracted (distances from per-CPU symbols)."""
    base: int = START_KERNEL_MAP
    """Virtual address that maps the kernel's physical address 0."""

    def __len__(self) -> int:
        return len(self.words64) + len(self.words32) + len(self.inverse32)

    def apply(self, paddr: int, data: bytearray | memoryview, delta: int) -> None:
        """Move by `delta` bytes, in place, what lies in a segment with link-time physical address `paddr`."""
        for places, kind, change in (
            (self.words64, "<u8", delta),
            (self.words32, "<u4", delta),
            (self.inverse32, "<u4", -delta),
        ):
            word = np.dtype(kind)
            start = self.base + paddr
            first, last = np.searchsorted(places, np.array([start, start + len(data)], np.uint64))
            if first == last:
                continue
            offsets = (places[first:last] - np.uint64(start)).astype(np.intp)
            # One item per byte address, so that unaligned places are indexed like any other.
            words = np.ndarray((len(data) - word.itemsize + 1,), word, data, strides=(1,))
            words[offsets] += np.array(change & ((1 << word.itemsize * 8) - 1), word)


def parse(table: memoryview, segments: Sequence[Segment], path: str) -> Relocations:
    """Read the table behind an ELF. Raises `BadImage` where it is malformed or names a place outside the segments."""
    words = np.frombuffer(table[len(table) % 4 :], "<i4")
    if not len(words) or words[0] or len(words) < 2:
        _bad(path, f"is no relocation table ({len(table)} bytes that do not begin with a zero word)")
    zeros = np.flatnonzero(words == 0)
    none = np.empty(0, np.uint64)
    if all(segment.vaddr >> 32 == 0 for segment in segments):
        if len(zeros) != 1:
            _bad(path, f"has {len(zeros)} lists, a 32-bit kernel's relocation table has 1")
        places = np.sort(words[1:].view(np.uint32).astype(np.uint64))
        narrow = Relocations(none, places, none, PAGE_OFFSET_32)
        _check_places(narrow, segments, path)
        return narrow
    if len(zeros) not in (2, 3):
        _bad(path, f"has {len(zeros)} lists, a relocation table has 2 or 3")
    ends = [*zeros[1:].tolist(), len(words)]
    lists = [
        np.sort(words[start + 1 : end].astype(np.int64).view(np.uint64))
        for start, end in zip(zeros.tolist(), ends, strict=True)
    ]
    relocations = Relocations(lists[0], lists[-1], lists[1] if len(lists) == 3 else none)
    _check_places(relocations, segments, path)
    return relocations


def _check_places(relocations: Relocations, segments: Sequence[Segment], path: str) -> None:
    """Every place lies wholly in one segment's bytes, and no two places overlap."""
    starts = np.concatenate([relocations.words64, relocations.words32, relocations.inverse32])
    sizes = np.full(len(starts), 4, np.uint64)
    sizes[: len(relocations.words64)] = 8
    inside = np.zeros(len(starts), bool)
    for segment in segments:
        if segment.paddr + len(segment.data) > (1 << 31):
            continue  # cannot be named by a 32-bit place
        start = relocations.base + segment.paddr
        inside |= (starts >= start) & (starts <= _MASK - 8) & (starts + sizes <= start + len(segment.data))
    if not inside.all():
        _bad(path, f"names {int(starts[~inside][0]):#x}, which lies in no segment's bytes")
    order = np.argsort(starts)
    if (starts[order][1:] < starts[order][:-1] + sizes[order][:-1]).any():
        _bad(path, "names overlapping places")


def check_offsets(delta: int, physical_delta: int, start: int, size: int) -> None:
    """Refuse offsets that Linux's own decompressor would refuse. Raises `UsageError`.

    The kernel is linked at physical `start` and needs `size` bytes, the larger of its extent and its file with the
    table, which the decompressor has in one place.
    """
    for what, value in (("virtual", delta), ("physical", physical_delta)):
        if value < 0 or value % ALIGNMENT:
            raise UsageError(
                f"the {what} offset {value:#x} is no multiple of {ALIGNMENT:#x} (2 MiB) from 0 on; "
                f"take {max(value, 0) // ALIGNMENT * ALIGNMENT:#x}",
            )
    highest = highest_offset(start, size)
    if delta > highest:
        raise UsageError(
            f"the virtual offset {delta:#x} moves the kernel out of its 1 GiB of address space; "
            f"take at most {highest:#x}",
        )
    if start + physical_delta + _whole(size) > PHYSICAL_LIMIT:
        raise UsageError(f"the physical offset {physical_delta:#x} moves the kernel behind 64 TiB; take a smaller one")


def check_offset_32(delta: int, physical_delta: int, start: int, size: int, alignment: int) -> None:
    """Refuse an offset that a 32-bit kernel does not stand. Raises `UsageError`. As `check_offsets`."""
    if delta != physical_delta:
        raise UsageError(
            f"a 32-bit kernel is moved by one offset, not by {delta:#x} virtually and {physical_delta:#x} physically; "
            "give both the same"
        )
    alignment = max(alignment, ALIGNMENT)
    highest = highest_offset_32(start, size, alignment)
    if delta < 0 or delta % alignment or delta > highest:
        raise UsageError(
            f"the offset {delta:#x} is no multiple of {alignment:#x} from 0 to {highest:#x}; "
            f"take {min(max(delta, 0), highest) // alignment * alignment:#x}"
        )


def highest_offset_32(start: int, size: int, alignment: int) -> int:
    """As `highest_offset`, of a 32-bit kernel with this alignment."""
    return max(KERNEL_IMAGE_SIZE_32 - start - -(-size // alignment) * alignment, 0) // alignment * alignment


def highest_offset(start: int, size: int) -> int:
    """The largest virtual offset of a kernel linked at physical `start` that needs `size` bytes."""
    return max(KERNEL_IMAGE_SIZE - start - _whole(size), 0) // ALIGNMENT * ALIGNMENT


def _whole(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bad(path: str, what: str) -> None:
    raise BadImage(f"{path}: what follows its ELF {what}; the file is damaged: fetch or build it again")
