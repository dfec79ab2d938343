"""Count and Compare: what they show, and when the line moves."""

from emulator.clock import Clock
from emulator.devices.cp0_timer import Cp0Timer

SECOND = 1_000_000_000


class Bench:
    """A timer at 100 MHz on a clock that is set by hand; `levels` are the line's changes."""

    def __init__(self) -> None:
        self.units = 0
        self.levels: list[bool] = []
        self.clock = Clock(lambda: self.units, SECOND)
        self.timer = Cp0Timer(self.clock, self.levels.append, 100_000_000)

    def go(self, nanoseconds: int) -> None:
        """Let time pass."""
        self.units += nanoseconds
        self.clock.run_due()


def test_count_runs_with_virtual_time() -> None:
    bench = Bench()
    bench.go(1000)
    assert bench.timer.count == 100
    bench.timer.count = 0xFFFF_FFF0
    bench.go(320)
    assert bench.timer.count == 16


def test_the_line_rises_at_the_match_and_not_before() -> None:
    bench = Bench()
    bench.timer.compare = 500
    bench.go(4999)
    assert bench.levels == []
    bench.go(1)
    assert bench.levels == [True]
    assert bench.timer.requested


def test_writing_compare_takes_the_request_away() -> None:
    bench = Bench()
    bench.timer.compare = 100
    bench.go(1000)
    bench.timer.compare = 300
    assert bench.levels == [True, False]
    bench.go(2000)
    assert bench.levels == [True, False, True]


def test_a_compare_that_is_past_matches_after_a_whole_turn() -> None:
    bench = Bench()
    bench.go(1000)
    bench.timer.compare = 50
    event = bench.timer.next_event
    assert event is not None
    assert event == (50 + (1 << 32)) * 10


def test_writing_count_moves_the_match() -> None:
    bench = Bench()
    bench.timer.compare = 1000
    bench.timer.count = 990
    assert bench.timer.next_event == 100


def test_a_state_taken_up_again_goes_on_as_it_was() -> None:
    bench = Bench()
    bench.timer.compare = 700
    bench.timer.count = 500
    saved = bench.timer.state
    other = Bench()
    other.timer.restore(saved)
    assert other.timer.state == saved
    assert other.timer.next_event == 2000
