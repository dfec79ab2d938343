"""Buses: which device answers which port or physical address.

Room: `emulator`. A bus turns an absolute address into a device and an offset, and knows nothing
of what the device does. Windows may not overlap, which is refused when a device is inserted.
What no device answers reads as all ones and swallows writes, as on the ISA bus, and is counted.
"""

from bisect import bisect_right
from collections.abc import Callable

from emulator.devices.device import Device

Trace = Callable[[str, str, int, int, int], None]
"""Told of an access: "read" or "write", the device's name, offset, size in bytes, value."""

PORTS = 0x1_0000
"""I/O ports of an x86 machine."""

_UNCLAIMED_KEPT = 4096
"""Addresses without device that are counted each by itself: a guest must not be able to fill the host's memory."""


class BusConflict(ValueError):
    """Two devices claim the same address: one clear sentence."""


class _Window:
    """A device's place on a bus, and the accesses it has seen."""

    __slots__ = ("base", "device", "end", "name", "read", "reads", "width", "write", "write_all", "writes")

    def __init__(self, base: int, size: int, device: Device, width: int) -> None:
        self.base = base
        self.end = base + size
        self.device = device
        self.name = device.name
        self.read = device.read
        self.write = device.write
        self.write_all: Callable[[int, bytes], bool] | None = getattr(device, "write_all", None)
        """Of a device that may take several bytes at one of its places at once, and says whether it did."""
        self.width = width
        self.reads = 0
        self.writes = 0


class _Bus:
    """What port and memory buses share: windows, tracing, counts. Subclasses find the window."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._windows: list[_Window] = []
        self._bases: list[int] = []
        self.trace: Trace | None = None
        """Called after every write that a device took, and for reads too with `trace_reads`."""
        self.trace_reads = False
        """Whether `trace` is told of reads."""
        self.unclaimed: dict[int, int] = {}
        """Accesses that no device answered, by address; under -1 all those at further addresses than can be kept."""

    def insert(self, base: int, size: int, device: Device, width: int = 1) -> None:
        """Let `device` answer `size` addresses from `base`, in accesses of at most `width` bytes.

        A wider access arrives as several, low address first. Raises BusConflict for an overlap, ValueError for a
        window that is empty or outside the bus.
        """
        if size <= 0 or base < 0 or base + size > self._limit:
            raise ValueError(f"{device.name}: {self._what} {base:#x}+{size:#x} is no window of this bus")
        if width not in (1, 2, 4, 8):
            raise ValueError(f"{device.name}: accesses {width} bytes wide: give 1, 2, 4 or 8")
        place = bisect_right(self._bases, base)
        for other in self._windows[max(place - 1, 0) : place + 1]:
            if base < other.end and other.base < base + size:
                raise BusConflict(
                    f"{device.name} at {self._what} {base:#x}-{base + size - 1:#x} overlaps"
                    f" {other.name} at {other.base:#x}-{other.end - 1:#x}: give one of them another place"
                )
        window = _Window(base, size, device, width)
        self._windows.insert(place, window)
        self._bases.insert(place, base)
        self._claim(window)

    def _claim(self, window: _Window) -> None:
        """Make a window findable."""
        raise NotImplementedError

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Reads and writes so far by device name, in order of address; windows of one name are added up."""
        counts: dict[str, tuple[int, int]] = {}
        for window in self._windows:
            reads, writes = counts.get(window.name, (0, 0))
            counts[window.name] = (reads + window.reads, writes + window.writes)
        return counts

    def _count_unclaimed(self, address: int) -> None:
        counts = self.unclaimed
        if address not in counts and len(counts) >= _UNCLAIMED_KEPT:
            address = -1
        counts[address] = counts.get(address, 0) + 1

    def _read(self, window: _Window | None, address: int, size: int) -> int:
        if window is None:
            self._count_unclaimed(address)
            return (1 << 8 * size) - 1
        if size > window.width or address + size > window.end:
            return self._read_split(window, address, size)
        window.reads += 1
        offset = address - window.base
        value = window.read(offset, size) & ((1 << 8 * size) - 1)
        if self.trace_reads and self.trace is not None:
            self.trace("read", window.name, offset, size, value)
        return value

    def _write(self, window: _Window | None, address: int, size: int, value: int) -> None:
        if window is None:
            self._count_unclaimed(address)
            return
        if size > window.width or address + size > window.end:
            self._write_split(window, address, size, value)
            return
        window.writes += 1
        offset = address - window.base
        window.write(offset, size, value)
        if self.trace is not None:
            self.trace("write", window.name, offset, size, value)

    def _read_split(self, window: _Window, address: int, size: int) -> int:
        """A read wider than the device, or over its end: in parts; what lies behind the end reads as ones."""
        value = 0
        step = self._step(window, address, size)
        for done in range(0, size, step):
            part = (1 << 8 * step) - 1
            if address + done + step <= window.end:
                part = self._read(window, address + done, step)
            value |= part << 8 * done
        return value

    def _write_split(self, window: _Window, address: int, size: int, value: int) -> None:
        step = self._step(window, address, size)
        for done in range(0, size, step):
            if address + done + step <= window.end:
                self._write(window, address + done, step, value >> 8 * done & ((1 << 8 * step) - 1))

    @staticmethod
    def _step(window: _Window, address: int, size: int) -> int:
        """Bytes of each part of a split access."""
        return 1 if address + size > window.end else min(window.width, size)


class PortBus(_Bus):
    """The 65536 I/O ports. An access belongs to the device at its first port."""

    def __init__(self) -> None:
        super().__init__("port", PORTS)
        self._by_port: dict[int, _Window] = {}

    def _claim(self, window: _Window) -> None:
        for port in range(window.base, window.end):
            self._by_port[port] = window

    def read(self, port: int, size: int) -> int:
        """Read `size` bytes (1, 2 or 4) at `port`; all ones where no device answers."""
        return self._read(self._by_port.get(port), port, size)

    def write(self, port: int, size: int, value: int) -> None:
        """Write `size` bytes (1, 2 or 4) at `port`; lost where no device answers."""
        self._write(self._by_port.get(port), port, size, value)

    def write_all(self, port: int, data: bytes) -> bool:
        """Write bytes at `port` one after another, if the device takes them so and nobody looks on; whether it did."""
        window = self._by_port.get(port)
        if window is None or window.write_all is None or self.trace is not None:
            return False
        if not window.write_all(port - window.base, data):
            return False
        window.writes += len(data)
        return True


class MemoryBus(_Bus):
    """Device registers in guest-physical memory."""

    def __init__(self) -> None:
        super().__init__("physical address", 1 << 64)
        self._last: _Window | None = None

    def _claim(self, window: _Window) -> None:
        self._last = window

    def find(self, physical: int) -> str | None:
        """The name of the device that answers `physical`, or None."""
        window = self._find(physical)
        return None if window is None else window.name

    def _find(self, physical: int) -> _Window | None:
        last = self._last
        if last is not None and last.base <= physical < last.end:
            return last
        place = bisect_right(self._bases, physical) - 1
        if place < 0 or physical >= self._windows[place].end:
            return None
        self._last = self._windows[place]
        return self._last

    def read(self, physical: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4 or 8) at `physical`; all ones where no device answers."""
        return self._read(self._find(physical), physical, size)

    def write(self, physical: int, size: int, value: int) -> None:
        """Write `size` bytes (1, 2, 4 or 8) at `physical`; lost where no device answers."""
        self._write(self._find(physical), physical, size, value)
