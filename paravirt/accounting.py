"""The exit table: every exit counted by operation and route, the hypervisor's main instrument.

Room: `paravirt`. Counting is always on (a dictionary increment an exit); times are taken only when
asked for, since reading the host's clock costs a good part of an exit.
"""

import time
from collections.abc import Callable

from emulator.engine.exit import Exit

Key = tuple[str, str]
"""Operation and route."""


_WITH_ANOTHER = frozenset({"late", "chained", "early", "ahead", "quiet", "inside"})
"""Routes that are no exits of their own: done with another, or (`inside`) by the engine's own code in the machine."""


class ExitTable:
    """Counts, and if `timed` nanoseconds, by (operation, route)."""

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self._cells: dict[Key, list[int]] = {}
        self.last: list[int] = [0, 0]
        """The cell counted last: an exit's time goes to what it ended in."""
        self._elsewhere: list[tuple[list[int], Callable[[], int]]] = []

    def cell(self, operation: str, route: str) -> list[int]:
        """Count and nanoseconds of one kind of exit, to be counted in place: the hot path keeps its cell."""
        return self._cells.setdefault((operation, route), [0, 0])

    def add_from(self, operation: str, route: str, take: Callable[[], int]) -> None:
        """Something that is counted elsewhere: `take` gives how often it came since it was asked last."""
        self._elsewhere.append((self.cell(operation, route), take))

    @property
    def cells(self) -> dict[Key, list[int]]:
        """Every cell there is, those that count nothing yet included."""
        for cell, take in self._elsewhere:
            more = take()  # which may set this cell, too
            cell[0] += more
        return self._cells

    def count(self, operation: str, route: str) -> None:
        """One exit more."""
        cell = self.last = self._cells.setdefault((operation, route), [0, 0])
        cell[0] += 1

    def spent(self, nanoseconds: int) -> None:
        """Host time of the exit counted last."""
        self.last[1] += nanoseconds

    def handler(self, handle: Callable[[Exit], None]) -> Callable[[Exit], None]:
        """`handle`, its host time counted where exits are timed."""
        if not self.timed:
            return handle

        def timed(exit_: Exit) -> None:
            before = time.perf_counter_ns()
            handle(exit_)
            self.spent(time.perf_counter_ns() - before)

        return timed

    @property
    def counts(self) -> dict[Key, int]:
        """Exits by kind, in the order in which they were first met."""
        return {key: cell[0] for key, cell in self.cells.items() if cell[0]}

    @property
    def total(self) -> int:
        """All exits. What was handed up late, or done behind another, came with that."""
        return sum(count for (_, route), count in self.counts.items() if route not in _WITH_ANOTHER)

    def rows(self) -> list[tuple[str, str, int, float, float]]:
        """(operation, route, count, share of all exits, seconds), most frequent first; what is none has no share."""
        total = self.total or 1
        return sorted(
            (
                (*key, cell[0], 0.0 if key[1] in _WITH_ANOTHER else cell[0] / total, cell[1] / 1e9)
                for key, cell in self.cells.items()
                if cell[0]
            ),
            key=lambda row: (-row[2], row[0], row[1]),
        )
