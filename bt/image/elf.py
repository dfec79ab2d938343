"""ELF64 headers, segments and sections, read from bytes that nobody vouches for.

Room: `bt/image`. Layout from the System V ABI, chapters 4 and 5 (ELF-64 Object File Format 1.5).
Everything is checked here, once, so that later stages may index without fear; no contents are copied.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from emulator.errors import BadImage

MAGIC = b"\x7fELF"
MAXIMUM_SIZE = 1 << 30
"""Largest file, decompressed kernel or segment accepted, bytes."""

ET_EXEC = 2
EM_X86_64 = 62
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PF_X, PF_W, PF_R = 1, 2, 4
SHT_NULL, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 0, 2, 3, 7, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_PHYSICAL_LIMIT = 1 << 52
_VIRTUAL_LIMIT = 1 << 64
_TYPES = {1: "an object file", 3: "position-independent", 4: "a core dump"}
_MACHINES = {
    3: "32-bit x86 (i386)",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S/390",
    40: "ARM",
    183: "AArch64",
    243: "RISC-V",
}


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
    """Where `data` begins in the ELF."""

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


@dataclass(frozen=True, slots=True)
class Elf:
    """A validated ELF64 executable for x86-64."""

    entry: int
    """e_entry as the file has it: virtual by the ABI, physical in Linux's vmlinux."""
    segments: tuple[Segment, ...]
    """PT_LOAD segments that occupy memory, in file order."""
    sections: tuple[Section, ...]
    """All sections, SHN_UNDEF included; empty where the file has none."""
    notes: tuple[memoryview, ...]
    """Contents of the PT_NOTE segments."""
    size: int
    """Bytes of the file that belong to the ELF; a table may be appended behind them."""


@dataclass(frozen=True, slots=True)
class _Header:
    entry: int
    program_offset: int
    program_size: int
    program_count: int
    section_offset: int
    section_size: int
    section_count: int
    names_index: int


def _bad(path: str, what: str) -> NoReturn:
    raise BadImage(f"{path}: {what}")


def parse(data: memoryview, path: str) -> Elf:
    """Read and check an ELF64 executable; `path` is for messages. Raises `BadImage`."""
    header = _parse_header(data, path)
    end = _HEADER.size
    segments: list[Segment] = []
    notes: list[memoryview] = []
    for index in range(header.program_count):
        at = header.program_offset + index * header.program_size
        kind, flags, offset, vaddr, paddr, file_size, memory_size, _ = _PROGRAM.unpack_from(data, at)
        if kind == PT_INTERP:
            _bad(path, "is a program for an operating system (it asks for an interpreter), not a kernel; give a kernel")
        if kind not in (PT_LOAD, PT_NOTE):
            continue
        if offset + file_size > len(data):
            _bad(
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
        _check_segment(segment, index, path)
        if memory_size:
            segments.append(segment)
    if not segments:
        _bad(path, "has no loadable segment; link it as an executable kernel")
    _check_overlaps(segments, path)
    _check_entry(header.entry, segments, path)
    sections = _parse_sections(data, header, path)
    end = max(end, header.program_offset + header.program_count * header.program_size)
    if header.section_count:
        end = max(end, header.section_offset + header.section_count * header.section_size)
    end = max([end, *(s.file_offset + s.size for s in sections if s.type not in (SHT_NULL, SHT_NOBITS))])
    return Elf(header.entry, tuple(segments), sections, tuple(notes), end)


def _parse_header(data: memoryview, path: str) -> _Header:
    if bytes(data[:4]) != MAGIC:
        _bad(path, f"is no ELF: it begins with {bytes(data[:4]).hex() or 'nothing'} instead of 7f454c46; give a kernel")
    if len(data) < _HEADER.size:
        _bad(path, f"is truncated: {len(data)} bytes cannot hold the 64-byte ELF header; fetch or build it again")
    if data[5] != 1:
        _bad(
            path, f"has data encoding {data[5]} in its ELF header; only little-endian (1) x86-64 kernels are supported"
        )
    machine = struct.unpack_from("<H", data, 18)[0]
    if machine != EM_X86_64:
        name = _MACHINES.get(machine, f"machine {machine}")
        _bad(path, f"is for {name}; only x86-64 (machine 62) is supported")
    if data[4] != 2:
        _bad(path, f"is ELF class {data[4]}; only 64-bit (class 2) is supported")
    fields = _HEADER.unpack_from(data)
    (_, kind, _, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx) = fields
    if kind != ET_EXEC:
        what = _TYPES.get(kind, f"ELF type {kind}")
        _bad(path, f"is {what}; a kernel must be linked at fixed addresses (ELF type 2, `ld -no-pie`)")
    if not entry:
        _bad(path, "has no entry point (e_entry is 0); link it with `-e SYMBOL`")
    if not phnum or phnum == 0xFFFF or phentsize < _PROGRAM.size:
        _bad(path, f"has {phnum} program headers of {phentsize} bytes; an executable needs 1 to 65534 of at least 56")
    if phoff + phnum * phentsize > len(data):
        _bad(
            path, f"is truncated: its program headers end at {phoff + phnum * phentsize:#x}, the file at {len(data):#x}"
        )
    if shoff and not shnum and shoff + _SECTION.size <= len(data):
        shnum = _SECTION.unpack_from(data, shoff)[5]  # the real count, where it does not fit the header
    if not shoff:
        shnum = 0
    if shnum and (shentsize < _SECTION.size or shoff + shnum * shentsize > len(data)):
        _bad(
            path,
            f"has {shnum} section headers of {shentsize} bytes at {shoff:#x}, but the file ends at {len(data):#x}: "
            "it is truncated; fetch or build it again",
        )
    return _Header(entry, phoff, phentsize, phnum, shoff, shentsize, shnum, shstrndx)


def _check_segment(segment: Segment, index: int, path: str) -> None:
    """One segment by itself: sizes and ends."""
    if len(segment.data) > segment.memory_size:
        _bad(
            path,
            f"segment {index} has {len(segment.data):#x} bytes in the file but {segment.memory_size:#x} in memory; "
            "link it again",
        )
    if segment.memory_size > MAXIMUM_SIZE:
        _bad(path, f"segment {index} is {segment.memory_size:#x} bytes large; at most {MAXIMUM_SIZE:#x} are accepted")
    if segment.paddr + segment.memory_size > _PHYSICAL_LIMIT:
        _bad(path, f"segment {index} at physical {segment.paddr:#x} ends outside the 52-bit physical address space")
    if segment.vaddr + segment.memory_size > _VIRTUAL_LIMIT:
        _bad(path, f"segment {index} at virtual {segment.vaddr:#x} runs over the end of the address space")


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
                _bad(path, f"two segments overlap at {space} address {start:#x}; give each a range of its own")


def _check_entry(entry: int, segments: Iterable[Segment], path: str) -> None:
    for segment in segments:
        for start in (segment.vaddr, segment.paddr):
            if segment.executable and start <= entry < start + len(segment.data):
                return
    _bad(path, f"its entry point {entry:#x} lies in no executable segment; link it with `-e SYMBOL`")


def _parse_sections(data: memoryview, header: _Header, path: str) -> tuple[Section, ...]:
    raw = [
        _SECTION.unpack_from(data, header.section_offset + index * header.section_size)
        for index in range(header.section_count)
    ]
    names = memoryview(b"")
    if header.names_index and header.names_index < len(raw):
        _, kind, _, _, offset, size, *_ = raw[header.names_index]
        if kind == SHT_STRTAB:
            names = data[offset : offset + size]
    sections = []
    for index, (name, kind, flags, vaddr, offset, size, link, _, _, entry_size) in enumerate(raw):
        in_file = kind not in (SHT_NULL, SHT_NOBITS)
        if in_file and offset + size > len(data):
            _bad(
                path,
                f"section {index} wants bytes {offset:#x}..{offset + size:#x}, but the file ends at {len(data):#x}: "
                "it is truncated; fetch or build it again",
            )
        contents = data[offset : offset + size] if in_file else memoryview(b"")
        sections.append(
            Section(string_at(names, name), kind, flags, vaddr, size, offset, contents, link, entry_size),
        )
    return tuple(sections)


def string_at(table: memoryview, offset: int) -> str:
    """The NUL-terminated string at `offset` of a string table, or "" outside it."""
    if offset >= len(table):
        return ""
    return bytes(table[offset : offset + 4096]).split(b"\0", 1)[0].decode("utf-8", "replace")
