"""The MIPS Malta board: which devices are where, which line reaches which input of the processor, and how a run ends.

Room: `emulator/board`. A GT-64120 with PCI, a PIIX4 with its ISA devices, a serial port on the board, and the
processor's own timer. It knows addresses and lines; what a register does is its device's business. Addresses are those
at which YAMON leaves everything (Malta User's Manual, MD00048, chapter 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from emulator.board.board import Shutdown, ShutdownKind, pass_time
from emulator.board.pc import START_DATE
from emulator.bus import MemoryBus, PortBus
from emulator.clock import Clock, ClockState
from emulator.devices import piix4
from emulator.devices.cmos_rtc import CmosRtc, RtcState
from emulator.devices.cp0_timer import Cp0Timer, Cp0TimerState
from emulator.devices.debug_exit import DebugExit
from emulator.devices.gt64120 import SIZE as GT_SIZE
from emulator.devices.gt64120 import Gt64120, GtState
from emulator.devices.i8254 import I8254, TimerState
from emulator.devices.i8259 import I8259Pair, PairState
from emulator.devices.malta_fpga import FpgaState, MaltaFpga, Revision
from emulator.devices.ns16550 import Ns16550, SerialState
from emulator.devices.pci import FunctionState, PciBus, PciFunction
from emulator.devices.piix4 import PowerState
from emulator.memory import GuestMemory

PCI_IO, PCI_IO_SIZE = 0x1800_0000, 0x20_0000
GT, FPGA, FPGA_SIZE, REVISION = 0x1BE0_0000, 0x1F00_0000, 0x1000, 0x1FC0_0010
DEVICES, DEVICES_END = 0x1000_0000, 0x2000_0000
"""Everything that the memory bus answers: all of KSEG0's and KSEG1's reach behind the largest memory."""
COM1, COM1_IRQ, COM2, COM2_IRQ = 0x3F8, 4, 0x2F8, 3
PIT, PIT_IRQ, RTC, RTC_IRQ = 0x40, 0, 0x70, 8
DEBUG_EXIT = 0xF4
POWER_IO = 0x1000
BOARD_UART, BOARD_UART_STEP = 0x1F00_0900, 8
TIMER_FREQUENCY = 100_000_000
"""Count's, a second of virtual time."""
LINE_BRIDGE, LINE_BOARD_UART, LINE_TIMER = 1 << 2, 1 << 4, 1 << 7
"""Bits of Cause.IP (from bit 8 on) that the board drives."""
_POLL = 250_000
"""Nanoseconds that a poll of the clock chip's update flag takes: real ones take microseconds, and Linux counts a whole
second by them; a guest that only waits shall not be executed at length."""
_REGISTER_A = 0x0A


_DeviceStates = tuple[
    SerialState, SerialState, SerialState, TimerState, RtcState, GtState, FpgaState, PowerState, Cp0TimerState,
    FunctionState, FunctionState, FunctionState, PairState,
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class MaltaState:
    """All of the board's state but memory."""

    clock: ClockState
    devices: _DeviceStates
    lines: int
    shutdown: Shutdown | None


class _Ports:
    """I/O space of PCI, as a window of memory."""

    name = "pci-io"
    state = None

    def __init__(self, ports: PortBus) -> None:
        self._ports = ports

    def read(self, offset: int, size: int) -> int:
        return self._ports.read(offset, size) if offset < 0x1_0000 else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset < 0x1_0000:
            self._ports.write(offset, size, value)

    def restore(self, state: None) -> None:
        """The bus has no state."""


class _Spread:
    """A device of byte registers that lie `step` bytes apart."""

    def __init__(self, device: Ns16550, step: int) -> None:
        self.name = device.name
        self._device = device
        self._step = step

    def read(self, offset: int, size: int) -> int:
        return self._device.read(offset // self._step, 1)

    def write(self, offset: int, size: int, value: int) -> None:
        self._device.write(offset // self._step, 1, value & 0xFF)

    @property
    def state(self) -> None:
        """The device has it."""
        return None

    def restore(self, state: None) -> None:
        """The device has it."""


class _PolledRtc(CmosRtc):
    """The clock chip behind a slow bus: who polls its update flag waits."""

    polled: Callable[[], None] = staticmethod(lambda: None)

    def read(self, offset: int, size: int) -> int:
        if offset == 1 and self._index == _REGISTER_A:
            self.polled()
        return super().read(offset, size)


class Malta:
    """The board. `console` gets every byte that the guest transmits on the first serial port."""

    def __init__(
        self,
        memory: GuestMemory,
        clock: Clock,
        *,
        console: Callable[[bytes], None],
        start_date: int = START_DATE,
    ) -> None:
        """`start_date`: the guest's date at virtual time 0, in seconds since 1970."""
        self.memory = memory
        self.clock = clock
        self.intr = False
        """Some line is raised; which, `lines` says. Whether the processor takes it is its own affair."""
        self.lines = 0
        """Lines into the processor, as bits of Cause.IP."""
        self.on_interrupt: Callable[[bool], None] | None = None
        self.shutdown: Shutdown | None = None
        self.timer = Cp0Timer(clock, self._line(LINE_TIMER), TIMER_FREQUENCY)
        self.pic = I8259Pair(self._line(LINE_BRIDGE))
        self.com1 = Ns16550(console, self.pic.line(COM1_IRQ))
        self.com2 = Ns16550(lambda _data: None, self.pic.line(COM2_IRQ), "com2")
        self.board_uart = Ns16550(lambda _data: None, self._line(LINE_BOARD_UART), "board-uart")
        self.pit = I8254(clock, self.pic.line(PIT_IRQ))
        self.rtc = _PolledRtc(clock, self.pic.line(RTC_IRQ), start_date, memory.size)
        self.rtc.polled = self._poll
        self.pci = PciBus()
        self.pci.functions = {
            (0, 0): PciFunction("gt64120-config", 0x11AB, 0x4620, 0x060000),
            (10, 0): piix4.bridge(),
            (10, 3): piix4.power(POWER_IO),
        }
        self.gt = Gt64120(self.pci, self.pic.acknowledge)
        self.fpga = MaltaFpga(self._reset)
        self.power = piix4.Piix4Power(self._power_off)
        self.ports = PortBus()
        self.mmio = MemoryBus()
        self._wire()

    def _wire(self) -> None:
        insert = self.ports.insert
        insert(0x20, 2, self.pic.master)
        insert(0xA0, 2, self.pic.slave)
        insert(0x4D0, 2, self.pic.trigger_control)
        insert(PIT, 4, self.pit)
        insert(RTC, 2, self.rtc)
        insert(COM1, 8, self.com1)
        insert(COM2, 8, self.com2)
        insert(DEBUG_EXIT, 4, DebugExit(self._debug_exit), width=4)
        insert(POWER_IO, piix4.IO_SIZE, self.power, width=4)
        self.mmio.insert(PCI_IO, PCI_IO_SIZE, _Ports(self.ports), width=4)
        self.mmio.insert(GT, GT_SIZE, self.gt, width=4)
        self.mmio.insert(FPGA, 0x900, self.fpga, width=4)
        self.mmio.insert(BOARD_UART, 8 * BOARD_UART_STEP, _Spread(self.board_uart, BOARD_UART_STEP), width=4)
        self.mmio.insert(REVISION, 4, Revision(), width=4)

    def _line(self, bit: int) -> Callable[[bool], None]:
        def drive(level: bool) -> None:
            self.lines = self.lines | bit if level else self.lines & ~bit
            self.intr = self.lines != 0
            if self.on_interrupt is not None:
                self.on_interrupt(self.intr)

        return drive

    def _poll(self) -> None:
        """The guest waits for the clock chip: time passes."""
        self.clock.skip_to(self.clock.now() + _POLL)
        self.clock.run_due()

    @property
    def device_space(self) -> tuple[tuple[int, int], ...]:
        """Everything behind the largest memory, as far as KSEG1 reaches."""
        return ((DEVICES, DEVICES_END - DEVICES),)

    # Towards the CPU

    def next_wake(self) -> int | None:
        """Virtual time in nanoseconds of the next event that can raise a line as things are masked now."""
        events = [
            when
            for irq, when in ((PIT_IRQ, self.pit.next_event), (RTC_IRQ, self.rtc.next_event))
            if when is not None and self.pic.would_request(irq)
        ]
        if self.timer.next_event is not None:
            events.append(self.timer.next_event)
        return min(events, default=None)

    def idle(self) -> bool:
        """The CPU waits: let time jump until a line is raised; False when only console input can ever raise one."""
        return pass_time(self, self.clock)

    # Towards the world

    def feed_console(self, data: bytes) -> None:
        """Bytes arrive at the first serial port."""
        self.com1.feed(data)

    def _end(self, shutdown: Shutdown) -> None:
        if self.shutdown is None:
            self.shutdown = shutdown

    def _reset(self) -> None:
        self._end(Shutdown(ShutdownKind.RESET))

    def _power_off(self) -> None:
        self._end(Shutdown(ShutdownKind.POWER_OFF))

    def _debug_exit(self, status: int) -> None:
        self._end(Shutdown(ShutdownKind.DEBUG_EXIT, status))

    # State

    @property
    def _devices(self) -> tuple[Any, ...]:
        functions = (self.pci.functions[place] for place in sorted(self.pci.functions))
        serial = (self.com1, self.com2, self.board_uart)
        return (*serial, self.pit, self.rtc, self.gt, self.fpga, self.power, self.timer, *functions, self.pic)

    @property
    def state(self) -> MaltaState:
        """Clock and devices, without memory."""
        devices = cast(_DeviceStates, tuple(device.state for device in self._devices))
        return MaltaState(self.clock.state, devices, self.lines, self.shutdown)

    def restore(self, state: MaltaState) -> None:
        """Take up an earlier state. The clock forgets all callbacks; the devices schedule theirs anew."""
        self.clock.restore(state.clock)
        for device, saved in zip(self._devices, state.devices, strict=True):
            device.restore(saved)
        self.lines, self.shutdown = state.lines, state.shutdown
        self.intr = self.lines != 0

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of `state`."""
        return hashlib.sha256(repr(self.state).encode()).hexdigest()
