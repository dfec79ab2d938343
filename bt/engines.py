"""What engines this host has, as values: which are usable, why others are not, and what was found of each.

Room: `bt`. `retrap engines` prints what is made here. Everything is probed, nothing is assumed of a host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emulator.engine.engines import ENGINES, FASTEST_FIRST, X86_ENGINES
from emulator.errors import EngineMissing

if TYPE_CHECKING:
    from emulator.engine.kvm.findings import Findings

FORMAT: Final = 1
"""Version of the JSON."""
DEVICE: Final = "/dev/kvm"
LOOP: Final = "b980969800 4801c8 4831c8 48ffc9 75f5"
"""mov ecx, 10000000; add rax, rcx; xor rax, rcx; dec rcx; jnz."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One engine on this host."""

    name: str
    usable: bool
    why_not: str
    """One sentence; empty for a usable one."""
    instruction_sets: tuple[str, ...]
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    speed: float | None = None
    """Of a compute loop, as a share of the host's own; None where that cannot be measured."""


@dataclass(frozen=True, slots=True)
class QuirkReport:
    """Whether this host's KVM has a quirk."""

    name: str
    found: bool
    seen: str
    probed: str
    hidden: str
    upstream: str


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """/dev/kvm and what is behind it."""

    path: str
    exists: bool
    rights: str
    """Owner, group and mode, as far as they can be seen."""
    readable_and_writable: bool
    modules: tuple[str, ...]
    """Names of the kernel's KVM modules, as /sys/module has them."""
    processor: str
    """Which hardware virtualisation /proc/cpuinfo shows: "vmx", "svm" or nothing."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found."""

    engines: tuple[EngineReport, ...]
    device: DeviceReport
    smoke: str
    """What came of a few instructions at level 3; empty where nothing could be tried."""
    exit_cost: float | None
    """Microseconds of a trap to the engine and back; None without KVM."""
    quirks: tuple[QuirkReport, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"format": FORMAT, **asdict(self)}


def look() -> Report:
    """Probe everything."""
    engines = tuple(_engine(name) for name in FASTEST_FIRST)
    findings, smoke = _findings()
    return Report(
        engines,
        device(),
        smoke,
        findings.exit_cost if findings is not None else None,
        _quirks(findings) if findings else (),
    )


def _engine(name: str) -> EngineReport:
    sets = tuple(isa for isa, openers in ENGINES.items() if name in openers)
    opener = ENGINES[sets[0]][name]
    try:
        engine = opener()
    except EngineMissing as error:
        return EngineReport(name, False, str(error), sets)
    try:
        capabilities = asdict(engine.capabilities)
    finally:
        engine.close()
    return EngineReport(name, True, "", sets, capabilities, _speed(name))


def _speed(name: str) -> float | None:
    """How fast the loop runs at level 3 of an x86-64 engine, as a share of the host's own speed."""
    import platform

    if platform.machine() != "x86_64":
        return None
    from bt.bench.room import Room
    from bt.machinecode import HostCode, median

    host = HostCode(bytes.fromhex(LOOP) + b"\xc3")
    room = Room(X86_ENGINES[name]())
    try:
        pairs = [(host.seconds(), room.seconds(bytes.fromhex(LOOP))) for _ in range(3)]
    finally:
        room.close()
    return median([theirs for theirs, _ in pairs]) / median([ours for _, ours in pairs])


def _findings() -> tuple[Findings | None, str]:
    from emulator.engine.kvm.probe import findings_of_host

    try:
        return findings_of_host(), "code at level 3 runs, faults and is stopped as it should"
    except EngineMissing as error:
        return None, str(error)


def _quirks(findings: Findings) -> tuple[QuirkReport, ...]:
    from emulator.engine.kvm.quirks import QUIRKS

    return tuple(
        QuirkReport(quirk.name, quirk.found(findings), quirk.seen, quirk.probed, quirk.hidden, quirk.upstream)
        for quirk in QUIRKS
    )


def device(path: str = DEVICE) -> DeviceReport:
    """The device's node, the modules behind it, and the processor's part."""
    try:
        found = os.stat(path)
        rights = f"{_owner(found.st_uid, 'passwd')}:{_owner(found.st_gid, 'group')} {stat.S_IMODE(found.st_mode):04o}"
    except OSError as error:
        return DeviceReport(path, False, error.strerror or "", False, _modules(), _processor())
    return DeviceReport(path, True, rights, os.access(path, os.R_OK | os.W_OK), _modules(), _processor())


def _owner(number: int, table: str) -> str:
    import grp
    import pwd

    try:
        return pwd.getpwuid(number).pw_name if table == "passwd" else grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _modules() -> tuple[str, ...]:
    try:
        return tuple(sorted(path.name for path in Path("/sys/module").iterdir() if path.name.startswith("kvm")))
    except OSError:
        return ()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return next((name for name in ("vmx", "svm") if name in flags), "")
