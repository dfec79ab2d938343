"""What a look at a run's processor gives, whichever instruction set it has.

Room: `bt/verify/views`. Nothing of the run is changed by looking: tables are walked without marking what was used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bt.session import Session

LONGEST: Final = 15
"""Bytes of code that are noted with an event, at most."""
PAGE: Final = 4096


class View:
    """Looks at the processor of a session, whoever drives it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.memory = session.machine.memory

    @property
    def pc(self) -> int:
        """Guest-virtual address of the instruction that the guest is at."""
        return self.session.driver.pc

    @property
    def level(self) -> int:
        """The privilege level, as the architecture numbers it."""
        raise NotImplementedError

    @property
    def bits(self) -> int:
        """Which of the instruction set's `Processor.states` the code is in."""
        return self.session.image.isa.bits

    def named(self, kind: str, number: int) -> tuple[str, int]:
        """An event's kind and number, where the driver's are not `Event`'s."""
        return kind, number

    def space(self) -> int:
        """What tells one address space from another: the guest-physical address of the page-table root."""
        raise NotImplementedError

    def registers(self) -> tuple[int, ...]:
        """The values of `Processor.noted`."""
        raise NotImplementedError

    def code(self, address: int) -> bytes:
        """Up to 15 bytes of the guest's own code at a guest-virtual address, within its page; empty where unmapped."""
        raise NotImplementedError

    def final(self) -> Iterator[tuple[str, int]]:
        """The registers by name, for the end of the run."""
        raise NotImplementedError

    def loader_tables(self) -> frozenset[int]:
        """Page numbers of the page tables that the loader made, asked before the guest begins."""
        return frozenset()

    def from_page(self, physical: int) -> bytes:
        """Up to 15 bytes from a guest-physical address, within its page; none outside of memory."""
        return up_to_the_page(self.memory.view, physical - self.memory.base)


def up_to_the_page(memory: memoryview, at: int) -> bytes:
    """Up to 15 bytes from a place in memory, within its page; none outside of memory."""
    if at < 0:
        return b""
    end = min(at + LONGEST, (at | PAGE - 1) + 1)
    return bytes(memory[at:end]) if end <= len(memory) else b""
