"""The generic timer: a counter of virtual time, and lines that follow what is compared with it."""

import pytest

from emulator.clock import Clock
from emulator.devices.arch_timer import ENABLE, FREQUENCY, MASKED, STATUS, ArchTimer


class Bench:
    """A timer on a clock of nanoseconds that only moves when told."""

    def __init__(self) -> None:
        self.now = 0
        self.virtual: list[bool] = []
        self.physical: list[bool] = []
        self.clock = Clock(lambda: self.now, 1_000_000_000)
        self.timer = ArchTimer(self.clock, self.virtual.append, self.physical.append)

    def pass_time(self, nanoseconds: int) -> None:
        self.now += nanoseconds
        self.clock.run_due()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_counter_is_virtual_time_at_its_frequency(bench: Bench) -> None:
    assert bench.timer.read("CNTFRQ") == FREQUENCY
    bench.now = 1_000_000_000
    assert bench.timer.read("CNTVCT") == bench.timer.read("CNTPCT") == FREQUENCY


def test_a_timer_requests_when_its_value_is_reached_and_until_that_is_later(bench: Bench) -> None:
    bench.timer.write("CNTV_CVAL", 1000)
    bench.timer.write("CNTV_CTL", ENABLE)
    bench.pass_time(15_999)
    assert bench.virtual == []
    bench.pass_time(1)
    assert bench.virtual == [True]
    assert bench.timer.read("CNTV_CTL") == ENABLE | STATUS
    bench.timer.write("CNTV_TVAL", 10)
    assert bench.virtual == [True, False]
    assert bench.timer.read("CNTV_CVAL") == 1010
    assert bench.physical == []


def test_the_timer_value_counts_down_through_zero(bench: Bench) -> None:
    bench.timer.write("CNTP_TVAL", 100)
    bench.pass_time(16 * 60)
    assert bench.timer.read("CNTP_TVAL") == 40
    bench.pass_time(16 * 60)
    assert bench.timer.read("CNTP_TVAL") == 0xFFFF_FFEC
    bench.timer.write("CNTP_TVAL", 0xFFFF_FFFF)
    assert bench.timer.read("CNTP_CVAL") == bench.timer.read("CNTPCT") - 1


def test_a_masked_timer_shows_its_status_and_does_not_request(bench: Bench) -> None:
    bench.timer.write("CNTP_CTL", ENABLE | MASKED)
    assert bench.timer.read("CNTP_CTL") == ENABLE | MASKED | STATUS
    assert bench.physical == []
    bench.timer.write("CNTP_CTL", ENABLE)
    assert bench.physical == [True]
    bench.timer.write("CNTP_CTL", 0)
    assert bench.physical == [True, False]
    assert bench.timer.read("CNTP_CTL") == 0


def test_a_value_that_is_never_reached_asks_for_no_callback(bench: Bench) -> None:
    bench.timer.write("CNTV_CVAL", (1 << 64) - 1)
    bench.timer.write("CNTV_CTL", ENABLE)
    assert bench.timer.due() == (None, None)
    assert bench.clock.next_event() is None


def test_a_register_that_is_not_there_is_refused(bench: Bench) -> None:
    for name in ("CNTV_NONE", "CNTX_CTL"):
        with pytest.raises(KeyError):
            bench.timer.read(name)
        with pytest.raises(KeyError):
            bench.timer.write(name, 0)


def test_a_restored_timer_requests_when_the_old_one_would_have(bench: Bench) -> None:
    bench.timer.write("CNTV_CVAL", 1000)
    bench.timer.write("CNTV_CTL", ENABLE)
    bench.timer.write("CNTKCTL", 0x2)
    state, clock = bench.timer.state, bench.clock.state
    other = Bench()
    other.clock.restore(clock)
    other.timer.restore(state)
    assert other.timer.state == state
    other.pass_time(16_000)
    assert other.virtual == [True]
