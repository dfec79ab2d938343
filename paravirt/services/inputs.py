"""What reaches a guest from outside, with the moment at which it did; given again at the same moments.

Room: `paravirt/services`. On an engine that is deterministic console input is all there is: time is counted in what the
guest does, and interrupts come at times. An `InputLog` stands between a machine and whoever polls for input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from emulator.errors import VerifyFailed
from emulator.machine import Machine

Poll = Callable[[float], bytes | None]


class Moment(NamedTuple):
    """When the machine asked for input: in a run that repeats, the same moments come in the same order."""

    progress: int
    now: int
    """Virtual nanoseconds; an idle guest's time passes without progress."""


class Input(NamedTuple):
    """What came."""

    moment: Moment
    data: bytes | None
    """Bytes for the console; None: no more will come."""


class InputLog:
    """All input of one run. `poll` is given to the machine."""

    def __init__(self, machine: Machine, source: Poll | None) -> None:
        """`source` is asked where the run has not been before; None: nothing more comes."""
        self._machine = machine
        self._source = source
        self.inputs: list[Input] = []
        self.next = 0
        """The first input that has not been given in this pass."""
        self.frontier = Moment(-1, -1)
        """The last moment at which the source was asked: before it everything is known."""
        self.on_input: Callable[[Input], None] = lambda _input: None
        """Called with every new input, before the guest has it."""

    def moment(self) -> Moment:
        """Now."""
        machine = self._machine
        return Moment(machine.engine.progress, machine.clock.now())

    def poll(self, seconds: float) -> bytes | None:
        """Input for the guest, as `Machine.poll_input` has it. Raises `VerifyFailed` where a run does not repeat."""
        moment = self.moment()
        if self.next < len(self.inputs):
            due = self.inputs[self.next]
            if due.moment == moment:
                self.next += 1
                return due.data
            if due.moment < moment:
                raise VerifyFailed(
                    f"the guest asked for input at progress {moment.progress} and passed {due.moment.progress}, where "
                    "some came before: this run is not the one that was recorded"
                )
            return b""
        if moment < self.frontier:
            return b""
        self.frontier = moment
        data = None if self._source is None else self._source(seconds)
        if data or data is None:
            came = Input(moment, data)
            self.inputs.append(came)
            self.next += 1
            self.on_input(came)
        return data

    def connect(self) -> None:
        """Have the machine poll here, unless no more comes from where it is."""
        ended = self.next > 0 and self.inputs[self.next - 1].data is None
        self._machine.poll_input = None if ended else self.poll

    def forget_from(self, moment: Moment) -> None:
        """The future is another from a moment on."""
        del self.inputs[self.next :]
        self.frontier = min(self.frontier, moment)
