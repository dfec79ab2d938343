"""The interval timer: an 8254 by Intel's data sheet (order number 231164).

Room: `emulator/devices`. Nothing ticks: a counter is the PIT clock (1193182 Hz of virtual time) at
which it was loaded, and what the guest reads is worked out from that, in whole numbers. Channel 0's
output is an interrupt line; its rising edges are the only events the clock is asked for, and a fall
in between is shown just before the next rise. When time ran several periods on before the clock was
served, the line rises once, as a pending request takes no second; the rest is in `missed_edges`.
"""

from dataclasses import dataclass

from emulator.clock import NANOSECONDS, Clock, Timer
from emulator.devices.device import InterruptLine

FREQUENCY = 1_193_182
"""PIT clocks in a second."""

CONTROL = 3
"""Offset of the control word register; channels are at 0-2."""

_LATCH, _LOW, _HIGH, _BOTH = range(4)
_EVENT_RANK = 0


def clocks_at(when: int) -> int:
    """PIT clocks that have passed at `when` virtual nanoseconds."""
    return when * FREQUENCY // NANOSECONDS


def time_of(clocks: int) -> int:
    """The first virtual nanosecond at which `clocks` PIT clocks have passed."""
    return -(-clocks * NANOSECONDS // FREQUENCY)


@dataclass(frozen=True, slots=True)
class ChannelState:
    """All of one counter's state. Times are in PIT clocks since virtual time 0."""

    mode: int = 0
    access: int = _BOTH
    bcd: bool = False
    count: int = 0
    """The count register as an initial count (1..65536), or 0 before the first was written."""
    start: int | None = None
    """When the counting element was loaded with `count`; None: not loaded, or waiting for a trigger."""
    previous: tuple[int, int] | None = None
    """Modes 2 and 3: the (count, start) that runs until `start`, when a new count was written in mid-period."""
    held: int | None = None
    """Clocks counted before the gate stopped the count (modes 0 and 4) or None while it runs."""
    gate: bool = True
    first_byte: int | None = None
    """The low byte of a count that is being written."""
    read_high: bool = False
    """The high byte is read next."""
    latched: int | None = None
    """A latched count, not yet read through."""
    latched_status: int | None = None


class Channel:
    """One counter of the three."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set(ChannelState())

    def _set(self, state: ChannelState) -> None:
        self._mode = state.mode
        self._access = state.access
        self._bcd = state.bcd
        self._count = state.count
        self._start = state.start
        self._previous = state.previous
        self._held = state.held
        self.gate = state.gate
        self._first_byte = state.first_byte
        self._read_high = state.read_high
        self._latched = state.latched
        self._latched_status = state.latched_status

    # What the counter does

    def _clocks(self) -> int:
        return clocks_at(self._clock.now())

    def _running(self, now: int) -> tuple[int, int | None]:
        """The count in use at `now`, and the clocks since it was loaded (None: nothing counts; -1: about to)."""
        if self._held is not None:
            return self._count, self._held
        if self._start is None:
            return self._count, None
        if self._previous is not None and now < self._start:
            count, start = self._previous
            return count, now - start
        return self._count, now - self._start

    def output(self, now: int) -> bool:
        """Level of the OUT pin (data sheet, mode definitions)."""
        count, elapsed = self._running(now)
        if self._mode == 0:
            return elapsed is not None and elapsed >= count
        if elapsed is None or elapsed < 0:
            return True
        if self._mode == 1:
            return elapsed >= count
        if self._mode in (4, 5):
            return elapsed != count
        if not self.gate or count < 2:
            return True
        phase = elapsed % count
        return phase != count - 1 if self._mode == 2 else phase < (count + 1) // 2

    def next_rise(self, now: int) -> int | None:
        """The first clock after `now` at which OUT goes from low to high, or None.

        A count of 1 is illegal in modes 2 and 3: it gives no edges here.
        """
        count, elapsed = self._running(now)
        if elapsed is None or self._held is not None:
            return None
        start = now - elapsed
        if self._mode in (2, 3):
            if not self.gate or count < 2:
                return None
            return start + (max(elapsed, 0) // count + 1) * count
        rise = start + count + (1 if self._mode in (4, 5) else 0)
        return rise if rise > now else None

    def rises_between(self, before: int, now: int) -> int:
        """Rising edges of OUT in the clocks (before, now], of a counter that nobody touched meanwhile."""
        rise = self.next_rise(before)
        if rise is None or rise > now:
            return 0
        if self._mode not in (2, 3):
            return 1
        count, _ = self._running(rise)
        return 1 + (now - rise) // count if count >= 2 else 1

    def value(self, now: int) -> int:
        """What the counting element shows, 16 bits, in BCD if so programmed."""
        count, elapsed = self._running(now)
        passed = max(elapsed or 0, 0)
        if self._mode in (2, 3) and count:
            phase = passed % count if self.gate else 0
            left = count - phase if self._mode == 2 else self._square_value(phase, count)
        else:
            left = count - passed
        if not self._bcd:
            return left & 0xFFFF
        left %= 10_000
        return left // 1000 << 12 | left // 100 % 10 << 8 | left // 10 % 10 << 4 | left % 10

    @staticmethod
    def _square_value(phase: int, count: int) -> int:
        """Mode 3 counts down by two, twice a period; an odd count starts one lower."""
        high = (count + 1) // 2
        if phase >= high:
            phase -= high
        return (count & ~1) - 2 * phase

    # Programming

    def write_control(self, value: int) -> None:
        """A control word for this channel: a latch command, or a new mode."""
        access = value >> 4 & 3
        if access == _LATCH:
            self.latch_count()
            return
        mode = value >> 1 & 7
        self._mode = mode - 4 if mode > 5 else mode
        self._access = access
        self._bcd = bool(value & 1)
        self._start = None
        self._previous = None
        self._held = None
        self._first_byte = None
        self._read_high = False
        self._latched = None
        self._latched_status = None

    def latch_count(self) -> None:
        """Hold the count for reading, unless one is held already."""
        if self._latched is None:
            self._latched = self.value(self._clocks())

    def latch_status(self) -> None:
        """Hold the status byte for reading, unless one is held already."""
        if self._latched_status is None:
            now = self._clocks()
            null = self._start is None or now < self._start
            self._latched_status = (
                self.output(now) << 7 | null << 6 | self._access << 4 | self._mode << 1 | int(self._bcd)
            )

    def read(self) -> int:
        """The next byte: a latched status first, then a latched count, else the running count."""
        if self._latched_status is not None:
            status, self._latched_status = self._latched_status, None
            return status
        value = self._latched if self._latched is not None else self.value(self._clocks())
        if self._access == _BOTH:
            high, self._read_high = self._read_high, not self._read_high
            done = high
        else:
            high, done = self._access == _HIGH, True
        if done:
            self._latched = None
        return value >> 8 if high else value & 0xFF

    def write(self, value: int) -> None:
        """The next byte of a count; the last one sets it."""
        if self._access == _BOTH and self._first_byte is None:
            self._first_byte = value
            if self._mode == 0:
                self._start = None  # the first byte stops the count and OUT stays low
                self._held = None
            return
        if self._access == _BOTH:
            value = (self._first_byte or 0) | value << 8
            self._first_byte = None
        elif self._access == _HIGH:
            value <<= 8
        self._load(self._decoded(value))

    def _decoded(self, value: int) -> int:
        """An initial count: 0 stands for the largest."""
        if not self._bcd:
            return value or 0x1_0000
        number = sum((value >> 4 * digit & 15) * 10**digit for digit in range(4))
        return number % 10_000 or 10_000

    def _load(self, count: int) -> None:
        now = self._clocks()
        if self._mode in (2, 3) and self._start is not None and self.gate:
            self._replace_at_end_of_period(now, count)
            return
        self._count = count
        if self._mode in (1, 5):
            return  # a trigger loads it
        if self._mode in (2, 3) and not self.gate:
            self._start = None
            return
        self._start = now + 1
        self._held = None if self.gate else 0

    def _replace_at_end_of_period(self, now: int, count: int) -> None:
        running, elapsed = self._running(now)
        if elapsed is None or elapsed < 0:  # the count before was not even loaded yet
            self._previous = None
            self._count, self._start = count, now + 1
            return
        start = now - elapsed
        self._previous = (running, start)
        self._count = count
        self._start = start + (elapsed // running + 1) * running

    def set_gate(self, level: bool) -> None:
        """Drive the GATE pin."""
        if level == self.gate:
            return
        now = self._clocks()
        _, elapsed = self._running(now)
        self.gate = level
        if self._mode in (0, 4):
            if elapsed is None:
                return
            if not level:
                self._held = elapsed
            else:
                self._start = now - elapsed
                self._held = None
        elif level and self._count:
            self._previous = None
            self._start = now + 1

    # State

    @property
    def state(self) -> ChannelState:
        """The counter's registers and since when it counts."""
        return ChannelState(
            self._mode,
            self._access,
            self._bcd,
            self._count,
            self._start,
            self._previous,
            self._held,
            self.gate,
            self._first_byte,
            self._read_high,
            self._latched,
            self._latched_status,
        )

    def restore(self, state: ChannelState) -> None:
        """Take up an earlier state."""
        self._set(state)


@dataclass(frozen=True, slots=True)
class TimerState:
    """All of the interval timer's state."""

    channels: tuple[ChannelState, ChannelState, ChannelState]
    seen: int
    """PIT clock up to which channel 0's edges have been raised."""
    level: bool
    """Channel 0's line."""


class I8254:
    """The interval timer. `interrupt` is channel 0's output line (IRQ 0 on a PC)."""

    name = "pit"

    def __init__(self, clock: Clock, interrupt: InterruptLine) -> None:
        self._clock = clock
        self._interrupt = interrupt
        self.channels = (Channel(clock), Channel(clock), Channel(clock))
        self.missed_edges = 0
        """Rising edges of channel 0 that came while virtual time ran on unseen, and so were one with the last."""
        self.edges = 0
        """Rising edges of channel 0 since the timer was made, missed ones included."""
        self._seen = 0
        self._level = False
        self._timer: Timer | None = None

    def read(self, offset: int, size: int) -> int:
        """The next byte of a channel; the control register is write-only."""
        return self.channels[offset].read() if offset < CONTROL else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """A byte of a count, a control word, or a read-back command (data sheet, figure 13)."""
        value &= 0xFF
        self._settle()
        if offset < CONTROL:
            self.channels[offset].write(value)
        elif offset == CONTROL:
            if value >> 6 < 3:
                self.channels[value >> 6].write_control(value)
            else:
                self._read_back(value)
        if offset == 0 or (offset == CONTROL and value >> 6 == 0):
            self._drive()
            self._schedule()

    def _read_back(self, value: int) -> None:
        for number, channel in enumerate(self.channels):
            if value >> number & 2:
                if not value & 0x20:
                    channel.latch_count()
                if not value & 0x10:
                    channel.latch_status()

    def _settle(self) -> None:
        """Raise the edges that are due before a register changes."""
        now = clocks_at(self._clock.now())
        edges = self.channels[0].rises_between(self._seen, now)
        self._seen = now
        if edges:
            self.edges += edges
            self.missed_edges += edges - 1
            self._interrupt(False)
            self._interrupt(True)
            self._level = True

    def _drive(self) -> None:
        """Follow channel 0's output after it was programmed."""
        level = self.channels[0].output(clocks_at(self._clock.now()))
        if level is not self._level:
            self._level = level
            self.edges += level
            self._interrupt(level)

    def _schedule(self) -> None:
        """Ask for a callback at channel 0's next edge."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rise = self.channels[0].next_rise(self._seen)
        if rise is not None:
            self._timer = self._clock.at(time_of(rise), self._on_edge, _EVENT_RANK)

    @property
    def next_event(self) -> int | None:
        """Virtual nanoseconds of channel 0's next rising edge, or None."""
        return None if self._timer is None else self._timer.when

    def _on_edge(self) -> None:
        self._timer = None
        self._settle()
        self._schedule()

    @property
    def state(self) -> TimerState:
        """The three channels and how far channel 0's edges were raised."""
        first, second, third = self.channels
        return TimerState((first.state, second.state, third.state), self._seen, self._level)

    def restore(self, state: TimerState) -> None:
        """Take up an earlier state; the clock must have been restored before."""
        for channel, saved in zip(self.channels, state.channels, strict=True):
            channel.restore(saved)
        self._seen = state.seen
        self._level = state.level
        self._schedule()
