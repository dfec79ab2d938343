"""What is verified: an image with what is known of it, from a file, a rewritten file or a fetched guest.

Room: `bt/verify`. A guest that is described by a `manifest.toml` beside or above it, as the samples are, or by one that
is named, brings its volatile memory, its memory size and how it may end; without any, an image's own section
`.volatile` is volatile memory.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt.session import MEMORY
from emulator.errors import BadImage, UsageError, brief

if TYPE_CHECKING:
    from bt.image import Image
    from bt.plan import Plan

MANIFEST = "manifest.toml"
_VOLATILE = ".volatile"
_LEVELS = 3
"""Directories above an image in which its manifest is looked for."""


@dataclass(frozen=True, slots=True)
class Guest:
    """An image and what is known of it."""

    name: str
    image: Image
    """The original: of a rewritten file, what it reverts to."""
    plan: Plan | None = None
    """What a rewritten file does."""
    initrd: Path | None = None
    command_line: str = ""
    memory: int = MEMORY
    """Bytes that it is to have by default."""
    volatile: tuple[tuple[int, int], ...] = ()
    """Guest-physical (address, size) of memory that depends on when interrupts come."""
    outcomes: tuple[str, ...] = ()
    """How it may end; empty where nothing says so."""
    exit_calls: frozenset[int] = frozenset()
    """System calls by which a process ends."""
    waiting_calls: frozenset[int] = frozenset()
    """System calls by which a process lets others run while it waits."""
    described: bool = False
    """A manifest says all of this."""


def find(name: str, physical_delta: int = 0, kernel: Path | None = None, manifest: Path | None = None) -> Guest:
    """The guest called `name`: a file, or the name of a guest that was fetched, with another `kernel` if one is given.
    `manifest`: one that describes it, wherever that lies.

    Raises `UsageError` where it is neither, `BadImage` for a file that is no guest, `Unavailable` for a guest that is
    not in the cache.
    """
    from bt.image import load

    if os.path.lexists(name) or os.sep in name:
        if kernel is not None:
            raise UsageError(f"--kernel takes the place of a fetched guest's kernel, and {name} is a file; give one")
        return of(load(name), physical_delta, manifest)
    from bt import guests

    if name not in guests.RECIPES:
        raise UsageError(
            f"{name}: is no file and no guest; name a kernel's file, or one of {', '.join(guests.RECIPES)}"
        )
    fetched = guests.find(name)
    if kernel is None:
        return Guest(name, load(fetched.kernel), None, fetched.initrd, fetched.command_line)
    return replace(of(load(kernel), physical_delta, manifest), initrd=fetched.initrd, command_line=fetched.command_line)


def of(image: Image, physical_delta: int = 0, manifest: Path | None = None) -> Guest:
    """The guest that an image is, with what a `manifest`, or one near it, says. Raises `UsageError` where the named one
    does not describe it."""
    from bt.rewrite import original

    pristine, rewritten = original(image)
    name = Path(image.path).name
    plan = rewritten.plan if rewritten is not None else None
    digest = hashlib.sha256(bytes(pristine.elf) + bytes(pristine.appended)).hexdigest()
    row = _described(Path(image.path), digest) if manifest is None else _row_in(manifest, digest)
    if row is None and manifest is not None:
        raise UsageError(f"{manifest}: describes no image that hashes to {digest[:16]}..., as {image.path} does")
    if row is None:
        own = {"section": _VOLATILE} if pristine.section(_VOLATILE) is not None else None
        return Guest(name, pristine, plan, volatile=_volatile(pristine, own, physical_delta))
    return Guest(
        name,
        pristine,
        plan,
        memory=int(row.get("memory", MEMORY >> 20)) << 20,
        volatile=_volatile(pristine, row.get("volatile"), physical_delta),
        outcomes=tuple(map(str, row.get("outcome", ()))),
        exit_calls=frozenset(map(int, row.get("exit_calls", ()))),
        waiting_calls=frozenset(map(int, row.get("waiting_calls", ()))),
        described=True,
    )


def _described(path: Path, digest: str) -> dict[str, Any] | None:
    """The manifest's row for an image, found by its hash; None where there is no manifest or no row."""
    for directory in list(path.resolve().parents)[:_LEVELS]:
        file = directory / MANIFEST
        row = _row_in(file, digest) if file.is_file() else None
        if row is not None:
            return row
    return None


def _row_in(file: Path, digest: str) -> dict[str, Any] | None:
    """The same of one manifest, and those that it names."""
    manifest = _read(file)
    others = manifest.get("also", ())
    for one in (manifest, *(_read(file.parent / str(other)) for other in others)):
        row = _row(one, digest)
        if row is not None:
            return row
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else brief(error)
        raise UsageError(f"{file}: cannot be read as a manifest ({reason}); mend it, or move the image") from None


def _row(manifest: dict[str, Any], digest: str) -> dict[str, Any] | None:
    """A guest's row, or one of an architecture, of either byte order, for which the manifest's own fields hold, too."""
    for key, shared in (("guest", {}), ("architecture", manifest), ("big_endian", manifest)):
        rows = manifest.get(key, [])
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("sha256") == digest:
                return {**shared, **row}
    return None


def _volatile(image: Image, row: object, physical_delta: int) -> tuple[tuple[int, int], ...]:
    """Guest-physical range of the section that a manifest names."""
    if not isinstance(row, dict):
        return ()
    section = image.section(str(row.get("section", "")))
    segment = image.segment_at(section.vaddr) if section is not None else None
    if section is None or segment is None:
        raise BadImage(f"{image.path}: has no section {row.get('section')!r}, which its manifest calls volatile")
    return ((section.vaddr - segment.vaddr + segment.paddr + physical_delta, section.size),)
