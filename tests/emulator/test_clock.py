"""The virtual clock: exact, repeatable, and called in the right order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.clock import NANOSECONDS, Clock


class Counter:
    """An engine's progress, moved by hand."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self) -> int:
        return self.value


def test_time_is_progress_over_rate() -> None:
    progress = Counter()
    clock = Clock(progress, 100)
    progress.value = 250
    assert clock.now() == 2_500_000_000


def test_time_starts_at_zero_on_an_engine_that_has_run_already() -> None:
    progress = Counter()
    progress.value = 12345
    assert Clock(progress, 100).now() == 0


@settings(deadline=None)
@given(
    rate=st.integers(1, 10**10), start=st.integers(0, 10**12), skip=st.integers(0, 10**12), when=st.integers(0, 10**14)
)
def test_progress_at_is_the_first_progress_that_reaches_the_time(rate: int, start: int, skip: int, when: int) -> None:
    progress = Counter()
    clock = Clock(progress, rate)
    progress.value = start
    clock.skip_to(skip)
    target = clock.progress_at(when)
    progress.value = target
    assert clock.now() >= when
    progress.value = target - 1
    assert clock.now() < when


def test_callbacks_run_in_order_of_time_then_rank_then_scheduling() -> None:
    clock = Clock(Counter(), 1)
    ran: list[str] = []
    clock.at(20, lambda: ran.append("late"))
    clock.at(10, lambda: ran.append("second"), rank=1)
    clock.at(10, lambda: ran.append("third"), rank=1)
    clock.at(10, lambda: ran.append("first"))
    clock.skip_to(20)
    assert clock.run_due() == 4
    assert ran == ["first", "second", "third", "late"]


def test_a_callback_runs_once_and_not_early() -> None:
    clock = Clock(Counter(), 1)
    ran: list[int] = []
    clock.at(10, lambda: ran.append(clock.now()))
    clock.skip_to(9)
    assert clock.run_due() == 0
    clock.skip_to(10)
    assert clock.run_due() == 1
    assert clock.run_due() == 0
    assert ran == [10]


def test_a_callback_scheduled_by_a_callback_for_now_runs_too() -> None:
    clock = Clock(Counter(), 1)
    ran: list[str] = []

    def first() -> None:
        ran.append("a")
        clock.at(5, lambda: ran.append("b"))

    clock.at(5, first)
    clock.skip_to(5)
    assert clock.run_due() == 2
    assert ran == ["a", "b"]


def test_a_cancelled_callback_neither_runs_nor_counts_as_next() -> None:
    clock = Clock(Counter(), 1)
    ran: list[int] = []
    first = clock.at(5, lambda: ran.append(1))
    clock.at(7, lambda: ran.append(2))
    assert clock.next_event() == 5
    first.cancel()
    assert clock.next_event() == 7
    clock.skip_to(10)
    assert clock.run_due() == 1
    assert ran == [2]
    assert clock.next_event() is None


def test_cancelled_callbacks_do_not_pile_up() -> None:
    clock = Clock(Counter(), 1)
    ran: list[int] = []
    for when in range(100):
        clock.at(10**6 + when, lambda when=when: ran.append(when))  # type: ignore[misc]
    for _ in range(100_000):
        clock.at(10**9, lambda: ran.append(-1)).cancel()
    assert len(clock._heap) <= 400
    clock.skip_to(10**9)
    clock.run_due()
    assert ran == list(range(100))


def test_time_never_goes_back() -> None:
    clock = Clock(Counter(), 3)
    clock.skip_to(100)
    clock.skip_to(50)
    assert clock.now() == 100


@settings(deadline=None)
@given(rate=st.integers(1, 10**10), runs=st.lists(st.integers(0, 10**9), max_size=6))
def test_a_restored_clock_goes_on_exactly_where_the_other_would(rate: int, runs: list[int]) -> None:
    progress = Counter()
    clock = Clock(progress, rate)
    progress.value = 777
    clock.skip_to(12_345)
    other_progress = Counter()
    other = Clock(other_progress, rate)
    other_progress.value = 5
    other.restore(clock.state)
    for run in runs:
        progress.value += run
        other_progress.value += run
        assert other.now() == clock.now()
        assert other.state == clock.state


def test_another_engine_takes_over_without_a_jump() -> None:
    progress, other = Counter(), Counter()
    clock = Clock(progress, 7)
    progress.value = 10
    other.value = 1000
    before = clock.state
    clock.attach(other)
    assert clock.state == before
    other.value += 7
    assert clock.now() == 17 * NANOSECONDS // 7


def test_a_state_of_another_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="same clock rate"):
        Clock(Counter(), 5).restore(Clock(Counter(), 6).state)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        Clock(Counter(), 0)


def test_the_line_of_a_clock_is_its_time_until_time_is_skipped() -> None:
    progress = 7
    clock = Clock(lambda: progress, 100_000_000)
    for skipped in (0, 12_345, 999_999_999):
        clock.skip_to(skipped)
        line = clock.line
        assert line is not None
        for step in (0, 1, 1_000_003):
            progress += step
            assert clock.now() == progress * line[0] + line[1]


def test_a_clock_whose_unit_is_no_whole_number_of_nanoseconds_has_no_line() -> None:
    assert Clock(lambda: 0, 3).line is None


def test_whoever_answers_by_the_line_is_told_when_it_is_another() -> None:
    progress = [0]
    clock = Clock(lambda: progress[0], 100_000_000)
    lines: list[tuple[int, int] | None] = []
    clock.on_jump = lambda: lines.append(clock.line)
    clock.skip_to(0)
    assert lines == []
    clock.skip_to(500)
    state = clock.state
    progress[0] = 10
    clock.restore(state)
    clock.attach(lambda: 0)
    assert lines == [(10, 500), (10, 400), (10, 500)]
