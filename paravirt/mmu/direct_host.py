"""One machine's frames where guests' own tables are walked: those of every guest, and the hypervisor's tables.

Room: `paravirt/mmu`. Machine frames begin far above guest-physical memory, so that the two cannot be confused. Every
engine has all of them mapped, other guests' too: what keeps guests apart is what their tables may lead to.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

import numpy as np

from paravirt.mmu.frame_types import Domain, FrameTable

if TYPE_CHECKING:
    from collections.abc import Callable

MACHINE_BASE: Final = 1 << 37
"""Engine-physical address of the first machine frame: above all of `paravirt.layout`."""
OWN_FRAMES: Final = 4096
"""Of the hypervisor, for tables: 16 MiB."""


class DirectHost:
    """The frames of a machine that guests share."""

    def __init__(self, size: int) -> None:
        """`size` is the memory of all its guests together, bytes."""
        self.first = MACHINE_BASE >> 12
        self.frames = FrameTable(self.first, OWN_FRAMES + (size >> 12))
        self.frames.claim(self.first, OWN_FRAMES)
        self._own = mmap.mmap(-1, OWN_FRAMES << 12)
        self.own = np.frombuffer(self._own, dtype=np.uint64).reshape(OWN_FRAMES, 512)
        """Contents of the hypervisor's frames."""
        self._used = 0
        self._next = self.first + OWN_FRAMES
        self.regions: list[tuple[int, memoryview]] = [(MACHINE_BASE, memoryview(self._own))]
        """What every engine must have: engine-physical addresses and contents."""
        self._mapped: list[Callable[[int, memoryview], None]] = []

    def take(self) -> int:
        """A frame of the hypervisor's own, all zero. Raises `MemoryError` when there is none left."""
        if self._used == OWN_FRAMES:
            raise MemoryError(f"the hypervisor's {OWN_FRAMES} frames for tables are all in use")
        self._used += 1
        return self.first + self._used - 1

    @property
    def bytes_used(self) -> int:
        """Memory for the hypervisor's tables, and for what is kept of every guest frame (24 bytes,
        8 of which are its number by the other's count)."""
        guests = sum(domain.count for domain in self.frames.domains)
        return (self._used << 12) + 24 * guests

    def words(self, frame: int) -> np.ndarray:
        """The 512 words of a frame of the hypervisor's own."""
        words: np.ndarray = self.own[frame - self.first]
        return words

    def add(self, memory: memoryview, base: int = 0) -> Domain:
        """Give a guest its frames, the first of which has the number `base` for it; every engine gets them mapped.
        Raises `ValueError` when there are too few."""
        domain = self.frames.add_domain(memory, self._next, base=base)
        self._next += domain.count
        region = domain.first << 12, memory
        self.regions.append(region)
        for engine in self._mapped:
            engine(*region)
        return domain

    def join(self, map_memory: Callable[[int, memoryview], None]) -> None:
        """An engine is to walk tables of this machine: map all of its frames, and those that come later."""
        for region in self.regions:
            map_memory(*region)
        self._mapped.append(map_memory)
