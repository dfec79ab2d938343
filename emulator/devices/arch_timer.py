"""The generic timer of Arm processors: a counter, and two timers that compare with it (DDI 0487, D11; DDI 0406, B8).

Room: `emulator/devices`. A device without a window: its registers are the processor's own, read and written by name
(`CNTVCT`, `CNTV_CTL`, ... without the level that AArch64 adds), and its lines lead to the interrupt controller. The
counter is virtual time, so it stands still while nothing happens in the guest.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from emulator.clock import NANOSECONDS, Clock, Timer
from emulator.devices.device import InterruptLine

FREQUENCY: Final = 62_500_000
"""Ticks in a second, as on QEMU's board."""

ENABLE, MASKED, STATUS = 1, 2, 4
"""Bits of a timer's control register."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_FAR = 1 << 62
"""Nanoseconds behind which no callback is asked for."""
_PER_TICK = Fraction(NANOSECONDS, FREQUENCY)


@dataclass(frozen=True, slots=True)
class ArchTimerState:
    """All of the timer's state but the counter, which is the clock's."""

    virtual: tuple[int, int]
    """Control and compare value."""
    physical: tuple[int, int]
    kernel_control: int
    """CNTKCTL: what user code may use."""


class _Comparator:
    """One timer: it requests while it is enabled, not masked, and the counter has reached its compare value."""

    def __init__(self, clock: Clock, line: InterruptLine) -> None:
        self._clock = clock
        self._line = line
        self._level = False
        self._timer: Timer | None = None
        self.control = 0
        self.compare = 0

    def due(self) -> int | None:
        """Virtual time in nanoseconds at which it begins to request; None when it does not."""
        if self.control & (ENABLE | MASKED) != ENABLE:
            return None
        when = -(-self.compare * _PER_TICK.numerator // _PER_TICK.denominator)
        return when if when < _FAR else None

    def reached(self) -> bool:
        """The timer's condition, whether or not it may request."""
        return bool(self.control & ENABLE) and count(self._clock) >= self.compare

    def update(self) -> None:
        """Drive the line, and have the clock call when it is to be driven again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self.due()
        level = when is not None and self.reached()
        if when is not None and not level:
            self._timer = self._clock.at(when, self._elapsed)
        if level != self._level:
            self._level = level
            self._line(level)

    def _elapsed(self) -> None:
        self._timer = None
        self.update()


def count(clock: Clock) -> int:
    """The counter at the clock's time."""
    return clock.now() * _PER_TICK.denominator // _PER_TICK.numerator


class ArchTimer:
    """The timer of one CPU."""

    def __init__(self, clock: Clock, virtual: InterruptLine, physical: InterruptLine, name: str = "timer") -> None:
        self.name = name
        self._clock = clock
        self._comparators = {"CNTV": _Comparator(clock, virtual), "CNTP": _Comparator(clock, physical)}
        self._kernel_control = 0

    def count(self) -> int:
        """The counter: CNTPCT, and CNTVCT as its offset is 0."""
        return count(self._clock)

    def due(self) -> tuple[int | None, int | None]:
        """When the virtual and the physical timer begin to request, in nanoseconds of virtual time."""
        return self._comparators["CNTV"].due(), self._comparators["CNTP"].due()

    def read(self, name: str) -> int:
        """A register by its name. Raises KeyError for one that is not the timer's."""
        if name in ("CNTVCT", "CNTPCT"):
            return self.count()
        if name == "CNTFRQ":
            return FREQUENCY
        if name == "CNTKCTL":
            return self._kernel_control
        which, what = name.split("_", 1)
        timer = self._comparators[which]
        if what == "CTL":
            return timer.control | (STATUS if timer.reached() else 0)
        return {"CVAL": timer.compare, "TVAL": timer.compare - self.count() & 0xFFFF_FFFF}[what]

    def write(self, name: str, value: int) -> None:
        """Load a register by its name. Raises KeyError for one that is not the timer's or cannot be written."""
        if name == "CNTKCTL":
            self._kernel_control = value & 0x3FF
            return
        which, _, what = name.partition("_")
        timer = self._comparators[which]
        if what == "CTL":
            timer.control = value & (ENABLE | MASKED)
        elif what == "CVAL":
            timer.compare = value & _MASK
        elif what == "TVAL":
            signed = (value & 0xFFFF_FFFF) - (value << 1 & 1 << 32)
            timer.compare = self.count() + signed & _MASK
        else:
            raise KeyError(name)
        timer.update()

    @property
    def state(self) -> ArchTimerState:
        """Both timers and what user code may use."""
        virtual, physical = self._comparators["CNTV"], self._comparators["CNTP"]
        return ArchTimerState(
            (virtual.control, virtual.compare), (physical.control, physical.compare), self._kernel_control
        )

    def restore(self, state: ArchTimerState) -> None:
        """Take up an earlier state; the clock has been restored before."""
        for name, (control, compare) in (("CNTV", state.virtual), ("CNTP", state.physical)):
            timer = self._comparators[name]
            timer.control, timer.compare = control, compare
            timer.update()
        self._kernel_control = state.kernel_control
