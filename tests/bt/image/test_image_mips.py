"""Linux's self-extracting kernels for MIPS: what is read of them in both byte orders, and what is refused."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest

from bt import guests
from bt.image import from_bytes, load, move, to_boot
from bt.image.mips_self_extractor import recognise
from bt.image.mips_tables import ADDRESS, JUMP, UPPER, relocations
from emulator.errors import BadImage, Unavailable, UsageError

LOAD, ENTRY, WRAPPER = 0x8010_0000, 0x8011_2345 & ~3, 0x8200_0000
KERNEL = np.random.default_rng(1).bytes(1 << 18)
ORDERS = {"little": "<", "big": ">"}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def extractor(
    order: str = "little", compression: str = "xz", entry: int = ENTRY, load_at: int = LOAD, kernel: bytes = KERNEL
) -> bytes:
    """An ELF32 with head.S, a decompressor that is nothing but where it writes to, and a payload."""
    o = ORDERS[order]
    head = [
        0x3C04_8210, 0x2484_8000,  # lui, addiu a0: its own bss
        0x3C19_8200, 0x2739_0100, 0x0320_F809, 0,  # lui, addiu t9; jalr: its decompressor
        0x3C19_0000 | entry >> 16, 0x3739_0000 | entry & 0xFFFF, 0x0320_F809, 0,  # lui, ori t9; jalr: the kernel
        0x3C02_0000 | load_at >> 16, 0xAFA2_0010,  # lui v0; sw v0, 16(sp)
    ]  # fmt: skip
    code = struct.pack(f"{o}{len(head)}I", *head).ljust(0x200, b"\0") + b"\xfd7zXZ\0\0\0\0\0\0\0"
    if compression == "gzip":
        packed = gzip.compress(kernel, mtime=0)
    else:
        packed = lzma.compress(kernel, check=lzma.CHECK_CRC32) + struct.pack("<I", len(kernel))
    body = code.ljust(0x400, b"\0") + packed + bytes(64)
    identity = b"\x7fELF\x01" + (b"\x01" if order == "little" else b"\x02") + b"\x01" + bytes(9)
    header = struct.pack(o + "HHIIIIIHHHHHH", 2, 8, 1, WRAPPER, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    program = struct.pack(o + "8I", 1, 0x1000, WRAPPER, WRAPPER, len(body), len(body) + 0x1000, 7, 0x1000)
    return (identity + header + program).ljust(0x1000, b"\0") + body


@pytest.mark.parametrize("compression", ["xz", "gzip"])
@pytest.mark.parametrize("order", ORDERS)
def test_the_kernel_inside_is_unpacked_and_placed(order: str, compression: str) -> None:
    image = from_bytes(extractor(order, compression), "vmlinuz")
    assert (image.container, image.compression) == ("mips-self-extractor", compression)
    assert (image.isa.name, image.byte_order, image.raw) == ("mips32", order, True)
    assert (image.entry_virtual, image.entry_physical) == (ENTRY, ENTRY & 0x1FFF_FFFF)
    (segment,) = image.segments
    assert (segment.vaddr, segment.paddr, bytes(segment.data) == KERNEL) == (LOAD, 0x10_0000, True)
    boot = to_boot(image)
    assert (boot.entry, boot.segments[0].physical) == (ENTRY & 0x1FFF_FFFF, 0x10_0000)


def test_it_comes_out_of_the_cache_the_second_time() -> None:
    data = extractor()
    assert from_bytes(data, "one").elf == from_bytes(data, "two").elf


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (extractor(entry=0x8050_0000), "where its entry 0x80500000 is not"),
        (extractor(load_at=0x0010_0000), "does not say where it unpacks"),
        (extractor(kernel=KERNEL[:0xA000]), "where its entry"),
        (extractor()[:-200], "truncated"),
        (extractor().replace(KERNEL[1000:1016], bytes(16)), "damaged"),
    ],
)
def test_a_wrapper_that_lies_is_refused_in_a_sentence(data: bytes, why: str) -> None:
    with pytest.raises(BadImage, match=why):
        from_bytes(data, "vmlinuz")


def test_an_elf_that_wraps_nothing_is_an_elf() -> None:
    data = extractor()
    assert recognise(memoryview(data))
    assert not recognise(memoryview(data[:0x1400]))
    assert not recognise(memoryview(b"\x7fELF\x01\x01"))


def test_the_relocation_table_is_the_run_that_fits_what_it_changes() -> None:
    words = np.zeros(0x400, np.uint32)
    words[0x10], words[0x11], words[0x12] = 0x8010_0100, 0x0C04_0000, 0x3C04_8010
    table = [ADDRESS << 24 | 0x10, JUMP << 24 | 0x11, UPPER << 24 | 0x12] * 4
    words[0x100 : 0x100 + len(table)] = table
    types, places = relocations(words, LOAD)
    assert types.tolist() == [ADDRESS, JUMP, UPPER] * 4
    assert places[:3].tolist() == [LOAD + 0x40, LOAD + 0x44, LOAD + 0x48]
    words[0x11] = 0
    assert len(relocations(words, LOAD)[0]) == 0


@pytest.mark.kernel
def test_debians_kernel_tells_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    try:
        guest = guests.find("debian-mipsel")
    except Unavailable as error:
        pytest.skip(str(error))
    image = load(guest.kernel)
    address = image.symbols.address_of
    assert image.entry_virtual == address("kernel_entry")
    assert list(image.text_ranges) == [
        (address("_stext"), address("_etext")),
        (address("_sinittext"), address("_einittext")),
    ]
    tables = image.linux
    assert tables is not None
    assert tables.version.endswith("-4kc-malta")
    counts = tables.counts()
    assert counts["exceptions"] > 500
    assert counts["jump labels"] > 1000
    assert counts["relocations"] > 100_000


def relocatable() -> bytes:
    """A kernel with a table of three relocations, eight times."""
    words = np.frombuffer(KERNEL, "<u4").copy()
    words[0x10], words[0x11], words[0x12] = 0x8010_0100, 0x0C04_0000, 0x3C04_8012
    table = [ADDRESS << 24 | 0x10, JUMP << 24 | 0x11, UPPER << 24 | 0x12] * 8
    words[0x100 : 0x100 + len(table)] = table
    words[0x100 + len(table)] = 0
    return words.tobytes()


def test_a_kernel_is_moved_into_mapped_space_by_its_own_relocations() -> None:
    kernel = bytearray(relocatable())
    image = from_bytes(extractor(kernel=bytes(kernel)), "vmlinuz")
    assert image.linux is not None
    once = image.linux.relocation_places[:3]  # type: ignore[attr-defined]
    object.__setattr__(image.linux, "relocation_places", once)
    object.__setattr__(image.linux, "relocation_types", image.linux.relocation_types[:3])  # type: ignore[attr-defined]
    there = move(image, delta=0x6000_0000)
    (segment,) = there.segments
    words = np.frombuffer(segment.data, "<u4")
    assert (segment.vaddr, segment.paddr, there.entry) == (0xE010_0000, 0x10_0000, ENTRY + 0x6000_0000)
    assert words[0x10:0x13].tolist() == [0xE010_0100, 0x0C04_0000, 0x3C04_E012]
    assert segment.memory_size >= 0x3_0000
    assert to_boot(there).segments[0].virtual == 0xE010_0000


@pytest.mark.parametrize("delta", [0x1000_0000, 0x4000_8000, 0x7FFF_0000, 0x4FEF_0000])
def test_a_kernel_is_not_moved_where_it_cannot_run(delta: int) -> None:
    image = from_bytes(extractor(kernel=relocatable()), "vmlinuz")
    with pytest.raises(UsageError):
        move(image, delta=delta)


def test_a_kernel_without_relocations_stays() -> None:
    with pytest.raises(BadImage, match="no relocation table"):
        move(from_bytes(extractor(), "vmlinuz"), delta=0x6000_0000)
