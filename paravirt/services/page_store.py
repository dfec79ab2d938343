"""Contents of pages by number: whole, or as the words in which a page differs from what it was when it was kept whole.

Room: `paravirt/services`, under `checkpoints`. Most pages that a kernel writes again change in a few words, and memory
that nobody has used yet is what costs most, so that is what is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int32]
    Pages = NDArray[np.int64]
    Rows = NDArray[np.uint64]

ZERO: Final = -1
"""The number of a page that is zero throughout."""
_WORDS: Final = 512
_CHUNK: Final = 256
_COMPARED: Final = 128
"""Pages looked through at a time; the second is of two that are compared, which the processor's cache holds."""
_FIRST: Final = 4
"""Words at the beginning of a page that mostly tell that it is not zero."""
_FEW: Final = 96
"""Words in which a page may differ and not be kept whole."""


def filled(rows: Rows, pages: Pages) -> NDArray[np.bool_]:
    """Whether each of some pages is not zero throughout."""
    found: NDArray[np.bool_] = np.any(rows[pages, :_FIRST], axis=1)
    rest = np.flatnonzero(~found)
    for first in range(0, len(rest), _CHUNK):
        some = rest[first : first + _CHUNK]
        found[some] = rows[pages[some]].any(axis=1)
    return found


@dataclass(slots=True, eq=False)
class _Whole:
    """Whole pages."""

    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        return self.rows.nbytes

    def chosen(self, which: Pages) -> _Whole:
        """Some of them."""
        return self if len(which) == len(self.rows) else _Whole(self.rows[which])


@dataclass(slots=True, eq=False)
class _Changed:
    """Pages as what they differ in from whole ones."""

    bases: Ids
    """Of each, the number of the whole one."""
    counts: Pages
    """Words of each."""
    places: NDArray[np.uint16]
    words: Rows

    def __len__(self) -> int:
        return len(self.bases)

    @property
    def size(self) -> int:
        return self.places.nbytes + self.words.nbytes + self.counts.nbytes + self.bases.nbytes

    def chosen(self, which: Pages) -> _Changed:
        """Some of them, ascending."""
        if len(which) == len(self.bases):
            return self
        taken = np.zeros(len(self.bases), dtype=bool)
        taken[which] = True
        every = np.repeat(taken, self.counts)
        return _Changed(self.bases[which], self.counts[which], self.places[every], self.words[every])

    def put(self, which: Pages, out: Rows, at: Pages) -> None:
        """Put the words of some, in any order, into pages `at` that have the contents of their bases."""
        ends = np.cumsum(self.counts)
        counts = self.counts[which]
        firsts = np.repeat(ends[which] - counts, counts)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = firsts + within
        out[np.repeat(at, counts), self.places[chosen]] = self.words[chosen]


class PageStore:
    """Contents of pages, in blocks as they came."""

    def __init__(self) -> None:
        self._blocks: list[_Whole | _Changed] = []
        self._first: list[int] = []
        self._whole: Ids = np.zeros(0, dtype=np.int32)
        """Of every number, the one of the whole page that it is made of: its own, or its base's."""
        self.next = 0
        self.bytes = 0

    def add(self, rows: Rows, pages: Pages, known: Ids) -> Ids:
        """Keep the contents of some pages of `rows`; their numbers. `known`: the numbers of what they had before."""
        numbers = np.empty(len(pages), dtype=np.int32)
        whole = np.ones(len(pages), dtype=bool)
        before = np.flatnonzero(known != ZERO)
        bases = self._whole[known[before]]
        parts: list[_Changed] = []
        for first in range(0, len(before), _COMPARED):
            some = slice(first, first + _COMPARED)
            found, few = self._compare(rows, pages[before[some]], bases[some])
            whole[before[some]] = ~few
            parts.append(found)
        every = np.flatnonzero(whole)
        numbers[every] = self._append(_Whole(rows[pages[every]]))
        changed = _Changed(
            np.concatenate([one.bases for one in parts]) if parts else np.zeros(0, dtype=np.int32),
            np.concatenate([one.counts for one in parts]) if parts else np.zeros(0, dtype=np.int64),
            np.concatenate([one.places for one in parts]) if parts else np.zeros(0, dtype=np.uint16),
            np.concatenate([one.words for one in parts]) if parts else np.zeros(0, dtype=np.uint64),
        )
        numbers[~whole] = self._append(changed)
        return numbers

    def _compare(self, rows: Rows, pages: Pages, bases: Ids) -> tuple[_Changed, NDArray[np.bool_]]:
        """Those pages that differ from their bases in few words, as these; and which they are."""
        now, then = rows[pages], np.empty((len(pages), _WORDS), dtype=np.uint64)
        self.fetch(bases, then, np.arange(len(pages)))
        differ = np.flatnonzero(now != then)
        of_page = differ // _WORDS
        counts = np.bincount(of_page, minlength=len(pages))
        few = counts <= _FEW
        if not few.all():
            differ = differ[few[of_page]]
        places = (differ % _WORDS).astype(np.uint16)
        return _Changed(bases[few], counts[few], places, now.reshape(-1)[differ]), few

    def _append(self, block: _Whole | _Changed) -> Ids:
        """Keep a block; its numbers."""
        first, count = self.next, len(block)
        numbers = np.arange(first, first + count, dtype=np.int32)
        if count:
            self._blocks.append(block)
            self._first.append(first)
            self._whole = np.concatenate((self._whole, numbers if isinstance(block, _Whole) else block.bases))
            self.next += count
            self.bytes += block.size
        return numbers

    def fetch(self, numbers: Ids, out: Rows, places: Pages) -> None:
        """Put contents `numbers` into `out` at `places`."""
        zero = numbers == ZERO
        out[places[zero]] = 0
        chosen = np.flatnonzero(~zero)
        for block, which, mine in self._by_block(self._whole[numbers[chosen]]):
            assert isinstance(block, _Whole)
            out[places[chosen[mine]]] = block.rows[which]
        changed = chosen[self._whole[numbers[chosen]] != numbers[chosen]]
        for block, which, mine in self._by_block(numbers[changed]):
            assert isinstance(block, _Changed)
            block.put(which, out, places[changed[mine]])

    def _by_block(self, numbers: Ids) -> list[tuple[_Whole | _Changed, Pages, Pages]]:
        """(block, places in it, places in `numbers`) of the blocks that have some of these."""
        order = np.argsort(numbers, kind="stable")
        wanted = numbers[order]
        blocks = np.searchsorted(np.asarray(self._first), wanted, side="right") - 1
        found = []
        for block in np.unique(blocks).tolist():
            mine = blocks == block
            found.append((self._blocks[block], wanted[mine].astype(np.int64) - self._first[block], order[mine]))
        return found

    def one(self, number: int) -> Rows:
        """The contents of one number."""
        row = np.zeros((1, _WORDS), dtype=np.uint64)
        self.fetch(np.array([number], dtype=np.int32), row, np.zeros(1, dtype=np.int64))
        return row[0]  # type: ignore[no-any-return]

    def keep_only(self, used: Ids) -> Ids:
        """Forget what is not in `used` (ascending) nor needed for it; gives the new number of each old one."""
        used = used[used != ZERO]
        used = np.unique(np.concatenate((used, self._whole[used])))
        renumbered = np.full(self.next, ZERO, dtype=np.int32)
        old = list(zip(self._first, self._blocks, strict=True))
        self._blocks, self._first, self.next, self.bytes = [], [], 0, 0
        self._whole = np.zeros(0, dtype=np.int32)
        for first, block in old:
            mine = used[(used >= first) & (used < first + len(block))]
            kept = block.chosen(mine.astype(np.int64) - first)
            if isinstance(kept, _Changed):
                kept = _Changed(renumbered[kept.bases], kept.counts, kept.places, kept.words)
            renumbered[mine] = self._append(kept)
        return renumbered
