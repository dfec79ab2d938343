"""The serial port of Arm boards: a PrimeCell UART (PL011), by Arm's technical reference manual DDI 0183.

Room: `emulator/devices`. A byte is transmitted the moment it is written, so the transmitter is always empty and its
interrupt comes with every byte. Received bytes wait outside the chip until its FIFO has room, so that none is lost to
the host's haste.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from emulator.devices.device import InterruptLine

DR, RSR, FR, ILPR, IBRD, FBRD, LCRH, CR = 0x00, 0x04, 0x18, 0x20, 0x24, 0x28, 0x2C, 0x30
IFLS, IMSC, RIS, MIS, ICR, DMACR, ID = 0x34, 0x38, 0x3C, 0x40, 0x44, 0x48, 0xFE0
"""Register offsets."""

FR_RECEIVER_EMPTY, FR_RECEIVER_FULL, FR_TRANSMITTER_EMPTY = 1 << 4, 1 << 6, 1 << 7
LCRH_FIFO = 1 << 4
CR_ENABLE, CR_LOOP, CR_TRANSMIT, CR_RECEIVE = 1 << 0, 1 << 7, 1 << 8, 1 << 9
INT_RECEIVE, INT_TRANSMIT, INT_TIMEOUT = 1 << 4, 1 << 5, 1 << 6
INT_ALL = 0x7FF

FIFO_SIZE = 16
_TRIGGERS = (2, 4, 8, 12, 14, 14, 14, 14)
"""Bytes at which the receive interrupt comes, by IFLS bits 5-3."""
_IDENTITY = (0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1)
"""PeriphID and PCellID: part 011, Arm, revision 1."""
_POLLING = 16
"""Reads of FR and of nothing else that only a driver makes that waits for input: a transmitter never waits."""
_BYTES = tuple(bytes((value,)) for value in range(256))


@dataclass(frozen=True, slots=True)
class Pl011State:
    """All of a serial port's state."""

    control: int
    line_control: int
    integer_divisor: int
    fraction_divisor: int
    trigger: int
    mask: int
    latched: int
    """Raw interrupts that stay until they are cleared: the transmitter's."""
    low_power: int
    dma: int
    fifo: bytes
    """Received, inside the chip."""
    waiting: bytes
    """Fed, not yet inside the chip."""


class Pl011:
    """One serial port. `output` gets each transmitted byte; `interrupt` is the request line."""

    def __init__(self, output: Callable[[bytes], None], interrupt: InterruptLine, name: str = "uart") -> None:
        self.name = name
        self._output = output
        self._interrupt = interrupt
        self._line = False
        self._polls = 0
        self.on_quiet: Callable[[int, bool], None] | None = None
        """Called with FR, while reads of it always give the same and nothing comes of them (or -1), and with whether
        nothing but the output comes of a write to DR, when either changes."""
        self._quiet = (-1, False)
        self._set(Pl011State(CR_TRANSMIT | CR_RECEIVE, 0, 0, 0, 0x12, 0, 0, 0, 0, b"", b""))

    def _set(self, state: Pl011State) -> None:
        self._control = state.control
        self._line_control = state.line_control
        self._divisors = [state.integer_divisor, state.fraction_divisor]
        self._trigger = state.trigger
        self._mask = state.mask
        self._latched = state.latched
        self._low_power = state.low_power
        self._dma = state.dma
        self._fifo = deque(state.fifo)
        self._waiting = deque(state.waiting)

    def feed(self, data: bytes) -> None:
        """Bytes arrive on the line, in order; none is lost."""
        self._waiting.extend(data)
        self._receive()
        self._update()

    @property
    def unread(self) -> int:
        """Bytes fed that the guest has not read yet."""
        return len(self._waiting) + len(self._fifo)

    @property
    def listening(self) -> bool:
        """The guest has asked for input: it takes receive interrupts, or it waits for FR to change."""
        return bool(self._mask & (INT_RECEIVE | INT_TIMEOUT)) or self._polls >= _POLLING

    def read(self, offset: int, size: int) -> int:
        """A register, by section 3.2 of the manual."""
        self._polls = self._polls + 1 if offset == FR else 0
        if offset == FR:
            full = FR_RECEIVER_FULL if len(self._fifo) >= self._depth else 0
            return FR_TRANSMITTER_EMPTY | full | (0 if self._fifo else FR_RECEIVER_EMPTY)
        if offset == DR:
            return self._read_data()
        if offset == RIS:
            return self._raw()
        if offset == MIS:
            return self._raw() & self._mask
        if ID <= offset < ID + 4 * len(_IDENTITY):
            return _IDENTITY[offset - ID >> 2]
        registers = {
            ILPR: self._low_power,
            IBRD: self._divisors[0],
            FBRD: self._divisors[1],
            LCRH: self._line_control,
            CR: self._control,
            IFLS: self._trigger,
            IMSC: self._mask,
            DMACR: self._dma,
        }
        return registers.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """A register, by section 3.2 of the manual."""
        self._polls = 0
        if offset == DR:
            self._transmit(value & 0xFF)
        elif offset == ILPR:
            self._low_power = value & 0xFF
        elif offset == IBRD:
            self._divisors[0] = value & 0xFFFF
        elif offset == FBRD:
            self._divisors[1] = value & 0x3F
        elif offset == LCRH:
            self._line_control = value & 0xFF
            self._receive()
        elif offset == CR:
            self._control = value & 0xFFFF
            self._receive()
        elif offset == IFLS:
            self._trigger = value & 0x3F
        elif offset == IMSC:
            self._mask = value & INT_ALL
        elif offset == ICR:
            self._latched &= ~value
        elif offset == DMACR:
            self._dma = value & 7
        self._update()

    def transmit(self, data: bytes) -> None:
        """As many writes of a byte to DR, one after the other."""
        if self._control & (CR_ENABLE | CR_TRANSMIT | CR_LOOP) == CR_ENABLE | CR_TRANSMIT and data:
            self._polls = 0
            self._latched |= INT_TRANSMIT
            self._output(data)
            self._update()
        else:
            for value in data:
                self.write(DR, 4, value)

    @property
    def _depth(self) -> int:
        return FIFO_SIZE if self._line_control & LCRH_FIFO else 1

    def _transmit(self, value: int) -> None:
        if self._control & (CR_ENABLE | CR_TRANSMIT) != CR_ENABLE | CR_TRANSMIT:
            return
        self._latched |= INT_TRANSMIT
        if self._control & CR_LOOP:
            self._waiting.appendleft(value)
            self._receive()
        else:
            self._output(_BYTES[value])

    def _receive(self) -> None:
        """Let waiting bytes into the chip as far as its FIFO has room."""
        if self._control & (CR_ENABLE | CR_RECEIVE) != CR_ENABLE | CR_RECEIVE:
            return
        while self._waiting and len(self._fifo) < self._depth:
            self._fifo.append(self._waiting.popleft())

    def _read_data(self) -> int:
        if not self._fifo:
            return 0
        value = self._fifo.popleft()
        self._receive()
        self._update()
        return value

    def _raw(self) -> int:
        """The raw interrupt status: the timeout interrupt comes at once, since nothing more can be on its way."""
        level = _TRIGGERS[self._trigger >> 3 & 7] if self._line_control & LCRH_FIFO else 1
        received = INT_RECEIVE if len(self._fifo) >= level else 0
        return self._latched | received | (INT_TIMEOUT if self._fifo else 0)

    def _update(self) -> None:
        line = self._raw() & self._mask != 0
        if line != self._line:
            self._line = line
            self._interrupt(line)
        if self.on_quiet is not None:
            self._publish()

    def watch_quiet(self, on_quiet: Callable[[int, bool], None]) -> None:
        """Call `on_quiet` now and whenever what it tells changes."""
        self.on_quiet = on_quiet
        self._quiet = (-1, False)
        self._publish()

    def _publish(self) -> None:
        still = not (self._fifo or self._waiting or self._control & CR_LOOP)
        sends = self._control & (CR_ENABLE | CR_TRANSMIT) == CR_ENABLE | CR_TRANSMIT
        status = FR_TRANSMITTER_EMPTY | FR_RECEIVER_EMPTY if still else -1
        quiet = status, still and sends and not self._mask & INT_TRANSMIT
        if quiet != self._quiet and self.on_quiet is not None:
            self._quiet = quiet
            self.on_quiet(*quiet)

    @property
    def state(self) -> Pl011State:
        """All of it; the level of the interrupt line follows from it."""
        return Pl011State(
            self._control,
            self._line_control,
            self._divisors[0],
            self._divisors[1],
            self._trigger,
            self._mask,
            self._latched,
            self._low_power,
            self._dma,
            bytes(self._fifo),
            bytes(self._waiting),
        )

    def restore(self, state: Pl011State) -> None:
        """Take up an earlier state, and drive the line accordingly."""
        self._set(state)
        self._polls = 0
        self._line = self._raw() & self._mask != 0
        self._interrupt(self._line)
        if self.on_quiet is not None:
            self._publish()
