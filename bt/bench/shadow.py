"""What shadow tables cost the host by the page: a fill, and bringing the shadow of one table of the guest's up to date.

Room: measurements. The guest is the memory workload; each call is timed as it happens, on the wall: to ask for the
thread's own time costs several times what is timed by it. Medians, since whatever else the host does falls on a few of
them, and of several runs the least, since it only adds. Without write protection a resync looks at every table in
reach; with it, at those that were written, each of which has changed, and protects them again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Final

FILL_GOAL: Final = 6.0
RESYNC_GOAL: Final = 3.0
"""Microseconds, at most."""
RUNS: Final = 5
TECHNIQUE: Final = "snapshot"
PROTECTING: Final = "lazy"


@dataclass(frozen=True, slots=True)
class Speed:
    """Microseconds of host time."""

    fills: int
    fill: float
    """One page, walked and entered: the median."""
    ahead: float
    """One page of a table that is filled as a whole: the mean."""
    resyncs: int
    """Tables that were looked at."""
    resync: float
    """One table: the median over the address spaces that were looked through."""
    resync_mean: float
    """The mean, with what is dropped of changed tables, and with whatever else the host did."""
    followed: int
    """Tables that were written under write protection."""
    follow: float
    """One of these, compared, dropped from and protected again: the median over the flushes and misses that did it."""
    follow_mean: float
    """The mean, with those of many changed entries, and those to which nothing led any more."""


def measure(path: Path, memory: int, runs: int = RUNS) -> Speed:
    """Time every fill and resync of runs of the workload, without write protection and with it in turns; each figure is
    of the run in which it was least. All of a way do the same."""
    found = [_run(path, memory, TECHNIQUE).result(_run(path, memory, PROTECTING)) for _ in range(runs)]
    return Speed(**{field.name: min(getattr(speed, field.name) for speed in found) for field in fields(Speed)})


def _run(path: Path, memory: int, technique: str) -> _Clock:
    from bt import para
    from bt.image import load
    from bt.session import Options, Session

    image = load(path)
    mode = Options().mode if para.version_of(image) is None else para.MODE
    session = Session(image, Options(mode=mode, memory=memory, technique=technique), lambda _: None)
    try:
        clock = _Clock(session.driver)
        session.run()
    finally:
        session.close()
    return clock


class _Clock:
    """Times the methods of a hypervisor's shadow tables."""

    def __init__(self, driver: Any) -> None:
        self._shadow = shadow = driver.shadow
        self._pool = shadow.pool
        self._fill, self._revalidate, self._compare = shadow.fill, self._pool.revalidate_from, self._pool._compare
        shadow.fill, self._pool.revalidate_from, self._pool._compare = self.fill, self.revalidate, self.compare
        self._single: list[int] = []
        self._whole: list[tuple[int, int]] = []
        self._looked: list[tuple[int, int]] = []
        self._tables = 0
        self._written: list[tuple[int, int]] = []
        guard = shadow.frames.guard
        if guard is not None:
            self._follow, guard.follow = guard.follow, self.follow

    def fill(self, address: int, write: bool, fetch: bool) -> None:
        before, begun = self._shadow.prefilled, time.perf_counter_ns()
        self._fill(address, write, fetch)
        took, pages = time.perf_counter_ns() - begun, self._shadow.prefilled - before
        if pages:
            self._whole.append((took, pages))
        else:
            self._single.append(took)

    def compare(self, *arguments: int) -> int:
        self._tables += 1
        differ: int = self._compare(*arguments)
        return differ

    def revalidate(self, top: int) -> None:
        before, begun = self._tables, time.perf_counter_ns()
        self._revalidate(top)
        took, tables = time.perf_counter_ns() - begun, self._tables - before
        if tables:
            self._looked.append((took, tables))

    def follow(self, frames: Sequence[int], *, in_use: bool = False) -> list[int]:
        begun = time.perf_counter_ns()
        changed: list[int] = self._follow(frames, in_use=in_use)
        self._written.append((time.perf_counter_ns() - begun, len(frames)))
        return changed

    def result(self, protecting: _Clock) -> Speed:
        """In microseconds."""
        written = protecting._written
        pages, tables = (sum(count for _, count in found) for found in (self._whole, self._looked))
        return Speed(
            fills=len(self._single),
            fill=median(self._single) / 1e3,
            ahead=sum(took for took, _ in self._whole) / max(1, pages) / 1e3,
            resyncs=tables,
            resync=median(took / count for took, count in self._looked) / 1e3,
            resync_mean=sum(took for took, _ in self._looked) / max(1, tables) / 1e3,
            followed=sum(count for _, count in written),
            follow=median(took / count for took, count in written) / 1e3,
            follow_mean=sum(took for took, _ in written) / max(1, sum(count for _, count in written)) / 1e3,
        )


def as_json(speed: Speed) -> dict[str, Any]:
    """As plain values."""
    return asdict(speed) | {"fill_goal": FILL_GOAL, "resync_goal": RESYNC_GOAL}


def as_text(speed: Speed) -> str:
    """Three lines."""
    return (
        f"a shadow fill: {speed.fill:.1f} microseconds, median of {speed.fills} (goal: at most {FILL_GOAL:.0f}); a "
        f"page filled with its table {speed.ahead:.1f}\n"
        f"a resync: {speed.resync:.1f} microseconds a table, median, {speed.resync_mean:.1f} mean of {speed.resyncs} "
        f"(goal: at most {RESYNC_GOAL:.0f})\n"
        f"a resync of a table that was written, which is protected again: {speed.follow:.1f} microseconds, median, "
        f"{speed.follow_mean:.1f} mean of {speed.followed} (goal: at most {RESYNC_GOAL:.0f})\n"
    )
