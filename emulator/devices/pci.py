"""PCI configuration space: functions with the usual header, and a bus that finds them by device and function.

Room: `emulator/devices`. A function's registers are 256 bytes; which bits a write changes is a mask of the same size.
Source: PCI Local Bus Specification 2.1, chapter 6. What a function's registers do is told to whoever asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZE = 256
COMMAND, CLASS, HEADER_TYPE = 0x04, 0x08, 0x0E
MULTIFUNCTION = 0x80


@dataclass(frozen=True, slots=True)
class FunctionState:
    """A function's registers."""

    contents: bytes


class PciFunction:
    """One function's configuration space."""

    def __init__(self, name: str, vendor: int, device: int, class_code: int, *, multifunction: bool = False) -> None:
        """`class_code`: 24 bits, the base class highest."""
        self.name = name
        self._contents = bytearray(SIZE)
        self._mask = bytearray(SIZE)
        self.put(0, vendor | device << 16, 4)
        self.put(CLASS, class_code << 8, 4)
        self.put(HEADER_TYPE, MULTIFUNCTION if multifunction else 0, 1)
        self.writable(COMMAND, 0x0147, 2)
        self.writable(0x0C, 0xFFFF, 2)
        self.writable(0x3C, 0xFF, 1)

    def put(self, offset: int, value: int, size: int) -> None:
        """Set what is read at `offset`."""
        self._contents[offset : offset + size] = value.to_bytes(size, "little")

    def writable(self, offset: int, mask: int, size: int) -> None:
        """Let the guest change the bits of `mask` at `offset`."""
        self._mask[offset : offset + size] = mask.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        """`size` bytes of configuration space."""
        return int.from_bytes(self._contents[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Change what may be changed."""
        for index in range(size):
            at, byte = offset + index, value >> 8 * index & 0xFF
            mask = self._mask[at]
            self._contents[at] = self._contents[at] & ~mask | byte & mask

    @property
    def state(self) -> FunctionState:
        """The registers."""
        return FunctionState(bytes(self._contents))

    def restore(self, state: FunctionState) -> None:
        """Take up earlier registers."""
        self._contents[:] = state.contents


class PciBus:
    """The functions of bus 0, by device and function number."""

    def __init__(self) -> None:
        self.functions: dict[tuple[int, int], PciFunction] = {}

    def read(self, address: int, size: int) -> int:
        """Configuration read at a register `address` in the form of CONFIG_ADDRESS; all ones where nothing is."""
        function = self._find(address)
        return (1 << 8 * size) - 1 if function is None else function.read(address & 0xFF, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Configuration write; lost where nothing is."""
        function = self._find(address)
        if function is not None:
            function.write(address & 0xFF, size, value)

    def _find(self, address: int) -> PciFunction | None:
        return self.functions.get((address >> 11 & 31, address >> 8 & 7)) if not address >> 16 & 0xFF else None
