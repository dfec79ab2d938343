"""The host of Xen guests: machine memory with an owner and a type for each frame, and the domains on it.

Room: `paravirt/xen`. Machine frames are not a guest's own numbers, and by default they do not even lie in their order,
so that whoever takes one for the other is found out. The table from machine to pseudo-physical frames is the host's,
and every guest's kernel may read it. It knows no CPU.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from emulator.isa.x86.entries import LONG_MODE
from emulator.memory import GuestMemory
from paravirt.mmu.frame_types import Domain as OwnedFrames
from paravirt.mmu.frame_types import FrameTable
from paravirt.xen.events import EventChannels
from paravirt.xen.public import INVALID_FRAME, Errno, XenError
from paravirt.xen.xenstore import Tree

if TYPE_CHECKING:
    from paravirt.xen.domain import Domain

OWN_FRAMES: Final = 16
"""Machine frames at the beginning that are the hypervisor's own; no guest has frame 0."""
NEIGHBOUR_FRAMES: Final = 16
"""Of a domain that never runs: every guest has somebody else's memory beside its own."""
EXTRA_FRAMES: Final = 48
"""Frames of a domain beyond its memory: its shared information page, its grant table's, and room for more such."""

LARGE_PAGE: Final = 2 << 20
_KEYS: Final = 0x7800_0000_0000_0000
"""Bits 59 to 62 of an entry: protection keys, which the processor shown to guests does not have."""
FORMAT: Final = replace(
    LONG_MODE,
    kept=0,
    levels=tuple(replace(level, forbidden=level.forbidden | _KEYS, stripped=0) for level in LONG_MODE.levels),
)
"""Entries as a Xen guest writes them: it knows that the user bit is imposed, and has bits 52 to 58 for itself."""


def scattered(count: int) -> Sequence[int]:
    """An order of `count` frames in which neighbours lie apart: the same in every run."""
    step = int(count * 0.618_033_988_749_895) | 1
    while math.gcd(step, count) != 1:
        step += 2
    return [number * step % count for number in range(count)]


def in_order(count: int) -> Sequence[int]:
    """The order in which machine frames lie as the guest's do."""
    return range(count)


class Host:
    """Machine memory shared by domains."""

    def __init__(self, memory: GuestMemory) -> None:
        """`memory`: all of the machine's, from machine frame 0 on."""
        self.memory = memory
        self.view = memory.view
        self.words = memory.words
        self.frame_count = memory.size >> 12
        self.frames = FrameTable(0, self.frame_count)
        self.frames.claim(0, OWN_FRAMES)
        self._next = OWN_FRAMES
        self.domains: dict[int, Domain] = {}
        """By domain number."""
        self.free: dict[int, list[int]] = {}
        """First frames of what domains left when they ended, by the number of frames."""
        self.store = Tree()
        """What all domains find of each other."""
        size = -(-self.frame_count * 8 // LARGE_PAGE) * LARGE_PAGE
        self.machine_to_physical_bytes = memoryview(mmap.mmap(-1, size))
        self.machine_to_physical = self.machine_to_physical_bytes.cast("Q")
        """By machine frame: the pseudo-physical frame before it, or `INVALID_FRAME`; whole large pages."""
        self.machine_to_physical_bytes[:] = (INVALID_FRAME & 0xFF).to_bytes(1, "little") * size

    @staticmethod
    def machine_size(guest_size: int) -> int:
        """Bytes of machine memory for one guest of so many."""
        return guest_size + (OWN_FRAMES + EXTRA_FRAMES + NEIGHBOUR_FRAMES << 12)

    def knows(self, number: int) -> bool:
        """Whether there is such a domain."""
        return number in self.domains

    def channels_of(self, number: int) -> EventChannels:
        """A domain's event channels. Raises `XenError` where there is no such domain."""
        if number not in self.domains:
            raise XenError(Errno.ESRCH)
        return self.domains[number].events

    @property
    def taken(self) -> int:
        """Frames that are given away, from frame 0 on."""
        return self._next

    def own(self, pages: int, order: Callable[[int], Sequence[int]] = scattered) -> OwnedFrames:
        """Give a new domain so many frames, in this order of its numbers."""
        left = self.free.get(pages)
        if left:
            start = left.pop()
        else:
            start = self._next
            self._next += pages
        view = self.view[start << 12 : start + pages << 12]
        return self.frames.add_domain(view, start, order(pages))


__all__ = ["FORMAT", "Host", "in_order", "scattered"]
