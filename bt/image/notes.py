"""ELF notes: the build id, and the entry point that a kernel offers to PVH loaders.

Room: `bt/image`. Layout from the System V ABI (note section); the Xen numbers from
xen/include/public/elfnote.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from emulator.errors import BadImage

XEN_ELFNOTE_PHYS32_ENTRY = 18
NT_GNU_BUILD_ID = 3

_HEADERS = {"little": struct.Struct("<III"), "big": struct.Struct(">III")}
_SIZE = 12


@dataclass(frozen=True, slots=True)
class Note:
    """One note."""

    name: str
    """Who defined `type`, such as "GNU" or "Xen"."""
    type: int
    description: bytes


def parse(tables: Iterable[memoryview], path: str, byte_order: str = "little") -> tuple[Note, ...]:
    """Read note tables (contents of PT_NOTE segments). Raises `BadImage` when one is cut short."""
    header = _HEADERS[byte_order]
    notes = []
    for table in tables:
        at = 0
        while at + _SIZE <= len(table):
            name_size, size, kind = header.unpack_from(table, at)
            name_at = at + _SIZE
            start = name_at + _align(name_size)
            if start + size > len(table):
                raise BadImage(
                    f"{path}: the ELF note at {at:#x} of its table claims {name_size} + {size} bytes, "
                    f"the table has {len(table)}; it is damaged: fetch or build it again",
                )
            name = bytes(table[name_at : name_at + name_size]).rstrip(b"\0").decode("utf-8", "replace")
            notes.append(Note(name, kind, bytes(table[start : start + size])))
            at = start + _align(size)
    return tuple(notes)


def pvh_entry(notes: Iterable[Note]) -> int | None:
    """Guest-physical address of the 32-bit PVH entry point, or None where the kernel has none."""
    for note in notes:
        if note.name == "Xen" and note.type == XEN_ELFNOTE_PHYS32_ENTRY and len(note.description) in (4, 8):
            return int.from_bytes(note.description, "little")
    return None


def build_id(notes: Iterable[Note]) -> str | None:
    """The linker's build id in hexadecimal, or None."""
    for note in notes:
        if note.name == "GNU" and note.type == NT_GNU_BUILD_ID:
            return note.description.hex()
    return None


def _align(size: int) -> int:
    return (size + 3) & ~3
