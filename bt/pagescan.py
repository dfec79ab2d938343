"""One page of code: where its instructions begin and which are sensitive. Values only, for every instruction set.

Room: `bt`, under the static scanner and the run-time translator alike; what makes a `PageScan` is in `bt/tactics`.
Bit masks are Python integers, bit n for the byte at offset n of the page. Offsets are bytes from the page's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE: Final = 4096


class Found(NamedTuple):
    """A sensitive instruction."""

    offset: int
    length: int
    code: int
    """Its encoding, by the instruction set's own number: an iced-x86 `Code`, or the index of its row in the table."""


@dataclass(frozen=True, slots=True)
class PageScan:
    """What decoding one page finds."""

    sites: tuple[Found, ...]
    """In ascending order."""
    boundaries: int
    """Mask of the offsets at which an instruction begins."""
    overflow: int
    """Bytes by which the last instruction reaches into the next page."""

    @property
    def start(self) -> int:
        """Offset of the first instruction."""
        return (self.boundaries & -self.boundaries).bit_length() - 1 if self.boundaries else 0


def mask_of(flags: NDArray[np.bool_]) -> int:
    """The bit mask of a flag array."""
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


def offsets_of(mask: int) -> NDArray[np.intp]:
    """The offsets set in a page's mask, ascending."""
    packed = np.frombuffer(mask.to_bytes(PAGE // 8, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(packed, bitorder="little"))
