"""ELF kernels: what is read from good ones, and what is said of bad ones."""

import io
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from bt.image import Range, from_bytes, load
from emulator.errors import BadImage, UsageError
from tests.bt.image.image_files import BASE, DATA, PHYSICAL, TEXT, make_elf


def _patched(offset: int, kind: str, value: int) -> bytes:
    data = bytearray(make_elf())
    struct.pack_into(kind, data, offset, value)
    return bytes(data)


def test_segments_and_sections_are_those_pyelftools_reads() -> None:
    data = make_elf()
    image = from_bytes(data, "kernel")
    oracle = ELFFile(io.BytesIO(data))
    assert [(s.vaddr, s.paddr, s.memory_size, s.flags, bytes(s.data), s.file_offset) for s in image.segments] == [
        (s["p_vaddr"], s["p_paddr"], s["p_memsz"], s["p_flags"], s.data(), s["p_offset"])
        for s in oracle.iter_segments("PT_LOAD")
    ]
    assert [(s.name, s.vaddr, s.size, s.flags, bytes(s.data)) for s in image.sections] == [
        (s.name, s["sh_addr"], s["sh_size"], s["sh_flags"], s.data() if s.name else b"") for s in oracle.iter_sections()
    ]
    assert (image.container, image.compression, image.isa.name, image.entry) == ("elf64", "none", "x86-64", PHYSICAL)
    assert bytes(image.elf) == data
    assert not image.appended
    assert image.setup_header == b""
    assert image.relocations is None


def test_a_physical_entry_point_is_found_at_its_virtual_address() -> None:
    image = from_bytes(make_elf(entry=PHYSICAL + 8), "kernel")
    assert (image.entry_physical, image.entry_virtual) == (PHYSICAL + 8, BASE + 8)


def test_a_virtual_entry_point_is_found_at_its_physical_address() -> None:
    image = from_bytes(make_elf(entry=BASE + 8), "kernel")
    assert (image.entry_physical, image.entry_virtual) == (PHYSICAL + 8, BASE + 8)


def test_text_is_the_executable_sections_or_else_the_executable_segments() -> None:
    inner = replace(TEXT, name=".inner", vaddr=BASE + 16, data=TEXT.data[:16], in_segment=False)
    outer = replace(TEXT, name=".rodata", flags=4, in_segment=False)
    segment = replace(TEXT, name="segment", type=0)
    with_sections = from_bytes(make_elf((segment, inner, outer, DATA)), "kernel")
    assert with_sections.text_ranges == (Range(BASE + 16, BASE + 32),)
    without = from_bytes(make_elf(sections=False), "kernel")
    assert without.text_ranges == (Range(BASE, BASE + len(TEXT.data)),)


def test_view_gives_bytes_by_virtual_address_and_refuses_what_the_file_lacks() -> None:
    image = from_bytes(make_elf(), "kernel")
    assert bytes(image.view(BASE + 0x20_0010, 4)) == bytes([16, 17, 18, 19])
    with pytest.raises(BadImage, match="4 bytes at virtual 0xffffffff812000fe"):
        image.view(BASE + 0x20_00FE, 4)
    with pytest.raises(BadImage, match="0x1234"):
        image.view(0x1234, 1)


def test_bytes_behind_the_elf_are_kept_apart() -> None:
    data = make_elf()
    image = from_bytes(data + b"tail", "kernel")
    assert bytes(image.elf) == data
    assert bytes(image.appended) == b"tail"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"\x7fELF", "is truncated: 4 bytes cannot hold the 64-byte ELF header"),
        (b"#!/bin/sh\n", "neither an ELF nor one of bzimage"),
        (b"\x1f\x8b\x08" + bytes(100), "compressed with gzip; decompress it first"),
        (b"070701" + bytes(100), "cpio archive; give it as the initramfs"),
        (_patched(4, "B", 1), "is 32-bit and little-endian; for x86-64 only 64-bit little-endian"),
        (_patched(4, "B", 7), "is of class 7 and little-endian"),
        (_patched(5, "B", 2), "is for machine 15872"),
        (_patched(5, "B", 3), "data encoding 3"),
        (_patched(18, "<H", 243), "is for RISC-V; only x86-64, "),
        (_patched(18, "<H", 40), "is 64-bit and little-endian; for armv7 only 32-bit"),
        (_patched(18, "<H", 999), "machine 999"),
        (make_elf(kind=1, parts=(DATA,)), "object file without code"),
        (make_elf(kind=4), "a core dump"),
        (make_elf(entry=0), "no entry point"),
        (make_elf(entry=0x1234), "entry point 0x1234 lies in no executable segment"),
        (make_elf(entry=BASE + 0x20_0000), "lies in no executable segment"),
        (make_elf(()), "has 0 program headers"),
        (_patched(54, "<H", 8), "program headers of 8 bytes"),
        (_patched(32, "<Q", 1 << 63), "program headers end"),
        (_patched(40, "<Q", 1 << 63), "section headers"),
        (_patched(64, "<I", 3), "is a program for an operating system"),
        (_patched(64 + 8, "<Q", 1 << 40), "program header 0 wants bytes"),
        (_patched(64 + 40, "<Q", 1), "0x80 bytes in the file but 0x1 in memory"),
        (_patched(64 + 40, "<Q", 1 << 40), "is 0x10000000000 bytes large"),
        (_patched(64 + 24, "<Q", 1 << 60), "outside the 52-bit physical"),
        (_patched(64 + 16, "<Q", (1 << 64) - 8), "runs over the end"),
        (make_elf((TEXT, replace(DATA, paddr=PHYSICAL + 64))), "overlap at physical address 0x1000040"),
        (make_elf((TEXT, replace(DATA, vaddr=BASE + 64))), "overlap at virtual address 0xffffffff81000040"),
    ],
)
def test_a_bad_file_is_refused_by_a_sentence_that_names_it(data: bytes, sentence: str) -> None:
    with pytest.raises(BadImage, match=sentence) as caught:
        from_bytes(data, "some/kernel")
    assert str(caught.value).startswith("some/kernel: ")


def test_a_segment_without_memory_is_left_out() -> None:
    empty = replace(DATA, name=".empty", data=b"", extra=0, vaddr=BASE, paddr=PHYSICAL)
    assert len(from_bytes(make_elf((TEXT, empty)), "kernel").segments) == 1
    with pytest.raises(BadImage, match="no loadable segment"):
        from_bytes(make_elf((empty,)), "kernel")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="is a directory"):
        load(tmp_path)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        load("null\0byte")


def test_a_device_is_refused_and_not_read() -> None:
    with pytest.raises(BadImage, match="no regular file"):
        load("/dev/zero")


def test_an_oversized_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(BadImage, match="at most 1 GiB"):
        load(huge)


def test_truncation_at_every_byte_is_refused() -> None:
    whole = make_elf()
    for size in range(len(whole)):
        with pytest.raises(BadImage):
            from_bytes(whole[:size], "kernel")
