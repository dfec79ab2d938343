"""What each technique of memory virtualisation costs, by what a kernel does to its page tables.

Room: measurements. The guest is `samples/memory`, or its para-virtual port where a technique needs one: it prints a
line before and behind each kind of work, and what lies between is counted: exits and basic blocks, which are exact,
CPU time of this process, and in another run, since that takes time, the guest's instructions. Beside it, whole boots of
a stock kernel. What counting itself costs is measured between two lines with nothing in between, and taken off.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
    instructions: int = 0
    """That the guest began, those of fixups too; 0 where they were not counted."""

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
    instructions: int

    def since(self, other: _Count) -> _Count:
        return _Count(
            self.exits - other.exits,
            self.blocks - other.blocks,
            self.seconds - other.seconds,
            self.loads - other.loads,
            self.instructions - other.instructions,
        )


class _Watch:
    """Reads the workload's console and counts between its lines."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int, _Count]] = []
        self.look: Callable[[str, Session], None] = lambda _name, _session: None
        """Called at the end of each operation, when it was counted."""
        self.instructions: Callable[[], int] = int
        """How many were begun, where that is counted."""
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
        return _Count(total, session.machine.engine.progress, time.process_time(), loads, self.instructions())

    def count_instructions(self) -> None:
        """From now on."""
        engine: Any = self.session.machine.engine
        self.instructions = engine.count_instructions()


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
    path: Path,
    technique: str,
    engine: str = "unicorn",
    look: Callable[[str, Session], None] | None = None,
    *,
    instructions: bool = False,
) -> tuple[list[Cost], Room]:
    """The costs of a run of the workload; `look` sees the session at the end of each operation. `instructions`: count
    these too, on the embedded engine. Raises `Unavailable` when it does not get to its end."""
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
        if instructions:
            watch.count_instructions()
        outcome = session.run()
        if outcome.kind not in (EndKind.DEBUG_EXIT, EndKind.POWER_OFF) or outcome.status:
            raise Unavailable(
                f"{path}: ended by {outcome.kind.value} under {technique}, its console at {bytes(watch.text[-200:])!r};"
                " it is no workload that can be measured"
            )
        room = room_of(session, technique, "workload")
    finally:
        session.close()
    own = next((count for name, _, count in watch.found if name == NOTHING), _Count(0, 0, 0.0, 0, 0))
    costs = []
    for name, times, found in watch.found:
        if name != NOTHING:
            net = found.since(own)
            seconds = max(net.seconds, 0.0)
            costs.append(
                Cost(technique, name, times, net.exits, net.blocks, seconds, net.loads, max(net.instructions, 0))
            )
    return costs, room


def boot(guest: Guest, technique: str, *, instructions: bool = False) -> tuple[Cost, Room]:
    """The cost of a whole boot of a stock kernel to its end; `instructions`: count these too."""
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
        if instructions:
            watch.count_instructions()
        before = watch.count()
        session.run()
        count = watch.count().since(before)
        room = room_of(session, technique, BOOT)
    finally:
        session.close()
    cost = Cost(technique, BOOT, 1, count.exits, count.blocks, count.seconds, count.loads, count.instructions)
    return cost, room


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
        file = path or workload(technique)
        costs, room = measure(file, technique)
        counted, _ = measure(file, technique, instructions=True)
        rooms = [room]
        if guest is not None and technique not in para_names():
            cost, room = boot(guest, technique)
            costs.append(cost)
            rooms.append(room)
            counted.append(boot(guest, technique, instructions=True)[0])
        done(1)
        yield [replace(one, instructions=two.instructions) for one, two in zip(costs, counted, strict=True)], rooms


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


_KINDS: Final[tuple[tuple[str, Callable[[Cost], float], str], ...]] = (
    ("exits", lambda cost: cost.exits, ".1f"),
    ("guest instructions", lambda cost: cost.instructions, ".0f"),
    ("microseconds", lambda cost: cost.seconds * 1e6, ".0f"),
)
"""What is shown, how much of it there was, and with how many digits."""


def _kinds(costs: Sequence[Cost]) -> list[tuple[str, Callable[[Cost], float], str]]:
    """Those that were counted."""
    return [kind for kind in _KINDS if any(kind[1](cost) for cost in costs)]


def _operations(costs: Sequence[Cost]) -> list[str]:
    """In the order in which they were done, forks first."""
    return sorted(dict.fromkeys(cost.operation for cost in costs), key=lambda name: not name.startswith("fork"))


def as_text(costs: Sequence[Cost], rooms: Sequence[Room]) -> str:
    """Tables of exits, instructions and time, an operation a row and a technique a column."""
    techniques = list(dict.fromkeys(cost.technique for cost in costs))
    operations = _operations(costs)
    by = {(cost.technique, cost.operation): cost for cost in costs}
    lines: list[str] = []
    for title, value, digits in _kinds(costs):
        lines.append(f"{title + ' each':<26}{'times':>7}" + "".join(f"{name:>13}" for name in techniques))
        for operation in operations:
            cells = [by.get((name, operation)) for name in techniques]
            times = next(cell.times for cell in cells if cell is not None)
            shown = (format(value(cell) / cell.times, digits) if cell is not None else "-" for cell in cells)
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
    """Draw exits, instructions and time by operation and technique, as SVG and as PNG; returns the files. Raises
    `Unavailable`."""
    from bt.bench.chart import save, subplots

    techniques = list(dict.fromkeys(cost.technique for cost in costs))
    operations = _operations(costs)
    by = {(cost.technique, cost.operation): cost for cost in costs}
    kinds = _kinds(costs)
    figure, columns = subplots((5 * len(kinds), 0.6 * len(operations) + 1.5), len(kinds))
    height = 0.84 / len(techniques)
    for axes, (title, value, _) in zip(columns, kinds, strict=True):
        axes.set_xscale("log")
        axes.set_title(f"{title} each time")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        values = {key: value(cost) / cost.times for key, cost in by.items()}
        least = min(found for found in values.values() if found > 0)
        for number, technique in enumerate(techniques):
            rows = [row for row, operation in enumerate(operations) if (technique, operation) in by]
            found = [values[technique, operations[row]] for row in rows]
            places = [row + number * height for row in rows]
            axes.barh(places, found, height, label=technique)
            for place, none in zip(places, found, strict=True):
                if not none:
                    axes.text(least / 2, place, "0", va="center", fontsize="xx-small", color=f"C{number}")
        axes.set_xlim(left=least / 2)
    columns[0].set_yticks([row + 0.42 - height / 2 for row in range(len(operations))], operations)
    columns[0].invert_yaxis()
    columns[-1].legend(loc="upper right", fontsize="small")
    return save(figure, base)


def stock_guest(name: str) -> Guest | None:
    """A fetched guest, or None where it was not fetched."""
    from bt import guests

    try:
        return guests.find(name)
    except RetrapError:
        return None
