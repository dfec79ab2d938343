"""Boots to user space, ours beside QEMU's: whole processes, interleaved, medians.

Room: measurements. Contenders take turns, so a machine that is busy for a while is busy for all of them. Ours run as
they do from the second time on, with what the first kept; "cold" is the first. The figures that the project has set
itself are ratios of medians of the warm runs; they are printed, and nothing here judges by them.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bt import qemu
from bt.bench.process import time_to_marker
from bt.guests import RECIPES, Guest
from emulator.errors import Unavailable

FORMAT = 1
"""Version of the JSON."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to boot the guest."""

    name: str
    what: str
    """For the report: how it differs from the others."""
    command: Sequence[str]
    own: bool = False
    """One of ours: it has compiled modules, as installed ones are, and is run once before the measuring."""
    cold: bool = False
    """Every run finds nothing that earlier ones have kept."""


@dataclass(slots=True)
class Entrant:
    """A contender with its measured runs."""

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """The end of the console of every run that did not reach the marker."""

    @property
    def median(self) -> float | None:
        """Median of the runs that reached the marker, in seconds; None when none did."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio that the project wants to stay below."""

    of: tuple[str, ...]
    """Contenders whose smallest median is the numerator."""
    to: tuple[str, ...]
    """Contenders whose smallest median is the denominator."""
    at_most: float


USUAL = "qemu"
KVM = "kvm"
FASTEST = ("qemu-pvh", "qemu-microvm")
GOALS = (
    Goal(("inline",), (USUAL,), 0.8),
    Goal(("inline",), FASTEST, 2.5),
    Goal(("trap",), FASTEST, 6.0),
)
OTHER_GOALS = {"i386": 1.3, "arm64": 2.0, "armhf": 2.5, "mipsel": 2.3}
"""By Debian's name of an architecture: at most so many times as long as QEMU."""


def architecture_of(guest: Guest) -> str:
    """Debian's name of a guest's architecture; "amd64" for one that is in no recipe."""
    recipe = RECIPES.get(guest.name)
    return recipe.architecture if recipe is not None else "amd64"


def goals(guest: Guest) -> tuple[Goal, ...]:
    """The goals for a guest."""
    other = OTHER_GOALS.get(architecture_of(guest))
    return GOALS if other is None else (Goal(("inline",), (USUAL,), other),)


def contenders(guest: Guest, elf: Path) -> tuple[Contender, ...]:
    """All ways to boot `guest`; `elf` is its kernel as an uncompressed ELF, for PVH."""

    def ours(mode: str) -> list[str]:
        image = ["--initrd", str(guest.initrd), "--append", guest.command_line, str(guest.kernel)]
        return [sys.executable, "-m", "bt", "run", "--virt", mode, *image]

    def theirs(kernel: Path, append: str, machine: str) -> list[str]:
        return qemu.command(kernel, guest.initrd, append, machine)

    own = (
        Contender("inline", "retrap run --virt inline, with what an earlier run kept", ours("inline"), own=True),
        Contender("cold", "the same, with nothing kept", ours("inline"), own=True, cold=True),
        Contender("trap", "retrap run --virt trap, with what an earlier run kept", ours("trap"), own=True),
    )
    architecture = architecture_of(guest)
    if architecture in qemu.OTHERS:
        other = qemu.other_command(architecture, guest.kernel, guest.initrd, guest.command_line)
        return (*own, Contender(USUAL, f"QEMU TCG, {' '.join(qemu.OTHERS[architecture][1:])}", other))
    return (
        *own,
        Contender(KVM, "retrap run --engine kvm", [*ours("inline"), "--engine", "kvm"], own=True),
        Contender(USUAL, "QEMU TCG, -kernel bzImage on pc", theirs(guest.kernel, qemu.PLAIN, "pc")),
        Contender("qemu-pvh", "QEMU TCG, ELF by PVH on pc,acpi=off", theirs(elf, guest.command_line, qemu.NEAREST)),
        Contender(
            # On a busy host the calibration of the TSC and the test of the timer fail, and with them the boot.
            "qemu-microvm",
            "QEMU TCG, ELF by PVH on microvm",
            theirs(elf, f"{qemu.PLAIN} no_timer_check tsc_early_khz=1000000", "microvm"),
        ),
    )


def measure(
    guest: Guest,
    runs: int,
    only: Sequence[str] = (),
    timeout: float = 300.0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Entrant]:
    """Boot `guest` `runs` times by every contender (or those named in `only`), taking turns.

    Raises Unavailable when QEMU is wanted and not there.
    """
    from bt.image import load

    with tempfile.TemporaryDirectory(prefix="retrap-bench.") as scratch:
        elf = Path(scratch) / "vmlinux"
        elf.write_bytes(load(guest.kernel).elf)
        entrants = [Entrant(contender) for contender in contenders(guest, elf) if _takes_part(contender.name, only)]
        for entrant in entrants:
            program = entrant.contender.command[0]
            if shutil.which(program) is None:
                raise Unavailable(f"{program} is not on this host; install it, or choose others by --only")
        for entrant in entrants:
            _warm_up(entrant.contender, guest.marker, timeout, Path(scratch))
        for turn in range(1, runs + 1):
            for entrant in entrants:
                environment = _environment(entrant.contender, Path(scratch), turn)
                timing = time_to_marker(entrant.contender.command, guest.marker, timeout, environment)
                if timing.seconds is None:
                    entrant.failures.append(timing.tail)
                else:
                    entrant.seconds.append(timing.seconds)
                result = "no marker" if timing.seconds is None else f"{timing.seconds:.2f} s"
                say(f"{turn}/{runs} {entrant.contender.name}: {result}")
    return entrants


def _environment(contender: Contender, scratch: Path, turn: int) -> dict[str, str] | None:
    """What a run of ours has besides our own environment: compiled modules, and where it keeps things."""
    if not contender.own:
        return None
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(scratch / "modules")
    if contender.cold:
        environment["XDG_CACHE_HOME"] = str(scratch / f"cold-{turn}")
    return environment


def _warm_up(contender: Contender, marker: str, timeout: float, scratch: Path) -> None:
    """Run one of ours to the marker and let it end by itself, so that it keeps what it keeps. How it ends is seen when
    it is measured."""
    if contender.own:
        command = [*contender.command, "--until", marker]
        environment = _environment(contender, scratch, 0)
        with suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout, env=environment
            )


def _takes_part(name: str, only: Sequence[str]) -> bool:
    """What is named in `only`; else all but what not every host has."""
    return name in only if only else name != KVM


def ratio(entrants: Sequence[Entrant], goal: Goal) -> float | None:
    """The goal's ratio as measured; None when one side was not measured."""
    medians = {entrant.contender.name: entrant.median for entrant in entrants}

    def best(names: Sequence[str]) -> float | None:
        found = [median for name in names if (median := medians.get(name)) is not None]
        return min(found) if found else None

    top, bottom = best(goal.of), best(goal.to)
    return None if top is None or bottom is None else top / bottom


def as_json(guest: Guest, entrants: Sequence[Entrant]) -> dict[str, object]:
    """Everything measured, as plain data."""
    return {
        "format": FORMAT,
        "guest": {"name": guest.name, "packages": guest.packages, "sha256": guest.sha256},
        "host": {"python": platform.python_version(), "machine": platform.machine(), "qemu": _qemu_version()},
        "unit": "seconds from process start to marker",
        "contenders": [
            {
                "name": entrant.contender.name,
                "what": entrant.contender.what,
                "median": entrant.median,
                "runs": entrant.seconds,
                "without_marker": len(entrant.failures),
            }
            for entrant in entrants
        ],
        "ratios": [
            {"of": list(goal.of), "to": list(goal.to), "goal": goal.at_most, "measured": ratio(entrants, goal)}
            for goal in goals(guest)
        ],
    }


def _qemu_version() -> str | None:
    try:
        result = subprocess.run([qemu.PROGRAM, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.partition("\n")[0].removeprefix("QEMU emulator version ") or None
