"""Figures of the services around a guest: snapshots, warm starts, checkpoints, recordings, going backwards.

Room: measurements. A stock kernel is booted with a shell. Costs of what goes along with a run are ratios of processor
time, with and without it in turns; everything else is wall-clock seconds. Of some runs the least counts: what else a
host does only makes them longer.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bt.bench.engine import Figure
from bt.guests import Guest
from bt.image import load
from bt.initramfs import initramfs, read_member
from bt.session import Options, Session
from bt.snapshot import ResumedSession, Snapshot, save_session
from emulator.errors import Unavailable
from paravirt.services.positions import Position
from paravirt.services.record import Console, Recorder
from paravirt.services.recording import Writer
from paravirt.services.timeline import PAUSED, ConsoleOnce, Timeline

if TYPE_CHECKING:
    from paravirt.hypervisor import Hypervisor

BOOTED = 160_000_000
"""Blocks after which Debian's amd64 kernel is about to start its user space."""
SLICE = 5_000_000
"""Blocks that are timed together."""
SECOND = 100_000_000
"""Blocks in a second of guest time."""
PROMPT = b"/ # "
PARTS = ("snapshot", "warm", "checkpoints", "recording", "backwards", "gdb")
Say = Callable[[str], None]


def shell_initrd(guest: Guest) -> bytes:
    """The guest's initial file system with an interactive shell in the place of an end."""
    return initramfs(read_member(guest.initrd.read_bytes(), "bin/busybox"), ("busybox sh -i",))


def _session(guest: Guest, initrd: bytes, console: Callable[[bytes], None] = lambda _: None) -> Session:
    options = Options(initrd=initrd, command_line=guest.command_line)
    return Session(load(guest.kernel), options, console)


def _run_to(session: Session, progress: int) -> None:
    driver, engine = cast("Hypervisor", session.driver), session.machine.engine
    engine.pause_at(progress, lambda: driver.end(PAUSED))
    if driver.resume() is not PAUSED:
        raise Unavailable(f"the guest ended before {progress} blocks; measure Debian's amd64 kernel")


def measure(guest: Guest, runs: int, only: tuple[str, ...], say: Say) -> Iterator[Figure]:
    """Every figure, or those of some parts."""
    initrd = shell_initrd(guest)
    parts: dict[str, Callable[[Guest, bytes, int], Iterator[Figure]]] = {
        "snapshot": _snapshots,
        "warm": _warm,
        "checkpoints": _checkpoints,
        "recording": _recordings,
        "backwards": _backwards,
        "gdb": _debugged,
    }
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in PARTS:
            if not only or name in only:
                say(f"measuring: {name}")
                yield from parts[name](guest, initrd, runs)
                gc.collect()
    finally:
        if collecting:
            gc.enable()


def _snapshots(guest: Guest, initrd: bytes, runs: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "booted"
        session = _session(guest, initrd)
        session.machine.begin()
        session.machine.arm()
        _run_to(session, BOOTED)
        saved, size, restored = [], 0, []
        for _ in range(runs):
            began = time.perf_counter()
            size = save_session(session, path).size
            saved.append(time.perf_counter() - began)
        session.close()
        for _ in range(runs):
            began = time.perf_counter()
            snapshot = Snapshot(path)
            opened = time.perf_counter() - began
            restored.append(opened + _restore(snapshot))
    yield Figure("snapshot of a booted 256 MB guest", min(saved), 0.6, True, "s")
    yield Figure("its size", size / 1e6, 60, True, "MB")
    yield Figure("restoring it", min(restored), 0.3, True, "s", "into a machine that is there")


def _restore(snapshot: Snapshot) -> float:
    """Seconds that it takes to put a snapshot into a machine."""
    spent = 0.0
    restore = snapshot.restore

    def timed(driver: Hypervisor) -> bool:
        nonlocal spent
        began = time.perf_counter()
        exact = restore(driver)
        spent = time.perf_counter() - began
        return exact

    snapshot.restore = timed  # type: ignore[method-assign]
    ResumedSession(snapshot, lambda _: None).close()
    return spent


def _warm(guest: Guest, initrd: bytes, runs: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "initrd"
        file.write_bytes(initrd)
        command = [sys.executable, "-m", "bt", "run", str(guest.kernel), "--initrd", str(file), "--warm"]
        command += ["--append", guest.command_line]
        # Nothing that the user has kept is in the way, nor pushed out.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"XDG_CACHE_HOME": folder, "PYTHONPYCACHEPREFIX": folder}  # as where it is installed
        cold = _prompt(command, environment, lambda: _kept(Path(folder)))
        seconds = min(_prompt(command, environment) for _ in range(runs))
    yield Figure("--warm, from command to prompt", seconds, 0.6, True, "s", f"{cold:.1f} s the first time")


def _kept(folder: Path) -> bool:
    """Whether the snapshot of the guest at its prompt is there: the second one, in the place of the first."""
    snapshots = list(folder.glob("retrap/warm/*.snapshot"))
    return any(PROMPT in bytes.fromhex(Snapshot(path).description["console"]) for path in snapshots)


def _prompt(command: list[str], environment: dict[str, str], until: Callable[[], bool] = lambda: True) -> float:
    """Seconds from the start of a process to its guest's prompt; the process goes on until something is so."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    )
    assert process.stdout is not None
    seen = bytearray()
    try:
        while PROMPT not in seen:
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                raise Unavailable(
                    f"the guest came to no prompt; its console ends: {seen[-200:].decode(errors='replace')}"
                )
            seen += data
        seconds = time.perf_counter() - began
        while not until():
            time.sleep(0.5)
        return seconds
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _nothing(_session: Session) -> Callable[[], None]:
    """Attach nothing."""
    return lambda: None


def _cost(guest: Guest, initrd: bytes, runs: int, attach: Callable[[Session], Callable[[], None]]) -> float:
    """Processor time that a boot takes longer with something attached, as a share of the same boot without. A boot is
    timed in slices, and of each slice the least of some runs in turns counts: a fraction of a second that nobody else
    on the host has lengthened is found sooner than a whole boot."""
    plain: list[list[float]] = []
    attached: list[list[float]] = []
    for _ in range(runs):
        for boots, make in ((plain, _nothing), (attached, attach)):
            boots.append(_slices(_session(guest, initrd), make))
            gc.collect()
    least: list[float] = [sum(map(min, zip(*boots, strict=True))) for boots in (plain, attached)]
    return least[1] / least[0] - 1


def _slices(session: Session, attach: Callable[[Session], Callable[[], None]]) -> list[float]:
    """Processor seconds of each slice of a boot, begin and end included."""
    marks = [time.process_time()]
    session.machine.begin()
    session.machine.arm()
    detach = attach(session)
    for progress in range(SLICE, BOOTED, SLICE):
        _run_to(session, progress)
        marks.append(time.process_time())
    _run_to(session, BOOTED)
    detach()
    marks.append(time.process_time())
    session.close()
    return [after - before for before, after in pairwise(marks)]


def _checkpoints(guest: Guest, initrd: bytes, runs: int) -> Iterator[Figure]:
    def attach(session: Session) -> Callable[[], None]:
        return Timeline(cast("Hypervisor", session.driver), begun=True).close

    cost = _cost(guest, initrd, runs, attach)
    yield Figure("checkpoints every 50 M instructions", 100 * cost, 10, True, "%", "of a boot's processor time")


def _recordings(guest: Guest, initrd: bytes, runs: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:

        def attach(session: Session) -> Callable[[], None]:
            session.machine.poll_input = lambda _seconds: b""
            writer = Writer(Path(folder) / "recording", {})
            recorder = Recorder(cast("Hypervisor", session.driver), writer, Console())

            def end() -> None:
                recorder.end(replace(PAUSED))
                writer.close()

            return end

        cost = _cost(guest, initrd, runs, attach)
    yield Figure("recording", 100 * cost, 3, True, "%", "of a boot's processor time")


def _debugged(guest: Guest, initrd: bytes, runs: int) -> Iterator[Figure]:
    from bt.bench.debugging import debugged

    return debugged(guest, initrd, runs, _session, BOOTED)


def _backwards(guest: Guest, initrd: bytes, runs: int) -> Iterator[Figure]:
    session = _session(guest, initrd)
    timeline = Timeline(cast("Hypervisor", session.driver), ConsoleOnce(lambda _: None))
    timeline.run(Position(BOOTED))
    steps = []
    for number in range(1, max(runs, 3) + 1):
        timeline.goto(Position(BOOTED * number // (max(runs, 3) + 1)))
        timeline.goto(Position(BOOTED))
        place = Position(BOOTED * number // (max(runs, 3) + 1))
        timeline.goto(place)
        began = time.perf_counter()
        timeline.step_back()
        steps.append(time.perf_counter() - began)
    yield Figure("one step back, anywhere", max(steps), 1, True, "s", f"the longest of {len(steps)}")
    timeline.goto(Position(BOOTED))
    physical = _written_before(timeline, BOOTED - SECOND)
    began = time.perf_counter()
    found = timeline.find_previous_write(physical, 8)
    seconds = time.perf_counter() - began
    back = (BOOTED - found.progress) / SECOND if found is not None else 0.0
    yield Figure("back to a watchpoint", seconds, 5, True, "s", f"{back:.2f} s of guest time back")
    timeline.close()
    session.close()


def _written_before(timeline: Timeline, progress: int) -> int:
    """Guest-physical address of a word that was written last shortly before some progress."""
    marks: list[Any] = [mark for mark in timeline.checkpoints.kept if mark.position.progress <= progress]
    memory = timeline.machine.memory
    pages = memory.size >> 12
    timeline.checkpoints.look()
    before, after, now = marks[-2].contents[:pages], marks[-1].contents[:pages], timeline.checkpoints.current[:pages]
    store = timeline.checkpoints._store
    for page in np.flatnonzero((before != after) & (after == now)).tolist():
        words = np.flatnonzero(store.one(int(before[page])) != store.one(int(after[page])))
        if len(words):
            return int(memory.base + (page << 12) + 8 * int(words[0]))
    raise Unavailable("no page was written last at that time; measure another guest")


def as_json(figures: list[Figure]) -> dict[str, Any]:
    """Figures as plain values."""
    from bt.bench.engine import as_json as plain

    return plain(figures)
