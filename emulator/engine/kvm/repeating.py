"""A KVM engine whose runs can be done again: everything comes to the guest at exits of its own, and is counted in them.

Room: `emulator/engine/kvm`. Progress is so much an exit, and what the host's time says beyond is told to who records it
(`emulator.engine.landing`). A guest that goes on long without an exit lands where it can be found again (`choosing`).
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from emulator.engine.exit import ExitKind
from emulator.engine.kvm import api
from emulator.engine.kvm.choosing import LOOK, Choosing
from emulator.engine.kvm.findings import Findings
from emulator.engine.kvm.refinding import Refinding
from emulator.engine.landing import Landing, Passed
from emulator.engine.protocol import Handler

UNIT: Final = 10_000
"""Nanoseconds that an exit counts for: less than any takes here, so that the host's time is what is told."""
_SLACK: Final = 1_000_000
"""Nanoseconds that the host's time may be ahead before that is told."""

_library = ctypes.CDLL(None)


class RepeatingKvm(Choosing, Refinding):
    """One virtual processor, whose runs repeat."""

    def __init__(self, findings: Findings | None = None) -> None:
        super().__init__(findings)
        # What is done without an exit is either not seen, or shows the host's time.
        self.capabilities = replace(self.capabilities, crosses=False, steady_counter=False, lands=True)
        self.on_passed: Callable[[Passed], None] = lambda _passed: None
        self.processor = int(_library.sched_getcpu())
        self.exits = 0
        """Exits of the guest's own so far."""
        self._added = 0
        """Progress that did not come by exits."""
        self._told: list[Passed] | None = None
        """What comes next in a run that is done again, the last first; None where none is."""
        self._pause: tuple[int, Callable[[], None]] | None = None
        self._looked = (-1, 0)
        """The exits at the last look, and how many looks there were since."""

    # -- time -----------------------------------------------------------------------------------

    @property
    def progress(self) -> int:
        """Nanoseconds: so much an exit, and what was added."""
        return self.exits * UNIT + self._added

    def set_deadline(self, progress: int) -> None:
        """Ask for a BUDGET exit at `progress`: behind the first exit there, or where a guest without exits lands."""
        self._deadline = progress

    def repeat(self, passed: Sequence[Passed]) -> None:
        """See `RepeatingEngine`."""
        self._told = list(reversed(passed))

    def pause_at(self, progress: int | None, paused: Callable[[], None] = lambda: None) -> None:
        """See `RepeatingEngine`."""
        self._pause = None if progress is None else (progress, paused)

    def _arm(self) -> None:
        self._alarm.set(None if self._told is not None else LOOK)

    def _signalled(self) -> None:
        self._alarm.take()
        self._arm()

    def _pass(self, landing: Landing | None = None) -> None:
        """The host's time is ahead: let progress be so as well, and for a landing where something is due."""
        least = 0 if landing is None else self._deadline
        passed = Passed(self.exits, max(self._alarm.now(), least, self.progress + 1) - self.progress, landing)
        self._added += passed.units
        self.on_passed(passed)

    def _exited(self) -> None:
        """One exit more of the guest's own."""
        self.exits += 1
        told = self._told
        if told is None:
            if self._alarm.now() - self.progress > _SLACK:
                self._pass()
        elif told and told[-1].exits <= self.exits and told[-1].landing is None:
            self._added += told.pop().units

    # -- running --------------------------------------------------------------------------------

    def run(self, handler: Handler) -> None:
        """As any engine, but on one of the host's processors: user code sees which by CPUID, and keeps that."""
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.processor} & allowed or {min(allowed)})
        try:
            super().run(handler)
        finally:
            os.sched_setaffinity(0, allowed)

    def _loop(self, handler: Handler) -> None:
        exit_ = self._exit
        try:
            while True:
                if self._moved and self.progress >= self._deadline:
                    if self._incomplete:
                        self._complete(handler)
                    self._moved, self._dirty = False, True
                    exit_.kind = ExitKind.BUDGET
                    handler(exit_)
                    continue
                if self._pause is not None and self.progress >= self._pause[0]:
                    (_, paused), self._pause = self._pause, None
                    paused()
                if self._stopped:
                    if self._incomplete:
                        self._complete(handler)
                    return
                if self._changes:
                    self._store_changes()
                if self._dirty:
                    self._put()
                self._go_on(handler)
        finally:
            if self._incomplete:
                self._complete(handler)

    def _go_on(self, handler: Handler) -> None:
        """Until the guest exits by itself, which is handled, or has landed."""
        own, words, registers = self._enter(), self._words, self.registers
        self._moved = True
        self._midway = self._incomplete = False
        self._passed = 0
        if own:
            self._exited()
        if self._ring is not None and self._posted:
            self._hand_up_posted(handler)
        if not own:
            self._dirty = True
        elif self._halves[api.H_EXIT_REASON] == api.EXIT_HLT:
            self._dirty = True
            self._traps.read()
            if registers.reloaded or words[api.W_CR3] != registers.root:
                self._crossed()
            handler(self._exit)
        else:
            self._other(self._halves[api.H_EXIT_REASON], handler)

    def _enter(self) -> bool:
        """Whether the guest exited by itself; else it has landed."""
        told = self._told
        if told and told[-1].exits == self.exits:
            passed = told.pop()
            if passed.landing is not None:
                self._refind(passed.landing, self.exits)
                self._added += passed.units
                return False
        while not self._run_guest():
            done = self._look()
            if done is not None:
                return done
        return True

    def _look(self) -> bool | None:
        """A signal came: whether the guest has exited meanwhile (True) or landed (False); None: it goes on."""
        if self._told is not None:
            self._alarm.take()
            return None
        before, looks = self._looked
        if before != self.exits:
            self._looked, self._before = (self.exits, 0), None
            if not self._stopped:
                self._signalled()
                return None
        if not self._stands():
            return None
        if self._alarm.now() < self._deadline and not self._stopped:
            return None
        self._looked = self.exits, looks + 1
        self._next_look = LOOK
        chosen = self._choose(looks, self._stopped)
        self._alarm.set(self._next_look)
        if chosen is False:
            return None
        if chosen is True:
            return True
        self._pass(chosen)
        return False


__all__ = ["UNIT", "RepeatingKvm"]
