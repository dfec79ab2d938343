"""The clock chip: a date from virtual time alone, read and set as Linux's drivers do."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.clock import NANOSECONDS, Clock
from emulator.devices.cmos_rtc import CmosRtc, size_registers

START = int(datetime(2024, 2, 28, 23, 59, 50, tzinfo=UTC).timestamp())
FIELDS = (0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00)


class Rig:
    """A clock chip whose time moves by hand."""

    def __init__(self, start: int = START) -> None:
        self.clock = Clock(lambda: 0, 1)
        self.line: list[bool] = []
        self.rtc = CmosRtc(self.clock, self.line.append, start, 64 << 20)

    def get(self, register: int) -> int:
        self.rtc.write(0, 1, register)
        return self.rtc.read(1, 1)

    def set(self, register: int, value: int) -> None:
        self.rtc.write(0, 1, register)
        self.rtc.write(1, 1, value)

    def date(self) -> tuple[int, ...]:
        return tuple(self.get(register) for register in FIELDS)

    def wait(self, nanoseconds: int) -> int:
        """Let time pass; returns how many callbacks there were."""
        target = self.clock.now() + nanoseconds
        called = 0
        while (event := self.clock.next_event()) is not None and event <= target:
            self.clock.skip_to(event)
            called += self.clock.run_due()
        self.clock.skip_to(target)
        return called


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_date_is_bcd_and_24_hours_at_first(rig: Rig) -> None:
    assert rig.date() == (0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x50)
    assert rig.get(0x0B) == 0x02
    assert rig.get(0x0D) == 0x80


def test_the_date_goes_on_over_a_leap_day(rig: Rig) -> None:
    rig.wait(9 * NANOSECONDS + 999_999_999)
    assert rig.date()[2:] == (0x02, 0x28, 0x23, 0x59, 0x59)
    rig.wait(1)
    assert rig.date()[2:] == (0x02, 0x29, 0x00, 0x00, 0x00)
    assert rig.get(6) == 5  # a Thursday; Sunday is 1
    rig.wait(86_400 * NANOSECONDS)
    assert rig.date()[2:] == (0x03, 0x01, 0x00, 0x00, 0x00)


def test_binary_and_twelve_hours_are_a_matter_of_register_b(rig: Rig) -> None:
    rig.set(0x0B, 0x04)
    assert rig.date() == (20, 24, 2, 28, 0x80 | 11, 59, 50)
    rig.wait(10 * NANOSECONDS)
    assert rig.get(4) == 12
    rig.set(0x0B, 0x00)
    rig.wait(12 * 3600 * NANOSECONDS)
    assert rig.get(4) == 0x80 | 0x12


def test_updating_shows_before_each_second(rig: Rig) -> None:
    assert rig.get(0x0A) == 0x26
    rig.wait(NANOSECONDS - 2_228_001)
    assert rig.get(0x0A) == 0x26
    rig.wait(1)
    assert rig.get(0x0A) == 0xA6
    rig.wait(2_228_000)
    assert rig.get(0x0A) == 0x26


def test_linux_sets_the_time(rig: Rig) -> None:
    """mc146818_set_time: SET and divider reset, write, release."""
    control, select = rig.get(0x0B), rig.get(0x0A)
    rig.set(0x0B, control | 0x80)
    rig.set(0x0A, select | 0x70)
    for register, value in zip(FIELDS, (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58), strict=True):
        rig.set(register, value)
    rig.wait(5 * NANOSECONDS)
    assert rig.date() == (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58)
    rig.set(0x0B, control)
    rig.set(0x0A, select)
    rig.wait(2 * NANOSECONDS)
    assert rig.date() == (0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00)


def test_set_holds_the_time_that_it_found(rig: Rig) -> None:
    rig.wait(3 * NANOSECONDS)
    rig.set(0x0B, 0x82)
    rig.wait(100 * NANOSECONDS)
    assert rig.date()[-1] == 0x53
    assert rig.get(0x0A) & 0x80 == 0
    rig.set(0x0B, 0x02)
    rig.wait(NANOSECONDS)
    assert rig.date()[-1] == 0x54


def test_a_field_of_the_running_time_can_be_changed(rig: Rig) -> None:
    rig.wait(NANOSECONDS // 2)
    rig.set(4, 0x05)
    assert rig.date()[4:] == (0x05, 0x59, 0x50)
    rig.wait(NANOSECONDS // 2)
    assert rig.date()[4:] == (0x05, 0x59, 0x51)


def test_what_is_no_date_is_ignored(rig: Rig) -> None:
    rig.set(8, 0x13)
    rig.set(7, 0x31)
    rig.set(2, 0x75)
    rig.set(0x32, 0x00)
    rig.set(9, 0x00)
    assert rig.date()[2:] == (0x02, 0x28, 0x23, 0x59, 0x50)


def test_the_update_interrupt_comes_each_second_until_answered(rig: Rig) -> None:
    rig.set(0x0B, 0x12)
    assert rig.wait(NANOSECONDS) == 1
    assert rig.line == [True]
    assert rig.wait(10 * NANOSECONDS) == 0
    assert rig.get(0x0C) & 0x90 == 0x90
    assert rig.get(0x0C) == 0x00
    assert rig.line == [True, False]
    rig.wait(NANOSECONDS)
    assert rig.line == [True, False, True]


def test_the_periodic_interrupt_has_its_rate(rig: Rig) -> None:
    rig.set(0x0B, 0x42)
    for _ in range(1024):
        assert rig.wait(976_563) == 1
        assert rig.get(0x0C) & 0xC0 == 0xC0
    assert rig.clock.now() == 1024 * 976_563


@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_rates_by_the_data_sheet(rate: int, hertz: int) -> None:
    rig = Rig()
    rig.set(0x0A, 0x20 | rate)
    rig.set(0x0B, 0x42)
    ticks = 0
    while rig.clock.now() < NANOSECONDS:
        event = rig.clock.next_event()
        assert event is not None
        rig.wait(event - rig.clock.now())
        ticks += rig.get(0x0C) >> 6 & 1
    assert ticks == hertz


def test_no_rate_no_periodic_interrupt(rig: Rig) -> None:
    rig.set(0x0A, 0x20)
    rig.set(0x0B, 0x42)
    assert rig.clock.next_event() is None


def test_the_alarm_comes_at_its_second(rig: Rig) -> None:
    for register, value in ((1, 0x05), (3, 0x00), (5, 0x00)):
        rig.set(register, value)
    rig.set(0x0B, 0x22)
    rig.wait(14 * NANOSECONDS)
    assert rig.line == []
    rig.wait(NANOSECONDS)
    assert rig.line == [True]
    assert rig.get(0x0C) & 0xA0 == 0xA0
    assert rig.clock.next_event() == (15 + 86_400) * NANOSECONDS


@settings(max_examples=50, deadline=None)
@given(
    second=st.integers(0, 59) | st.none(),
    minute=st.integers(0, 59) | st.none(),
    hour=st.integers(0, 23) | st.none(),
    start=st.integers(0, 86_399),
)
def test_the_next_alarm_is_the_first_second_that_matches(
    second: int | None, minute: int | None, hour: int | None, start: int
) -> None:
    rig = Rig(START - START % 86_400 + start)
    rig.set(0x0B, 0x06)
    for register, value in ((1, second), (3, minute), (5, hour)):
        rig.set(register, 0xC0 if value is None else value)
    rig.set(0x0B, 0x26)

    def matches(seconds: int) -> bool:
        fields = (seconds % 60, seconds // 60 % 60, seconds // 3600 % 24)
        return all(want is None or want == is_ for want, is_ in zip((second, minute, hour), fields, strict=True))

    event = rig.clock.next_event()
    assert event is not None
    alarm = event // NANOSECONDS
    assert event % NANOSECONDS == 0
    assert alarm > 0
    assert matches(start + alarm)
    assert not any(matches(start + passed) for passed in range(1, alarm))


def test_an_alarm_that_never_comes_asks_for_no_callback(rig: Rig) -> None:
    rig.set(1, 0x99)
    rig.set(0x0B, 0x22)
    assert rig.clock.next_event() is None


def test_flags_show_without_any_interrupt_enabled(rig: Rig) -> None:
    rig.get(0x0C)
    rig.wait(2 * NANOSECONDS)
    assert rig.get(0x0C) == 0x50
    assert rig.line == []


def test_memory_size_is_where_firmware_leaves_it(rig: Rig) -> None:
    assert [rig.get(r) for r in (0x15, 0x16, 0x34, 0x35)] == [0x80, 0x02, 0x00, 0x03]
    assert size_registers(1 << 30)[0x31] == 0xFF


def test_other_memory_keeps_what_is_written(rig: Rig) -> None:
    rig.set(0x0F, 0x0A)
    rig.set(0x7F, 0x55)
    assert (rig.get(0x0F), rig.get(0x7F)) == (0x0A, 0x55)
    assert rig.get(0x8F) == 0x0A  # bit 7 is the NMI mask


def test_a_restored_clock_goes_on(rig: Rig) -> None:
    rig.set(0x0B, 0x52)
    rig.wait(1_234_567_890)
    rig.get(0x0C)
    other = Rig(0)
    other.clock.restore(rig.clock.state)
    other.rtc.restore(rig.rtc.state)
    assert other.rtc.state == rig.rtc.state
    for each in (rig, other):
        each.wait(3 * NANOSECONDS)
    assert other.date() == rig.date()
    assert other.rtc.state == rig.rtc.state
