"""Decompressing a kernel's payload, bounded, with a disk cache beside.

Room: `bt/image`. Every compression that Linux's arch/x86/boot/compressed/Makefile offers is read, but LZO, for
which no library is at hand. Except with gzip the build appends the unpacked size (4 bytes) behind the stream;
it is checked. A cache entry is written beside and renamed, carries its contents' hash and is remade when that fails.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bt.image.elf import MAGIC as ELF_MAGIC
from bt.image.elf import MAXIMUM_SIZE
from emulator.errors import BadImage

_CACHE_MAGIC = b"retrap payload 1\n"
_CACHE_HEADER = struct.Struct("<17s15sQ32s")
_CACHE_DATA = 4096  # contents begin at a page, so that a mapping of them is aligned
_CACHE_ENTRIES = 8
"""Kernels kept, tens of megabytes each."""
_DECODER_MEMORY = 512 << 20
_LZ4_BLOCK = 8 << 20


class _Malformed(Exception):
    """The stream does not decode."""


class _TooLarge(Exception):
    """The stream decodes to more than the limit."""


@dataclass(frozen=True, slots=True)
class _Decoded:
    contents: bytes
    rest: bytes | memoryview
    """What follows the stream inside the payload."""


def _bounded(contents: bytes, limit: int, finished: bool) -> bytes:
    if len(contents) > limit:
        raise _TooLarge
    if not finished:
        raise _Malformed("the stream ends early")
    return contents


def _gzip(data: memoryview, limit: int) -> _Decoded:
    import zlib

    decoder = zlib.decompressobj(31)
    contents = decoder.decompress(data, limit + 1)
    return _Decoded(_bounded(contents, limit, decoder.eof), decoder.unused_data)


def _xz(data: memoryview, limit: int) -> _Decoded:
    import lzma

    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_MEMORY)
    contents = decoder.decompress(data, limit + 1)
    return _Decoded(_bounded(contents, limit, decoder.eof), decoder.unused_data)


def _lzma(data: memoryview, limit: int) -> _Decoded:
    import lzma

    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_DECODER_MEMORY)
    contents = decoder.decompress(data, limit + 1)
    return _Decoded(_bounded(contents, limit, decoder.eof), decoder.unused_data)


def _bzip2(data: memoryview, limit: int) -> _Decoded:
    import bz2

    decoder = bz2.BZ2Decompressor()
    contents = decoder.decompress(data, limit + 1)
    return _Decoded(_bounded(contents, limit, decoder.eof), decoder.unused_data)


def _zstd(data: memoryview, limit: int) -> _Decoded:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    pieces: list[bytes] = []
    total = 0
    stream = decoder.decompressobj()
    step = 1 << 20
    for start in range(0, len(data), step):
        piece = stream.decompress(data[start : start + step])
        total += len(piece)
        if total > limit:
            raise _TooLarge
        pieces.append(piece)
        if stream.eof:
            return _Decoded(b"".join(pieces), stream.unused_data + bytes(data[start + step :]))
    raise _Malformed("the stream ends early")


def _lz4(data: memoryview, limit: int) -> _Decoded:
    """LZ4's legacy frame: a magic word, then blocks of at most 8 MiB, each behind its compressed size."""
    import lz4.block

    pieces: list[bytes] = []
    total, at = 0, 4
    while at + 4 < len(data):  # a lone word at the end is the appended size
        (size,) = struct.unpack_from("<I", data, at)
        if not size or at + 4 + size > len(data):
            raise _Malformed(f"block at {at:#x} claims {size} bytes")
        piece = lz4.block.decompress(data[at + 4 : at + 4 + size], uncompressed_size=_LZ4_BLOCK)
        total += len(piece)
        if total > limit:
            raise _TooLarge
        pieces.append(piece)
        at += 4 + size
    if not pieces:
        raise _Malformed("the stream ends early")
    return _Decoded(b"".join(pieces), data[at:])


def _none(data: memoryview, limit: int) -> _Decoded:
    if len(data) > limit:
        raise _TooLarge
    return _Decoded(bytes(data), b"")


COMPRESSIONS: tuple[tuple[str, bytes, Callable[[memoryview, int], _Decoded] | None], ...] = (
    ("gzip", b"\x1f\x8b", _gzip),
    ("xz", b"\xfd7zXZ\x00", _xz),
    ("bzip2", b"BZh", _bzip2),
    ("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    ("lz4", b"\x02\x21\x4c\x18", _lz4),
    ("lzo", b"\x89LZO\x00\r\n\x1a\n", None),
    ("none", ELF_MAGIC, _none),
    ("lzma", b"\x5d\x00\x00", _lzma),
)
"""Name, first bytes and decoder of every compression; None where no library reads it."""


def identify(payload: memoryview, path: str) -> str:
    """Name of the payload's compression, by its first bytes. Raises `BadImage`."""
    for name, magic, _ in COMPRESSIONS:
        if bytes(payload[: len(magic)]) == magic:
            return name
    raise BadImage(
        f"{path}: its payload begins with {bytes(payload[:6]).hex()}, which is no compression known here "
        f"({', '.join(name for name, _, _ in COMPRESSIONS)}); give the vmlinux ELF",
    )


def decompress(payload: memoryview, path: str, limit: int = MAXIMUM_SIZE, whole: bool = True) -> bytes:
    """Unpack a payload into at most `limit` bytes. Raises `BadImage`.

    Where `payload` is not `whole`, other data may follow what belongs to it.
    """
    name = identify(payload, path)
    decode = next(decode for known, _, decode in COMPRESSIONS if known == name)
    if decode is None:
        raise BadImage(
            f"{path}: its payload is compressed with {name}, which cannot be read here; "
            "give the vmlinux ELF, or the kernel with another compression",
        )
    limit = min(limit, MAXIMUM_SIZE)
    try:
        decoded = decode(payload, limit)
    except _TooLarge:
        raise BadImage(
            f"{path}: its {name} payload unpacks to more than the {limit} bytes it may have "
            "(init_size of the setup header, at most 1 GiB); it is damaged or hostile: fetch it again",
        ) from None
    except MemoryError:
        raise BadImage(f"{path}: its {name} payload asks for more memory than there is; fetch it again") from None
    # The libraries' own error types share no base, and each reads bytes that nobody vouches for.
    except Exception as error:
        raise BadImage(f"{path}: its {name} payload is damaged ({error}); fetch or build it again") from error
    _check_appended_size(decoded, name, path, whole)
    return decoded.contents


def _check_appended_size(decoded: _Decoded, name: str, path: str, whole: bool) -> None:
    if name in ("gzip", "none") or len(decoded.rest) < 4:
        return
    said = int.from_bytes(decoded.rest[-4:] if whole else decoded.rest[:4], "little")
    if said != len(decoded.contents):
        raise BadImage(
            f"{path}: its {name} payload says {said} bytes but unpacks to {len(decoded.contents)}; fetch it again",
        )


def cache_directory() -> Path:
    """Where unpacked payloads are kept: XDG_CACHE_HOME/retrap/payload."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path(os.path.expanduser("~")) / ".cache"
    return root / "retrap" / "payload"


def unpack(
    payload: memoryview, path: str, file_hash: str, limit: int = MAXIMUM_SIZE, whole: bool = True
) -> tuple[str, memoryview]:
    """Compression and unpacked contents, from the cache where it has them, as `decompress` makes them.

    `file_hash` (hexadecimal) names the cache entry. A cache that cannot be read or written only costs time.
    """
    name = identify(payload, path)
    if name == "none":
        return name, payload
    entry = cache_directory() / f"{file_hash}.payload"
    cached = _read_cache(entry, name, limit)
    if cached is not None:
        return name, cached
    contents = decompress(payload, path, limit, whole)
    _write_cache(entry, name, contents)
    return name, memoryview(contents)


def _read_cache(entry: Path, name: str, limit: int) -> memoryview | None:
    """The entry's contents as a mapping of the file, or None where it is absent, damaged or of another kind."""
    try:
        with entry.open("rb") as file:
            header = file.read(_CACHE_HEADER.size)
            if len(header) < _CACHE_HEADER.size:
                return None
            magic, compression, size, digest = _CACHE_HEADER.unpack(header)
            total = os.fstat(file.fileno()).st_size
            if magic != _CACHE_MAGIC or compression.rstrip(b"\0") != name.encode() or total != _CACHE_DATA + size:
                return None
            if not 0 < size <= limit:
                return None
            contents = memoryview(mmap.mmap(file.fileno(), total, access=mmap.ACCESS_READ))[_CACHE_DATA:]
    except OSError:
        return None
    return contents if hashlib.sha256(contents).digest() == digest else None


def _write_cache(entry: Path, name: str, contents: bytes) -> None:
    header = _CACHE_HEADER.pack(_CACHE_MAGIC, name.encode(), len(contents), hashlib.sha256(contents).digest())
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(header.ljust(_CACHE_DATA, b"\0"))
                file.write(contents)
            os.replace(temporary, entry)
            _drop_oldest(entry.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError:
        return  # no room or no right to write: the next load unpacks again


def _drop_oldest(directory: Path) -> None:
    entries = sorted(directory.glob("*.payload"), key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
    for entry in entries[_CACHE_ENTRIES:]:
        entry.unlink(missing_ok=True)
