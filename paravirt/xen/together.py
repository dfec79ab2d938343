"""Several Xen guests on one host: each on an engine of its own, taking turns in one thread.

Room: `paravirt/xen`. A turn ends after a slice of the guest's virtual time, or when it waits for an event. Each guest
has its own virtual time; only when all wait does time pass for all of them, by as much as the next timer needs. So two
runs are the same, whatever the machine below does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from emulator.machine import EndKind, Outcome
from paravirt.xen.hypervisor import XenHypervisor

SLICE: Final = 2_000_000
"""Nanoseconds of virtual time in a turn."""


class Together:
    """Guests that run until each has ended."""

    def __init__(self, guests: Sequence[XenHypervisor]) -> None:
        """`guests` are loaded, and share a host."""
        self.guests = list(guests)
        self.outcomes: dict[int, Outcome] = {}
        """How each ended, by its domain number."""
        self.turns = 0

    def run(self) -> dict[int, Outcome]:
        """Run all to their ends; what waits for what cannot come has halted."""
        for guest in self.guests:
            guest.takes_turns = True
            guest.machine.begin()
        while waiting := [guest for guest in self.guests if guest.domain.number not in self.outcomes]:
            ready = [guest for guest in waiting if not guest.waiting or guest.has_event]
            if not ready and not self._pass_time(waiting):
                for guest in waiting:
                    self._ended(guest, Outcome(EndKind.HALTED, detail="waits for an event that cannot come"))
            for guest in ready:
                self._turn(guest)
        return self.outcomes

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
        machine.arm()
        guest.time_skipped()
        if guest.has_event:
            machine.engine.set_deadline(machine.engine.progress + 1)
        outcome = guest.resume()
        machine.stop_when = asked
        if outcome.kind is not EndKind.STOPPED or ended:
            self._ended(guest, outcome)

    def _ended(self, guest: XenHypervisor, outcome: Outcome) -> None:
        self.outcomes[guest.domain.number] = outcome
        guest.domain.gone()

    def _pass_time(self, waiting: list[XenHypervisor]) -> bool:
        """Let time pass for all, to the first timer; False where there is none."""
        clocks = [guest.machine.clock for guest in waiting]
        due = [when - clock.now() for clock in clocks if (when := clock.next_event()) is not None]
        if not due:
            return False
        step = max(0, min(due))
        for guest, clock in zip(waiting, clocks, strict=True):
            clock.skip_to(clock.now() + step)
            clock.run_due()
            outcome = guest.machine.over()
            if outcome is not None:
                self._ended(guest, outcome)
        return True


__all__ = ["Together"]
