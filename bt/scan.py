"""`scan`: every sensitive instruction of an image, with where it stands and how sure that is.

Room: `bt`, the second stage of the house: image -> scan -> plan -> rewrite. Knows nothing of tactics, and no
instruction set: the sweep is the instruction set's own, and what is said of a site here follows from its marks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

import numpy as np

from bt import textmap
from bt.tactics.registry import tactics_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image, Section
    from bt.pagecache import PageCache
    from bt.textmap import Stretch
    from emulator.isa.sensitive import SensitiveInstruction

NEAR: Final = 64
"""Where no symbol says how far a function goes: bytes around a site in which what is no instruction casts doubt."""


class Confidence(Enum):
    """How sure it is that a site is an instruction that runs."""

    CERTAIN = "certain"
    """Decoding reaches it in step from a place that is known to be an instruction, over instructions only."""
    LIKELY = "likely"
    """Everything near it decodes, but nothing says where an instruction begins."""
    DATA = "data?"
    """What is no instruction stands near it, or between it and the last place that is known to be one."""


@dataclass(frozen=True, slots=True)
class Site:
    """One sensitive instruction."""

    address: int
    """Guest-virtual, as linked."""
    length: int
    """Bytes."""
    code: int
    """Its encoding, as `Found.code`."""
    row: SensitiveInstruction
    """Its row of the table."""
    bytes: bytes
    section: str
    """"" where the image has no sections."""
    symbol: str
    """`symbol+0x12`, or the address where no symbol is known."""
    file_offset: int
    """Of its first byte in the (uncompressed) image."""
    confidence: Confidence
    reason: str
    """Why so sure, or not, as a clause."""
    state: str = ""
    """The instruction-set state it is of ("a32", "t32"), where the instruction set has several."""

    @property
    def doubtful(self) -> bool:
        """It may be data."""
        return self.confidence is Confidence.DATA


def scan(image: Image, cache: PageCache | None = None) -> list[Site]:
    """The sensitive instructions of an image's executable ranges, by ascending address."""
    found = textmap.sweep(image, cache)
    return [site for stretch in found.stretches for site in _sites(image, stretch)]


def _sites(image: Image, stretch: Stretch) -> list[Site]:
    tactics = tactics_of(image.isa.name, image.byte_order)
    sections = sorted((s for s in image.sections if s.flags & 4 and s.size), key=lambda s: s.vaddr)
    judge = _Judge(image, stretch)
    result = []
    for offset, length, code in stretch.sites.tolist():
        address = stretch.start + offset
        segment = image.segment_at(address)
        if segment is None:
            continue
        row = tactics.row_of(code)
        confidence, reason = judge.of(offset)
        result.append(
            Site(
                address=address,
                length=length,
                code=code,
                row=row,
                bytes=bytes(image.view(address, length)),
                section=_section(sections, address),
                symbol=image.symbols.name_at(address),
                file_offset=segment.file_offset + address - segment.vaddr,
                confidence=confidence,
                reason=reason,
                state=getattr(row.match, "state", ""),
            )
        )
    return result


def _section(sections: list[Section], address: int) -> str:
    return next((s.name for s in sections if s.vaddr <= address < s.vaddr + s.size), "")


class _Judge:
    """Says how sure a site of one stretch is."""

    def __init__(self, image: Image, stretch: Stretch) -> None:
        self._image = image
        self._start = stretch.start
        self._invalid: list[int] = stretch.invalid.tolist()
        leads = np.unpackbits(stretch.targets & stretch.begins, bitorder="little")
        self._leads: NDArray[np.intp] = np.flatnonzero(leads)

    def of(self, offset: int) -> tuple[Confidence, str]:
        """The confidence in the site at `offset`, and why."""
        address = self._start + offset
        symbols = self._image.symbols
        found, end = symbols.find(address), symbols.end_of(address)
        low = found[0].address - self._start if found else offset - NEAR
        high = end - self._start if found and end is not None else offset + NEAR
        first = bisect_left(self._invalid, low)
        if first < bisect_right(self._invalid, offset):
            last = self._invalid[bisect_right(self._invalid, offset) - 1]
            lead = self._lead(offset)
            if lead is None or lead <= last:
                return Confidence.DATA, f"what is no instruction stands at {self._start + last:#x}, before it"
            return Confidence.LIKELY, f"a branch or pointer leads to {self._start + lead:#x}, but there is data before"
        after = first < len(self._invalid) and self._invalid[first] < high
        if after:
            at = self._start + self._invalid[first]
            return Confidence.DATA, f"what is no instruction stands at {at:#x}, in the same function"
        if found and found[0].address <= address:
            if found[0].address == address:
                return Confidence.CERTAIN, f"it is the first instruction of {found[0].name}"
            return Confidence.CERTAIN, f"decoding comes to it from the start of {found[0].name}, over instructions only"
        lead = self._lead(offset)
        if lead is not None and lead >= low:
            what = (
                "leads to it" if lead == offset else f"leads to {self._start + lead:#x}, and decoding from there to it"
            )
            return Confidence.CERTAIN, f"a branch or pointer {what}"
        return Confidence.LIKELY, "all near it is instructions, but no symbol or branch says where one begins"

    def _lead(self, offset: int) -> int | None:
        """The last place at or before `offset` to which something leads, and where an instruction begins."""
        index = int(np.searchsorted(self._leads, offset, side="right")) - 1
        return int(self._leads[index]) if index >= 0 else None
