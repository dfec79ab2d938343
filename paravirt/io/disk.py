"""A disk on a file: sectors are read, written, discarded and flushed.

Room: `paravirt/io`. A write has happened for every later read; it is the file's own once a flush has returned, and not
before. It knows no guest and no ring.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

from emulator.errors import UsageError

SECTOR: Final = 512
_PIECE: Final = 1 << 20


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
            self._file = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{path}: cannot be a disk ({reason}); name a file that can be opened") from None
        size = os.lseek(self._file, 0, os.SEEK_END)
        if size < SECTOR or size % SECTOR:
            os.close(self._file)
            raise UsageError(f"{path}: {size} bytes are no disk; give a file of whole sectors of {SECTOR} bytes")
        self.sectors = size // SECTOR
        self.writable = writable
        self.flushes = 0
        """How often it was flushed."""

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
