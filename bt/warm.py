"""Kept snapshots of booted kernels: `retrap run --warm` goes on from one instead of booting.

Room: `bt`. A snapshot is kept by everything that it depends on: image, initial file system, options, and the sources
that made it. Of too many, the ones not used for longest go. A kept file that is damaged is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from emulator.errors import BadSnapshot, UsageError
from paravirt.services.snapshot_file import Snapshot

MOST: Final = 8
"""Snapshots kept."""
_PACKAGES: Final = ("bt", "paravirt", "emulator")


def directory() -> Path:
    """Where they are kept: `$XDG_CACHE_HOME/retrap/warm`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "retrap" / "warm"


def place_of(kernel: Path, initrd: Path | None, options: Mapping[str, Any]) -> Path:
    """Where the snapshot of such a guest is kept. Raises `OSError` where kernel or initrd cannot be read."""
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    for file in (kernel, initrd):
        if file is not None:
            with file.open("rb") as contents:
                digest.update(hashlib.file_digest(contents, "sha256").digest())
        digest.update(b"|")
    digest.update(_version())
    return directory() / f"{digest.hexdigest()[:32]}.snapshot"


def _version() -> bytes:
    """Changes when any source does."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for folder, _, names in sorted(os.walk(root / package)):
            for name in sorted(names):
                if name.endswith(".py"):
                    status = os.stat(os.path.join(folder, name))
                    digest.update(f"{folder}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.digest()


def find(place: Path) -> Snapshot | None:
    """The kept snapshot, where there is one that can be used; one that cannot is removed."""
    if not place.exists():
        return None
    try:
        snapshot = Snapshot(place)
    except (BadSnapshot, UsageError):
        forget(place)
        return None
    with contextlib.suppress(OSError):
        os.utime(place)
    return snapshot


def forget(place: Path) -> None:
    """Remove a kept snapshot."""
    with contextlib.suppress(OSError):
        place.unlink()


def make_room(place: Path) -> None:
    """There will be one more: make the directory, and remove what has not been used for longest."""
    place.parent.mkdir(parents=True, exist_ok=True)
    kept = sorted(place.parent.glob("*.snapshot"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in kept[MOST - 1 :]:
        if old != place:
            forget(old)
