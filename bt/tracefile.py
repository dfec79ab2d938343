"""A trace on disk: one line an exit, there when the exit is handled.

Room: `bt`. Every line is written at once and unbuffered, so the file is complete to the last exit however the
process ends, also by a signal that cannot be caught. What a line says is the driver's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from emulator.errors import UsageError


class TraceFile:
    """Takes lines. Closed by `close`."""

    def __init__(self, path: Path, originals: Iterable[Path]) -> None:
        """Empty or make the file. Raises `UsageError` where that cannot be, or would destroy one of `originals`."""
        self._path = path
        refuse_originals(path, originals)
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            raise self._cannot(error) from None

    def write(self, line: str) -> None:
        """Write one line. Raises `UsageError` when the disk is full."""
        data = line.encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise self._cannot(error) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _cannot(self, error: OSError | ValueError) -> UsageError:
        reason = error.strerror if isinstance(error, OSError) else error
        return UsageError(f"{self._path}: cannot be written ({reason}); name a file that can")


def refuse_originals(path: Path, originals: Iterable[Path]) -> None:
    """Raise `UsageError` where `path`, an output, is one of the inputs."""
    for original in originals:
        if path.exists() and original.exists() and path.samefile(original):
            raise UsageError(f"{path}: is an input of this run, which is never overwritten; name another file")
