"""The ways a PC's software resets the machine or turns it off.

Room: `emulator/devices`. Five small registers: the power-management control register (power off),
the chip set's reset control register (port CF9h on a PC), system control port A (92h), and a
keyboard controller without a keyboard (60h and 64h), whose only life is its reset line.
"""

from collections.abc import Callable
from dataclasses import dataclass

SLEEP_ENABLE = 0x2000
"""Bit of the power-management control register that enters the sleep state named in bits 10-12."""


@dataclass(frozen=True, slots=True)
class RegisterState:
    """What was last written."""

    value: int


class _Register:
    """A register that remembers what was written to its first byte."""

    name = "register"

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """What was last written; other offsets read as all ones."""
        return self._value if offset == 0 else (1 << 8 * size) - 1

    @property
    def state(self) -> RegisterState:
        """What was last written."""
        return RegisterState(self._value)

    def restore(self, state: RegisterState) -> None:
        """Take up an earlier value, without its effect."""
        self._value = state.value


class PowerControl(_Register):
    """PM1 control, 16 bits: sleep enable with sleep type 0 turns the machine off (ACPI 4.8.3.2; S5 as QEMU has it)."""

    name = "power-control"

    def read(self, offset: int, size: int) -> int:
        """As written, but for sleep enable."""
        return self._value >> 8 * offset

    def write(self, offset: int, size: int, value: int) -> None:
        """Bits 10-12 choose the sleep state, bit 13 enters it and reads as 0. Either byte can be written alone."""
        if size == 1:
            kept = 0xFF00 >> 8 * offset
            value = self._value & kept | (value & 0xFF) << 8 * offset
        self._value = value & 0xFFFF & ~SLEEP_ENABLE
        if value & SLEEP_ENABLE and not value >> 10 & 7:
            self._act()


class ResetControl(_Register):
    """The chip set's reset control register: bit 2 going to 1 resets; bit 1 says how thoroughly."""

    name = "reset-control"

    def write(self, offset: int, size: int, value: int) -> None:
        """Bits 1-3 are kept."""
        if offset:
            return
        before, self._value = self._value, value & 0x0E
        if value & ~before & 0x04:
            self._act()


class SystemControlA(_Register):
    """Port 92h: bit 0 going to 1 resets; bit 1 is the A20 gate, which is always open here."""

    name = "system-control-a"

    def read(self, offset: int, size: int) -> int:
        """As written, with the A20 gate open."""
        return self._value | 0x02 if offset == 0 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Bit 0 resets on a rising edge; the rest is kept."""
        if offset:
            return
        before, self._value = self._value, value & 0xFF
        if value & ~before & 0x01:
            self._act()


class KeyboardController(_Register):
    """An 8042 without devices: offset 0 is its data port, offset 4 its command and status port.

    The status shows "output full" for ever and "input full" never. A driver that flushes the output buffer gives
    up after a few reads (Linux, drivers/input/serio/i8042.c: "No controller found"), and one that waits to send the
    reset command does not wait (native_machine_emergency_restart).
    """

    name = "i8042"
    STATUS = 0xFD

    def read(self, offset: int, size: int) -> int:
        """The fixed status, or 0xff as data."""
        return self.STATUS if offset == 4 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Commands F0h-FFh pulse output lines; line 0 is the reset. So is bit 0 of the output port (command D1h)."""
        value &= 0xFF
        if offset == 4:
            self._value = value
            if value >= 0xF0 and not value & 1:
                self._act()
        elif offset == 0:
            command, self._value = self._value, 0
            if command == 0xD1 and not value & 1:
                self._act()


class PostPort(_Register):
    """A diagnostic port: keeps a byte. Linux writes it to pass time (arch/x86/kernel/io_delay.c)."""

    name = "post"

    def __init__(self, name: str) -> None:
        super().__init__(lambda: None)
        self.name = name

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it."""
        self._value = value & 0xFF
