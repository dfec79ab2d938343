"""The interrupt controller of Arm boards: a GICv2 for one CPU, by Arm's architecture specification IHI 0048B.

Room: `emulator/devices`. A distributor and a CPU interface, two windows of one controller; no security extensions, so
all interrupts are of group 0 as IGROUPR reads, and IRQ is what they request. Levels and edges, priorities with their
grouping, software-generated interrupts, both ways of ending an interrupt.
"""

from collections.abc import Callable
from dataclasses import dataclass

from emulator.devices.device import InterruptLine

LINES = 288
"""Interrupts: 16 software-generated, 16 private to the CPU, 256 shared."""
SPURIOUS = 1023
_IDLE = 0x100
"""Running priority while no interrupt is active: lower than any."""
_SGI_MASK, _PRIVATE_MASK = 0xFFFF, 0xFFFF_FFFF
_EVERY = (1 << LINES) - 1

# Distributor.
D_CTLR, D_TYPER, D_IIDR = 0x000, 0x004, 0x008
D_GROUP, D_SET_ENABLE, D_CLEAR_ENABLE, D_SET_PENDING, D_CLEAR_PENDING = 0x080, 0x100, 0x180, 0x200, 0x280
D_SET_ACTIVE, D_CLEAR_ACTIVE, D_PRIORITY, D_TARGETS, D_CONFIGURATION = 0x300, 0x380, 0x400, 0x800, 0xC00
D_SGI, D_CLEAR_SGI, D_SET_SGI, D_IDENTITY = 0xF00, 0xF10, 0xF20, 0xFD0
# CPU interface.
C_CTLR, C_PMR, C_BPR, C_IAR, C_EOIR, C_RPR, C_HPPIR = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18
C_ABPR, C_AIAR, C_AEOIR, C_AHPPIR, C_ACTIVE_PRIORITY, C_IIDR, C_DIR = 0x1C, 0x20, 0x24, 0x28, 0xD0, 0xFC, 0x1000

_D_IIDR, _C_IIDR = 0x0000_043B, 0x0002_043B
_IDENTITY = {0xFD0: 0x04, 0xFE0: 0x90, 0xFE4: 0xB4, 0xFE8: 0x2B, 0xFF0: 0x0D, 0xFF4: 0xF0, 0xFF8: 0x05, 0xFFC: 0xB1}
_END_MODE = 1 << 9
_ALLOWED = 0x201
"""Bits of GICC_CTLR that can be set: enable, and EOImode."""


@dataclass(frozen=True, slots=True)
class GicState:
    """All of the controller's state. Sets of interrupts are bit masks."""

    enabled_distributor: bool
    control: int
    priority_mask: int
    binary_point: int
    enabled: int
    latched: int
    """Pending by an edge, by software, or by a write to ISPENDR."""
    levels: int
    """Lines that are high."""
    active: int
    edges: int
    """Interrupts that are edge-triggered."""
    priorities: bytes
    running: tuple[tuple[int, int], ...]
    """(interrupt, priority) of those taken and not yet ended, the latest last."""


class Gicv2:
    """The controller. `request` is the CPU's IRQ line."""

    def __init__(self, request: InterruptLine, name: str = "gic") -> None:
        self.name = name
        self._request = request
        self._line = False
        self.distributor = _Window(f"{name}-distributor", self._read_distributor, self._write_distributor)
        """Window of 4 KiB."""
        self.interface = _Window(f"{name}-cpu", self._read_interface, self._write_interface)
        """Window of 8 KiB."""
        self._set(GicState(False, 0, 0, 0, _SGI_MASK, 0, 0, 0, _SGI_MASK, bytes(LINES), ()))

    def _set(self, state: GicState) -> None:
        self._on = state.enabled_distributor
        self._control = state.control
        self._priority_mask = state.priority_mask
        self._binary_point = state.binary_point
        self._enabled = state.enabled
        self._latched = state.latched
        self._levels = state.levels
        self._active = state.active
        self._edges = state.edges
        self._priorities = bytearray(state.priorities)
        self._running = list(state.running)

    def line(self, number: int) -> InterruptLine:
        """The input of an interrupt."""
        bit = 1 << number

        def drive(level: bool) -> None:
            if level == bool(self._levels & bit):
                return
            if level:
                self._levels |= bit
                if self._edges & bit:
                    self._latched |= bit
            else:
                self._levels &= ~bit
            self._update()

        return drive

    def would_request(self, number: int) -> bool:
        """Whether an interrupt that becomes pending now would request the CPU."""
        bit = 1 << number
        ready = self._on and self._control & 1 and self._enabled & bit and not self._active & bit
        return bool(ready) and self._preempts(self._priorities[number])

    # -- what is pending ------------------------------------------------------------------------

    def _pending(self) -> int:
        return self._latched | self._levels & ~self._edges

    def _best(self) -> int:
        """The pending interrupt of the highest priority, or -1."""
        if not self._on:
            return -1
        candidates = self._pending() & self._enabled & ~self._active
        best, found = _IDLE, -1
        while candidates:
            low = candidates & -candidates
            candidates ^= low
            number = low.bit_length() - 1
            if self._priorities[number] < best:
                best, found = self._priorities[number], number
        return found

    def _group_mask(self) -> int:
        """Bits of a priority that decide about preemption."""
        return 0xFF << self._binary_point + 1 & 0xFF

    def _preempts(self, priority: int) -> bool:
        running = self._running[-1][1] & self._group_mask() if self._running else _IDLE
        return priority < self._priority_mask and priority & self._group_mask() < running

    def _update(self) -> None:
        line = False
        if self._control & 1 and self._on and self._pending() & self._enabled & ~self._active:
            best = self._best()
            line = best >= 0 and self._preempts(self._priorities[best])
        if line != self._line:
            self._line = line
            self._request(line)

    # -- CPU interface --------------------------------------------------------------------------

    def acknowledge(self) -> int:
        """The CPU takes the interrupt (a read of GICC_IAR): its number, or 1023 when there is none to take."""
        best = self._best()
        if best < 0 or not self._control & 1 or not self._preempts(self._priorities[best]):
            return SPURIOUS
        bit = 1 << best
        self._latched &= ~bit
        self._active |= bit
        self._running.append((best, self._priorities[best]))
        self._update()
        return best

    def _end(self, number: int) -> None:
        """A write to GICC_EOIR: the running priority drops, and the interrupt ends with it unless EOImode says not."""
        for at in range(len(self._running) - 1, -1, -1):
            if self._running[at][0] == number:
                del self._running[at]
                if not self._control & _END_MODE:
                    self._active &= ~(1 << number)
                break
        self._update()

    def _read_interface(self, offset: int, size: int) -> int:
        if offset == C_IAR:
            return self.acknowledge()
        if offset in (C_HPPIR, C_AHPPIR):
            best = self._best()
            return SPURIOUS if best < 0 else best
        if offset == C_RPR:
            return self._running[-1][1] if self._running else 0xFF
        if offset in (C_AIAR,):
            return SPURIOUS
        registers = {
            C_CTLR: self._control,
            C_PMR: self._priority_mask,
            C_BPR: self._binary_point,
            C_ABPR: min(7, self._binary_point + 1),
            C_IIDR: _C_IIDR,
            C_ACTIVE_PRIORITY: self._active_priorities(),
        }
        return registers.get(offset, 0)

    def _active_priorities(self) -> int:
        """GICC_APR0: a bit for each active group priority, in steps of 8."""
        return sum({1 << (priority >> 3) for _, priority in self._running})

    def _write_interface(self, offset: int, size: int, value: int) -> None:
        if offset == C_CTLR:
            self._control = value & _ALLOWED
        elif offset == C_PMR:
            self._priority_mask = value & 0xFF
        elif offset == C_BPR:
            self._binary_point = value & 7
        elif offset == C_EOIR:
            self._end(value & 0x3FF)
            return
        elif offset == C_DIR and self._control & _END_MODE:
            self._active &= ~(1 << (value & 0x3FF))
        self._update()

    # -- distributor ----------------------------------------------------------------------------

    def _read_distributor(self, offset: int, size: int) -> int:
        if D_GROUP <= offset < D_PRIORITY:
            return self._read_bits(offset) >> 8 * (offset & 3)
        if D_PRIORITY <= offset < D_PRIORITY + LINES:
            at = offset - D_PRIORITY
            return int.from_bytes(self._priorities[at : at + size], "little")
        if D_TARGETS <= offset < D_TARGETS + LINES:
            return 0x0101_0101 & (1 << 8 * size) - 1  # one CPU: the targets of private interrupts say which this is
        if D_CONFIGURATION <= offset < D_CONFIGURATION + LINES // 4:
            return self._configuration(offset - D_CONFIGURATION & ~3) >> 8 * (offset & 3)
        if D_CLEAR_SGI <= offset < D_SET_SGI + 16:
            at = offset & 15
            return sum((self._latched >> at + byte & 1) << 8 * byte for byte in range(size))
        if offset == D_CTLR:
            return int(self._on)
        if offset == D_TYPER:
            return LINES // 32 - 1
        return _D_IIDR if offset == D_IIDR else _IDENTITY.get(offset, 0)

    def _read_bits(self, offset: int) -> int:
        """A register of a bit an interrupt."""
        where = (offset & 0x7C) * 8
        sets = {
            D_SET_ENABLE: self._enabled,
            D_CLEAR_ENABLE: self._enabled,
            D_SET_PENDING: self._pending(),
            D_CLEAR_PENDING: self._pending(),
            D_SET_ACTIVE: self._active,
            D_CLEAR_ACTIVE: self._active,
        }
        return sets.get(offset & ~0x7F, 0) >> where & 0xFFFF_FFFF

    def _configuration(self, offset: int) -> int:
        first = offset * 4
        return sum((self._edges >> first + number & 1) << 2 * number + 1 for number in range(16))

    def _write_distributor(self, offset: int, size: int, value: int) -> None:
        if D_GROUP <= offset < D_PRIORITY:
            self._write_bits(offset & ~0x7F, value << (offset & 0x7F) * 8 & _EVERY)
        elif D_PRIORITY <= offset < D_PRIORITY + LINES:
            at = offset - D_PRIORITY
            self._priorities[at : at + size] = value.to_bytes(size, "little")[: LINES - at]
        elif D_CONFIGURATION + 8 <= offset < D_CONFIGURATION + LINES // 4:
            self._configure((offset - D_CONFIGURATION) * 4, size, value)
        elif offset == D_SGI:
            self._send(value)
        elif D_CLEAR_SGI <= offset < D_SET_SGI + 16:
            self._change_sgis(offset, size, value)
        elif offset == D_CTLR:
            self._on = bool(value & 1)
        self._update()

    def _write_bits(self, register: int, bits: int) -> None:
        """A register of a bit an interrupt, of which 1 sets or clears. SGIs cannot be disabled, nor made pending so."""
        if register == D_SET_ENABLE:
            self._enabled |= bits
        elif register == D_CLEAR_ENABLE:
            self._enabled &= ~bits | _SGI_MASK
        elif register == D_SET_PENDING:
            self._latched |= bits & ~_SGI_MASK
        elif register == D_CLEAR_PENDING:
            self._latched &= ~bits | _SGI_MASK
        elif register == D_SET_ACTIVE:
            self._active |= bits
        elif register == D_CLEAR_ACTIVE:
            self._active &= ~bits

    def _configure(self, first: int, size: int, value: int) -> None:
        for number in range(4 * size):
            bit = 1 << first + number
            self._edges = self._edges | bit if value >> 2 * number + 1 & 1 else self._edges & ~bit

    def _send(self, value: int) -> None:
        """GICD_SGIR: a software-generated interrupt, to the listed CPUs, all others, or this one."""
        to_itself = value >> 24 & 3 == 2 or (value >> 24 & 3 == 0 and value >> 16 & 1)
        if to_itself:
            self._latched |= 1 << (value & 15)

    def _change_sgis(self, offset: int, size: int, value: int) -> None:
        for byte in range(size):
            if value >> 8 * byte & 1:
                bit = 1 << (offset + byte & 15)
                self._latched = self._latched | bit if offset >= D_SET_SGI else self._latched & ~bit

    # -- state ----------------------------------------------------------------------------------

    @property
    def state(self) -> GicState:
        """All of it; the level of the request line follows from it."""
        return GicState(
            self._on,
            self._control,
            self._priority_mask,
            self._binary_point,
            self._enabled,
            self._latched,
            self._levels,
            self._active,
            self._edges,
            bytes(self._priorities),
            tuple(self._running),
        )

    def restore(self, state: GicState) -> None:
        """Take up an earlier state, and drive the request line accordingly. Raises `ValueError` for one of another
        controller."""
        masks = state.enabled, state.latched, state.levels, state.active, state.edges
        taken = all(0 <= number < LINES and 0 <= priority <= 0xFF for number, priority in state.running)
        if len(state.priorities) != LINES or not taken or not all(0 <= mask <= _EVERY for mask in masks):
            raise ValueError(f"an interrupt controller of other lines than {LINES}")
        if not (0 <= state.binary_point <= 7 and 0 <= state.priority_mask <= 0xFF):
            raise ValueError("an interrupt controller's priorities are none")
        self._set(state)
        self._line = not self._line
        self._update()
        self._request(self._line)


class _Window:
    """One of the controller's two register windows, as a device; the controller has the state."""

    def __init__(self, name: str, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        self.name = name
        self.read = read
        self.write = write

    @property
    def state(self) -> None:
        """The controller has it."""
        return None

    def restore(self, state: None) -> None:
        """The controller has it."""
