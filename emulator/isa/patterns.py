"""Sensitive-instruction tables of fixed-width instruction sets: checked, indexed, and matched against whole images.

Room: `emulator/isa`. Rows are recognised by mask and value; here a table is refused whose rows overlap or are dead,
and words are found by numpy, a distinct mask at a time. Knows no instruction set by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from emulator.isa.sensitive import Pattern, Patterns, Route, SensitiveInstruction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
        _refuse_overlaps(self._patterns, self.rows)
        self._by_mask: dict[tuple[int, int], dict[int, list[tuple[Pattern, int]]]] = {}
        for pattern, index in self._patterns:
            by_value = self._by_mask.setdefault((pattern.size, pattern.mask), {})
            by_value.setdefault(pattern.value, []).append((pattern, index))

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
        """Where in `words` rows match: ascending positions, and the index of the row at each."""
        import numpy as np

        where: list[NDArray[np.int64]] = []
        which: list[NDArray[np.int32]] = []
        for (length, mask), by_value in self._by_mask.items():
            if length != size:
                continue
            values = np.array(sorted(by_value), dtype=np.uint32)
            masked = words & np.uint32(mask)
            hit = masked == values[0] if len(values) == 1 else np.isin(masked, values)
            for position in np.nonzero(hit)[0].tolist():
                word = int(words[position])
                index = next((i for p, i in by_value[word & mask] if p.matches(word)), -1)
                if index >= 0:
                    where.append(np.array([position], dtype=np.int64))
                    which.append(np.array([index], dtype=np.int32))
        if not where:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        positions, indices = np.concatenate(where), np.concatenate(which)
        order = np.argsort(positions, kind="stable")
        return positions[order], indices[order]


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


def _refuse_overlaps(patterns: Sequence[tuple[Pattern, int]], rows: Sequence[SensitiveInstruction]) -> None:
    """Raise ValueError when a word could match two patterns, or none can match one of them."""
    for at, (one, index) in enumerate(patterns):
        if any(one.mask & mask == mask and one.value & mask == value for mask, value in one.unless):
            raise ValueError(f"row {rows[index].name!r} is dead: its exceptions cover it")
        for other, second in patterns[at + 1 :]:
            if one.size == other.size and not (one.value ^ other.value) & one.mask & other.mask:
                if _excepted(one, other) or _excepted(other, one):
                    continue
                raise ValueError(f"rows {rows[index].name!r} and {rows[second].name!r} overlap; a word belongs to one")


def _excepted(wide: Pattern, narrow: Pattern) -> bool:
    """Whether an exception of `wide` covers all of `narrow` that `wide` would match."""
    mask, value = wide.mask | narrow.mask, wide.value | narrow.value
    return any(mask & m == m and value & m == v for m, v in wide.unless)
