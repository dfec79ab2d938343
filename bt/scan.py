"""`scan`: every sensitive instruction of an image, with where it stands and how sure that is.

Room: `bt`, the second stage of the house: image -> scan -> plan -> rewrite. Knows nothing of tactics.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt import textmap
from emulator.isa.x86.table import ROW_OF_CODE

if TYPE_CHECKING:
    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.textmap import Stretch
    from emulator.isa.sensitive import SensitiveInstruction

NEAR = 64
"""Where no symbol says how far a function goes: bytes around a site in which undecodable bytes make it doubtful."""


@dataclass(frozen=True, slots=True)
class Site:
    """One sensitive instruction."""

    address: int
    """Guest-virtual, as linked."""
    length: int
    """Bytes."""
    code: int
    """Its encoding, an iced-x86 `Code`."""
    bytes: bytes
    section: str
    """"" where the image has no sections."""
    symbol: str
    """`symbol+0x12`, or the address where no symbol is known."""
    file_offset: int
    """Of its first byte in the (uncompressed) ELF."""
    doubtful: bool
    """Undecodable bytes in the same function: it may be data."""

    @property
    def row(self) -> SensitiveInstruction:
        """Its row of the table."""
        return ROW_OF_CODE[self.code]


def scan(image: Image, cache: PageCache | None = None) -> list[Site]:
    """The sensitive instructions of an image's executable ranges, by ascending address."""
    found = textmap.sweep(image, cache)
    return [site for stretch in found.stretches for site in _sites(image, stretch)]


def _sites(image: Image, stretch: Stretch) -> list[Site]:
    invalid = stretch.invalid.tolist()
    sections = [s for s in image.sections if s.flags & 4 and s.size]
    result = []
    for offset, length, code in stretch.sites.tolist():
        address = stretch.start + offset
        segment = image.segment_at(address)
        if segment is None:
            continue
        section = next((s.name for s in sections if s.vaddr <= address < s.vaddr + s.size), "")
        result.append(
            Site(
                address,
                length,
                code,
                bytes(image.view(address, length)),
                section,
                image.symbols.name_at(address),
                segment.file_offset + address - segment.vaddr,
                _doubtful(image, address, stretch.start, invalid),
            )
        )
    return result


def _doubtful(image: Image, address: int, base: int, invalid: list[int]) -> bool:
    """Whether undecodable bytes lie in the same function, or near where functions are not known."""
    found, end = image.symbols.find(address), image.symbols.end_of(address)
    low = found[0].address if found else address - NEAR
    high = end if found and end is not None else address + NEAR
    return bisect_right(invalid, high - base - 1) > bisect_left(invalid, low - base)
