"""What an engine adds whose capabilities say `lands`: its runs repeat although nothing counts what the guest does.

Room: `emulator/engine`. Its progress follows from the exits of the guest's own and from what is told here, and nothing
comes between two of them but at a *landing*: a place in the guest's run, known by everything that can be seen there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from emulator.engine.protocol import Engine


class Landing(NamedTuple):
    """Where a guest was that did not exit: the first such place behind an exit."""

    place: int
    """Guest-virtual address of the instruction."""
    flags: int
    """Those that code can change."""
    registers: tuple[int, ...]
    """The general registers, by encoding."""
    rest: str
    """Hash of the floating-point state, and of the memory that the registers lead to."""
    meter: tuple[int, int, int] | None = None
    """In a loop that comes by here: a register that only grows or only shrinks in it, by how much a round, and how
    many rounds a millisecond there were."""


class Passed(NamedTuple):
    """Progress that does not follow from what the guest did, and where it came."""

    exits: int
    """Behind so many exits of the guest's own."""
    units: int
    landing: Landing | None = None
    """Not right behind the exit but here, where the engine comes back with BUDGET; None: right behind it."""


class RepeatingEngine(Engine, Protocol):
    """An engine whose capabilities say `lands`."""

    processor: int
    """The host's processor on which it runs, if it may: a guest may see which."""
    on_passed: Callable[[Passed], None]
    """Called with all that must be known to do the run again, as it comes."""

    def repeat(self, passed: Sequence[Passed]) -> None:
        """From the beginning on, do as is told here and never as the host's time says. `run` raises `VerifyFailed`
        where the guest does not come to where it was."""
        ...

    def pause_at(self, progress: int | None, paused: Callable[[], None] = lambda: None) -> None:
        """Call `paused` once so much is reached, behind an exit and what is due there; None: not any more."""
        ...
