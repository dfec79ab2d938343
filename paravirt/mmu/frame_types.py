"""The machine's frames, each with an owner, a type, and two counts: what keeps real guest page tables safe.

Room: `paravirt/mmu`. A frame may be a page table of one level, a page of descriptors, or writable data, and never two
of these while anything uses it as one: `uses` counts who does, `refs` counts every entry and root that leads to it.
A frame that leaves one type for another may still be in a TLB as what it was; then `flush_due` says that translations
must be flushed before the guest goes on. It knows nothing of entries (`direct_tables`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNTYPED: Final = 0
TABLE_1, TABLE_2, TABLE_3, TABLE_4 = 1, 2, 3, 4
"""Page tables: the number is the level."""
DESCRIPTORS, WRITABLE = 5, 6
KIND_NAMES: Final = ("untyped", *(f"page table of level {level}" for level in range(1, 5)), "descriptors", "writable")

NOBODY, HYPERVISOR = 0, 1
"""Owners that are no domain; domains count from 2."""
NOWHERE: Final = 0xFFFF_FFFF
"""In a domain's table of frames: no machine frame stands behind a guest frame, or no guest frame before a machine's."""


class Refusal(IntEnum):
    """Why a request was refused."""

    NO_FRAME = 1
    """There is no such frame, of guest or machine."""
    FOREIGN = 2
    """It is another's: a domain's, or the hypervisor's."""
    WRITABLE_TABLE = 3
    """A table or a page of descriptors cannot be mapped writable."""
    OTHER_TYPE = 4
    """The frame is in use as something else."""
    MALFORMED = 5
    """An entry has bits that it may not have, or is of a kind that its level has not."""
    LARGE = 6
    """A large page where none may be, or one that straddles what may not be mapped so."""
    NOT_A_TABLE = 7
    """The frame is no page table in use, or not of the level that was named."""
    RESERVED = 8
    """An entry of a root that is the hypervisor's, or one behind a table's end."""
    LINEAR = 9
    """A table as its own page: allowed read-only, to a finished table of the same owner, one step deep."""
    PINNED = 10
    """It is pinned already."""
    NOT_PINNED = 11
    """It is not pinned."""
    DESCRIPTOR = 12
    """A descriptor that gives a guest more than segments of its level."""
    IN_USE = 13
    """The frame is still referred to."""
    UNALIGNED = 14
    """An address is not that of an entry, a table or a root."""


class Refused(Exception):
    """A guest asked for what it may not have; nothing was changed."""

    def __init__(self, reason: Refusal, frame: int, entry: int = 0) -> None:
        super().__init__(f"{reason.name.lower()}: machine frame {frame:#x}, entry {entry:#x}")
        self.reason = reason
        self.frame = frame
        """The machine frame that it is about."""
        self.entry = entry
        """The entry that was asked for, where it was one."""


class Domain:
    """One guest: the frames that it was given, by its own numbers and by the machine's."""

    def __init__(self, number: int, first: int, memory: memoryview, order: Sequence[int] | None, base: int) -> None:
        self.number = number
        self.base = base
        """The number that the guest has for its first frame; below, its numbers are less that."""
        self.first = first
        """Its first machine frame; memory lies in the order of machine frames."""
        self.count = memory.nbytes >> 12
        self.memory = memory
        self.machine = memoryview(bytearray(4 * self.count)).cast("I")
        """By guest frame number, the machine frame, or `NOWHERE`."""
        self.machine_array = np.frombuffer(self.machine, dtype=np.uint32)
        self.guest = memoryview(bytearray(4 * self.count)).cast("I")
        """By machine frame less `first`, the guest frame number, or `NOWHERE`."""
        self.guest_array = np.frombuffer(self.guest, dtype=np.uint32)
        places = np.arange(self.count, dtype=np.uint32) if order is None else np.asarray(order, dtype=np.uint32)
        self.machine_array[:] = places + np.uint32(first)
        self.guest_array[places] = np.arange(self.count, dtype=np.uint32)
        self.refused: Counter[Refusal] = Counter()
        """What it asked for and did not get."""


class FrameTable:
    """All frames of a machine that any page table may lead to."""

    def __init__(self, first: int, count: int) -> None:
        """`count` frames from machine frame `first` on, nobody's at first."""
        self.first = first
        self.count = count
        self.owner = bytearray(count)
        self.kind = bytearray(count)
        self.valid = bytearray(count)
        """A table or page of descriptors all of which was looked at."""
        self.pinned = bytearray(count)
        """Its type is kept although nothing may use it."""
        self.uses = memoryview(bytearray(4 * count)).cast("I")
        """How often it is used as what it is."""
        self.refs = memoryview(bytearray(4 * count)).cast("I")
        """How often anything leads to it."""
        self.left = memoryview(bytearray(4 * count)).cast("I")
        """The flush count when it was last left by a use or a reference."""
        self.owner_array = np.frombuffer(self.owner, dtype=np.uint8)
        self.kind_array = np.frombuffer(self.kind, dtype=np.uint8)
        self.uses_array = np.frombuffer(self.uses, dtype=np.uint32)
        self.refs_array = np.frombuffer(self.refs, dtype=np.uint32)
        self.left_array = np.frombuffer(self.left, dtype=np.uint32)
        self.flushes = 1
        """Flushes of all translations so far, and one."""
        self.flush_due = False
        """A frame became something else that a TLB may still have as what it was: flush before the guest goes on."""
        self.domains: list[Domain] = []
        self.on_flush_due: Callable[[], None] = lambda: None
        """Called when `flush_due` becomes true, for whoever flushes at once."""

    def add_domain(self, memory: memoryview, first: int, order: Sequence[int] | None = None, base: int = 0) -> Domain:
        """Give the frames from `first` on, whose contents are `memory`, to a new domain.

        `order` says which of them stands behind each of the guest's frames; by default they do in their order. `base`
        is the first one's number where that is not 0. Raises `ValueError` for frames that there are not, or belong
        to somebody.
        """
        count, at = memory.nbytes >> 12, first - self.first
        if at < 0 or at + count > self.count:
            raise ValueError(f"machine frames {first:#x} to {first + count:#x} are not all there; give others")
        if self.owner_array[at : at + count].any():
            raise ValueError(f"machine frames {first:#x} to {first + count:#x} are not free; give others")
        if len(self.domains) == 254:
            raise ValueError("254 domains are as many as there can be; end one first")
        if order is not None and sorted(order) != list(range(count)):
            raise ValueError(f"the order of {count} frames must name each of them once")
        domain = Domain(len(self.domains) + 2, first, memory, order, base)
        self.owner_array[at : at + count] = domain.number
        self.domains.append(domain)
        return domain

    def claim(self, first: int, count: int) -> None:
        """Frames of the hypervisor's own, which no guest may have."""
        at = first - self.first
        self.owner_array[at : at + count] = HYPERVISOR

    def flushed(self) -> None:
        """All translations that an engine may have kept are gone."""
        self.flushes += 1
        self.flush_due = False

    def _must_flush(self) -> None:
        if not self.flush_due:
            self.flush_due = True
            self.on_flush_due()

    # -- one frame: by its place, the machine frame less `first` --------------------------------

    def place(self, domain: Domain, frame: int, entry: int = 0) -> int:
        """The place of a machine frame that is the domain's. Raises `Refused`."""
        at = frame - self.first
        if not 0 <= at < self.count:
            raise Refused(Refusal.NO_FRAME, frame, entry)
        if self.owner[at] != domain.number:
            raise Refused(Refusal.FOREIGN, frame, entry)
        return at

    def become(self, at: int, kind: int) -> None:
        """Give a frame that is not in use another type; notes a flush that is due for what it was."""
        if self.kind[at] != kind:
            if self.kind[at] and self.left[at] == self.flushes:
                self._must_flush()
            self.kind[at] = kind

    def use_writable(self, at: int, entry: int = 0) -> None:
        """One writable mapping more. Raises `Refused` for a frame that is something else."""
        if self.kind[at] != WRITABLE:
            if self.uses[at]:
                raise Refused(Refusal.WRITABLE_TABLE, at + self.first, entry)
            self.become(at, WRITABLE)
        self.uses[at] += 1
        self.refs[at] += 1

    def leave_writable(self, at: int) -> None:
        """One writable mapping less."""
        self.uses[at] -= 1
        self.refs[at] -= 1
        self.left[at] = self.flushes

    def unrefer(self, at: int) -> None:
        """One mapping less that could not be written by."""
        self.refs[at] -= 1
        self.left[at] = self.flushes

    def get(self, domain: Domain, frame: int) -> None:
        """Refer to a domain's frame from outside of its tables: it stays the domain's. Raises `Refused`."""
        self.refs[self.place(domain, frame)] += 1

    def put(self, frame: int) -> None:
        """Undo a `get`."""
        self.unrefer(frame - self.first)

    def get_writable(self, domain: Domain, frame: int) -> None:
        """Write a domain's frame from outside of its tables: it stays data. Raises `Refused`."""
        self.use_writable(self.place(domain, frame))

    def put_writable(self, frame: int) -> None:
        """Undo a `get_writable`."""
        self.leave_writable(frame - self.first)

    # -- many -----------------------------------------------------------------------------------

    def places(self, domain: Domain, frames: NDArray[np.int64], entries: NDArray[np.generic]) -> NDArray[np.int64]:
        """The places of machine frames that are all the domain's. Raises `Refused` for the first that is not."""
        at = frames - self.first
        inside = (at >= 0) & (at < self.count)
        if not inside.all():
            wrong = int(np.flatnonzero(~inside)[0])
            raise Refused(Refusal.NO_FRAME, int(frames[wrong]), int(entries[wrong]))
        own = self.owner_array[at] == domain.number
        if not own.all():
            wrong = int(np.flatnonzero(~own)[0])
            raise Refused(Refusal.FOREIGN, int(frames[wrong]), int(entries[wrong]))
        return at

    def check_writable(self, at: NDArray[np.int64], entries: NDArray[np.generic]) -> None:
        """Raise `Refused` if one of these frames is in use as something that cannot be written."""
        taken = (self.kind_array[at] != WRITABLE) & (self.uses_array[at] != 0)
        if taken.any():
            wrong = int(np.flatnonzero(taken)[0])
            raise Refused(Refusal.WRITABLE_TABLE, int(at[wrong]) + self.first, int(entries[wrong]))

    def use_many(self, at: NDArray[np.int64], writable: NDArray[np.int64]) -> None:
        """Mappings of frames more, of which some (once more) are writable; `check_writable` has passed."""
        other = writable[self.kind_array[writable] != WRITABLE]
        if len(other):
            if ((self.left_array[other] == self.flushes) & (self.kind_array[other] != UNTYPED)).any():
                self._must_flush()
            self.kind_array[other] = WRITABLE
        np.add.at(self.refs_array, at, 1)
        np.add.at(self.uses_array, writable, 1)

    def leave_many(self, at: NDArray[np.int64], writable: NDArray[np.int64]) -> None:
        """Such mappings less."""
        np.subtract.at(self.refs_array, at, 1)
        np.subtract.at(self.uses_array, writable, 1)
        self.left_array[at] = self.flushes

    # -- frames that change hands ---------------------------------------------------------------

    def release(self, domain: Domain, number: int) -> int:
        """Take a guest frame from a domain; returns the machine frame, which is nobody's then. Raises `Refused`."""
        frame = domain.machine[number] if 0 <= number < domain.count else NOWHERE
        if frame == NOWHERE:
            raise Refused(Refusal.NO_FRAME, number)
        at = self.place(domain, frame)
        if self.refs[at] or self.uses[at]:
            raise Refused(Refusal.IN_USE, frame)
        self.become(at, UNTYPED)
        if self.left[at] == self.flushes:
            self._must_flush()
        self.owner[at] = NOBODY
        domain.machine[number] = NOWHERE
        domain.guest[frame - domain.first] = NOWHERE
        return frame

    def give(self, domain: Domain, number: int, frame: int) -> None:
        """Put one of a domain's released machine frames behind a guest frame that has none. Raises `Refused`."""
        if not (0 <= number < domain.count and domain.machine[number] == NOWHERE):
            raise Refused(Refusal.IN_USE, number)
        at = frame - self.first
        if not domain.first <= frame < domain.first + domain.count or self.owner[at] != NOBODY:
            raise Refused(Refusal.FOREIGN, frame)
        self.owner[at] = domain.number
        domain.machine[number] = frame
        domain.guest[frame - domain.first] = number
