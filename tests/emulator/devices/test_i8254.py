"""The interval timer: counts by the data sheet, exact edges, and Linux's ways to use it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.clock import NANOSECONDS, Clock
from emulator.devices.i8254 import CONTROL, FREQUENCY, I8254, clocks_at, time_of
from emulator.devices.speaker import SpeakerPort

PERIODIC, ONE_SHOT, STROBE = 0x34, 0x30, 0x38


class Rig:
    """A timer on a clock that only moves by hand, with the virtual time of each rising edge."""

    def __init__(self) -> None:
        self.clock = Clock(lambda: 0, 1)
        self.edges: list[int] = []
        self.level = False
        self.pit = I8254(self.clock, self._line)
        self.speaker = SpeakerPort(self.clock, self.pit.channels[2])

    def _line(self, level: bool) -> None:
        if level and not self.level:
            self.edges.append(clocks_at(self.clock.now()))
        self.level = level

    def control(self, value: int) -> None:
        self.pit.write(CONTROL, 1, value)

    def count(self, channel: int, value: int) -> None:
        self.pit.write(channel, 1, value & 0xFF)
        self.pit.write(channel, 1, value >> 8)

    def latched(self, channel: int) -> int:
        self.control(channel << 6)
        return self.pit.read(channel, 1) | self.pit.read(channel, 1) << 8

    def to_clock(self, clocks: int) -> None:
        """Let virtual time reach a PIT clock, calling back whatever is due on the way."""
        target = time_of(clocks)
        while (event := self.clock.next_event()) is not None and event <= target:
            self.clock.skip_to(event)
            self.clock.run_due()
        self.clock.skip_to(target)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@settings(deadline=None)
@given(st.integers(0, 10**15))
def test_a_clock_is_reached_at_its_time_and_not_before(clocks: int) -> None:
    assert clocks_at(time_of(clocks)) == clocks
    assert clocks == 0 or clocks_at(time_of(clocks) - 1) == clocks - 1


@pytest.mark.parametrize(("hertz", "count"), [(100, 11932), (250, 4773), (1000, 1193)])
def test_a_periodic_timer_gives_one_edge_a_period_for_a_minute(hertz: int, count: int) -> None:
    rig = Rig()
    rig.control(PERIODIC)
    rig.edges.clear()
    rig.count(0, count)
    rig.to_clock(60 * FREQUENCY)
    assert rig.edges == list(range(1 + count, 60 * FREQUENCY + 1, count))
    assert abs(len(rig.edges) - 60 * hertz) <= 3 * 60 * hertz // 1000
    assert rig.pit.missed_edges == 0


def test_time_that_ran_on_unseen_gives_one_edge_and_counts_the_rest(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.count(0, 1000)
    rig.edges.clear()
    rig.clock.skip_to(time_of(10_500))
    rig.clock.run_due()
    assert rig.edges == [10_500]
    assert rig.pit.missed_edges == 9
    assert rig.clock.next_event() == time_of(11_001)


def test_a_periodic_count_is_latched_while_it_goes_on(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.count(0, 4773)
    rig.to_clock(1 + 773)
    rig.control(0x00)
    rig.to_clock(3000)
    assert rig.pit.read(0, 1) | rig.pit.read(0, 1) << 8 == 4000
    assert rig.latched(0) == 4773 - 2999


def test_a_second_latch_command_does_not_disturb_the_first(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.count(0, 1000)
    rig.to_clock(101)
    rig.control(0x00)
    rig.to_clock(201)
    assert rig.latched(0) == 900
    assert rig.latched(0) == 800


def test_linux_one_shot_strobes_once_after_its_count(rig: Rig) -> None:
    """pit_set_oneshot and pit_next_event (drivers/clocksource/i8253.c)."""
    rig.control(STROBE)
    rig.edges.clear()
    rig.to_clock(100)
    rig.count(0, 500)
    rig.to_clock(10_000)
    assert rig.edges == [100 + 1 + 500 + 1]
    rig.count(0, 20)
    rig.to_clock(20_000)
    assert rig.edges[1:] == [10_000 + 22]
    assert rig.clock.next_event() is None


def test_linux_shutdown_stops_the_timer(rig: Rig) -> None:
    """pit_shutdown: mode 0 with count 0."""
    rig.control(PERIODIC)
    rig.count(0, 1000)
    rig.to_clock(1500)
    rig.edges.clear()
    rig.control(ONE_SHOT)
    assert rig.level is False
    rig.count(0, 0)
    rig.to_clock(1500 + 65_536)
    assert rig.edges == []


def test_mode_0_rises_one_clock_behind_its_count_and_stays(rig: Rig) -> None:
    rig.control(ONE_SHOT)
    rig.count(0, 100)
    rig.to_clock(100)
    assert rig.level is False
    rig.to_clock(5000)
    assert rig.edges == [101]
    assert rig.level is True
    assert rig.latched(0) == (100 - 4999) & 0xFFFF


def test_a_new_count_in_mode_0_starts_over(rig: Rig) -> None:
    rig.control(ONE_SHOT)
    rig.count(0, 100)
    rig.to_clock(50)
    rig.count(0, 100)
    rig.to_clock(1000)
    assert rig.edges == [151]


def test_the_first_byte_of_a_count_stops_mode_0(rig: Rig) -> None:
    rig.control(ONE_SHOT)
    rig.count(0, 100)
    rig.pit.write(0, 1, 10)
    rig.to_clock(1000)
    assert rig.edges == []
    rig.pit.write(0, 1, 0)
    rig.to_clock(2000)
    assert rig.edges == [1011]


def test_a_new_period_begins_when_the_old_one_ends(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.count(0, 1000)
    rig.edges.clear()
    rig.to_clock(1501)
    rig.count(0, 300)
    assert rig.latched(0) == 500
    rig.to_clock(2700)
    assert rig.edges == [1001, 2001, 2301, 2601]
    assert rig.latched(0) == 300 - 99


def test_reading_the_count_before_the_callback_loses_no_edge(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.count(0, 1000)
    rig.edges.clear()
    rig.to_clock(501)
    rig.count(0, 300)
    rig.clock.skip_to(time_of(1100))  # past the end of the old period, callbacks not served yet
    assert rig.latched(0) == 300 - 99
    rig.clock.run_due()
    assert rig.edges == [1100]
    assert rig.pit.missed_edges == 0


def test_mode_3_counts_down_by_two_twice_a_period(rig: Rig) -> None:
    rig.control(0xB6)
    rig.speaker.write(0, 1, 1)
    rig.count(2, 10)
    rig.to_clock(1)
    seen = []
    for clock in range(1, 12):
        rig.to_clock(clock)
        seen.append((rig.latched(2), rig.speaker.read(0, 1) >> 5 & 1))
    low = [(10, 0), (8, 0), (6, 0), (4, 0), (2, 0)]
    assert seen == [(count, 1) for count, _ in low] + low + [(10, 1)]


def test_mode_3_with_an_odd_count_is_high_one_clock_longer(rig: Rig) -> None:
    rig.control(0xB6)
    rig.speaker.write(0, 1, 1)
    rig.count(2, 5)
    levels = []
    for clock in range(1, 11):
        rig.to_clock(clock)
        levels.append(rig.speaker.read(0, 1) >> 5 & 1)
    assert levels == [1, 1, 1, 0, 0] * 2


def test_linux_calibrates_against_channel_2(rig: Rig) -> None:
    """calibrate: gate on, speaker off, mode 0, wait for OUT in bit 5 (arch/x86/kernel/tsc.c, pit_calibrate_tsc)."""
    rig.speaker.write(0, 1, rig.speaker.read(0, 1) & ~2 | 1)
    rig.control(0xB0)
    latch = FREQUENCY // (1000 // 50)
    rig.count(2, latch)
    polls = 0
    while not rig.speaker.read(0, 1) & 0x20:
        rig.to_clock(clocks_at(rig.clock.now()) + 50)
        polls += 1
    assert polls == -(-(latch + 1) // 50)


def test_linux_quick_calibration_sees_the_high_byte_fall(rig: Rig) -> None:
    """quick_pit_calibrate reads low and high byte in turn, without latching."""
    rig.speaker.write(0, 1, 1)
    rig.control(0xB0)
    rig.count(2, 0xFFFF)
    rig.to_clock(1)
    high = []
    for _ in range(6):
        rig.pit.read(2, 1)
        high.append(rig.pit.read(2, 1))
        rig.to_clock(clocks_at(rig.clock.now()) + 256)
    assert high == [0xFF, 0xFE, 0xFD, 0xFC, 0xFB, 0xFA]


def test_the_gate_stops_and_resumes_mode_0(rig: Rig) -> None:
    rig.speaker.write(0, 1, 1)
    rig.control(0xB0)
    rig.count(2, 1000)
    rig.to_clock(301)
    rig.speaker.write(0, 1, 0)
    rig.to_clock(5000)
    assert rig.latched(2) == 700
    rig.speaker.write(0, 1, 1)
    rig.to_clock(5100)
    assert rig.latched(2) == 600


def test_the_gate_restarts_a_periodic_count(rig: Rig) -> None:
    rig.control(0xB4)
    rig.count(2, 1000)
    rig.to_clock(500)
    rig.speaker.write(0, 1, 1)
    rig.to_clock(601)
    assert rig.latched(2) == 900


def test_a_trigger_starts_the_one_shot_of_mode_1(rig: Rig) -> None:
    rig.control(0xB2)
    rig.count(2, 100)
    rig.to_clock(500)
    assert rig.speaker.read(0, 1) & 0x20
    rig.speaker.write(0, 1, 1)
    rig.to_clock(502)
    assert not rig.speaker.read(0, 1) & 0x20
    rig.to_clock(601)
    assert rig.speaker.read(0, 1) & 0x20


def test_the_refresh_bit_toggles_every_fifteen_microseconds(rig: Rig) -> None:
    bits = []
    for clock in range(0, 90, 18):
        rig.to_clock(clock)
        bits.append(rig.speaker.read(0, 1) >> 4 & 1)
    assert bits == [0, 1, 0, 1, 0]


def test_read_back_latches_status_and_count_of_several_channels(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.control(0x76)
    rig.control(0xB0)
    rig.count(0, 1000)
    rig.to_clock(101)
    rig.control(0xC2 | 0x04)
    assert rig.pit.read(0, 1) == 0x80 | PERIODIC
    assert rig.pit.read(0, 1) | rig.pit.read(0, 1) << 8 == 900
    assert rig.pit.read(1, 1) == 0xC0 | 0x36  # no count yet: null


def test_bcd_counts_in_tens(rig: Rig) -> None:
    rig.control(PERIODIC | 1)
    rig.count(0, 0x1000)
    rig.edges.clear()
    rig.to_clock(1 + 1)
    assert rig.latched(0) == 0x0999
    rig.to_clock(1001)
    assert rig.edges == [1001]


def test_low_and_high_byte_access(rig: Rig) -> None:
    rig.control(0x14)
    rig.pit.write(0, 1, 200)
    rig.to_clock(51)
    assert rig.pit.read(0, 1) == 150
    rig.control(0x24)
    rig.pit.write(0, 1, 2)
    rig.to_clock(51 + 1 + 100)
    assert rig.pit.read(0, 1) == (512 - 100) >> 8


def test_a_count_of_zero_is_the_largest(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.edges.clear()
    rig.count(0, 0)
    rig.to_clock(3 * 65_536)
    assert rig.edges == [1 + 65_536, 1 + 2 * 65_536]


def test_the_illegal_count_of_one_gives_no_storm(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.count(0, 1)
    assert rig.clock.next_event() is None


def test_a_restored_timer_ticks_on_at_the_same_times(rig: Rig) -> None:
    rig.control(PERIODIC)
    rig.count(0, 777)
    rig.to_clock(1000)
    rig.count(0, 333)
    rig.pit.write(2, 1, 9)
    rig.control(0xC2)
    other = Rig()
    other.clock.restore(rig.clock.state)
    other.pit.restore(rig.pit.state)
    other.level = rig.level
    assert other.pit.state == rig.pit.state
    rig.edges.clear()
    for each in (rig, other):
        each.to_clock(9000)
    assert other.edges == rig.edges != []
    assert other.pit.state == rig.pit.state
    assert [other.pit.read(n, 1) for n in (0, 0, 0, 2)] == [rig.pit.read(n, 1) for n in (0, 0, 0, 2)]


def test_seconds_and_clocks_agree() -> None:
    assert clocks_at(NANOSECONDS) == FREQUENCY
