"""`FixedWidth`: the base of every fixed-width instruction set's `Tactics`, for words of four bytes.

Room: `bt/tactics/fixed`. An instruction set says what a branch looks like, where its direct branches lead and what
traps; an instruction set with narrower encodings replaces the scans, too.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bt.pagescan import Found, PageScan
from bt.tactics.fixed import words
from bt.tactics.tactics import CodePage, OutOfReach
from emulator.isa.patterns import PatternTable
from emulator.isa.sensitive import SensitiveInstruction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.tactics.tactics import Ladder
    from bt.textmap import Stretch
    from emulator.isa.isas import Isa


class FixedWidth(ABC):
    """See `bt.tactics.tactics.Tactics`. `Found.code` is the index of the row in `isa.rows`."""

    longest: int = words.SIZE
    branch_size: int = words.SIZE
    """Bytes of `branch`, delay slot included."""
    far_size: int = 0
    """Bytes of `far_branch`; 0 where there is none that is sound."""
    far_clobbers: tuple[str, ...] = ()
    """What `far_branch` uses up."""
    revision: int = 1
    """Raised by an instruction set when what a scan finds changes without a change of the table."""

    def __init__(self, isa: Isa, byte_order: str) -> None:
        self.isa = isa
        self.byte_order = byte_order

    # -- what an instruction set says ---------------------------------------------------------

    @abstractmethod
    def branches(self, code: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Byte offsets, from the first word, to which the direct branches among the words lead."""

    @abstractmethod
    def branch(self, source: int, target: int) -> bytes:
        """An unconditional branch at guest-virtual `source`, `branch_size` bytes. Raises `OutOfReach`."""

    def far_branch(self, source: int, target: int) -> bytes:
        """A branch to anywhere at guest-virtual `source`, `far_size` bytes: what a veneer is made of."""
        raise OutOfReach(f"{target:#x} is out of a branch's reach from {source:#x}")

    @abstractmethod
    def trap(self, site: Found) -> bytes:
        """What is planted at a site, in the guest's byte order."""

    @property
    @abstractmethod
    def fill(self) -> bytes:
        """A trap as wide as the narrowest instruction, for bytes that are never reached."""

    def data_words(self, image: Image, address: int, code: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of the words from guest-virtual `address` on are no instructions (literal pools, ...); here none."""
        return np.zeros(len(code), bool)

    def padding(self, page: CodePage) -> Sequence[tuple[int, int]]:
        """Offset and length of runs of a page's bytes that are never executed nor read; here none."""
        return ()

    @abstractmethod
    def ladder(self, strategy: str, image: Image | None, delta: int = 0, cache: PageCache | None = None) -> Ladder:
        """See `bt.tactics.tactics.Tactics.ladder`."""

    # -- what follows from it -----------------------------------------------------------------

    @cached_property
    def table(self) -> PatternTable:
        """The instruction set's table."""
        return PatternTable(self.isa.rows)

    @cached_property
    def _version(self) -> str:
        text = f"{self.revision} {self.byte_order} {[(row.name, row.match) for row in self.isa.rows]}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def version(self) -> str:
        """Of the table's patterns."""
        return self._version

    def row_of(self, code: int) -> SensitiveInstruction:
        """The row with this index."""
        if code < 0:
            raise KeyError(code)
        return self._rows[code]

    @cached_property
    def _rows(self) -> tuple[SensitiveInstruction, ...]:
        return self.isa.rows

    def needs_trap(self, code: int) -> bool:
        """Whether the row does not exit by itself in user mode."""
        return self._planted[code]

    @cached_property
    def _planted(self) -> tuple[bool, ...]:
        return tuple(self.isa.planted(row) for row in self.isa.rows)

    def sweep(self, image: Image) -> tuple[Stretch, ...]:
        """Every word that is no data."""
        return words.sweep(image, self.table, self.branches, self.data_words)

    def own_targets(self, code: bytes) -> int:
        """Mask of a page's offsets to which its own direct branches lead."""
        return words.targets_in(code, self.branches, self.byte_order)

    def scan_page(self, code: bytes, after: bytes, start: int, pristine: int = 0) -> PageScan:
        """Every word that is no data."""
        return words.scan_page(code, start, pristine, self.table, self.byte_order)

    def rescan_page(self, old: bytes, scan: PageScan, new: bytes, pristine: int = 0) -> PageScan:
        """As `scan_page`: words do not depend on each other."""
        return words.scan_page(new, scan.start, pristine or scan.boundaries, self.table, self.byte_order)

    def with_entry(self, scan: PageScan, code: bytes, after: bytes, entry: int) -> PageScan:
        """What is entered is no data, up to the next known instruction."""
        return words.with_entry(scan, code, entry, self.table, self.byte_order)

    def starts(self, before: bytes, whole: bytes) -> Sequence[int]:
        """Words are aligned."""
        return (0,)
