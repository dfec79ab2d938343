"""What of two runs of one Linux on MIPS32 is the same: the rules for Linux, with what the architecture changes in them.

Room: `bt/knowledge`. Read by `bt.verify`. System calls are those of o32 (arch/mips/kernel/syscalls/syscall_o32.tbl).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bt.knowledge.linux_verify import LINUX, REDUCTIONS, ends_process, key, text_range
from bt.verify import checks, devices
from bt.verify.rules import Pair, Profile, Rule

if TYPE_CHECKING:
    from bt.verify.observation import Event

_OF_THE_TLB: Final = frozenset({1, 2, 3})
_COPROCESSOR: Final = 11
_PROCESSOR: Final = frozenset({"PageMask", "Wired", "HWREna", "IntCtl", "EBase"})


def _kept(_pair: Pair, event: Event) -> bool:
    return event.number not in _OF_THE_TLB and not (event.number == _COPROCESSOR and event.level)


def _of_mips(rule: Rule) -> Rule | None:
    if rule.name == "software interrupts":
        return None
    if rule.name == "device writes":
        return replace(
            rule,
            compares="per device, the sequence of (offset, size, value): timer, clock chip, bridge, reset and power",
            leaves_out=f"{rule.leaves_out}; the window of ports, whose devices are compared each by itself",
            check=checks.device_writes({**REDUCTIONS, "pci-io": devices.left_out}),
        )
    if rule.name == "exceptions":
        return replace(
            rule,
            compares="per process, the sequence of (code, error, address)",
            leaves_out="exceptions of the TLB; a coprocessor that is not usable, from user mode",
            why="the TLB forgets its entries in the order in which processes take turns; Linux gives the coprocessor "
            "to a process when it uses it first after it was scheduled",
            check=checks.events("exception", _kept, key, ends_process),
        )
    if rule.name == "processor":
        return replace(
            rule,
            compares="what Linux sets up of coprocessor 0: PageMask, Wired, HWREna, IntCtl and EBase",
            leaves_out="all others",
            check=checks.processor(_PROCESSOR.__contains__),
        )
    if rule.name == "kernel text":
        return replace(
            rule,
            leaves_out="",
            why="nothing may differ: the guest's frames stay pristine",
            check=checks.ranges(text_range),
        )
    return rule


LINUX_MIPS: Final[Profile] = replace(
    LINUX,
    name="linux-mips32",
    summary="a Linux on MIPS32, whose course depends on when its timer ticks",
    rules=tuple(rule for rule in map(_of_mips, LINUX.rules) if rule is not None),
)
"""The rules for Linux on MIPS32."""
