"""The interrupt controller: two 8259A in cascade, by Intel's data sheet (order number 231468).

Room: `emulator/devices`. A chip has a command and a data register (offsets 0 and 1); the pair adds
the edge/level control registers (ELCR) of a PC. In edge mode a request that goes away before it is
acknowledged is forgotten, as on the chip, where the acknowledge then gives IR7. The slave's request
enters the master as a level, so that a second slave interrupt cannot be lost between two edges.
"""

from dataclasses import dataclass
from typing import Any

from emulator.devices.device import InterruptLine

COMMAND, DATA = 0, 1
CASCADE = 2
"""The master's input that the slave is wired to."""

_ICW1, _ICW1_SINGLE, _ICW1_LEVEL, _ICW1_NEED_ICW4 = 0x10, 0x02, 0x08, 0x01
_ICW4_AUTO_EOI, _ICW4_SPECIAL_NESTED = 0x02, 0x10
_OCW3 = 0x08
_ELCR_MASKS = (0xF8, 0xDE)
"""IRQ 0, 1, 2, 8 and 13 are always edge-triggered."""


@dataclass(frozen=True, slots=True)
class ChipState:
    """All of one 8259A's state."""

    lines: int = 0
    """Level of the inputs."""
    irr: int = 0
    isr: int = 0
    imr: int = 0
    elcr: int = 0
    base: int = 0
    """Vector of input 0 (ICW2)."""
    lowest: int = 7
    """The input with the lowest priority; the next one has the highest."""
    icw3: int = 0
    awaited: int = 0
    """Which ICW the data register takes next (2, 3 or 4); 0 when initialised."""
    single: bool = False
    needs_icw4: bool = False
    level: bool = False
    """ICW1.LTIM: all inputs are level-triggered."""
    auto_eoi: bool = False
    rotate_auto_eoi: bool = False
    special_nested: bool = False
    special_mask: bool = False
    reads_isr: bool = False
    """The command register reads ISR rather than IRR."""
    polled: bool = False
    """The next read is the answer to a poll command."""


@dataclass(frozen=True, slots=True)
class PairState:
    """The state of both chips."""

    master: ChipState
    slave: ChipState


class Chip8259A:
    """One 8259A. `output` is called when its interrupt output changes."""

    def __init__(self, name: str, output: InterruptLine, level_inputs: int = 0) -> None:
        """`level_inputs`: inputs (a mask) that follow their line whatever the trigger mode."""
        self.name = name
        self.withdrawn = [0] * 8
        """For each input, requests that went away before they were acknowledged: a tick lost shows here."""
        self._output = output
        self._level_inputs = level_inputs
        self.asserted = False
        """The interrupt output."""
        self._set(ChipState())

    def _set(self, state: ChipState) -> None:
        self._lines = state.lines
        self._irr = state.irr
        self._isr = state.isr
        self._imr = state.imr
        self._elcr = state.elcr
        self._base = state.base
        self._lowest = state.lowest
        self._icw3 = state.icw3
        self._awaited = state.awaited
        self._single = state.single
        self._needs_icw4 = state.needs_icw4
        self._level = state.level
        self._auto_eoi = state.auto_eoi
        self._rotate_auto_eoi = state.rotate_auto_eoi
        self._special_nested = state.special_nested
        self._special_mask = state.special_mask
        self._reads_isr = state.reads_isr
        self._polled = state.polled

    # Inputs and output

    def set_line(self, number: int, level: bool) -> None:
        """Drive input `number` (0-7)."""
        bit = 1 << number
        if level:
            if not self._lines & bit:
                self._lines |= bit
                self._irr |= bit
                self._update()
        elif self._lines & bit:
            self._lines &= ~bit
            if self._irr & bit:
                self._irr &= ~bit
                if not self._isr & bit:
                    self.withdrawn[number] += 1
            self._update()

    def request(self) -> int:
        """The input to be acknowledged next, or -1: unmasked, requesting, more urgent than all in service.

        A chip in the middle of its initialisation has no vector to give and requests nothing.
        """
        waiting = self._irr & ~self._imr
        if not waiting or self._awaited:
            return -1
        shift = self._lowest + 1 & 7
        rank = self._first(waiting, shift)
        number = rank + shift & 7
        isr = self._isr & ~self._imr if self._special_mask else self._isr
        if isr:
            served = self._first(isr, shift)
            if served < rank:
                return -1
            if served == rank and not (self._special_nested and self._level_inputs >> number & 1):
                return -1
        return number

    def would_request(self, number: int) -> bool:
        """Whether an edge at input `number` would make the chip request, as it is masked and in service now."""
        irr = self._irr
        self._irr = irr | 1 << number
        answer = self.request() >= 0
        self._irr = irr
        return answer

    @staticmethod
    def _first(bits: int, shift: int) -> int:
        """Rank (0 is most urgent) of the most urgent of `bits`, when input `shift` has rank 0."""
        rotated = bits >> shift | bits << 8 - shift & 0xFF
        return (rotated & -rotated).bit_length() - 1

    def acknowledge(self) -> int:
        """The two INTA pulses: returns the input served; 7, without taking it in service, when none requests."""
        number = self.request()
        if number < 0:
            return 7
        self._serve(number)
        return number

    def _serve(self, number: int) -> None:
        bit = 1 << number
        if not bit & (self._elcr | self._level_inputs) and not self._level:
            self._irr &= ~bit
        if self._auto_eoi:
            if self._rotate_auto_eoi:
                self._lowest = number
        else:
            self._isr |= bit
        self._update()

    def vector(self, number: int) -> int:
        """The vector of input `number`."""
        return self._base | number

    def is_cascaded(self, number: int) -> bool:
        """Whether another chip answers for input `number` (ICW3 of a master)."""
        return not self._single and bool(self._icw3 >> number & 1)

    def set_trigger(self, elcr: int) -> None:
        """ELCR: a set bit makes the input level-triggered."""
        changed = self._elcr ^ elcr
        self._elcr = elcr
        if not self._level:
            self._irr = self._irr & ~changed | self._lines & elcr & changed
        self._update()

    @property
    def trigger(self) -> int:
        """ELCR as written."""
        return self._elcr

    def _update(self) -> None:
        asserted = self.request() >= 0
        if asserted is not self.asserted:
            self.asserted = asserted
            self._output(asserted)

    # Registers

    def read(self, offset: int, size: int) -> int:
        """IRR or ISR at offset 0, IMR at offset 1; the answer to a poll at either."""
        if self._polled:
            self._polled = False
            number = self.request()
            if number < 0:
                return 0
            self._serve(number)
            return 0x80 | number
        if offset == DATA:
            return self._imr
        return self._isr if self._reads_isr else self._irr

    def write(self, offset: int, size: int, value: int) -> None:
        """ICW1, OCW2 and OCW3 at offset 0; ICW2-4 and OCW1 at offset 1."""
        value &= 0xFF
        if offset == DATA:
            self._write_data(value)
        elif value & _ICW1:
            self._start_initialisation(value)
        elif value & _OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value)
        self._update()

    def _start_initialisation(self, value: int) -> None:
        """ICW1: also resets the edge detectors, the mask, priorities and modes."""
        level = bool(value & _ICW1_LEVEL)
        follows = 0xFF if level else self._elcr | self._level_inputs
        self._set(
            ChipState(
                lines=self._lines,
                irr=self._lines & follows,
                elcr=self._elcr,
                base=self._base,
                icw3=self._icw3,
                awaited=2,
                single=bool(value & _ICW1_SINGLE),
                needs_icw4=bool(value & _ICW1_NEED_ICW4),
                level=level,
            )
        )

    def _write_data(self, value: int) -> None:
        if self._awaited == 0:
            self._imr = value
        elif self._awaited == 2:
            self._base = value & 0xF8
            self._awaited = self._after_icw3() if self._single else 3
        elif self._awaited == 3:
            self._icw3 = value
            self._awaited = self._after_icw3()
        else:
            self._auto_eoi = bool(value & _ICW4_AUTO_EOI)
            self._special_nested = bool(value & _ICW4_SPECIAL_NESTED)
            self._awaited = 0

    def _after_icw3(self) -> int:
        return 4 if self._needs_icw4 else 0

    def _write_ocw2(self, value: int) -> None:
        """End of interrupt and rotation (data sheet, figure 8)."""
        number = value & 7
        command = value >> 5
        if command in (1, 5):  # non-specific
            number = self._in_service()
            if number >= 0:
                self._isr &= ~(1 << number)
                if command == 5:
                    self._lowest = number
        elif command in (3, 7):  # specific
            self._isr &= ~(1 << number)
            if command == 7:
                self._lowest = number
        elif command == 6:
            self._lowest = number
        elif command in (0, 4):
            self._rotate_auto_eoi = command == 4

    def _in_service(self) -> int:
        """The most urgent input in service, or -1; special mask mode passes over masked ones."""
        isr = self._isr & ~self._imr if self._special_mask else self._isr
        if not isr:
            return -1
        shift = self._lowest + 1 & 7
        return self._first(isr, shift) + shift & 7

    def _write_ocw3(self, value: int) -> None:
        if value & 0x40:
            self._special_mask = bool(value & 0x20)
        if value & 0x04:
            self._polled = True
        elif value & 0x02:
            self._reads_isr = bool(value & 0x01)

    # State

    @property
    def state(self) -> ChipState:
        """Registers, modes and input levels."""
        return ChipState(
            self._lines,
            self._irr,
            self._isr,
            self._imr,
            self._elcr,
            self._base,
            self._lowest,
            self._icw3,
            self._awaited,
            self._single,
            self._needs_icw4,
            self._level,
            self._auto_eoi,
            self._rotate_auto_eoi,
            self._special_nested,
            self._special_mask,
            self._reads_isr,
            self._polled,
        )

    def restore(self, state: ChipState) -> None:
        """Take up an earlier state and drive the output by it."""
        self._set(state)
        self._update()


class _TriggerControl:
    """ELCR: one byte for each chip."""

    name = "elcr"

    def __init__(self, chips: tuple[Chip8259A, Chip8259A]) -> None:
        self._chips = chips

    def read(self, offset: int, size: int) -> int:
        return self._chips[offset].trigger if offset < 2 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if offset < 2:
            self._chips[offset].set_trigger(value & _ELCR_MASKS[offset])

    @property
    def state(self) -> Any:
        """None: the chips hold it."""
        return None

    def restore(self, state: Any) -> None:
        """Nothing: the chips hold it."""


class I8259Pair:
    """Master and slave as a PC wires them: fifteen inputs, one output to the CPU.

    `master`, `slave` and `trigger_control` are the three devices to put on a bus.
    """

    def __init__(self, intr: InterruptLine) -> None:
        """`intr` is called when the request to the CPU changes."""
        self.master = Chip8259A("pic-master", intr, level_inputs=1 << CASCADE)
        self.slave = Chip8259A("pic-slave", lambda level: self.master.set_line(CASCADE, level))
        self.trigger_control = _TriggerControl((self.master, self.slave))

    def pending(self) -> bool:
        """Whether the CPU is requested."""
        return self.master.asserted

    def acknowledge(self) -> int:
        """The CPU accepts: returns the vector. IRQ 7's (or 15's) when the request has gone: a spurious interrupt."""
        master = self.master
        number = master.request()
        if number == CASCADE and master.is_cascaded(CASCADE):
            served = self.slave.acknowledge()
            master._serve(CASCADE)
            return self.slave.vector(served)
        return master.vector(master.acknowledge())

    def would_request(self, irq: int) -> bool:
        """Whether an edge of IRQ `irq` would request the CPU, as all is masked and in service now."""
        if irq & 8:
            return self.slave.would_request(irq & 7) and self.master.would_request(CASCADE)
        return self.master.would_request(irq)

    def line(self, irq: int) -> InterruptLine:
        """The request line of IRQ 0-15, to be given to a device. IRQ 2 is taken by the cascade."""
        if not 0 <= irq < 16 or irq == CASCADE:
            raise ValueError(f"IRQ {irq} is no input of the interrupt controllers: give 0-15 without 2")
        chip = self.slave if irq & 8 else self.master
        number = irq & 7
        return lambda level: chip.set_line(number, level)

    @property
    def state(self) -> PairState:
        """Both chips'."""
        return PairState(self.master.state, self.slave.state)

    def restore(self, state: PairState) -> None:
        """Take up an earlier state of both chips."""
        self.slave.restore(state.slave)
        self.master.restore(state.master)
