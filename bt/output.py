"""Writing outputs: beside their place, then renamed, so that they are whole or not there.

Room: `bt`. An original is never replaced, and what cannot be written leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from emulator.errors import Unwritable, UsageError

_DESCRIPTORS = ("/dev/std", "/dev/fd/", "/proc/")


def check(paths: Iterable[Path | None], originals: Iterable[Path | None] = ()) -> None:
    """Refuse before the work what could not be written after it; what is None was not asked for.

    Raises `UsageError` as `check_names` does, else `Unwritable`.
    """
    wanted = [path for path in paths if path is not None]
    check_names(wanted, originals)
    for path in wanted:
        place, needed = (path, os.W_OK) if _is_special(path) else (path.parent, os.W_OK | os.X_OK)
        try:
            with contextlib.suppress(FileNotFoundError):
                path.lstat()
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a directory")
            if not os.access(place, needed):
                place.stat()
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (OSError, ValueError) as error:
            raise unwritable(path, error) from None


def check_names(paths: Iterable[Path | None], originals: Iterable[Path | None] = ()) -> None:
    """Raise `UsageError` where an output would replace one of `originals`, or another output."""
    named: set[Path] = set()
    inputs = [original for original in originals if original is not None and os.path.exists(original)]
    for path in paths:
        if path is None or _is_special(path):
            continue
        if os.path.exists(path) and any(path.samefile(original) for original in inputs):
            raise UsageError(f"{path}: is an input of this command, which is never overwritten; name another file")
        if path.absolute() in named:
            raise UsageError(f"{path}: is named for two outputs; name another file for one of them")
        named.add(path.absolute())


def write(path: Path, data: bytes, source: Path | None = None) -> None:
    """Write an output file made from `source`. Raises `UsageError` where it would replace that, else `Unwritable`."""
    write_all([(path, data)], source)


def write_all(files: Sequence[tuple[Path, bytes]], source: Path | None) -> None:
    """Write several outputs, all of them or none. Raises `UsageError` where one would replace `source` or another.

    A pipe or a device is written to: nothing is renamed onto it.
    """
    check([path for path, _ in files], [source])
    beside: list[tuple[str, Path]] = []
    try:
        for path, data in files:
            if not _is_special(path):
                beside.append((_write_beside(path, data), path))
        for path, data in files:
            if _is_special(path):
                _write_into(path, data)
        while beside:
            name, path = beside[0]
            _rename(name, path)
            beside.pop(0)
    finally:
        for name, _ in beside:
            Path(name).unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Whether it is there and nothing can be renamed onto it: a pipe, a device, or what a descriptor is open on."""
    opened = str(path.absolute()).startswith(_DESCRIPTORS)
    return os.path.exists(path) and not os.path.isdir(path) and (opened or not os.path.isfile(path))


def _write_into(path: Path, data: bytes) -> None:
    try:
        with path.open("ab") as file:  # what is printed to the same place stays
            file.write(data)
    except OSError as error:
        raise unwritable(path, error) from None


def _write_beside(path: Path, data: bytes) -> str:
    """The name of a new file beside `path` that holds `data`. Raises `Unwritable`."""
    try:
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
        raise unwritable(path, error) from None
    return name


def _rename(name: str, path: Path) -> None:
    try:
        os.replace(name, path)
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: Exception) -> Unwritable:
    """The error to raise where an output could not be written."""
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return Unwritable(f"{path}: cannot be written ({reason}); name a file that can, or make room")
