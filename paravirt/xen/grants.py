"""A domain's grant table: which frames it shares with whom, in memory that it writes, and who holds them now.

Room: `paravirt/xen`. Layouts and statuses are those of grant_table.h, versions 1 and 2. A frame that somebody holds
cannot become a page table if it may be written, and stays the domain's. How guests ask is `paravirt.xen.calls.grants`;
back ends of the hypervisor's own take grants by `acquire`, as domain 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from paravirt.mmu.frame_types import Refused
from paravirt.xen.public import Errno, XenError

if TYPE_CHECKING:
    from paravirt.xen.domain import Domain

MOST_FRAMES: Final = 32
"""Frames of one table."""
MOST_STATUS_FRAMES: Final = 4
MOST_MAPPED: Final = 8192
"""Grants that one guest may have mapped."""
RESERVED: Final = 8
"""Entries at the beginning that the domain builder fills, and that a change of version keeps."""
CONSOLE, STORE = 0, 1
"""Reserved entries."""
_PERMIT, _SUB_PAGE, _READ_ONLY, _READING, _WRITING = 1, 1 << 8, 1 << 2, 1 << 3, 1 << 4
_TYPE: Final = 3
PAGE: Final = 4096


class GrantStatus(IntEnum):
    """GNTST."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_REFERENCE = -3
    BAD_HANDLE = -4
    BAD_ADDRESS = -5
    BAD_DEVICE_ADDRESS = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY = -10
    ADDRESS_TOO_BIG = -11
    AGAIN = -12
    NO_SPACE = -13


class GrantError(Exception):
    """An operation is refused: its status says why."""

    def __init__(self, status: GrantStatus) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(slots=True)
class Grant:
    """A grant that somebody holds."""

    reference: int
    frame: int
    """Machine frame."""
    write: bool
    start: int = 0
    end: int = PAGE
    """The bytes of the frame that are granted."""


@dataclass(slots=True)
class Mapping:
    """A grant that a guest has mapped."""

    table: GrantTable
    """Whose grant."""
    grant: Grant
    place: int
    """Machine address of the entry that maps it, or 0."""
    device: bool
    """It was also asked for by its machine address."""


class GrantTable:
    """One domain's table, and what the domain has mapped of others'."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.version = 1
        self.frames: list[int] = []
        """Machine frames of the table."""
        self.status_frames: list[int] = []
        self.readers: dict[int, int] = {}
        """How often each reference is held."""
        self.writers: dict[int, int] = {}
        self.held: list[tuple[int, bool]] = []
        """Machine frames that are referred to on behalf of grants of this table, and whether to write."""
        self.mapped: dict[int, Mapping] = {}
        """By handle."""
        self._handles = 0
        self.grow(1)

    # -- the table itself -----------------------------------------------------------------------

    def grow(self, count: int) -> None:
        """The table has so many frames, or more. Raises `GrantError`."""
        if not count <= MOST_FRAMES:
            raise GrantError(GrantStatus.GENERAL_ERROR)
        while len(self.frames) < count:
            self.frames.append(self._take())
        if self.version == 2:
            self._grow_status()

    def _grow_status(self) -> None:
        while len(self.status_frames) * 2048 < self.size:
            self.status_frames.append(self._take())

    def _take(self) -> int:
        """A frame of the domain's that stays data, since the hypervisor writes it."""
        domain = self.domain
        frame = domain.extra.pop()
        domain.hold(frame)
        domain.page(frame)[:] = bytes(PAGE)
        return frame

    @property
    def size(self) -> int:
        """How many references there are."""
        return len(self.frames) * (PAGE // (8 if self.version == 1 else 16))

    def _entry(self, reference: int) -> int:
        """Machine address of an entry. Raises `GrantError`."""
        if not 0 <= reference < self.size:
            raise GrantError(GrantStatus.BAD_REFERENCE)
        each = 8 if self.version == 1 else 16
        at = reference * each
        return self.frames[at // PAGE] * PAGE + at % PAGE

    def _status(self, reference: int) -> int:
        """Machine address of the word that says how a grant is used."""
        if self.version == 1:
            return self._entry(reference)
        return self.status_frames[reference // 2048] * PAGE + reference % 2048 * 2

    def _word(self, at: int, size: int) -> int:
        return int.from_bytes(self.domain.host.view[at : at + size], "little")

    def _put(self, at: int, value: int, size: int) -> None:
        self.domain.host.view[at : at + size] = value.to_bytes(size, "little")

    def permit(self, reference: int, to: int, frame: int, read_only: bool = False) -> None:
        """Write an entry, as the guest itself would: `frame` is a machine frame."""
        at = self._entry(reference)
        flags = _PERMIT | (_READ_ONLY if read_only else 0)
        if self.version == 1:
            self._put(at, flags | to << 16 | frame << 32, 8)
        else:
            self._put(at + 8, frame, 8)
            self._put(at, flags | to << 16, 8)

    def set_version(self, version: int) -> None:
        """Entries are laid out otherwise from now on; all but the reserved ones are gone. Raises `XenError`."""
        if version not in (1, 2):
            raise XenError(Errno.EINVAL)
        if version == self.version:
            return
        if self.readers or self.writers or any(self.domain.is_mapped(frame) for frame in self.status_frames):
            raise XenError(Errno.EBUSY)
        kept = []
        for reference in range(RESERVED):
            at = self._entry(reference)
            head = self._word(at, 4)
            if head & _TYPE not in (0, _PERMIT):
                raise XenError(Errno.EINVAL)
            kept.append((head, self._word(at + 4, 4) if self.version == 1 else self._word(at + 8, 8)))
        self.version = version
        for frame in (*self.frames, *self.status_frames):
            self.domain.page(frame)[:] = bytes(PAGE)
        if version == 2:
            self._grow_status()
        for reference, (head, frame) in enumerate(kept):
            if head & _TYPE:
                self.permit(reference, head >> 16, frame & 0xFFFF_FFFF, head & _READ_ONLY != 0)

    def swap(self, one: int, other: int) -> None:
        """Exchange two entries that nobody holds. Raises `GrantError`."""
        size = 8 if self.version == 1 else 16
        places = [self._entry(one), self._entry(other)]
        if any(reference in held for reference in (one, other) for held in (self.readers, self.writers)):
            raise GrantError(GrantStatus.AGAIN)
        first, second = (self._word(at, size) for at in places)
        self._put(places[0], second, size)
        self._put(places[1], first, size)

    # -- grants that are held -------------------------------------------------------------------

    def acquire(self, reference: int, by: int, write: bool, whole: bool = True) -> Grant:
        """Hold a frame that domain `by` was granted. Raises `GrantError` where it was not, or not so.

        `whole`: it must be a whole page.
        """
        domain = self.domain
        at = self._entry(reference)
        head = self._word(at, 4)
        flags = head & 0xFFFF
        if flags & _TYPE != _PERMIT or head >> 16 != by or (write and flags & _READ_ONLY):
            raise GrantError(GrantStatus.GENERAL_ERROR)
        start, end = 0, PAGE
        if self.version == 1:
            frame = self._word(at + 4, 4)
        else:
            frame = self._word(at + 8, 8)
            if flags & _SUB_PAGE:
                start, size = self._word(at + 4, 2), self._word(at + 6, 2)
                end = start + size
                if whole or end > PAGE:
                    raise GrantError(GrantStatus.GENERAL_ERROR)
        if not domain.owns(frame):
            raise GrantError(GrantStatus.BAD_PAGE)
        try:
            if write:
                domain.frames.get_writable(domain.owned, frame)
            else:
                domain.frames.get(domain.owned, frame)
        except Refused as refused:
            domain.owned.refused[refused.reason] += 1
            raise GrantError(GrantStatus.GENERAL_ERROR) from None
        self.held.append((frame, write))
        counts = self.writers if write else self.readers
        counts[reference] = counts.get(reference, 0) + 1
        self._mark(reference)
        return Grant(reference, frame, write, start, end)

    def release(self, grant: Grant) -> None:
        """Undo an `acquire`."""
        domain, frames = self.domain, self.domain.frames
        self.held.remove((grant.frame, grant.write))
        if grant.write:
            frames.put_writable(grant.frame)
            if grant.frame in domain.watch.contents:
                domain.tables.suspects.add(grant.frame)
        else:
            frames.put(grant.frame)
        counts = self.writers if grant.write else self.readers
        counts[grant.reference] -= 1
        if not counts[grant.reference]:
            del counts[grant.reference]
        self._mark(grant.reference)

    def _mark(self, reference: int) -> None:
        """Tell the guest how a grant is held."""
        at = self._status(reference)
        word = self._word(at, 2) & ~(_READING | _WRITING)
        if reference in self.writers:
            word |= _READING | _WRITING
        elif reference in self.readers:
            word |= _READING
        self._put(at, word, 2)

    def memory(self, grant: Grant) -> memoryview:
        """The bytes that are granted."""
        view = self.domain.page(grant.frame)[grant.start : grant.end]
        return view if grant.write else view.toreadonly()

    # -- what the domain has mapped of others' --------------------------------------------------

    def remember(self, mapping: Mapping) -> int:
        """A handle for a mapping."""
        self._handles = self._handles + 1 & 0xFFFF_FFFF
        self.mapped[self._handles] = mapping
        return self._handles

    def forget_all(self) -> None:
        """The domain is gone: what it held of others' is given back."""
        for mapping in self.mapped.values():
            mapping.table.release(mapping.grant)
        self.mapped.clear()


__all__ = ["Grant", "GrantError", "GrantStatus", "GrantTable", "Mapping"]
