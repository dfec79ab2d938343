"""`as_elf`: a kernel that came as raw memory, as an ELF; so that a rewritten one has headers that tell about it.

Room: `bt/image`. Segments, entry and executable ranges are those that the container's reader found, and nothing else is
added: the file is a `vmlinux` that any tool reads. A kernel that is an ELF already stays what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt.image.elf import ET_EXEC, FORMS, PT_LOAD, SHF_ALLOC, SHF_EXECINSTR, SHT_STRTAB

if TYPE_CHECKING:
    from bt.image.image import Image

PAGE: Final = 0x1000
_PROGBITS: Final = 1


def as_elf(image: Image) -> Image:
    """The same kernel as an ELF image, at the same addresses."""
    from bt.image.image import from_bytes

    return from_bytes(contents(image), image.path) if image.raw else image


def contents(image: Image) -> bytes:
    """The ELF of a raw kernel. The memory is as it is linked, relocations that its container found included."""
    form = FORMS[image.isa.bits, image.byte_order]
    linked = getattr(image.header, "linked", None)
    memory = bytes(linked(image.elf) if linked is not None else image.elf)
    head = form.header.size + form.program.size * len(image.segments)
    start = -(-head // PAGE) * PAGE
    programs = b""
    for segment in image.segments:
        at, size = start + segment.file_offset, len(segment.data)
        fields = (at, segment.vaddr, segment.paddr, size, segment.memory_size)
        if form.bits == 64:
            programs += form.program.pack(PT_LOAD, segment.flags, *fields, PAGE)
        else:
            programs += form.program.pack(PT_LOAD, *fields, segment.flags, PAGE)
    names, sections = b"\0.shstrtab\0", [bytes(form.section.size)]
    for number, (low, high) in enumerate(image.text_ranges):
        found = image.segment_at(low)
        assert found is not None
        name = len(names)
        names += (f".text.{number}" if number else ".text").encode() + b"\0"
        at = start + found.file_offset + low - found.vaddr
        flags = SHF_ALLOC | SHF_EXECINSTR
        sections.append(form.section.pack(name, _PROGBITS, flags, low, at, high - low, 0, 0, 1, 0))
    names_at = start + len(memory)
    sections.append(form.section.pack(1, SHT_STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0))
    padding = bytes(-(names_at + len(names)) % 16)
    table_at = names_at + len(names) + len(padding)
    identity = b"\x7fELF" + bytes((form.bits // 32, 2 if form.byte_order == "big" else 1, 1)) + bytes(9)
    header = form.header.pack(
        identity,
        ET_EXEC,
        image.isa.machine,
        1,
        image.entry,
        form.header.size,
        table_at,
        0,
        form.header.size,
        form.program.size,
        len(image.segments),
        form.section.size,
        len(sections),
        len(sections) - 1,
    )
    return (header + programs).ljust(start, b"\0") + memory + names + padding + b"".join(sections)
