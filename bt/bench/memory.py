"""What each technique of memory virtualisation costs, by what a kernel does to its page tables.

Room: measurements. The guest is `samples/memory`, or its para-virtual port where a technique needs one: it prints a
line before and behind each kind of work, and what lies between is counted: exits and basic blocks, which are exact, and
CPU time of this process. Beside it, whole boots of a stock kernel. What counting itself costs is measured between two
lines with nothing in between, and taken off.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emulator.errors import RetrapError, Unavailable, UsageError

if TYPE_CHECKING:
    from bt.guests import Guest
    from bt.session import Session

MEMORY: Final = 128 << 20
HOST_SECONDS: Final = 300.0
"""After this a run is given up."""
NOTHING: Final = "nothing"
BOOT: Final = "boot"
GOALS: Final = (("lazy", "eager", "fork", 0.2), ("batched", "eager", "fork", 0.05))
"""(technique, of which, on operations that begin so, at most): ratios of exits."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One kind of work under one technique."""

    technique: str
    operation: str
    times: int
    """How often it was done."""
    exits: int
    """All of them together."""
    blocks: int
    """Basic blocks of the guest's."""
    seconds: float
    loads: int
    """Of a processor that walks both stages, where that is the technique."""

    @property
    def each(self) -> float:
        """Exits, each time."""
        return self.exits / self.times


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of the hypervisor's for shadow tables and what is kept of the guest's, at the end of a run."""

    technique: str
    operation: str
    bytes: int
    guest: int
    """Bytes of the guest's memory."""
    digest: str = ""
    """Of the guest's memory but for page tables: equal for all techniques after one workload, which keeps no time."""
    tables: str = ""
    """Of its page tables, in the guest's own frame numbers: likewise."""

    @property
    def share(self) -> float:
        """Of the guest's memory."""
        return self.bytes / self.guest


@dataclass(frozen=True, slots=True)
class _Count:
    exits: int
    blocks: int
    seconds: float
    loads: int

    def since(self, other: _Count) -> _Count:
        return _Count(
            self.exits - other.exits,
            self.blocks - other.blocks,
            self.seconds - other.seconds,
            self.loads - other.loads,
        )


class _Watch:
    """Reads the workload's console and counts between its lines."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int, _Count]] = []
        self.look: Callable[[str, Session], None] = lambda _name, _session: None
        """Called at the end of each operation, when it was counted."""
        self.session: Session
        self._line = bytearray()
        self._begun: tuple[str, int, _Count] | None = None
        self.text = bytearray()

    def __call__(self, data: bytes) -> None:
        for byte in data:
            if self._begun is not None and not self._line:  # the first of "end"
                name, times, before = self._begun
                self.found.append((name, times, self.count().since(before)))
                self._begun = None
                self.look(name, self.session)
            if byte != 10:
                self._line.append(byte)
                continue
            words = self._line.decode("ascii", "replace").split(" ", 2)
            self.text += self._line + b"\n"
            self._line.clear()
            if words[0] == "begin" and len(words) == 3 and words[1].isdigit():
                self._begun = words[2], int(words[1]), self.count()

    def count(self) -> _Count:
        """Where the counters are."""
        session = self.session
        exits = session.driver.exits
        total = sum(exits.values()) if isinstance(exits, dict) else exits.total
        shadow = getattr(session.driver, "shadow", None)
        loads = getattr(getattr(shadow, "technique", None), "loads", 0)
        return _Count(total, session.machine.engine.progress, time.process_time(), loads)


def workload(technique: str = "") -> Path:
    """The sample's file: its para-virtual port for a technique that is for such guests. Raises `UsageError` where this
    is no checkout."""
    name = "memory-para.elf" if technique in para_names() else "memory.elf"
    path = Path(__file__).parents[2] / "samples" / "x86_64" / name
    if not path.is_file():
        raise UsageError(f"{path}: is not here; build samples/memory in a checkout and name its file")
    return path


def names() -> tuple[str, ...]:
    """The techniques that are measured by default."""
    from paravirt.mmu.techniques import ALL_TECHNIQUES

    return tuple(ALL_TECHNIQUES)


def para_names() -> tuple[str, ...]:
    """Those for para-virtual guests."""
    from paravirt.mmu.techniques import PARA_TECHNIQUES

    return tuple(PARA_TECHNIQUES)


def measure(
    path: Path, technique: str, engine: str = "unicorn", look: Callable[[str, Session], None] | None = None
) -> tuple[list[Cost], Room]:
    """The costs of a run of the workload; `look` sees the session at the end of each operation. Raises `Unavailable`
    when it does not get to its end."""
    from bt import para
    from bt.image import load
    from bt.session import Options, Session
    from emulator.machine import EndKind, Limits

    watch = _Watch()
    image, limits = load(path), Limits(host_seconds=HOST_SECONDS)
    mode = Options().mode if para.version_of(image) is None else para.MODE
    options = Options(mode=mode, memory=MEMORY, engine=engine, technique=technique, limits=limits)
    session = watch.session = Session(image, options, watch)
    if look is not None:
        watch.look = look
    try:
        outcome = session.run()
        if outcome.kind not in (EndKind.DEBUG_EXIT, EndKind.POWER_OFF) or outcome.status:
            raise Unavailable(
                f"{path}: ended by {outcome.kind.value} under {technique}, its console at {bytes(watch.text[-200:])!r};"
                " it is no workload that can be measured"
            )
        room = room_of(session, technique, "workload")
    finally:
        session.close()
    own = next((count for name, _, count in watch.found if name == NOTHING), _Count(0, 0, 0.0, 0))
    costs = []
    for name, times, found in watch.found:
        if name != NOTHING:
            net = found.since(own)
            costs.append(Cost(technique, name, times, net.exits, net.blocks, max(net.seconds, 0.0), net.loads))
    return costs, room


def boot(guest: Guest, technique: str) -> tuple[Cost, Room]:
    """The cost of a whole boot of a stock kernel to its end."""
    from bt.image import load
    from bt.session import Options, Session
    from emulator.machine import Limits

    watch = _Watch()
    options = Options(
        initrd=guest.initrd.read_bytes(),
        command_line=guest.command_line,
        technique=technique,
        limits=Limits(host_seconds=HOST_SECONDS),
    )
    session = watch.session = Session(load(guest.kernel), options, lambda _: None)
    try:
        before = watch.count()
        session.run()
        count = watch.count().since(before)
        room = room_of(session, technique, BOOT)
    finally:
        session.close()
    return Cost(technique, BOOT, 1, count.exits, count.blocks, count.seconds, count.loads), room


def room_of(session: Session, technique: str, operation: str, apart: Sequence[tuple[int, int]] = ()) -> Room:
    """The hypervisor's memory, and what the guest's is now: `apart` from these guest-physical ranges and tables."""
    from paravirt.hypervisor import Hypervisor
    from paravirt.mmu.direct_views import DirectViews
    from paravirt.mmu.shadow import ShadowPaging

    assert isinstance(session.driver, Hypervisor)
    shadow, memory = session.driver.shadow, session.machine.memory
    if isinstance(shadow, DirectViews):
        used = shadow.bytes_used
    else:
        assert isinstance(shadow, ShadowPaging)
        used = shadow.pool.bytes_used
    tables = _tables(session)
    holes = [*apart, *((frame << 12, 4096) for frame in tables)]
    summary = hashlib.sha256()
    for frame in sorted(tables):
        summary.update(frame.to_bytes(8, "little"))
        summary.update(array("Q", tables[frame]))
    return Room(technique, operation, used, memory.size, memory.digest(holes), summary.hexdigest())


def _tables(session: Session) -> dict[int, list[int]]:
    """The guest's page tables by frame number, each entry as the guest would have written it; without the accessed and
    dirty bits, which a processor sets when it likes, and without the right to write in what only the kernel has: it
    gives that up for tables where they are walked."""
    from emulator.isa.x86 import walk as w
    from paravirt.mmu.direct_views import DirectViews

    driver: Any = session.driver
    memory, views = session.machine.memory, driver.shadow
    direct = views.tables if isinstance(views, DirectViews) else None
    found: dict[int, list[int]] = {}
    waiting = [(driver.vcpu.cr3 >> 12, 4)]
    while waiting:
        frame, level = waiting.pop()
        if frame in found or not 0 <= frame < memory.size >> 12:
            continue
        if direct is None:
            entries = list(memory.words[frame << 9 : frame + 1 << 9])
        else:
            machine = direct.machine_frame(frame)
            entries = [direct.read(machine, index) for index in range(512)]
        found[frame] = [
            entry & ~(w.ACCESSED | w.DIRTY | (0 if entry & w.USER else w.WRITABLE)) if entry & w.PRESENT else entry
            for entry in entries
        ]
        if level > 1:
            waiting += [
                ((entry & w.FRAME_MASK) >> 12, level - 1)
                for entry in entries
                if entry & w.PRESENT and not (entry & w.LARGE and level < 4)
            ]
    return found


def everything(
    techniques: Sequence[str], path: Path | None, guest: Guest | None, done: Callable[[float], None]
) -> Iterator[tuple[list[Cost], list[Room]]]:
    """Measure all, one technique after the other, in one process: ratios hold, whatever else the host does."""
    for technique in techniques:
        costs, room = measure(path or workload(technique), technique)
        rooms = [room]
        if guest is not None and technique not in para_names():
            cost, room = boot(guest, technique)
            costs.append(cost)
            rooms.append(room)
        done(1)
        yield costs, rooms


def ratios(costs: Sequence[Cost]) -> Iterator[tuple[str, str, str, float, float]]:
    """(technique, of which, operation, ratio of exits, at most) for each goal that was measured."""
    by = {(cost.technique, cost.operation): cost for cost in costs}
    for technique, other, prefix, most in GOALS:
        for (name, operation), cost in by.items():
            reference = by.get((other, operation))
            if name == technique and operation.startswith(prefix) and reference is not None:
                yield technique, other, operation, cost.exits / max(1, reference.exits), most


# -- what is shown ----------------------------------------------------------------------------------


def as_json(costs: Sequence[Cost], rooms: Sequence[Room]) -> dict[str, Any]:
    """Everything, as plain values."""
    return {
        "format": 1,
        "costs": [asdict(cost) for cost in costs],
        "memory": [asdict(room) | {"share": room.share} for room in rooms],
        "ratios": [
            {"technique": name, "of": other, "operation": operation, "exits": ratio, "goal": most}
            for name, other, operation, ratio, most in ratios(costs)
        ],
    }


def as_text(costs: Sequence[Cost], rooms: Sequence[Room]) -> str:
    """Tables of exits, blocks and time, an operation a row and a technique a column."""
    techniques = list(dict.fromkeys(cost.technique for cost in costs))
    operations = list(dict.fromkeys(cost.operation for cost in costs))
    by = {(cost.technique, cost.operation): cost for cost in costs}
    lines: list[str] = []
    titles: tuple[tuple[str, Callable[[Cost], str]], ...] = (
        ("exits each", lambda cost: f"{cost.each:.1f}"),
        ("guest blocks each", lambda cost: f"{cost.blocks / cost.times:.0f}"),
        ("microseconds each", lambda cost: f"{cost.seconds / cost.times * 1e6:.0f}"),
    )
    for title, show in titles:
        lines.append(f"{title:<26}{'times':>7}" + "".join(f"{name:>13}" for name in techniques))
        for operation in operations:
            cells = [by.get((name, operation)) for name in techniques]
            times = next(cell.times for cell in cells if cell is not None)
            shown = (show(cell) if cell is not None else "-" for cell in cells)
            lines.append(f"{operation:<26}{times:>7}" + "".join(f"{cell:>13}" for cell in shown))
        lines.append("")
    for name, other, operation, ratio, most in ratios(costs):
        lines.append(f"{operation}: {name} / {other} = {ratio:.4f} of the exits (goal: at most {most})")
    lines += [
        f"{cost.operation}: {cost.loads} loads by a processor that walks both stages" for cost in costs if cost.loads
    ]
    lines += [
        f"{room.operation}, {room.technique}: {room.bytes >> 10} KiB of tables, {room.share:.2%} of memory"
        for room in rooms
    ]
    return "\n".join(lines) + "\n"


def plot(costs: Sequence[Cost], base: Path) -> list[Path]:
    """Draw exits by operation and technique, as SVG and as PNG; returns the files. Raises `Unavailable`."""
    from bt.bench.chart import save, subplots

    techniques = list(dict.fromkeys(cost.technique for cost in costs))
    operations = list(dict.fromkeys(cost.operation for cost in costs))
    by = {(cost.technique, cost.operation): cost for cost in costs}
    figure, axes = subplots((9, 0.55 * len(operations) + 1.5))
    height = 0.8 / len(techniques)
    for number, technique in enumerate(techniques):
        found = [by.get((technique, operation)) for operation in operations]
        values = [max(cost.each, 0.01) if cost is not None else 0.01 for cost in found]
        places = [row + number * height for row in range(len(operations))]
        axes.barh(places, values, height, label=technique)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(operations))], operations)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("exits each time")
    axes.legend()
    return save(figure, base)


def stock_guest(name: str) -> Guest | None:
    """A fetched guest, or None where it was not fetched."""
    from bt import guests

    try:
        return guests.find(name)
    except RetrapError:
        return None
