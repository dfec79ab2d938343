"""Searching a guest's history backwards: who wrote there last, when was this executed last.

Room: `paravirt/services`. The stretch before the present is done again and watched, then the one before it. Stretches
in which the page in question was not written are passed over, and long ones are divided by which part wrote the page,
so that little runs watched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from emulator.engine.exit import Exit
from emulator.engine.protocol import Handler
from emulator.errors import UsageError
from emulator.memory import PAGE_SIZE
from paravirt.services.checkpoints import Checkpoint
from paravirt.services.positions import Position
from paravirt.services.travel import PAUSED, ConsoleOnce, Travel

PIECES: Final = 8
"""Parts into which a stretch is divided."""
SHORT: Final = 200_000
"""Blocks that are not divided."""
_KEPT: Final = 4096
"""Moments at which something was seen that are remembered of one stretch, the last ones."""
_LONGEST_STORE: Final = 64
MOST_PLACES: Final = 256
"""Addresses that can be searched for at once."""

Note = Callable[[], None]
Watch = Callable[[Note], tuple[list[int], Callable[[Handler], Handler] | None]]
"""Has `Note` called when what is sought happens: observers that were put up, and what is put around exits."""
Differs = Callable[[Any, Any], bool]
"""Whether what is sought may have happened between two checkpoints with these contents."""


class Timeline(Travel):
    """The history of one machine."""

    _sought: tuple[Watch, Differs, frozenset[int], Position]

    def find_previous_write(self, physical: int, size: int, *, changing: bool = True) -> Position | None:
        """Go to the instruction that last wrote to `size` bytes at a guest-physical address before here.

        With `changing` only a store that changed them counts. What the hypervisor stored for the guest (an interrupt's
        frame) counts for the instruction that it interrupted. None, and the guest stays here, where there is none.
        Raises `UsageError` for what is no memory.
        """
        memory = self.machine.memory
        if size <= 0 or not memory.base <= physical <= memory.end - size:
            raise UsageError(f"{size} bytes at {physical:#x} are not in the guest's memory")
        first, last = (physical - memory.base) // PAGE_SIZE, (physical + size - 1 - memory.base) // PAGE_SIZE
        low = physical - memory.base
        view = memory.view[low : low + size]

        def differs(before: Any, after: Any) -> bool:
            return bool((before[first : last + 1] != after[first : last + 1]).any())

        def watch(note: Note) -> tuple[list[int], Callable[[Handler], Handler]]:
            def stored(address: int, count: int, value: int) -> None:
                start, end = max(address, physical), min(address + count, physical + size)
                if start >= end:
                    return
                new = value.to_bytes(count, "little")[start - address : end - address]
                if not changing or view[start - physical : end - physical] != new:
                    note()

            def around(handler: Handler) -> Handler:
                def handle(exit_: Exit) -> None:
                    before = bytes(view)
                    handler(exit_)
                    if view != before:
                        note()

                return handle

            return [self.engine.observe_stores(physical - _LONGEST_STORE, physical + size - 1, stored)], around

        return self._search(watch, differs)

    def find_previous(self, addresses: Collection[int]) -> Position | None:
        """Go to where one of some guest-virtual addresses was executed last before here; None, and the guest stays
        here, where none was. Raises `UsageError` for too many."""
        if len(addresses) > MOST_PLACES:
            raise UsageError(f"{len(addresses)} addresses to look for at once: give at most {MOST_PLACES}")

        def watch(note: Note) -> tuple[list[int], None]:
            return [self.engine.observe_code(place, place, lambda _: note()) for place in addresses], None

        return self._search(watch, lambda _before, _after: True, frozenset(addresses))

    # -- the search -----------------------------------------------------------------------------

    def _search(self, watch: Watch, differs: Differs, places: frozenset[int] = frozenset()) -> Position | None:
        """The last moment before here at which `watch` notes something; `places` are the instructions that it is about,
        where it is not about what instructions do."""
        here = self.position
        self._sought = watch, differs, places, here
        self.checkpoints.look()
        marks = [mark for mark in self.checkpoints.kept if mark.position < here]
        end, after = here, self.checkpoints.current.copy()
        for mark in reversed(marks):
            found = self._in_stretch(mark, end) if differs(mark.contents, after) else None
            if found is not None:
                return found
            end, after = mark.position, mark.contents
        self.goto(here)
        return None

    def _in_stretch(self, start: Checkpoint, end: Position) -> Position | None:
        """The last moment between a checkpoint and a position; the guest is there then."""
        self.put_back(start)
        parts = list(self._divide(start, end))
        last, until = parts[-1]
        found = self._watched(last, until)
        if found is None and len(parts) > 1:
            found = self._watched(parts[0][0], last.position)
        return found

    def _divide(self, start: Checkpoint, end: Position) -> Iterator[tuple[Checkpoint, Position]]:
        """The parts of a stretch in which something of interest may have happened, in order."""
        differs = self._sought[1]
        length = max(SHORT, (end.progress - start.position.progress) // PIECES)
        collecting, self._collecting = self._collecting, False
        try:
            while start.position.progress + length < end.progress:
                self._forward(start.position.progress + length)
                behind = self.loose_checkpoint()
                if differs(start.contents, behind.contents):
                    yield start, behind.position
                start = behind
        finally:
            self._collecting = collecting
        yield start, end

    def _watched(self, start: Checkpoint, end: Position) -> Position | None:
        """Do a stretch again, watching."""
        moments: list[int] = []

        def note() -> None:
            progress = self.engine.progress - 1
            if not moments or moments[-1] != progress:
                moments.append(progress)
                if len(moments) > _KEPT:
                    del moments[: _KEPT // 2]

        self.put_back(start)
        with_end = end.progress + 1 if end.steps else end.progress
        self._with(note, lambda: self._forward(with_end))
        for progress in reversed(moments):
            found = self._within_block(progress)
            if found is not None:
                return found
        return None

    def _within_block(self, progress: int) -> Position | None:
        """The last moment in one block, before where the search began."""
        _, _, places, here = self._sought
        steps: list[int] = []
        self.goto(Position(progress))
        block = self.loose_checkpoint()
        self._with(lambda: steps.append(max(len(self.seen) - 1, 0)), lambda: self.watch_block(lambda _: False))
        if places:
            steps = [step for step, address in enumerate(self.seen) if address in places]
        self.put_back(block)
        for step in reversed(steps):
            position = Position(progress, step)
            if position < here:
                self.goto(position)
                return position
        return None

    def _with(self, note: Note, act: Callable[[], object]) -> None:
        """Do something while watching."""
        driver, watch = self.driver, self._sought[0]
        collecting, self._collecting = self._collecting, False
        observers, driver.around = watch(note)
        try:
            act()
        finally:
            driver.around = None
            for observer in observers:
                self.engine.unobserve(observer)
            self._collecting = collecting


__all__ = ["PAUSED", "ConsoleOnce", "Timeline"]
