"""Virtual time: nanoseconds counted in guest progress, never in host seconds.

Room: `emulator`. Time is what the engine has executed (so many units of progress a second) plus
the idle time that was skipped; all of it in whole numbers, so that a run repeats exactly. Devices
ask for a callback at a time; whoever drives the engine asks when the next one is due, has the
engine stop there, and calls `run_due`. The clock knows neither engines nor devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

NANOSECONDS = 1_000_000_000
"""Nanoseconds in a second."""

_SWEEP = 64
"""Entries of the heap at which cancelled ones are first swept out, so that a guest cannot fill it with them."""


@dataclass(frozen=True, slots=True)
class ClockState:
    """Virtual time as a value, exact to a fraction of a nanosecond."""

    units_per_second: int
    """Units of progress in a second of virtual time."""
    scaled: int
    """Virtual time in nanoseconds, times `units_per_second`."""


class Timer:
    """A callback that is due at a virtual time; returned by `Clock.at`."""

    __slots__ = ("callback", "when")

    def __init__(self, when: int, callback: Callable[[], None]) -> None:
        self.when = when
        """Virtual nanoseconds."""
        self.callback: Callable[[], None] | None = callback
        """None once it has run or was cancelled."""

    def cancel(self) -> None:
        """Never call back. Harmless when it has run already."""
        self.callback = None


class Clock:
    """Virtual time and the callbacks that wait for it."""

    def __init__(self, progress: Callable[[], int], units_per_second: int) -> None:
        """`progress` gives the engine's progress so far; `units_per_second` of them are a virtual second."""
        if units_per_second <= 0:
            raise ValueError(f"a clock of {units_per_second} units a second: give a positive number")
        self.units_per_second = units_per_second
        """Units of progress in a second of virtual time."""
        self._progress = progress
        self._offset = -progress() * NANOSECONDS
        self._heap: list[tuple[int, int, int, Timer]] = []
        self._scheduled = 0
        self._sweep_at = _SWEEP
        self.on_jump: Callable[[], None] | None = None
        """Called when `line` is another than it was."""

    def _jumped(self) -> None:
        if self.on_jump is not None:
            self.on_jump()

    def now(self) -> int:
        """Virtual time in nanoseconds since the clock was made, rounded down."""
        return (self._progress() * NANOSECONDS + self._offset) // self.units_per_second

    def at(self, when: int, callback: Callable[[], None], rank: int = 0) -> Timer:
        """Have `callback` called by `run_due` once virtual time has reached `when` nanoseconds (or at once if past).

        At equal times the lower `rank` goes first, then the earlier scheduled.
        """
        timer = Timer(when, callback)
        self._scheduled += 1
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heappush(self._heap, (when, rank, self._scheduled, timer))
        return timer

    def _sweep(self) -> None:
        """Drop cancelled entries; the next time when as many again have been scheduled."""
        self._heap[:] = [entry for entry in self._heap if entry[3].callback is not None]
        heapify(self._heap)
        self._sweep_at = max(_SWEEP, 2 * len(self._heap))

    def next_event(self) -> int | None:
        """Virtual time in nanoseconds of the earliest callback, or None when none waits."""
        heap = self._heap
        while heap:
            if heap[0][3].callback is not None:
                return heap[0][0]
            heappop(heap)
        return None

    def progress_at(self, when: int) -> int:
        """The least engine progress at which virtual time is `when` nanoseconds or later."""
        return -((self._offset - when * self.units_per_second) // NANOSECONDS)

    def run_due(self) -> int:
        """Call what is due, in order of time; returns how many were called.

        A callback may schedule another; if that is due as well, it is called too.
        """
        heap = self._heap
        if not heap:
            return 0
        now = self.now()
        called = 0
        while heap and heap[0][0] <= now:
            timer = heappop(heap)[3]
            callback = timer.callback
            if callback is not None:
                timer.callback = None
                callback()
                called += 1
        return called

    def skip_to(self, when: int) -> None:
        """Let an idle guest's time jump to `when` nanoseconds, exactly. Time never goes back."""
        scaled = self._progress() * NANOSECONDS + self._offset
        ahead = when * self.units_per_second - scaled
        if ahead > 0:
            self._offset += ahead
            self._jumped()

    def attach(self, progress: Callable[[], int]) -> None:
        """Count another engine's progress from here on; time goes on without a jump."""
        self._offset += (self._progress() - progress()) * NANOSECONDS
        self._progress = progress
        self._jumped()

    @property
    def line(self) -> tuple[int, int] | None:
        """Virtual time as progress * first + second in nanoseconds, until time is skipped; None where a unit of
        progress is no whole number of nanoseconds."""
        if NANOSECONDS % self.units_per_second:
            return None
        return NANOSECONDS // self.units_per_second, self._offset // self.units_per_second

    @property
    def state(self) -> ClockState:
        """Virtual time now. Callbacks are no part of it: their devices schedule them anew at `restore`."""
        return ClockState(self.units_per_second, self._progress() * NANOSECONDS + self._offset)

    def restore(self, state: ClockState) -> None:
        """Take up an earlier time and forget all callbacks. Raises ValueError for a clock of another rate."""
        if state.units_per_second != self.units_per_second:
            raise ValueError(
                f"the saved clock counts {state.units_per_second} units a second, this one {self.units_per_second}:"
                " restore it on a machine with the same clock rate"
            )
        self._offset = state.scaled - self._progress() * NANOSECONDS
        self._heap.clear()
        self._jumped()
