"""Coming again to where a guest has landed, in a run that is done again.

Room: `emulator/engine/kvm`. A trap is planted at the place, and each visit is compared with the landing. Where a
register counts the rounds of a loop, the guest runs freely first, a part of what is left at a time, until few are.
"""

import struct
from typing import Final

from emulator.engine.kvm import api
from emulator.engine.kvm.planted import FEW, Planted, signed
from emulator.engine.kvm.stops import USUAL, Stops
from emulator.engine.kvm.stub import KVM_ORDER
from emulator.engine.landing import Landing
from emulator.errors import VerifyFailed

_MOST_VISITS: Final = 400_000
"""Visits that are looked at before a place is given up: half a minute."""
_STRIDE: Final = 100_000
"""Nanoseconds of the first free runs: a landing in a loop is later than that behind its beginning."""
_SAMPLES, _SHARE = 5, 0.4
"""Free runs by which the pace of a loop is known, and how much of what is left is then run."""
_NATIVE: Final = (5.0, 200_000)
_INTERPRETED: Final = (0.005, 60_000)
"""Rounds in a nanosecond that no loop does, and nanoseconds of the first runs: at level 3, and where KVM interprets."""
_VERY_FEW: Final = 12
"""Rounds that are all stopped at."""
_MARGIN: Final = 3_000
"""Nanoseconds by which a run may begin sooner than any did."""
_IDLE: Final = 6
"""Free runs in which the guest got nowhere, after which there are no more."""
_NEAR: Final = 4096
"""Bytes to either side of a loop's place that may be the loop."""
_TRIES: Final = 20_000
"""Free runs towards one landing."""


class _Pace:
    """How many rounds the guest does in a time, by the free runs so far. A run may do less, when others had the
    processor, and never more than the best do."""

    def __init__(self, fastest: float, sample: int, known: float = 0.0) -> None:
        """`fastest`: rounds in a nanosecond that no loop does; `sample`: nanoseconds of the first runs; `known`: rounds
        in a nanosecond that this one may do."""
        self._fastest, self._sample, self._known = fastest, sample, known
        self._runs: list[tuple[int, int]] = []
        self.idle = 0
        """Runs in which it got nowhere, since the last in which it did."""

    def ran(self, alarm: int, rounds: int) -> None:
        """An alarm so many nanoseconds ahead let it do so many rounds."""
        self.idle = 0 if rounds else self.idle + 1
        if rounds > 0:
            self._runs.append((alarm, rounds))

    def alarm(self, left: int) -> int:
        """One that is over before so many rounds are."""
        long = [(alarm, rounds) for alarm, rounds in self._runs if alarm >= self._sample // 2]
        if len(long) < _SAMPLES and left > self._fastest * self._sample:
            return self._sample
        if not long:
            return max(1, int(left / self._fastest))
        speed = max(self._known, *(rounds / (alarm - USUAL) for alarm, rounds in long))
        # Runs at half the speed look as if they had begun late.
        overhead = min(USUAL, *(alarm - rounds / speed for alarm, rounds in self._runs)) - _MARGIN
        return max(1, int(max(overhead, 0.0) + left / speed * _SHARE))


class Refinding(Stops):
    """A processor whose guest can be had to land where it did."""

    _slow: bool | None = None
    """Whether code is slow at level 0; None: it was not tried."""

    def _refind(self, landing: Landing, exits: int) -> None:
        """Run to a landing, behind so many exits. Raises `VerifyFailed` where the guest does not come there."""
        if landing.meter is not None and not self._approach(landing, *landing.meter):
            raise self._lost(landing, exits)
        try:
            planted = Planted(self._vm, self._words[api.W_CR3], (landing.place,))
        except LookupError:
            raise self._lost(landing, exits) from None
        try:
            if not self._visit(planted, landing):
                raise self._lost(landing, exits)
        finally:
            planted.undo()

    def _visit(self, planted: Planted, landing: Landing) -> bool:
        """Stop at each visit of a place, until it is the landing; whether the guest did not exit before."""
        places, sought = (landing.place,), landing._replace(meter=None)
        raw, b = self._bytes, api.B_REGISTERS
        order = landing.registers
        low = struct.pack("<6Q", *(order[i] for i in (0, 3, 1, 2, 6, 7)))
        high = struct.pack("<9Q", order[5], *order[8:])
        for _ in range(_MOST_VISITS):
            while not self._run_guest():
                self._alarm.take()
            self._midway = self._incomplete = False
            if not self._at_one(places):
                return False
            planted.undo()
            if raw[b : b + 48] == low and raw[b + 56 : b + 128] == high:
                self._traps.read()
                self._put()
                if self._here() == sought:
                    return True
            if self._pass_by():
                return False
            planted.redo()
        raise VerifyFailed(
            f"the guest comes by {landing.place:#x} again and again, and {_MOST_VISITS} times not as when it was "
            "interrupted there: it is another run, or has run too long there to be found again"
        )

    def _approach(self, landing: Landing, register: int, step: int, known: int) -> bool:
        """Run freely until few rounds are left; whether the guest did neither exit nor come too far before."""
        target, gpr = landing.registers[register], self.registers.gpr
        pace, alarm, last = _Pace(*_NATIVE, known / 1_000_000), _STRIDE, -1
        for _ in range(_TRIES):
            self._alarm.set(alarm)
            if self._run_guest():
                return False
            if not self._stands() or abs(self.registers.rip - landing.place) >= _NEAR:
                last = -1
                continue
            left = signed(target - gpr[register]) // step
            if left < 0:
                alarm, last = _STRIDE, -1  # the register counts something else still
                continue
            if last >= 0:
                pace.ran(alarm, last - left)
            last = left
            if left <= FEW or pace.idle == _IDLE:
                return left <= _VERY_FEW or self._slowly(landing, register, step, left)
            alarm = pace.alarm(left)
        return True

    def _slowly(self, landing: Landing, register: int, step: int, left: int) -> bool:
        """As `_approach`, at level 0 where that is interpreted: what is left of a loop traps nowhere, as it did not."""
        if self._slow is None:
            self._slow = self._interprets()
        if not self._slow:
            return True
        words, at, target = self._words, api.W_REGISTERS + KVM_ORDER[register], landing.registers[register]
        self._at_level(True)
        pace, ended = _Pace(*_INTERPRETED), False
        while left > _VERY_FEW and pace.idle < _IDLE and not ended:
            alarm = pace.alarm(left)
            self._alarm.set(alarm)
            ended = self._run_guest()  # KVM cannot interpret it: the rest is done at level 3
            self._alarm.take()
            before, left = left, signed(target - words[at]) // step
            pace.ran(alarm, before - left)
        trapped = ended and self._halves[api.H_EXIT_REASON] != api.EXIT_INTERNAL_ERROR
        self._at_level(False)
        self._get()
        self._put()
        return not trapped and left >= 0

    def _lost(self, landing: Landing, exits: int) -> VerifyFailed:
        return VerifyFailed(
            f"the run diverges from its recording: behind exit {exits} the guest does not come to {landing.place:#x} "
            "as when it was interrupted there"
            + ("; it may have run past, on a host that others use: replay it again" if landing.meter else "")
        )
