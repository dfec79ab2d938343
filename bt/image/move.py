"""`move`: the same kernel, linked at other addresses, as Linux's decompressor would have placed it.

Room: `bt/image`. A moved kernel is an `Image` like any other, so its symbols and patch tables are those that its text
has when it runs. The virtual offset is applied by the appended relocation table; the physical one changes load
addresses only. The two are independent (see `relocate`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bt.image import image as images
from bt.image.elf import SHT_SYMTAB
from emulator.errors import UsageError

if TYPE_CHECKING:
    from bt.image.image import Image
    from bt.image.relocate import Relocations

_SHN_ABS = 0xFFF1
_MASK = (1 << 64) - 1


def move(image: Image, *, delta: int = 0, physical_delta: int = 0) -> Image:
    """`image` moved by `delta` bytes virtually and `physical_delta` bytes physically, each a multiple of 2 MiB.

    `path` and `sha256` stay the file's; the relocation table is used up. Raises `UsageError` for offsets the kernel
    does not stand, `BadImage` for a damaged relocation table.
    """
    if not delta and not physical_delta:
        return image
    relocations = _check(image, delta, physical_delta)
    contents = bytearray(image.elf)
    if relocations is not None and delta:
        with memoryview(contents) as view:
            for segment in image.segments:
                place = view[segment.file_offset : segment.file_offset + len(segment.data)]
                relocations.apply(segment.paddr, place, delta)
        _move_symbols(image, contents, delta)
    _move_headers(image.elf, contents, delta, physical_delta)
    virtual = image.entry == image.entry_virtual
    entry = _moved(image.entry, delta) if virtual else image.entry + physical_delta
    struct.pack_into("<Q", contents, 24, entry)
    moved = memoryview(contents).toreadonly()
    return images.from_elf(moved, image.path, image.container, image.compression, image.sha256, image.header)


def _check(image: Image, delta: int, physical_delta: int) -> Relocations | None:
    """Refuse what the kernel does not stand; its relocation table where it has one."""
    if image.isa.bits != 64 or image.raw:
        raise UsageError(f"{image.path}: is no 64-bit ELF, and no other kernel can be moved yet; give offset 0")
    from bt.image import relocate

    relocations = image.relocations if delta or image.header is None else None
    if delta and relocations is None:
        raise UsageError(
            f"{image.path}: has no relocation table, so it runs only where it is linked; "
            "give offset 0, or a bzImage built with CONFIG_RANDOMIZE_BASE",
        )
    if relocations is None and not (image.header and image.header.relocatable):
        raise UsageError(f"{image.path}: is not relocatable; give physical offset 0, or a bzImage that is")
    start = min(segment.paddr for segment in image.segments)
    end = max(segment.paddr + segment.memory_size for segment in image.segments)
    relocate.check_offsets(delta, physical_delta, start, max(end - start, len(image.elf) + len(image.appended)))
    return relocations


def _move_headers(elf: memoryview, contents: bytearray, delta: int, physical_delta: int) -> None:
    """Addresses in program and section headers; what is not in the kernel's map (per-CPU data, at 0) stays.

    Where the headers are is taken from `elf`, which was checked: a relocation may lie upon the header in `contents`.
    """
    program_at, section_at = struct.unpack_from("<QQ", elf, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", elf, 54)
    for at in range(program_at, program_at + program_count * program_size, program_size):
        virtual, physical = struct.unpack_from("<QQ", contents, at + 16)
        struct.pack_into("<QQ", contents, at + 16, _moved(virtual, delta), (physical + physical_delta) & _MASK)
    if not section_at:
        return
    for at in range(section_at, section_at + section_count * section_size, section_size):
        (virtual,) = struct.unpack_from("<Q", contents, at + 16)
        struct.pack_into("<Q", contents, at + 16, _moved(virtual, delta))


def _move_symbols(image: Image, contents: bytearray, delta: int) -> None:
    for section in image.sections:
        if section.type != SHT_SYMTAB:
            continue
        for at in range(section.file_offset, section.file_offset + section.size // 24 * 24, 24):
            index, value = struct.unpack_from("<HQ", contents, at + 6)
            if index != _SHN_ABS:
                struct.pack_into("<Q", contents, at + 8, _moved(value, delta))


def _moved(address: int, delta: int) -> int:
    from bt.image.relocate import START_KERNEL_MAP

    return (address + delta) & _MASK if address >= START_KERNEL_MAP else address
