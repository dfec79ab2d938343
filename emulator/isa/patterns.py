"""Sensitive-instruction tables of fixed-width instruction sets: checked, indexed, and matched against whole images.

Room: `emulator/isa`. Rows are recognised by mask and value; here a table is refused whose rows overlap or are dead,
and words are found by numpy: a look at the upper halfword first, which few words of a kernel pass, then a distinct
mask at a time. Knows no instruction set by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from emulator.isa.sensitive import Pattern, Patterns, Route, SensitiveInstruction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 1 << 18
"""Words looked at at a time, so that what is made of them stays in the processor's cache."""


_ByMask = dict[int, dict[int, set[int]]]
"""The values of patterns' exceptions by mask, by the pattern's identity: a wide pattern has many of few masks."""
_FEW = 256
"""Words up to which they are looked up one by one: a page's."""
_MANY_GROUPS = 16
"""Distinct masks from which on it pays to look at each word once, however often it stands there."""
_REMEMBERED = 1 << 16


class PatternTable:
    """The rows of one instruction-set state. Raises ValueError for rows that make no table."""

    def __init__(self, rows: Iterable[SensitiveInstruction]) -> None:
        self.rows: tuple[SensitiveInstruction, ...] = tuple(rows)
        """In the order in which they are printed; results are indices into it."""
        self._patterns: list[tuple[Pattern, int]] = []
        names: set[str] = set()
        for index, row in enumerate(self.rows):
            _check(row)
            if row.name in names:
                raise ValueError(f"two rows are named {row.name!r}; merge them or tell them apart")
            names.add(row.name)
            assert isinstance(row.match, Patterns)
            self._patterns += [(pattern, index) for pattern in row.match.patterns]
        self._by_mask: dict[tuple[int, int], dict[int, list[tuple[Pattern, int]]]] = {}
        for pattern, index in self._patterns:
            by_value = self._by_mask.setdefault((pattern.size, pattern.mask), {})
            by_value.setdefault(pattern.value, []).append((pattern, index))
        _refuse_dead(self._patterns, self.rows)
        _refuse_overlaps(self._by_mask, self.rows)

    def index_of(self, word: int, size: int = 4) -> int:
        """Index of the row that matches `word` of `size` bytes, or -1: the instruction is innocuous."""
        for (length, mask), by_value in self._by_mask.items():
            if length == size:
                for pattern, index in by_value.get(word & mask, ()):
                    if pattern.matches(word):
                        return index
        return -1

    def row_of(self, word: int, size: int = 4) -> SensitiveInstruction | None:
        """The row that matches `word` of `size` bytes, or None."""
        index = self.index_of(word, size)
        return self.rows[index] if index >= 0 else None

    def find(self, words: NDArray[np.uint32], size: int = 4) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Where in `words` rows match: ascending positions, and the index of the row at each.

        `words` are unsigned numbers of 32 bits, or of 16 for a `size` of 2.
        """
        import numpy as np

        finder = self._finders[size]
        words = np.ascontiguousarray(words)
        where: list[NDArray[np.int64]] = []
        which: list[NDArray[np.int32]] = []
        for start in range(0, len(words), _CHUNK):
            positions, indices = finder.find(words[start : start + _CHUNK])
            if len(positions):
                where.append(positions + start)
                which.append(indices)
        if not where:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        return np.concatenate(where), np.concatenate(which)

    def upper_halfwords(self, size: int = 4) -> NDArray[np.bool_]:
        """Which upper halfwords (of a `size` of 2: which halfwords) a word that some row matches may have."""
        return self._finders[size].may

    @cached_property
    def _finders(self) -> dict[int, _Finder]:
        return {
            size: _Finder(
                size,
                {mask: values for (length, mask), values in self._by_mask.items() if length == size},
                partial(self.index_of, size=size),
            )
            for size in (2, 4)
        }


class _Finder:
    """The patterns of one size as arrays."""

    def __init__(
        self, size: int, by_mask: dict[int, dict[int, list[tuple[Pattern, int]]]], index_of: Callable[[int], int]
    ) -> None:
        """`index_of` gives the row of one word."""
        import numpy as np

        self._index_of = index_of
        self._known: dict[int, int] = {}
        """Rows of words that were asked for before."""
        self._shift = 8 * size - 16
        may = np.zeros(1 << 16, dtype=bool)
        every = np.arange(1 << 16, dtype=np.uint32)
        self._groups: list[tuple[int, NDArray[np.uint32], NDArray[np.int32], dict[int, list[_Exceptions]]]] = []
        for mask, by_value in by_mask.items():
            upper = np.uint32(mask >> self._shift & 0xFFFF)
            values = np.array(sorted(by_value), dtype=np.uint32)
            may |= np.isin(every & upper, np.unique(values >> np.uint32(self._shift) & np.uint32(0xFFFF)))
            plain = [next((i for p, i in by_value[int(v)] if not p.unless), -1) for v in values]
            excepted = {
                at: [_Exceptions(p, i) for p, i in by_value[int(value)] if p.unless]
                for at, value in enumerate(values.tolist())
                if any(p.unless for p, _ in by_value[value])
            }
            self._groups.append((mask, values, np.array(plain, dtype=np.int32), excepted))
        self.may = may

    def find(self, words: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Ascending positions of the words that rows match, and the rows."""
        import numpy as np

        upper = words.view(np.uint16)[1::2] if self._shift else words.astype(np.uint16, copy=False)
        positions = np.flatnonzero(self.may[upper])
        few = words[positions].astype(np.uint32, copy=False)
        if len(few) <= _FEW:
            known = self._known
            if len(known) > _REMEMBERED:
                known.clear()
            rows_of_few = [known[word] if word in known else self._ask(word) for word in few.tolist()]
            found = np.array(rows_of_few, dtype=np.int32)
        elif len(self._groups) > _MANY_GROUPS:
            values, places = np.unique(few, return_inverse=True)
            found = self._find_many(values)[places]
        else:
            found = self._find_many(few)
        some = found >= 0
        return positions[some].astype(np.int64, copy=False), found[some]

    def _ask(self, word: int) -> int:
        """The row of one word, remembered."""
        row = self._known[word] = self._index_of(word)
        return row

    def _find_many(self, few: NDArray[np.uint32]) -> NDArray[np.int32]:
        """The rows of words, a distinct mask at a time."""
        import numpy as np

        found = np.full(len(few), -1, dtype=np.int32)
        for mask, values, rows, excepted in self._groups:
            masked = few & np.uint32(mask)
            at = np.searchsorted(values, masked)
            at[at == len(values)] = 0
            hit = np.flatnonzero(values[at] == masked)
            if not len(hit):
                continue
            at = at[hit]
            row = rows[at]
            sure = row >= 0
            found[hit[sure]] = row[sure]
            for number, several in excepted.items():
                here = hit[at == number]
                for exceptions in several:
                    stays = here[~exceptions.cover(few[here])] if len(here) else here
                    found[stays] = exceptions.row
        return found


class _Exceptions:
    """The exceptions of one pattern, a distinct mask at a time."""

    def __init__(self, pattern: Pattern, row: int) -> None:
        import numpy as np

        self.row = row
        by_mask: dict[int, list[int]] = {}
        for mask, value in pattern.unless:
            by_mask.setdefault(mask, []).append(value)
        self._by_mask = [(np.uint32(mask), np.array(values, dtype=np.uint32)) for mask, values in by_mask.items()]

    def cover(self, words: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of the words are exceptions."""
        import numpy as np

        covered = np.zeros(len(words), dtype=bool)
        for mask, values in self._by_mask:
            covered |= np.isin(words & mask, values)
        return covered


def _check(row: SensitiveInstruction) -> None:
    """Raise ValueError when the row alone is wrong."""
    if not isinstance(row.match, Patterns) or not row.match.patterns:
        raise ValueError(f"row {row.name!r} matches no word; give it at least one pattern")
    for pattern in row.match.patterns:
        if pattern.value & ~pattern.mask:
            raise ValueError(f"row {row.name!r}: value {pattern.value:#x} has bits outside mask {pattern.mask:#x}")
        if pattern.size not in (2, 4) or pattern.mask >> 8 * pattern.size:
            raise ValueError(f"row {row.name!r}: mask {pattern.mask:#x} does not fit {pattern.size} bytes")
    if not row.routes or row.routes[-1] is not Route.TRAP or len(set(row.routes)) != len(row.routes):
        raise ValueError(f"row {row.name!r} needs distinct routes, of which the trap is the last")
    if not row.example or not row.manual:
        raise ValueError(f"row {row.name!r} lacks its example or its place in the manual; add both")


def _refuse_dead(patterns: Sequence[tuple[Pattern, int]], rows: Sequence[SensitiveInstruction]) -> None:
    """Raise ValueError when no word can match a pattern."""
    for pattern, index in patterns:
        if any(pattern.mask & mask == mask and pattern.value & mask == value for mask, value in pattern.unless):
            raise ValueError(f"row {rows[index].name!r} is dead: its exceptions cover it")


def _refuse_overlaps(
    by_mask: dict[tuple[int, int], dict[int, list[tuple[Pattern, int]]]], rows: Sequence[SensitiveInstruction]
) -> None:
    """Raise ValueError when a word could match two patterns.

    Two patterns have a word in common when their values agree in the bits that both look at: patterns of two masks
    are compared by these bits alone.
    """
    groups = list(by_mask.items())
    exceptions: _ByMask = {}
    for at, ((size, mask), by_value) in enumerate(groups):
        for (other_size, other_mask), others in groups[at:]:
            if size != other_size:
                continue
            common = mask & other_mask
            same: dict[int, list[tuple[Pattern, int]]] = {}
            for value, several in others.items():
                same.setdefault(value & common, []).extend(several)
            for value, several in by_value.items():
                for one in several:
                    for other in same.get(value & common, ()):
                        _refuse_overlap(one, other, rows, exceptions)


def _refuse_overlap(
    one: tuple[Pattern, int], other: tuple[Pattern, int], rows: Sequence[SensitiveInstruction], exceptions: _ByMask
) -> None:
    """Raise ValueError for two patterns that have a word in common, unless an exception of one is the other."""
    if one is other or _excepted(one[0], other[0], exceptions) or _excepted(other[0], one[0], exceptions):
        return
    raise ValueError(f"rows {rows[one[1]].name!r} and {rows[other[1]].name!r} overlap; a word belongs to one")


def _excepted(wide: Pattern, narrow: Pattern, exceptions: _ByMask) -> bool:
    """Whether an exception of `wide` covers all of `narrow` that `wide` would match."""
    if not wide.unless:
        return False
    known = exceptions.get(id(wide))
    if known is None:
        known = exceptions[id(wide)] = {}
        for m, v in wide.unless:
            known.setdefault(m, set()).add(v)
    mask, value = wide.mask | narrow.mask, wide.value | narrow.value
    return any(mask & m == m and value & m in values for m, values in known.items())
