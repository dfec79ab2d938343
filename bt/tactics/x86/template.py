"""`Template`: a piece of a fixup that stands for one instruction, before it has an address.

Room: `bt/tactics`. A template is code that falls through at its end, with hypercalls at known offsets. Every template
keeps these rules. Registers, flags and memory after it are those after the instruction, dead stack below RSP included.
What may fault in it does so while all is as at the site, or behind pieces that can be done again: a fault anywhere in
a fixup can be reported as one of its site. Only scratch words are used, between its first and last instruction: no
interrupt may be delivered inside a fixup, except at a hypercall.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from emulator.isa.operation import Operation
from paravirt.abi import (
    CONTROL_REGISTERS,
    INTERRUPT_DELTA,
    INTERRUPT_PENDING,
    IO_PRIVILEGE,
    SCRATCH,
    SHARED_PAGE,
)

DELTA: Final = SHARED_PAGE + INTERRUPT_DELTA
"""Guest-virtual address of the word that is added to the real flags."""
PRIVILEGE: Final = SHARED_PAGE + IO_PRIVILEGE
"""Guest-virtual address of the other word that is added to the real flags: the virtual IOPL."""
PENDING: Final = SHARED_PAGE + INTERRUPT_PENDING
"""Guest-virtual address of the word that is not 0 while an interrupt waits."""


def scratch(index: int) -> int:
    """Guest-virtual address of scratch word `index`."""
    return SHARED_PAGE + SCRATCH + 8 * index


def control_register(number: int) -> int:
    """Guest-virtual address of the copy of control register `number`."""
    return SHARED_PAGE + CONTROL_REGISTERS + 8 * number


@dataclass(frozen=True, slots=True)
class Call:
    """A hypercall inside a template."""

    offset: int
    """Of the planted trap, from the template's start."""
    operation: Operation
    inside: bool = False
    """The guest goes on behind the template in its fixup, and not where the fixup goes on."""
    instruction: bytes = b""
    """What the hypervisor is to do, where it is the whole instruction."""


@dataclass(frozen=True, slots=True)
class Template:
    """Code that stands for one instruction."""

    name: str
    code: bytes
    calls: tuple[Call, ...] = ()
    scratch: frozenset[int] = frozenset()
    """Scratch words it uses. It clobbers nothing else: no register, no flag."""
    changes: frozenset[int] = frozenset()
    """Registers that the instruction changes, by number."""
    stack: int = 0
    """Bytes by which the instruction moves the stack pointer."""
    finish: Template | None = None
    """What is to be done at the end of the fixup, unless the next instruction takes it back."""
    shadow: bool = False
    """Whether one more instruction comes before any interrupt, as behind STI."""
    takes_back: bool = False
    """Whether it takes back what an instruction with a shadow, right before it, left to be done."""
    repeatable: bool = False
    """Whether doing it again changes nothing, so that what follows it may fault and begin again at the site."""
    reads_interrupt_flag: bool = False
    """Whether what it does depends on the virtual interrupt flag."""
    writes_interrupt_flag: bool = False
    """Whether it changes the virtual interrupt flag."""
    sensitive: bool = True
    """Whether it stands for a sensitive instruction, and not for one that is only in the way."""
    changes_view: bool = False
    """Whether what an address leads to, or a segment's base, may be another one behind it."""
    ends: bool = False
    """Whether the guest never goes on behind it."""
    on_registers: bool = False
    """Whether it neither reads nor writes anything but registers and flags."""
    reference: tuple[int, int] | None = None
    """A RIP-relative operand: offset of its 32-bit displacement, and its target as an offset from the site's page."""


def joined(pieces: Sequence[bytes]) -> bytes:
    """The pieces one behind the other."""
    return b"".join(pieces)


def scratch_words(templates: Iterable[Template]) -> tuple[str, ...]:
    """The scratch words that templates use, for people."""
    return tuple(f"scratch word {word}" for word in sorted({word for one in templates for word in one.scratch}))
