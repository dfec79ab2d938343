"""The tables of rules: what is compared of which kind of guest, what is left out, and why.

Room: `bt/verify`. The documentation prints these tables. What is known of a particular kernel is in `bt.knowledge`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bt import xen
from bt.verify import checks, devices
from bt.verify.rules import Pair, Profile, Rule

if TYPE_CHECKING:
    from bt.image import Image
    from bt.verify.observation import Event

_NM: Final = 7
_ACCESS_TRAPPED: Final = 0x07
"""The exception class of a trapped access to SIMD and floating point (DDI 0487, ESR_ELx.EC)."""
_MIPS_TIMED: Final = frozenset({1, 2, 3, 11})
"""Mod, TLBL, TLBS; CpU."""


def _not_lazy_switch(_pair: Pair, event: Event) -> bool:
    lazy = _LAZY.get(event.isa)
    return lazy is None or not lazy(event)


def _undefined_floating_point(event: Event) -> bool:
    word = int.from_bytes(event.code[:4], "little")
    return event.number == 1 and event.level == 0 and word >> 8 & 15 in (10, 11) and word >> 25 & 7 in (6, 7)


_LAZY: Final[dict[str, Callable[[Event], bool]]] = {
    "x86-64": lambda event: event.number == _NM and event.level == 3,
    "i386": lambda event: event.number == _NM and event.level == 3,
    "aarch64": lambda event: event.number == _ACCESS_TRAPPED and event.level == 0,
    "armv7": _undefined_floating_point,
}
"""By instruction set, the exception by which a kernel that switches the FPU lazily learns of its first use."""


EXACT: Final = Profile(
    "exact",
    "a guest that is deterministic outside of the memory that it declares volatile",
    (
        Rule("outcome", "how the run ended, and with which status", "", "nothing may differ", checks.outcome),
        Rule("console", "every byte", "", "nothing may differ", checks.console_bytes),
        Rule(
            "device writes",
            "per device, the sequence of (offset, size, value)",
            "writes that end an interrupt (OCW2 of the 8259 pair, EOIR of a GIC), choose what is read next (OCW3) or "
            "latch a count of the timer, and indices of clock registers that are only read; the window of ports, "
            "whose devices are compared themselves",
            "how many ticks fit in a stretch of code, and how often a clock is read until something is due, depends on "
            "time, which is counted in blocks",
            checks.device_writes(
                {
                    "pic-master": devices.interrupt_controller,
                    "pic-slave": devices.interrupt_controller,
                    "pit": devices.timer,
                    "rtc": devices.clock_chip,
                    "pci-io": devices.left_out,
                    "gic-cpu": devices.gic_interface,
                }
            ),
        ),
        Rule(
            "system calls",
            "per address space, the sequence of (number, address)",
            "which address space comes when, and calls that the guest's manifest says are made while waiting",
            "processes are preempted by the timer, at other instructions",
            checks.events("system call", checks.counts, last=checks.exits),
        ),
        Rule(
            "software interrupts",
            "per address space, the sequence of (vector, address)",
            "which address space comes when",
            "processes are preempted by the timer, at other instructions",
            checks.events("software interrupt", checks.counts, last=checks.exits),
        ),
        Rule(
            "exceptions",
            "per address space, the sequence of (vector, error code, address, CR2 of a page fault)",
            "which address space comes when; from user mode #NM, and what Arm has in its place",
            "processes are preempted by the timer; a lazy kernel has it raised at the first use of the FPU after that",
            checks.events("exception", _not_lazy_switch, last=checks.exits),
        ),
        Rule(
            "interrupts",
            "which vectors came",
            "how often, and where",
            "virtual time is counted in blocks, of which a fixup has more than what it stands for",
            checks.vectors,
        ),
        Rule(
            "memory",
            "every byte of guest memory at the end; the guest's frames stay pristine, whatever was rewritten",
            "what the guest declares volatile; accessed bits of the page tables that the loader made",
            "volatile memory holds what interrupts leave behind; hypervisor and engine look ahead through the tables",
            checks.memory,
        ),
        Rule(
            "processor",
            "general, control, descriptor and system-call registers, segments and flags at the end",
            "RIP may be on the instruction that ended the run or behind it; the busy bit in TR's hidden part; after an "
            "interrupt what shows where (ELR_EL1, SPSR_EL1, LR_irq, SPSR_irq, EPC), and MIPS32's Index; what MIPS32 "
            "leaves undefined",
            "an engine hands up an OUT with RIP behind it, a fault is on it; LTR may cache the bit before it sets it; "
            "the timer ticks at other instructions, and what a probe finds in the TLB depends on who ran",
            checks.processor(),
        ),
    ),
    (
        ("reads from devices", "their effects are compared: console, memory, writes"),
        ("moments", "virtual time is counted in blocks, which fixups have more of"),
        ("debug registers and further MSRs at the end", "the engine keeps the reference's where it cannot be asked"),
        ("the address of a page fault (CR2), but for the last one", "not noted; error code and instruction are"),
    ),
)


def _untimed(_pair: Pair, event: Event) -> bool:
    return event.number not in _MIPS_TIMED


def _of_mips(rule: Rule) -> Rule:
    if rule.name != "exceptions":
        return rule
    return replace(
        rule,
        compares="per address space, the sequence of (code, error, address, BadVAddr)",
        leaves_out="which address space comes when; misses of the TLB, and a coprocessor that is not usable",
        why="processes are preempted by the timer, and with them TLB entries and the user of the coprocessor change",
        check=checks.events("exception", _untimed, last=checks.exits),
    )


EXACT_MIPS: Final = replace(EXACT, name="exact-mips32", rules=tuple(map(_of_mips, EXACT.rules)))
"""The exact rules where the guest fills the TLB itself."""

_EXACT: Final[dict[str, Profile]] = {"mips32": EXACT_MIPS}
"""Exact rules by instruction set, where they are not `EXACT`."""


def _of_linux() -> dict[str, Profile]:
    from bt.knowledge.linux_verify import LINUX, LINUX_32
    from bt.knowledge.linux_verify_arm import LINUX_ARM, LINUX_ARM64
    from bt.knowledge.linux_verify_mips import LINUX_MIPS

    return {"x86-64": LINUX, "i386": LINUX_32, "aarch64": LINUX_ARM64, "armv7": LINUX_ARM, "mips32": LINUX_MIPS}


def profile_for(image: Image, mode: str = "") -> Profile:
    """The rules for an image: those of its kernel where it is known, else the exact ones of its instruction set.

    `mode` is that of the run which is held against the reference.
    """
    if mode == xen.MODE:
        from bt.knowledge.linux_verify_xen import LINUX_XEN

        return LINUX_XEN
    exact = _EXACT.get(image.isa.name, EXACT)
    return exact if image.linux is None else _of_linux().get(image.isa.name, exact)


def profiles() -> tuple[Profile, ...]:
    """Every table of rules."""
    from bt.knowledge.linux_verify_xen import LINUX_XEN

    return EXACT, *_EXACT.values(), *_of_linux().values(), LINUX_XEN
