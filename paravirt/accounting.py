"""The exit table: every exit counted by operation and route, the hypervisor's main instrument.

Room: `paravirt`. Counting is always on (a dictionary increment an exit); times are taken only when
asked for, since reading the host's clock costs a good part of an exit.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class ExitTable:
    """Counts, and if `timed` nanoseconds, by (operation, route)."""

    timed: bool = False
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    nanoseconds: dict[tuple[str, str], int] = field(default_factory=dict)
    last: tuple[str, str] = ("", "")
    """What was counted last: an exit's time goes to what it ended in."""

    def count(self, operation: str, route: str) -> None:
        """One exit more."""
        key = self.last = (operation, route)
        self.counts[key] = self.counts.get(key, 0) + 1

    def spent(self, nanoseconds: int) -> None:
        """Host time of the exit counted last."""
        self.nanoseconds[self.last] = self.nanoseconds.get(self.last, 0) + nanoseconds

    @property
    def total(self) -> int:
        """All exits."""
        return sum(self.counts.values())

    def rows(self) -> list[tuple[str, str, int, float, float]]:
        """(operation, route, count, share of all exits, seconds), most frequent first."""
        total = self.total or 1
        return sorted(
            (
                (operation, route, count, count / total, self.nanoseconds.get((operation, route), 0) / 1e9)
                for (operation, route), count in self.counts.items()
            ),
            key=lambda row: (-row[2], row[0], row[1]),
        )
