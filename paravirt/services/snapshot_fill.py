"""Putting a snapshot's contents where they belong, in a thread of its own: what a machine else takes is made meanwhile.

Room: `paravirt/services`, under `snapshot_file`. Contents come in batches in order of their number, and whole runs of
pages are copied at once. The interpreter is asked for seldom: expanding is native, and copying a batch is one turn.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from paravirt.services.snapshot_form import FRAME, PAGE, ZERO

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emulator.memory import GuestMemory
    from paravirt.services.snapshot_form import Rows

_MOST_PAGES: Final = 1 << 20
_LARGE: Final = 512
"""Pages in a large page of the host."""


class Runs:
    """Where in one region the contents of a snapshot belong."""

    def __init__(self, target: Rows, numbers: NDArray[np.int32]) -> None:
        """`numbers`: of each page, from its first on, the number of its contents; less than 0 for what comes from
        elsewhere."""
        self._view = _bytes_of(target)
        pages = np.flatnonzero(numbers >= 0)
        order = np.argsort(numbers[pages], kind="stable")
        pages = pages[order]
        own = numbers[pages]
        new = np.ones(len(own), dtype=bool)
        new[1:] = (np.diff(own) != 1) | (np.diff(pages) != 1) | (own[1:] % FRAME == 0)  # none over a batch's end
        starts = np.flatnonzero(new)
        self._numbers, self._pages = own[starts], pages[starts]
        self._counts = np.diff(starts, append=len(own))

    def put(self, first: int, rows: Rows) -> None:
        """Put a batch of contents, whole frames of them or the last ones, in their places; `first` is its number."""
        data, view = _bytes_of(rows), self._view
        low, high = np.searchsorted(self._numbers, (first, first + len(rows)))
        froms = ((self._numbers[low:high] - first) * PAGE).tolist()
        tos = (self._pages[low:high] * PAGE).tolist()
        sizes = (self._counts[low:high] * PAGE).tolist()
        for at, to, size in zip(froms, tos, sizes, strict=True):
            view[to : to + size] = data[at : at + size]


def commit(memory: GuestMemory, numbers: NDArray[np.int32]) -> None:
    """Have the host give the memory that will be filled: as one call each for what lies together, copying into it
    keeps other threads waiting for no page. `numbers`: of each page its contents, as `Runs` has them."""
    used = numbers != ZERO
    large = np.zeros(-(-len(used) // _LARGE) * _LARGE, dtype=bool)
    large[: len(used)] = used
    wanted = np.flatnonzero(np.diff(large.reshape(-1, _LARGE).any(axis=1).astype(np.int8), prepend=0, append=0))
    size = _LARGE * PAGE
    for first, end in wanted.reshape(-1, 2).tolist():
        memory.commit(memory.base + first * size, min(end * size, memory.size) - first * size)


class Filling(Thread):
    """A guest's memory is filled."""

    def __init__(self, memory: GuestMemory, scatter: Callable[[GuestMemory], dict[str, Rows]]) -> None:
        """`scatter` fills memory, and gives what belongs elsewhere."""
        super().__init__(daemon=True)
        self.memory = memory
        self._scatter = scatter
        self._made: dict[str, Rows] = {}
        self._failed: Exception | None = None

    def run(self) -> None:
        """Do it; whatever goes wrong is told to who takes what was made."""
        try:
            self._made = self._scatter(self.memory)
        except Exception as error:
            self._failed = error

    def take(self) -> dict[str, Rows]:
        """What belongs elsewhere, by region, once memory is filled. Raises what went wrong."""
        if self.is_alive():
            self.join()
        if self._failed is not None:
            raise self._failed
        return self._made


def blank_rows(count: int) -> Rows:
    """Pages of zeros. Raises `ValueError` for more than any region has."""
    if count > _MOST_PAGES:
        raise ValueError(f"a region of {count} pages")
    return np.zeros((count, PAGE // 8), dtype=np.uint64)


def put_first(target: Rows, rows: Rows, name: str) -> None:
    """Put pages at the beginning of a region. Raises `ValueError` where it has not so many."""
    if len(rows) > len(target):
        raise ValueError(f"the region {name} is larger than the machine has")
    target[: len(rows)] = rows


def _bytes_of(rows: Rows) -> Any:
    return rows.view(np.uint8).reshape(-1).data
