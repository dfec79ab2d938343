"""`Template`: a piece of a fixup that stands for one instruction, before it has an address.

Room: `bt/tactics`. A template is position-independent code that falls through at its end, with hypercalls at known
offsets. Rules every template keeps: (1) guest registers, flags and memory after it are those after the instruction,
dead stack below RSP included; (2) an instruction of it that may fault does so while registers and flags are still
those at the site, so that a fault anywhere in a fixup is a fault of the site; (3) it uses scratch words only, and
only between its first and last instruction: no interrupt may be delivered inside a fixup except at a hypercall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from emulator.isa.operation import Operation
from paravirt.abi import CONTROL_REGISTERS, INTERRUPT_DELTA, INTERRUPT_PENDING, SCRATCH, SHARED_PAGE

DELTA: Final = SHARED_PAGE + INTERRUPT_DELTA
"""Guest-virtual address of the word that is added to the real flags."""
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
    """The guest goes on where the fixup goes on."""


@dataclass(frozen=True, slots=True)
class Template:
    """Code that stands for one instruction."""

    name: str
    code: bytes
    calls: tuple[Call, ...] = ()
    scratch: frozenset[int] = frozenset()
    """Scratch words it uses. It clobbers nothing else: no register, no flag."""
    last: bool = False
    """Whether nothing but padding may follow it in a fixup: the guest may go on behind the site from inside it."""
    finish: Template | None = None
    """What is to be done at the end of the fixup, unless a later instruction of it takes it back."""
    takes_back: bool = False
    """Whether it takes back what an earlier instruction left to be done."""


def joined(pieces: Sequence[bytes]) -> bytes:
    """The pieces one behind the other."""
    return b"".join(pieces)
