"""ELF headers, segments and sections, of either class and byte order, read from bytes that nobody vouches for.

Room: `bt/image`. Layout from the System V ABI, chapters 4 and 5 (ELF-64 Object File Format 1.5). Everything is checked
here, once, so that later stages may index without fear; no contents are copied. A relocatable object has no segments:
its sections are laid out one behind the other, as if each were a segment (`bt.image.relocatable`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NoReturn

from emulator.errors import BadImage
from emulator.isa.isas import ISAS, Isa

MAGIC = b"\x7fELF"
MAXIMUM_SIZE = 1 << 30
"""Largest file, decompressed kernel or segment accepted, bytes."""

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PF_X, PF_W, PF_R = 1, 2, 4
SHT_NULL, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS, SHT_REL = 0, 2, 3, 4, 7, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4

MOST_SECTIONS: Final = 1 << 20
"""More section headers than any kernel has."""
_TYPES = {4: "a core dump"}
_MACHINES = {
    3: "32-bit x86 (i386)",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S/390",
    40: "ARM",
    62: "x86-64",
    183: "AArch64",
    243: "RISC-V",
}


@dataclass(frozen=True, slots=True)
class Form:
    """The layout of an ELF's structures: its class and byte order."""

    bits: int
    """32 or 64."""
    byte_order: str
    """"little" or "big"."""
    header: struct.Struct
    program: struct.Struct
    section: struct.Struct
    symbol: struct.Struct

    @property
    def address_limit(self) -> int:
        """First address that does not exist."""
        return 1 << self.bits

    def program_fields(self, data: memoryview, at: int) -> tuple[int, int, int, int, int, int, int]:
        """Type, flags, offset, virtual and physical address, bytes in the file and in memory."""
        fields = self.program.unpack_from(data, at)
        if self.bits == 32:
            kind, offset, vaddr, paddr, file_size, memory_size, flags, _ = fields
        else:
            kind, flags, offset, vaddr, paddr, file_size, memory_size, _ = fields
        return kind, flags, offset, vaddr, paddr, file_size, memory_size


def _form(bits: int, byte_order: str) -> Form:
    order = ">" if byte_order == "big" else "<"
    word = "Q" if bits == 64 else "I"
    return Form(
        bits,
        byte_order,
        struct.Struct(f"{order}16sHHI{word * 3}IHHHHHH"),
        struct.Struct(f"{order}II{word * 6}" if bits == 64 else f"{order}8I"),
        struct.Struct(f"{order}II{word * 4}II{word * 2}"),
        struct.Struct(f"{order}IBBHQQ" if bits == 64 else f"{order}IIIBBH"),
    )


FORMS: Final = {(bits, order): _form(bits, order) for bits in (32, 64) for order in ("little", "big")}
"""By class and byte order."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD program header."""

    vaddr: int
    """Guest-virtual address."""
    paddr: int
    """Guest-physical address."""
    memory_size: int
    """Bytes occupied in memory; what `data` does not fill is zero."""
    flags: int
    """PF_R, PF_W and PF_X."""
    data: memoryview
    """The bytes from the file, read-only and not copied."""
    file_offset: int
    """Where `data` begins in the image."""

    @property
    def executable(self) -> bool:
        """Whether PF_X is set."""
        return bool(self.flags & PF_X)


@dataclass(frozen=True, slots=True)
class Section:
    """One section header."""

    name: str
    type: int
    """SHT_*."""
    flags: int
    """SHF_*."""
    vaddr: int
    size: int
    """Bytes in memory (SHT_NOBITS has no bytes in the file)."""
    file_offset: int
    data: memoryview
    """Contents; empty for SHT_NOBITS."""
    link: int
    entry_size: int
    info: int = 0
    alignment: int = 1


@dataclass(frozen=True, slots=True)
class Elf:
    """A validated ELF file of a supported instruction set."""

    isa: Isa
    form: Form
    relocatable: bool
    """An object file (ET_REL): nothing has its address yet."""
    entry: int
    """e_entry as the file has it: virtual by the ABI, physical in Linux's vmlinux for x86-64."""
    segments: tuple[Segment, ...]
    """PT_LOAD segments that occupy memory, in file order."""
    sections: tuple[Section, ...]
    """All sections, SHN_UNDEF included; empty where the file has none."""
    notes: tuple[memoryview, ...]
    """Contents of the PT_NOTE segments; of the sections of notes, where an executable has no such segment."""
    size: int
    """Bytes of the file that belong to the ELF; a table may be appended behind them."""


@dataclass(frozen=True, slots=True)
class _Header:
    form: Form
    isa: Isa
    kind: int
    entry: int
    program_offset: int
    program_size: int
    program_count: int
    section_offset: int
    section_size: int
    section_count: int
    names_index: int


def bad(path: str, what: str) -> NoReturn:
    """Raise `BadImage`."""
    raise BadImage(f"{path}: {what}")


def parse(data: memoryview, path: str) -> Elf:
    """Read and check an ELF file; `path` is for messages. Raises `BadImage`."""
    header = _parse_header(data, path)
    form = header.form
    segments, notes, end = _parse_programs(data, header, path)
    sections = _parse_sections(data, header, path)
    if header.kind == ET_REL:
        from bt.image import relocatable

        sections, segments = relocatable.lay_out(sections, path)
    elif not segments:
        bad(path, "has no loadable segment; link it as an executable kernel")
    else:
        _check_overlaps(segments, path)
        _check_entry(header.entry, segments, path)
    end = max(end, header.program_offset + header.program_count * header.program_size)
    if header.section_count:
        end = max(end, header.section_offset + header.section_count * header.section_size)
    end = max([end, *(s.file_offset + s.size for s in sections if s.type not in (SHT_NULL, SHT_NOBITS))])
    relocatable_ = header.kind == ET_REL
    if not notes and not relocatable_:
        notes = [section.data for section in sections if section.type == SHT_NOTE]
    return Elf(header.isa, form, relocatable_, header.entry, tuple(segments), sections, tuple(notes), end)


def _parse_header(data: memoryview, path: str) -> _Header:
    if bytes(data[:4]) != MAGIC:
        bad(path, f"is no ELF: it begins with {bytes(data[:4]).hex() or 'nothing'} instead of 7f454c46; give a kernel")
    if len(data) < 52:
        bad(path, f"is truncated: {len(data)} bytes cannot hold the 64-byte ELF header; fetch or build it again")
    form, isa = _parse_identity(data, path)
    if len(data) < form.header.size:
        bad(path, f"is truncated: {len(data)} bytes cannot hold the 64-byte ELF header; fetch or build it again")
    fields = form.header.unpack_from(data)
    (_, kind, _, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx) = fields
    if kind not in (ET_REL, ET_EXEC, ET_DYN):
        what = _TYPES.get(kind, f"ELF type {kind}")
        bad(path, f"is {what}; give an executable kernel (ELF type 2) or a module (type 1)")
    if kind == ET_REL:
        phnum = 0
    else:
        _check_executable(data, path, form, entry, phoff, phentsize, phnum)
    if shoff and not shnum and shoff + form.section.size <= len(data):
        shnum = form.section.unpack_from(data, shoff)[5]  # the real count, where it does not fit the header
    if not shoff:
        shnum = 0
    if shnum and (shentsize < form.section.size or shoff + shnum * shentsize > len(data) or shnum > MOST_SECTIONS):
        bad(
            path,
            f"has {shnum} section headers of {shentsize} bytes at {shoff:#x}, but the file ends at {len(data):#x}: "
            "it is truncated; fetch or build it again",
        )
    return _Header(form, isa, kind, entry, phoff, phentsize, phnum, shoff, shentsize, shnum, shstrndx)


def _parse_identity(data: memoryview, path: str) -> tuple[Form, Isa]:
    """Class, byte order and instruction set, of those that are known here."""
    bits, byte_order = {1: 32, 2: 64}.get(data[4], 0), {1: "little", 2: "big"}.get(data[5], "")
    if not byte_order:
        bad(path, f"has data encoding {data[5]} in its ELF header, which is neither little- (1) nor big-endian (2)")
    machine = int.from_bytes(data[18:20], "big" if byte_order == "big" else "little")
    isas = [isa for isa in ISAS.values() if isa.machine == machine]
    if not isas:
        name = _MACHINES.get(machine, f"machine {machine}")
        bad(path, f"is for {name}; only {', '.join(ISAS)} are supported")
    for isa in isas:
        if isa.bits == bits and byte_order in isa.byte_orders:
            return FORMS[bits, byte_order], isa
    known = ", ".join(f"{isa.bits}-bit {' or '.join(isa.byte_orders)}-endian" for isa in isas)
    what = f"{bits}-bit" if bits else f"of class {data[4]}"
    bad(path, f"is {what} and {byte_order}-endian; for {isas[0].name} only {known} is supported")


def _check_executable(
    data: memoryview, path: str, form: Form, entry: int, phoff: int, phentsize: int, phnum: int
) -> None:
    if not entry:
        bad(path, "has no entry point (e_entry is 0); link it with `-e SYMBOL`")
    if not phnum or phnum == 0xFFFF or phentsize < form.program.size:
        least = form.program.size
        bad(path, f"has {phnum} program headers of {phentsize} bytes; an executable has 1 to 65534 of at least {least}")
    if phoff + phnum * phentsize > len(data):
        ends = phoff + phnum * phentsize
        bad(path, f"is truncated: its program headers end at {ends:#x}, the file at {len(data):#x}")


def _parse_programs(data: memoryview, header: _Header, path: str) -> tuple[list[Segment], list[memoryview], int]:
    """Segments, notes, and the end of what they take of the file."""
    form, end = header.form, header.form.header.size
    segments: list[Segment] = []
    notes: list[memoryview] = []
    for index in range(header.program_count):
        at = header.program_offset + index * header.program_size
        kind, flags, offset, vaddr, paddr, file_size, memory_size = form.program_fields(data, at)
        if kind == PT_INTERP:
            bad(path, "is a program for an operating system (it asks for an interpreter), not a kernel; give a kernel")
        if kind not in (PT_LOAD, PT_NOTE):
            continue
        if offset + file_size > len(data):
            bad(
                path,
                f"program header {index} wants bytes {offset:#x}..{offset + file_size:#x}, "
                f"but the file ends at {len(data):#x}: it is truncated; fetch or build it again",
            )
        end = max(end, offset + file_size)
        contents = data[offset : offset + file_size]
        if kind == PT_NOTE:
            notes.append(contents)
            continue
        segment = Segment(vaddr, paddr, memory_size, flags, contents, offset)
        _check_segment(segment, index, form, path)
        if memory_size:
            segments.append(segment)
    return segments, notes, end


def _check_segment(segment: Segment, index: int, form: Form, path: str) -> None:
    """One segment by itself: sizes and ends."""
    if len(segment.data) > segment.memory_size:
        bad(
            path,
            f"segment {index} has {len(segment.data):#x} bytes in the file but {segment.memory_size:#x} in memory; "
            "link it again",
        )
    if segment.memory_size > MAXIMUM_SIZE:
        bad(path, f"segment {index} is {segment.memory_size:#x} bytes large; at most {MAXIMUM_SIZE:#x} are accepted")
    if segment.paddr + segment.memory_size > min(1 << 52, form.address_limit):
        width = min(52, form.bits)
        bad(path, f"segment {index} at physical {segment.paddr:#x} ends outside the {width}-bit physical address space")
    if segment.vaddr + segment.memory_size > form.address_limit:
        bad(path, f"segment {index} at virtual {segment.vaddr:#x} runs over the end of the address space")


def _check_overlaps(segments: Iterable[Segment], path: str) -> None:
    """No two segments may claim one byte, physically or virtually."""
    spaces = {
        "physical": [(s.paddr, s.paddr + s.memory_size) for s in segments],
        "virtual": [(s.vaddr, s.vaddr + s.memory_size) for s in segments],
    }
    for space, ranges in spaces.items():
        ranges.sort()
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                bad(path, f"two segments overlap at {space} address {start:#x}; give each a range of its own")


def _check_entry(entry: int, segments: Iterable[Segment], path: str) -> None:
    for segment in segments:
        for start in (segment.vaddr, segment.paddr):
            if segment.executable and start <= entry < start + len(segment.data):
                return
    bad(path, f"its entry point {entry:#x} lies in no executable segment; link it with `-e SYMBOL`")


def _parse_sections(data: memoryview, header: _Header, path: str) -> tuple[Section, ...]:
    unpack = header.form.section.unpack_from
    raw = [unpack(data, header.section_offset + index * header.section_size) for index in range(header.section_count)]
    names = memoryview(b"")
    if header.names_index and header.names_index < len(raw):
        _, kind, _, _, offset, size, *_ = raw[header.names_index]
        if kind == SHT_STRTAB:
            names = data[offset : offset + size]
    sections = []
    for index, (name, kind, flags, vaddr, offset, size, link, info, alignment, entry_size) in enumerate(raw):
        in_file = kind not in (SHT_NULL, SHT_NOBITS)
        if in_file and offset + size > len(data):
            bad(
                path,
                f"section {index} wants bytes {offset:#x}..{offset + size:#x}, but the file ends at {len(data):#x}: "
                "it is truncated; fetch or build it again",
            )
        if vaddr + size > header.form.address_limit and flags & SHF_ALLOC:
            bad(path, f"section {index} at virtual {vaddr:#x} runs over the end of the address space")
        contents = data[offset : offset + size] if in_file else memoryview(b"")
        title = string_at(names, name)
        sections.append(
            Section(title, kind, flags, vaddr, size, offset, contents, link, entry_size, info, alignment or 1)
        )
    return tuple(sections)


def moved(section: Section, vaddr: int) -> Section:
    """The section at another address."""
    return replace(section, vaddr=vaddr)


def string_at(table: memoryview, offset: int) -> str:
    """The NUL-terminated string at `offset` of a string table, or "" outside it."""
    if offset >= len(table):
        return ""
    return bytes(table[offset : offset + 4096]).split(b"\0", 1)[0].decode("utf-8", "replace")
