"""One stock kernel four ways: full privilege, trap and emulate, rewritten inline, and para-virtual by Xen's interface.

Room: `bt/bench`. Every way boots the same image with the same initial file system, whose /init runs a small program: it
changes 2048 pages at once by mprotect, fork and munmap, which is what batched updates are for. Exits and updates are
exact and repeat; times are of this process and this machine.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from bt import xen
from bt.image import Image, load
from bt.initramfs import MARKER, Entry, initramfs_of, read_member
from bt.session import Options, Session
from emulator.errors import GuestFault, Unavailable, UsageError
from emulator.machine import EndKind, Limits
from emulator.native import NativeCpu
from paravirt.xen.audit import violations
from paravirt.xen.hypervisor import XenHypervisor

if TYPE_CHECKING:
    from bt.guests import Guest

WAYS: Final = {
    "native": "full privilege",
    "trap": "trap and emulate",
    "inline": "rewritten inline",
    "xen": "para-virtual (Xen)",
}
"""Modes of a session, and what each is."""
PARTS: Final = ("touch", "mprotect read-only", "mprotect writable", "fork and exit", "munmap")
"""Of the workload, over so many pages:"""
PAGES: Final = 2048
_BEGIN, _END = 100_000, 200_000
"""Numbers of system calls that no kernel has: a part of the workload begins, or ends."""
WORKLOAD: Final = Path(__file__).parents[2] / "samples" / "xen" / "batch"
STORES: Final = tuple(f"STORE_TABLE_ENTRY ({kind})" for kind in ("mov", "xchg", "bits", "step"))
MOST_EXITS, LEAST_BATCH, MOST_MICROSECONDS = 90_000, 25, 5


@dataclass(frozen=True, slots=True)
class Count:
    """What had been counted at a moment."""

    exits: int
    updates: int = 0
    """Entries of page tables that calls have changed."""
    calls: int = 0
    """Calls that changed entries."""
    stores: int = 0
    """Stores into tables that were done one by one."""

    def since(self, before: Count) -> Count:
        """What came between."""
        return Count(
            self.exits - before.exits,
            self.updates - before.updates,
            self.calls - before.calls,
            self.stores - before.stores,
        )


@dataclass(slots=True)
class Figures:
    """What one way took."""

    way: str
    boot: Count = Count(0)
    """To the line that user space prints first."""
    whole: Count = Count(0)
    cpu_seconds: float = 0.0
    """Of this process, from the first instruction to the end."""
    guest_seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    """Exits of the whole run by operation and route, most frequent first."""
    parts: dict[str, Count] = field(default_factory=dict)
    call_microseconds: float | None = None
    """Median of the time that a hypercall's handler took."""
    violations: int | None = None
    """Frames whose type or counts are wrong at the end; None where frames have none."""


def count(session: Session) -> Count:
    """What has been counted so far."""
    driver = session.driver
    if isinstance(driver, NativeCpu):
        return Count(sum(driver.exits.values()))
    if not isinstance(driver, XenHypervisor):
        return Count(driver.exits.total)
    counts = driver.exits.counts
    batches = driver.batches
    single = counts.get(("update_va_mapping", "hypercall"), 0) + counts.get(("update_va_mapping", "chained"), 0)
    stores = sum(number for (name, _), number in counts.items() if name in STORES)
    updates = sum(size * number for size, number in batches.items())
    return Count(driver.exits.total, updates + single, sum(batches.values()) + single, stores)


class Run:
    """One way, measured while it runs."""

    def __init__(self, way: str, image: Image, initrd: bytes, command_line: str) -> None:
        self.figures = Figures(way)
        self._recent = bytearray()
        self._begun: dict[int, Count] = {}
        limits = Limits(host_seconds=600)
        options = Options(mode=way, initrd=initrd, command_line=command_line, limits=limits)
        self.session = Session(image, options, self._print)

    def _print(self, data: bytes) -> None:
        if not self.figures.boot.exits:
            self._recent += data
            if MARKER.encode() in self._recent:
                self.figures.boot = count(self.session)

    def _observe(self, what: str, number: int, _error: int, _pc: int, _address: int) -> None:
        if what != "system call" or not _BEGIN <= number < _END + len(PARTS):
            return
        if number < _END:
            self._begun[number - _BEGIN] = count(self.session)
        elif number - _END in self._begun:
            self.figures.parts[PARTS[number - _END]] = count(self.session).since(self._begun[number - _END])

    def measure(self) -> Figures:
        """Run to the end. Raises `GuestFault` where the guest does not do its work."""
        figures, session = self.figures, self.session
        try:
            session.driver.observe = self._observe
            samples: array[int] = array("q")
            if isinstance(session.driver, XenHypervisor):
                session.driver.samples = samples
            before = time.process_time()
            outcome = session.run()
            figures.cpu_seconds = time.process_time() - before
            figures.whole = count(session)
            figures.guest_seconds = session.machine.clock.now() / 1e9
            driver = session.driver
            if isinstance(driver, NativeCpu):
                kinds = sorted(driver.exits.items(), key=lambda one: -one[1])
            else:
                kinds = [(f"{operation}, {route}", number) for operation, route, number, *_ in driver.exits.rows()]
            figures.kinds = dict(kinds)
            if isinstance(driver, XenHypervisor):
                figures.call_microseconds = median(samples) / 1000
                figures.violations = len(violations(driver.domain))
        finally:
            session.close()
        if outcome.kind not in (EndKind.POWER_OFF, EndKind.HALTED, EndKind.RESET) or len(figures.parts) != len(PARTS):
            raise GuestFault(
                f"{WAYS[figures.way]}: the guest ended by {outcome.kind.value} with {len(figures.parts)} of "
                f"{len(PARTS)} parts of the workload done; its console ended so: {bytes(self._recent[-200:])!r}"
            )
        return figures


def workload_initrd(guest: Guest) -> bytes:
    """The guest's user space with the workload in it. Raises `Unavailable` where that was not built."""
    try:
        program = WORKLOAD.read_bytes()
    except OSError:
        raise Unavailable(f"{WORKLOAD} is not there; `make -C samples/xen` builds it") from None
    busybox = read_member(guest.initrd.read_bytes(), "bin/busybox")
    return initramfs_of(busybox, ["batch"], [Entry("bin/batch", 0o100755, program)])


def measure(guest: Guest, ways: Sequence[str], say: Callable[[str], None]) -> Iterator[Figures]:
    """Boot and work `guest` each of these ways, one after the other."""
    image, initrd = load(guest.kernel), workload_initrd(guest)
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"there is no way called {way!r} to measure; take of {', '.join(WAYS)}")
        say(f"{guest.name}: {WAYS[way]}")
        line = xen.COMMAND_LINE if way == xen.MODE else guest.command_line
        yield Run(way, image, initrd, line).measure()


# -- what comes of it ---------------------------------------------------------------------------


def verdicts(all_figures: Sequence[Figures]) -> list[str]:
    """The figures to reach, and whether they were."""
    lines = []
    for figures in all_figures:
        if figures.way != xen.MODE:
            continue
        protect = [figures.parts[part] for part in PARTS if part.startswith("mprotect")]
        batch = sum(part.updates for part in protect) / (sum(part.calls for part in protect) or 1)
        for text, value, good in (
            (f"exits to the marker (at most {MOST_EXITS})", f"{figures.boot.exits}", figures.boot.exits <= MOST_EXITS),
            (f"entries a call, mprotect (at least {LEAST_BATCH})", f"{batch:.1f}", batch >= LEAST_BATCH),
            (
                f"microseconds of a hypercall, median (at most {MOST_MICROSECONDS})",
                f"{figures.call_microseconds or 0:.1f}",
                (figures.call_microseconds or 0) <= MOST_MICROSECONDS,
            ),
            ("frames with a wrong type or count (0)", f"{figures.violations}", figures.violations == 0),
        ):
            lines.append(f"{text}: {value}, {'reached' if good else 'NOT reached'}")
    return lines


def as_json(guest: Guest, all_figures: Sequence[Figures]) -> dict[str, Any]:
    """Everything as plain values."""
    from dataclasses import asdict

    ways = [asdict(figures) for figures in all_figures]
    return {"format": 1, "guest": guest.name, "pages": PAGES, "ways": ways}


def as_text(all_figures: Sequence[Figures]) -> str:
    """The tables for people."""
    rows = [("way", "exits to user space", "exits in all", "PTE updates", "calls", "PTEs a call", "CPU s", "guest s")]
    for one in all_figures:
        whole = one.whole
        updates = (
            (str(whole.updates), str(whole.calls), f"{whole.updates / whole.calls:.2f}") if whole.calls else ("-",) * 3
        )
        exits = str(one.boot.exits), str(whole.exits)
        rows.append((WAYS[one.way], *exits, *updates, f"{one.cpu_seconds:.1f}", f"{one.guest_seconds:.2f}"))
    text = _aligned(rows)
    ways = [WAYS[one.way] for one in all_figures]
    parts = [("exits for 2048 pages", *ways)]
    parts += [(part, *(str(one.parts[part].exits) for one in all_figures)) for part in PARTS]
    text += "\n" + _aligned(parts)
    for one in all_figures:
        if one.whole.calls:
            batched = [("para-virtual, 2048 pages", "PTE updates", "calls", "PTEs a call", "stores one by one")]
            for part in PARTS:
                found = one.parts[part]
                each = f"{found.updates / found.calls:.1f}" if found.calls else "-"
                batched.append((part, str(found.updates), str(found.calls), each, str(found.stores)))
            text += "\n" + _aligned(batched)
    for one in all_figures:
        kinds = list(one.kinds.items())[:8]
        text += f"\n{WAYS[one.way]}: " + "; ".join(f"{name} {number}" for name, number in kinds) + "\n"
    return text + "".join(f"\n{line}" for line in verdicts(all_figures)) + "\n"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def plot(all_figures: Sequence[Figures], base: Path) -> list[Path]:
    """Draw the exits of each part of the workload, way by way, as SVG and as PNG; returns the files.

    Raises `Unavailable` without matplotlib.
    """
    from bt.bench.chart import save, subplots

    figure, axes = subplots((9, 4.2))
    height = 0.8 / len(all_figures)
    for number, one in enumerate(all_figures):
        places = [row + number * height for row in range(len(PARTS))]
        values = [max(one.parts[part].exits, 0.5) for part in PARTS]
        bars = axes.barh(places, values, height, label=WAYS[one.way])
        axes.bar_label(bars, [str(one.parts[part].exits) for part in PARTS], padding=2, fontsize=7)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(PARTS))], PARTS)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"exits for {PAGES} pages")
    axes.set_xlim(1, 3 * max(part.exits for one in all_figures for part in one.parts.values()))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(all_figures), fontsize=8, frameon=False)
    return save(figure, base)
