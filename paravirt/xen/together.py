"""Several Xen guests on one host: each on an engine of its own, taking turns in one thread.

Room: `paravirt/xen`. A turn ends after a slice of the guest's virtual time, or when it waits for an event. Each guest
has its own virtual time; only when all wait does time pass for all of them, by as much as the next timer needs. So two
runs are the same, whatever the machine below does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from emulator.machine import EndKind, Machine, Outcome
from paravirt.xen.ending import end
from paravirt.xen.hypervisor import XenHypervisor

SLICE: Final = 2_000_000
"""Nanoseconds of virtual time in a turn."""
_LOOKS: Final = 16
"""Turns between two looks at guests that wait."""


class Together:
    """Guests that run until each has ended."""

    def __init__(self, guests: Sequence[XenHypervisor]) -> None:
        """`guests` are loaded, and share a host."""
        self.guests = list(guests)
        self.outcomes: dict[int, Outcome] = {}
        """How each ended, by its domain number."""
        self.turns = 0
        self._turning: XenHypervisor | None = None
        self.servants: set[int] = set()
        """Numbers of domains that run for others: when only they are left, the run is over."""
        self.before_end: Callable[[XenHypervisor, Outcome], None] = _nothing
        """Told of a guest that ended, with everything as it left it."""
        self.after_end: Callable[[XenHypervisor, Outcome], None] = _nothing
        """Told when others are rid of it, and another may be started in its place."""

    def run(self) -> dict[int, Outcome]:
        """Run all to their ends; what waits for what cannot come has halted."""
        for guest in self.guests:
            self._begin(guest)
        while self._goes_on():
            waiting = list(self.guests)
            ready = [guest for guest in waiting if not guest.waiting or guest.has_event]
            if self.turns % _LOOKS == 0:
                self._look_at([guest for guest in waiting if guest not in ready])
            if not ready and not self._pass_time(waiting):
                for guest in waiting:
                    self._ended(guest, Outcome(EndKind.HALTED, detail="waits for an event that cannot come"))
            for guest in ready:
                if guest in self.guests and self._goes_on():
                    self._turn(guest)
        for guest in list(self.guests):
            self._ended(guest, Outcome(EndKind.STOPPED, detail="those that it ran for have ended"))
        return self.outcomes

    def _goes_on(self) -> bool:
        return any(guest.domain.number not in self.servants for guest in self.guests)

    def _begin(self, guest: XenHypervisor) -> None:
        guest.takes_turns = True
        guest.machine.begin()

    def add(self, guest: XenHypervisor) -> None:
        """Another guest, which is loaded, takes turns from now on."""
        self._begin(guest)
        self.guests.append(guest)

    def kill(self, guest: XenHypervisor, why: str) -> None:
        """End a guest where it is, whatever it was doing; in its own turn, when the exit under way is done."""
        if guest in self.guests:
            guest.crash(why)
            if guest is not self._turning:
                self._ended(guest, Outcome(EndKind.CRASHED, detail=why))

    def _turn(self, guest: XenHypervisor) -> None:
        self.turns += 1
        machine = guest.machine
        until = machine.clock.now() + SLICE
        asked = machine.stop_when
        ended = False

        def over() -> bool:
            nonlocal ended
            ended = asked is not None and asked()
            return ended or machine.clock.now() >= until

        machine.stop_when = over
        guest.waiting = False
        over_by = machine.clock.at(until, lambda: None)  # the engine comes back by then
        machine.arm()
        guest.time_skipped()
        if guest.has_event:
            machine.engine.set_deadline(machine.engine.progress + 1)
        self._turning = guest
        outcome = guest.resume()
        self._turning = None
        machine.stop_when = asked
        over_by.cancel()
        if guest in self.guests and (outcome.kind is not EndKind.STOPPED or ended):
            self._ended(guest, outcome)
        else:
            guest.outcome = None  # of the turn, and not of the guest

    def _ended(self, guest: XenHypervisor, outcome: Outcome) -> None:
        if guest not in self.guests:
            return
        self.guests.remove(guest)
        self.outcomes[guest.domain.number] = outcome
        self.before_end(guest, outcome)
        guest.store.close()
        end(guest.domain)
        self.after_end(guest, outcome)

    def _pass_time(self, waiting: list[XenHypervisor]) -> bool:
        """Let time pass for all, to the first timer; False where there is none."""
        clocks = [guest.machine.clock for guest in waiting]
        due = [when - clock.now() for clock in clocks if (when := clock.next_event()) is not None]
        step = max(0, min(due)) if due else None
        listening = [guest.machine for guest in waiting if guest.machine.poll_input is not None]
        if listening:
            step = self._listen(listening, step)
        if step is None:
            return bool(listening)
        for clock in clocks:
            clock.skip_to(clock.now() + step)
            clock.run_due()
        self._look_at(waiting)
        return True

    @staticmethod
    def _listen(machines: list[Machine], step: int | None) -> int | None:
        """Wait for input as long as that, or less; the nanoseconds that pass for the guests."""
        began = time.monotonic()
        for machine in machines:
            machine.take_input(Machine.WAIT if step is None else min(Machine.WAIT, step / 1e9))
        if not any(machine.real_time for machine in machines):
            return step
        passed = int((time.monotonic() - began) * 1e9)
        return passed if step is None else min(step, passed)

    def _look_at(self, waiting: list[XenHypervisor]) -> None:
        """End those whose time is over, and take what is typed for others; they take no turns now."""
        for guest in waiting:
            outcome = guest.machine.over()
            if outcome is not None:
                self._ended(guest, guest.outcome or outcome)
            else:
                guest.machine.take_input(0.0)


def _nothing(_guest: XenHypervisor, _outcome: Outcome) -> None:
    return


__all__ = ["Together"]
