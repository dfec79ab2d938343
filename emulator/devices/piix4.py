"""The power-management function of the PIIX4 south bridge, and its bridge function without more than a header.

Room: `emulator/devices`. An operating system turns the machine off by PMCNTRL: suspend type 0, suspend enable. The
chip waits for the processor's stop-grant cycle then; here, as in QEMU, power goes at once, since a GT-64120 keeps Linux
from making that cycle. Source: Intel 82371AB data sheet, 7.1 and 7.3.
"""

from collections.abc import Callable
from dataclasses import dataclass

from emulator.devices.pci import PciFunction

VENDOR, BRIDGE, POWER = 0x8086, 0x7110, 0x7113
IO_SIZE = 0x40
STATUS, ENABLE, CONTROL, TIMER = 0x00, 0x02, 0x04, 0x08
SUSPEND_ENABLE, SUSPEND_TYPE = 1 << 13, 7 << 10
BASE_REGISTER, ENABLE_REGISTER = 0x40, 0x80
BUS_REGISTER, BUS_ENABLE_REGISTER, BUS_IO = 0x90, 0xD2, 0x100
"""Of the SMBus controller in the same function: its base, its enable bit, and how far behind the others it lies."""


@dataclass(frozen=True, slots=True)
class PowerState:
    """The registers in I/O space."""

    registers: bytes


class Piix4Power:
    """Function 3's registers in I/O space. `power_off` is called at a suspend to off."""

    name = "piix4-power"

    def __init__(self, power_off: Callable[[], None]) -> None:
        self._registers = bytearray(IO_SIZE)
        self._power_off = power_off

    def read(self, offset: int, size: int) -> int:
        """The registers; no event ever happens."""
        return int.from_bytes(self._registers[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Status bits are taken away by writing them; everything else keeps what is written."""
        for index in range(size):
            at, byte = offset + index, value >> 8 * index & 0xFF
            if at < ENABLE:
                self._registers[at] &= ~byte & 0xFF
            elif at < IO_SIZE:
                self._registers[at] = byte
        control = self.read(CONTROL, 2)
        if control & SUSPEND_ENABLE and not control & SUSPEND_TYPE:
            self._power_off()

    @property
    def state(self) -> PowerState:
        """All of the function's state but its configuration space."""
        return PowerState(bytes(self._registers))

    def restore(self, state: PowerState) -> None:
        """Take up an earlier state."""
        self._registers[:] = state.registers


def bridge() -> PciFunction:
    """Function 0: PCI to ISA."""
    return PciFunction("piix4-bridge", VENDOR, BRIDGE, 0x060100, multifunction=True)


def power(io_base: int) -> PciFunction:
    """Function 3, its registers enabled at `io_base` as firmware leaves them."""
    function = PciFunction("piix4-power-config", VENDOR, POWER, 0x068000)
    function.put(BASE_REGISTER, io_base | 1, 4)
    function.writable(BASE_REGISTER, 0xFFC0, 4)
    function.put(ENABLE_REGISTER, 1, 1)
    function.writable(ENABLE_REGISTER, 0xFF, 1)
    function.put(BUS_REGISTER, io_base + BUS_IO | 1, 4)
    function.put(BUS_ENABLE_REGISTER, 1, 1)
    function.put(0x3D, 1, 1)
    return function
