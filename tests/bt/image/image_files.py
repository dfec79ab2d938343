"""Small kernels, made byte by byte for the tests of `bt.image`: ELF, bzImage, kallsyms, relocation tables.

Written from the formats' descriptions and not from `bt.image`, whose code it must not import.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lz4.block
import zstandard

BASE = 0xFFFF_FFFF_8100_0000
PHYSICAL = 0x100_0000


@dataclass(frozen=True)
class Part:
    """A section that is a segment too, unless `vaddr` is None."""

    name: str
    data: bytes
    vaddr: int | None = None
    paddr: int = 0
    flags: int = 4
    """PF_R 4, PF_W 2, PF_X 1."""
    extra: int = 0
    """Bytes of memory behind the data."""
    type: int = 1
    link: int = 0
    info: int = 0
    in_segment: bool = True

    @property
    def section_flags(self) -> int:
        if self.vaddr is None:
            return 0
        return 2 | (1 if self.flags & 2 else 0) | (4 if self.flags & 1 else 0)


TEXT = Part(".text", b"\x90" * 64 + b"\xc3" * 64, BASE, PHYSICAL, 5)
DATA = Part(".data", bytes(range(256)), BASE + 0x20_0000, PHYSICAL + 0x20_0000, 6, 0x1000)


def make_elf(
    parts: Sequence[Part] = (TEXT, DATA),
    entry: int = PHYSICAL,
    *,
    sections: bool = True,
    notes: bytes = b"",
    kind: int = 2,
    machine: int = 62,
    bits: int = 64,
    order: str = "<",
) -> bytes:
    """An ELF executable; PT_LOAD for every part that has an address, PT_NOTE for `notes`. `order` is "<" or ">"."""
    wide = bits == 64
    word = "Q" if wide else "I"
    header_size, program_size, section_size = (64, 56, 64) if wide else (52, 32, 40)
    loads = [part for part in parts if part.vaddr is not None and part.in_segment and kind != 1]
    count = len(loads) + bool(notes)
    at = -(-(header_size + program_size * count) // 16) * 16
    body, offsets = bytearray(), []
    for part in parts:
        body += bytes(-len(body) % 16)
        offsets.append(at + len(body))
        body += part.data
    note_at = at + len(body)
    body += notes

    def program(
        kind: int, flags: int, offset: int, vaddr: int, paddr: int, size: int, memory: int, align: int
    ) -> bytes:
        if wide:
            return struct.pack(f"{order}IIQQQQQQ", kind, flags, offset, vaddr, paddr, size, memory, align)
        return struct.pack(f"{order}8I", kind, offset, vaddr, paddr, size, memory, flags, align)

    programs = b"".join(
        program(1, part.flags, at, part.vaddr or 0, part.paddr, len(part.data), len(part.data) + part.extra, 0x1000)
        for part, at in zip(parts, offsets, strict=True)
        if part in loads
    )
    if notes:
        programs += program(4, 4, note_at, 0, 0, len(notes), len(notes), 4)
    table, section_at, section_count = b"", 0, 0
    if sections:
        names = b"\0" + b"".join(part.name.encode() + b"\0" for part in parts) + b".shstrtab\0"
        names_at = at + len(body)
        body += names
        body += bytes(-len(body) % 8)
        table = bytes(section_size)
        form = f"{order}II{word * 4}II{word * 2}"
        for part, offset in zip(parts, offsets, strict=True):
            table += struct.pack(
                form,
                names.index(b"\0" + part.name.encode() + b"\0") + 1,
                part.type,
                part.section_flags,
                (part.vaddr or 0) if kind != 1 else 0,
                offset,
                len(part.data),
                part.link,
                part.info,
                1,
                (24 if wide else 16) if part.type == 2 else 0,
            )
        table += struct.pack(form, names.index(b".shstrtab"), 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
        section_at, section_count = at + len(body), len(parts) + 2
    ident = b"\x7fELF" + bytes((2 if wide else 1, 2 if order == ">" else 1, 1)) + bytes(9)
    header = struct.pack(
        f"{order}16sHHI{word * 3}IHHHHHH",
        *(ident, kind, machine, 1, entry, header_size, section_at, 0, header_size, program_size, count),
        *(section_size, section_count, max(section_count - 1, 0)),
    )
    return (header + programs).ljust(at, b"\0") + bytes(body) + table


def make_bzimage(
    payload: bytes,
    *,
    version: int = 0x20F,
    init_size: int = 1 << 22,
    xloadflags: int = 1,
    relocatable: int = 1,
) -> bytes:
    """A bzImage with one setup sector beside the boot sector, and some code before the payload."""
    header = bytearray(1024)
    struct.pack_into("<B", header, 0x1F1, 1)
    struct.pack_into("<H", header, 0x1FE, 0xAA55)
    header[0x200:0x202] = b"\xeb\x6a"
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, version)
    struct.pack_into("<I", header, 0x230, 0x20_0000)
    header[0x234] = relocatable
    struct.pack_into("<H", header, 0x236, xloadflags)
    struct.pack_into("<II", header, 0x248, 48, len(payload))
    struct.pack_into("<QI", header, 0x258, PHYSICAL, init_size)
    return bytes(header) + b"\xcc" * 48 + payload + b"\xcc" * 32


def _with_size(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: compress(data) + struct.pack("<I", len(data))


def _xz(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 32 << 20}]
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


def _lz4(data: bytes) -> bytes:
    blocks = [lz4.block.compress(data[at : at + (8 << 20)], store_size=False) for at in range(0, len(data), 8 << 20)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def _zstd(data: bytes) -> bytes:
    """As the kernel's build calls it: reading a pipe, so that the frame does not say its size."""
    stream = zstandard.ZstdCompressor(level=19, write_content_size=False).compressobj()
    return stream.compress(data) + stream.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": _with_size(_xz),
    "lzma": _with_size(lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "bzip2": _with_size(bz2.compress),
    "lz4": _with_size(_lz4),
    "zstd": _with_size(_zstd),
}
"""Payloads as Linux's build makes them, by compression."""


def make_relocations(words64: Sequence[int], inverse32: Sequence[int], words32: Sequence[int]) -> bytes:
    """The table that relocs.c writes; places are virtual addresses."""
    words = [0, *words64, 0, *inverse32, 0, *words32]
    return b"".join(struct.pack("<I", word & 0xFFFF_FFFF) for word in words)


def make_symtab(
    symbols: Sequence[tuple[int, str, int, int]], names_index: int, *, bits: int = 64, order: str = "<"
) -> tuple[Part, Part]:
    """.symtab and .strtab of (address, name, info, section index); .strtab must become section `names_index`."""
    names, table = b"\0", bytes(24 if bits == 64 else 16)
    for address, name, info, index in symbols:
        if bits == 64:
            table += struct.pack(f"{order}IBBHQQ", len(names), info, 0, index, address, 0)
        else:
            table += struct.pack(f"{order}IIIBBH", len(names), address, 0, info, 0, index)
        names += name.encode() + b"\0"
    return Part(".symtab", table, type=2, link=names_index), Part(".strtab", names, type=3)


def make_kallsyms(
    symbols: Sequence[tuple[int, str, str]],
    *,
    base: int = BASE,
    offsets_last: bool = False,
    order_table: bool = False,
    absolute_percpu: bool = True,
    whole_addresses: bool = False,
    bits: int = 64,
    order: str = "<",
) -> bytes:
    """Linux's own symbol table of (address, type, name) in ascending order of address.

    `offsets_last`: as since Linux 6.4. `order_table`: the permutation by name, as since 6.2. `whole_addresses`: as
    without CONFIG_KALLSYMS_BASE_RELATIVE.
    """
    pointer = bits // 8

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % pointer)

    tokens = [chr(code) if 0x20 < code < 0x7F else f"\x01{code}" for code in range(256)]
    tokens[1:6] = ["_", "sys_", "_init", "tcp_", "__"]
    by_length = sorted(range(256), key=lambda code: -len(tokens[code]))
    names, markers = b"", []
    for index, (_, kind, name) in enumerate(symbols):
        if index % 256 == 0:
            markers.append(len(names))
        text, codes = kind + name, []
        while text:
            code = next(code for code in by_length if text.startswith(tokens[code]))
            codes.append(code)
            text = text[len(tokens[code]) :]
        length = len(codes)
        names += bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
        names += bytes(codes)
    offsets = b""
    for address, _, _ in symbols:
        if not absolute_percpu:
            offsets += struct.pack(f"{order}I", address - base)
        else:
            offsets += struct.pack(f"{order}i", address if address < 1 << 31 else base - 1 - address)
    positions, text_table = [], b""
    for token in tokens:
        positions.append(len(text_table))
        text_table += token.encode() + b"\0"
    word = f"{order}{'Q' if bits == 64 else 'I'}"
    addresses = pad(offsets) + struct.pack(word, base)
    if whole_addresses:
        addresses = b"".join(struct.pack(word, address) for address, _, _ in symbols)
    count = pad(struct.pack(f"{order}I", len(symbols)))
    body = count + pad(names) + pad(struct.pack(f"{order}{len(markers)}I", *markers))
    by_name = pad(b"".join(struct.pack(">I", index)[1:] for index in range(len(symbols)))) if order_table else b""
    index_table = struct.pack(f"{order}256H", *positions)
    if offsets_last:
        return body + pad(text_table) + index_table + addresses + by_name
    return addresses + body + by_name + pad(text_table) + index_table


def make_note(name: bytes, kind: int, description: bytes) -> bytes:
    """One ELF note; `name` without its NUL."""
    name += b"\0"
    header = struct.pack("<III", len(name), len(description), kind)
    return header + name + bytes(-len(name) % 4) + description + bytes(-len(description) % 4)
