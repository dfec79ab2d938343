"""Moving a 32-bit kernel: one list of places, one offset, and the headers and symbols of ELF32."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from bt.image import Image, from_bytes, move
from emulator.errors import BadImage, UsageError
from tests.bt.image.image_files import PHYSICAL, Part, make_bzimage, make_elf, make_symtab

MAP = 0xC000_0000
BASE = MAP + PHYSICAL
TEXT = Part(".text", b"\x90" * 63 + b"\xc3", BASE, PHYSICAL, 5)
DATA = Part(
    ".data", struct.pack("<16I", *(BASE + 4 * index for index in range(16))), BASE + 0x1000, PHYSICAL + 0x1000, 6
)
I386 = 3
DELTA = 0x300_0000


def kernel(*places: int, lists: int = 1) -> Image:
    table = struct.pack(f"<{lists + len(places)}I", *[0] * lists, *places)
    return from_bytes(make_bzimage(make_elf((TEXT, DATA), machine=I386, bits=32) + table), "kernel")


def test_words_headers_and_the_entry_are_moved() -> None:
    image = kernel(BASE + 0x1000, BASE + 0x1009)
    moved = move(image, delta=DELTA, physical_delta=DELTA)
    assert [(segment.vaddr, segment.paddr) for segment in moved.segments] == [
        (BASE + DELTA, PHYSICAL + DELTA),
        (BASE + 0x1000 + DELTA, PHYSICAL + 0x1000 + DELTA),
    ]
    expected = bytearray(DATA.data)
    for at in (0, 9):
        (word,) = struct.unpack_from("<I", DATA.data, at)
        struct.pack_into("<I", expected, at, (word + DELTA) & 0xFFFF_FFFF)
    assert bytes(moved.segments[1].data) == expected
    assert bytes(moved.segments[0].data) == TEXT.data
    assert moved.entry - image.entry == DELTA


def test_symbols_are_moved() -> None:
    table, names = make_symtab([(BASE + 4, "second", 2, 1), (BASE, "first", 0x12, 1)], 4, bits=32)
    image = from_bytes(
        make_bzimage(
            make_elf((TEXT, DATA, table, names), machine=I386, bits=32) + struct.pack("<2I", 0, BASE + 0x1000)
        ),
        "kernel",
    )
    moved = move(image, delta=DELTA, physical_delta=DELTA)
    assert moved.symbols.name_at(BASE + DELTA) == "first"
    assert moved.symbols.address_of("second") == BASE + DELTA + 4


@pytest.mark.parametrize(
    ("delta", "physical_delta"), [(DELTA, 0), (0, DELTA), (0x20_0001, 0x20_0001), (0x2000_0000, 0x2000_0000)]
)
def test_an_offset_that_the_kernel_does_not_stand_is_refused(delta: int, physical_delta: int) -> None:
    with pytest.raises(UsageError):
        move(kernel(BASE + 0x1000), delta=delta, physical_delta=physical_delta)


def test_an_offset_is_a_multiple_of_the_kernels_own_alignment() -> None:
    image = kernel(BASE + 0x1000)
    assert image.header is not None
    coarse = replace(image, header=replace(image.header, kernel_alignment=0x100_0000))
    with pytest.raises(UsageError, match="0x1000000"):
        move(coarse, delta=0x120_0000, physical_delta=0x120_0000)
    assert move(coarse, delta=DELTA, physical_delta=DELTA).entry == image.entry + DELTA


@pytest.mark.parametrize(
    ("places", "lists"), [((BASE + 0x1000,), 2), ((BASE + 0x103D,), 1), ((BASE - 4,), 1), ((BASE, BASE + 2), 1)]
)
def test_a_damaged_table_is_refused(places: tuple[int, ...], lists: int) -> None:
    with pytest.raises(BadImage):
        move(kernel(*places, lists=lists), delta=DELTA, physical_delta=DELTA)
