"""Pages that a processor reads as descriptors, in memory that the guest has given for it.

Room: `paravirt/mmu`. Such a frame is validated as a whole when it becomes one, is mapped writable by nobody, and
changes by single stores, each looked at. Which descriptors a guest may have is the instruction set's (`EntryFormat`).
"""

from __future__ import annotations

import numpy as np

from emulator.isa.entries import EntryFormat
from paravirt.mmu.frame_types import DESCRIPTORS, Domain, FrameTable, Refusal, Refused


class DescriptorPages:
    """One domain's pages of descriptors."""

    def __init__(self, frames: FrameTable, domain: Domain, form: EntryFormat) -> None:
        """Raises `ValueError` for an instruction set whose processors read no descriptors."""
        if form.descriptors is None:
            raise ValueError(f"{form.name} has no descriptors in memory")
        self._frames = frames
        self._domain = domain
        self._allowed = form.descriptors
        self._words = np.frombuffer(domain.memory, dtype=np.uint64).reshape(-1, 512)
        self._ahead = domain.first - frames.first

    def use(self, frame: int) -> None:
        """A machine frame is about to be read by the processor as descriptors. Raises `Refused`."""
        frames = self._frames
        at = frames.place(self._domain, frame)
        if not frames.uses[at]:
            wrong = np.flatnonzero(~self._allowed(self._words[at - self._ahead]))
            if len(wrong):
                raise Refused(Refusal.DESCRIPTOR, frame, int(self._words[at - self._ahead][wrong[0]]))
            frames.become(at, DESCRIPTORS)
        elif frames.kind[at] != DESCRIPTORS:
            raise Refused(Refusal.OTHER_TYPE, frame)
        frames.valid[at] = 1
        frames.uses[at] += 1
        frames.refs[at] += 1

    def leave(self, frame: int) -> None:
        """A frame that `use` took is read no more."""
        at = frame - self._frames.first
        self._frames.leave_writable(at)
        if not self._frames.uses[at]:
            self._frames.valid[at] = 0

    def store(self, frame: int, index: int, value: int) -> None:
        """Change one of the 512 words of a frame in use. Raises `Refused`."""
        frames = self._frames
        at = frames.place(self._domain, frame)
        if frames.kind[at] != DESCRIPTORS or not frames.uses[at]:
            raise Refused(Refusal.OTHER_TYPE, frame, value)
        if not 0 <= index < 512:
            raise Refused(Refusal.UNALIGNED, frame, value)
        if not self._allowed(np.array([value], dtype=np.uint64)).all():
            raise Refused(Refusal.DESCRIPTOR, frame, value)
        self._words[at - self._ahead][index] = value
