"""Whole page translations kept on disk: patched bytes, fixups, and on what each of them depends.

Room: `bt`, under `loadtime`. A file holds the translations of one image, place, mode and engine; its name is the hash
of these and of the sources that translate, so a change of a tactic begins another. Records are found by content and
checked by length and checksum when they are used; a file that is damaged or another's costs a translation, never more.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt.pagecache import write_beside
from bt.pagescan import PAGE
from emulator.isa.operation import Operation
from paravirt.translator import Fixup, Hypercall

if TYPE_CHECKING:
    from bt.image import Image

FORMAT: Final = 1
"""Raised at every change of a record's layout."""
KEY_SIZE: Final = 16
MOST_NEW: Final = 8192
"""Translations that one run keeps at most: a guest may make code without end."""
MOST_BYTES: Final = 48 << 20
"""Size of a file at most; of more, what the last run did not use is left out first."""
MOST_KEPT: Final = 256 << 20
"""Size of all files together; of more, the ones that were not used longest go."""
NEVER: Final = (1 << 64) - 1
"""Of a fixup's place: nobody has looked for it yet."""
NOWHERE: Final = 0
"""There is none."""
SUFFIX: Final = ".translations"
Fixups = Mapping[tuple[int, bytes], int | None]
"""By the address and the bytes of its window, where each fixup lies; None where there was no place."""
_MAGIC: Final = b"RETRAPT\x01"
_HEADER: Final = struct.Struct("<8s16sII")
_INDEX: Final = struct.Struct("<16sQII")
_BODY: Final = struct.Struct("<BxHHHH2xQQ16s")
_PLACE: Final = struct.Struct("<HHQQ")
_FIXUP: Final = struct.Struct("<QQHH")
_CALL: Final = struct.Struct("<QQQHH")
_BITS: Final = PAGE // 8
_SPECIAL, _HISTORICAL = 1, 2
_SOURCES: Final = ("bt", "bt/tactics", "bt/knowledge", "bt/image", "emulator/isa", "paravirt")
"""Folders whose modules decide what a translation is, without (the first and the last) the folders in them."""


@dataclass(frozen=True, slots=True)
class Place:
    """A fixup that was looked for: its window, and where it lay before and after (or `NEVER`, `NOWHERE`)."""

    start: int
    """Offset of the window in the page."""
    end: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A translation, and what must be as it was for it to be right again."""

    code: bytes
    """PAGE bytes."""
    enterable: int
    """Mask of the offsets at which it may be entered."""
    special: bool
    """It was made for the one entry only."""
    sites: int
    scan: bytes
    """Of the page, before its entry was considered, packed (`pagecache.pack_scan`): it is hardly ever asked for."""
    places: tuple[Place, ...]
    before: int
    """Where the next fixup would lie before the translation, which counts where one was made ..."""
    after: int
    """... and after it."""
    fixups: tuple[Fixup, ...]
    """Made by it."""
    history: bytes = b""
    """Hash of what was known from earlier translations, or nothing where that did not matter."""

    @property
    def makes(self) -> bool:
        """Whether it looked for places that nobody had looked for."""
        return any(place.before == NEVER for place in self.places)


def revision() -> str:
    """Changes with the sources that translate (by name, size and time of change); "" where they cannot be seen."""
    root = Path(__file__).parent.parent
    seen = []
    try:
        for folder in _SOURCES:
            for path, names, files in os.walk(root / folder):
                if folder in ("bt", "paravirt"):
                    names.clear()
                for name in sorted(files):
                    if name.endswith(".py"):
                        status = os.stat(os.path.join(path, name))
                        seen.append(f"{path[len(str(root)) :]}/{name} {status.st_size} {status.st_mtime_ns}")
    except OSError:
        return ""
    return hashlib.blake2b("\n".join(sorted(seen)).encode(), digest_size=16).hexdigest() if seen else ""


def context_of(
    image: Image,
    mode: str,
    delta: int,
    trapped: Collection[Operation],
    ready: Iterable[Fixup],
    inlined: Collection[Operation] = (),
) -> bytes:
    """What all translations of a run have in common, 16 bytes; nothing where that cannot be told.

    `ready` are the fixups that were there from the beginning; `trapped` and `inlined` are `LoadTimeTranslator`'s.
    """
    sources = revision()
    if not sources:
        return b""
    from bt.tactics.registry import tactics_of

    version = tactics_of(image.isa.name, image.byte_order).version()
    shape = [(segment.vaddr, segment.paddr, segment.memory_size, len(segment.data)) for segment in image.segments]
    names = [sorted(operation.name for operation in operations) for operations in (trapped, inlined)]
    made = [(fixup.address, fixup.code) for fixup in ready]
    parts = (FORMAT, sources, version, image.isa.name, image.byte_order, image.sha256, shape, mode, delta, names, made)
    return hashlib.blake2b(repr(parts).encode(), digest_size=KEY_SIZE).digest()


class Translations:
    """The translations of one context, in one file of a directory."""

    def __init__(self, directory: Path, prefix: str, context: bytes, region: tuple[int, int]) -> None:
        """`context` is what `context_of` gave; no fixup outside `region` (start, end) is believed."""
        self._directory = directory
        self._path = directory / f"{prefix}{context.hex()}{SUFFIX}"
        self._context = context
        self._region = region
        self._index: dict[bytes, list[tuple[int, int, int]]] = {}
        self._file = -1
        self._used: dict[tuple[bytes, int], None] = {}
        self._new: dict[bytes, list[bytes]] = {}
        self._count = 0
        self._open()

    def find(self, key: bytes) -> Iterable[Kept]:
        """The translations kept on disk under a key (KEY_SIZE bytes), one by one."""
        for place in self._index.get(key, ()):
            body = self._body(place)
            kept = self._unpack(body) if body is not None else None
            if kept is not None:
                self._used[key, place[0]] = None
                yield kept

    def put(self, key: bytes, kept: Kept) -> None:
        """Keep a translation; it reaches the disk with `close`."""
        if self._count < MOST_NEW:
            self._count += 1
            self._new.setdefault(key, []).append(_pack(kept))

    def close(self) -> None:
        """Write what is new, with what was there. Idempotent."""
        if self._new:
            self._write()
        self._new = {}
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._index = {}

    def _open(self) -> None:
        """Read the index; nothing is there where anything about it is wrong."""
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            size = os.fstat(self._file).st_size
            magic, context, count, checksum = _HEADER.unpack(os.pread(self._file, _HEADER.size, 0))
            index = os.pread(self._file, count * _INDEX.size, _HEADER.size) if size <= 2 * MOST_BYTES else b""
        except (OSError, struct.error):
            return
        whole = len(index) == count * _INDEX.size and zlib.crc32(index) == checksum
        if magic != _MAGIC or context != self._context or not whole:
            return
        for key, *place in _INDEX.iter_unpack(index):
            at, length, check = place
            if at + length <= size:
                self._index.setdefault(key, []).append((at, length, check))
        try:
            os.utime(self._path)  # the files that were not used longest are the first to go
        except OSError:
            return

    def _body(self, place: tuple[int, int, int]) -> bytes | None:
        at, length, check = place
        try:
            body = os.pread(self._file, length, at)
        except OSError:
            return None
        return body if len(body) == length and zlib.crc32(body) == check else None

    def _unpack(self, body: bytes) -> Kept | None:
        """A record, or None where it makes no sense."""
        try:
            kept = _unpack(body)
        except (struct.error, ValueError, IndexError):
            return None
        start, end = self._region
        sound = all(start <= fixup.address <= end - len(fixup.code) for fixup in kept.fixups)
        return kept if sound and len(kept.code) == PAGE else None

    def _write(self) -> None:
        records = [(key, body) for key, bodies in self._new.items() for body in bodies]
        left = MOST_BYTES - sum(len(body) for _, body in records)
        places = [(key, place) for key, places in self._index.items() for place in places]
        places.sort(key=lambda one: (one[0], one[1][0]) not in self._used)  # stable: what was used comes first
        for key, place in places:
            body = self._body(place)
            if body is not None and left >= len(body):
                left -= len(body)
                records.append((key, body))
        index, at = [], _HEADER.size + len(records) * _INDEX.size
        for key, body in records:
            index.append(_INDEX.pack(key, at, len(body), zlib.crc32(body)))
            at += len(body)
        table = b"".join(index)
        header = _HEADER.pack(_MAGIC, self._context, len(records), zlib.crc32(table))
        write_beside(self._path, b"".join((header, table, *(body for _, body in records))))
        self._make_room()

    def _make_room(self) -> None:
        """Remove the files that were not used longest, until all together are small enough."""
        try:
            files = [(path, path.stat()) for path in self._directory.iterdir() if path.suffix == SUFFIX]
            files.sort(key=lambda one: (-one[1].st_mtime_ns, one[0].name))
            total = 0
            for path, status in files:
                total += status.st_size
                if total > MOST_KEPT and path != self._path:
                    path.unlink(missing_ok=True)
        except OSError:
            return


def _pack(kept: Kept) -> bytes:
    flags = (_SPECIAL if kept.special else 0) | (_HISTORICAL if kept.history else 0)
    sizes = len(kept.scan), len(kept.places), len(kept.fixups)
    parts = [_BODY.pack(flags, kept.sites, *sizes, kept.before, kept.after, kept.history)]
    parts += [kept.enterable.to_bytes(_BITS, "little"), kept.code, kept.scan]
    parts += [_PLACE.pack(place.start, place.end, place.before, place.after) for place in kept.places]
    for fixup in kept.fixups:
        parts.append(_FIXUP.pack(fixup.address, fixup.site, len(fixup.code), len(fixup.hypercalls)) + fixup.code)
        for at, call in fixup.hypercalls.items():
            numbers = at, call.site, call.resume, call.operation.value, len(call.instruction)
            parts.append(_CALL.pack(*numbers) + call.instruction)
    return b"".join(parts)


def _unpack(body: bytes) -> Kept:
    """Raises struct.error, ValueError or IndexError for what is no record."""
    flags, sites, scan_size, places, fixups, before, after, history = _BODY.unpack_from(body)
    at = _BODY.size
    enterable = int.from_bytes(body[at : at + _BITS], "little")
    at += _BITS
    code = body[at : at + PAGE]
    at += PAGE
    scan = body[at : at + scan_size]
    at += scan_size
    found = [Place(*_PLACE.unpack_from(body, at + number * _PLACE.size)) for number in range(places)]
    at += places * _PLACE.size
    made: Sequence[Fixup] = ()
    if fixups:
        made, at = _unpack_fixups(body, at, fixups)
    if at != len(body):
        raise ValueError(f"a record of {len(body)} bytes ends at {at}")
    special, historical = bool(flags & _SPECIAL), bool(flags & _HISTORICAL)
    kept_history = history if historical else b""
    return Kept(code, enterable, special, sites, scan, tuple(found), before, after, tuple(made), kept_history)


def _unpack_fixups(body: bytes, at: int, count: int) -> tuple[list[Fixup], int]:
    """`count` fixups from offset `at` on, and the offset behind them."""
    made = []
    for _ in range(count):
        address, site, size, calls = _FIXUP.unpack_from(body, at)
        at += _FIXUP.size
        code = body[at : at + size]
        at += size
        hypercalls: dict[int, Hypercall] = {}
        for _ in range(calls):
            where, of, resume, operation, length = _CALL.unpack_from(body, at)
            at += _CALL.size
            hypercalls[where] = Hypercall(of, Operation(operation), resume, body[at : at + length])
            at += length
        made.append(Fixup(address, code, site, hypercalls))
    return made, at


def holds(kept: Kept, address: int, whole: bytes, fixups: Fixups, following: int) -> bool:
    """Whether what a translation took for granted is so: its fixups' places, and the next one, `following`."""
    if kept.makes and kept.before != following:
        return False
    return all(state_of(fixups, (address + p.start, whole[p.start : p.end])) == p.before for p in kept.places)


def state_of(fixups: Fixups, key: tuple[int, bytes]) -> int:
    """What is known of a fixup: its address, `NOWHERE` or `NEVER`."""
    place = fixups.get(key, NEVER)
    return NOWHERE if place is None else place
