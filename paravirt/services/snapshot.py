"""Snapshots: a whole machine in one file, each page's contents once, compressed; what a parent has is not stored again.

Room: `paravirt/services`. Layout: magic, format, size of the header, the header (JSON: the machine, and a table of
sections), the sections, and SHA-256 of all that. A section is columns of numbers, contents of pages in frames, their
hashes, or which contents lie where. The file is written beside its place and renamed, so that there is the old one or
the new one and never a part. What is read is trusted in nothing: `BadSnapshot` says what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from paravirt.hypervisor import Hypervisor
from paravirt.services.columns import Columns, plain
from paravirt.services.machine_state import capture, memory_regions
from paravirt.services.snapshot_file import Snapshot
from paravirt.services.snapshot_form import (
    CHUNK,
    DIGEST,
    FORMAT,
    FRAME,
    HASH,
    HEAD,
    MAGIC,
    PAGE,
    STATE,
    ZERO,
    derived_key,
    machine_of,
    rows_of,
    write_whole,
)
from paravirt.services.state_columns import put_code, put_views, put_walked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paravirt.services.snapshot_form import Rows

_LEVEL: Final = 1
Section = tuple[str, list[Any], dict[str, Any]]
"""Name, contents in parts, and what the header says of it."""


@dataclass(frozen=True, slots=True)
class Written:
    """A snapshot that was written."""

    identity: str
    """SHA-256 of the file's contents, in hexadecimal, by which a child knows its parent."""
    size: int
    """Bytes of the file."""
    pages: int
    """Pages whose contents are in it."""
    borrowed: int
    """Pages whose contents are its parents'."""


class _Contents:
    """Contents of pages by hash, in order of their number; those that a parent has come apart."""

    def __init__(self, known: Mapping[bytes, Any]) -> None:
        self._known = known
        self._own: dict[bytes, int] = {}
        self._borrowed: dict[bytes, int] = {}
        self.rows: list[tuple[Rows, list[int]]] = []
        """Where the contents of own numbers are: pages of arrays."""

    def place(self, rows: Rows) -> NDArray[np.int64]:
        """The number of the contents of each page of an array: from 0 own, from -2 down borrowed, or ZERO."""
        numbers = np.full(len(rows), ZERO, dtype=np.int64)
        own, borrowed, known, sha = self._own, self._borrowed, self._known, hashlib.sha256
        data = rows.view(np.uint8).reshape(-1).data
        new: list[int] = []
        for page in _used(rows):
            key = sha(data[page * PAGE : (page + 1) * PAGE]).digest()[:HASH]
            number = own.get(key)
            if number is None:
                if key in known:
                    number = -2 - borrowed.setdefault(key, len(borrowed))
                else:
                    number = own[key] = len(own)
                    new.append(page)
            numbers[page] = number
        self.rows.append((rows, new))
        return numbers

    @property
    def own(self) -> bytes:
        """Hashes of own contents, in order."""
        return b"".join(self._own)

    @property
    def borrowed(self) -> bytes:
        """Hashes of borrowed contents, in order."""
        return b"".join(self._borrowed)


def _used(rows: Rows) -> list[int]:
    """Pages that are not zero throughout."""
    pages: list[int] = []
    for first in range(0, len(rows), CHUNK):
        pages.extend((np.flatnonzero(rows[first : first + CHUNK].any(axis=1)) + first).tolist())
    return pages


def save(
    path: Path,
    driver: Hypervisor,
    description: Mapping[str, Any],
    extra: Mapping[str, bytes | memoryview] | None = None,
    parent: Snapshot | None = None,
) -> Written:
    """Write a machine that is between two blocks. `description` is JSON for whoever resumes, `extra` columns of his.

    Raises `UsageError` for a machine that cannot be saved, `Unwritable` where the file cannot be written; then what was
    there before is there still.
    """
    state = capture(driver)
    columns = Columns(extra)
    contents = _Contents(parent.hashes if parent is not None else {})
    places: dict[str, NDArray[np.int64]] = {}
    regions = memory_regions(driver, used=True)
    places["guest"] = contents.place(rows_of(regions["guest"]))
    if state.walked is not None:
        put_walked(columns, state.walked)
    if state.derived is not None:
        if state.derived.views is not None:
            put_views(columns, state.derived.views)
        put_code(columns, state.derived.code)
        whole = state.derived.code.whole
        assert whole is not None
        for name in [name for name in regions if name != "guest"]:
            places[name] = contents.place(rows_of(regions[name]))
        places["copies"] = contents.place(rows_of(whole.copies))
        places["sources"] = contents.place(rows_of(b"".join(page.source for page in state.derived.code.pages)))
    header = {
        "machine": machine_of(driver),
        "description": dict(description),
        "state": {name: plain(getattr(state, name)) for name in STATE},
        "processor": plain(state.processor),
        "devices": plain(state.devices),
        "derived": derived_key(driver) if state.derived is not None else None,
        "parent": None if parent is None else {"id": parent.identity, "path": _relative(parent.path, path)},
    }
    count = len(contents.own) // HASH
    borrowed = len(contents.borrowed) // HASH
    parts = _compress(columns, places, contents)
    size, identity = _write(path, header, parts)
    return Written(identity, size, count, borrowed)


def _relative(path: Path, beside: Path) -> str:
    return os.path.relpath(path.resolve(), beside.resolve().parent)


def _compress(columns: Columns, places: Mapping[str, NDArray[np.int64]], contents: _Contents) -> list[Section]:
    """The sections: name, parts, and what the header says of it."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    names = list(columns.contents)
    table = b"".join(bytes(columns.contents[name]) for name in names)
    layout = {"columns": [[name, len(columns.contents[name])] for name in names], "raw": len(table)}
    sections: list[Section] = [("columns", [compressor.compress(table)], layout)]
    where = b"".join(numbers.astype("<i4").tobytes() for numbers in places.values())
    regions = {"regions": [[name, len(numbers)] for name, numbers in places.items()], "raw": len(where)}
    sections.append(("places", [compressor.compress(where)], regions))
    sections.append(("hashes", [contents.own], {"raw": len(contents.own)}))
    sections.append(("borrowed", [contents.borrowed], {"raw": len(contents.borrowed)}))
    chosen = [np.ascontiguousarray(rows[pages]) for rows, pages in contents.rows if pages]
    every = np.concatenate(chosen) if chosen else np.zeros((0, PAGE // 8), dtype=np.uint64)
    data = every.view(np.uint8).reshape(-1).data
    chunks: list[Any] = [data[at : at + FRAME * PAGE] for at in range(0, len(data), FRAME * PAGE)]
    frames: list[Any] = []
    if chunks:
        made = compressor.multi_compress_to_buffer(chunks, threads=-1)
        frames = [made[number] for number in range(len(made))]
    sections.append(("frames", frames, {"frames": [len(frame) for frame in frames]}))
    return sections


def _write(
    path: Path, header: dict[str, Any], sections: list[tuple[str, list[Any], dict[str, Any]]]
) -> tuple[int, str]:
    """Write the file beside its place, and rename it; gives its size and identity."""
    header["sections"] = [
        {"name": name, "size": sum(len(part) for part in parts), **layout} for name, parts, layout in sections
    ]
    text = json.dumps(header, separators=(",", ":")).encode()
    digest, size = hashlib.sha256(), 0

    def pieces() -> Iterator[Any]:
        yield HEAD.pack(MAGIC, FORMAT, len(text))
        yield text
        for _, parts, _ in sections:
            yield from parts

    def write(file: Any) -> None:
        nonlocal size
        for piece in pieces():
            digest.update(piece)
            file.write(piece)
            size += len(piece)
        file.write(digest.digest())

    write_whole(path, write)
    return size + DIGEST, digest.hexdigest()


__all__ = ["Snapshot", "Written", "save"]
