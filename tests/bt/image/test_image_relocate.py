"""Moving a kernel: the appended table against a plain reading of its definition, and the offsets Linux allows."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt.image import Image, from_bytes, move, to_boot
from emulator.errors import BadImage, UsageError
from tests.bt.image.image_files import (
    BASE,
    DATA,
    PHYSICAL,
    TEXT,
    Part,
    make_bzimage,
    make_elf,
    make_relocations,
    make_symtab,
)

MAP = 0xFFFF_FFFF_8000_0000
PERCPU = Part(".data..percpu", bytes(range(64)), 0, PHYSICAL + 0x40_0000, 6)
PARTS = (TEXT, DATA, PERCPU)
DATA_PLACE = MAP + DATA.paddr
PERCPU_PLACE = MAP + PERCPU.paddr
DELTA = 0x0660_0000


def _image(table: bytes, relocatable: int = 1) -> Image:
    return from_bytes(make_bzimage(make_elf(PARTS) + table, relocatable=relocatable), "kernel")


def _loaded(image: Image, delta: int, physical_delta: int = 0) -> dict[int, bytes]:
    boot = to_boot(image, delta=delta, physical_delta=physical_delta)
    return {segment.physical: bytes(segment.data) for segment in boot.segments}


@given(
    places=st.lists(st.tuples(st.integers(0, 31), st.sampled_from(["64", "32", "inverse"])), unique_by=lambda p: p[0]),
    shift=st.integers(0, 7),
    delta=st.integers(0, 0x100).map(lambda count: count << 21),
)
def test_words_are_moved_as_the_table_says(places: list[tuple[int, str]], shift: int, delta: int) -> None:
    lists: dict[str, list[int]] = {"64": [], "32": [], "inverse": []}
    expected = bytearray(DATA.data)
    for index, kind in places:
        at = index * 8 + shift
        if at + 8 > len(expected):
            continue
        lists[kind].append(DATA_PLACE + at)
        size, sign = (8, 1) if kind == "64" else (4, -1 if kind == "inverse" else 1)
        value = int.from_bytes(expected[at : at + size], "little") + sign * delta
        expected[at : at + size] = (value % (1 << size * 8)).to_bytes(size, "little")
    table = make_relocations(lists["64"], lists["inverse"], lists["32"])
    image = _image(table)
    assert image.relocations is not None
    assert len(image.relocations) == sum(map(len, lists.values()))
    loaded = _loaded(image, delta)
    assert loaded[DATA.paddr] == bytes(expected)
    assert loaded[TEXT.paddr] == TEXT.data
    assert loaded[PERCPU.paddr] == PERCPU.data


def test_a_place_in_the_percpu_segment_is_named_by_its_load_address() -> None:
    loaded = _loaded(_image(make_relocations([PERCPU_PLACE + 8], [], [])), DELTA)
    (before,) = struct.unpack_from("<Q", PERCPU.data, 8)
    assert struct.unpack_from("<Q", loaded[PERCPU.paddr], 8)[0] == before + DELTA
    assert loaded[DATA.paddr] == DATA.data


def test_a_table_of_two_lists_has_no_inverse_places() -> None:
    table = struct.pack("<IIII", 0, DATA_PLACE & 0xFFFF_FFFF, 0, (DATA_PLACE + 16) & 0xFFFF_FFFF)
    relocations = _image(table).relocations
    assert relocations is not None
    assert relocations.words64.tolist() == [DATA_PLACE]
    assert relocations.words32.tolist() == [DATA_PLACE + 16]
    assert len(relocations.inverse32) == 0


def test_the_image_itself_stays_as_it_is() -> None:
    image = _image(make_relocations([DATA_PLACE], [], []))
    before = bytes(image.elf)
    _loaded(image, DELTA)
    assert bytes(image.elf) == before


def test_physical_and_virtual_offset_are_independent() -> None:
    image = _image(make_relocations([DATA_PLACE], [], []))
    boot = to_boot(image, physical_delta=0x20_0000)
    assert boot.entry == PHYSICAL + 0x20_0000
    assert [s.physical for s in boot.segments] == [p.paddr + 0x20_0000 for p in PARTS]
    assert bytes(boot.segments[1].data) == DATA.data
    both = to_boot(image, physical_delta=0x20_0000, delta=DELTA)
    (before,) = struct.unpack_from("<Q", DATA.data)
    assert struct.unpack_from("<Q", both.segments[1].data)[0] == before + DELTA
    assert both.entry == PHYSICAL + 0x20_0000


@pytest.mark.parametrize(
    ("delta", "physical_delta", "sentence"),
    [
        (0x1000, 0, "virtual offset 0x1000 is no multiple of 0x200000"),
        (-0x20_0000, 0, "virtual offset -0x200000"),
        (1 << 30, 0, "out of its 1 GiB of address space; take at most 0x3ea00000"),
        (0, 0x1000, "physical offset 0x1000 is no multiple"),
        (0, 1 << 46, "behind 64 TiB"),
    ],
)
def test_offsets_the_kernel_does_not_stand_are_refused(delta: int, physical_delta: int, sentence: str) -> None:
    image = _image(make_relocations([DATA_PLACE], [], []))
    with pytest.raises(UsageError, match=sentence):
        to_boot(image, delta=delta, physical_delta=physical_delta)


def test_the_largest_offset_named_in_the_refusal_is_taken() -> None:
    to_boot(_image(make_relocations([DATA_PLACE], [], [])), delta=0x3EA0_0000)


def test_a_kernel_without_table_stays_where_it_is_linked() -> None:
    with pytest.raises(UsageError, match="has no relocation table"):
        to_boot(_image(b""), delta=DELTA)


def test_a_relocatable_kernel_without_table_moves_physically_only() -> None:
    assert to_boot(_image(b""), physical_delta=0x20_0000).entry == PHYSICAL + 0x20_0000
    with pytest.raises(UsageError, match="is not relocatable"):
        to_boot(_image(b"", relocatable=0), physical_delta=0x20_0000)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (b"rubbish!", "do not begin with a zero word"),
        (bytes(4), "no relocation table"),
        (bytes(16), "has 4 lists"),
        (bytes(4) + b"\1\0\0\0", "has 1 lists"),
        (make_relocations([MAP + 0x1000], [], []), "names 0xffffffff80001000, which lies in no segment"),
        (make_relocations([DATA_PLACE + len(DATA.data) - 4], [], []), "lies in no segment's bytes"),
        (make_relocations([], [], [0x1000]), "names 0x1000"),
        (make_relocations([], [], [0xFFFF_FFFF_FFFF_FFFE]), "names 0xfffffffffffffffe"),
        (make_relocations([DATA_PLACE, DATA_PLACE + 4], [], []), "overlapping"),
        (make_relocations([DATA_PLACE], [DATA_PLACE], []), "overlapping"),
        (make_relocations([], [], [DATA_PLACE, DATA_PLACE]), "overlapping"),
    ],
)
def test_a_damaged_table_is_refused_when_it_is_asked_for(table: bytes, sentence: str) -> None:
    image = _image(table)
    with pytest.raises(BadImage, match=sentence):
        to_boot(image, delta=DELTA)
    assert to_boot(image).entry == PHYSICAL


def test_boot_at_the_linked_addresses_copies_nothing() -> None:
    image = from_bytes(make_bzimage(make_elf((TEXT, replace(DATA, extra=0x2000)))), "kernel")
    boot = to_boot(image, initrd=b"initrd", command_line="console=ttyS0")
    assert [(s.physical, s.memory_size) for s in boot.segments] == [
        (TEXT.paddr, len(TEXT.data)),
        (DATA.paddr, len(DATA.data) + 0x2000),
    ]
    assert all(s.data is segment.data for s, segment in zip(boot.segments, image.segments, strict=True))
    assert (boot.initrd, boot.command_line, boot.setup_header) == (b"initrd", "console=ttyS0", image.setup_header)
    assert boot.entry == PHYSICAL
    assert BASE not in [s.physical for s in boot.segments]


def test_a_moved_image_is_an_image_at_the_new_addresses() -> None:
    symbols = [(0, "percpu", 0x11, 3), (BASE + 8, "function", 0x12, 1), (BASE, "constant", 0x10, 0xFFF1)]
    data = make_elf((*PARTS, *make_symtab(symbols, 5)), entry=BASE + 4)
    image = from_bytes(make_bzimage(data + make_relocations([DATA_PLACE], [], [])), "kernel")
    moved = move(image, delta=DELTA, physical_delta=0x20_0000)
    assert [(s.vaddr, s.paddr) for s in moved.segments] == [
        (BASE + DELTA, TEXT.paddr + 0x20_0000),
        ((DATA.vaddr or 0) + DELTA, DATA.paddr + 0x20_0000),
        (0, PERCPU.paddr + 0x20_0000),
    ]
    assert [section.vaddr for section in moved.sections][1:4] == [BASE + DELTA, (DATA.vaddr or 0) + DELTA, 0]
    assert (moved.entry, moved.entry_physical) == (BASE + 4 + DELTA, PHYSICAL + 4 + 0x20_0000)
    assert moved.text_ranges == ((BASE + DELTA, BASE + DELTA + len(TEXT.data)),)
    assert moved.symbols.address_of("function") == BASE + 8 + DELTA
    assert moved.symbols.address_of("percpu") == 0
    assert moved.symbols.address_of("constant") == BASE
    assert moved.relocations is None
    assert (moved.sha256, moved.setup_header, moved.container) == (image.sha256, image.setup_header, "bzimage")


def test_moving_by_nothing_gives_the_image_itself() -> None:
    image = _image(make_relocations([DATA_PLACE], [], []))
    assert move(image) is image
