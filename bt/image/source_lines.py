"""`SourceLines`: which line of which file code was compiled from, by the image's DWARF.

Room: `bt/image`. Read by pyelftools when a report first asks; most kernels as packaged have none. What cannot be read
is not known, and is no error.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt.image.image import Image


@dataclass(frozen=True, slots=True)
class SourceLines:
    """Lines by address."""

    addresses: tuple[int, ...]
    """Ascending, guest-virtual."""
    lines: tuple[str, ...]
    """`file.c:12` from each address on; "" where a stretch of code ends."""

    def at(self, address: int) -> str:
        """The line of an address, or ""."""
        index = bisect_right(self.addresses, address) - 1
        return self.lines[index] if index >= 0 else ""


def read(image: Image) -> SourceLines:
    """The line table of an image; empty where it has none, or a damaged one."""
    if image.raw or image.relocatable or image.section(".debug_line") is None:
        return SourceLines((), ())
    from elftools.elf.elffile import ELFFile

    # pyelftools raises errors of many kinds for damaged tables.
    try:
        rows = sorted(_rows(ELFFile(io.BytesIO(bytes(image.elf))).get_dwarf_info(relocate_dwarf_sections=False)))
    except Exception:
        return SourceLines((), ())
    return SourceLines(tuple(address for address, _ in rows), tuple(line for _, line in rows))


def _rows(dwarf: Any) -> Iterator[tuple[int, str]]:
    """Address and line of every row of every unit's line program."""
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        entries = program.header["file_entry"]
        first = 0 if program.header["version"] >= 5 else 1
        names = [entry.name.decode("utf-8", "replace") for entry in entries]
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            index = state.file - first
            known = not state.end_sequence and 0 <= index < len(names)
            yield state.address, f"{names[index]}:{state.line}" if known else ""
