"""The 64-bit boot protocol: what a kernel finds in memory, and what is refused with which words."""

import struct
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.board.boot import BootError, BootImage, LoadSegment
from emulator.board.linux_boot import place
from emulator.memory import PAGE_SIZE, GuestMemory

MIB = 1 << 20
KERNEL = LoadSegment(16 * MIB, b"kernel", 2 * MIB)
PAGE_PRESENT, PAGE_WRITABLE, PAGE_LARGE = 1, 2, 0x80


def image(**changes: object) -> BootImage:
    fields: dict[str, object] = {"segments": (KERNEL,), "entry": 16 * MIB, "initrd": b"", "command_line": ""}
    return BootImage(**(fields | changes))  # type: ignore[arg-type]


def setup_header(version: int = 0x20F, command_line_size: int = 2047) -> bytes:
    """Bytes 0x1f1 to 0x26c of a bzImage, with recognisable contents."""
    header = bytearray(0x26C - 0x1F1)
    header[0x201 - 0x1F1] = 0x6A
    struct.pack_into("<4sH", header, 0x202 - 0x1F1, b"HdrS", version)
    struct.pack_into("<I", header, 0x238 - 0x1F1, command_line_size)
    struct.pack_into("<Q", header, 0x258 - 0x1F1, 0x100_0000)  # pref_address
    header[0x210 - 0x1F1] = 0x99
    return bytes(header)


def e820(memory: GuestMemory, zero_page: int) -> list[tuple[int, int, int]]:
    count = memory.read(zero_page + 0x1E8, 1)
    return [struct.unpack("<QQI", memory.read_bytes(zero_page + 0x2D0 + 20 * number, 20)) for number in range(count)]


def translate(memory: GuestMemory, root: int, address: int) -> int:
    """Walk the page tables as a CPU does; every step must be present and writable."""
    table = root
    for shift in (39, 30, 21, 12):
        entry = memory.read(table + 8 * (address >> shift & 511), 8)
        assert entry & (PAGE_PRESENT | PAGE_WRITABLE) == PAGE_PRESENT | PAGE_WRITABLE
        if entry & PAGE_LARGE:
            return (entry & ~((1 << shift) - 1) & ~(1 << 63)) | address & ((1 << shift) - 1)
        table = entry & 0x000F_FFFF_FFFF_F000
    return table | address & 0xFFF


def test_the_zero_page_of_an_image_without_setup_header() -> None:
    memory = GuestMemory(64 * MIB)
    entry = place(memory, image(initrd=b"cpio" * 1000, command_line="console=ttyS0 panic=-1"))
    page = entry.rsi
    assert memory.read_bytes(page + 0x202, 4) == b"HdrS"
    assert memory.read(page + 0x206, 2) == 0x20F
    assert memory.read(page + 0x1FE, 2) == 0xAA55
    assert memory.read(page + 0x210, 1) == 0xFF
    assert memory.read(page + 0x211, 1) & 1
    assert memory.read(page + 0x1EF, 1) == 0  # the sentinel: a loader that filled in the page properly
    line = memory.read(page + 0x228, 4)
    assert memory.read_bytes(line, 23) == b"console=ttyS0 panic=-1\0"
    ramdisk, size = memory.read(page + 0x218, 4), memory.read(page + 0x21C, 4)
    assert memory.read_bytes(ramdisk, size) == b"cpio" * 1000
    assert ramdisk % PAGE_SIZE == 0
    assert ramdisk + PAGE_SIZE > 64 * MIB - 4000 - PAGE_SIZE


def test_the_images_own_setup_header_is_kept_but_for_the_loaders_fields() -> None:
    memory = GuestMemory(64 * MIB)
    page = place(memory, image(setup_header=setup_header())).rsi
    assert memory.read(page + 0x258, 8) == 0x100_0000
    assert memory.read(page + 0x210, 1) == 0xFF
    assert memory.read(page + 0x218, 8) == 0


@settings(deadline=None)
@given(megabytes=st.integers(2, 3072), mp_table=st.booleans())
def test_the_memory_map_is_ascending_whole_and_without_holes_but_a_pcs(megabytes: int, mp_table: bool) -> None:
    memory = GuestMemory(megabytes * MIB)
    kernel = (LoadSegment(MIB, b"k", MIB),)
    page = place(memory, image(segments=kernel, entry=MIB), mp_table=mp_table).rsi
    entries = e820(memory, page)
    for (start, size, _), (following, _, _) in pairwise(entries):
        assert start + size <= following
    usable = [(start, start + size) for start, size, kind in entries if kind == 1]
    assert usable == [(0x1000 if mp_table else 0, 0x9FC00), (MIB, megabytes * MIB)]
    assert all(size for _, size, _ in entries)


def test_the_cpu_enters_as_the_protocol_demands() -> None:
    memory = GuestMemory(64 * MIB)
    entry = place(memory, image())
    assert entry.rip == 16 * MIB
    assert (entry.cs, entry.ds) == (0x10, 0x18)
    table = [memory.read(entry.gdt_base + 8 * n, 8) for n in range((entry.gdt_limit + 1) // 8)]
    code, data = table[entry.cs // 8], table[entry.ds // 8]
    assert code >> 40 & 0x9F == 0x9B  # present, ring 0, execute and read, accessed
    assert code >> 53 & 1  # 64-bit
    assert data >> 40 & 0x9F == 0x93
    assert entry.cr0 & 0x8000_0001 == 0x8000_0001
    assert entry.cr4 & 0x20
    assert entry.efer & 0x500 == 0x500
    assert not entry.rflags & 0x200


def test_the_first_four_gigabytes_are_mapped_one_to_one() -> None:
    memory = GuestMemory(64 * MIB)
    entry = place(memory, image())
    for address in (0, 0x1234, 0xA_0000, 16 * MIB, 64 * MIB - 1, (1 << 30) - 1, 1 << 30, (1 << 32) - 1):
        assert translate(memory, entry.cr3, address) == address
    with pytest.raises(AssertionError):
        translate(memory, entry.cr3, 1 << 32)


def test_a_segments_unfilled_part_is_zero() -> None:
    memory = GuestMemory(64 * MIB)
    memory.write_bytes(16 * MIB, b"\xff" * 3 * MIB)
    place(memory, image())
    assert memory.read_bytes(16 * MIB, 6) == b"kernel"
    assert not any(memory.view[16 * MIB + 6 : 18 * MIB])
    assert memory.read(18 * MIB, 1) == 0xFF


def test_all_that_is_placed_lies_in_usable_memory_and_apart() -> None:
    memory = GuestMemory(64 * MIB)
    entry = place(memory, image(initrd=bytes(5 * MIB), command_line="x" * 2000), seed=bytes(32), mp_table=True)
    page = entry.rsi
    places = sorted(
        [
            (page, PAGE_SIZE),
            (entry.gdt_base, entry.gdt_limit + 1),
            (entry.cr3, 6 * PAGE_SIZE),
            (entry.rsp - 0x800, 0x800),
            (memory.read(page + 0x228, 4), 2001),
            (memory.read(page + 0x218, 4), memory.read(page + 0x21C, 4)),
            (memory.read(page + 0x250, 8), 16 + 32),
            (KERNEL.physical, KERNEL.memory_size),
        ]
    )
    for (start, size), (following, _) in pairwise(places):
        assert start + size <= following
    usable = [(start, start + size) for start, size, kind in e820(memory, page) if kind == 1]
    assert all(any(low <= start and start + size <= high for low, high in usable) for start, size in places)


def test_the_initramfs_stays_below_two_gigabytes() -> None:
    memory = GuestMemory(3072 * MIB)
    page = place(memory, image(initrd=bytes(MIB))).rsi
    assert memory.read(page + 0x218, 4) == 2047 * MIB


def test_the_mp_pointer_is_one_that_linux_accepts_to_a_table_that_it_rejects() -> None:
    """smp_scan_config and smp_check_mpc (arch/x86/kernel/mpparse.c)."""
    memory = GuestMemory(64 * MIB)
    place(memory, image(), mp_table=True)
    pointer = memory.read_bytes(0, 16)
    mark, table, length, revision = struct.unpack_from("<4sIBB", pointer)
    assert (mark, length) == (b"_MP_", 1)
    assert revision in (1, 4)
    assert sum(pointer) & 0xFF == 0
    assert pointer[11] == 0  # no default configuration
    assert table != 0  # 0 is a BUG()
    assert memory.read_bytes(table, 4) != b"PCMP"
    assert 0 < memory.read(table + 4, 2) <= 0x400  # mapped and reserved by this length
    assert memory.read(0x40E, 2) == 0  # no extended BIOS data area
    assert not any(GuestMemory(4 * MIB).read_bytes(0, 16))


def test_without_it_page_zero_stays_empty() -> None:
    memory = GuestMemory(64 * MIB)
    place(memory, image())
    assert not any(memory.read_bytes(0, PAGE_SIZE))


def test_a_seed_is_handed_over_as_setup_data() -> None:
    memory = GuestMemory(64 * MIB)
    page = place(memory, image(), seed=b"s" * 32).rsi
    data = memory.read(page + 0x250, 8)
    assert struct.unpack("<QII", memory.read_bytes(data, 16)) == (0, 9, 32)
    assert memory.read_bytes(data + 16, 32) == b"s" * 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segments": (LoadSegment(63 * MIB, b"", 2 * MIB),)}, "outside memory, which ends at 0x4000000"),
        ({"segments": (LoadSegment(-4096, b"", 2 * MIB),)}, "outside memory"),
        ({"segments": (LoadSegment(0x8000, b"x", 0x1000),)}, "loader's data below 0x10000"),
        ({"segments": (LoadSegment(0x9_0000, b"x", 0x2_0000),)}, "the hole 0x9fc00-0x100000"),
        ({"segments": (LoadSegment(0xC_0000, b"x", 0x1000),)}, "the hole 0x9fc00-0x100000"),
        ({"segments": (LoadSegment(MIB, b"xyz", 2),)}, "3 bytes of contents for 2 of memory"),
        ({"segments": (KERNEL, LoadSegment(17 * MIB, b"", MIB))}, "overlaps the one before"),
        ({"segments": ()}, "entry point 0x1000000 is in no kernel segment"),
        ({"entry": 17 * MIB}, "entry point 0x1100000 is in no kernel segment"),
        ({"initrd": bytes(47 * MIB)}, "initramfs of 49283072 bytes does not fit between .* 0x1200000 and 0x4000000"),
        ({"command_line": "x" * 4096}, "has 4096 bytes, the kernel takes 4095"),
        ({"command_line": "x" * 2048, "setup_header": setup_header()}, "has 2048 bytes, the kernel takes 2047"),
        ({"command_line": "a\0b"}, "zero byte"),
        ({"command_line": "\udc80"}, "no valid text"),
        ({"setup_header": setup_header(version=0x20A)}, r"boot protocol 2\.10, 64-bit entry needs 2\.12"),
        ({"setup_header": b"junk" * 40}, "HdrS"),
        ({"setup_header": setup_header()[:64]}, "HdrS mark or is too short"),
    ],
)
def test_what_cannot_be_placed_is_refused_in_one_sentence_before_memory_is_touched(
    changes: dict[str, object], words: str
) -> None:
    memory = GuestMemory(64 * MIB)
    with pytest.raises(BootError, match=words) as caught:
        place(memory, image(**changes))
    assert "\n" not in str(caught.value)
    assert not any(memory.view[: 2 * MIB])
    assert not any(memory.view[16 * MIB : 17 * MIB])


def test_too_much_and_too_little_memory_are_refused() -> None:
    with pytest.raises(BootError, match="give at most 3072 MiB"):
        place(GuestMemory(3073 * MIB), image())
    with pytest.raises(BootError, match="at least 2 MiB"):
        place(GuestMemory(MIB), image())


def test_a_seed_too_long_is_refused() -> None:
    with pytest.raises(BootError, match="random seed of 5000 bytes"):
        place(GuestMemory(64 * MIB), image(), seed=bytes(5000))


@settings(deadline=None)
@given(data=st.binary(max_size=400))
def test_any_setup_header_is_placed_or_refused(data: bytes) -> None:
    for header in (data, setup_header()[:0x11] + b"HdrS" + data, setup_header()[:0x17] + data):
        memory = GuestMemory(64 * MIB)
        with suppress(BootError):
            assert memory.read_bytes(place(memory, image(setup_header=header)).rsi + 0x202, 4) == b"HdrS"
