"""A guest's symbols as a file that gdb loads: an ELF with .symtab and no contents.

Room: `bt/gdb`. Kernels come without .symtab but with kallsyms; `bt.image.symbols` reads both. Sections have the
image's addresses (moved as the guest is) and no bytes, so that gdb reads code from the guest.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt.output import write

if TYPE_CHECKING:
    from bt.image import Image

_MACHINES: Final = {"x86-64": 62, "i386": 3, "armv7": 40, "aarch64": 183, "mips32": 8}
_FUNCTION, _OBJECT, _ABSOLUTE = 2, 1, 0xFFF1
_MOST_SECTIONS: Final = 1000


def symbol_file(image: Image, delta: int = 0) -> bytes:
    """The bytes of the file."""
    isa = image.isa.name
    wide = image.elf[4] == 2
    order = "<" if image.byte_order == "little" else ">"
    mask = (1 << 64 if wide else 1 << 32) - 1
    segments = [one for one in image.segments if one.memory_size][:_MOST_SECTIONS]
    names, places = bytearray(b"\0"), []
    table = bytearray(struct.pack(order + ("IBBHQQ" if wide else "IIIBBH"), 0, 0, 0, 0, 0, 0))
    for symbol in image.symbols:
        section = next(
            (
                number
                for number, one in enumerate(segments, 1)
                if one.vaddr <= symbol.address <= one.vaddr + one.memory_size
            ),
            _ABSOLUTE,
        )
        kind = _FUNCTION if symbol.type in "tTwW" else _OBJECT
        information = (1 if symbol.type.isupper() else 0) << 4 | kind
        address = symbol.address + (delta if section != _ABSOLUTE else 0) & mask
        places.append(len(names))
        if wide:
            table += struct.pack(order + "IBBHQQ", len(names), information, 0, section, address, 0)
        else:
            table += struct.pack(order + "IIIBBH", len(names), address, 0, information, 0, section)
        names += symbol.name.encode("utf-8", "replace") + b"\0"
    headers = _Headers(order, wide)
    headers.add(".null", 0, 0, 0, 0, 0)
    for number, one in enumerate(segments):
        executable = (
            4 if any(r.start < one.vaddr + one.memory_size and one.vaddr < r.end for r in image.text_ranges) else 1
        )
        name = ".text" if executable == 4 and ".text" not in headers.names else f".segment{number}"
        headers.add(name, 8, 2 | executable, one.vaddr + delta & mask, headers.size, one.memory_size)
    first = headers.size
    strings = len(segments) + 2
    headers.add(".symtab", 2, 0, 0, first, len(table), link=strings, info=1, entry=24 if wide else 16)
    headers.add(".strtab", 3, 0, 0, first + len(table), len(names))
    return headers.file(_MACHINES[isa], bytes(table) + bytes(names))


class _Headers:
    """Section headers of an ELF file whose contents begin behind the ELF header."""

    def __init__(self, order: str, wide: bool) -> None:
        self._order, self._wide = order, wide
        self.size = 64 if wide else 52
        self.names: list[str] = []
        self._rows: list[tuple[int, ...]] = []

    def add(
        self,
        name: str,
        kind: int,
        flags: int,
        address: int,
        at: int,
        size: int,
        link: int = 0,
        info: int = 0,
        entry: int = 0,
    ) -> None:
        """A section."""
        self.names.append(name)
        self._rows.append((kind, flags, address, at if kind else 0, size, link, info, 1 if kind else 0, entry))

    def file(self, machine: int, contents: bytes) -> bytes:
        """The whole file."""
        text, starts = bytearray(), []
        for name in (*self.names, ".shstrtab"):
            starts.append(len(text))
            text += (b"" if name == ".null" else name.encode()) + b"\0"
        at = self.size + len(contents)
        rows = [*self._rows, (3, 0, 0, at, len(text), 0, 0, 1, 0)]
        form = self._order + ("IIQQQQIIQQ" if self._wide else "IIIIIIIIII")
        table = b"".join(struct.pack(form, start, *row) for start, row in zip(starts, rows, strict=True))
        identity = b"\x7fELF" + bytes((2 if self._wide else 1, 1 if self._order == "<" else 2, 1)) + bytes(9)
        header = identity + struct.pack(
            self._order + ("HHIQQQIHHHHHH" if self._wide else "HHIIIIIHHHHHH"),
            *(
                2,
                machine,
                1,
                0,
                0,
                at + len(text),
                0,
                self.size,
                0,
                0,
                64 if self._wide else 40,
                len(rows),
                len(rows) - 1,
            ),
        )
        return header + contents + bytes(text) + table


def write_symbol_file(image: Image, path: Path, delta: int = 0) -> int:
    """Write the file; gives how many symbols it has. Raises `Unwritable`, or `UsageError` where it is the image's."""
    write(path, symbol_file(image, delta), Path(image.path))
    return len(image.symbols)
