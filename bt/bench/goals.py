"""What rewriting is meant to reach on Debian's kernels, figure by figure, beside what was measured.

Room: measurements. A goal belongs to one image, or to all; a figure that was not measured has no row. Goals of time are
of the wall clock, so on a busy machine they say little: the CPU time stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt.bench.rewrite import MIB, Figures, Growth, evenness

if TYPE_CHECKING:
    from emulator.errors import RetrapError


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure to reach."""

    images: tuple[str, ...]
    """Of which images; none: of all."""
    figure: str
    unit: str
    least: float | None
    """The figure must not be less; None where it must not be more than `most`."""
    most: float | None
    measure: Callable[[Figures], float]
    beside: Callable[[Figures], str] = lambda _figures: ""
    """More, for people."""

    def met(self, value: float) -> bool:
        """Whether a value reaches it."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def text(self) -> str:
        """The goal in words."""
        bound = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return f"{bound} {self.unit}".rstrip()


GOALS: Final = (
    Goal(("debian-amd64",), "scan", "MiB/s of text", 25, None, lambda row: row.speed),
    Goal(
        ("debian-amd64",),
        "rewrite",
        "s",
        None,
        3,
        lambda row: row.rewrite.wall,
        lambda row: f"{row.rewrite.cpu:.2f} CPU",
    ),
    Goal(("debian-amd64",), "memory of rewrite", "MB", None, 500, lambda row: row.rewrite.peak / 1e6),
    Goal((), "sites covered", "%", 100, None, lambda row: 100 * row.covered / row.sites if row.sites else 100.0),
    Goal(("debian-amd64", "debian-i386-pae"), "without a trap in .text", "%", 80, None, lambda row: row.text_share),
    Goal(("debian-amd64",), "growth of the file", "%", None, 0.4, lambda row: row.growth),
    Goal(("debian-arm64",), "scan", "MiB/s of text", 100, None, lambda row: row.speed),
    Goal((), "revert gives the original", "(1: yes)", 1, None, lambda row: float(row.restored)),
)
"""Of whole kernels."""
EVEN: Final = 2.0
"""The greatest cost of one more MiB over the least that counts as linear; measurements on a shared machine vary."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A goal, and what was measured."""

    image: str
    figure: str
    goal: str
    value: float
    met: bool
    beside: str = ""


def reached(figures: Sequence[Figures | tuple[str, RetrapError]], grown: Sequence[Growth]) -> Iterator[Reached]:
    """Every goal for what was measured."""
    for row in figures:
        if isinstance(row, Figures):
            for goal in GOALS:
                if not goal.images or row.name in goal.images:
                    value = goal.measure(row)
                    yield Reached(row.name, goal.figure, goal.text, value, goal.met(value), goal.beside(row))
        else:
            yield Reached(row[0], "read and rewritten", "without an error", 0.0, False, str(row[1]))
    if len(grown) > 2:
        sizes = f"{grown[0].text / MIB:g} to {grown[-1].text / MIB:g} MiB of text"
        for what, value in zip(("time", "memory"), evenness(grown), strict=True):
            figure = f"{what}: a MiB more, over the least"
            yield Reached(sizes, figure, f"<= {EVEN:g} (linear: 1)", value, value <= EVEN)


def as_text(found: Sequence[Reached]) -> str:
    """A table for people."""
    from bt.report.text import table

    cells = [
        (one.image, one.figure, one.goal, f"{one.value:.2f}", "yes" if one.met else "NO", one.beside) for one in found
    ]
    return table(("image", "figure", "goal", "measured", "met", ""), cells) if cells else ""


def as_json(found: Sequence[Reached]) -> list[dict[str, Any]]:
    """Plain values, for programs."""
    from dataclasses import asdict

    return [asdict(one) for one in found]
