"""The PC: which devices are where, which interrupt is whose, and how a run ends.

Room: `emulator/board`. Wires serial port, interrupt controllers, timer, clock chip and the reset and
power registers to two buses. It knows addresses and lines; what a register does is its device's
business. It offers a CPU, real or virtual, an interrupt request and an acknowledge, and knows neither.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from emulator.board.board import Shutdown, ShutdownKind, pass_time
from emulator.bus import MemoryBus, PortBus
from emulator.clock import Clock, ClockState
from emulator.devices.cmos_rtc import CmosRtc, RtcState
from emulator.devices.debug_exit import DebugExit
from emulator.devices.device import Device
from emulator.devices.i8254 import I8254, TimerState
from emulator.devices.i8259 import CASCADE, I8259Pair, PairState
from emulator.devices.ns16550 import Ns16550, SerialState
from emulator.devices.power import (
    KeyboardController,
    PostPort,
    PowerControl,
    RegisterState,
    ResetControl,
    SystemControlA,
)
from emulator.devices.speaker import SpeakerPort, SpeakerState
from emulator.memory import GuestMemory

COM1, COM1_IRQ = 0x3F8, 4
PIC_MASTER, PIC_SLAVE, PIC_TRIGGER = 0x20, 0xA0, 0x4D0
PIT, PIT_IRQ = 0x40, 0
SPEAKER = 0x61
RTC, RTC_IRQ = 0x70, 8
KEYBOARD_DATA, KEYBOARD_COMMAND = 0x60, 0x64
POST, DEBUG_CONSOLE = 0x80, 0xE9
SYSTEM_CONTROL_A, RESET_CONTROL = 0x92, 0xCF9
DEBUG_EXIT = 0xF4
POWER_CONTROL = 0x604

ADDRESS_BITS = 36
"""Of a physical address, as the processor shown to guests has them."""

START_DATE = 1_704_067_200
"""The date at virtual time 0: 2024-01-01 00:00:00 UTC, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class PcState:
    """All of the board's state but memory."""

    clock: ClockState
    com1: SerialState
    pic: PairState
    pit: TimerState
    speaker: SpeakerState
    rtc: RtcState
    registers: tuple[RegisterState, ...]
    shutdown: Shutdown | None


class _Part:
    """Some of a device's offsets, as a device of its own: for one whose registers are not side by side."""

    def __init__(self, device: Device, offset: int) -> None:
        self.name = device.name
        self._device = device
        self._offset = offset

    def read(self, offset: int, size: int) -> int:
        return self._device.read(offset + self._offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._device.write(offset + self._offset, size, value)

    @property
    def state(self) -> None:
        """The device has it."""
        return None

    def restore(self, state: None) -> None:
        """The device has it."""


class Pc:
    """The board. `console` gets every byte that the guest transmits on the serial port."""

    def __init__(
        self,
        memory: GuestMemory,
        clock: Clock,
        *,
        console: Callable[[bytes], None],
        start_date: int = START_DATE,
        on_interrupt: Callable[[bool], None] | None = None,
        on_shutdown: Callable[[Shutdown], None] | None = None,
    ) -> None:
        """`start_date`: the guest's date at virtual time 0, in seconds since 1970."""
        self.memory = memory
        self.clock = clock
        self.intr = False
        """The interrupt controllers request the CPU."""
        self.on_interrupt = on_interrupt
        """Called when `intr` changes, with its new value."""
        self.shutdown: Shutdown | None = None
        """How the guest ended its run; None while it has not."""
        self.on_shutdown = on_shutdown
        """Called once, when `shutdown` is set."""
        self.pic = I8259Pair(self._set_intr)
        self.com1 = Ns16550(console, self.pic.line(COM1_IRQ))
        self.pit = I8254(clock, self.pic.line(PIT_IRQ))
        self.speaker = SpeakerPort(clock, self.pit.channels[2])
        self.rtc = CmosRtc(clock, self.pic.line(RTC_IRQ), start_date, memory.size)
        self.keyboard = KeyboardController(self._reset)
        self._registers = (
            self.keyboard,
            SystemControlA(self._reset),
            ResetControl(self._reset),
            PowerControl(self._power_off),
            PostPort("post"),
            PostPort("debug-console"),
        )
        self.ports = PortBus()
        """The I/O ports."""
        self.posted = ((COM1, 1), (POST, 1))
        """Ports (first, count) that may be written late, before the next exit of any kind: nothing that the guest can
        see comes of such a write by itself, but for the interrupt of a transmitter, which takes its time anyhow."""
        self.posted_if_dear = ((PIC_MASTER, 2), (PIC_SLAVE, 2))
        """More of them, where exits are dear: an interrupt that such a write lets through comes with the next exit, a
        tick at the latest, and who reads a register finds it written."""
        self.mmio = MemoryBus()
        """Device registers in guest-physical memory: none on this board."""
        self._wire()
        self._leave_as_firmware()

    def _wire(self) -> None:
        keyboard, control_a, reset, power, post, debug_console = self._registers
        insert = self.ports.insert
        insert(PIC_MASTER, 2, self.pic.master)
        insert(PIC_SLAVE, 2, self.pic.slave)
        insert(PIC_TRIGGER, 2, self.pic.trigger_control)
        insert(PIT, 4, self.pit)
        insert(SPEAKER, 1, self.speaker)
        insert(KEYBOARD_DATA, 1, keyboard)
        insert(KEYBOARD_COMMAND, 1, _Part(keyboard, KEYBOARD_COMMAND - KEYBOARD_DATA))
        insert(RTC, 2, self.rtc)
        insert(POST, 1, post)
        insert(SYSTEM_CONTROL_A, 1, control_a)
        insert(DEBUG_CONSOLE, 1, debug_console)
        insert(DEBUG_EXIT, 4, DebugExit(self._debug_exit), width=4)
        insert(COM1, 8, self.com1)
        insert(POWER_CONTROL, 2, power, width=2)
        insert(RESET_CONTROL, 1, reset)

    def _leave_as_firmware(self) -> None:
        """Program what a PC's firmware has programmed when it starts an operating system.

        The timer counts its longest period: Linux's kaslr_get_random_long waits for its count register to be loaded.
        The interrupt controllers have their vectors, and mask everything.
        """
        for chip, vector, cascade in ((self.pic.master, 0x08, 1 << CASCADE), (self.pic.slave, 0x70, CASCADE)):
            chip.write(0, 1, 0x11)
            for value in (vector, cascade, 0x01, 0xFF):
                chip.write(1, 1, value)
        self.pit.write(3, 1, 0x34)
        self.pit.write(0, 1, 0)
        self.pit.write(0, 1, 0)

    @property
    def device_space(self) -> tuple[tuple[int, int], ...]:
        """Everything that is not memory, as far as the processor's addresses go."""
        return ((self.memory.size, (1 << ADDRESS_BITS) - self.memory.size),)

    # Towards the CPU

    def _set_intr(self, level: bool) -> None:
        self.intr = level
        if self.on_interrupt is not None:
            self.on_interrupt(level)

    def interrupt_pending(self) -> bool:
        """Whether an interrupt waits for the CPU; the same as `intr`."""
        return self.intr

    def acknowledge(self) -> int:
        """The CPU takes the interrupt: returns its vector (a spurious one's when the request has gone)."""
        return self.pic.acknowledge()

    def next_wake(self) -> int | None:
        """Virtual time in nanoseconds of the next event that can request the CPU as things are masked now.

        None when only console input can. `Clock.next_event` may be earlier: a masked timer runs on.
        """
        events = ((PIT_IRQ, self.pit.next_event), (RTC_IRQ, self.rtc.next_event))
        return min((when for irq, when in events if when is not None and self.pic.would_request(irq)), default=None)

    def idle(self) -> bool:
        """The CPU waits with interrupts on: let time jump until one is requested.

        Returns False, at an unchanged or later time, when only console input can ever wake it. Always returns: each
        jump takes an event that requests, or that is not scheduled again before it is answered.
        """
        return pass_time(self, self.clock)

    # Towards the world

    def feed_console(self, data: bytes) -> None:
        """Bytes arrive at the serial port."""
        self.com1.feed(data)

    def _end(self, shutdown: Shutdown) -> None:
        if self.shutdown is None:
            self.shutdown = shutdown
            if self.on_shutdown is not None:
                self.on_shutdown(shutdown)

    def _reset(self) -> None:
        self._end(Shutdown(ShutdownKind.RESET))

    def _power_off(self) -> None:
        self._end(Shutdown(ShutdownKind.POWER_OFF))

    def _debug_exit(self, status: int) -> None:
        self._end(Shutdown(ShutdownKind.DEBUG_EXIT, status))

    # State

    @property
    def state(self) -> PcState:
        """Clock and devices, without memory."""
        return PcState(
            self.clock.state,
            self.com1.state,
            self.pic.state,
            self.pit.state,
            self.speaker.state,
            self.rtc.state,
            tuple(register.state for register in self._registers),
            self.shutdown,
        )

    def restore(self, state: PcState) -> None:
        """Take up an earlier state. The clock forgets all callbacks; the devices schedule theirs anew."""
        self.clock.restore(state.clock)
        self.com1.restore(state.com1)
        self.pit.restore(state.pit)
        self.speaker.restore(state.speaker)
        self.rtc.restore(state.rtc)
        for register, saved in zip(self._registers, state.registers, strict=True):
            register.restore(saved)
        self.pic.restore(state.pic)  # last: it holds the lines that the devices have just driven
        self.shutdown = state.shutdown

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of `state`."""
        return hashlib.sha256(repr(self.state).encode()).hexdigest()


__all__ = ["START_DATE", "Pc", "PcState", "Shutdown", "ShutdownKind"]
