"""arm64 Images: what header, relocations and tables say, plain and in gzip, and what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from bt import guests
from bt.image import from_bytes, load, to_boot
from bt.image.arm64_image import DEFAULT_BASE, LOAD_ADDRESS
from bt.image.arm64_tables import Arm64Tables
from emulator.errors import BadImage, Unavailable

BASE = 0xFFFF_8000_0800_0000
SIZE = 0x4_0000
NOP, RET = 0xD503_201F, 0xD65F_03C0


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "kernel" not in request.keywords:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def image(
    size: int = SIZE,
    text_offset: int = 0,
    image_size: int = 2 * SIZE,
    flags: int = 0xA,
    relocations: int = 100,
    stray: int = 0,
    code_end: int = SIZE // 2,
) -> bytearray:
    """An Image whose relocations are in its last quarter and whose PE header ends code at `code_end`."""
    data = bytearray(struct.pack("<I", NOP) * (size // 4))
    struct.pack_into("<2s2xIQQQ", data, 0, b"MZ", 0x1400_0010, text_offset, image_size, flags)
    struct.pack_into("<4sI", data, 56, b"ARM\x64", 64)
    struct.pack_into("<4sHHxxxxxxxxxxxxHH", data, 64, b"PE\0\0", 0xAA64, 2, 0, 0)
    struct.pack_into("<8sIIII12xI", data, 88, b".text", code_end - 0x1000, 0x1000, 0, 0, 0x6000_0020)
    struct.pack_into("<8sIIII12xI", data, 128, b".data", 0, code_end, 0, 0, 0xC000_0040)
    table = size * 3 // 4
    for number in range(relocations):
        place = BASE + size // 2 + 8 * number + (stray if number == 50 else 0)
        struct.pack_into("<QQQ", data, table + 24 * number, place, 0x403, BASE + 0x1000 + 4 * number)
    return data


def test_a_plain_image_is_read_where_its_relocations_say() -> None:
    read = from_bytes(image(), "k")
    assert (read.container, read.compression, read.isa.name, read.raw) == ("arm64-image", "none", "aarch64", True)
    assert (read.entry_virtual, read.entry_physical) == (BASE, LOAD_ADDRESS)
    code, data = read.segments
    assert (code.vaddr, code.memory_size, code.executable) == (BASE, SIZE // 2, True)
    assert (data.vaddr, data.memory_size, data.executable) == (BASE + SIZE // 2, 2 * SIZE - SIZE // 2, False)
    assert [tuple(one) for one in read.text_ranges] == [(BASE, BASE + SIZE // 2)]


def test_a_compressed_image_is_the_same_memory() -> None:
    plain = bytes(image())
    read = from_bytes(gzip.compress(plain, mtime=0), "k")
    assert read.compression == "gzip"
    assert bytes(read.elf) == plain


def test_relocations_are_applied_to_a_copy_only() -> None:
    read = from_bytes(image(), "k")
    linked = np.frombuffer(read.header.linked(read.elf), "<u8")
    assert linked[SIZE // 2 // 8 + 7] == BASE + 0x1000 + 28
    assert int.from_bytes(read.elf[SIZE // 2 + 56 : SIZE // 2 + 64], "little") == NOP | NOP << 32


def test_without_relocations_a_kernel_is_where_kernels_of_its_kind_are() -> None:
    assert from_bytes(image(relocations=0), "k").entry_virtual == DEFAULT_BASE


def test_what_a_board_gets_is_the_whole_of_its_memory() -> None:
    boot = to_boot(from_bytes(image(text_offset=0x8_0000), "k"))
    assert boot.entry == LOAD_ADDRESS + 0x8_0000
    assert sum(segment.memory_size for segment in boot.segments) == 2 * SIZE


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"flags": 0xB}, "big-endian"),
        ({"flags": 0x6}, "64 KiB"),
        ({"image_size": SIZE - 1}, "of memory"),
        ({"image_size": 1 << 40}, "of memory"),
        ({"text_offset": 0x1234}, "of memory"),
        ({"stray": 1 << 20}, "outside its memory"),
        ({"stray": 4}, "outside its memory"),
        ({"code_end": 2 * SIZE}, "not in the file"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(damage: dict[str, int], complaint: str) -> None:
    with pytest.raises(BadImage, match=complaint):
        from_bytes(image(**damage), "k")


def test_a_truncation_that_can_be_seen_is_refused() -> None:
    whole = bytes(image())
    for size in (0, 3, 57, 60, 63, 80, 100, 140, 4095, 4096, SIZE // 2 - 1):
        with pytest.raises(BadImage):
            from_bytes(whole[:size], "k")
    compressed = gzip.compress(whole)
    for size in (0, 3, 17, len(compressed) // 2, len(compressed) - 9):
        with pytest.raises(BadImage):
            from_bytes(compressed[:size], "k")


def test_patch_tables_are_found_by_their_structure() -> None:
    data = image()
    at = SIZE // 2 + 0x1000

    def entries(start: int, form: str, rows: list[tuple[int, ...]]) -> int:
        """Distances are from their own places: fields given as offsets of the image."""
        for row in rows:
            fields = [value - (start + 4 * number) if number < 2 else value for number, value in enumerate(row)]
            if form.endswith("q"):
                fields[2] = row[2] - (start + 8)
            struct.pack_into(form, data, start, *fields)
            start += struct.calcsize(form)
        return start + 64

    at = entries(at, "<iiHBB", [(0x2000 + 16 * n, 0x3000 + 16 * n, 5, 4, 4) for n in range(20)])
    at = entries(at, "<iiq", [(0x4000 + 8 * n, 0x4004 + 8 * n, SIZE // 2 + 8 * n) for n in range(30)])
    entries(at, "<iihh", [(0x5000 + 8 * n, 0x5004 + 8 * n, 3, 0x21) for n in range(40)])
    found = from_bytes(data, "k").linux
    assert isinstance(found, Arm64Tables)
    assert found.counts() == {"alternatives": 20, "jump labels": 30, "exceptions": 40, "function tracing": 100}
    assert found.alternative_sites[3] == BASE + 0x2030
    assert found.replacements[3] == BASE + 0x3030
    assert found.jump_targets[2] == BASE + 0x4014
    assert (found.faulting[1], found.landings[1]) == (BASE + 0x5008, BASE + 0x500C)
    assert any(BASE + 0x2030 in places for places in found.places())


@pytest.mark.kernel
def test_debians_kernel_has_its_text_symbols_and_tables() -> None:
    try:
        guest = guests.find("debian-arm64")
    except Unavailable as error:
        pytest.skip(str(error))
    read = load(guest.kernel)
    assert read.symbols.source == "kallsyms"
    assert read.symbols.address_of("_stext") == read.text_ranges[1].start
    assert read.text_ranges[1].end == read.symbols.address_of("_etext")
    tables = read.linux
    assert tables is not None
    assert tables.version.endswith("-arm64")
    assert min(tables.counts().values()) > 500
