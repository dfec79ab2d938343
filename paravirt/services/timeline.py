"""Searching a guest's history backwards: who changed this memory last, when was this executed last.

Room: `paravirt/services`. The stretch before the present is done again and watched, then the one before it. Stretches
in which the page in question was not written are passed over. Then the block in which it happened is done once more,
instruction by instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

from emulator.errors import UsageError
from emulator.memory import PAGE_SIZE
from paravirt.services.checkpoints import Checkpoint
from paravirt.services.positions import Position
from paravirt.services.travel import PAUSED, ConsoleOnce, Travel

_KEPT: Final = 4096
"""Moments at which something was seen that are remembered of one stretch, the last ones."""
_WORD: Final = 8
MOST_PLACES: Final = 256
"""Addresses that can be searched for at once."""
MOST_BYTES: Final = 4096
"""Bytes whose change can be searched for at once."""


class _Sought(Protocol):
    """What is looked for in a stretch of history."""

    lag: int
    """Units of progress that have begun since it happened, when it is noted."""

    def may_be(self, before: Any, after: Any) -> bool:
        """Whether it may have happened between two checkpoints with these contents."""
        ...

    def observe(self, engine: Any, note: Callable[[], None]) -> list[int]:
        """Have `note` called when it happens; gives the observers."""
        ...

    def unnoted(self) -> bool:
        """Whether it happened since it was noted last."""
        ...

    def clear(self) -> None:
        """Another block is looked at closely from now on."""
        ...

    def begins(self, address: int) -> None:
        """An instruction of the block that is looked at closely is about to begin; -1 at the end."""
        ...

    def steps(self) -> list[int]:
        """The instructions of that block, from 0, at which it happened."""
        ...


class _Change:
    """Bytes of memory change."""

    lag = 2

    def __init__(self, view: memoryview, first_page: int, last_page: int) -> None:
        self._view = view
        self._pages = slice(first_page, last_page + 1)
        self._value = bytes(view)
        self._seen: list[bytes] = []
        """The bytes at the beginning of a block, before each of its instructions, and at its end."""

    def may_be(self, before: Any, after: Any) -> bool:
        return bool((before[self._pages] != after[self._pages]).any())

    def observe(self, engine: Any, note: Callable[[], None]) -> list[int]:
        self._value = bytes(self._view)

        def changed() -> None:
            self._value = bytes(self._view)
            note()

        size = self._view.nbytes
        return [engine.observe_change(self._view[at : at + _WORD], changed) for at in range(0, size, _WORD)]

    def unnoted(self) -> bool:
        return self._value != self._view

    def clear(self) -> None:
        self._seen[:] = [bytes(self._view)]

    def begins(self, address: int) -> None:
        self._seen.append(bytes(self._view))

    def steps(self) -> list[int]:
        seen = self._seen
        return [max(place - 1, 0) for place in range(len(seen) - 1) if seen[place] != seen[place + 1]]


class _Execution:
    """One of some addresses is executed."""

    lag = 1

    def __init__(self, places: Collection[int]) -> None:
        self._places = frozenset(places)
        self._seen: list[int] = []

    def may_be(self, before: Any, after: Any) -> bool:
        return True

    def observe(self, engine: Any, note: Callable[[], None]) -> list[int]:
        return [engine.observe_code(place, place, lambda _: note()) for place in sorted(self._places)]

    def unnoted(self) -> bool:
        return False

    def clear(self) -> None:
        self._seen.clear()

    def begins(self, address: int) -> None:
        self._seen.append(address)

    def steps(self) -> list[int]:
        return [step for step, address in enumerate(self._seen) if address in self._places]


class Timeline(Travel):
    """The history of one machine."""

    def find_previous_write(self, physical: int, size: int) -> Position | None:
        """Go to the instruction that last changed `size` bytes at a guest-physical address before here.

        What the hypervisor stored for the guest (an interrupt's frame) counts for the instruction that it interrupted.
        None, and the guest stays here, where there is none. Raises `UsageError` for what is no memory.
        """
        memory = self.machine.memory
        if not 1 <= size <= MOST_BYTES or not memory.base <= physical <= memory.end - size - _WORD:
            raise UsageError(f"{size} bytes at {physical:#x} are not in the guest's memory, or more than {MOST_BYTES}")
        low = physical - memory.base
        return self._search(_Change(memory.view[low : low + size], low // PAGE_SIZE, (low + size - 1) // PAGE_SIZE))

    def find_previous(self, addresses: Collection[int]) -> Position | None:
        """Go to where one of some guest-virtual addresses was executed last before here; None, and the guest stays
        here, where none was. Raises `UsageError` for too many."""
        if len(addresses) > MOST_PLACES:
            raise UsageError(f"{len(addresses)} addresses to look for at once: give at most {MOST_PLACES}")
        return self._search(_Execution(addresses))

    def _search(self, sought: _Sought) -> Position | None:
        """Go to the last moment before here at which something happened."""
        here = self.position
        self.checkpoints.look()
        marks = [mark for mark in self.checkpoints.kept if mark.position < here]
        end, after = here, self.checkpoints.current.copy()
        for mark in reversed(marks):
            found = self._in_stretch(mark, end, here, sought) if sought.may_be(mark.contents, after) else None
            if found is not None:
                return found
            end, after = mark.position, mark.contents
        self.goto(here)
        return None

    def _in_stretch(self, start: Checkpoint, end: Position, here: Position, sought: _Sought) -> Position | None:
        """The last moment between a checkpoint and a position; the guest is there then."""
        moments: list[int] = []

        def note() -> None:
            progress = self.engine.progress - sought.lag
            if not moments or moments[-1] != progress:
                moments.append(progress)
                if len(moments) > _KEPT:
                    del moments[: _KEPT // 2]

        self.put_back(start)
        with self._not_collecting():
            observers = sought.observe(self.engine, note)
            try:
                self._forward(end.progress + 1 if end.steps else end.progress)
                if sought.unnoted():
                    moments.append(self.engine.progress_state.done - 1)
            finally:
                for observer in observers:
                    self.engine.unobserve(observer)
        for progress in reversed(moments):
            found = self._within_block(progress, here, sought)
            if found is not None:
                return found
        return None

    def _within_block(self, progress: int, here: Position, sought: _Sought) -> Position | None:
        """The last moment in one block, before where the search began."""
        self.goto(Position(max(progress, self.start.progress)))
        block = self.loose_checkpoint()
        sought.clear()
        self.watch_block(lambda _: False, begins=sought.begins)
        sought.begins(-1)
        self.put_back(block)
        for step in reversed(sought.steps()):
            position = Position(block.position.progress, step)
            if position < here:
                self.goto(position)
                return position
        return None


__all__ = ["PAUSED", "ConsoleOnce", "Timeline"]
