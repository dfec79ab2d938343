"""The clock and its memory: an MC146818 by Motorola's data sheet, with a PC's use of the 128 bytes.

Room: `emulator/devices`. Date and time follow virtual time from a start given to the board, so a
run never sees the host's date. Offset 0 is the index, offset 1 the data. Registers are worked out
when they are read; the clock is asked for events only while an interrupt is enabled.
"""

from dataclasses import dataclass
from datetime import date

from emulator.clock import NANOSECONDS, Clock, Timer
from emulator.devices.device import InterruptLine

INDEX, DATA = 0, 1
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
EQUIPMENT, CENTURY = 0x14, 0x32
SIZE = 128

A_UPDATING, A_DIVIDER, A_RATE = 0x80, 0x70, 0x0F
B_SET, B_PERIODIC, B_ALARM, B_UPDATE, B_BINARY, B_24_HOURS = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
C_REQUEST, C_PERIODIC, C_ALARM, C_UPDATE = 0x80, 0x40, 0x20, 0x10
D_VALID = 0x80

_UPDATE_TIME = 244_000 + 1_984_000
"""Nanoseconds before a second's end in which UIP is set (data sheet, table 5, 32.768 kHz)."""
_UNIX_EPOCH = date(1970, 1, 1).toordinal()
_DAYS = date.max.toordinal()
_DAY_SECONDS = 86_400
_EVENT_RANK = 1
_TIME_REGISTERS = frozenset((SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY))


@dataclass(frozen=True, slots=True)
class RtcState:
    """All of the clock's state."""

    index: int
    memory: bytes
    """The 128 bytes; for time registers, what was last written or frozen by SET."""
    base_seconds: int
    """Seconds since 1970 of the guest's clock ..."""
    base_time: int
    """... at this virtual time in nanoseconds."""
    flags: int
    """Register C, bits 4-6."""
    seen: int
    """Virtual nanoseconds up to which the flags are worked out."""
    periodic_base: int
    """Virtual nanoseconds from which the periodic interrupt counts."""


def size_registers(memory_size: int) -> dict[int, int]:
    """The bytes in which a PC's firmware leaves the memory size of `memory_size` bytes, by register."""
    base_kib = min(memory_size >> 10, 640)
    extended_kib = min(max((memory_size >> 10) - 1024, 0), 0xFFFF)
    above_16m = min(max((memory_size - (16 << 20)) >> 16, 0), 0xFFFF)
    registers = {EQUIPMENT: 0x02}
    for low, value in ((0x15, base_kib), (0x17, extended_kib), (0x30, extended_kib), (0x34, above_16m)):
        registers[low], registers[low + 1] = value & 0xFF, value >> 8
    return registers


class CmosRtc:
    """The clock. `interrupt` is its request line (IRQ 8 on a PC), held until register C is read."""

    name = "rtc"

    def __init__(self, clock: Clock, interrupt: InterruptLine, start: int, memory_size: int = 0) -> None:
        """`start`: the date at virtual time 0, in seconds since 1970. `memory_size`: bytes, for the guest to read."""
        self._clock = clock
        self._interrupt = interrupt
        self._level = False
        self._timer: Timer | None = None
        memory = bytearray(SIZE)
        memory[A], memory[B] = 0x26, B_24_HOURS
        for register, value in size_registers(memory_size).items():
            memory[register] = value
        now = clock.now()
        self._set(RtcState(0, bytes(memory), start, now, 0, now, now))

    def _set(self, state: RtcState) -> None:
        self._index = state.index
        self._memory = bytearray(state.memory)
        self._base_seconds = state.base_seconds
        self._base_time = state.base_time
        self._flags = state.flags
        self._seen = state.seen
        self._periodic_base = state.periodic_base

    # Registers

    def read(self, offset: int, size: int) -> int:
        """The register chosen by the index; the index itself reads as all ones."""
        if offset != DATA:
            return 0xFF
        register = self._index
        if register == A:
            return self._memory[A] | (A_UPDATING if self._updating() else 0)
        if register == C:
            return self._read_flags()
        if register == D:
            return D_VALID
        if register in _TIME_REGISTERS and not self._halted():
            return self._time_registers(self._seconds())[register]
        return self._memory[register]

    def write(self, offset: int, size: int, value: int) -> None:
        """Index (bit 7 is the PC's NMI mask, kept nowhere) or data."""
        value &= 0xFF
        if offset == INDEX:
            self._index = value & 0x7F
        elif offset == DATA:
            self._write_register(self._index, value)

    def _write_register(self, register: int, value: int) -> None:
        if register in (C, D):
            return
        self._collect()
        if register == A:
            self._change_control(A, value & 0x7F)
            self._periodic_base = self._clock.now()
        elif register == B:
            self._change_control(B, value & ~B_UPDATE if value & B_SET else value)
        elif register in _TIME_REGISTERS and not self._halted():
            self._set_running(register, value)
        else:
            self._memory[register] = value
        self._drive()
        self._schedule()

    def _change_control(self, register: int, value: int) -> None:
        """Write A or B; time stands still once SET or a divider reset is written, and goes on when neither is."""
        was_halted = self._halted()
        seconds = self._seconds()
        self._memory[register] = value
        if self._halted() is was_halted:
            return
        if not was_halted:
            self._freeze(seconds)
        else:
            written = self._register_seconds()
            seconds = seconds if written is None else written
        self._base_seconds = seconds
        self._base_time = self._clock.now()

    def _halted(self) -> bool:
        """Updates are inhibited, by SET or by the divider held in reset."""
        return bool(self._memory[B] & B_SET) or self._memory[A] & 0x60 == 0x60

    def _updating(self) -> bool:
        """UIP: the second is about to change."""
        return not self._halted() and (self._clock.now() - self._base_time) % NANOSECONDS >= NANOSECONDS - _UPDATE_TIME

    # Date and time

    def _seconds(self) -> int:
        """The guest's clock, in seconds since 1970."""
        if self._halted():
            return self._base_seconds
        return self._base_seconds + (self._clock.now() - self._base_time) // NANOSECONDS

    def _time_registers(self, seconds: int) -> dict[int, int]:
        """The time registers' contents, in the format that register B asks for."""
        days, second = divmod(seconds, _DAY_SECONDS)
        day = date.fromordinal((_UNIX_EPOCH + days - 1) % _DAYS + 1)
        encode = self._encode
        return {
            SECONDS: encode(second % 60),
            MINUTES: encode(second // 60 % 60),
            HOURS: self._encode_hour(second // 3600),
            WEEKDAY: encode(day.isoweekday() % 7 + 1),
            DAY: encode(day.day),
            MONTH: encode(day.month),
            YEAR: encode(day.year % 100),
            CENTURY: encode(day.year // 100),
        }

    def _freeze(self, seconds: int) -> None:
        """Put a time into the registers."""
        for register, value in self._time_registers(seconds).items():
            self._memory[register] = value

    def _set_running(self, register: int, value: int) -> None:
        """Change one field of the running time. What would be no date is ignored."""
        self._freeze(self._seconds())
        self._memory[register] = value
        seconds = self._register_seconds()
        if seconds is not None:
            self._base_seconds += seconds - self._seconds()

    def _register_seconds(self) -> int | None:
        """The time that the registers spell, or None when it is no date."""
        memory, decode = self._memory, self._decode
        hour = self._decode_hour(memory[HOURS])
        minute, second = decode(memory[MINUTES]), decode(memory[SECONDS])
        if hour > 23 or minute > 59 or second > 59:
            return None
        try:
            day = date(decode(memory[CENTURY]) * 100 + decode(memory[YEAR]), decode(memory[MONTH]), decode(memory[DAY]))
        except ValueError:
            return None
        return (day.toordinal() - _UNIX_EPOCH) * _DAY_SECONDS + hour * 3600 + minute * 60 + second

    def _encode(self, value: int) -> int:
        return value if self._memory[B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._memory[B] & B_BINARY else (value >> 4) * 10 + (value & 15)

    def _encode_hour(self, hour: int) -> int:
        if self._memory[B] & B_24_HOURS:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._memory[B] & B_24_HOURS:
            return self._decode(value)
        hour = self._decode(value & 0x7F)
        return hour % 12 + (12 if value & 0x80 else 0) if 1 <= hour <= 12 else 24

    # Interrupts

    def _frequency(self) -> int:
        """Periodic interrupts in a second, or 0 for none (data sheet, table 3)."""
        rate = self._memory[A] & A_RATE
        if rate == 0 or self._memory[A] & 0x60 == 0x60:
            return 0
        return 32_768 >> (rate + 6 if rate < 3 else rate - 1)

    def _collect(self) -> None:
        """Set the flags of what happened since the last look."""
        now, before = self._clock.now(), self._seen
        self._seen = now
        if self._periods(now) > self._periods(before):
            self._flags |= C_PERIODIC
        if self._halted():
            return
        last = self._base_seconds + (max(before, self._base_time) - self._base_time) // NANOSECONDS
        current = self._base_seconds + (now - self._base_time) // NANOSECONDS
        if current > last:
            self._flags |= C_UPDATE
            alarm = self._next_alarm(last)
            if alarm is not None and alarm <= current:
                self._flags |= C_ALARM

    def _periods(self, when: int) -> int:
        """Whole periods of the periodic interrupt from its start to `when`."""
        return (when - self._periodic_base) * self._frequency() // NANOSECONDS

    def _next_alarm(self, after: int) -> int | None:
        """The first second behind `after` that matches the alarm registers, or None when none ever does."""
        memory, decode = self._memory, self._decode
        any_hour = memory[HOURS_ALARM] >= 0xC0
        any_minute = memory[MINUTES_ALARM] >= 0xC0
        any_second = memory[SECONDS_ALARM] >= 0xC0
        hours = range(24) if any_hour else (self._decode_hour(memory[HOURS_ALARM]),)
        minutes = range(60) if any_minute else (decode(memory[MINUTES_ALARM]),)
        seconds = range(60) if any_second else (decode(memory[SECONDS_ALARM]),)
        if hours[0] > 23 or minutes[0] > 59 or seconds[0] > 59:
            return None
        today = after - after % _DAY_SECONDS
        for day in (today, today + _DAY_SECONDS):
            for hour in hours:
                if day + (hour + 1) * 3600 <= after:
                    continue
                for minute in minutes:
                    start = day + hour * 3600 + minute * 60
                    if start + seconds[-1] <= after:
                        continue
                    return next(start + second for second in seconds if start + second > after)
        return None

    def _read_flags(self) -> int:
        """Register C: reading it clears it and the request."""
        self._collect()
        value = self._flags | (C_REQUEST if self._flags & self._memory[B] & 0x70 else 0)
        self._flags = 0
        self._drive()
        self._schedule()
        return value

    def _drive(self) -> None:
        level = bool(self._flags & self._memory[B] & 0x70)
        if level is not self._level:
            self._level = level
            self._interrupt(level)

    def _schedule(self) -> None:
        """Ask for a callback at the next event whose interrupt is enabled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        enabled = self._memory[B] & 0x70 & ~self._flags
        now = self._seen
        times = []
        frequency = self._frequency()
        if enabled & B_PERIODIC and frequency:
            times.append(self._periodic_base - (-(self._periods(now) + 1) * NANOSECONDS // frequency))
        if enabled & (B_ALARM | B_UPDATE) and not self._halted():
            current = self._base_seconds + (now - self._base_time) // NANOSECONDS
            target = current + 1 if enabled & B_UPDATE else self._next_alarm(current)
            if target is not None:
                times.append(self._base_time + (target - self._base_seconds) * NANOSECONDS)
        if times:
            self._timer = self._clock.at(min(times), self._on_event, _EVENT_RANK)

    @property
    def next_event(self) -> int | None:
        """Virtual nanoseconds of the next enabled interrupt, or None."""
        return None if self._timer is None else self._timer.when

    def _on_event(self) -> None:
        self._timer = None
        self._collect()
        self._drive()
        self._schedule()

    # State

    @property
    def state(self) -> RtcState:
        """Memory, and how the guest's clock hangs on virtual time."""
        return RtcState(
            self._index,
            bytes(self._memory),
            self._base_seconds,
            self._base_time,
            self._flags,
            self._seen,
            self._periodic_base,
        )

    def restore(self, state: RtcState) -> None:
        """Take up an earlier state; the clock must have been restored before."""
        self._set(state)
        self._drive()
        self._schedule()
