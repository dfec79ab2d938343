"""Recording a run, and doing it again: inputs are given at their moments, and at every tick the guest must be the same.

Room: `paravirt/services`. On a deterministic engine everything else follows from the guest; one that `lands` tells what
does not. A run that does not follow
is told by the first tick at which something differs, and by what differs.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, cast

from emulator.driver import Driver
from emulator.engine.landing import RepeatingEngine
from emulator.errors import UsageError, VerifyFailed
from emulator.machine import Outcome
from paravirt.hypervisor import Hypervisor
from paravirt.services.inputs import InputLog
from paravirt.services.recording import End, Mark, Recording, Writer
from paravirt.services.travel import PAUSED

MARKS: Final = 100
"""Marks in a second of guest time, at most; they come at ticks."""


def cannot_repeat(driver: object) -> str:
    """Why runs of a machine do not repeat, in a sentence; nothing where they do."""
    if isinstance(driver, Driver) and driver.not_saved:
        return driver.not_saved
    if not isinstance(driver, Hypervisor):
        return "only deprivileged guests are recorded; leave --virt native out"
    capabilities = driver.engine.capabilities
    if not (capabilities.lands or (capabilities.deterministic and capabilities.pauses_exactly)):
        return (
            f"the {capabilities.name} engine was not opened for a run that is recorded, so that the place of an "
            "interrupt cannot be told; record from the beginning of a run, or with --engine unicorn"
        )
    return ""


class Console:
    """Hashes what a guest prints."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.printed = 0

    def __call__(self, data: bytes) -> None:
        """The guest prints."""
        self._sha.update(data)
        self.printed += len(data)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return self._sha.hexdigest()


def mark_of(driver: Hypervisor) -> Mark:
    """The guest as it is now."""
    state = hashlib.sha256(repr(driver.state).encode()).hexdigest()[:16]
    return Mark(driver.engine.progress, driver.machine.clock.now(), driver.exits.total, state)


def end_of(driver: Hypervisor, outcome: Outcome, console: Console) -> End:
    """How a run ended."""
    return End(
        outcome.kind.value,
        outcome.status,
        outcome.clean or outcome.kind.value == "triple-fault",
        mark_of(driver),
        console.digest,
        console.printed,
        driver.machine.memory.digest(),
        driver.board.digest(),
        tuple((*key, count) for key, count in driver.exits.counts.items()),
    )


class Recorder:
    """Writes down a run. To be connected when the machine polls for input already."""

    def __init__(self, driver: Hypervisor, writer: Writer, console: Console, *, marks: int = MARKS) -> None:
        """`marks`: so many in a second of guest time, at most. Raises `UsageError` for a machine whose runs do not
        repeat."""
        why = cannot_repeat(driver)
        if why:
            raise UsageError(why)
        self._driver, self._writer, self._console = driver, writer, console
        log = InputLog(driver.machine, driver.machine.poll_input)
        log.on_input = writer.input
        log.connect()
        if driver.engine.capabilities.lands:
            cast(RepeatingEngine, driver.engine).on_passed = writer.passed
        self._interval = driver.machine.clock.units_per_second // marks
        self._next = 0
        driver.on_tick = self._tick

    def _tick(self) -> None:
        progress = self._driver.engine.progress
        if progress >= self._next:
            self._next = progress + self._interval
            self._writer.mark(mark_of(self._driver))

    def end(self, outcome: Outcome) -> None:
        """The run ended."""
        self._writer.end(end_of(self._driver, outcome, self._console))


class Replayer:
    """Does a recorded run again."""

    def __init__(self, driver: Hypervisor, recording: Recording, console: Console) -> None:
        """Raises `UsageError` for a machine whose runs do not repeat."""
        why = cannot_repeat(driver)
        if why:
            raise UsageError(why)
        self.driver, self.recording, self.console = driver, recording, console
        self.passed = 0
        """Marks at which the guest was as it had been."""
        self.inputs = InputLog(driver.machine, None)
        self.inputs.inputs = list(recording.inputs)
        self.inputs.connect()
        if driver.engine.capabilities.lands:
            cast(RepeatingEngine, driver.engine).repeat(recording.passed)
        driver.on_tick = self._tick
        self._outside = Outcome(_kind(recording), 0, "replayed to where it was ended")

    def stop_where_it_ended(self) -> None:
        """Where the run was ended from outside, or its recording broke off, end there."""
        end = self.recording.end
        marks = self.recording.marks
        last = end.mark if end is not None else marks[-1] if marks else None
        if last is not None and (end is None or not end.by_guest):
            engine: Any = self.driver.engine
            engine.pause_at(last.progress, lambda: self.driver.end(self._outside))

    def stop_at(self, progress: int) -> None:
        """End the run with `PAUSED` at this progress; where exits and landings alone are known, behind the first."""
        engine: Any = self.driver.engine
        engine.pause_at(progress, lambda: self.driver.end(PAUSED))

    def _tick(self) -> None:
        marks = self.recording.marks
        if self.passed == len(marks):
            return
        then = marks[self.passed]
        if self.driver.engine.progress < then.progress:
            return
        now = mark_of(self.driver)
        if now != then:
            raise VerifyFailed(self._differs(now, then))
        self.passed += 1

    def _differs(self, now: Mark, then: Mark) -> str:
        before = self.recording.marks[self.passed - 1].progress if self.passed else 0
        names = [name for name, mine, its in zip(Mark._fields, now, then, strict=True) if mine != its]
        first = names[0]
        return (
            f"the run diverges from its recording between progress {before} and {then.progress}: there "
            f"{_TOLD[first]} {getattr(now, first)}, and {getattr(then, first)} when it was recorded"
        )

    def compare(self, outcome: Outcome) -> None:
        """The run ended: raise `VerifyFailed` where not everything is as it was."""
        end = self.recording.end
        if end is None:
            return
        now = end_of(self.driver, outcome, self.console)
        if end.by_guest and (now.kind, now.status) != (end.kind, end.status):
            raise VerifyFailed(
                f"the run ended by {now.kind} at progress {now.mark.progress}, and by {end.kind} at "
                f"{end.mark.progress} when it was recorded"
            )
        if now.mark != end.mark:
            raise VerifyFailed(self._differs(now.mark, end.mark))
        for name, what in (
            ("printed", "bytes printed"),
            ("console", "hash of the console"),
            ("counts", "exits by kind"),
            ("devices", "hash of clock and devices"),
            ("memory", "hash of memory"),
        ):
            mine, its = getattr(now, name), getattr(end, name)
            if mine != its and not (name == "counts" and sorted(mine) == sorted(its)):
                raise VerifyFailed(f"the run ended as it was recorded, but the {what} differ: {mine}, and then {its}")


_TOLD = {
    "progress": "the tick comes at progress",
    "now": "the guest's time is",
    "exits": "the number of exits is",
    "processor": "the hash of the processor's state is",
}


def _kind(recording: Recording) -> Any:
    from emulator.machine import EndKind

    end = recording.end
    try:
        return EndKind(end.kind) if end is not None else EndKind.INTERRUPTED
    except ValueError:
        return EndKind.INTERRUPTED
