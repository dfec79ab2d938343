"""What an engine can do whose capabilities say `pauses_exactly`: stop anywhere, watch, be set to a progress.

Room: `emulator/engine`. None of it changes what the guest does, or when: services such as checkpoints and reverse
execution depend on that. All of it is asked for while no guest code runs, or in the callback of a pause.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from emulator.engine.protocol import Engine


class Progress(NamedTuple):
    """How far an engine is, and when it will come back."""

    done: int
    """Units of progress: blocks begun, less one that is about to begin again."""
    wanted: int
    """The deadline that was asked for last."""


class WatchingEngine(Engine, Protocol):
    """An engine whose capabilities say `watches` or `pauses_exactly`."""

    def count_again(self) -> None:
        """What observes has stopped the engine before an instruction. Its block was counted already and will be again
        when it is begun from there: let it count once. Called after the stop, before anything else."""
        ...

    def observe_code(self, first: int, last: int, seen: Callable[[int], None]) -> int:
        """Call `seen` before every instruction whose guest-virtual address is in `first`..`last`, with the address.

        `seen` may call `stop`: the instruction is not begun then. Gives what `unobserve` takes.
        """
        ...

    def observe_change(self, memory: memoryview, seen: Callable[[], None], *, exactly: bool = False) -> int:
        """Call `seen` at the beginning of a unit of progress when up to eight bytes of memory have changed before it,
        whoever changed them; `exactly`: before the next instruction, which is slow, and at which `seen` may `stop`. At
        least seven more bytes must be behind them. Gives what `unobserve` takes."""
        ...

    def observe_access(
        self, address: int, size: int, seen: Callable[[], None], *, reads: bool, writes: bool
    ) -> tuple[int, int]:
        """Call `seen` before the instruction behind one of the guest's that reads (`reads`) or writes (`writes`) some
        of `size` bytes at engine-physical `address`; `seen` may call `stop`. Fetches do not count. Slow. Gives two
        numbers for `unobserve`."""
        ...

    def unobserve(self, number: int) -> None:
        """Observe no more. All translated code goes, at either end."""
        ...


class PausingEngine(WatchingEngine, Protocol):
    """An engine whose stops leave no trace."""

    def pause_at(self, progress: int | None, paused: Callable[[], None] = lambda: None) -> None:
        """Call `paused` once so many units are done, at the beginning of the next one; None: not any more.

        At once, when the engine runs next, where that is not ahead. `paused` may call `stop`.
        """
        ...

    @property
    def progress_state(self) -> Progress:
        """What `set_progress` takes."""
        ...

    def set_progress(self, state: Progress) -> None:
        """Count on from another progress, to another deadline."""
        ...

    @property
    def pending(self) -> tuple[int, ...]:
        """What native code has kept back from the handler, and counted, as plain numbers."""
        ...

    def set_pending(self, pending: Sequence[int]) -> None:
        """Be where `pending` was. Raises `ValueError` for what it cannot have given."""
        ...
