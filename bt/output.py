"""Writing outputs: beside their place, then renamed, so that they are whole or not there.

Room: `bt`. An original is never replaced, and what cannot be written leaves nothing behind.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emulator.errors import Unwritable, UsageError


def write(path: Path, data: bytes, source: Path) -> None:
    """Write an output file made from `source`. Raises `UsageError` where it would replace that, else `Unwritable`."""
    write_all([(path, data)], source)


def write_all(files: Sequence[tuple[Path, bytes]], source: Path | None) -> None:
    """Write several outputs, all of them or none. Raises `UsageError` where one would replace `source` or another."""
    named: set[Path] = set()
    for path, _ in files:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path}: is the original, which is never overwritten; name another output")
        if path.absolute() in named:
            raise UsageError(f"{path}: is named for two outputs; name another file for one of them")
        named.add(path.absolute())
    beside: list[tuple[str, Path]] = []
    try:
        for path, data in files:
            beside.append((_write_beside(path, data), path))
        while beside:
            name, path = beside[0]
            _rename(name, path)
            beside.pop(0)
    finally:
        for name, _ in beside:
            Path(name).unlink(missing_ok=True)


def _write_beside(path: Path, data: bytes) -> str:
    """The name of a new file beside `path` that holds `data`. Raises `Unwritable`."""
    try:
        if path.is_dir():
            raise Unwritable(f"{path}: is a directory; name a file")
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None
    return name


def _rename(name: str, path: Path) -> None:
    try:
        os.replace(name, path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: Exception) -> Unwritable:
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return Unwritable(f"{path}: cannot be written ({reason}); name a file that can, or make room")
