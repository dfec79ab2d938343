"""The KVM engine in figures: its speed beside the host's own, what an exit costs, boots and work beside QEMU's TCG.

Room: measurements. Whatever is compared takes turns in one run, so that a busy host is busy for both; figures are
ratios of medians. Nothing here judges: goals are printed beside what was measured.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bt import qemu
from bt.bench.process import time_to_marker
from emulator.errors import Unavailable

if TYPE_CHECKING:
    from bt.guests import Guest
    from bt.session import Session

FORMAT: Final = 1
"""Version of the JSON."""
_MICRO: Final = 1e6
_LIMIT: Final = 300.0
"""Seconds of the host for anything that boots."""

LOOPS: Final = {
    "compute": "b900e1f505 4801c8 4831c8 48ffc9 75f5",
    # mov edx, 400; mov ecx, 262143; add rax, [rdi + rcx * 8]; dec ecx; jnz; dec edx; jnz
    "memory": "ba90010000 b9ffff0300 480304cf ffc9 75f8 ffca 75ef",
    # mov ecx, 40000000; jmp over; f: ret; over: call f; dec ecx; jnz over
    "calls": "b9005a6202 eb01 c3 e8fafffffF ffc9 75f7",
}
"""Machine code of each loop: RDI leads to two MiB of data. Each takes long enough (50 ms and more) for what a run costs
at its begin and end not to count."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside its goal."""

    name: str
    measured: float | None
    """None where it could not be measured."""
    goal: float
    at_most: bool
    """The goal is an upper bound, and otherwise a lower one."""
    unit: str
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where nothing was measured."""
        if self.measured is None:
            return None
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    """Plain values."""
    return {"format": FORMAT, "figures": [{**asdict(figure), "reached": figure.reached} for figure in figures]}


Say = Callable[[str], None]


# -- the processor --------------------------------------------------------------------------------


def loops(rounds: int) -> Iterator[Figure]:
    """Loops at level 3 beside the same bytes in this process."""
    from bt.bench.room import DATA_SIZE, Room
    from bt.machinecode import HostCode, median
    from emulator.engine.engines import open_kvm

    data = bytearray(DATA_SIZE)
    import ctypes

    address = ctypes.addressof((ctypes.c_char * DATA_SIZE).from_buffer(data))
    room = Room(open_kvm())
    try:
        for name, text in LOOPS.items():
            code = bytes.fromhex(text)
            host = HostCode(code + b"\xc3")
            room.seconds(code)
            pairs = [(host.seconds(address), room.seconds(code)) for _ in range(rounds)]
            theirs, ours = (median([pair[side] for pair in pairs]) for side in (0, 1))
            detail = f"{ours * 1000:.2f} ms in the guest, {theirs * 1000:.2f} ms on the host"
            yield Figure(f"{name} loop, host's time by the guest's", theirs / ours, 0.95, False, "x", detail)
    finally:
        room.close()


def trap(rounds: int) -> Figure:
    """A trap to a handler in Python and back, beside KVM_RUN alone with the same exit."""
    from emulator.engine.kvm.bare import exit_costs

    bare, ours = exit_costs(rounds)
    low, high = statistics.median(bare) / 1000, statistics.median(ours) / 1000
    return Figure("a trap, by a bare KVM exit", high / low, 1.2, True, "x", f"{high:.1f} and {low:.1f} microseconds")


# -- boots ----------------------------------------------------------------------------------------


def boots(guest: Guest, runs: int, say: Say) -> Iterator[Figure]:
    """Whole processes to the guest's marker."""
    from bt.bench import boot

    names = (boot.KVM, boot.USUAL, "qemu-pvh")
    entrants = {one.contender.name: one for one in boot.measure(guest, runs, names, _LIMIT, say)}
    ours = entrants[boot.KVM].median
    for name, goal in (("qemu-pvh", 1.1), (boot.USUAL, 0.45)):
        theirs = entrants[name].median
        ratio = ours / theirs if ours is not None and theirs is not None else None
        detail = f"{ours or 0:.2f} s, {theirs or 0:.2f} s"
        yield Figure(f"boot of {guest.name}, by {entrants[name].contender.what}", ratio, goal, True, "x", detail)


def boot_exits(guest: Guest) -> Figure:
    """How often a boot to the marker exits, the host's signals included."""
    work = Work(guest, ())
    work.run_ours()
    assert work.at_marker is not None
    return Figure(f"exits of a boot of {guest.name}", float(work.at_marker), 35_000, True, "exits")


# -- work in the guest ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """Something that the guest's shell does between two lines on the console."""

    name: str
    line: str
    goal: float
    calls: int = 0
    """System calls that it makes, where they are counted."""


TASKS: Final = (
    Task("shell loop of 100 000", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done", 0.1),
    Task("sha256 of 16 MiB", "busybox dd if=/dev/zero bs=1M count=16 2>/dev/null | busybox sha256sum", 1.2),
    Task("200 fork and exec", "i=0; while [ $i -lt 200 ]; do busybox true; i=$((i+1)); done", 3.0),
    Task(
        "40 000 system calls",
        "busybox dd if=/dev/zero of=/dev/null bs=1 count=20000 2>/dev/null",
        25.0,
        40_000,
    ),
)
TRACER: Final = (
    "busybox mount -t tracefs t /sys/kernel/tracing",
    *(f"echo {name} > /sys/kernel/tracing/current_tracer" for name in ("function", "nop", "function", "nop")),
    "echo tracer $(busybox cat /sys/kernel/tracing/current_tracer)",
)
"""Turns the function tracer on and off and on again, and off."""


class Work:
    """A guest that does tasks, each between a line before and a line behind it."""

    def __init__(self, guest: Guest, tasks: Sequence[Task], extra: Sequence[str] = ()) -> None:
        self.guest = guest
        self.tasks = tasks
        self.initrd = with_lines(guest, [*_lines(tasks), *extra])
        self.at_marker: int | None = None
        """Entries of the guest at its marker."""

    def run_ours(self) -> dict[str, tuple[float, float, int]]:
        """Seconds of the host, of its processor, and entries of the guest of every task, on KVM."""
        from bt.image import load
        from bt.session import Options, Session
        from emulator.machine import Limits

        marks: dict[str, tuple[float, float, int]] = {}
        seen = bytearray()
        sessions: list[Session] = []

        def write(data: bytes) -> None:
            seen.extend(data)
            while b"\n" in seen:
                line, _, rest = bytes(seen).partition(b"\n")
                seen[:] = rest
                entered = sessions[0].machine.engine.entered
                marks[line.decode(errors="replace").strip()] = (time.perf_counter(), time.thread_time(), entered)

        options = Options(
            engine="kvm", initrd=self.initrd, command_line=self.guest.command_line, limits=Limits(None, _LIMIT)
        )
        sessions.append(Session(load(self.guest.kernel), options, write))
        try:
            sessions[0].run()
        finally:
            sessions[0].close()
        self.at_marker = marks[self.guest.marker][2] if self.guest.marker in marks else None
        self.lines = list(marks)
        spent = {}
        for number, task in enumerate(self.tasks):
            if _begin(number) in marks and _end(number) in marks:
                begun, ended = marks[_begin(number)], marks[_end(number)]
                spent[task.name] = ended[0] - begun[0], ended[1] - begun[1], ended[2] - begun[2]
        return spent

    def run_theirs(self, elf: Path) -> dict[str, tuple[float, float]]:
        """Seconds of the host, and of its processors, of every task, on QEMU's TCG."""
        with tempfile.NamedTemporaryFile(prefix="retrap-bench.", suffix=".initrd") as file:
            file.write(self.initrd)
            file.flush()
            command = qemu.command(elf, Path(file.name), self.guest.command_line, qemu.NEAREST)
            marks = _line_times(command, qemu.HALTED)
        return {
            task.name: (marks[_end(n)][0] - marks[_begin(n)][0], marks[_end(n)][1] - marks[_begin(n)][1])
            for n, task in enumerate(self.tasks)
            if _begin(n) in marks and _end(n) in marks
        }


def _begin(number: int) -> str:
    return f"retrap: task {number} begins"


def _end(number: int) -> str:
    return f"retrap: task {number} ends"


def _lines(tasks: Sequence[Task]) -> Iterator[str]:
    for number, task in enumerate(tasks):
        yield f'echo "{_begin(number)}"'
        yield task.line
        yield f'echo "{_end(number)}"'


def with_lines(guest: Guest, lines: Sequence[str]) -> bytes:
    """The guest's initial file system with an /init that runs these lines."""
    from bt.initramfs import initramfs, read_member

    return initramfs(read_member(guest.initrd.read_bytes(), "bin/busybox"), lines)


def _line_times(command: Sequence[str], last: str) -> dict[str, tuple[float, float]]:
    """When each line came on a process's output, by the host's clock and by the processor time that it had taken, until
    the last one; the process is ended then."""
    found: dict[str, tuple[float, float]] = {}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not on this host; install it to measure beside it") from None
    assert process.stdout is not None
    try:
        begun = time.monotonic()
        for line in process.stdout:
            text = line.decode(errors="replace").strip()
            found[text] = time.perf_counter(), _processor_time(process.pid)
            if last in text or time.monotonic() - begun > _LIMIT:
                break
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return found


def _processor_time(process: int) -> float:
    """Seconds that the threads of a process have run so far."""
    threads = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def work(guest: Guest, runs: int, say: Say) -> Iterator[Figure]:
    """The tasks, on KVM and on QEMU's TCG in turns."""
    from bt.image import load

    doing = Work(guest, TASKS)
    ours: dict[str, list[tuple[float, float, int]]] = {task.name: [] for task in TASKS}
    theirs: dict[str, list[tuple[float, float]]] = {task.name: [] for task in TASKS}
    with tempfile.TemporaryDirectory(prefix="retrap-bench.") as scratch:
        elf = Path(scratch) / "vmlinux"
        elf.write_bytes(load(guest.kernel).elf)
        for turn in range(1, runs + 1):
            for name, taken in doing.run_ours().items():
                ours[name].append(taken)
            for name, pair in doing.run_theirs(elf).items():
                theirs[name].append(pair)
            say(f"{turn}/{runs} tasks in the guest")
    for task in TASKS:
        mine, other = ours[task.name], theirs[task.name]
        if not mine or not other:
            yield Figure(task.name, None, task.goal, True, "x", "a run did not come to its end")
            continue
        (seconds, spent), (base, theirs_spent) = (
            [statistics.median(one[which] for one in runs_of) for which in (0, 1)] for runs_of in (mine, other)
        )
        exits = statistics.median(taken[2] for taken in mine)
        detail = f"{seconds:.2f} s, {base:.3f} s; by processor time {spent / theirs_spent:.3g} x; {exits:.0f} exits"
        yield Figure(f"{task.name}, by QEMU TCG", seconds / base, task.goal, True, "x", detail)
        if task.calls:
            yield Figure("exits of a system call", exits / task.calls, 1.5, True, "exits")


def tracer(guest: Guest) -> Figure:
    """Whether the function tracer can be turned on, off and on again."""
    doing = Work(guest, (), TRACER)
    doing.run_ours()
    return Figure("function tracer on, off, on, off", float("tracer nop" in doing.lines), 1.0, False, "works")


def two_machines(guest: Guest, say: Say) -> Figure:
    """Two machines at once beside one alone: how much more gets done."""
    task = Task("loop", "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done", 0.0)
    with tempfile.NamedTemporaryFile(prefix="retrap-bench.", suffix=".initrd") as file:
        file.write(with_lines(guest, list(_lines((task,)))))
        file.flush()
        command = [
            *(sys.executable, "-m", "bt", "run", "--engine", "kvm", "--initrd", file.name),
            *("--append", guest.command_line, str(guest.kernel)),
        ]
        alone = time_to_marker(command, _end(0), _LIMIT).seconds
        say("one machine")
        begun = time.monotonic()
        running = [
            subprocess.Popen([*command, "--until", _end(0)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            for _ in range(2)
        ]
        for process in running:
            process.wait()
        together = time.monotonic() - begun
        say("two machines")
    ratio = 2 * alone / together if alone is not None else None
    return Figure("two machines on two cores", ratio, 1.6, False, "x", f"{alone or 0:.2f} s and {together:.2f} s")


# -- all of it ------------------------------------------------------------------------------------

PARTS: Final = ("loops", "trap", "exits", "tracer", "boot", "tasks", "two")


def measure(guest: Guest | None, runs: int, only: Sequence[str], say: Say) -> Iterator[Figure]:
    """Measure what is in `only`, or all; without a guest what needs none. Raises `EngineMissing` without KVM."""
    from emulator.engine.kvm.probe import findings_of_host

    findings_of_host()
    wanted = only or PARTS
    if "loops" in wanted:
        yield from loops(2 * runs + 1)
    if "trap" in wanted:
        yield trap(20 * runs)
    if guest is None:
        return
    if "exits" in wanted:
        yield boot_exits(guest)
    if "tracer" in wanted:
        yield tracer(guest)
    if "boot" in wanted:
        yield from boots(guest, runs, say)
    if "tasks" in wanted:
        yield from work(guest, runs, say)
    if "two" in wanted:
        yield two_machines(guest, say)
