"""One kernel, four ways to run it: at full privilege, trapped, rewritten, para-virtualised; and how large its port is.

Room: measurements. The guests are the portable sample and its para-virtual ports (`samples/*/pv`). Each group of its
checks is run by itself; what a run without any of them costs is taken off. Exits and basic blocks are exact and repeat.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from emulator.errors import UsageError, VerifyFailed

SAMPLES: Final = Path(__file__).parents[2] / "samples"
FIGURES: Final = SAMPLES.parent / "docs" / "figures" / "ways.json"
"""What was measured last, for the documentation."""
WAYS: Final = ("native", "trap", "inline", "para")
WORKLOADS: Final = ("exceptions.", "paging.", "interrupts.", "processes.", "memory.")
_NOTHING: Final = "numbers"
_INCLUDE: Final = re.compile(r'#include "([\w.]+)"')
_EVERYWHERE: Final = ("kernel.h", "layout.h", "arch.h", "pv.h")
"""What is counted by itself, or describes the kernel to all."""
_OF_SOME: Final = "device_tree.h"
"""What stands beside the kernel and is for the architectures that have one."""
_FORMAT: Final = 1
_HOST_SECONDS: Final = 300.0

KINDS: Final = ("operation", "call", "memory", "entry", "clock")
"""Kinds of exits: a privileged operation by trap, fixup or device; a para-virtual call; a page made accessible; an
exception, system call or interrupt that enters the guest's kernel; the end of a slice of time."""
_ROUTES: Final = {
    "call": "call",
    "fill": "memory",
    "step": "memory",
    "emulated": "memory",
    "fault": "entry",
    "injection": "entry",
    "early": "entry",
    "budget": "clock",
}
"""Of the exit table, by route; every other route is an operation's."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One group of checks, run one way."""

    isa: str
    way: str
    workload: str
    blocks: int
    """Basic blocks of the guest's."""
    exits: dict[str, int]
    """By `KINDS`; none at full privilege, where nothing exits to a hypervisor."""

    @property
    def total(self) -> int:
        """All exits."""
        return sum(self.exits.values())


@dataclass(frozen=True, slots=True)
class Port:
    """The size of one instruction set's port, in lines that are not blank."""

    isa: str
    kept: int
    """Of the architecture's part, as they were."""
    removed: int
    added: int


def manifest() -> dict[str, Any]:
    """What there is of the portable sample. Raises `UsageError` where this is no checkout."""
    path = SAMPLES / "portable" / "manifest.toml"
    if not path.is_file():
        raise UsageError(f"{path}: is not here; measure in a checkout")
    return tomllib.loads(path.read_text())


def measure(
    isas: Sequence[str], ways: Sequence[str], step: Callable[[float], object] = lambda _: None
) -> Iterator[Figures]:
    """Run every group. Raises `VerifyFailed` for a run that does not end well."""
    for isa in isas:
        for way in ways:
            before_blocks, before = _run(isa, way, _NOTHING)
            for workload in WORKLOADS:
                blocks, exits = _run(isa, way, workload)
                kinds = {kind: max(0, exits[kind] - before[kind]) for kind in KINDS if exits[kind] > before[kind]}
                yield Figures(isa, way, workload, max(0, blocks - before_blocks), kinds)
                step(1)


def _run(isa: str, way: str, workload: str) -> tuple[int, Counter[str]]:
    """Blocks and exits of one run."""
    from bt.image import load
    from bt.session import Options, Session
    from emulator.machine import Limits
    from paravirt.hypervisor import Hypervisor

    rows = manifest()
    row = next(row for row in rows["para" if way == "para" else "architecture"] if row["isa"] == isa)
    printed = bytearray()
    options = Options(
        mode=way,
        memory=rows["memory"] << 20,
        command_line=f"only={workload}",
        limits=Limits(host_seconds=_HOST_SECONDS),
    )
    session = Session(load(SAMPLES / "portable" / row["file"]), options, printed.extend)
    try:
        outcome = session.run()
        if not printed.endswith(b", 0 failed\n"):
            raise VerifyFailed(f"{isa}, {way}, {workload}: ended ({outcome.kind.value}) after {bytes(printed[-60:])!r}")
        counts: Counter[str] = Counter()
        if isinstance(session.driver, Hypervisor):
            for (_operation, route), count in session.driver.exits.counts.items():
                if route not in ("late", "chained"):
                    counts[_ROUTES.get(route, "operation")] += count
        return session.machine.engine.progress, counts
    finally:
        session.close()


# -- the port ---------------------------------------------------------------------------------


def ports() -> list[Port]:
    """The size of each port, by comparing the architecture's part before and after."""
    found = []
    for row in manifest()["para"]:
        before, after = (_own_lines(SAMPLES / row["folder"], form) for form in ("portable", "pv"))
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        kept = sum(block.size for block in matcher.get_matching_blocks())
        found.append(Port(row["isa"], kept, len(before) - kept, len(after) - kept))
    return found


def shared_lines() -> tuple[int, int, int]:
    """Lines of the kernel and its user programs, which no port changes; of what all ports share; of the printed
    header."""
    portable = SAMPLES / "portable"
    common = ("pv.c", "pv.h")
    plain = [path for path in sorted(portable.rglob("*.[ch]")) if path.name not in (*common, _OF_SOME)]
    include = SAMPLES / "include"
    return (
        len(_lines(plain)),
        len(_lines(portable / name for name in common)),
        len(_lines(sorted(include.iterdir()))),
    )


def _own_lines(folder: Path, form: str) -> list[str]:
    """An architecture's own part, with what stands in files of its own because both forms, or another architecture,
    have it as well."""
    shared = (folder / "pv", folder / "portable", SAMPLES / "portable")
    found: list[str] = []
    for line in _lines(folder / form / name for name in ("arch.h", "arch.c", "entry.S")):
        include = _INCLUDE.fullmatch(line)
        places = [place / include[1] for place in shared] if include is not None else []
        file = next((place for place in places if place.exists()), None)
        if file is None or file.name in _EVERYWHERE:
            found.append(line)
        else:
            found += _lines([file])
    return found


def _lines(paths: Iterable[Path]) -> list[str]:
    return [line.strip() for path in paths for line in path.read_text().splitlines() if line.strip()]


# -- what is kept -----------------------------------------------------------------------------


def as_json(figures: Sequence[Figures]) -> str:
    """All figures as text."""
    return json.dumps({"format": _FORMAT, "figures": [asdict(one) for one in figures]}, indent=1) + "\n"


def read(path: Path = FIGURES) -> list[Figures]:
    """What `as_json` wrote. Raises `UsageError` for another format."""
    value = json.loads(path.read_text())
    if value.get("format") != _FORMAT:
        raise UsageError(f"{path}: is of format {value.get('format')}, here is {_FORMAT}; measure anew")
    return [Figures(**one) for one in value["figures"]]


def summary(figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """A row for each instruction set and way: all groups together."""
    rows = []
    for isa in dict.fromkeys(one.isa for one in figures):
        for way in dict.fromkeys(one.way for one in figures if one.isa == isa):
            chosen = [one for one in figures if (one.isa, one.way) == (isa, way)]
            kinds: Counter[str] = Counter()
            for one in chosen:
                kinds.update(one.exits)
            cells = [str(kinds[kind]) if way != "native" else "" for kind in KINDS]
            total = str(sum(kinds.values())) if way != "native" else "0"
            rows.append((isa, way, *cells, total, str(sum(one.blocks for one in chosen))))
    return rows


def by_workload(figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """A row for each instruction set and group: exits of each way that has any."""
    rows = []
    ways = [way for way in WAYS if way != "native"]
    for isa in dict.fromkeys(one.isa for one in figures):
        for workload in WORKLOADS:
            totals = {one.way: one.total for one in figures if (one.isa, one.workload) == (isa, workload)}
            rows.append((isa, workload.rstrip("."), *(str(totals.get(way, "")) for way in ways)))
    return rows


SUMMARY_HEAD: Final = ("Set", "Way", *KINDS, "exits", "blocks")
WORKLOAD_HEAD: Final = ("Set", "Checks", "trap", "inline", "para")
