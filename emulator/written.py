"""Which pages of some memory were written since they were last asked about.

Room: `emulator`. Linux tells it where it can (userfaultfd with asynchronous write protection, and the PAGEMAP_SCAN
control, both from 6.7 on): a page's first write costs a fault of the host, and asking costs next to nothing. Elsewhere
contents are compared with a copy, which costs their reading. It knows nothing of guests.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE: Final = 4096
_USERFAULTFD: Final = 323
_USER_MODE_ONLY: Final = 1
_API, _REGISTER = 0xC018_AA3F, 0xC020_AA00
_UFFD_API: Final = 0xAA
_WRITE_PROTECT_FLAG, _SHARED, _UNPOPULATED, _ASYNCHRONOUS = 1 << 0, 1 << 12, 1 << 13, 1 << 15
_MODE_WRITE_PROTECT: Final = 2
_SCAN: Final = 0xC060_6610
_PROTECT_AND_CHECK: Final = 3
_WRITTEN: Final = 2
_PRESENT, _SWAPPED = 1 << 3, 1 << 4
_HAD: Final = _PRESENT | _SWAPPED
_RANGES: Final = 4096
_CANNOT: Final = frozenset(
    {errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOTTY, errno.EACCES, errno.ENOENT, errno.EBUSY}
)
"""Errors of a host that does not offer it, or offers it to somebody else for this memory."""


def populated_pages(memory: memoryview) -> NDArray[np.int64] | None:
    """The pages of some memory that the host has: all others are zero, and looking at them would make the host have
    them. None where the host does not tell, as of memory that is shared. What is watched counts as had."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return None
    try:
        scan = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if not _private(start, start + memory.nbytes):
        os.close(scan)
        return None
    try:
        return _pages(_Scan(scan).ranges(start, memory.nbytes, 0, 0), start)
    except OSError:
        return None
    finally:
        os.close(scan)


class _Scan:
    """The host's page tables, looked through."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: of `/proc/self/pagemap`, opened."""
        self._descriptor = descriptor
        self._ranges = (ctypes.c_uint64 * (3 * _RANGES))()
        self._found = np.frombuffer(memoryview(self._ranges).cast("B"), dtype=np.int64).reshape(-1, 3)

    def ranges(self, start: int, size: int, flags: int, wanted: int) -> NDArray[np.int64]:
        """(first, behind, what they are) of each run of pages that the host has and are all of `wanted`."""
        parts = []
        at, end = start, start + size
        while at < end:
            argument = bytearray(
                struct.pack(
                    "<12Q",
                    *(96, flags, at, end, 0, ctypes.addressof(self._ranges), _RANGES),
                    *(0, 0, wanted, _HAD, wanted or _HAD),
                )
            )
            count = fcntl.ioctl(self._descriptor, _SCAN, argument)
            parts.append(self._found[:count].copy())
            at = struct.unpack_from("<Q", argument, 32)[0]
        return np.concatenate(parts)


def _pages(ranges: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """The numbers of the pages in some runs, ascending; page 0 is at `start`."""
    first = (ranges[:, 0] - start) // PAGE
    counts = (ranges[:, 1] - ranges[:, 0]) // PAGE
    before = np.cumsum(counts) - counts
    return np.repeat(first - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def _private(start: int, end: int) -> bool:
    """Whether some of this process's addresses are of private anonymous mappings throughout."""
    try:
        with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
            for line in lines:
                span, rights, _, _, inode = line.split(maxsplit=5)[:5]
                first, behind = (int(part, 16) for part in span.split("-"))
                if first <= start < behind:
                    if rights[3] != "p" or inode != "0":
                        return False
                    if end <= behind:
                        return True
                    start = behind
    except (OSError, ValueError):
        return False
    return False


class WrittenPages(Protocol):
    """Tells which pages were written. Pages are numbered over all memories, one behind the other."""

    def take(self) -> NDArray[np.int64]:
        """The pages written since the last call (since this was made, at the first), ascending. It may name more."""
        ...

    def close(self) -> None:
        """Watch no more. Idempotent."""
        ...


class ProtectedPages:
    """Linux tells. Pages that it does not have yet are not protected: whoever touches them first gets them as ever, in
    large pages where it may, and the whole of such a page counts as written then. So memory must not be given back to
    the host meanwhile (`GuestMemory.clear`): that would not be told."""

    def __init__(self, memory: memoryview) -> None:
        """`memory` is writable, page-aligned on the host. Raises `OSError` where Linux cannot."""
        self._pin: ctypes.c_char | None = ctypes.c_char.from_buffer(memory)
        self._start, self._size = ctypes.addressof(self._pin), memory.nbytes
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.syscall(_USERFAULTFD, os.O_CLOEXEC | _USER_MODE_ONLY)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._descriptors = [descriptor]
        # Memory stays registered as long as the descriptor is open: one who forgets to close must not keep it so.
        self._end = weakref.finalize(self, _close_all, self._descriptors)
        try:
            features = _WRITE_PROTECT_FLAG | _SHARED | _UNPOPULATED | _ASYNCHRONOUS
            fcntl.ioctl(descriptor, _API, bytearray(struct.pack("<3Q", _UFFD_API, features, 0)))
            wanted = struct.pack("<4Q", self._start, self._size, _MODE_WRITE_PROTECT, 0)
            fcntl.ioctl(descriptor, _REGISTER, bytearray(wanted))
            self._map = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._descriptors.append(self._map)
            self._scan = _Scan(self._map)
            self.take()
        except BaseException:
            self.close()
            raise

    def take(self) -> NDArray[np.int64]:
        """The pages written since the last call, ascending."""
        return _pages(self._scan.ranges(self._start, self._size, _PROTECT_AND_CHECK, _WRITTEN), self._start)

    def close(self) -> None:
        """Watch no more."""
        self._end()
        self._map = -1
        self._pin = None


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.pop())


class ComparedPages:
    """Contents are compared with what they were."""

    def __init__(self, memory: memoryview) -> None:
        self._now = np.frombuffer(memory, dtype=np.uint64).reshape(-1, PAGE // 8)
        self._before = self._now.copy()

    def take(self) -> NDArray[np.int64]:
        """The pages that differ from what they were at the last call, ascending."""
        changed = np.flatnonzero((self._now != self._before).any(axis=1))
        self._before[changed] = self._now[changed]
        return changed.astype(np.int64)

    def close(self) -> None:
        """Keep no copy any more."""
        self._now = self._before = np.zeros((0, PAGE // 8), dtype=np.uint64)


class TogetherPages:
    """Memories that are watched each by its own means."""

    def __init__(self, parts: Sequence[WrittenPages], sizes: Sequence[int]) -> None:
        """`sizes`: bytes of each memory."""
        self._parts = list(parts)
        self._bases = [sum(sizes[:number]) // PAGE for number in range(len(sizes))]

    def take(self) -> NDArray[np.int64]:
        """The pages written since the last call, ascending."""
        taken = [part.take() + base for part, base in zip(self._parts, self._bases, strict=True)]
        return np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)

    def close(self) -> None:
        """Watch no more."""
        for part in self._parts:
            part.close()


def written_pages(memories: Sequence[memoryview]) -> WrittenPages:
    """Watch some memories, each by the best means that the host has: Linux watches whole pages of its own, for one at
    a time."""
    return TogetherPages([_watch(memory) for memory in memories], [memory.nbytes for memory in memories])


def _watch(memory: memoryview) -> WrittenPages:
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        try:
            return ProtectedPages(memory)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    return ComparedPages(memory)
