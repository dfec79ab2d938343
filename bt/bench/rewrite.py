"""How fast whole images are scanned and rewritten, in what memory, and what comes of it; beside objdump and e9patch.

Room: measurements. Whole commands are processes of their own with an empty cache, wall-clock and peak memory as they
themselves saw it; a scan is CPU time of one core. Figures hold for the machine that they were taken on.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from emulator.errors import BadImage, RetrapError, Unavailable, UsageError

if TYPE_CHECKING:
    from bt.image import Image
    from bt.plan import Plan, PlannedSite

T = TypeVar("T")
MIB: Final = 1 << 20
GUESTS: Final = ("debian-amd64", "debian-i386-pae", "debian-arm64", "debian-armhf", "debian-mipsel")
"""Guests that are measured where they have been fetched."""
SIZES: Final = (1 * MIB, 10 * MIB, 50 * MIB, 100 * MIB, 200 * MIB)
"""Bytes of text of the synthetic images that show how time and memory grow."""


@dataclass(frozen=True, slots=True)
class Quoted:
    """A figure of another rewriter, taken elsewhere and only quoted here."""

    run: str
    covered: int
    sites: int
    note: str = ""

    @property
    def share(self) -> float:
        """Per cent of the sites that it covered."""
        return 100 * self.covered / self.sites


QUOTED: Final = (
    Quoted("pushf, popf, cli, sti in all code", 295, 1355),
    Quoted("45 kinds, their places supplied", 1756, 3197),
    Quoted("the same, alternatives left out", 1143, 1496),
    Quoted("the same, with traps where nothing else fits", 3197, 3197, "a third of them are traps"),
)
"""e9patch on Debian's 6.1.0-50-amd64, addresses lowered because it refuses the kernel's half of the address space."""
QUOTED_COST: Final = "9 to 10.5 s of wall-clock time, 135 to 236 MB, the file grows by 0.28 %; it refuses i386"

_CHILD: Final = """
import json, resource, sys
from bt.cli.main import run
status = run(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
with open(sys.argv[1], "w") as file:
    json.dump([status, used.ru_utime + used.ru_stime, peak << 10], file)
"""


@dataclass(frozen=True, slots=True)
class Command:
    """One whole command, in a process of its own."""

    wall: float
    """Seconds from its start to its end."""
    cpu: float
    """Seconds, user and system together."""
    peak: int
    """Most bytes of memory that it had at once."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured on one image."""

    name: str
    isa: str
    image: int
    """Bytes of the kernel as an ELF, with what is appended to it."""
    text: int
    """Bytes of executable sections."""
    sweep: float
    """CPU seconds to find the sensitive instructions, with nothing known but the file's bytes."""
    scan: float
    """CPU seconds of a whole scan, the section, symbol and confidence of each site included."""
    rewrite: Command
    """Of `retrap rewrite` on the uncompressed image."""
    objdump: float | None
    """User and system seconds of `objdump -d` on the same file; None where it cannot read it or is not there."""
    sites: int
    covered: int
    """Of those, with a tactic that is right for them, or left to be patched where the kernel copies them to."""
    left: int
    """Of those again, left to be patched there when that runs."""
    text_sites: int
    """Of the sites, in .text."""
    without_trap: int
    """Sites that do their work without a fault."""
    text_without_trap: int
    by_tactic: dict[str, int]
    growth: float
    """Per cent by which the file is larger."""
    restored: bool
    """Whether revert gives the original back, bit for bit."""

    @property
    def sweep_speed(self) -> float:
        """MiB of text swept in a second, by one core."""
        return self.text / MIB / self.sweep if self.sweep else 0.0

    @property
    def speed(self) -> float:
        """MiB of text scanned in a second, by one core."""
        return self.text / MIB / self.scan if self.scan else 0.0

    @property
    def text_share(self) -> float:
        """Per cent of the sites in .text without a trap."""
        return 100 * self.text_without_trap / self.text_sites if self.text_sites else 100.0


@dataclass(frozen=True, slots=True)
class Growth:
    """One synthetic image."""

    text: int
    """Bytes."""
    sites: int
    rewrite: Command


def images(names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Files to measure: those named (files, or guests), or every guest of `GUESTS` that has been fetched."""
    from bt import guests

    for name in names:
        yield name, Path(name) if os.path.exists(name) else guests.find(name).kernel
    if names:
        return
    found = 0
    for name in GUESTS:
        try:
            path = guests.find(name).kernel
        except (Unavailable, UsageError):
            continue
        found += 1
        yield name, path
    if not found:
        raise Unavailable("no kernel to measure has been fetched; `retrap guests get debian-amd64`")


def measure(name: str, path: Path, runs: int = 3) -> Figures:
    """Measure one image, rewritten as `retrap rewrite` does it unasked; the best of several runs.

    Raises what loading and rewriting raise.
    """
    from bt import rewrite
    from bt.image import from_bytes, load
    from bt.image.elf_form import as_elf
    from bt.scan import scan
    from bt.tactics.tactics import Tactic
    from bt.textmap import sweep

    image = as_elf(load(path))
    elf = bytes(image.elf) + bytes(image.appended)
    sweeps, scans, sites = [], [], 0
    for _ in range(runs):
        sweeps.append(_seconds(partial(sweep, from_bytes(elf, name)))[0])
        seconds, found = _seconds(partial(scan, from_bytes(elf, name)))
        scans.append(seconds)
        sites = len(found)
    with tempfile.TemporaryDirectory(prefix="retrap-bench.") as directory:
        source, out = Path(directory) / "image", Path(directory) / "out"
        source.write_bytes(elf)
        commands = [_rewrite(source, out) for _ in range(runs)]
        objdump = _objdump(source)
        data = out.read_bytes()
    plan = rewrite.verify(data, name).plan
    if len(plan.sites) != sites:
        raise RuntimeError(f"{name}: scanned {sites} sites, planned {len(plan.sites)}")
    return Figures(
        name=name,
        isa=image.isa.name,
        image=len(elf),
        text=_text(image),
        sweep=min(sweeps),
        scan=min(scans),
        rewrite=min(commands, key=lambda command: command.wall),
        objdump=objdump,
        sites=len(plan.sites),
        covered=covered(plan),
        left=plan.counts()[Tactic.LEAVE.value],
        text_sites=len(_text_sites(plan)),
        without_trap=sum(site.without_trap for site in plan.sites),
        text_without_trap=sum(site.without_trap for site in _text_sites(plan)),
        by_tactic=plan.counts(),
        growth=100 * (len(data) - len(elf)) / len(elf),
        restored=rewrite.revert(data, name, appended=True) == elf,
    )


def covered(plan: Plan) -> int:
    """How many sites of a plan have a tactic that is right for them, by what the plan itself holds.

    A trap or other code must stand there, a fixup must be in the plan, and what nothing is done to must exit or do the
    same by itself. A site that is left (`Tactic.LEAVE`) counts where nobody chose sites: then the kernel copies it
    elsewhere before it can run, and it is patched there.
    """
    from emulator.isa.isas import ISAS

    isa = ISAS[plan.isa]
    planted = {row.name for row in isa.rows if isa.planted(row)}
    fixups = {fixup.address for fixup in plan.fixups}
    return sum(_is_right(site, planted, fixups, plan.chosen) for site in plan.sites)


def _is_right(site: PlannedSite, planted: set[str], fixups: set[int], chosen: str) -> bool:
    from bt.tactics.tactics import Tactic

    changed = site.old != site.new or site.home != 0
    if site.tactic in (Tactic.INLINE, Tactic.HYPERCALL):
        return changed and site.fixup in fixups
    if site.tactic in (Tactic.TRAP, Tactic.REPLACED):
        return changed
    if site.tactic is Tactic.COVERED:
        return site.fixup == 0 or site.fixup in fixups
    if site.tactic is Tactic.NATIVE:
        return site.instruction not in planted
    return site.tactic is Tactic.SAME or not chosen


def _seconds(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def _text(image: Image) -> int:
    return sum(end - start for start, end in image.text_ranges)


def _text_sites(plan: Plan) -> list[PlannedSite]:
    """Those in .text; the executable ranges of a kernel that came as raw memory are .text, .text.1 and so on."""
    return [site for site in plan.sites if f"{site.section}.".startswith(".text.")]


def _rewrite(source: Path, out: Path) -> Command:
    """One `retrap rewrite` with an empty cache. Raises `BadImage` with what it said where it fails."""
    with tempfile.TemporaryDirectory(prefix="retrap-cache.") as cache:
        used = Path(cache) / "used"
        command = [sys.executable, "-c", _CHILD, str(used), "rewrite", str(source), "-o", str(out)]
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "OPENBLAS_NUM_THREADS": "1"}
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - started
        if not used.exists():
            raise RuntimeError(done.stderr.strip())
        status, cpu, peak = json.loads(used.read_text())
        if status:
            raise BadImage(done.stderr.strip().removeprefix("retrap: "))
        return Command(wall, cpu, peak)


def _objdump(source: Path) -> float | None:
    """CPU seconds of `objdump -d`."""
    program = shutil.which("objdump")
    if program is None:
        return None
    process = subprocess.Popen(
        [program, "-d", str(source)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return None if process.returncode else used.ru_utime + used.ru_stime


def grow(path: Path, sizes: Sequence[int] = SIZES) -> Iterator[Growth]:
    """Rewrite images whose text is that of the image at `path`, repeated to so many bytes."""
    from bt.image import load
    from bt.rewrite import verify

    image = load(path)
    start, end = max(image.text_ranges, key=lambda text: text.end - text.start)
    text = bytes(image.view(start, end - start))
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="retrap-bench.") as directory:
            source, out = Path(directory) / "image", Path(directory) / "out"
            source.write_bytes(synthetic(image, text, size))
            command = _rewrite(source, out)
            sites = len(verify(out.read_bytes()).plan.sites)
        yield Growth(size, sites, command)


def synthetic(image: Image, text: bytes, size: int) -> bytes:
    """An executable for the instruction set of `image` with `size` bytes of text, made of `text` over and over."""
    wide, order = image.isa.bits == 64, "<" if image.byte_order == "little" else ">"
    address = 0xFFFF_FFFF_8100_0000 if wide else 0x8010_0000
    body = (text * (size // len(text) + 1))[:size]
    names = b"\0.text\0.shstrtab\0"
    at, page = 0x1000, 1 << 12
    table = at + -(-(len(body) + len(names)) // 8) * 8
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1 if order == "<" else 2, 1)) + bytes(9)
    half = "HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"
    sizes = (64, 56, 1, 64, 3, 2) if wide else (52, 32, 1, 40, 3, 2)
    header = ident + struct.pack(order + half, 2, image.isa.machine, 1, address, sizes[0], table, 0, *sizes)
    if wide:
        program = struct.pack(order + "IIQQQQQQ", 1, 5, at, address, 0x100_0000, size, size, page)
    else:
        program = struct.pack(order + "IIIIIIII", 1, at, address, 0x100_0000, size, size, 5, page)
    form = order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
    sections = [
        (0,) * 10,
        (1, 1, 6, address, at, size, 0, 0, 16, 0),
        (7, 3, 0, 0, at + size, len(names), 0, 0, 1, 0),
    ]
    head = (header + program).ljust(at, b"\0")
    return (head + body + names).ljust(table, b"\0") + b"".join(struct.pack(form, *row) for row in sections)


def evenness(grown: Sequence[Growth]) -> tuple[float, float]:
    """How far growth is from linear: the greatest cost of one more MiB over the least, in CPU time and in memory.

    1 is linear. The costs are those between neighbouring sizes, so what a process costs at all does not count.
    """
    steps = [
        (b.text - a.text, b.rewrite.cpu - a.rewrite.cpu, b.rewrite.peak - a.rewrite.peak) for a, b in pairwise(grown)
    ]
    times = [seconds / size for size, seconds, _ in steps]
    memory = [peak / size for size, _, peak in steps]
    return max(times) / min(times), max(memory) / min(memory)


def as_text(figures: Sequence[Figures | tuple[str, RetrapError]], grown: Sequence[Growth]) -> str:
    """Tables for people."""
    from bt.bench.goals import as_text as as_goals
    from bt.bench.goals import reached
    from bt.report.text import table

    measured = [row for row in figures if isinstance(row, Figures)]
    parts = []
    if measured:
        parts.append(table(_COLUMNS, [_cells(row) for row in measured]))
        tactics = list(measured[0].by_tactic)
        parts.append(table(("sites by tactic", *tactics), [(row.name, *row.by_tactic.values()) for row in measured]))
    parts += [f"{row[0]}: {row[1]}\n" for row in figures if not isinstance(row, Figures)]
    if grown:
        cells = [
            (
                f"{one.text / MIB:g}",
                one.sites,
                f"{one.rewrite.wall:.2f}",
                f"{one.rewrite.cpu:.2f}",
                one.rewrite.peak // MIB,
            )
            for one in grown
        ]
        parts.append(table(("MiB of text", "sites", "wall s", "CPU s", "peak MiB"), cells))
    if len(grown) > 2:
        times, memory = evenness(grown)
        parts.append(
            f"a MiB more costs at most {times:.2f} x the least in time and {memory:.2f} x in memory (linear: 1)\n"
        )
    goals = as_goals(list(reached(figures, grown)))
    parts += [goals] if goals else []
    quoted = [(one.run, f"{one.covered} of {one.sites}", f"{one.share:.1f} %", one.note) for one in QUOTED]
    parts.append(table(("e9patch, quoted", "covered", "share", "note"), quoted) + QUOTED_COST + "\n")
    return "\n".join(parts)


_COLUMNS: Final = (
    *("image", "set", "MiB", "text MiB", "sweep MiB/s", "scan MiB/s", "rewrite s", "CPU s", "peak MiB", "objdump s"),
    *("sites", "covered", "without a trap", "in .text", "growth", "reverted"),
)


def _cells(row: Figures) -> tuple[object, ...]:
    return (
        row.name,
        row.isa,
        f"{row.image / MIB:.1f}",
        f"{row.text / MIB:.1f}",
        f"{row.sweep_speed:.1f}",
        f"{row.speed:.1f}",
        f"{row.rewrite.wall:.2f}",
        f"{row.rewrite.cpu:.2f}",
        row.rewrite.peak // MIB,
        "-" if row.objdump is None else f"{row.objdump:.2f}",
        row.sites,
        _covered(row),
        f"{row.without_trap} ({100 * row.without_trap / row.sites if row.sites else 100:.1f} %)",
        f"{row.text_without_trap} of {row.text_sites} ({row.text_share:.1f} %)",
        f"{row.growth:+.2f} %",
        "same" if row.restored else "DIFFERS",
    )


def _covered(row: Figures) -> str:
    share = f"{100 * row.covered / row.sites if row.sites else 100:.2f} %"
    return f"{row.covered} ({share}), {row.left} where it is copied to" if row.left else f"{row.covered} ({share})"


def as_json(figures: Sequence[Figures | tuple[str, RetrapError]], grown: Sequence[Growth]) -> dict[str, Any]:
    """Plain values, for programs."""
    from dataclasses import asdict

    from bt.bench import goals

    rows: list[dict[str, Any]] = []
    for row in figures:
        if isinstance(row, Figures):
            rows.append(
                {
                    **asdict(row),
                    "mib_per_second": row.speed,
                    "swept_mib_per_second": row.sweep_speed,
                    "text_share": row.text_share,
                }
            )
        else:
            rows.append({"name": row[0], "error": str(row[1])})
    quoted = [{**asdict(one), "share": one.share} for one in QUOTED]
    result: dict[str, Any] = {"format": 1, "images": rows, "growth": [asdict(one) for one in grown]}
    if len(grown) > 2:
        result["evenness"] = dict(zip(("time", "memory"), evenness(grown), strict=True))
    result["goals"] = goals.as_json(list(goals.reached(figures, grown)))
    return {**result, "quoted": {"e9patch": quoted, "cost": QUOTED_COST}}
