"""Port 61h of a PC: the gate and the output of the timer's channel 2, which also drives the speaker.

Room: `emulator/devices`. One byte. It holds the channel's gate and shows its output, which is how a
kernel measures a delay without interrupts (Linux, arch/x86/kernel/tsc.c). Nothing can be heard.
"""

from dataclasses import dataclass

from emulator.clock import Clock
from emulator.devices.i8254 import Channel, clocks_at

_REFRESH = 18
"""PIT clocks (15 microseconds) between two toggles of the memory refresh bit."""


@dataclass(frozen=True, slots=True)
class SpeakerState:
    """What was written to port 61h."""

    control: int


class SpeakerPort:
    """Port 61h of a PC: channel 2's gate (bit 0), speaker (1), refresh toggle (4), channel 2's output (5)."""

    name = "port61"

    def __init__(self, clock: Clock, channel: Channel) -> None:
        """`channel` is the interval timer's channel 2, whose gate this port drives."""
        self._clock = clock
        self._channel = channel
        self._control = 0
        self._channel.set_gate(False)

    def read(self, offset: int, size: int) -> int:
        """Bits 0-3 as written; bit 4 toggles every 15 microseconds, as memory refresh did."""
        now = clocks_at(self._clock.now())
        return self._control | (now // _REFRESH & 1) << 4 | self._channel.output(now) << 5

    def write(self, offset: int, size: int, value: int) -> None:
        """Bits 0-3."""
        self._control = value & 0x0F
        self._channel.set_gate(bool(value & 1))

    @property
    def state(self) -> SpeakerState:
        """The control bits."""
        return SpeakerState(self._control)

    def restore(self, state: SpeakerState) -> None:
        """Take up earlier control bits; the gate is part of the timer's state."""
        self._control = state.control
