"""What of two runs of one Linux on Arm is the same: the rules for Linux, and what the architecture changes of them.

Room: `bt/knowledge`. Read by `bt.verify`. Classes of faults are the manuals' (DDI 0487, ISS of an abort; DDI 0406,
B3.13.3 for the short-descriptor format).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from bt.knowledge.linux_verify import FIXED, LINUX, REDUCTIONS, ends_process, key, text_range
from bt.verify import checks, devices
from bt.verify.rules import Check, Pair, Profile, Result, Rule

if TYPE_CHECKING:
    from bt.verify.observation import Event

_ABORTS_64: Final = frozenset({0x20, 0x21, 0x24, 0x25})
"""Instruction and data aborts, from EL0 and from EL1 (ESR_EL1.EC)."""
_FLOATING_POINT: Final = 0x07
_UNDEFINED, _PREFETCH_ABORT, _DATA_ABORT = 1, 3, 4
"""Numbers of the vectors of ARMv7."""
_BREAKPOINT: Final = 0x3C


def _translation_fault_64(error: int) -> bool:
    return error & 0x3C == 0x04


def _translation_fault_32(error: int) -> bool:
    return error & 0x40F in (0x5, 0x7)


def _kept_64(pair: Pair, event: Event) -> bool:
    if event.number in _ABORTS_64:
        return FIXED in pair.command_line.split() and event.level == 0 and _translation_fault_64(event.error)
    return event.number not in (_FLOATING_POINT, _BREAKPOINT)


def _kept_32(pair: Pair, event: Event) -> bool:
    if event.number in (_PREFETCH_ABORT, _DATA_ABORT):
        return FIXED in pair.command_line.split() and event.level == 0 and _translation_fault_32(event.error)
    return event.number != _UNDEFINED


class _Text(NamedTuple):
    """What is left out of the comparison of text."""

    leaves_out: str
    why: str
    check: Check


def _text_of_arm64(pair: Pair) -> Result:
    from bt.knowledge.linux_arm64_kvm import Tags

    tags = Tags(pair)
    return checks.ranges(text_range, lambda _pair, at, _reference, _rewritten: tags.excuse(at))(pair)


_TEXT_32: Final = _Text("", "nothing may differ: the guest's frames stay pristine", checks.ranges(text_range))
_TEXT_64: Final = _Text(
    "the tag of the hypervisor's addresses: in the immediates of two ADD where the kernel's table names "
    "kvm_update_va_mask, and in pointers; one and the same in all of a run's places",
    "nothing else may differ: the guest's frames stay pristine; Linux draws the tag by its random numbers, which "
    "come of the counter (arch/arm64/kvm/va_layout.c)",
    _text_of_arm64,
)


def _of(kept: Callable[[Pair, Event], bool], names: frozenset[str], excused: _Text) -> Callable[[Rule], Rule | None]:
    def change(rule: Rule) -> Rule | None:
        if rule.name == "software interrupts":
            return None
        if rule.name == "device writes":
            return replace(
                rule,
                compares="per device, the sequence of (offset, size, value): what sets up the interrupt controller and "
                "the serial port",
                leaves_out="characters, control and interrupt enables of the serial port; enables and ends of "
                "interrupts",
                why="characters are the console's, whose lines are compared, and control is written around "
                "as many of them as are printed at once; an interrupt is masked and ended at each tick",
                check=checks.device_writes(_REDUCTIONS),
            )
        if rule.name == "exceptions":
            return replace(
                rule,
                compares="per process, the sequence of (class, error, address)",
                leaves_out="first uses of floating point, breakpoints; aborts on pages that are there and those "
                f"of the kernel; all aborts, unless the command line says {FIXED}",
                why="Linux gives floating point to a process when it uses it first; after a fork the first to write "
                "copies the page, be it parent, child, or the kernel when it preempts one; where stack and heap lie is "
                "random, and so which pages are touched",
                check=checks.events("exception", kept, key, ends_process),
            )
        if rule.name == "kernel text":
            return replace(
                rule,
                compares="every byte from _text (or _stext) to _etext at the end, as the kernel has patched itself",
                leaves_out=excused.leaves_out,
                why=excused.why,
                check=excused.check,
            )
        if rule.name == "processor":
            return replace(
                rule,
                compares=f"what Linux sets up once: {', '.join(sorted(names))}",
                leaves_out="all others",
                check=checks.processor(names.__contains__),
            )
        return rule

    return change


_REDUCTIONS: Final[dict[str, checks.Reduce]] = {
    **REDUCTIONS,
    "gic-cpu": devices.gic_interface,
    "gic-distributor": devices.gic_setup,
    "uart": devices.pl011_setup,
}


def _profile(name: str, summary: str, change: Callable[[Rule], Rule | None]) -> Profile:
    rules = tuple(rule for rule in map(change, LINUX.rules) if rule is not None)
    return replace(LINUX, name=name, summary=summary, rules=rules)


LINUX_ARM64: Final = _profile(
    "linux-aarch64",
    "a Linux on AArch64, whose course depends on when its timer ticks",
    _of(_kept_64, frozenset({"SCTLR_EL1", "VBAR_EL1"}), _TEXT_64),
)
"""The rules for Linux on AArch64."""

LINUX_ARM: Final = _profile(
    "linux-armv7",
    "a Linux on ARMv7, whose course depends on when its timer ticks",
    _of(_kept_32, frozenset({"SCTLR", "TTBCR", "VBAR"}), _TEXT_32),
)
"""The rules for Linux on ARMv7."""
