"""bzImage kernels: every compression of the payload, bounds on it, and the cache of unpacked ones."""

import os
import struct
from pathlib import Path

import pytest

from bt.image import from_bytes, payload
from emulator.errors import BadImage
from tests.bt.image.image_files import COMPRESS, PHYSICAL, make_bzimage, make_elf

ELF = make_elf()


@pytest.mark.parametrize("compression", COMPRESS)
def test_every_compression_gives_the_elf_back(compression: str, cache: Path) -> None:
    image = from_bytes(make_bzimage(COMPRESS[compression](ELF)), "kernel")
    assert (image.container, image.compression) == ("bzimage", compression)
    assert bytes(image.elf) == ELF
    assert not image.appended


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name != "none"])
def test_every_compression_unpacks_more_than_one_block(compression: str) -> None:
    contents = ELF + bytes(range(256)) * 4096 + bytes(9 << 20) + b"end"
    packed = memoryview(COMPRESS[compression](contents))
    assert payload.decompress(packed, "kernel") == contents


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name != "none"])
def test_a_payload_larger_than_the_setup_header_allows_is_refused(compression: str, cache: Path) -> None:
    bomb = make_bzimage(COMPRESS[compression](ELF + bytes(4 << 20)), init_size=1 << 20)
    with pytest.raises(BadImage, match=f"{compression} payload unpacks to more than the 1048576 bytes"):
        from_bytes(bomb, "kernel")
    assert not list(cache.glob("*"))


@pytest.mark.parametrize("compression", [name for name in COMPRESS if name != "none"])
def test_a_cut_payload_is_refused(compression: str) -> None:
    packed = COMPRESS[compression](ELF)
    for size in (len(packed) // 2, len(packed) - 16):
        with pytest.raises(BadImage, match=f"{compression} payload"):
            payload.decompress(memoryview(packed[:size]), "kernel")


@pytest.mark.parametrize("compression", ["xz", "lzma", "bzip2", "lz4", "zstd"])
def test_a_wrong_appended_size_is_refused(compression: str) -> None:
    packed = COMPRESS[compression](ELF)[:-4] + struct.pack("<I", len(ELF) + 1)
    with pytest.raises(BadImage, match=f"says {len(ELF) + 1} bytes but unpacks to {len(ELF)}"):
        payload.decompress(memoryview(packed), "kernel")


def test_lzma_that_asks_for_gigabytes_of_dictionary_is_refused() -> None:
    packed = bytearray(COMPRESS["lzma"](ELF))
    packed[1:5] = struct.pack("<I", 0xFFFF_0000)
    with pytest.raises(BadImage, match=r"lzma payload is damaged .*emory"):
        payload.decompress(memoryview(packed), "kernel")


def test_lzo_is_refused_with_a_way_out(cache: Path) -> None:
    with pytest.raises(BadImage, match="compressed with lzo, which cannot be read here; give the vmlinux ELF"):
        from_bytes(make_bzimage(b"\x89LZO\x00\r\n\x1a\n" + bytes(64)), "kernel")


def test_an_unknown_compression_is_refused_with_its_first_bytes(cache: Path) -> None:
    with pytest.raises(BadImage, match=r"begins with 010203040506, .*\(gzip, xz, "):
        from_bytes(make_bzimage(bytes([1, 2, 3, 4, 5, 6, 7])), "kernel")


def test_a_payload_that_is_no_elf_is_refused(cache: Path) -> None:
    with pytest.raises(BadImage, match="is no ELF"):
        from_bytes(make_bzimage(COMPRESS["gzip"](b"not a kernel" * 100)), "kernel")


def _patched(offset: int, kind: str, value: int) -> bytes:
    data = bytearray(make_bzimage(ELF))
    struct.pack_into(kind, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (make_bzimage(ELF)[:0x220], "is truncated: 544 bytes"),
        (_patched(0x1FE, "<H", 0x1234), "boot flag 0x1234"),
        (_patched(0x206, "<H", 0x0207), "boot protocol 2.07"),
        (_patched(0x24C, "<I", 0), "says its payload lies at 0x430..0x430"),
        (_patched(0x24C, "<I", 1 << 24), "the file ends at"),
        (_patched(0x248, "<I", 0xFFFF_FFFF), "the file ends at"),
        (_patched(0x202, "B", 0), "neither an ELF nor one of bzimage"),
    ],
)
def test_a_bad_setup_header_is_refused(data: bytes, sentence: str, cache: Path) -> None:
    with pytest.raises(BadImage, match=sentence):
        from_bytes(data, "kernel")


def test_the_setup_header_is_kept_up_to_where_its_jump_goes() -> None:
    data = make_bzimage(ELF)
    image = from_bytes(data, "kernel")
    assert image.setup_header == data[0x1F1:0x26C]
    assert image.header is not None
    assert (image.header.version, image.header.preferred_address) == (0x20F, PHYSICAL)
    assert (image.header.init_size, image.header.kernel_alignment) == (1 << 22, 1 << 21)


def test_an_old_setup_header_without_init_size_is_read(cache: Path) -> None:
    image = from_bytes(make_bzimage(COMPRESS["gzip"](ELF), version=0x208, xloadflags=0), "kernel")
    assert image.header is not None
    assert image.header.init_size == 0
    assert bytes(image.elf) == ELF


def _entry(cache: Path) -> Path:
    (entry,) = cache.glob("*")
    return entry


def test_the_second_load_unpacks_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_bzimage(COMPRESS["xz"](ELF))
    from_bytes(data, "kernel")
    monkeypatch.setattr(payload, "decompress", lambda *_: pytest.fail("unpacked again"))
    assert bytes(from_bytes(data, "kernel").elf) == ELF


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "magic", "longer"])
def test_a_damaged_cache_entry_is_found_and_remade(damage: str, cache: Path) -> None:
    data = make_bzimage(COMPRESS["xz"](ELF))
    from_bytes(data, "kernel")
    entry = _entry(cache)
    good = entry.read_bytes()
    bad = bytearray(good)
    if damage == "flip":
        bad[-1] ^= 1
    elif damage == "magic":
        bad[0] ^= 1
    else:
        bad = {"cut": bad[:-1], "empty": bytearray(), "longer": bad + b"x"}[damage]
    entry.unlink()
    entry.write_bytes(bad)
    assert bytes(from_bytes(data, "kernel").elf) == ELF
    assert _entry(cache).read_bytes() == good


def test_a_cached_payload_is_held_to_the_setup_headers_limit(cache: Path) -> None:
    packed = memoryview(COMPRESS["gzip"](ELF))
    payload.unpack(packed, "kernel", "key", 1 << 20)
    with pytest.raises(BadImage, match="more than the 64 bytes"):
        payload.unpack(packed, "kernel", "key", 64)


def test_the_cache_keeps_the_newest_kernels_only(cache: Path) -> None:
    for number in range(10):
        packed = memoryview(COMPRESS["gzip"](ELF + bytes([number])))
        payload.unpack(packed, "kernel", f"key{number}")
        os.utime(cache / f"key{number}.payload", (number, number))
    assert sorted(entry.name for entry in cache.iterdir()) == [f"key{number}.payload" for number in range(2, 10)]


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert bytes(from_bytes(make_bzimage(COMPRESS["gzip"](ELF)), "kernel").elf) == ELF


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert payload.cache_directory().is_absolute()


def test_truncation_at_every_boundary_is_refused(cache: Path) -> None:
    data = make_bzimage(COMPRESS["gzip"](ELF))
    end = data.rindex(b"\xcc" * 32)
    for size in (*range(0, 0x270, 7), 1023, 1024, 1072, end - 1):
        with pytest.raises(BadImage):
            from_bytes(data[:size], "kernel")
