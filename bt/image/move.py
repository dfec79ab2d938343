"""`move`: the same kernel, linked at other addresses, as Linux's decompressor would have placed it.

Room: `bt/image`. A moved kernel is an `Image` like any other, so its symbols and patch tables are those that its text
has when it runs. The virtual offset is applied by the appended relocation table; the physical one changes load
addresses only. The two are independent (see `relocate`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from bt.image import image as images
from bt.image.elf import SHT_SYMTAB
from emulator.errors import UsageError

if TYPE_CHECKING:
    from bt.image.image import Image
    from bt.image.relocate import Relocations

_SHN_ABS = 0xFFF1
_MASK = (1 << 64) - 1
_CLASS, _CLASS_64 = 4, 2


def move(image: Image, *, delta: int = 0, physical_delta: int = 0) -> Image:
    """`image` moved by `delta` bytes virtually and `physical_delta` bytes physically, each a multiple of 2 MiB.

    A 32-bit kernel takes one offset for both, a multiple of its own alignment. A container whose kernels move in a way
    of their own has a header that does it.

    `path` and `sha256` stay the file's; the relocation table is used up. Raises `UsageError` for offsets the kernel
    does not stand, `BadImage` for a damaged relocation table.
    """
    if not delta and not physical_delta:
        return image
    own = getattr(image.header, "moved", None)
    if own is not None:
        return cast("Image", own(image, delta, physical_delta))
    relocations = _check(image, delta, physical_delta)
    contents = bytearray(image.elf)
    if relocations is not None and delta:
        with memoryview(contents) as view:
            for segment in image.segments:
                place = view[segment.file_offset : segment.file_offset + len(segment.data)]
                relocations.apply(segment.paddr, place, delta)
        _move_symbols(image, contents, delta)
    _move_headers(image.elf, contents, delta, physical_delta)
    form = _form(image.elf)
    virtual = image.entry == image.entry_virtual
    entry = _moved(image.entry, delta, form) if virtual else image.entry + physical_delta
    struct.pack_into(form.word, contents, 24, entry)
    moved = memoryview(contents).toreadonly()
    return images.from_elf(moved, image.path, image.container, image.compression, image.sha256, image.header)


def _check(image: Image, delta: int, physical_delta: int) -> Relocations | None:
    """Refuse what the kernel does not stand; its relocation table where it has one."""
    if not image.isa.name.startswith(("x86", "i386")) or image.raw:
        raise UsageError(f"{image.path}: is no ELF for x86, and no other kernel can be moved yet; give offset 0")
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
    size = max(end - start, len(image.elf) + len(image.appended))
    if image.isa.bits == 32:
        alignment = image.header.kernel_alignment if image.header is not None else 0
        relocate.check_offset_32(delta, physical_delta, start, size, alignment)
    else:
        relocate.check_offsets(delta, physical_delta, start, size)
    return relocations


def _move_headers(elf: memoryview, contents: bytearray, delta: int, physical_delta: int) -> None:
    """Addresses in program and section headers; what is not in the kernel's map (per-CPU data, at 0) stays.

    Where the headers are is taken from `elf`, which was checked: a relocation may lie upon the header in `contents`.
    """
    form = _form(elf)
    program_at, section_at = struct.unpack_from(form.words, elf, form.tables)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", elf, form.counts)
    for at in range(program_at, program_at + program_count * program_size, program_size):
        virtual, physical = struct.unpack_from(form.words, contents, at + form.program)
        moved = _moved(virtual, delta, form), (physical + physical_delta) & form.mask
        struct.pack_into(form.words, contents, at + form.program, *moved)
    if not section_at:
        return
    for at in range(section_at, section_at + section_count * section_size, section_size):
        (virtual,) = struct.unpack_from(form.word, contents, at + form.section)
        struct.pack_into(form.word, contents, at + form.section, _moved(virtual, delta, form))


def _move_symbols(image: Image, contents: bytearray, delta: int) -> None:
    form = _form(image.elf)
    for section in image.sections:
        if section.type != SHT_SYMTAB:
            continue
        end = section.file_offset + section.size // form.symbol * form.symbol
        for at in range(section.file_offset, end, form.symbol):
            (index,) = struct.unpack_from("<H", contents, at + form.index)
            (value,) = struct.unpack_from(form.word, contents, at + form.value)
            if index != _SHN_ABS:
                struct.pack_into(form.word, contents, at + form.value, _moved(value, delta, form))


@dataclass(frozen=True, slots=True)
class _Form:
    """Where ELF has its addresses (gABI, chapters 4 and 5): offsets in bytes."""

    word: str
    words: str
    mask: int
    tables: int
    counts: int
    program: int
    """Of p_vaddr, before p_paddr."""
    section: int
    symbol: int
    """Size of a symbol."""
    value: int
    index: int


_ELF64 = _Form("<Q", "<QQ", _MASK, tables=32, counts=54, program=16, section=16, symbol=24, value=8, index=6)
_ELF32 = _Form("<I", "<II", 0xFFFF_FFFF, tables=28, counts=42, program=8, section=12, symbol=16, value=4, index=14)


def _form(elf: memoryview) -> _Form:
    return _ELF64 if elf[_CLASS] == _CLASS_64 else _ELF32


def _moved(address: int, delta: int, form: _Form) -> int:
    from bt.image.relocate import PAGE_OFFSET_32, START_KERNEL_MAP

    base = START_KERNEL_MAP if form is _ELF64 else PAGE_OFFSET_32
    return (address + delta) & form.mask if address >= base else address
