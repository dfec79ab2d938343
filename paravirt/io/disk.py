"""A disk on a file: sectors are read, written, discarded and flushed.

Room: `paravirt/io`. A write has happened for every later read; it is the file's own once a flush has returned, and not
before. It knows no guest and no ring.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, Protocol, cast

from emulator.errors import UsageError

SECTOR: Final = 512
_PIECE: Final = 1 << 20
_KEEP_SIZE_AND_PUNCH: Final = 3
"""Modes of fallocate(2): a hole is made, and the file is as long as it was."""


class Disk(Protocol):
    """What block back ends need."""

    sectors: int
    writable: bool

    def read(self, sector: int, count: int) -> bytes:
        """So many sectors. Raises `OSError`."""
        ...

    def write(self, sector: int, data: bytes) -> None:
        """Whole sectors. Raises `OSError`."""
        ...

    def discard(self, sector: int, count: int) -> None:
        """Sectors are needed no more: they read as zeros. Raises `OSError`."""
        ...

    def flush(self) -> None:
        """Everything written before is kept whatever happens. Raises `OSError`."""
        ...


class FileDisk:
    """A disk whose sectors are those of a file."""

    def __init__(self, path: Path, writable: bool = True) -> None:
        """Raises `UsageError` where the file cannot be a disk."""
        try:
            self._file = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{path}: cannot be a disk ({reason}); name a file that can be opened") from None
        try:
            self.sectors = self._take(path, writable) // SECTOR
        except UsageError:
            os.close(self._file)
            raise
        self.writable = writable
        self.flushes = 0
        """How often it was flushed."""

    def _take(self, path: Path, writable: bool) -> int:
        """Bytes of the file, which nobody else may use meanwhile but to read it, too. Raises `UsageError`."""
        kind = os.fstat(self._file).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            what = "a directory" if stat.S_ISDIR(kind) else "no file of sectors"
            raise UsageError(f"{path}: is {what}, and no disk; name a file")
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise UsageError(f"{path}: cannot be locked ({error.strerror}); copy it to where it can") from None
            how = "" if writable else " to write it"
            raise UsageError(
                f"{path}: is in use as another disk{how}; end that run, or give a copy, or read-only in both"
            ) from None
        size = os.lseek(self._file, 0, os.SEEK_END)
        if size < SECTOR or size % SECTOR:
            raise UsageError(f"{path}: {size} bytes are no disk; give a file of whole sectors of {SECTOR} bytes")
        return size

    def read(self, sector: int, count: int) -> bytes:
        """As `Disk.read`."""
        self._check(sector, count)
        data = os.pread(self._file, count * SECTOR, sector * SECTOR)
        if len(data) != count * SECTOR:
            raise OSError("the file has become shorter")
        return data

    def write(self, sector: int, data: bytes) -> None:
        """As `Disk.write`."""
        self._check(sector, len(data) // SECTOR)
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], sector * SECTOR + done)

    def discard(self, sector: int, count: int) -> None:
        """As `Disk.discard`."""
        self._check(sector, count)
        if punch(self._file, sector * SECTOR, count * SECTOR):
            return
        start, end = sector * SECTOR, (sector + count) * SECTOR
        while start < end:
            start += os.pwrite(self._file, bytes(min(_PIECE, end - start)), start)

    def flush(self) -> None:
        """As `Disk.flush`."""
        os.fsync(self._file)
        self.flushes += 1

    def close(self) -> None:
        """Flush, and let the file go."""
        if self.writable:
            os.fsync(self._file)
        os.close(self._file)

    def _check(self, sector: int, count: int) -> None:
        if sector < 0 or count < 0 or sector + count > self.sectors:
            raise OSError("beyond the disk's end")


@cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's call, where there is one: Python's own has no modes."""
    try:
        call = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    call.restype = ctypes.c_int
    return cast("Callable[[int, int, int, int], int]", call)


def punch(file: int, start: int, size: int) -> bool:
    """Make a hole in a file, which then takes no room and reads as zeros; False where its file system has none."""
    call = _fallocate()
    return call is not None and size > 0 and call(file, _KEEP_SIZE_AND_PUNCH, start, size) == 0
