"""Moving a MIPS kernel by the relocation table that it carries for itself (arch/mips/kernel/relocate.c does the same).

Room: `bt/image`. The kernel goes to other virtual addresses and stays where it is in physical memory: into mapped
space, say, where a bare processor would want entries of its TLB for it, and a hypervisor maps it by itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bt.image.mips_tables import ADDRESS, JUMP, UPPER, MipsTables
from emulator.errors import BadImage, UsageError
from emulator.isa.mips.registers import KSEG2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image

_ALIGNMENT = 0x1_0000
"""What an upper half of an address can say."""
_REGION = 28
_LAST = 0xFFFE_0000
"""Where Linux's fixed mappings end; the hypervisor's window is behind."""


def moved(image: Image, delta: int, physical_delta: int = 0) -> Image:
    """The kernel `delta` bytes above where it is linked, in mapped space; in physical memory it stays.

    Raises `UsageError` for a place where it cannot be, `BadImage` where it has no relocations.
    """
    tables = image.linux
    if not isinstance(tables, MipsTables) or not len(tables.relocation_places):
        raise BadImage(f"{image.path}: has no relocation table, so it runs only where it is linked; give offset 0")
    (segment,) = image.segments
    kind = ">u4" if image.byte_order == "big" else "<u4"
    words = np.frombuffer(image.elf, kind, count=len(image.elf) // 4).copy()
    at = ((tables.relocation_places - np.uint64(segment.vaddr)) >> np.uint64(2)).astype(np.int64)
    start = segment.vaddr + delta
    size = max(segment.memory_size, _end(words, at[tables.relocation_types == UPPER], segment.vaddr) - segment.vaddr)
    if physical_delta:
        raise UsageError(f"{image.path}: stays where it is in physical memory; give physical offset 0")
    if delta % _ALIGNMENT or not KSEG2 <= start < start + size <= _LAST:
        raise UsageError(
            f"{image.path}: cannot be moved by {delta:#x} to {start:#x}; give a multiple of {_ALIGNMENT:#x} that takes "
            f"all {size:#x} bytes of it into mapped space, {KSEG2:#x}..{_LAST:#x}"
        )
    if (start ^ start + size - 1) >> _REGION:
        raise UsageError(f"{image.path}: at {start:#x} it would lie across a border of 256 MiB, which no jump crosses")
    for what in (ADDRESS, JUMP, UPPER):
        places = at[tables.relocation_types == what]
        words[places] = _changed(words[places].astype(np.uint32), what, delta & 0xFFFF_FFFF)
    data = memoryview(words.tobytes() + bytes(image.elf[len(words) * 4 :])).toreadonly()
    header = replace(image.header, load_address=start, entry=image.entry + delta)
    where = replace(segment, vaddr=start, data=data, memory_size=size)
    return replace(
        image,
        elf=data,
        segments=(where,),
        entry=header.entry,
        header=header,
        _lazy={},
    )


def _changed(old: NDArray[np.uint32], what: int, delta: int) -> NDArray[np.uint32]:
    """Words with a relocation, moved."""
    if what == ADDRESS:
        return old + np.uint32(delta)
    if what == JUMP:
        return old & np.uint32(0xFC00_0000) | old + np.uint32(delta >> 2) & np.uint32(0x3FF_FFFF)
    return old & np.uint32(0xFFFF_0000) | old + np.uint32(delta >> 16) & np.uint32(0xFFFF)


def _end(words: NDArray[np.uint32], uppers: NDArray[np.int64], base: int) -> int:
    """The end of what the kernel names, its bss included, in whole units of an upper half."""
    named = (words[uppers] & np.uint32(0xFFFF)).astype(np.int64) << 16
    return int(named.max(initial=base)) + _ALIGNMENT
