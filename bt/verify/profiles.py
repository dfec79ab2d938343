"""The tables of rules: what is compared of which kind of guest, what is left out, and why.

Room: `bt/verify`. The documentation prints these tables. What is known of a particular kernel is in `bt.knowledge`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt.verify import checks, devices
from bt.verify.rules import Pair, Profile, Rule

if TYPE_CHECKING:
    from bt.image import Image
    from bt.verify.observation import Event

_NM: Final = 7


def _not_lazy_switch(_pair: Pair, event: Event) -> bool:
    return not (event.number == _NM and event.level == 3)


EXACT: Final = Profile(
    "exact",
    "a guest that is deterministic outside of the memory that it declares volatile",
    (
        Rule("outcome", "how the run ended, and with which status", "", "nothing may differ", checks.outcome),
        Rule("console", "every byte", "", "nothing may differ", checks.console_bytes),
        Rule(
            "device writes",
            "per device, the sequence of (offset, size, value)",
            "writes that end an interrupt (OCW2 of the 8259 pair), that latch a count of the timer, and indices of "
            "clock registers that are only read",
            "how many ticks fit in a stretch of code, and how often a clock is read until something is due, depends on "
            "time, which is counted in blocks",
            checks.device_writes(
                {
                    "pic-master": devices.interrupt_controller,
                    "pic-slave": devices.interrupt_controller,
                    "pit": devices.timer,
                    "rtc": devices.clock_chip,
                }
            ),
        ),
        Rule(
            "system calls",
            "per address space, the sequence of (number, address)",
            "which address space comes when",
            "processes are preempted by the timer, at other instructions",
            checks.events("system call"),
        ),
        Rule(
            "software interrupts",
            "per address space, the sequence of (vector, address)",
            "which address space comes when",
            "processes are preempted by the timer, at other instructions",
            checks.events("software interrupt"),
        ),
        Rule(
            "exceptions",
            "per address space, the sequence of (vector, error code, address, CR2 of a page fault)",
            "which address space comes when; #NM from user mode",
            "processes are preempted by the timer; a lazy kernel raises #NM at the first use of the FPU after that",
            checks.events("exception", _not_lazy_switch),
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
            "RIP may be on the instruction that ended the run or behind it; the busy bit in TR's hidden part",
            "an engine hands up an OUT with RIP behind it, a fault is on it; LTR may cache the bit before it sets it",
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


def profile_for(image: Image) -> Profile:
    """The rules for an image: those of its kernel where it is known, else the exact ones."""
    if image.linux is None:
        return EXACT
    from bt.knowledge.linux_verify import LINUX, LINUX_32

    return LINUX if image.isa.bits == 64 else LINUX_32


def profiles() -> tuple[Profile, ...]:
    """Every table of rules."""
    from bt.knowledge.linux_verify import LINUX, LINUX_32

    return EXACT, LINUX, LINUX_32
