"""The buses: each address reaches its device at the right offset, and no two devices share one."""

from typing import Any

import pytest

from emulator.bus import BusConflict, MemoryBus, PortBus


class Recorder:
    """A device that remembers its accesses and reads as a number that shows offset and size."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.seen: list[tuple[Any, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("read", offset, size))
        return sum((0x10 + offset + n) << 8 * n for n in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("write", offset, size, value))

    @property
    def state(self) -> None:
        return None

    def restore(self, state: None) -> None:
        pass


def test_an_access_arrives_at_its_offset() -> None:
    bus, device = PortBus(), Recorder()
    bus.insert(0x3F8, 8, device)
    assert bus.read(0x3FD, 1) == 0x15
    bus.write(0x3F9, 1, 0x42)
    assert device.seen == [("read", 5, 1), ("write", 1, 1, 0x42)]
    assert bus.counts == {"recorder": (1, 1)}


@pytest.mark.parametrize(("base", "size"), [(0x10, 1), (0x17, 1), (0x0F, 2), (0x17, 9), (0x00, 0x100), (0x12, 2)])
def test_an_overlap_is_refused_by_name(base: int, size: int) -> None:
    bus = PortBus()
    bus.insert(0x10, 8, Recorder("first"))
    bus.insert(0x200, 8, Recorder("far"))
    with pytest.raises(BusConflict, match=r"second at port .* overlaps first at 0x10-0x17"):
        bus.insert(base, size, Recorder("second"))


def test_neighbours_do_not_overlap() -> None:
    bus = PortBus()
    bus.insert(0x10, 8, Recorder("middle"))
    bus.insert(0x18, 8, Recorder("above"))
    bus.insert(0x08, 8, Recorder("below"))
    assert list(bus.counts) == ["below", "middle", "above"]


@pytest.mark.parametrize(("base", "size"), [(0xFFFF, 2), (-1, 1), (0, 0), (0x1_0000, 1)])
def test_a_window_outside_the_bus_is_refused(base: int, size: int) -> None:
    with pytest.raises(ValueError, match="no window"):
        PortBus().insert(base, size, Recorder())


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)])
def test_a_port_without_device_reads_as_ones_and_is_counted(size: int, ones: int) -> None:
    bus = PortBus()
    assert bus.read(0x2F8, size) == ones
    bus.write(0x2F8, size, 0)
    assert bus.unclaimed == {0x2F8: 2}


def test_a_guest_that_touches_many_addresses_does_not_fill_the_counts() -> None:
    bus = MemoryBus()
    for address in range(0, 1 << 20, 64):
        bus.read(address, 1)
    assert len(bus.unclaimed) == 4097
    assert sum(bus.unclaimed.values()) == 1 << 14


def test_an_access_wider_than_the_device_comes_in_parts_low_first() -> None:
    bus, device = PortBus(), Recorder()
    bus.insert(0x40, 4, device)
    bus.write(0x40, 4, 0x4433_2211)
    assert device.seen == [("write", n, 1, 0x11 * (n + 1)) for n in range(4)]
    assert bus.read(0x41, 2) == 0x1211


def test_an_access_over_the_devices_end_reads_ones_there() -> None:
    bus, device = PortBus(), Recorder()
    bus.insert(0x20, 2, device, width=2)
    assert bus.read(0x21, 4) == 0xFFFF_FF11
    bus.write(0x21, 2, 0xBBAA)
    assert device.seen == [("read", 1, 1), ("write", 1, 1, 0xAA)]


def test_a_wide_access_that_starts_where_no_device_is_reaches_none() -> None:
    bus, device = PortBus(), Recorder()
    bus.insert(0xCF9, 1, device)
    bus.write(0xCF8, 4, 0x8000_0600)
    assert bus.read(0xCF8, 4) == 0xFFFF_FFFF
    assert device.seen == []


def test_the_last_port_can_be_read_wide() -> None:
    bus = PortBus()
    bus.insert(0xFFFF, 1, Recorder())
    assert bus.read(0xFFFF, 4) == 0xFFFF_FF10


def test_the_trace_sees_device_writes_and_on_request_reads() -> None:
    bus = PortBus()
    bus.insert(0x70, 2, Recorder("rtc"))
    seen: list[tuple[str, str, int, int, int]] = []
    bus.trace = lambda *access: seen.append(access)
    bus.write(0x70, 1, 0x0A)
    bus.read(0x71, 1)
    bus.write(0x99, 1, 1)
    assert seen == [("write", "rtc", 0, 1, 0x0A)]
    bus.trace_reads = True
    bus.read(0x71, 1)
    assert seen[1:] == [("read", "rtc", 1, 1, 0x11)]


def test_a_memory_window_is_found_from_its_first_to_its_last_address() -> None:
    bus, low, high = MemoryBus(), Recorder("low"), Recorder("high")
    bus.insert(0x1_0000_0000, 0x1000, high, width=8)
    bus.insert(0xFEE0_0000, 0x1000, low, width=4)
    assert bus.find(0xFEDF_FFFF) is None
    assert bus.find(0xFEE0_0000) == bus.find(0xFEE0_0FFF) == "low"
    assert bus.find(0xFEE0_1000) is None
    assert bus.find(0x1_0000_0FFF) == "high"
    assert bus.read(0x1_0000_0008, 8) == sum((0x18 + n) << 8 * n for n in range(8))
    bus.write(0xFEE0_0010, 8, 0x2222_2222_1111_1111)
    assert low.seen == [("write", 0x10, 4, 0x1111_1111), ("write", 0x14, 4, 0x2222_2222)]
    assert bus.read(0, 8) == 0xFFFF_FFFF_FFFF_FFFF
