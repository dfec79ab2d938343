"""Guest-physical memory: what is stored is read back, nothing outside can be touched, and the digest sees all."""

import hashlib
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.memory import PAGE_SIZE, GuestMemory, UnbackedAddress

SIZE = 16 * PAGE_SIZE


def test_numbers_are_little_endian() -> None:
    memory = GuestMemory(SIZE)
    memory.write(0x1000, 4, 0x1234_5678)
    assert memory.read_bytes(0x1000, 4) == b"\x78\x56\x34\x12"
    assert memory.read(0x1001, 2) == 0x3456
    assert memory.words[0x1000 // 8] == 0x1234_5678


def test_a_view_of_words_is_stored_as_its_bytes() -> None:
    memory, source = GuestMemory(SIZE), GuestMemory(SIZE)
    source.write(8, 8, 0x1122)
    memory.write_bytes(0x100, source.words[:2])
    assert memory.read_bytes(0x100, 16) == bytes(8) + b"\x22\x11" + bytes(6)


def test_a_number_wider_than_its_place_is_cut() -> None:
    memory = GuestMemory(SIZE)
    memory.write(0, 2, 0xABCDEF)
    assert memory.read(0, 4) == 0xCDEF


@pytest.mark.parametrize(
    ("physical", "size"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (-8, 16), (0, SIZE + 1), (1 << 64, 8)]
)
def test_what_is_not_wholly_inside_is_refused(physical: int, size: int) -> None:
    memory = GuestMemory(SIZE)
    with pytest.raises(UnbackedAddress):
        memory.read(physical, size)
    with pytest.raises(UnbackedAddress):
        memory.write(physical, size, 0)
    with pytest.raises(UnbackedAddress):
        memory.read_bytes(physical, size)
    with pytest.raises(UnbackedAddress):
        memory.write_bytes(physical, bytes(min(size, SIZE + 1)))
    with pytest.raises(UnbackedAddress):
        memory.clear(physical, size)
    assert not any(memory.view)


def test_the_refusal_names_address_and_limit() -> None:
    with pytest.raises(UnbackedAddress, match=r"0x20000 .* ends at 0x10000") as caught:
        GuestMemory(SIZE).read(0x2_0000, 8)
    assert (caught.value.physical, caught.value.size, caught.value.limit) == (0x2_0000, 8, SIZE)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("size", [0, -4096, 100, 4097])
def test_a_size_that_is_not_whole_pages_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 4096"):
        GuestMemory(size)


@settings(deadline=None)
@given(start=st.integers(0, SIZE), size=st.integers(0, SIZE))
def test_clearing_clears_that_and_no_more(start: int, size: int) -> None:
    size = min(size, SIZE - start)
    memory = GuestMemory(SIZE)
    memory.write_bytes(0, b"\xff" * SIZE)
    memory.clear(start, size)
    expected = b"\xff" * start + bytes(size) + b"\xff" * (SIZE - start - size)
    assert memory.read_bytes(0, SIZE) == expected


def test_the_digest_is_that_of_size_and_non_zero_pages() -> None:
    memory = GuestMemory(SIZE)
    memory.write(3 * PAGE_SIZE + 5, 1, 7)
    page = bytes(5) + b"\x07" + bytes(PAGE_SIZE - 6)
    expected = hashlib.sha256(SIZE.to_bytes(8, "little") + bytes([3, *bytes(7), 1, *bytes(7)]) + page).hexdigest()
    assert memory.digest() == expected


@settings(deadline=None)
@given(address=st.integers(0, SIZE - 1), value=st.integers(1, 255))
def test_the_digest_changes_with_any_byte_and_changes_back(address: int, value: int) -> None:
    memory = GuestMemory(SIZE)
    empty = memory.digest()
    memory.write(address, 1, value)
    assert memory.digest() != empty
    assert memory.digest(excluding=[(address, 1)]) == empty
    memory.write(address, 1, 0)
    assert memory.digest() == empty


def test_the_digest_without_a_range_is_that_of_memory_where_the_range_is_zero() -> None:
    memory, zeroed = GuestMemory(SIZE), GuestMemory(SIZE)
    memory.write_bytes(0, b"x" * SIZE)
    zeroed.write_bytes(0, b"x" * SIZE)
    zeroed.clear(0x1F00, 0x2200)
    zeroed.clear(0x8010, 1)
    assert memory.digest(excluding=[(0x8010, 1), (0x1F00, 0x2200), (SIZE, 5), (-9, 3)]) == zeroed.digest()


def test_the_digest_finds_pages_behind_the_first_search_block() -> None:
    memory = GuestMemory(48 << 20)
    empty = memory.digest()
    memory.write((40 << 20) + 1, 1, 1)
    assert memory.digest() != empty


def test_memory_that_begins_elsewhere_is_addressed_from_there() -> None:
    memory = GuestMemory(2 * 4096, 0x4000_0000)
    memory.write(0x4000_1FF8, 8, 0x1122_3344_5566_7788)
    assert memory.read(0x4000_1FF8, 8) == memory.words[-1] == 0x1122_3344_5566_7788
    assert (memory.size, memory.end) == (8192, 0x4000_2000)
    memory.clear(0x4000_1000, 4096)
    assert not any(memory.view)
    for outside in (0, 0x3FFF_FFFF, 0x4000_2000):
        with pytest.raises(UnbackedAddress, match="outside memory"):
            memory.read(outside, 1)
    other = GuestMemory(2 * 4096, 0x8000_0000)
    assert memory.digest([(0x4000_0000, 8)]) == other.digest(), "contents count, and not where they lie"
    with pytest.raises(ValueError, match="multiple of 4096"):
        GuestMemory(4096, 12)


def test_memory_that_is_had_beforehand_is_zero_and_the_hosts_own() -> None:
    memory = GuestMemory(4 << 20, 0x1000)
    memory.commit(0x1000 + 5000, 3 << 20)
    assert memory.digest() == GuestMemory(4 << 20, 0x1000).digest()
    memory.commit(0x1000, 0)
    with pytest.raises(UnbackedAddress):
        memory.commit(0x1000, (4 << 20) + 1)
