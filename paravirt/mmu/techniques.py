"""The techniques of memory virtualisation there are for shadow tables, and what the shadow core asks of one.

Room: `paravirt/mmu`. All of them share the tables, the filling and the rules of what is writable or executable
(`shadow`, `frames`, `pool`); a technique says how the shadow follows when the guest edits its own tables, and what a
flush means. It is chosen before the guest runs, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from emulator.isa.paging import PageWalk

if TYPE_CHECKING:
    from paravirt.mmu.shadow import ShadowPaging


class Technique(Protocol):
    """How shadow tables follow the guest's."""

    name: str
    ahead: bool
    """Whether pages may be mapped before they are asked for."""

    # -- what happens to shadow tables

    def mirrored(self, table: int) -> None:
        """A shadow table was made of a guest's table as that is now."""
        ...

    def found(self, table: int) -> None:
        """A shadow table that was perhaps out of reach is about to be linked again."""
        ...

    def linked(self, at: int, below: int) -> None:
        """The entry at a place of the pool leads to the table `below` now."""
        ...

    def walked(self, walk: PageWalk) -> None:
        """A miss: the guest's tables were walked, and what was found is about to be entered."""
        ...

    def entered(self, view: int, roots: tuple[int, ...]) -> None:
        """The engine is about to run in a view of the current address space."""
        ...

    def forget(self) -> None:
        """All shadow tables are gone."""
        ...

    # -- what the guest does

    def root_loaded(self) -> None:
        """It loaded a root, which flushed all but global translations."""
        ...

    def flushed_all(self) -> None:
        """It flushed everything."""
        ...

    def invalidated(self, address: int) -> None:
        """It flushed one page."""
        ...


def _snapshot(shadow: ShadowPaging) -> Technique:
    from paravirt.mmu.snapshot import Snapshot

    return Snapshot(shadow)


def _lazy(shadow: ShadowPaging) -> Technique:
    from paravirt.mmu.lazy import Lazy

    return Lazy(shadow)


def _eager(shadow: ShadowPaging) -> Technique:
    from paravirt.mmu.eager import Eager

    return Eager(shadow)


def _two_stage(shadow: ShadowPaging) -> Technique:
    from paravirt.mmu.two_stage import TwoStage

    return TwoStage(shadow)


def _direct(shadow: ShadowPaging) -> Technique:
    from paravirt.mmu.direct import Direct

    return Direct(shadow)


def _batched(shadow: ShadowPaging) -> Technique:
    from paravirt.mmu.batched import Batched

    return Batched(shadow)


TECHNIQUES: dict[str, Callable[[ShadowPaging], Technique]] = {
    "snapshot": _snapshot,
    "lazy": _lazy,
    "eager": _eager,
    "two-stage": _two_stage,
}
"""How to make each."""
PARA_TECHNIQUES: dict[str, Callable[[ShadowPaging], Technique]] = {"direct": _direct, "batched": _batched}
"""Those for para-virtual guests alone, in which no shadow tables are walked."""
ALL_TECHNIQUES = TECHNIQUES | PARA_TECHNIQUES
DEFAULT = "snapshot"
