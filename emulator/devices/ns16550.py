"""The serial port: a 16550 with FIFOs, by National Semiconductor's PC16550D data sheet.

Room: `emulator/devices`. Eight byte-wide registers. A byte is transmitted the moment it is
written, so the transmitter is always empty; its interrupts come as on the chip. Received bytes
wait outside the chip until its FIFO has room, so that none is lost to the host's haste. The
interrupt leaves the chip only while MCR.OUT2 is set, as the PC's serial adapter wires it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from emulator.devices.device import InterruptLine

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
"""Register offsets; THR is RBR, FCR is IIR; with LCR.DLAB the first two are the divisor."""

IER_RECEIVED, IER_TRANSMITTER, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_TRANSMITTER, IIR_RECEIVED, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFOS = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVER = 1, 2
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 16
LSR_READY, LSR_OVERRUN, LSR_ERRORS, LSR_TRANSMITTER_EMPTY = 0x01, 0x02, 0x1E, 0x60
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD
"""Modem inputs while not in loopback: a terminal is attached and ready."""

FIFO_SIZE = 16
_TRIGGER_LEVELS = (1, 4, 8, 14)
_BYTES = tuple(bytes((value,)) for value in range(256))


@dataclass(frozen=True, slots=True)
class SerialState:
    """All of a serial port's state."""

    ier: int
    fcr: int
    lcr: int
    mcr: int
    scr: int
    divisor: int
    errors: int
    """LSR error bits not yet read."""
    modem_delta: int
    """MSR bits 0-3: inputs that changed since MSR was read."""
    transmitter_pending: bool
    """The transmitter-empty interrupt has not been answered yet."""
    last: int
    """What RBR reads when nothing waits."""
    fifo: bytes
    """Received, inside the chip."""
    waiting: bytes
    """Fed, not yet inside the chip."""


_POLLING = 16
"""Reads of LSR and of nothing else that only a driver makes that waits for input: a transmitter never waits."""


class Ns16550:
    """One serial port. `output` gets each transmitted byte; `interrupt` is the request line."""

    def __init__(self, output: Callable[[bytes], None], interrupt: InterruptLine, name: str = "com1") -> None:
        self.name = name
        self._output = output
        self._interrupt = interrupt
        self._line = False
        self._fifo: deque[int] = deque()
        self._waiting: deque[int] = deque()
        self._polls = 0
        self.on_quiet: Callable[[int, bool], None] | None = None
        """Called with what LSR reads until another register is touched, -1 where a read of it counts; and whether a
        write of THR does nothing that the guest can see."""
        self._quiet = (-1, False)
        self._set(SerialState(0, 0, 0, 0, 0, 0, 0, 0, False, 0, b"", b""))

    def _set(self, state: SerialState) -> None:
        self._ier = state.ier
        self._fcr = state.fcr
        self._lcr = state.lcr
        self._mcr = state.mcr
        self._scr = state.scr
        self._divisor = state.divisor
        self._errors = state.errors
        self._modem_delta = state.modem_delta
        self._transmitter_pending = state.transmitter_pending
        self._last = state.last
        self._fifo = deque(state.fifo)
        self._waiting = deque(state.waiting)

    def feed(self, data: bytes) -> None:
        """Bytes arrive on the line, in order; none is lost but to a driver that clears the FIFO."""
        self._waiting.extend(data)
        self._receive()
        self._update()

    @property
    def unread(self) -> int:
        """Bytes fed that the guest has not read yet."""
        return len(self._waiting) + len(self._fifo)

    @property
    def listening(self) -> bool:
        """The guest has asked for input: it takes received-data interrupts, or it waits for LSR to change.

        Before that, a driver that probes the chip throws away what it has received.
        """
        interrupts = self._ier & IER_RECEIVED and self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        return bool(interrupts) or self._polls >= _POLLING

    def read(self, offset: int, size: int) -> int:
        """A register, by the data sheet's table 2."""
        self._polls = self._polls + 1 if offset == LSR else 0
        if offset == LSR:
            value = LSR_TRANSMITTER_EMPTY | self._errors | (LSR_READY if self._fifo else 0)
            if self._errors:
                self._errors = 0
                self._update()
            return value
        if offset == IIR:
            return self._read_iir()
        if offset == RBR:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._read_rbr()
        if offset == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == MSR:
            value = self._modem() | self._modem_delta
            self._modem_delta = 0
            self._update()
            return value
        if offset == LCR:
            return self._lcr
        if offset == MCR:
            return self._mcr
        return self._scr if offset == SCR else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """A register, by the data sheet's table 2. LSR and MSR are not writable (LSR is for factory tests)."""
        value &= 0xFF
        self._polls = 0
        if offset == RBR:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._transmit(value)
        elif offset == IER:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
            else:
                self._write_ier(value & 0x0F)
        elif offset == IIR:
            self._write_fcr(value)
        elif offset == LCR:
            self._lcr = value
        elif offset == MCR:
            self._write_mcr(value & 0x1F)
        elif offset == SCR:
            self._scr = value

    def write_all(self, offset: int, data: bytes) -> bool:
        """Bytes for the line, one after another; not where more than the output comes of them."""
        if offset != RBR or self._lcr & LCR_DLAB or self._mcr & MCR_LOOP or self._ier & IER_TRANSMITTER:
            return False
        self._polls = 0
        self._output(data)
        self._transmitter_pending = True
        return True

    def _transmit(self, value: int) -> None:
        """THR is written, and empty again at once: the interrupt's cause goes and comes, which is a new edge."""
        if self._transmitter_pending:
            self._transmitter_pending = False
            self._update()
        if self._mcr & MCR_LOOP:
            self._arrive(value)
        else:
            self._output(_BYTES[value])
        self._transmitter_pending = True
        self._update()

    def _arrive(self, value: int) -> None:
        """A byte from the shift register reaches the receiver, room or not."""
        room = FIFO_SIZE if self._fcr & FCR_ENABLE else 1
        if len(self._fifo) < room:
            self._fifo.append(value)
            return
        self._errors |= LSR_OVERRUN
        if room == 1:
            self._fifo[0] = value

    def _receive(self) -> None:
        """Let waiting bytes into the chip as far as it has room."""
        if self._mcr & MCR_LOOP:
            return
        room = FIFO_SIZE if self._fcr & FCR_ENABLE else 1
        while self._waiting and len(self._fifo) < room:
            self._fifo.append(self._waiting.popleft())

    def _read_rbr(self) -> int:
        if self._fifo:
            self._last = self._fifo.popleft()
            if self._waiting:
                self._receive()
            self._update()
        return self._last

    def _write_ier(self, value: int) -> None:
        """Enabling the transmitter interrupt while THR is empty requests it at once; disabling takes it back."""
        if (value ^ self._ier) & IER_TRANSMITTER:
            self._transmitter_pending = bool(value & IER_TRANSMITTER)
        self._ier = value
        self._update()

    def _write_fcr(self, value: int) -> None:
        """FIFO control. Changing the enable bit clears the FIFOs; the other bits need it set."""
        if not value & FCR_ENABLE:
            value = 0
        if (value ^ self._fcr) & FCR_ENABLE or value & FCR_CLEAR_RECEIVER:
            self._fifo.clear()
        self._fcr = value & (0xC8 | FCR_ENABLE)
        self._receive()
        self._update()

    def _write_mcr(self, value: int) -> None:
        before = self._modem()
        self._mcr = value
        after = self._modem()
        changed = (before ^ after) >> 4
        ring_ended = before & ~after & MSR_RI
        self._modem_delta |= changed & 0b1011 | (0b0100 if ring_ended else 0)
        self._receive()
        self._update()

    def _modem(self) -> int:
        """MSR bits 4-7: the modem inputs, or in loopback the modem outputs."""
        mcr = self._mcr
        if not mcr & MCR_LOOP:
            return MSR_CONNECTED
        return (
            (MSR_CTS if mcr & MCR_RTS else 0)
            | (MSR_DSR if mcr & MCR_DTR else 0)
            | (MSR_RI if mcr & MCR_OUT1 else 0)
            | (MSR_DCD if mcr & MCR_OUT2 else 0)
        )

    def _cause(self) -> int:
        """IIR bits 0-3: the most urgent enabled cause (data sheet, table 4)."""
        ier = self._ier
        if ier & IER_LINE and self._errors:
            return IIR_LINE
        if ier & IER_RECEIVED and self._fifo:
            if not self._fcr & FCR_ENABLE or len(self._fifo) >= _TRIGGER_LEVELS[self._fcr >> 6]:
                return IIR_RECEIVED
            return IIR_TIMEOUT  # what does not reach the trigger level is all there is, so the time-out is over
        if ier & IER_TRANSMITTER and self._transmitter_pending:
            return IIR_TRANSMITTER
        if ier & IER_MODEM and self._modem_delta:
            return IIR_MODEM
        return IIR_NONE

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_TRANSMITTER:
            self._transmitter_pending = False
            self._update()
        return cause | (IIR_FIFOS if self._fcr & FCR_ENABLE else 0)

    def _update(self) -> None:
        """Drive the request line; in loopback OUT2 does not leave the chip, so no request does."""
        line = self._ier != 0 and self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 and self._cause() != IIR_NONE
        if line is not self._line:
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
        still = not (self._errors or self._fifo or self._waiting or self._mcr & MCR_LOOP)
        quiet = LSR_TRANSMITTER_EMPTY if still else -1, still and not self._ier & IER_TRANSMITTER
        if quiet != self._quiet and self.on_quiet is not None:
            self._quiet = quiet
            self.on_quiet(*quiet)

    @property
    def state(self) -> SerialState:
        """Registers, FIFO and what waits in front of it."""
        return SerialState(
            self._ier,
            self._fcr,
            self._lcr,
            self._mcr,
            self._scr,
            self._divisor,
            self._errors,
            self._modem_delta,
            self._transmitter_pending,
            self._last,
            bytes(self._fifo),
            bytes(self._waiting),
        )

    def restore(self, state: SerialState) -> None:
        """Take up an earlier state and drive the request line by it."""
        self._set(state)
        self._update()
