"""A guest's history, in which one can go anywhere: checkpoints on the way, and what lies between them done again.

Room: `paravirt/services`. A `Travel` drives a deterministic machine. Going forward it leaves checkpoints; going back
it puts one back and runs to the place. Inputs come again as they came, and what was printed is not printed again.
What searches a history (`timeline`) is made of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from emulator.errors import UsageError, VerifyFailed
from emulator.machine import EndKind, Outcome
from paravirt.hypervisor import Hypervisor
from paravirt.services.checkpoints import Checkpoint, Checkpoints
from paravirt.services.inputs import InputLog
from paravirt.services.machine_state import capture, exactness, memory_regions, refusal, reinstate
from paravirt.services.positions import Position

Seen = TypeVar("Seen")
INTERVAL: Final = 10_000_000
"""Blocks between two checkpoints: about fifty million instructions."""
BUDGET: Final = 1 << 30
"""Bytes of pages that checkpoints may keep."""
_EVERYWHERE: Final = (1 << 64) - 1
_CERTAIN: Final = 64
"""Instructions from which on a block may be cut where it is watched and not where it runs: the engine's buffers."""
_ATTEMPTS: Final = 64
"""How often an instruction is begun anew before it is done, at most: pages that it touches come one by one."""
PAUSED: Final = Outcome(EndKind.STOPPED, detail="paused")
"""The end of a run that has come to its position."""


class ConsoleOnce:
    """Takes what a guest prints, and hands on what it has not printed before."""

    def __init__(self, console: Callable[[bytes], None]) -> None:
        self._console = console
        self.printed = 0
        """Bytes printed up to here in the guest's history."""
        self.shown = 0
        """Bytes handed on."""

    def __call__(self, data: bytes) -> None:
        """The guest prints."""
        before = self.printed
        self.printed = before + len(data)
        if self.printed > self.shown:
            self._console(data[max(0, self.shown - before) :])
            self.shown = self.printed


class Travel:
    """The history of one machine, from where it is now on."""

    def __init__(
        self,
        driver: Hypervisor,
        console: ConsoleOnce | None = None,
        *,
        interval: int = INTERVAL,
        budget: int = BUDGET,
        begun: bool = False,
    ) -> None:
        """`console` is what the machine prints to; `begun` says that the guest has run before, or was put back.

        Raises `UsageError` for a machine whose runs cannot be repeated."""
        why = refusal(driver) or exactness(driver)
        if why:
            raise UsageError(why)
        self.driver = driver
        self.machine = driver.machine
        self.engine: Any = driver.engine
        self.console = console or ConsoleOnce(lambda _: None)
        self.interval = interval
        self.inputs = InputLog(self.machine, self.machine.poll_input)
        self._steps = 0
        self._block: Checkpoint | None = None
        """The machine at the beginning of the block that is under way, while it is."""
        self.ended: Outcome | None = None
        """How the guest has ended, while it is at its end: it does not go on from there."""
        self.end = Position(0)
        """The furthest position that was reached."""
        self._next = 0
        self._collecting = True
        self._regions = memory_regions(driver)
        self.checkpoints = Checkpoints(list(self._regions.values()), budget)
        self.inputs.connect()
        self.machine.begin()
        if not begun:
            self.machine.arm()
        self._checkpoint()
        self.start = self.position
        """The first position there is."""
        driver.on_tick = self._tick

    # -- where ----------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where the guest is."""
        if self._block is not None:
            return Position(self._block.position.progress, self._steps)
        return Position(self.engine.progress_state.done)

    def _tick(self) -> None:
        """The engine came back at a deadline: the place for a checkpoint."""
        if self._collecting and self.engine.progress >= self._next and self.driver.outcome is None:
            self._checkpoint()

    def _checkpoint(self) -> None:
        position = Position(self.engine.progress_state.done)
        self._next = position.progress + self.interval
        self._take(position, keep=True)

    def loose_checkpoint(self) -> Checkpoint:
        """A checkpoint of here that is forgotten with its last reference."""
        assert self._block is None
        return self._take(self.position, keep=False)

    def _take(self, position: Position, *, keep: bool) -> Checkpoint:
        state = capture(self.driver, whole=False)
        printed, inputs = self.console.printed, self.inputs.next
        return self.checkpoints.take(position, state, printed, inputs, ended=self.ended, keep=keep)

    # -- going ----------------------------------------------------------------------------------

    def run(self, until: Position | None = None) -> Outcome:
        """Go forward to a position, `PAUSED` there, or to the guest's end. What `driver.end` was told ends it, too."""
        if until is not None and until < self.position:
            raise ValueError(f"{until} lies behind {self.position}")
        self._to_block()
        outcome = self._forward(until.progress if until is not None else None)
        if outcome is PAUSED and until is not None and until.steps:
            return self._into_block(until.steps)
        return outcome

    def goto(self, position: Position) -> Outcome:
        """Go to a position in either direction: `PAUSED` there, or the end of the guest where that comes before."""
        if position < self.start:
            raise UsageError(f"the history of this guest begins at {self.start}; {position} is before that")
        block = self._block
        if block is not None and position.progress == block.position.progress:
            self.put_back(block)
            return self._into_block(position.steps) if position.steps else PAUSED
        here = self.position
        nearest = self.checkpoints.before(position)
        if block is not None or position < here or nearest.position > here:
            self.put_back(nearest)
        outcome = self._forward(position.progress)
        if outcome is PAUSED and position.steps:
            return self._into_block(position.steps)
        return outcome

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Go to a checkpoint."""
        self._note_end()
        self.checkpoints.put_back(checkpoint)
        reinstate(self.driver, checkpoint.state)
        self.console.printed = checkpoint.console
        self.inputs.next = checkpoint.inputs
        self.inputs.connect()
        self.ended = checkpoint.ended
        self._block, self._steps = None, 0
        self._next = checkpoint.position.progress + self.interval

    def _note_end(self) -> None:
        if self._block is None:
            self.end = max(self.end, self.position)

    def _forward(self, progress: int | None) -> Outcome:
        """Run until so much progress is made."""
        driver, engine = self.driver, self.engine
        if self.ended is not None:
            return self.ended
        if progress is not None:
            if engine.progress_state.done >= progress:
                return PAUSED
            engine.pause_at(progress, lambda: driver.end(PAUSED))
        try:
            return self._resume()
        finally:
            engine.pause_at(None)
            self._note_end()

    def _resume(self) -> Outcome:
        """Have the guest go on, unless it has ended."""
        if self.ended is not None:
            return self.ended
        outcome = self.driver.resume()
        if outcome.final:
            self.ended = outcome
        return outcome

    def _to_block(self) -> None:
        """Be at the beginning of a block, since only from there a run repeats: go back to it from within."""
        if self._block is not None:
            self.put_back(self._block)

    # -- instruction by instruction -------------------------------------------------------------

    def _into_block(self, steps: int) -> Outcome:
        """From the beginning of a block, do so many instructions of it."""
        block = self.loose_checkpoint()
        outcome, done = self.watch_block(lambda count: count > steps)
        self._block, self._steps = block, steps
        if outcome is PAUSED and done <= steps:
            self.put_back(block)
            raise UsageError(f"the block at {block.position} ends before its instruction {steps}")
        return outcome

    @contextmanager
    def _not_collecting(self) -> Iterator[None]:
        """No checkpoints are made meanwhile."""
        collecting, self._collecting = self._collecting, False
        try:
            yield
        finally:
            self._collecting = collecting

    def watch_block(
        self,
        stop: Callable[[int], bool],
        ahead: int | None = None,
        begins: Callable[[int], None] = lambda _: None,
    ) -> tuple[Outcome, int]:
        """Run from the beginning of a block, calling `begins` with the address of every instruction, until `stop` says
        so of the number of the one about to begin (from 1), or until the next block begins; `ahead` is the progress at
        which that is.

        Gives how it ended, and the number of instructions seen.
        """
        driver, engine = self.driver, self.engine
        count = 0

        def seen(address: int) -> None:
            nonlocal count
            if driver.outcome is not None:
                return  # the engine goes on to the end of the block, the guest does not
            count += 1
            begins(address)
            if stop(count):
                driver.end(PAUSED)

        with self._not_collecting():
            observer = engine.observe_code(0, _EVERYWHERE, seen)
            try:
                engine.pause_at(
                    ahead if ahead is not None else engine.progress_state.done + 1, lambda: driver.end(PAUSED)
                )
                outcome = self._resume()
            finally:
                engine.pause_at(None)
                engine.unobserve(observer)
        return outcome, count

    def step(self) -> Outcome:
        """Do one instruction: the guest is in another state then. It ends where the guest does."""
        if self.ended is not None:
            return self.ended
        before = self.driver.state
        for _ in range(_ATTEMPTS):
            outcome = self._step()
            if outcome is not PAUSED or self.driver.state != before:
                break
        return outcome

    def _step(self) -> Outcome:
        """Begin one instruction."""
        here = self.position
        block = self._block
        if block is None:
            block = self.loose_checkpoint()
        else:
            self.put_back(block)
        length = self.block_length(block)
        if here.steps + 1 < length:
            return self._into_block(here.steps + 1)
        return self.run(Position(here.progress + 1))

    def block_length(self, block: Checkpoint) -> int:
        """How many instructions are begun from a checkpoint to the next unit of progress, or to the guest's end; goes
        back to it."""
        outcome = self._forward(block.position.progress + 1)
        behind = self.driver.state if outcome is PAUSED else None
        self.put_back(block)
        count = ahead = 0
        while True:
            ahead += 1
            outcome, count = self.watch_block(lambda _: False, block.position.progress + ahead)
            same = self.driver.state == behind
            self.put_back(block)
            if same or outcome is not PAUSED:
                return count
            if ahead > _CERTAIN:
                raise VerifyFailed(f"the block at {block.position} is not the same when it is watched")

    def step_back(self) -> Outcome:
        """Undo one instruction: the guest is in a state in which it has not been since. At the start nothing is."""
        after = self.driver.state
        while self.position > self.start:
            here = self.position
            if here.steps:
                self.goto(Position(here.progress, here.steps - 1))
            else:
                self._last_of_block(here.progress - 1)
            if self.driver.state != after:
                return PAUSED
        return PAUSED

    def _last_of_block(self, progress: int) -> None:
        """Go to the last instruction of a block, or of one before it where nothing was done in it."""
        self.goto(Position(progress))
        block = self.loose_checkpoint()
        length = self.block_length(block)
        if length > 1:
            self._into_block(length - 1)

    def peek(self, look: Callable[[], Seen]) -> Seen:
        """Look at the guest by means that may change it (a walk marks what it uses); it is as before afterwards."""
        here = self.position
        mark = self.loose_checkpoint() if self._block is None else None
        try:
            return look()
        finally:
            if mark is not None:
                self.put_back(mark)
            else:
                self.goto(here)

    # -- another future -------------------------------------------------------------------------

    def diverge(self) -> None:
        """The guest was changed here: what came after does not come again."""
        self._block, self._steps = None, 0
        here = Position(self.engine.progress_state.done)
        self.checkpoints.forget_after(here)
        self.inputs.forget_from(self.inputs.moment())
        self.console.shown = self.console.printed
        self.ended = None
        self.end = here
        self._checkpoint()

    def close(self) -> None:
        """Release what watches memory."""
        self.driver.on_tick = None
        self.checkpoints.close()
