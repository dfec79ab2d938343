"""Where a guest is stopped that does not exit, so that it can be stopped there again: the side of who records.

Room: `emulator/engine/kvm`. A place serves if the guest does not come by it a million times as another: it waits there
and nothing changes; or a register counts the rounds; or the place is behind a call, where the guest comes seldom.
"""

from collections import Counter
from typing import Final

from emulator.engine.kvm import api
from emulator.engine.kvm.planted import can_hold, meter_of, returns, signed
from emulator.engine.kvm.stops import CAME_NOT, EXITED, SOON, USUAL, Stops
from emulator.engine.landing import Landing

LOOK: Final = 3_000_000
"""Nanoseconds without an exit between two looks at a guest."""
_SELDOM, _COUNTED = 1, 1
"""Looks from which on a place behind a call is sought, and a loop whose rounds are counted."""
_FEW_VISITS: Final = 4
"""Visits of a place behind a call while it is sought, beyond which another is better."""
_ANYWHERE: Final = 60
"""Looks from which on any place will do."""
_AGAIN: Final = 5_000_000
"""Nanoseconds that a trap stays planted where the guest does not come by."""
_RARE, _RARELY = 600_000, 2
"""Nanoseconds from one visit of a place to the next, so often in a row, where the guest comes seldom."""
_SOUGHT: Final = 4_000_000
"""Nanoseconds of processor time that such places are sought."""
_ROUNDS: Final = 6
"""Rounds of a loop that are compared."""
_PROBES, _PROBE, _EVEN = 8, 200_000, 20
"""Free runs by which a meter is tried, nanoseconds of each, and how much more rounds one may have than another."""
_COUNTABLE: Final = 400_000
"""Nanoseconds that a loop must have gone on by that pace before."""
_NEAR: Final = 256
"""Bytes to either side that are taken for the same loop."""
_TRIED: Final = 60
"""Visits of places behind calls, to see where the guest comes least."""
Chosen = Landing | bool
"""Where the guest has landed; True: it exited meanwhile; False: it goes on."""


class Choosing(Stops):
    """A processor whose guest can be made to land."""

    _before: Landing | None = None
    """The guest at the last look, since which it did not exit."""
    _next_look: int = LOOK

    def _wait(self, nanoseconds: int) -> None:
        """Have the next look then."""
        self._next_look = nanoseconds

    def _choose(self, looks: int, stopped: bool) -> Chosen:
        """The guest stands, after so many looks without an exit; `stopped`: it must land soon."""
        here = self._here()
        before, self._before = self._before, here
        if not self._holds():
            self._wait(SOON)
            return False
        if self._step():
            return True
        rare = True
        for _ in range(_RARELY):
            self._alarm.set(_AGAIN)
            began = self._alarm.now()
            came = self._run_to((here.place,))
            rare = rare and self._alarm.now() - began > _RARE
            if came < 0:
                return came == EXITED
            there = self._here()
            if there == here:
                return there
            if not rare:
                break
            if self._step():
                return True
        if rare:
            return self._at(here.place)
        found: Chosen = False
        if looks >= _SELDOM or stopped:
            found = self._behind_calls()
        near = before is not None and abs(before.place - self.registers.rip) < _NEAR
        if found is False and looks >= _COUNTED and before is not None and near and self._holds():
            found = self._with_meter(before)
        if found is False and (looks >= _ANYWHERE or stopped) and self._holds():
            found = self._at(self.registers.rip)
        return found

    def _holds(self) -> bool:
        """Whether a trap can be planted where the guest stands."""
        return can_hold(self._traps.code(), self.registers.rip)

    def _with_meter(self, before: Landing) -> Chosen:
        """Land in this loop, if a register counts its rounds."""
        rounds, place = [tuple(self.registers.gpr)], self.registers.rip
        for _ in range(_ROUNDS):
            if self._step():
                return True
            self._alarm.set(_AGAIN)
            came = self._run_to((place,))
            if came < 0:
                return came == EXITED
            rounds.append(tuple(self.registers.gpr))
        meter = meter_of(rounds, before.registers)
        if meter is None:
            return False
        pace = self._pace(*meter)
        if pace is None:
            return True
        done = signed(rounds[0][meter[0]] - before.registers[meter[0]]) // meter[1]
        if not pace or done / pace < _COUNTABLE or not self._holds():
            return False
        if self._step():
            return True
        self._alarm.set(_AGAIN)
        came = self._run_to((place,))
        return self._here()._replace(meter=(*meter, int(pace * 1_000_000))) if came >= 0 else came == EXITED

    def _pace(self, register: int, step: int) -> float | None:
        """By how many rounds in a nanosecond a register goes on in free runs; 0.0 where it is begun anew now and then;
        None: the guest exited."""
        gpr, rounds = self.registers.gpr, []
        last = gpr[register]
        for _ in range(_PROBES):
            self._alarm.set(_PROBE)
            if self._run_guest():
                return None
            if not self._stands():
                return 0.0
            rounds.append(signed(gpr[register] - last) // step)
            last = gpr[register]
        return max(rounds) / (_PROBE - USUAL) if 0 < max(rounds) < _EVEN * min(rounds) else 0.0

    def _behind_calls(self) -> Chosen:
        """Land behind a call where the guest comes least of some."""
        places = returns(self._vm, self._words[api.W_CR3], self.registers.gpr[4])
        visits: Counter[int] = Counter()
        began = self._alarm.now()
        for _ in range(_TRIED):
            if not places or self._alarm.now() - began > _SOUGHT:
                break
            self._alarm.set(_AGAIN)
            came = self._run_to(places)
            if came == EXITED:
                return True
            if came == CAME_NOT:
                continue
            visits[came] += 1
            if self._step():
                return True
        place = min(visits, key=lambda place: visits[place], default=0)
        return self._at(place) if 0 < visits[place] <= _FEW_VISITS else False

    def _at(self, place: int) -> Chosen:
        """Land at the next visit of a place."""
        self._alarm.set(_AGAIN)
        came = self._run_to((place,))
        return self._here() if came >= 0 else came == EXITED
