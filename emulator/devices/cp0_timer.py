"""The timer of a MIPS32 processor: Count and Compare of coprocessor 0 (MD00090, 9.13 and 9.16).

Room: `emulator/devices`. Nothing ticks: Count is worked out of virtual time when it is read. The line rises when Count
reaches Compare, and falls when Compare is written.
"""

from dataclasses import dataclass

from emulator.clock import NANOSECONDS, Clock, Timer
from emulator.devices.device import InterruptLine

_WORD = 1 << 32


@dataclass(frozen=True, slots=True)
class Cp0TimerState:
    """All of the timer's state."""

    offset: int
    """Count at virtual time 0, as if it had run since."""
    compare: int
    requested: bool


class Cp0Timer:
    """Count runs at `frequency` a second of virtual time; `line` is raised at every match."""

    def __init__(self, clock: Clock, line: InterruptLine, frequency: int) -> None:
        self._clock = clock
        self._line = line
        self.frequency = frequency
        self._timer: Timer | None = None
        self._set(Cp0TimerState(0, 0, False))

    def _set(self, state: Cp0TimerState) -> None:
        self._offset, self._compare, self.requested = state.offset, state.compare, state.requested

    def _ticks(self) -> int:
        return self._clock.now() * self.frequency // NANOSECONDS

    @property
    def count(self) -> int:
        """Count now."""
        return self._offset + self._ticks() & _WORD - 1

    @count.setter
    def count(self, value: int) -> None:
        self._offset = value - self._ticks()
        self._schedule()

    @property
    def compare(self) -> int:
        """Compare."""
        return self._compare

    @compare.setter
    def compare(self, value: int) -> None:
        self._compare = value & _WORD - 1
        self._drive(False)
        self._schedule()

    @property
    def next_event(self) -> int | None:
        """Virtual time in nanoseconds of the next match."""
        return None if self._timer is None else self._timer.when

    def _drive(self, level: bool) -> None:
        if level != self.requested:
            self.requested = level
            self._line(level)

    def _schedule(self) -> None:
        """Ask the clock for the next match; now is the last one."""
        if self._timer is not None:
            self._timer.cancel()
        ahead = (self._compare - self.count - 1) % _WORD + 1
        when = -(-(self._ticks() + ahead) * NANOSECONDS // self.frequency)
        self._timer = self._clock.at(when, self._match)

    def _match(self) -> None:
        self._drive(True)
        self._schedule()

    @property
    def state(self) -> Cp0TimerState:
        """All of the timer's state."""
        return Cp0TimerState(self._offset, self._compare, self.requested)

    def restore(self, state: Cp0TimerState) -> None:
        """Take up an earlier state."""
        self._set(state)
        self._schedule()
