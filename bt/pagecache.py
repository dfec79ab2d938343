"""What scanning found, kept on disk by content, so that a second run scans nothing.

Room: `bt`. One append-only file a format version and table version, under XDG_CACHE_HOME/retrap/pages; each record
carries its length and checksum, and reading stops at the first that does not fit, so a crash or two writers at once
cost at most a scan. Swept images lie beside it, one file each; so do whole translations (`translations`).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bt.pagescan import PAGE, Found, PageScan
from bt.tactics.registry import tactics_of

if TYPE_CHECKING:
    from bt.textmap import Stretch
    from bt.translations import Translations

FORMAT: Final = 5
"""Raised at every change of a record's layout or of what a scan means."""
KEY_SIZE: Final = 16
_RECORD: Final = struct.Struct("<II")
_SITE: Final = struct.Struct("<HBxH")
_MAXIMUM_RECORD: Final = 1 << 16
_MAXIMUM_TEXT: Final = 1 << 28
_MAXIMUM_NEW: Final = 8192
"""Records that one run keeps at most: a guest that makes code without end must not fill memory and disk."""
_MAXIMUM_FILE: Final = 16 << 20
"""Size at which a page file is begun anew, bytes."""


def table_version(isa: str = "x86-64") -> str:
    """Changes with an instruction set's table and decoder. Raises `UsageError` for one without tactics."""
    return hashlib.sha256(f"{FORMAT} {isa} {tactics_of(isa).version()}".encode()).hexdigest()[:16]


def default_directory() -> Path:
    """Where the user's caches are (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return base / "retrap" / "pages"


class PageCache:
    """Scans by key, and swept images by digest, of one instruction set.

    A directory that cannot be used costs nothing but the scans.
    """

    def __init__(self, directory: Path | None = None, isa: str = "x86-64") -> None:
        self._directory = directory if directory is not None else default_directory()
        self._isa = isa
        self._version = f"{isa}-{table_version(isa)}"
        self._tactics = tactics_of(isa)
        self._path = self._directory / f"{self._version}.pages"
        self._new: list[bytes] = []

    @cached_property
    def _known(self) -> dict[bytes, bytes | None]:
        """What `put` was given; and what the file has, None before it is asked for: most of it never is."""
        return dict.fromkeys(self._places)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes) -> PageScan | None:
        """The scan kept under `key` (KEY_SIZE bytes), or None."""
        record = self._known.get(key)
        if record is None and key in self._known:
            record = self._known[key] = self._record(key)
        return unpack_scan(record) if record is not None and self._sound(record) else None

    def _sound(self, record: bytes) -> bool:
        """Whether a record can be unpacked into something that makes sense."""
        sites = len(record) - PAGE // 8 - 1
        longest = self._tactics.longest
        if sites < 0 or sites % _SITE.size or record[PAGE // 8] > longest:
            return False
        return all(
            offset < PAGE and 0 < length <= longest and self._is_code(code)
            for offset, length, code in _SITE.iter_unpack(record[PAGE // 8 + 1 :])
        )

    def _is_code(self, code: int) -> bool:
        try:
            self._tactics.row_of(code)
        except (KeyError, IndexError):
            return False
        return True

    def put(self, key: bytes, scan: PageScan) -> None:
        """Keep a scan; it reaches the disk with `flush`."""
        if not self._known.get(key) and self.get(key) is None and len(self._new) < _MAXIMUM_NEW:
            record = pack_scan(scan)
            self._known[key] = record
            body = key + record
            self._new.append(_RECORD.pack(len(body), zlib.crc32(body)) + body)

    def flush(self) -> None:
        """Append what is new, in one write."""
        if not self._new:
            return
        data, self._new = b"".join(self._new), []
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._forget_other_versions()
            if self._path.exists() and self._path.stat().st_size + len(data) > _MAXIMUM_FILE:
                self._path.unlink()
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, data)
            finally:
                os.close(file)
        except OSError:
            return  # a cache that cannot be written is no error

    def _forget_other_versions(self) -> None:
        """Remove what nobody will read again. Raises OSError."""
        for path in self._directory.iterdir():
            other = path.name.startswith(f"{self._isa}-") and not path.name.startswith(self._version)
            if path.suffix in (".pages", ".text", ".notes") and other:
                path.unlink(missing_ok=True)

    def load_text(self, digest: bytes) -> tuple[Stretch, ...] | None:
        """The swept image kept under `digest`, or None."""
        try:
            data = self._text_path(digest).read_bytes()
        except OSError:
            return None
        if len(data) < 4 or len(data) > _MAXIMUM_TEXT or zlib.crc32(data[4:]) != struct.unpack_from("<I", data)[0]:
            return None
        return _unpack_text(data[4:])

    def store_text(self, digest: bytes, stretches: tuple[Stretch, ...]) -> None:
        """Keep a swept image: written beside, then renamed."""
        parts = [struct.pack("<I", len(stretches))]
        for stretch in stretches:
            sizes = (len(stretch.begins), len(stretch.sites), len(stretch.invalid))
            parts.append(struct.pack("<QQQQ", stretch.start, *sizes))
            parts += [bits.tobytes() for bits in (stretch.begins, stretch.targets, stretch.taken)]
            parts += [table.astype("<i8").tobytes() for table in (stretch.sites, stretch.invalid)]
        body = b"".join(parts)
        write_beside(self._text_path(digest), struct.pack("<I", zlib.crc32(body)) + body)

    def load_notes(self, digest: str) -> Any:
        """The plain values kept under `digest` (what `json` gives), or None."""
        try:
            data = self._notes_path(digest).read_bytes()
            return json.loads(data[4:]) if zlib.crc32(data[4:]) == struct.unpack_from("<I", data)[0] else None
        except (OSError, ValueError, struct.error):
            return None

    def store_notes(self, digest: str, notes: Any) -> None:
        """Keep plain values: written beside, then renamed."""
        body = json.dumps(notes, separators=(",", ":")).encode()
        write_beside(self._notes_path(digest), struct.pack("<I", zlib.crc32(body)) + body)

    def translations(self, context: bytes, region: tuple[int, int]) -> Translations:
        """Whole page translations of one context (`bt.translations`)."""
        from bt.translations import Translations

        return Translations(self._directory, f"{self._isa}-", context, region)

    def _notes_path(self, digest: str) -> Path:
        return self._directory / f"{self._version}-{digest[:32]}.notes"

    def _text_path(self, digest: bytes) -> Path:
        return self._directory / f"{self._version}-{digest.hex()[:32]}.text"

    @cached_property
    def _data(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError:
            return b""

    @cached_property
    def _places(self) -> dict[bytes, int]:
        """Where the file's records begin. What is behind them is cut off, so that appending goes on there."""
        data, head = self._data, _RECORD.size
        places, at = {}, 0
        while at + head <= len(data):
            size, _ = _RECORD.unpack_from(data, at)
            end = at + head + size
            if not KEY_SIZE < size <= _MAXIMUM_RECORD or end > len(data):
                break
            places[data[at + head : at + head + KEY_SIZE]] = at
            at = end
        if at < len(data):
            _attempt(lambda: os.truncate(self._path, at))
        return places

    def _record(self, key: bytes) -> bytes:
        """What the file has under a key, which is there; empty where it is damaged."""
        at = self._places[key]
        size, checksum = _RECORD.unpack_from(self._data, at)
        body = self._data[at + _RECORD.size : at + _RECORD.size + size]
        return body[KEY_SIZE:] if zlib.crc32(body) == checksum else b""


def write_beside(path: Path, data: bytes) -> None:
    """Write a cache file so that readers see all of it or nothing; failure is no error."""

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise

    _attempt(write)


def _attempt(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:
        return


def pack_scan(scan: PageScan) -> bytes:
    """A scan as bytes."""
    sites = b"".join(_SITE.pack(*site) for site in scan.sites)
    return scan.boundaries.to_bytes(PAGE // 8, "little") + bytes((scan.overflow,)) + sites


def unpack_scan(record: bytes) -> PageScan:
    """The scan from `pack_scan`'s bytes. Raises struct.error or IndexError for others."""
    sites = tuple(Found(*one) for one in _SITE.iter_unpack(record[PAGE // 8 + 1 :]))
    return PageScan(sites, int.from_bytes(record[: PAGE // 8], "little"), record[PAGE // 8])


def _unpack_text(data: bytes) -> tuple[Stretch, ...] | None:
    from bt.textmap import Stretch

    if len(data) < 4:
        return None
    (count,) = struct.unpack_from("<I", data)
    stretches, at = [], 4
    for _ in range(count):
        if at + 32 > len(data):
            return None
        start, size, sites, invalid = struct.unpack_from("<QQQQ", data, at)
        at += 32
        if at + 3 * size + 24 * sites + 8 * invalid > len(data):
            return None
        begins, targets, taken = (np.frombuffer(data, np.uint8, size, at + part * size) for part in range(3))
        table = np.frombuffer(data, "<i8", 3 * sites, at + 3 * size).reshape(-1, 3)
        at += 3 * size + 24 * sites
        stretches.append(Stretch(start, begins, targets, taken, table, np.frombuffer(data, "<i8", invalid, at)))
        at += 8 * invalid
    return tuple(stretches) if at == len(data) else None
