"""What a Linux does alike on a bare machine and as a Xen guest: what its user space asks for, and prints.

Room: `bt/knowledge`. Read by `bt.verify`. The kernel itself runs other code there, finds other devices and prints other
lines; what its user space sees is the same, and that is compared.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bt.initramfs import MARKER
from bt.knowledge.linux_verify import LINUX, asked_once, ends_process, key
from bt.verify import checks
from bt.verify.rules import Divergence, Pair, Profile, Result, Rule, Side
from emulator.machine import EndKind

if TYPE_CHECKING:
    from bt.verify.observation import Event

_KERNEL_LINE: Final = re.compile(rb"^\[ *\d+\.\d+\] ")
_ENDS: Final = frozenset({EndKind.POWER_OFF, EndKind.HALTED})
_PF: Final = 14
_CLOCKS: Final = frozenset({96, 201, 228})
"""gettimeofday, time, clock_gettime (arch/x86/entry/syscalls/syscall_64.tbl)."""


def user_lines(console: bytes) -> list[bytes]:
    """Lines of a console that no kernel has printed; from the marker on, where there is one: firmware comes before."""
    begin = console.find(MARKER.encode())
    lines = (line.rstrip(b"\r") for line in console[max(begin, 0) :].split(b"\n"))
    return [line for line in lines if line and not _KERNEL_LINE.match(line)]


def _outcome(pair: Pair) -> Result:
    left, right = pair.reference.outcome, pair.rewritten.outcome
    if left.kind == right.kind or {left.kind, right.kind} == _ENDS:
        return Result(f"they ended by {left.kind.value} and {right.kind.value}")
    sides = [Side(f"{end.kind.value} {end.detail}".rstrip()) for end in (left, right)]
    return Result("the end of the run", Divergence("the runs end differently", None, *sides))


def _console(pair: Pair) -> Result:
    left, right = user_lines(pair.reference.console), user_lines(pair.rewritten.console)
    if left and left == right:
        return Result(f"{len(left)} lines")
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    sides = [Side(repr(lines[at]) if at < len(lines) else "nothing") for lines in (left, right)]
    what = f"line {at + 1} of what user space prints differs" if left else "user space has printed nothing"
    return Result(f"{len(left)} lines", Divergence(what, None, *sides))


def _of_user_code(_pair: Pair, event: Event) -> bool:
    return event.level == 3 and event.number != _PF


def _without_clocks(calls: list[Event]) -> list[Event]:
    return asked_once([call for call in calls if not (call.bits == 64 and checks.system_call(call) in _CLOCKS)])


def _rules() -> tuple[Rule, ...]:
    kept = {rule.name: rule for rule in LINUX.rules}
    return (
        Rule(
            "outcome",
            "how the run ended",
            "power-off where the bare machine halts",
            "a machine without ACPI has no power switch, a domain has",
            _outcome,
        ),
        Rule(
            "console",
            "every line that user space prints",
            "the kernel's own lines",
            "the kernel finds another machine, and prints that",
            _console,
        ),
        replace(
            kept["system calls"],
            leaves_out=f"{kept['system calls'].leaves_out}; readings of clocks",
            why=f"{kept['system calls'].why}; the kernel lets user code read the clock itself on a bare machine only",
            check=checks.events("system call", key=key, last=ends_process, reduce=_without_clocks),
        ),
        kept["software interrupts"],
        replace(
            kept["exceptions"],
            leaves_out="exceptions of the kernel, and page faults",
            why="the kernel does otherwise what would fault, or is emulated; where pages are touched first depends on "
            "what the kernel has mapped around them",
            check=checks.events("exception", _of_user_code, key, ends_process),
        ),
        kept["initramfs"],
    )


LINUX_XEN: Final = Profile(
    "linux-xen",
    "a Linux as a Xen guest, held against itself on a bare machine",
    _rules(),
    (
        ("kernel text and data", "the kernel patches itself otherwise where it knows that it runs on Xen"),
        ("device writes, interrupts, and the processor at the end", "there are no such devices, and no such processor"),
        ("moments", "virtual time is counted in blocks"),
    ),
)
"""The rules for Linux as a Xen guest."""
