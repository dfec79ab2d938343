"""The Galileo GT-64120 system controller, as far as an operating system that firmware has started uses it.

Room: `emulator/devices`. Registers keep what is written; those that reach PCI configuration space do so, and a read of
the interrupt acknowledge register runs an acknowledge cycle on PCI. Offsets are those of the GT-64120 data sheet,
chapter 19. Its memory windows are decoded by the board at the places where firmware leaves them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from emulator.devices.pci import PciBus

CPU_CONFIGURATION = 0x000
PCI_COMMAND = 0xC00
INTERRUPT_CAUSE = 0xC18
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
ACKNOWLEDGE = 0xC34
SIZE = 0x1000
_ENABLE = 1 << 31

AFTER_RESET = {
    0x000: 0x0000_0000,  # CPU interface configuration
    0x008: 0x0000_0000,  # SCS[1:0] low decode
    0x010: 0x0000_003F,
    0x018: 0x0000_0040,
    0x020: 0x0000_003F,
    0x028: 0x0000_00E0,  # CS[2:0]
    0x030: 0x0000_0070,
    0x038: 0x0000_00F8,
    0x040: 0x0000_007F,
    0x048: 0x0000_00C0,  # PCI 0 I/O low and high decode: 18000000H
    0x050: 0x0000_0040,
    0x058: 0x0000_0080,  # PCI 0 memory 0: 10000000H
    0x060: 0x0000_003F,
    0x068: 0x0000_00DF,  # internal space: 1BE00000H
    0x070: 0x0000_0000,
    0x080: 0x0000_00C1,  # PCI 0 memory 1: 18200000H
    0x088: 0x0000_005E,
    0x0F0: 0x0000_00C0,  # remapped to where they are
    0x0F8: 0x0000_0080,
    0x100: 0x0000_00C1,
    0xC00: 0x0000_0000,  # PCI 0 command
}
"""What the registers hold when YAMON has started the kernel: windows at the places that Malta gives them."""


@dataclass(frozen=True, slots=True)
class GtState:
    """All registers that hold something else than 0."""

    registers: tuple[tuple[int, int], ...]


class Gt64120:
    """`acknowledge` runs an interrupt acknowledge cycle and gives the vector."""

    name = "gt64120"

    def __init__(self, bus: PciBus, acknowledge: Callable[[], int]) -> None:
        self._bus = bus
        self._acknowledge = acknowledge
        self._registers = dict(AFTER_RESET)

    def read(self, offset: int, size: int) -> int:
        """A register; whole words at multiples of 4, parts of them elsewhere."""
        word = offset & ~3
        if word == CONFIG_DATA:
            address = self._registers.get(CONFIG_ADDRESS, 0)
            if not address & _ENABLE:
                return (1 << 8 * size) - 1
            return self._bus.read(address & 0xFF_FFFC | offset & 3, size)
        value = self._acknowledge() if word == ACKNOWLEDGE else self._registers.get(word, 0)
        return value >> 8 * (offset & 3)

    def write(self, offset: int, size: int, value: int) -> None:
        """A register keeps what is written, but for the causes of interrupts, which are only taken away."""
        word = offset & ~3
        if word == CONFIG_DATA:
            address = self._registers.get(CONFIG_ADDRESS, 0)
            if address & _ENABLE:
                self._bus.write(address & 0xFF_FFFC | offset & 3, size, value)
            return
        shift = 8 * (offset & 3)
        mask = ((1 << 8 * size) - 1) << shift
        old = self._registers.get(word, 0)
        if word == INTERRUPT_CAUSE:
            self._registers[word] = old & (value << shift | ~mask)
        else:
            self._registers[word] = (old & ~mask | value << shift & mask) & 0xFFFF_FFFF

    @property
    def state(self) -> GtState:
        """All registers."""
        return GtState(tuple(sorted((at, value) for at, value in self._registers.items() if value)))

    def restore(self, state: GtState) -> None:
        """Take up earlier registers."""
        self._registers = dict(state.registers)
