"""The two views of a guest's memory as a value: which shadow table mirrors what, and what each frame is used for.

Room: `paravirt/services`. The words of the tables, and the snapshots beside them, are memory, and saved as such; here
is what Python keeps of them. Values are copies: nothing of a state changes when the guest goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from paravirt.mmu.pool import Key
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ViewState:
    """Of shadow paging with the technique `snapshot`."""

    view: int
    current: tuple[int, ...]
    """Root table in use of every region."""
    window: int
    """The table of the hypervisor's window, or -1."""
    probe: tuple[int, ...]
    roots: dict[tuple[int, int, int], int]
    tables: dict[Key, int]
    """Every table that can be found, by what it is known by."""
    source: tuple[int, ...]
    """By unit, as `span`, `misses`, `below` and `levels`: see `TablePool`."""
    span: tuple[int, ...]
    misses: tuple[int, ...]
    below: tuple[frozenset[int], ...]
    levels: bytes
    split: dict[int, tuple[int, ...]]
    kinds: bytes
    """What each frame is used for."""
    executors: dict[int, frozenset[int]]
    writers: dict[int, tuple[int, ...]]
    stale: frozenset[int]
    invalidated: tuple[int, ...]
    reached: dict[int, int]
    descriptor_pages: dict[int, int]
    fills: int
    prefilled: int


def capture_views(shadow: ShadowPaging) -> ViewState:
    """Take the state of shadow tables."""
    pool, frames, technique = shadow.pool, shadow.frames, shadow.technique
    assert isinstance(technique, Snapshot)
    return ViewState(
        view=shadow.view,
        current=shadow._current,
        window=shadow._window,
        probe=tuple(shadow._probe),
        roots=dict(shadow._roots),
        tables=dict(pool._tables),
        source=tuple(pool.source),
        span=tuple(pool._span),
        misses=tuple(pool.misses),
        below=tuple(map(frozenset, pool.below)),
        levels=pool.level_of[: pool.used].tobytes(),
        split={base: tuple(tables) for base, tables in shadow.blocks._split.items()},
        kinds=frames.kind.tobytes(),
        executors={number: frozenset(places) for number, places in frames._executors.items() if places},
        writers={number: tuple(places) for number, places in frames.writers.items() if places},
        stale=frozenset(technique._stale),
        invalidated=tuple(technique._invalidated),
        reached=dict(technique._reached),
        descriptor_pages=dict(getattr(shadow, "descriptor_pages", {})),
        fills=shadow.fills,
        prefilled=shadow.prefilled,
    )


def reinstate_views(shadow: ShadowPaging, state: ViewState) -> None:
    """Put a state back; the tables' words are those of the state already. Raises `ValueError` for one that cannot be
    this machine's: nothing in it leads outside the guest's memory or the pool."""
    check_views(shadow, state)
    pool, frames, technique = shadow.pool, shadow.frames, shadow.technique
    assert isinstance(technique, Snapshot)
    used = len(state.source)
    pool.used = used
    pool.source[:], pool._span[:], pool.misses[:] = state.source, state.span, state.misses
    pool.below[:] = map(set, state.below)
    pool.level_of[:used] = memoryview(state.levels)
    pool.forget_arrays()
    pool._tables = dict(state.tables)
    shadow.view = state.view
    shadow._current, shadow._window, shadow._probe = state.current, state.window, list(state.probe)
    shadow._roots = dict(state.roots)
    shadow._changes.clear()
    shadow.blocks._split = {base: list(tables) for base, tables in state.split.items()}
    frames.kind[:] = memoryview(state.kinds)
    frames._executors = {number: set(places) for number, places in state.executors.items()}
    frames.writers = {number: list(places) for number, places in state.writers.items()}
    technique._stale = set(state.stale)
    technique._invalidated[:] = state.invalidated
    technique._reached = dict(state.reached)
    technique._again = False
    if hasattr(shadow, "descriptor_pages"):
        shadow.descriptor_pages = dict(state.descriptor_pages)
    shadow.fills, shadow.prefilled = state.fills, state.prefilled


def check_views(shadow: ShadowPaging, state: ViewState) -> None:
    """Raise `ValueError` for a state that is none of such a machine."""
    pool, frames = shadow.pool, shadow.frames
    used, size = len(state.source), pool._guest_size
    spans = {level.mirrored for level in pool.levels}
    tables = range(-1, used)
    roots = range(used + 1 - pool.units_of(shadow._top))
    words = range(used << pool.shift)
    ok = (
        used <= pool.units
        and len(state.span) == len(state.misses) == len(state.below) == len(state.levels) == used
        and all(
            source == -1 or (0 < span <= size - source and source >= 0 and (span in spans or source + span == size))
            for source, span in zip(state.source, state.span, strict=True)
        )
        and max(state.levels, default=0) <= shadow._top
        and len(state.kinds) == frames.count
        and max(state.kinds, default=0) <= 3
        and state.view in (0, 1)
        and len(state.current) == len(shadow.guest.roots)
        and len(state.probe) == len(shadow._probe)
        and all(table in tables for table in (*state.current, state.window, *state.probe, *state.roots.values()))
        and min(state.probe, default=0) >= 0
        and all(root in roots for root in (*state.current, *state.roots.values()))
        and all(
            1 <= level <= shadow._top and 0 <= table <= used - pool.units_of(level)
            for (_, level, _, _), table in state.tables.items()
        )
        and all(0 <= table < used for below in state.below for table in below)
        and all(0 <= table < used for split in state.split.values() for table in split)
        and all(at in words for places in (*state.executors.values(), *state.writers.values()) for at in places)
        and all(0 <= number < frames.count for number in (*state.executors, *state.writers))
        and all(0 <= upto <= len(state.invalidated) for upto in state.reached.values())
    )
    if not ok:
        raise ValueError("the shadow tables of the saved machine are none of a machine of this size")
