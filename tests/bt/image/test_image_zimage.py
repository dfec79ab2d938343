"""zImage and Image of 32-bit Arm: every compression, where a kernel is linked, and what a lying header gets."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest

from bt.image import from_bytes, zimage
from emulator.board.virt import MEMORY_BASE
from emulator.errors import BadImage

OFFSET = 0x20_8000
BASE = 0xC000_0000 + OFFSET


def kernel(base: int = BASE, size: int = 0x8000) -> bytes:
    """An `Image`: its first instructions, and words that point into it."""
    words = [0xEB00_1000, 0xE10F_9000, 0xE229_901A] + [base] * 3 + [base + 4 * n for n in range(64)]
    return struct.pack(f"<{len(words)}I", *words).ljust(size, b"\0")


def legacy_lz4(data: bytes) -> bytes:
    block: bytes = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32),
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": legacy_lz4,
}


def zimage_of(stream: bytes, size: int, *, table: bool = True, offset: int = OFFSET, sized: bool = True) -> bytes:
    """A zImage around a stream; `sized` puts the unpacked size behind it, as all but gzip have it."""
    body = b"\xfd7zXZ\0 is what the decompressor looks for".ljust(0x80, b"\0")
    payload = stream + (struct.pack("<I", size) if sized else b"")
    size_at = 0x100 + len(payload) - 4
    end = 0x100 + len(payload)
    header = b"\0" * 0x24 + struct.pack("<4I", 0x016F_2818, 0, end, 0x0403_0201)
    header += struct.pack("<II", 0x4545_4545 if table else 0, 0x40)
    fields = struct.pack("<7I", 6, 0x5A53_4C4B, size_at, 0x1000, offset, 0x1_0000, 0)
    return (header.ljust(0x40, b"\0") + fields).ljust(0x60, b"\0") + body.ljust(0xA0, b"\0") + payload


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compression_gives_the_kernel_where_its_table_says(name: str) -> None:
    data = kernel()
    image = from_bytes(zimage_of(COMPRESSORS[name](data), len(data), sized=name != "gzip"), "k")
    (segment,) = image.segments
    assert (image.container, image.compression, image.isa.name) == ("zimage", name, "armv7")
    assert bytes(segment.data) == data
    assert (segment.vaddr, segment.paddr, image.entry_physical) == (BASE, MEMORY_BASE + OFFSET, MEMORY_BASE + OFFSET)
    assert segment.memory_size == len(data) + 0x1000


def test_a_kernel_of_another_split_is_linked_where_its_words_point() -> None:
    data = kernel(0x8000_0000 + OFFSET)
    image = from_bytes(zimage_of(COMPRESSORS["xz"](data), len(data)), "k")
    assert image.segments[0].vaddr == 0x8000_0000 + OFFSET


def test_a_zimage_without_a_table_has_the_usual_offset() -> None:
    data = kernel(0xC000_8000)
    image = from_bytes(zimage_of(COMPRESSORS["xz"](data), len(data), table=False), "k")
    assert image.segments[0].vaddr == 0xC000_8000


def test_an_image_is_recognised_by_its_first_instructions() -> None:
    image = from_bytes(kernel(), "Image")
    assert (image.container, image.compression) == ("arm-image", "none")
    assert image.segments[0].vaddr == BASE


def damaged(**what: int) -> bytes:
    data = bytearray(zimage_of(COMPRESSORS["xz"](kernel()), 0x8000))
    for place, value in what.items():
        struct.pack_into("<I", data, int(place[2:], 16), value)
    return bytes(data)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (damaged(at2c=0x7FFF_FFFF), "truncated"),
        (damaged(at30=0x0102_0304), "big-endian"),
        (damaged(at38=0xFFFF_0000), "table"),
        (damaged(at48=0xFFFF_FF00), "table"),
        (damaged(at50=0x1234), "table"),
        (damaged(at4c=0xFFFF_FFFF), "table"),
        (zimage_of(b"nothing that is compressed", 0x8000), "no payload|damaged"),
        (zimage_of(COMPRESSORS["xz"](kernel()), 0x9000), "8000|36864"),
        (zimage_of(COMPRESSORS["xz"](kernel()), 0xF000_0000), "128 MiB"),
        (zimage_of(COMPRESSORS["xz"](kernel())[:200], 0x8000), "zImage|damaged|payload"),
    ],
)
def test_a_lying_header_is_refused_in_one_sentence(contents: bytes, says: str) -> None:
    with pytest.raises(BadImage, match=says) as refusal:
        from_bytes(contents, "k")
    assert "\n" not in str(refusal.value)


def test_a_short_file_with_the_magic_is_refused() -> None:
    for size in (0x28, 0x30, 0x3C):
        with pytest.raises(BadImage):
            from_bytes(zimage_of(b"", 0)[:size], "k")


def test_text_is_all_of_an_image_without_symbols() -> None:
    image = from_bytes(kernel(), "Image")
    assert [(start, end) for start, end in image.text_ranges] == [(BASE, BASE + 0x8000)]
    assert zimage.recognise(memoryview(kernel()))
    assert not zimage.recognise(memoryview(b"\0" * 64))
